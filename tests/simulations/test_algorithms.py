"""Whole runs with SCAFFOLD, FedNova and layers of clients' own: bytes, figures, faults, repetition, resumption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_runtime.train.factory import make_module
from simulations.runner import simulate
from simulations.scenario import load_scenario

TINY = (
    "data.name=digits data.clients=6 data.partition=iid model.name=digits_cnn train.epochs=1 server.cohort=4 "
    "train.optimizer.momentum=0.0 server.min_updates=1 server.over_selection=1 server.rounds=3 server.workers=2 "
    "deploy.formats="
)


def run(out: Path, *overrides: str) -> dict[str, Any]:
    scenario = load_scenario("mnist", [*TINY.split(), f"run.out={out}", *overrides])
    simulate(scenario)
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


def head_bytes() -> int:
    state = make_module(load_scenario("mnist", TINY.split()).model, 1).state_dict()
    return sum(4 * tensor.numel() for name, tensor in state.items() if name.startswith("out."))


def column(record: dict[str, Any], name: str) -> list[Any]:
    return [row[name] for row in record["rounds"]]


def test_personal_layers_are_in_no_byte_that_goes_up_and_once_in_those_that_go_down(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", "server.evaluate=none")
    own = run(tmp_path / "own", "server.evaluate=none", "personal.layers=out.*")
    head = head_bytes()
    assert [a - b for a, b in zip(column(plain, "uplink_bytes"), column(own, "uplink_bytes"), strict=True)] == [
        4 * head
    ] * 3
    saved = [a - b for a, b in zip(column(plain, "downlink_bytes"), column(own, "downlink_bytes"), strict=True)]
    # A client that is asked for the first time is sent what its layers start from. Six clients, four a round.
    assert saved[0] == 0
    assert sum(saved) == (3 * 4 - 6) * head
    assert own["final"]["personal"]["clients"] == 6


@pytest.mark.parametrize("trainer", ["engine", "torch"])
def test_final_personal_says_what_clients_end_with(tmp_path: Path, trainer: str) -> None:
    shared = [
        "data.partition=shards",
        "train.optimizer.lr=0.1",
        "personal.fine_tune_epochs=4",
        f"train.trainer={trainer}",
    ]
    record = run(tmp_path / "all", *shared)
    personal = record["final"]["personal"]
    assert personal["layers"] == []
    assert personal["clients"] == personal["asked"] == 6
    assert personal["accuracy_after"] > personal["accuracy_before"]  # two classes a client are easily learned
    assert personal["worst"] <= personal["p10"] <= personal["accuracy_after"]
    assert record["final"]["evaluated_on"] == "held-out data"
    down = sum(column(record, "downlink_bytes")) + personal["downlink_bytes"]
    assert record["final"]["downlink_bytes"] == down
    head = run(tmp_path / "head", *shared, "personal.fine_tune=head")["final"]
    assert head["model_sha256"] == record["final"]["model_sha256"]
    assert head["personal"]["accuracy_before"] == personal["accuracy_before"]
    assert head["personal"]["loss_after"] != personal["loss_after"]


def test_clients_measure_with_their_own_layers_and_the_server_has_their_first_values(tmp_path: Path) -> None:
    record = run(
        tmp_path / "run", "server.evaluate=clients", "personal.layers=out.*", "data.partition=shards",
        "train.optimizer.lr=0.1", "server.rounds=8",
    )  # fmt: skip
    final = record["final"]
    assert final["evaluated_on"] == "clients' own held-out data"
    assert final["personal"]["accuracy_after"] is None  # nothing is tuned
    assert final["personal"]["accuracy_before"] > 0.4  # of ten classes: without their own layers it is a tenth
    assert set(final["personal"]["layers"]) == {"out.weight", "out.bias"}
    state = load_file(tmp_path / "run" / "model.safetensors")
    first = make_module(load_scenario("mnist", TINY.split()).model, load_scenario("mnist").seed).state_dict()
    for name, tensor in first.items():
        assert np.array_equal(state[name], tensor.numpy()) == name.startswith("out."), name


@pytest.mark.parametrize(
    "protection", [["secure.enabled=true", "secure.dropout=0.2"], ["privacy.noise_multiplier=0.1"]]
)
def test_personal_layers_work_as_usual_under_protection_and_no_client_is_measured(
    tmp_path: Path, protection: list[str]
) -> None:
    record = run(tmp_path / "run", "server.evaluate=none", "personal.layers=out.*", *protection)
    assert "personal" not in record["final"]
    assert column(record, "applied") == [True] * 3
    assert not any(column(record, "dropped"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["server.strategy=scaffold"],
        ["server.strategy=scaffold", "train.trainer=torch", "uplink.codec=int8", "downlink.delta=int8"],
        ["server.strategy=scaffold", "personal.layers=out.*", "server.evaluate=clients"],
        ["server.strategy=fednova", "uplink.codec=context", "uplink.bits=2", "uplink.error_feedback=true"],
        ["server.strategy=fednova_prox", "server.proximal_mu=0.1"],
    ],
    ids=" ".join,
)
def test_runs_repeat_with_any_number_of_processes_and_lost_clients(tmp_path: Path, overrides: list[str]) -> None:
    lossy = [*overrides, "faults.dropout=0.2", "faults.error=0.1", "data.partition=dirichlet", "server.rounds=5"]
    ends = {workers: run(tmp_path / str(workers), *lossy, f"server.workers={workers}") for workers in (1, 3)}
    one, three = ends[1]["final"], ends[3]["final"]
    assert one["model_sha256"] == three["model_sha256"]
    assert one["uplink_bytes"] == three["uplink_bytes"]
    assert one["downlink_bytes"] == three["downlink_bytes"]
    assert all(column(ends[1], "applied"))


def test_scaffolds_control_variates_are_counted_both_ways(tmp_path: Path) -> None:
    plain, scaffold = (run(tmp_path / name, f"server.strategy={name}") for name in ("fedavg", "scaffold"))
    for direction in ("uplink_bytes", "downlink_bytes"):
        more = [b - a for a, b in zip(column(plain, direction), column(scaffold, direction), strict=True)]
        values = 4 * plain["final"]["parameters"] * 4
        assert all(values <= one <= values + 4 * 2000 for one in more)  # and, down, a Program with room for them
    assert scaffold["final"]["parameters"] == plain["final"]["parameters"]
    losses = column(scaffold, "loss")
    assert losses[-1] < losses[0]
