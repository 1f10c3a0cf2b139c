"""The global model: what strategies may move, and what they must not."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edge_runtime.config import from_flat
from server.config import ServerConfig
from server.model import GlobalModel


def normalised() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def make(strategy: str) -> GlobalModel:
    return GlobalModel(from_flat(ServerConfig, {"model.entry": f"{__name__}:normalised", "server.strategy": strategy}))


def test_running_statistics_are_averaged_whatever_the_strategy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(normalised=normalised))
    model = make("fedadam")
    delta = np.full(model.layout.size, -0.25)
    before = model.state_dict()
    model.apply(delta)
    after = model.state_dict()
    np.testing.assert_allclose(after["2.running_var"], before["2.running_var"] - 0.25)
    assert abs(after["1.weight"] - before["1.weight"] + 0.25).max() > 0.1  # Adam's first step is about lr, not delta
    assert after["2.num_batches_tracked"] == before["2.num_batches_tracked"] == 0


def test_state_dict_has_the_modules_names_in_its_order(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(normalised=normalised))
    torch.manual_seed(1)
    expected = normalised().state_dict()
    state = make("fedavg").state_dict()
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(state[name], tensor.numpy())


def test_a_step_to_infinity_leaves_the_model_as_it_was(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(normalised=normalised))
    model = make("fedavgm")
    before = model.weights.copy()
    huge = np.full(model.layout.size, 3e38)
    assert model.apply(huge)
    assert np.isfinite(model.weights).all()
    assert not model.apply(huge)
    np.testing.assert_array_equal(model.weights, (before + huge).astype(np.float32))


def test_every_strategy_has_a_rate_of_its_own(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(normalised=normalised))
    delta = np.full(make("fedavg").layout.size, 1e-3)
    moved = {}
    for name in ("fedavg", "fedadam"):
        model = make(name)
        before = model.weights.copy()
        model.apply(delta)
        moved[name] = abs(model.weights - before).max()
    assert abs(moved["fedavg"] - 1e-3) < 1e-6
    assert moved["fedadam"] < 0.02
