"""The global model: what strategies may move, and what they must not."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from edge_runtime.config import from_flat
from edge_runtime.errors import BudgetError, ConfigError, EdgeRuntimeError
from edge_runtime.train.factory import unpack_program
from server.config import ServerConfig
from server.model import SMALLEST_VARIANCE, GlobalModel


def normalised() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@pytest.fixture(params=["engine", "torch"])
def trainer(request, monkeypatch):
    """Each trainer in turn; the entry below finds this module although pytest has not made it importable."""
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(normalised=normalised))
    return request.param


def make(strategy: str, trainer: str, **settings) -> GlobalModel:
    values = {"model.entry": f"{__name__}:normalised", "model.input": "4", "train.trainer": trainer}
    return GlobalModel(from_flat(ServerConfig, {**values, "server.strategy": strategy, **settings}))


def test_running_statistics_are_averaged_whatever_the_strategy(trainer):
    model = make("fedadam", trainer)
    delta = np.full(model.moving.size, -0.25)
    before = model.state_dict()
    model.apply(delta)
    after = model.state_dict()
    np.testing.assert_allclose(after["2.running_var"], before["2.running_var"] - 0.25)
    assert abs(after["1.weight"] - before["1.weight"] + 0.25).max() > 0.1  # Adam's first step is about lr, not delta
    assert after["2.num_batches_tracked"] == before["2.num_batches_tracked"] == 0


def test_state_dict_has_the_modules_names_in_its_order(trainer):
    torch.manual_seed(1)
    expected = normalised().state_dict()
    state = make("fedavg", trainer).state_dict()
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(state[name], tensor.numpy())


def test_adapters_move_with_the_weights_and_merge_into_them(trainer):
    model = make("fedavg", trainer, **{"train.lora_rank": 1, "train.lora_alpha": 2.0})
    torch.manual_seed(1)
    start = {name: tensor.numpy() for name, tensor in normalised().state_dict().items()}
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, start[name])
    delta = np.zeros(model.moving.size)
    for name, view in model.moving.views(delta).items():
        view[...] = 0.5 * (name in ("1.lora_B", "3.bias"))
    a = model.layout.views(model.weights)["1.lora_A"].copy()
    model.apply(delta)
    state = model.state_dict()
    assert list(state) == list(start)
    np.testing.assert_allclose(state["1.weight"], start["1.weight"] + 2 * np.full((3, 1), 0.5) @ a, rtol=1e-6)
    np.testing.assert_array_equal(state["3.bias"], start["3.bias"] + np.float32(0.5))
    for name in start.keys() - {"1.weight", "3.bias"}:
        np.testing.assert_array_equal(state[name], start[name])


def test_a_step_to_infinity_leaves_the_model_as_it_was(trainer):
    model = make("fedavgm", trainer)
    before = model.weights.copy()
    huge = np.full(model.moving.size, 3e38)
    assert model.apply(huge)
    assert np.isfinite(model.weights).all()
    assert not model.apply(huge)
    np.testing.assert_array_equal(model.weights, (before + huge).astype(np.float32))


def test_every_strategy_has_a_rate_of_its_own(trainer):
    delta = np.full(make("fedavg", trainer).layout.size, 1e-3)
    moved = {}
    for name in ("fedavg", "fedadam"):
        model = make(name, trainer)
        before = model.weights.copy()
        model.apply(delta)
        moved[name] = abs(model.weights - before).max()
    assert abs(moved["fedavg"] - 1e-3) < 1e-6
    assert moved["fedadam"] < 0.02


def test_the_engine_has_a_program_to_send_and_pytorch_none(trainer):
    sent = make("fedavg", trainer, **{"train.batch_size": 7, "train.optimizer.lr": 0.25}).program(1)
    if trainer == "torch":
        assert sent == b""
        return
    program = unpack_program(sent)
    assert (program.batch_size, program.optimizer.lr, dict(program.initial)) == (7, 0.25, {})
    assert program.state_dict_order == tuple(normalised().state_dict())


def test_a_program_has_the_proximal_term_of_fedprox_alone():
    def anchors(strategy: str) -> list[str]:
        values = {"model.name": "digits_cnn", "model.input": "1x8x8", "server.strategy": strategy}
        program = unpack_program(GlobalModel(from_flat(ServerConfig, values)).program(1))
        return [one.tensor.name for one in program.state if one.role == "anchor"]

    assert anchors("fedavg") == []
    assert "conv.weight/anchor" in anchors("fedprox")


def test_without_held_out_data_the_shape_of_an_example_must_be_given():
    nowhere = {"data.name": "npz", "model.name": "digits_cnn"}
    with pytest.raises(ConfigError, match=r'model\.input must say the shape of one example, such as "1x28x28"'):
        GlobalModel(from_flat(ServerConfig, nowhere))
    assert GlobalModel(from_flat(ServerConfig, {**nowhere, "model.input": "1x8x8"})).program(1)
    assert not GlobalModel(from_flat(ServerConfig, {**nowhere, "train.trainer": "torch"})).program(1)


@pytest.mark.parametrize("text", ["8", "8x", "x8", "0x8", "8x8x8x8x8x8x8x8x8", "1x8x8 int8", "a"])
def test_a_shape_that_is_none_or_does_not_fit_the_model_is_refused(text):
    values = {"data.name": "npz", "model.name": "digits_cnn", "model.input": text}
    with pytest.raises(EdgeRuntimeError, match=r"model\.input = |cannot trace the model"):
        GlobalModel(from_flat(ServerConfig, values))


def test_a_budget_that_nothing_fits_is_refused_when_the_model_is_made():
    values = {"model.name": "digits_cnn", "model.input": "1x8x8", "train.memory_budget": "20 KiB"}
    with pytest.raises(BudgetError, match=r"20\.0 KiB"):
        GlobalModel(from_flat(ServerConfig, values))


def test_only_the_moving_tensors_are_moved_by_a_delta_of_their_size(trainer):
    model = make("fedavg", trainer, **{"train.trainable": "3.*"})
    before = model.state_dict()
    assert [name for name, _ in model.moving.shapes] == ["2.running_mean", "2.running_var", "3.weight", "3.bias"]
    assert model.apply(np.full(model.moving.size, -0.25))
    after = model.state_dict()
    for name, value in before.items():
        moves = name in dict(model.moving.shapes)
        np.testing.assert_allclose(after[name], value - 0.25 if moves else value, err_msg=name)


def test_under_noise_running_variances_stay_above_zero(trainer):
    model = make("fedavg", trainer, **{"privacy.noise_multiplier": 1.0})
    before = model.state_dict()
    assert model.apply(np.full(model.moving.size, -5.0))
    after = model.state_dict()
    assert (after["2.running_var"] == np.float32(SMALLEST_VARIANCE)).all()
    np.testing.assert_allclose(after["2.running_mean"], before["2.running_mean"] - 5)
    np.testing.assert_allclose(after["3.weight"], before["3.weight"] - 5)
