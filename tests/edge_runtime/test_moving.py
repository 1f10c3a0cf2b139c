"""Which tensors a trainer says a step may move: those that it is seen to move, and no others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from edge_runtime import optimizers
from edge_runtime.building import build
from edge_runtime.errors import ConfigError
from edge_runtime.train.config import ModelConfig, TrainConfig
from edge_runtime.train.factory import make_trainer
from edge_runtime.train.loop import LocalTrainer
from edge_runtime.train.torch_trainer import TorchTrainer
from edge_runtime.train.trainer import Trainer


class Tied(nn.Module):
    """One matrix under two names, a batch norm that learns its bias alone, one that is frozen, and a counter each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.norm, self.frozen = nn.BatchNorm1d(4), nn.BatchNorm1d(4).eval()
        self.norm.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.frozen(self.norm(self.first(x))))
        return out


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))


def trainer_of(kind: str, module: nn.Module) -> LocalTrainer:
    optimizer = optimizers.SGD(0.1)
    if kind == "torch":
        return TorchTrainer(module, optimizer=optimizer)
    return Trainer(build(module, np.zeros((2, 4), np.float32), optimizer=optimizer, batch_size=8), threads=1)


@pytest.mark.parametrize("kind", ["engine", "torch"])
@pytest.mark.parametrize("make", [Tied, plain])
def test_moving_tensors_are_those_that_move(kind: str, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    trainer = trainer_of(kind, make())
    before = trainer.state_dict()
    rng = np.random.default_rng(0)
    for _ in range(3):
        trainer.step(rng.normal(size=(8, 4)).astype(np.float32), rng.integers(0, 4, 8))
    after = trainer.state_dict()
    seen = {name for name in before if not np.array_equal(before[name], after[name])}
    counters = {name for name in seen if before[name].dtype != np.float32}
    moving = trainer.moving_names()
    tied = {"first.weight", "last.weight"}
    assert len(moving) == len(set(moving))
    assert [name for name in before if name in moving] == moving
    assert {*moving} - tied == seen - counters - tied
    assert len(tied & {*moving}) == len(tied & {*before}) / 2


@pytest.mark.parametrize("kind", ["engine", "torch"])
def test_a_tied_tensor_is_read_from_the_name_that_moves(kind: str) -> None:
    trainer = trainer_of(kind, Tied())
    state = trainer.state_dict()
    (name,) = {"first.weight", "last.weight"} & {*trainer.moving_names()}
    state[name] = state[name] + 1
    trainer.load_state_dict(state)
    for other in ("first.weight", "last.weight"):
        np.testing.assert_array_equal(trainer.state_dict()[other], state[name])


@pytest.mark.parametrize("kind", ["engine", "torch"])
@pytest.mark.parametrize(
    ("trainable", "moving"),
    [
        ("out.*", ["out.weight", "out.bias"]),
        ("*.bias", ["conv.bias", "hidden.bias", "out.bias"]),
        ("out.bias, conv.weight", ["conv.weight", "out.bias"]),
        ("auto", [f"{layer}.{part}" for layer in ("conv", "hidden", "out") for part in ("weight", "bias")]),
    ],
)
def test_both_trainers_train_what_the_scenario_names(kind: str, trainable: str, moving: list[str]) -> None:
    model = ModelConfig(name="digits_cnn", input="1x8x8")
    assert make_trainer(model, TrainConfig(trainer=kind, trainable=trainable)).moving_names() == moving


@pytest.mark.parametrize("kind", ["engine", "torch"])
def test_a_name_that_fits_no_parameter_is_refused(kind: str) -> None:
    model = ModelConfig(name="digits_cnn", input="1x8x8")
    with pytest.raises(ConfigError, match=r"trainable = 'head\.\*': fits no parameter; there are conv"):
        make_trainer(model, TrainConfig(trainer=kind, trainable="head.*"))
