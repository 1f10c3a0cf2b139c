"""Who measures the global model: clients on their own examples, the server, or nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_runtime import plugins
from edge_runtime.train.batches import Batches
from edge_runtime.train.factory import make_trainer
from simulations.runner import simulate
from simulations.scenario import Scenario, load_scenario

pytestmark = pytest.mark.e2e
SETTINGS = ["server.rounds=2", "data.clients=6", "server.cohort=6", "server.min_updates=2", "server.workers=1"]


def run(out: Path, *overrides: str) -> tuple[Scenario, dict[str, Any]]:
    scenario = load_scenario("digits", [*SETTINGS, *overrides, f'run.out="{out}"'])
    simulate(scenario)
    return scenario, json.loads((out / "run.json").read_text())


def test_clients_figures_are_averaged_by_their_examples(tmp_path):
    scenario, record = run(tmp_path / "run", "server.evaluate=clients")
    trainer = make_trainer(scenario.model, scenario.train)
    trainer.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    source = plugins.load("hedgerow.datasets", "digits")
    parts = [source.client_split(scenario.data, scenario.seed, client) for client in range(6)]
    figures = [trainer.evaluate(Batches(part, 64)) for part in parts]
    for name in ("loss", "accuracy"):
        expected = np.average([figure[name] for figure in figures], weights=[len(part) for part in parts])
        assert record["final"][name] == pytest.approx(expected, rel=1e-5)
    assert "held-out data" in record["final"]["deploy"]["skipped"]


def test_central_figures_are_of_the_held_out_examples(tmp_path):
    scenario, record = run(tmp_path / "run", "server.eval_every=2", 'deploy.formats=""')
    trainer = make_trainer(scenario.model, scenario.train)
    trainer.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    test = plugins.load("hedgerow.datasets", "digits").test_split(scenario.data, scenario.seed)
    assert record["final"]["accuracy"] == pytest.approx(trainer.evaluate(Batches(test, 50))["accuracy"])
    assert [row["accuracy"] is None for row in record["rounds"]] == [True, False]


def test_nobody_measures_when_told_so(tmp_path):
    _, record = run(tmp_path / "run", "server.evaluate=none")
    assert record["final"]["accuracy"] is None
    assert all(row["loss"] is None and row["train_loss"] > 0 for row in record["rounds"])
