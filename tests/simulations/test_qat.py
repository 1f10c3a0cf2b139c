"""Federations whose last rounds train with rounding in place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_runtime.config import from_flat
from edge_runtime.deploy.graph.calibrate import calibrate
from edge_runtime.deploy.graph.captured import captured_model
from edge_runtime.deploy.graph.fold import fold
from edge_runtime.deploy.graph.quantise import quantise
from edge_runtime.deploy.graph.rounding import predict_rounded
from edge_runtime.errors import ConfigError
from edge_runtime.train.factory import unpack_program
from server.config import ServerConfig
from server.model import GlobalModel
from simulations.datasets import DIGITS
from simulations.models import DigitsCNN
from simulations.runner import simulate
from simulations.scenario import load_scenario

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")  # torch.export's own

SMALL = (
    "data.name=digits data.clients=6 data.partition=iid model.name=digits_cnn train.epochs=3 server.cohort=6 "
    "server.rounds=10 server.workers=2 deploy.formats= train.optimizer.name=adam train.optimizer.lr=0.002"
)


def run(out: Path, *overrides: str) -> dict[str, Any]:
    simulate(load_scenario("mnist", [*SMALL.split(), f"run.out={out}", *overrides]))
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


def rounded_accuracy(out: Path, bits: int) -> float:
    """Of the run's final model, deployed with weights of so many bits, on the held-out digits."""
    config = load_scenario("mnist", SMALL.split())
    test = DIGITS.test_split(config.data, config.seed)
    model = fold(captured_model(DigitsCNN(), test.x, load_file(out / "model.safetensors")))
    logits = predict_rounded(quantise(model, calibrate(model, [test.x[:100]]), weight_bits=bits), test.x)
    return float((logits.argmax(1) == test.y).mean())


def test_the_last_rounds_make_a_model_that_two_bits_hold(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    qat = run(tmp_path / "qat", "deploy.qat_rounds=5", "deploy.qat_bits=2")
    assert plain["rounds"][4]["loss"] == qat["rounds"][4]["loss"]  # until then they are the same
    assert plain["rounds"][5]["loss"] != qat["rounds"][5]["loss"]
    before, after = (rounded_accuracy(tmp_path / name, 2) for name in ("plain", "qat"))
    assert before < 0.8
    assert after > 0.88
    # What the server reports of those rounds is of rounded weights.
    assert qat["final"]["accuracy"] == pytest.approx(after, abs=0.03)


def test_the_torch_trainer_rounds_in_the_last_rounds_too(tmp_path: Path) -> None:
    few = ("train.trainer=torch", "server.rounds=2", "data.clients=2", "server.cohort=2", "server.min_updates=2")
    plain = run(tmp_path / "plain", *few)
    qat = run(tmp_path / "qat", *few, "deploy.qat_rounds=1", "deploy.qat_bits=2")
    assert plain["rounds"][0]["loss"] == qat["rounds"][0]["loss"]
    assert plain["rounds"][1]["loss"] != qat["rounds"][1]["loss"]


def test_under_secure_aggregation_nothing_else_changes(tmp_path: Path) -> None:
    overrides = ("secure.enabled=true", "privacy.clip=5", "server.rounds=3", "deploy.qat_bits=3")
    plain = run(tmp_path / "plain", *overrides)
    qat = run(tmp_path / "qat", *overrides, "deploy.qat_rounds=1")
    for ours, theirs in zip(qat["rounds"][:2], plain["rounds"][:2], strict=True):
        assert ours["accuracy"] == theirs["accuracy"]
    assert qat["rounds"][2]["clients"] == plain["rounds"][2]["clients"] == 6
    assert qat["rounds"][2]["uplink_bytes"] == pytest.approx(plain["rounds"][2]["uplink_bytes"], rel=0.02)
    assert qat["rounds"][2]["accuracy"] > 0.5


def config(**settings: Any) -> ServerConfig:
    base = {"data.name": "digits", "model.name": "digits_cnn", "model.input": "1x8x8", "server.rounds": 5}
    return from_flat(ServerConfig, {**base, **{name.replace("__", "."): one for name, one in settings.items()}})


def test_tasks_and_programs_of_the_last_rounds_round() -> None:
    asked = config(deploy__qat_rounds=2, deploy__qat_bits=4)
    assert [asked.task(number).train.qat_bits for number in range(1, 6)] == [0, 0, 0, 4, 4]
    model = GlobalModel(asked)
    programs = [model.program(number) for number in range(1, 6)]
    assert programs[0] == programs[2] != programs[3] == programs[4]
    bits = {op.ints[-1] for phase in unpack_program(programs[4]).phases for op in phase.ops if "weight" in op.name}
    assert bits == {4}
    assert programs[0] == GlobalModel(config()).program(5)
    first, last = (unpack_program(programs[at]) for at in (0, 4))
    assert {(one.tensor.name, one.role) for one in first.state} == {(one.tensor.name, one.role) for one in last.state}
    assert first.state_dict_order == last.state_dict_order


def test_all_rounds_may_round_and_more_rounds_than_there_are_are_all() -> None:
    assert [config(train__qat_bits=3).task(number).train.qat_bits for number in (1, 5)] == [3, 3]
    assert [config(deploy__qat_rounds=9).task(number).train.qat_bits for number in (1, 5)] == [8, 8]


def test_evaluation_of_a_round_is_of_what_it_trains() -> None:
    model = GlobalModel(config(deploy__qat_rounds=1, deploy__qat_bits=2))
    test = DIGITS.test_split(config().data, 1)
    weights = model.weights.copy()
    exact, rounded = (model.evaluate(test, number)["loss"] for number in (1, 5))
    assert exact != rounded
    assert np.array_equal(model.weights, weights)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"train__qat_bits": 1}, r"train.qat_bits = 1: must be from 2 to 8"),
        ({"train__qat_bits": 8, "train__lora_rank": 2}, r"train.qat_bits = 8: must be 0 with train.lora_rank = 2"),
        ({"deploy__qat_rounds": 1, "train__lora_rank": 2}, r"deploy.qat_rounds = 1: must be 0 with a train.lora_rank"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        config(**settings)
