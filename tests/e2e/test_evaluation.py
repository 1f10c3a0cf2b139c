"""Who measures the global model: clients on their own examples, the server, or nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_runtime import plugins
from edge_runtime.config import from_flat
from edge_runtime.errors import ConfigError, RunError
from edge_runtime.train.batches import Batches
from edge_runtime.train.factory import make_module
from edge_runtime.train.torch_trainer import TorchTrainer
from server.config import ServerConfig
from server.federation import federate
from server.link import Link
from simulations.grid import InProcessGrid
from simulations.runner import simulate
from simulations.scenario import Scenario, load_scenario

pytestmark = pytest.mark.e2e
SETTINGS = ["server.rounds=2", "data.clients=6", "server.cohort=6", "server.min_updates=2", "server.workers=1"]


def run(out: Path, *overrides: str) -> tuple[Scenario, dict[str, Any]]:
    scenario = load_scenario("digits", [*SETTINGS, *overrides, f'run.out="{out}"'])
    simulate(scenario)
    return scenario, json.loads((out / "run.json").read_text())


def judge(scenario: Scenario, out: Path) -> TorchTrainer:
    """The model that the run left, in PyTorch, whatever trained it."""
    trainer = TorchTrainer(make_module(scenario.model, seed=0), loss=scenario.train.build_loss())
    trainer.load_state_dict(load_file(out / "model.safetensors"))
    return trainer


@pytest.mark.parametrize("trainer", ["engine", "torch"])
def test_clients_figures_are_averaged_by_their_examples(tmp_path, trainer):
    scenario, record = run(tmp_path / "run", "server.evaluate=clients", f"train.trainer={trainer}")
    source = plugins.load("hedgerow.datasets", "digits")
    parts = [source.client_split(scenario.data, scenario.seed, client) for client in range(6)]
    figures = [judge(scenario, tmp_path / "run").evaluate(Batches(part, 64)) for part in parts]
    for name in ("loss", "accuracy"):
        expected = np.average([figure[name] for figure in figures], weights=[len(part) for part in parts])
        assert record["final"][name] == pytest.approx(expected, rel=1e-5)
    assert "held-out data" in record["final"]["deploy"]["skipped"]


def test_central_figures_are_of_the_held_out_examples(tmp_path):
    scenario, record = run(tmp_path / "run", "server.eval_every=2", 'deploy.formats=""')
    test = plugins.load("hedgerow.datasets", "digits").test_split(scenario.data, scenario.seed)
    expected = judge(scenario, tmp_path / "run").evaluate(Batches(test, 50))
    assert record["final"]["accuracy"] == pytest.approx(expected["accuracy"])
    assert record["final"]["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert [row["accuracy"] is None for row in record["rounds"]] == [True, False]


def test_nobody_measures_when_told_so(tmp_path):
    _, record = run(tmp_path / "run", "server.evaluate=none")
    assert record["final"]["accuracy"] is None
    assert all(row["loss"] is None and row["train_loss"] > 0 for row in record["rounds"])


def own_data_only(folder: Path, evaluate: str, **settings: Any) -> ServerConfig:
    """A server that has no examples; its clients read a file that it does not know."""
    rng = np.random.default_rng(0)
    np.savez(folder / "own.npz", x=rng.normal(size=(40, 1, 8, 8)).astype(np.float32), y=rng.integers(0, 10, 40))
    values = {
        "data.name": "npz", "data.clients": 4, "model.name": "digits_cnn", "server.rounds": 2, "server.cohort": 3,
        "server.evaluate": evaluate, "deploy.formats": "", "run.out": str(folder / "run"), **settings,
    }  # fmt: skip
    return from_flat(ServerConfig, values)


def federate_own_data(folder: Path, config: ServerConfig) -> dict[str, Any]:
    with InProcessGrid(4, 1, node_config={"data-path": str(folder / "own.npz")}) as grid:
        federate(Link(grid, grid.clock), config)
    return json.loads((folder / "run" / "run.json").read_text())


@pytest.mark.parametrize("evaluate", ["clients", "none"])
def test_a_server_without_data_needs_the_shape_of_an_example_and_no_more(tmp_path, evaluate):
    record = federate_own_data(tmp_path, own_data_only(tmp_path, evaluate, **{"model.input": "1x8x8"}))
    assert [(row["clients"], row["dropped"]) for row in record["rounds"]] == [(3, 0), (3, 0)]
    assert [row["loss"] is None for row in record["rounds"]] == [evaluate == "none"] * 2
    assert record["final"]["evaluated_on"] == (None if evaluate == "none" else "clients' own training data")


def test_a_server_without_data_that_is_not_told_the_shape_says_so_before_it_asks_anybody(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.input must say the shape of one example"):
        federate_own_data(tmp_path, own_data_only(tmp_path, "none"))
    assert not (tmp_path / "run").exists()


def test_clients_whose_examples_have_another_shape_are_named(tmp_path):
    config = own_data_only(tmp_path, "none", **{"model.name": "lenet", "model.input": "1x28x28"})
    with pytest.raises(RunError, match=r"has shape \(\d+, 1, 8, 8\), the model takes \(\d+, 1, 28, 28\)"):
        federate_own_data(tmp_path, config)
