"""Our optimizer steps and the whole trainer against `torch.optim` and autograd on ordinary per-tensor parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from torch import nn

from edge_runtime import losses, optimizers
from edge_runtime.train import torch_optimizers
from edge_runtime.train.torch_trainer import TorchTrainer

STEPS = 50
RELATIVE = 1e-5

Reference = Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer]
Pair = tuple[optimizers.Optimizer, Reference]

ALL: dict[str, Pair] = {
    "sgd": (optimizers.SGD(0.05), lambda p: torch.optim.SGD(p, 0.05)),
    "sgd-momentum": (optimizers.SGD(0.02, 0.9), lambda p: torch.optim.SGD(p, 0.02, 0.9)),
    "sgd-nesterov": (optimizers.SGD(0.02, 0.9, True), lambda p: torch.optim.SGD(p, 0.02, 0.9, nesterov=True)),
    "sgd-decay": (optimizers.SGD(0.05, weight_decay=0.1), lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.1)),
    "sgd-everything": (
        optimizers.SGD(0.02, 0.8, True, 0.1),
        lambda p: torch.optim.SGD(p, 0.02, 0.8, weight_decay=0.1, nesterov=True),
    ),
    "adam": (optimizers.Adam(), lambda p: torch.optim.Adam(p)),
    "adam-decay": (
        optimizers.Adam(2e-3, 0.8, 0.99, 1e-6, 0.1),
        lambda p: torch.optim.Adam(p, 2e-3, (0.8, 0.99), 1e-6, 0.1),
    ),
    "adamw": (optimizers.AdamW(), lambda p: torch.optim.AdamW(p)),
    "adamw-decay": (
        optimizers.AdamW(2e-3, 0.8, 0.99, 1e-6, 0.5),
        lambda p: torch.optim.AdamW(p, 2e-3, (0.8, 0.99), 1e-6, 0.5),
    ),
    "rmsprop": (optimizers.RMSprop(1e-3), lambda p: torch.optim.RMSprop(p, 1e-3)),
    "rmsprop-momentum": (
        optimizers.RMSprop(1e-3, 0.9, 1e-6, 0.5, 0.1),
        lambda p: torch.optim.RMSprop(p, 1e-3, 0.9, 1e-6, 0.1, 0.5),
    ),
    "adagrad": (optimizers.Adagrad(), lambda p: torch.optim.Adagrad(p)),
    "adagrad-decay": (
        optimizers.Adagrad(2e-2, 1e-6, 0.1),
        lambda p: torch.optim.Adagrad(p, 2e-2, weight_decay=0.1, eps=1e-6),
    ),
}

each_optimizer = pytest.mark.parametrize("pair", ALL.values(), ids=ALL.keys())


class NormedConv(nn.Module):
    """A strided convolution, batch norm and a linear layer; smooth, so that no rounding flips a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Linear(4 * 3 * 3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.norm(self.conv(x))).flatten(1))


class Recurrent(nn.Module):
    """Next-token logits from an embedding and a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.gru = nn.GRU(6, 8, batch_first=True)
        self.out = nn.Linear(8, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.gru(self.embedding(x))[0])


def image_batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(8, 2, 8, 8)).astype(np.float32), rng.integers(0, 5, 8)) for _ in range(STEPS)]


def text_batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(2)
    return [(rng.integers(0, 11, (4, 7)), rng.integers(0, 11, (4, 7))) for _ in range(STEPS)]


def plain_pytorch(
    module: nn.Module, make: Reference, batches: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[dict[str, np.ndarray], list[float]]:
    """State and losses of the textbook loop on a copy of the module."""
    module = copy.deepcopy(module).train()
    optimizer = make(module.parameters())
    history = []
    for x, y in batches:
        optimizer.zero_grad()
        output = module(torch.from_numpy(x))
        loss = nn.functional.cross_entropy(output.flatten(0, -2), torch.from_numpy(y).flatten())
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}, history


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference in units of the tensor's largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@each_optimizer
@pytest.mark.parametrize(
    ("make", "batches"), [(NormedConv, image_batches), (Recurrent, text_batches)], ids=["conv", "gru"]
)
def test_training_equals_plain_pytorch(
    make: Callable[[], nn.Module], batches: Callable[[], list[tuple[np.ndarray, np.ndarray]]], pair: Pair
) -> None:
    torch.manual_seed(3)
    module = make()
    expected, history = plain_pytorch(module, pair[1], batches())
    trainer = TorchTrainer(module, optimizer=pair[0])
    ours = trainer.fit(batches())
    assert ours.losses == pytest.approx(history, rel=RELATIVE)
    for name, tensor in trainer.state_dict().items():
        assert relative_error(tensor, expected[name]) < RELATIVE, name


@each_optimizer
@pytest.mark.parametrize("bounds", [(0.02, 0.0), (0.0, 0.1), (0.02, 0.1)], ids=["value", "norm", "both"])
def test_clipped_training_equals_plain_pytorch(pair: Pair, bounds: tuple[float, float]) -> None:
    value, norm = bounds
    torch.manual_seed(3)
    module = NormedConv()
    reference = copy.deepcopy(module).train()
    optimizer = pair[1](reference.parameters())
    trainer = TorchTrainer(module, optimizer=pair[0], clip_value=value, clip_norm=norm)
    bitten = 0
    for x, y in image_batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        before = [parameter.grad.clone() for parameter in reference.parameters()]
        if value:
            nn.utils.clip_grad_value_(reference.parameters(), value)
        if norm:
            nn.utils.clip_grad_norm_(reference.parameters(), norm)
        bitten += any(
            not torch.equal(*two) for two in zip(before, (p.grad for p in reference.parameters()), strict=True)
        )
        optimizer.step()
        trainer.step(x, y)
    assert bitten > STEPS / 2
    for name, tensor in reference.state_dict().items():
        assert relative_error(trainer.state_dict()[name], tensor.numpy()) < RELATIVE, name


class TwoHeads(nn.Module):
    """Classes and values from one image; smooth."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.values = NormedConv(), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(x)
        return features, self.values(torch.tanh(features))


@each_optimizer
def test_training_a_learned_multi_task_loss_equals_plain_pytorch(pair: Pair) -> None:
    torch.manual_seed(3)
    module = TwoHeads()
    reference, variances = copy.deepcopy(module).train(), nn.Parameter(torch.zeros(2))
    optimizer = pair[1]([*reference.parameters(), variances])
    trainer = TorchTrainer(
        module,
        optimizer=pair[0],
        loss=losses.MultiTask((losses.CrossEntropy(), losses.MSE()), (1.0, 0.5), learned=True),
    )
    rng = np.random.default_rng(5)
    for x, y in image_batches():
        values = rng.normal(size=(len(x), 3)).astype(np.float32)
        optimizer.zero_grad()
        logits, predicted = reference(torch.from_numpy(x))
        parts = torch.stack(
            [
                nn.functional.cross_entropy(logits, torch.from_numpy(y)),
                0.5 * nn.functional.mse_loss(predicted, torch.from_numpy(values)),
            ]
        )
        loss = (torch.exp(-variances) * parts + variances).sum()
        loss.backward()
        optimizer.step()
        assert trainer.step(x, (y, values)) == pytest.approx(loss.item(), rel=1e-4)
    for name, tensor in reference.state_dict().items():
        assert relative_error(trainer.state_dict()[name], tensor.numpy()) < RELATIVE, name
    assert relative_error(trainer.snapshot()["loss.log_variances"], variances.detach().numpy()) < RELATIVE


@each_optimizer
def test_a_factor_of_the_learning_rate_is_pytorchs_smaller_learning_rate(pair: Pair) -> None:
    rng = np.random.default_rng(6)
    w = torch.from_numpy(rng.normal(size=50).astype(np.float32))
    reference = nn.Parameter(w.clone())
    optimizer = pair[1]([reference])
    rate = optimizer.param_groups[0]["lr"]
    state: torch_optimizers.State = {}
    for count in range(STEPS):
        optimizer.param_groups[0]["lr"] = rate * 0.95**count
        reference.grad = torch.from_numpy(rng.normal(size=50).astype(np.float32))
        torch_optimizers.step(pair[0], state, count, w, reference.grad.clone(), 0.95**count)
        optimizer.step()
    assert set(state) == set(torch_optimizers.moment_names(pair[0]))
    assert relative_error(w.numpy(), reference.detach().numpy()) < RELATIVE


def test_clipping_leaves_short_gradients_and_a_zero_gradient_alone() -> None:
    for values in ([0.1, -0.2], [0.0, 0.0]):
        g = torch.tensor(values)
        torch_optimizers.clip(g, 1.0, 1.0)
        assert g.tolist() == torch.tensor(values).tolist()


@each_optimizer
def test_flat_steps_equal_torch_optim(pair: Pair) -> None:
    rng = np.random.default_rng(4)
    w = torch.from_numpy(rng.normal(size=200).astype(np.float32))
    reference = nn.Parameter(w.clone())
    optimizer = pair[1]([reference])
    state: torch_optimizers.State = {}
    largest = w.abs()
    # Gradients of every size that float32 training meets: eps must stand where PyTorch has it.
    scale = 10.0 ** rng.uniform(-7, 2, 200)
    for count in range(STEPS):
        gradient = (rng.normal(size=200) * scale).astype(np.float32)
        reference.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        torch_optimizers.step(pair[0], state, count, w, torch.from_numpy(gradient))
        largest = torch.maximum(largest, reference.detach().abs())
    assert ((w - reference.detach()).abs() <= RELATIVE * largest).all()


@each_optimizer
def test_a_zero_gradient_moves_weights_by_decay_alone(pair: Pair) -> None:
    w = torch.ones(3)
    torch_optimizers.step(pair[0], {}, 0, w, torch.zeros(3))
    assert (w < 1).all() if pair[0].weight_decay else torch.equal(w, torch.ones(3))


def test_every_optimizer_has_its_reference_here() -> None:
    assert {type(ours) for ours, _ in ALL.values()} == set(optimizers.OPTIMIZERS.values())
