"""Simulated misbehaviour: who is drawn, what a damaged reply looks like, and what each fault costs a whole run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

import clients.app
from clients.round import Workbench
from edge_runtime import plugins
from edge_runtime.config import flatten, from_flat
from edge_runtime.errors import ConfigError, PeerError, RunError
from edge_runtime.train.config import DATASETS, RoundTask
from edge_runtime.train.factory import example_of, make_program, make_trainer, pack_program
from edge_runtime.updates import STYPE, TensorLayout, make_codec, wire
from server.rounds import choose_cohort
from simulations.faults import FaultConfig, SimulatedFaultError, with_faults
from simulations.grid import assume_identity
from simulations.runner import simulate
from simulations.scenario import Scenario, load_scenario

KINDS = list(FaultConfig().rates)
REASONS = {
    "dropout": "SimulatedFaultError: simulated drop-out",
    "error": "SimulatedFaultError: simulated error in training",
    "hang": "no reply within 2.5 s",
    "crash": "process died, exit code 1",
    "nan": "NaN",
    "wrong_shape": "bytes",
    "missing_tensor": "tensors",
}


@given(st.integers(0, 2**31 - 1), st.integers(1, 10**6), st.integers(0, 10**6))
def test_a_draw_follows_from_seed_round_and_client_alone(seed: int, round_number: int, client: int) -> None:
    faults = FaultConfig(dropout=0.3, nan=0.4)
    assert faults.draw(seed, round_number, client) == FaultConfig(dropout=0.3, nan=0.4).draw(seed, round_number, client)


def test_draws_differ_between_seeds_rounds_and_clients() -> None:
    faults = FaultConfig(error=0.5)
    clients = [faults.draw(1, 1, client) for client in range(64)]
    assert clients != [faults.draw(2, 1, client) for client in range(64)]
    assert clients != [faults.draw(1, 2, client) for client in range(64)]
    assert clients != [faults.draw(1, round_number, 1) for round_number in range(1, 65)]


def test_rates_hold_over_many_draws() -> None:
    """9,000 draws; the widest rate's standard deviation is 0.005, the bound four of them."""
    rates = {"dropout": 0.05, "error": 0.1, "hang": 0.02, "crash": 0.03, "nan": 0.15, "wrong_shape": 0.2}
    faults = FaultConfig(**rates)
    drawn = Counter(faults.draw(7, round_number, client) for round_number in range(1, 91) for client in range(100))
    for kind, rate in rates.items():
        assert drawn[kind] / 9000 == pytest.approx(rate, abs=0.02)
    assert drawn[""] / 9000 == pytest.approx(1 - sum(rates.values()), abs=0.02)
    assert drawn["missing_tensor"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_rate_one_is_always_and_rate_zero_never(kind: str) -> None:
    faults = FaultConfig(**{kind: 1.0})
    assert {faults.draw(3, 1, client) for client in range(500)} == {kind}
    assert {FaultConfig().draw(3, 1, client) for client in range(500)} == {""}


def test_rates_may_add_up_to_one_but_not_to_more() -> None:
    FaultConfig(dropout=0.5, nan=0.5)
    FaultConfig(dropout=0.2, error=0.4, hang=0.3, crash=0.1)
    with pytest.raises(ConfigError, match=r"rates add up to 1\.1"):
        FaultConfig(dropout=0.5, nan=0.6)


@dataclass(frozen=True)
class Asked:
    """A train message to client 0 and the layout of the model in it."""

    message: Message
    context: Context
    layout: TensorLayout


@pytest.fixture
def asked() -> Asked:
    assume_identity(0)
    values = {"data.name": "digits", "data.clients": 20, "model.name": "digits_cnn", "model.input": "1x8x8"}
    task = from_flat(RoundTask, values)
    state = make_trainer(task.model, task.train).state_dict()
    layout = TensorLayout.of(state)
    payload = make_codec("float32").encode_vector(layout.flatten(state), layout, round_number=1)
    model = ArrayRecord({"weights": Array("uint8", (len(payload),), STYPE, payload)})
    program = pack_program(make_program(task.model, task.train, example_of(task.model)))
    settings = ConfigRecord({**flatten(task), "program": program})
    message = Message(RecordDict({"model": model, "task": settings}), 0, "train", group_id="1")
    message.metadata.__dict__["_message_id"] = "asked"
    return Asked(message, Context(1, 0, {"partition-id": 0, "num-partitions": 20}, RecordDict(), {}), layout)


def update_of(asked: Asked, **faults: Any) -> bytes:
    reply = with_faults(clients.app.app, FaultConfig(**faults))(asked.message, asked.context)
    return reply.content.array_records["update"]["delta"].data


def test_without_faults_the_reply_is_the_apps_own(asked: Asked) -> None:
    own = clients.app.app(asked.message, asked.context).content.array_records["update"]["delta"].data
    assert update_of(asked) == own


@pytest.mark.parametrize("kind", ["dropout", "error"])
def test_drop_out_and_error_raise(asked: Asked, kind: str) -> None:
    with pytest.raises(SimulatedFaultError, match="simulated"):
        update_of(asked, **{kind: 1.0})


def test_nan_spoils_the_values_and_nothing_else(asked: Asked) -> None:
    good, bad = (
        make_codec("float32").decode_vector(update_of(asked, **rates), asked.layout, round_number=1)
        for rates in ({}, {"nan": 1.0})
    )
    spoilt = np.isnan(bad)
    assert 0 < spoilt.sum() < len(bad)
    np.testing.assert_array_equal(bad[~spoilt], good[~spoilt])


@pytest.mark.parametrize("kind", ["wrong_shape", "missing_tensor"])
def test_other_damage_is_a_well_formed_envelope_that_no_decoder_takes(asked: Asked, kind: str) -> None:
    payload = update_of(asked, **{kind: 1.0})
    assert len(wire.unpack(payload).body) < 4 * asked.layout.size
    with pytest.raises(PeerError):
        make_codec("float32").decode_vector(payload, asked.layout, round_number=1)


@given(st.integers(0, 2**31 - 1), st.integers(1, 500), st.floats(0, 1))
def test_poisoners_are_that_share_of_all_clients(seed: int, clients: int, share: float) -> None:
    poisoners = FaultConfig(poison=share).poisoners(seed, clients)
    assert poisoners <= set(range(clients))
    assert len(poisoners) == round(share * clients)
    assert poisoners == FaultConfig(poison=share, poison_kind="noise", nan=0.5).poisoners(seed, clients)


def test_another_seed_has_other_poisoners() -> None:
    assert len({FaultConfig(poison=0.2).poisoners(seed, 50) for seed in range(20)}) == 20


def test_a_poisoner_sends_its_update_the_other_way_or_noise_of_a_set_norm(asked: Asked) -> None:
    def values(**faults: Any) -> NDArray[np.float32]:
        return make_codec("float32").decode_vector(update_of(asked, **faults), asked.layout, round_number=1)

    own = values()
    np.testing.assert_allclose(values(poison=1.0, poison_scale=3.0), -3 * own, rtol=1e-6)
    noise = values(poison=1.0, poison_kind="noise", poison_scale=3.0)
    assert np.linalg.norm(noise) == pytest.approx(3 * np.linalg.norm(own), rel=1e-5)
    assert abs(np.corrcoef(noise, own)[0, 1]) < 5 / np.sqrt(own.size)
    np.testing.assert_array_equal(noise, values(poison=1.0, poison_kind="noise", poison_scale=3.0))


def test_who_is_no_poisoner_sends_its_own_update(asked: Asked) -> None:
    faults = next(
        FaultConfig(poison=share) for share in (0.9, 0.5, 0.1) if 0 not in FaultConfig(poison=share).poisoners(1, 20)
    )
    assert update_of(asked, poison=faults.poison) == update_of(asked)


def test_evaluation_meets_no_faults(asked: Asked) -> None:
    message = Message(asked.message.content, 0, "evaluate", group_id="1")
    message.metadata.__dict__["_message_id"] = "asked"
    reply = with_faults(clients.app.app, FaultConfig(error=1.0))(message, asked.context)
    assert reply.content.metric_records["metrics"]["num-examples"] > 0


def scenario(out: Path, *overrides: str) -> Scenario:
    tiny = (
        "data.name=digits data.clients=8 data.partition=iid model.name=digits_cnn model.input=1x8x8 train.epochs=1 "
        "server.cohort=6 server.over_selection=1 server.min_updates=1 server.rounds=2 server.deadline_s=2.5 "
        "deploy.formats="
    )
    return load_scenario("mnist", [*tiny.split(), f"run.out={out}", *overrides])


def drawn(settings: Scenario, number: int) -> dict[int, str]:
    """The fault of each client of that round's cohort."""
    cohort = choose_cohort(range(settings.data.clients), settings.server.cohort, settings.seed, number)
    return {client: settings.faults.draw(settings.seed, number, client) for client in cohort}


def replay(settings: Scenario) -> NDArray[np.float32]:
    """The run without a grid: the clients that no fault was drawn for train here, and their mean is applied."""
    bench = Workbench(make_trainer(settings.model, settings.train, seed=settings.seed))
    source, layout = plugins.load(DATASETS, settings.data.name), bench.tensors.layout
    weights = layout.flatten(bench.initial)
    for number in range(1, settings.server.rounds + 1):
        total, examples = np.zeros(layout.size), 0
        for client in [client for client, fault in drawn(settings, number).items() if not fault]:
            rows = source.client_split(settings.data, settings.seed, client)
            update = bench.train(settings.task(number), weights, rows, client)
            total += len(rows) * update.delta.astype(np.float64)
            examples += len(rows)
        weights = (weights + total / max(examples, 1)).astype(np.float32)
    return weights


def final_weights(directory: Path, settings: Scenario) -> NDArray[np.float32]:
    layout = TensorLayout.of(make_trainer(settings.model, settings.train).state_dict())
    return layout.flatten(load_file(directory / "model.safetensors"))


def read_run(directory: Path) -> dict[str, Any]:
    run: dict[str, Any] = json.loads((directory / "run.json").read_text())
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_costs_a_run_exactly_the_clients_it_was_drawn_for(tmp_path: Path, kind: str) -> None:
    settings = scenario(tmp_path / "run", f"faults.{kind}=0.3", "seed=38")
    simulate(settings)
    for row in read_run(tmp_path / "run")["rounds"]:
        expected = {str(client) for client, fault in drawn(settings, row["round"]).items() if fault}
        assert 0 < len(expected) < 6
        assert {failure["client"] for failure in row["failures"]} == expected
        assert all(REASONS[kind] in failure["reason"] for failure in row["failures"])
        assert row["dropped"] == len(row["failures"]) == len(expected)
        assert row["clients"] + row["dropped"] == 6
    np.testing.assert_allclose(final_weights(tmp_path / "run", settings), replay(settings), atol=1e-6)


def test_rounds_with_too_few_updates_leave_the_model_as_it_was(tmp_path: Path) -> None:
    settings = scenario(tmp_path / "run", "faults.dropout=0.5", "server.min_updates=4", "server.rounds=8")
    simulate(settings)
    rows = read_run(tmp_path / "run")["rounds"]
    good = [sum(not fault for fault in drawn(settings, row["round"]).values()) for row in rows]
    assert [row["applied"] for row in rows] == [count >= 4 for count in good]
    assert {row["applied"] for row in rows[1:]} == {True, False}
    for before, row in pairwise(rows):
        unchanged = (row["loss"], row["accuracy"]) == (before["loss"], before["accuracy"])
        assert unchanged == (not row["applied"])


def test_a_run_in_which_every_client_fails_ends_with_the_reasons(tmp_path: Path) -> None:
    settings = scenario(tmp_path / "run", "faults.error=1")
    with pytest.raises(
        RunError, match=r"no round could be applied; 12 times the reason was: .*simulated error.*run\.json"
    ):
        simulate(settings)
    run = read_run(tmp_path / "run")
    assert run["final"] is None
    assert "no round could be applied" in run["error"]
    for row in run["rounds"]:
        assert (row["clients"], row["dropped"], row["applied"]) == (0, 6, False)
        assert {failure["client"] for failure in row["failures"]} == {*map(str, drawn(settings, row["round"]))}
    assert run["rounds"][0]["loss"] == run["rounds"][1]["loss"]
    initial = make_trainer(settings.model, settings.train, seed=settings.seed).state_dict()
    np.testing.assert_array_equal(final_weights(tmp_path / "run", settings), TensorLayout.of(initial).flatten(initial))
