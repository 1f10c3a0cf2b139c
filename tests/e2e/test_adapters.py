"""A federation that trains low-rank adapters leaves an ordinary model: one that any PyTorch code loads and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edge_runtime.deploy import Runner
from simulations import models
from simulations.datasets import DIGITS
from simulations.runner import simulate
from simulations.scenario import Scenario, load_scenario

pytestmark = pytest.mark.e2e
SETTINGS = (
    "train.lora_rank=2", "train.lora_alpha=6", "data.partition=iid", "data.clients=8", "server.cohort=8",
    "server.rounds=8", "server.workers=2",
)  # fmt: skip


@pytest.fixture(scope="module", params=["engine", "torch"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scenario, Path]:
    out = tmp_path_factory.mktemp("adapters") / "run"
    scenario = load_scenario("digits", [*SETTINGS, f"train.trainer={request.param}", f"run.out={out}"])
    simulate(scenario)
    return scenario, out


def final(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    assert record["rounds"][-1]["loss"] < 0.8 * record["rounds"][0]["loss"]
    return record["final"]  # type: ignore[no-any-return]  # JSON


def test_the_merged_model_loads_into_the_users_own_module_and_is_as_good(finished: tuple[Scenario, Path]) -> None:
    scenario, out = finished
    module = models.digits_cnn()
    state = {name: torch.from_numpy(array) for name, array in load_file(out / "model.safetensors").items()}
    module.load_state_dict(state, strict=True)
    test = DIGITS.test_split(scenario.data, scenario.seed)
    with torch.inference_mode():
        found = module.eval()(torch.from_numpy(test.x)).numpy().argmax(1)
    accuracy = float((found == test.y).mean())
    assert accuracy == pytest.approx(final(out)["accuracy"], abs=0.01)
    assert accuracy > 0.5


def test_the_exported_model_is_the_merged_one(finished: tuple[Scenario, Path]) -> None:
    scenario, out = finished
    figures = final(out)
    assert figures["deploy"]["formats"]["onnx_fp32"]["accuracy"] == pytest.approx(figures["accuracy"], abs=0.01)
    assert figures["deploy"]["formats"]["onnx_int8"]["agreement"] > 0.95
    outputs = Runner.open(out / "model_int8.onnx").predict(DIGITS.test_split(scenario.data, scenario.seed).x[:3])
    assert np.shape(outputs) == (3, 10)


def test_a_layers_own_weight_rests_but_for_what_its_adapters_add(finished: tuple[Scenario, Path]) -> None:
    """What moved of the layer with adapters is a matrix of their rank; the last layer trained in full."""
    scenario, out = finished
    state = load_file(out / "model.safetensors")
    torch.manual_seed(scenario.seed)
    start = models.digits_cnn().state_dict()
    ranks = {
        name: np.linalg.matrix_rank(state[name] - start[name].numpy(), tol=1e-5)
        for name in ("hidden.weight", "out.weight")
    }
    assert ranks["hidden.weight"] == 2
    assert ranks["out.weight"] > 2
