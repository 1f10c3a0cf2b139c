"""Whole runs with codecs in both directions: they learn, repeat, survive drop-outs, and send what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import load_file

from edge_runtime.config import flatten
from edge_runtime.train.factory import make_module
from edge_runtime.updates import TensorLayout
from server.app import make_app
from server.events import Event, RoundClosed
from server.rounds import choose_cohort
from simulations.grid import RUN_ID, SERVER_NODE_ID, InProcessGrid
from simulations.runner import simulate
from simulations.scenario import Scenario, load_scenario

TINY = (
    "data.clients=6 server.cohort=4 server.min_updates=1 server.rounds=10 server.workers=2 data.partition=iid "
    "deploy.formats= seed=3"
)
SMALL = {
    "uniform and deltas": "uplink.codec=uniform uplink.bits=4 downlink.codec=float16 downlink.delta=uniform "
    "downlink.bits=8",
    "context both ways": "uplink.codec=context uplink.bits=1 downlink.codec=float16 downlink.delta=context "
    "downlink.bits=2",
    "topk with feedback": "uplink.codec=topk,float16 uplink.fraction=0.1 uplink.error_feedback=true "
    "downlink.codec=int8 downlink.delta=topk,int8 downlink.fraction=0.2",
}


def scenario(out: Path, *overrides: str) -> Scenario:
    words = [word for override in overrides for word in override.split()]
    return load_scenario("digits", [*TINY.split(), *words, f"run.out={out}"])


def run(out: Path, *overrides: str) -> dict[str, Any]:
    simulate(scenario(out, *overrides))
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize("codecs", SMALL.values(), ids=SMALL.keys())
def test_small_updates_and_deltas_learn_as_float32_does(tmp_path: Path, plain: dict[str, Any], codecs: str) -> None:
    small = run(tmp_path / "run", codecs)
    assert all((row["clients"], row["dropped"]) == (4, 0) for row in small["rounds"])
    assert plain["final"]["accuracy"] > 0.9
    assert small["final"]["accuracy"] > plain["final"]["accuracy"] - 0.05
    assert small["final"]["uplink_bytes"] < plain["final"]["uplink_bytes"] / 5
    assert small["final"]["downlink_bytes"] < plain["final"]["downlink_bytes"] / 2
    bits = small["rounds"][0]["uplink_bits_per_parameter"]
    size = TensorLayout.of(load_file(tmp_path / "run" / "model.safetensors")).size
    assert small["rounds"][0]["uplink_bytes"] == pytest.approx(4 * size * bits / 8, rel=1e-3)


@pytest.mark.parametrize("codecs", SMALL.values(), ids=SMALL.keys())
def test_the_model_does_not_depend_on_the_number_of_processes(tmp_path: Path, codecs: str) -> None:
    records = [run(tmp_path / str(workers), codecs, f"server.workers={workers}") for workers in (1, 2)]
    assert records[0]["final"]["model_sha256"] == records[1]["final"]["model_sha256"]
    columns = ("uplink_bytes", "downlink_bytes", "train_loss")
    first, second = ([[row[name] for name in columns] for row in record["rounds"]] for record in records)
    assert first == second


@pytest.mark.parametrize("codecs", SMALL.values(), ids=SMALL.keys())
def test_clients_that_drop_out_are_brought_up_to_date(tmp_path: Path, codecs: str) -> None:
    """Whoever is asked and does not drop out answers: no round is lost to a version that a client does not hold."""
    faults = "faults.dropout=0.35 server.over_selection=1"
    settings = scenario(tmp_path / "run", codecs, faults)
    record = run(tmp_path / "run", codecs, faults)
    for row in record["rounds"]:
        cohort = choose_cohort(range(6), 4, settings.seed, row["round"])
        gone = {str(node) for node in cohort if settings.faults.draw(settings.seed, row["round"], node)}
        assert {failure["client"] for failure in row["failures"]} == gone
    assert sum(row["dropped"] for row in record["rounds"]) > 5
    assert record["final"]["accuracy"] > 0.8


def test_clients_that_also_measure_the_model_hold_it(tmp_path: Path) -> None:
    record = run(tmp_path / "run", SMALL["uniform and deltas"], "server.evaluate=clients server.rounds=4")
    assert all(row["dropped"] == 0 and row["accuracy"] is not None for row in record["rounds"])
    assert record["rounds"][3]["accuracy"] > record["rounds"][0]["accuracy"]


def test_a_client_that_loses_its_state_costs_one_answer(tmp_path: Path) -> None:
    """All of them do so after round 2: round 3 has no update, and from round 4 on all is as it was."""
    settings = scenario(tmp_path / "run", SMALL["uniform and deltas"], "server.cohort=6 server.rounds=5")
    with InProcessGrid(6, 2) as grid:

        def lose(event: Event) -> None:
            if isinstance(event, RoundClosed) and event.row.round == 2:
                grid._states.clear()

        app = make_app([lose], clock=grid.clock)
        app(grid, Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), dict(flatten(settings))))
    rows = json.loads((tmp_path / "run" / "run.json").read_text())["rounds"]
    assert [(row["clients"], row["dropped"]) for row in rows] == [(6, 0), (6, 0), (0, 6), (6, 0), (6, 0)]
    assert all("this node holds none: it needs the whole model" in one["reason"] for one in rows[2]["failures"])
    assert rows[3]["downlink_bytes"] == rows[0]["downlink_bytes"] > rows[4]["downlink_bytes"]


@pytest.mark.parametrize("trainer", ["engine", "torch"])
def test_only_the_tensors_that_train_travel(tmp_path: Path, trainer: str) -> None:
    """Up and in deltas; the frozen ones are sent once, whole."""
    overrides = f"train.trainer={trainer} train.trainable=out.* server.rounds=3 downlink.delta=float32"
    record = run(tmp_path / "run", overrides)
    settings = scenario(tmp_path / "run", overrides)
    before = make_module(settings.model, settings.seed).state_dict()
    after = load_file(tmp_path / "run" / "model.safetensors")
    changed = {name for name, value in before.items() if not np.array_equal(value.numpy(), after[name])}
    assert changed == {"out.weight", "out.bias"}
    part = sum(before[name].numel() for name in changed)
    for row in record["rounds"]:
        assert 4 * 4 * part < row["uplink_bytes"] < 4 * (4 * part + 100)
    assert record["rounds"][2]["downlink_bytes"] < record["rounds"][0]["downlink_bytes"] / 1.5
