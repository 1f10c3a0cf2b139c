"""Local training as every trainer promises it: losses, the proximal term, momentum, fresh starts, figures, batches."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from torch import nn
from torch.nn import functional

from edge_runtime import losses, optimizers
from edge_runtime.errors import ConfigError, MissingPackageError
from edge_runtime.train.batches import Batches, Examples, MultiExamples
from edge_runtime.train.config import ModelConfig, TrainConfig
from edge_runtime.train.factory import make_module, make_trainer
from edge_runtime.train.metrics import Accuracy, accuracy, agreement
from edge_runtime.train.torch_trainer import TorchTrainer

CLASSES = 4


def small_module() -> nn.Module:
    """Convolution, batch norm, dropout and a linear layer for (B, 1, 4, 4)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, CLASSES)
    )


def examples(count: int, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    return Examples(rng.normal(size=(count, 1, 4, 4)).astype(np.float32), rng.integers(0, CLASSES, count))


def assert_same_state(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert list(one) == list(two)
    for name in one:
        assert one[name].tobytes() == two[name].tobytes(), name


# Losses: each against torch.nn.functional and against the equation in its docstring, in float64.


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def class_loss(z: np.ndarray, y: np.ndarray, w: tuple[float, ...], ignored: int, each: Equation) -> float:
    """Mean by class weight of `each(log p, classes)` over the rows that are not ignored."""
    z, y = z.reshape(-1, z.shape[-1]), y.reshape(-1)
    z, y = z[y != ignored], y[y != ignored]
    return float(each(log_softmax(z), y).sum() / np.array(w or (1,) * CLASSES)[y].sum())


def cross_entropy(z: np.ndarray, y: np.ndarray, s: float, w: tuple[float, ...] = (), ignored: int = -100) -> float:
    def each(log_p: np.ndarray, y: np.ndarray) -> np.ndarray:
        q = (1 - s) * np.eye(CLASSES)[y] + s / CLASSES
        return -(q * np.array(w or (1,) * CLASSES) * log_p).sum(-1)

    return class_loss(z, y, w, ignored, each)


def focal(z: np.ndarray, y: np.ndarray, gamma: float, w: tuple[float, ...] = (), ignored: int = -100) -> float:
    def each(log_p: np.ndarray, y: np.ndarray) -> np.ndarray:
        own = np.take_along_axis(log_p, y[:, None], -1)[:, 0]
        return -np.array(w or (1,) * CLASSES)[y] * (1 - np.exp(own)) ** gamma * own

    return class_loss(z, y, w, ignored, each)


def kl_divergence(z: np.ndarray, t: np.ndarray, temperature: float) -> float:
    p, q = (log_softmax(logits / temperature) for logits in (t, z))
    return float(temperature**2 * (np.exp(p) * (p - q)).sum(-1).mean())


def smoothed_cross_entropy(z: np.ndarray, y: np.ndarray, s: float) -> float:
    return cross_entropy(z, y, s)


def huber(z: np.ndarray, y: np.ndarray, delta: float) -> float:
    r = np.abs(z - y)
    return float(np.where(r <= delta, r**2 / 2, delta * (r - delta / 2)).mean())


def classes_first(z: torch.Tensor) -> torch.Tensor:
    return z.movedim(-1, 1)


def torch_kl(z: torch.Tensor, t: torch.Tensor, temperature: float) -> torch.Tensor:
    student, teacher = (logits.flatten(0, -2).div(temperature).log_softmax(-1) for logits in (z, t))
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


Oracle = Callable[..., torch.Tensor]
Equation = Callable[..., Any]
WEIGHTS = (0.5, 2.0, 1.0, 3.0)
LOSSES: list[tuple[losses.Loss, Oracle, Equation]] = [
    (
        losses.CrossEntropy(),
        lambda z, y: functional.cross_entropy(classes_first(z), y),
        lambda z, y: cross_entropy(z, y, 0.0),
    ),
    (
        losses.CrossEntropy(0.2),
        lambda z, y: functional.cross_entropy(classes_first(z), y, label_smoothing=0.2),
        lambda z, y: cross_entropy(z, y, 0.2),
    ),
    (
        losses.CrossEntropy(0.1, WEIGHTS, ignore_index=2),
        lambda z, y: functional.cross_entropy(
            classes_first(z), y, torch.tensor(WEIGHTS), ignore_index=2, label_smoothing=0.1
        ),
        lambda z, y: cross_entropy(z, y, 0.1, WEIGHTS, 2),
    ),
    (
        losses.Focal(0.0, WEIGHTS),
        lambda z, y: functional.cross_entropy(classes_first(z), y, torch.tensor(WEIGHTS)),
        lambda z, y: focal(z, y, 0.0, WEIGHTS),
    ),
    (
        losses.Focal(),
        lambda z, y: (
            (1 - z.softmax(-1).gather(-1, y[..., None])) ** 2 * -z.log_softmax(-1).gather(-1, y[..., None])
        ).mean(),
        lambda z, y: focal(z, y, 2.0),
    ),
    (
        losses.Focal(0.5, WEIGHTS, ignore_index=1),
        lambda z, y: torch.tensor(focal(z.double().numpy(), y.numpy(), 0.5, WEIGHTS, 1)),
        lambda z, y: focal(z, y, 0.5, WEIGHTS, 1),
    ),
    (losses.KLDivergence(), lambda z, t: torch_kl(z, t, 1.0), lambda z, t: kl_divergence(z, t, 1.0)),
    (losses.KLDivergence(3.0), lambda z, t: torch_kl(z, t, 3.0), lambda z, t: kl_divergence(z, t, 3.0)),
    (
        losses.Distillation(0.3, 2.0, 0.1),
        lambda z, y, t: (
            0.3 * torch_kl(z, t, 2.0) + 0.7 * functional.cross_entropy(classes_first(z), y, label_smoothing=0.1)
        ),
        lambda z, y, t: 0.3 * kl_divergence(z, t, 2.0) + 0.7 * cross_entropy(z, y, 0.1),
    ),
    (
        losses.BCEWithLogits(),
        functional.binary_cross_entropy_with_logits,
        lambda z, y: float(np.mean(np.log1p(np.exp(z)) - z * y)),
    ),
    (losses.MSE(), functional.mse_loss, lambda z, y: float(np.mean((z - y) ** 2))),
    (losses.L1(), functional.l1_loss, lambda z, y: float(np.mean(np.abs(z - y)))),
    (losses.Huber(), functional.huber_loss, lambda z, y: huber(z, y, 1.0)),
    (losses.Huber(0.3), lambda z, y: functional.huber_loss(z, y, delta=0.3), lambda z, y: huber(z, y, 0.3)),
]


def targets_for(loss: losses.Loss, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """Targets of a kind that the loss takes, for logits of that shape."""
    classes, values = rng.integers(0, CLASSES, shape[:-1]), rng.random(shape).astype(np.float32)
    if isinstance(loss, losses.Distillation):
        return classes, values
    return classes if isinstance(loss, losses.CLASS_LOSSES) else values


@pytest.mark.parametrize("shape", [(5,), (5, 3)], ids=["rows", "sequences"])
@pytest.mark.parametrize(("loss", "oracle", "equation"), LOSSES, ids=[str(row[0]) for row in LOSSES])
def test_every_loss_is_pytorchs_and_its_equation(
    loss: losses.Loss, oracle: Oracle, equation: Equation, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(scale=2, size=(*shape, CLASSES)).astype(np.float32)
    targets = targets_for(loss, logits.shape, rng)
    each = targets if isinstance(targets, tuple) else (targets,)
    trainer = TorchTrainer(Identity(), loss=loss)
    ours = trainer.evaluate([(logits, targets)])["loss"]
    assert ours == pytest.approx(oracle(torch.from_numpy(logits), *map(torch.from_numpy, each)).item(), rel=1e-6)
    assert ours == pytest.approx(equation(logits.astype(np.float64), *each), rel=1e-5)
    assert trainer.step(logits, targets) == pytest.approx(ours, rel=1e-6)


def gradient(loss: losses.Loss, logits: np.ndarray, targets: Any) -> np.ndarray:
    """dL/dz through a training step: plain SGD on weights that are the logits themselves."""

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.z = nn.Parameter(torch.from_numpy(logits.copy()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.z

    trainer = TorchTrainer(Logits(), loss=loss, optimizer=optimizers.SGD(1.0))
    trainer.step(np.zeros((len(logits), 1), np.float32), targets)
    trained: np.ndarray = logits - trainer.state_dict()["z"]
    return trained


@pytest.mark.parametrize(
    ("loss", "equation"), [(row[0], row[2]) for row in LOSSES], ids=[str(row[0]) for row in LOSSES]
)
def test_every_gradient_is_the_equations(loss: losses.Loss, equation: Equation) -> None:
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(5, CLASSES)).astype(np.float32)
    targets = targets_for(loss, logits.shape, rng)
    each = targets if isinstance(targets, tuple) else (targets,)
    numeric = np.zeros(logits.shape)
    for place in np.ndindex(logits.shape):
        nudge = np.zeros(logits.shape)
        nudge[place] = 1e-5
        numeric[place] = (equation(logits + nudge, *each) - equation(logits - nudge, *each)) / 2e-5
    np.testing.assert_allclose(gradient(loss, logits, targets), numeric, atol=1e-5)


@pytest.mark.parametrize("loss", [row[0] for row in LOSSES], ids=[str(row[0]) for row in LOSSES])
def test_logits_of_ten_thousand_give_finite_losses_and_gradients(loss: losses.Loss) -> None:
    rng = np.random.default_rng(7)
    logits = np.where(rng.random((9, CLASSES)) < 0.5, 1e4, -1e4).astype(np.float32)
    targets = targets_for(loss, logits.shape, rng)
    if isinstance(loss, losses.KLDivergence):
        targets = logits[::-1].copy()
    trainer = TorchTrainer(Identity(), loss=loss)
    assert np.isfinite(trainer.step(logits, targets))
    assert np.isfinite(trainer.state_dict()["nothing"]).all()
    assert np.isfinite(gradient(loss, logits, targets)).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_focal_loss_of_certain_predictions_has_a_finite_gradient(gamma: float) -> None:
    logits = (np.eye(CLASSES) * 200).astype(np.float32)
    assert np.isfinite(gradient(losses.Focal(gamma), logits, np.arange(CLASSES))).all()


ALL_MASKED: list[tuple[losses.Loss, int]] = [
    (losses.CrossEntropy(0.1), -100),
    (losses.CrossEntropy(ignore_index=2), 2),
    (losses.CrossEntropy(class_weights=(1, 1, 1, 0)), 3),
    (losses.Focal(ignore_index=-1), -1),
    (losses.Focal(0.5, (0, 1, 1, 1)), 0),
]


@pytest.mark.parametrize(("loss", "target"), ALL_MASKED, ids=str)
@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_a_batch_in_which_no_target_counts_has_loss_0_and_gradient_0(
    loss: losses.Loss, target: int, shape: tuple[int, ...]
) -> None:
    logits = np.random.default_rng(0).normal(size=(*shape, CLASSES)).astype(np.float32)
    targets = np.full(shape, target)
    assert not gradient(loss, logits, targets).any()
    trainer = TorchTrainer(Identity(), loss=loss)
    assert trainer.step(logits, targets) == 0
    assert trainer.evaluate([(logits, targets)])["loss"] == 0


@pytest.mark.parametrize(
    "loss", [losses.CrossEntropy(class_weights=WEIGHTS), losses.Focal(class_weights=WEIGHTS)], ids=str
)
def test_in_a_batch_of_one_class_its_weight_cancels(loss: losses.CrossEntropy | losses.Focal) -> None:
    logits = np.random.default_rng(0).normal(size=(6, CLASSES)).astype(np.float32)
    one = TorchTrainer(Identity(), loss=loss).step(logits, np.full(6, 3))
    assert one == pytest.approx(
        TorchTrainer(Identity(), loss=replace(loss, class_weights=())).step(logits, np.full(6, 3))
    )


def test_masked_targets_do_not_pull_the_evaluated_mean() -> None:
    logits = np.random.default_rng(0).normal(size=(6, CLASSES)).astype(np.float32)
    targets = np.array([0, -100, -100, 1, 2, 3])
    trainer = TorchTrainer(Identity(), loss=losses.CrossEntropy(class_weights=WEIGHTS))
    whole = trainer.evaluate([(logits, targets)])
    parts = trainer.evaluate(Batches(Examples(logits, targets), 2))
    assert parts == pytest.approx(whole, rel=1e-6)


def test_weights_for_another_number_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 class weights for a model with 4 classes"):
        TorchTrainer(Identity(), loss=losses.CrossEntropy(class_weights=(1, 2))).step(
            np.zeros((2, CLASSES), np.float32), np.zeros(2, np.int64)
        )


class Identity(nn.Module):
    """Gives its input back, with a parameter that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.nothing


def test_every_loss_has_its_oracle_here() -> None:
    assert {type(loss) for loss, _, _ in LOSSES} | {losses.MultiTask} == set(typing.get_args(losses.Loss))


# Models with several outputs or inputs.


class TwoHeads(nn.Module):
    """Class logits (B, 4) and a value (B, 1) from the same features, which come from two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.value = nn.Linear(3, CLASSES), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        x = x if scale is None else x * scale
        return self.classes(x), self.value(x)


def two_tasks(count: int, seed: int = 0) -> MultiExamples:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3)).astype(np.float32)
    return MultiExamples(x, (rng.integers(0, CLASSES, count), rng.normal(size=count).astype(np.float32)))


TASKS = (losses.CrossEntropy(0.1), losses.Huber())


@pytest.mark.parametrize("learned", [False, True])
def test_a_multi_task_loss_is_the_sum_of_its_weighted_parts(learned: bool) -> None:
    torch.manual_seed(0)
    trainer = TorchTrainer(TwoHeads(), loss=losses.MultiTask(TASKS, (0.5, 2.0), learned))
    rows = two_tasks(6)
    logits, values = trainer.predict(rows.x)
    parts = cross_entropy(logits.astype(np.float64), rows.y[0], 0.1), huber(values[:, 0], rows.y[1], 1.0)
    figures = trainer.evaluate(Batches(rows, 4), ["accuracy", "mae"])
    assert trainer.step(rows.x, rows.y) == pytest.approx(0.5 * parts[0] + 2.0 * parts[1], rel=1e-6)
    assert figures == pytest.approx(
        {
            "loss": 0.5 * parts[0] + 2.0 * parts[1],
            "accuracy_0": np.mean(logits.argmax(1) == rows.y[0]),
            "mae_1": np.abs(values[:, 0] - rows.y[1]).mean(),
        },
        rel=1e-5,
    )


def test_learned_log_variances_follow_kendalls_equation_and_stay_out_of_the_state() -> None:
    torch.manual_seed(0)
    trainer = TorchTrainer(
        TwoHeads(), loss=losses.MultiTask(TASKS, (0.5, 2.0), learned=True), optimizer=optimizers.SGD(0.1)
    )
    rows, start = two_tasks(6), trainer.state_dict()
    s = np.zeros(2)
    for _ in range(5):
        logits, values = trainer.predict(rows.x)
        parts = np.array(
            [0.5 * cross_entropy(logits.astype(float), rows.y[0], 0.1), 2.0 * huber(values[:, 0], rows.y[1], 1.0)]
        )
        assert trainer.step(rows.x, rows.y) == pytest.approx((np.exp(-s) * parts + s).sum(), rel=1e-5)
        s -= 0.1 * (1 - np.exp(-s) * parts)
        np.testing.assert_allclose(trainer.snapshot()["loss.log_variances"], s, rtol=1e-5)
    assert "loss.log_variances" not in trainer.state_dict()
    trainer.load_state_dict(start)
    assert not trainer.snapshot()["loss.log_variances"].any()


def test_a_model_with_several_inputs_is_given_a_tuple() -> None:
    torch.manual_seed(0)
    trainer = TorchTrainer(TwoHeads(), loss=losses.MultiTask(TASKS))
    rows, halves = two_tasks(6), np.full((6, 1), 0.5, np.float32)
    for one, two in zip(trainer.predict((rows.x, halves)), trainer.predict(rows.x * 0.5), strict=True):
        np.testing.assert_array_equal(one, two)
    assert trainer.fit([((rows.x, halves), rows.y)]).examples == 6


def test_outputs_and_targets_that_do_not_pair_up_are_refused() -> None:
    rows = two_tasks(4)
    two = TorchTrainer(TwoHeads(), loss=losses.MultiTask(TASKS))
    with pytest.raises(ValueError, match="MultiTask takes 2 outputs and 2 targets, the model gave 2 and the batch 1"):
        two.step(rows.x, rows.y[0])
    with pytest.raises(ValueError, match="CrossEntropy takes 1 outputs and 1 targets, the model gave 2"):
        TorchTrainer(TwoHeads()).step(rows.x, rows.y[0])


# Arithmetic of single steps, on a model whose gradient is the same at every step: |w.x - y| with y far away.

X, FAR = np.array([[1.0, -2.0, 4.0]], np.float32), np.array([[-1e6]], np.float32)
GRADIENT = X[0]
LR = 0.125


def constant_gradient_trainer(optimizer: optimizers.Optimizer, **options: float) -> TorchTrainer:
    trainer = TorchTrainer(nn.Linear(3, 1, bias=False), loss=losses.L1(), optimizer=optimizer, **options)
    trainer.load_state_dict({"weight": np.zeros((1, 3), np.float32)})
    return trainer


def weight_after_step(trainer: TorchTrainer) -> np.ndarray:
    trainer.step(X, FAR)
    return trainer.state_dict()["weight"][0]


def test_momentum_accumulates_over_batches() -> None:
    trainer = constant_gradient_trainer(optimizers.SGD(LR, momentum=0.5))
    np.testing.assert_allclose(weight_after_step(trainer), -LR * GRADIENT, rtol=1e-6)
    np.testing.assert_allclose(weight_after_step(trainer), -LR * GRADIENT * (1 + (1 + 0.5)), rtol=1e-6)
    np.testing.assert_allclose(weight_after_step(trainer), -LR * GRADIENT * (1 + 1.5 + 1.75), rtol=1e-6)


def test_the_proximal_term_pulls_towards_the_loaded_weights() -> None:
    mu = 0.75
    trainer = constant_gradient_trainer(optimizers.SGD(LR), proximal_mu=mu)
    anchor = np.array([3.0, 1.0, -2.0], np.float32)
    trainer.load_state_dict({"weight": anchor[None]})
    expected = anchor
    for _ in range(4):
        expected = expected - LR * (GRADIENT + mu * (expected - anchor))
        np.testing.assert_allclose(weight_after_step(trainer), expected, rtol=1e-6)


def test_a_correction_is_added_to_every_gradient_until_weights_are_loaded() -> None:
    trainer = constant_gradient_trainer(optimizers.SGD(LR))
    correction = np.array([0.5, -1.0, 2.0], np.float32)
    trainer.set_correction({"weight": correction[None]})
    np.testing.assert_allclose(weight_after_step(trainer), -LR * (GRADIENT + correction), rtol=1e-6)
    np.testing.assert_allclose(weight_after_step(trainer), -2 * LR * (GRADIENT + correction), rtol=1e-6)
    trainer.load_state_dict({"weight": np.zeros((1, 3), np.float32)})
    np.testing.assert_allclose(weight_after_step(trainer), -LR * GRADIENT, rtol=1e-6)


def test_a_correction_reaches_every_parameter_in_its_own_shape() -> None:
    trainers = [TorchTrainer(small_module(), optimizer=optimizers.SGD(1.0)) for _ in range(2)]
    names = ("0.weight", "1.bias", "5.weight")
    rng = np.random.default_rng(0)
    correction = {name: rng.normal(size=trainers[0].state_dict()[name].shape).astype(np.float32) for name in names}
    trainers[1].set_correction(correction)
    for trainer in trainers:
        trainer.reseed(0)
        trainer.step(examples(6).x, examples(6).y)
    plain, corrected = (trainer.state_dict() for trainer in trainers)
    for name in plain:
        np.testing.assert_allclose(plain[name] - corrected[name], correction.get(name, 0.0), atol=1e-5)


@pytest.mark.parametrize(
    ("correction", "text"),
    [
        ({"1.running_mean": np.zeros(3, np.float32)}, "1.running_mean, which is no trained parameter"),
        ({"0.bias": np.zeros(4, np.float32)}, r"0.bias has shape \(4,\), not \(3,\)"),
    ],
)
def test_a_correction_that_does_not_fit_is_refused(correction: dict[str, np.ndarray], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TorchTrainer(small_module()).set_correction(correction)


def test_clipping_comes_after_the_proximal_term_and_the_correction_and_by_value_first() -> None:
    mu, value, norm = 0.5, 2.5, 3.0
    trainer = constant_gradient_trainer(optimizers.SGD(LR), proximal_mu=mu, clip_value=value, clip_norm=norm)
    correction = np.array([1.0, 0.0, -3.0], np.float32)
    trainer.set_correction({"weight": correction[None]})
    expected = np.zeros(3)
    for _ in range(4):
        g = np.clip(GRADIENT + mu * expected + correction, -value, value)
        expected = expected - LR * g * min(1.0, norm / (np.linalg.norm(g) + 1e-6))
        np.testing.assert_allclose(weight_after_step(trainer), expected, rtol=1e-5)


@pytest.mark.parametrize("options", [{"clip_value": -1.0}, {"clip_norm": float("nan")}, {"clip_norm": float("inf")}])
def test_a_bound_that_is_none_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        constant_gradient_trainer(optimizers.SGD(LR), **options)


def test_the_callers_factor_scales_the_step_and_outlives_loading() -> None:
    trainer = constant_gradient_trainer(optimizers.SGD(LR, momentum=0.5))
    trainer.lr_scale = 0.25
    trainer.load_state_dict({"weight": np.zeros((1, 3), np.float32)})
    np.testing.assert_allclose(weight_after_step(trainer), -0.25 * LR * GRADIENT, rtol=1e-6)
    assert trainer.steps == 1
    trainer.load_state_dict({"weight": np.zeros((1, 3), np.float32)})
    assert trainer.steps == 0


def test_without_mu_training_is_bitwise_what_it_is_without_the_term() -> None:
    states = []
    for arguments in ({}, {"proximal_mu": 0.0}, {"proximal_mu": 0.1}):
        trainer = TorchTrainer(small_module(), optimizer=optimizers.Adam(), **arguments)
        trainer.fit(Batches(examples(20), 6), epochs=2)
        states.append(trainer.state_dict())
    assert_same_state(states[0], states[1])
    assert states[0]["0.weight"].tobytes() != states[2]["0.weight"].tobytes()


# Loading and reading weights.


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.SGD(0.05, momentum=0.9),
        optimizers.Adam(),
        optimizers.AdamW(),
        optimizers.RMSprop(momentum=0.5),
        optimizers.Adagrad(),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_loading_weights_starts_training_afresh(optimizer: optimizers.Optimizer) -> None:
    trainer = TorchTrainer(small_module(), optimizer=optimizer, proximal_mu=0.1)
    start = trainer.state_dict()
    runs = []
    for _ in range(2):
        trainer.load_state_dict(start)
        trainer.reseed(1)
        trainer.fit(Batches(examples(20), 5))
        runs.append(trainer.state_dict())
    assert_same_state(*runs)


def test_state_names_come_in_the_modules_own_order() -> None:
    module = small_module()
    names = list(module.state_dict())
    assert list(TorchTrainer(module).state_dict()) == names


def test_flattening_the_parameters_changes_no_value_and_no_shape() -> None:
    before = {name: tensor.numpy().copy() for name, tensor in small_module().state_dict().items()}
    assert_same_state(TorchTrainer(small_module()).state_dict(), before)


def test_loaded_weights_are_the_ones_read_back() -> None:
    trainer = TorchTrainer(small_module())
    rng = np.random.default_rng(6)
    state = {
        name: np.asarray(rng.integers(0, 9, tensor.shape), tensor.dtype)
        for name, tensor in trainer.state_dict().items()
    }
    trainer.load_state_dict(state)
    assert_same_state(trainer.state_dict(), state)


def test_state_dict_is_a_copy() -> None:
    trainer = TorchTrainer(small_module())
    first, second = trainer.state_dict(), trainer.state_dict()
    for tensor in first.values():
        tensor[...] = 9
    assert_same_state(trainer.state_dict(), second)
    trainer.fit(Batches(examples(8), 4))
    assert_same_state(second, TorchTrainer(small_module()).state_dict())


def test_loaded_arrays_stay_the_callers() -> None:
    trainer = TorchTrainer(small_module())
    state = trainer.state_dict()
    trainer.load_state_dict(state)
    before = {name: tensor.copy() for name, tensor in state.items()}
    trainer.fit(Batches(examples(8), 4))
    assert_same_state(state, before)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("0.weight"), "0.weight"),
        (lambda state: state.update(stranger=np.zeros(1)), "stranger"),
        (lambda state: state.update({"5.bias": np.zeros(5, np.float32)}), "5.bias"),
        (lambda state: state.update({"5.bias": np.zeros((4, 1), np.float32)}), "5.bias"),
    ],
    ids=["missing", "unknown", "longer", "another rank"],
)
def test_a_state_that_does_not_fit_is_refused_whole(change: Callable[..., object], named: str) -> None:
    trainer = TorchTrainer(small_module())
    before = trainer.state_dict()
    state = {name: tensor + 1 for name, tensor in before.items()}
    change(state)
    with pytest.raises(ValueError, match=named):
        trainer.load_state_dict(state)
    assert_same_state(trainer.state_dict(), before)


def test_a_parameter_that_is_not_float32_is_refused_by_name() -> None:
    module = small_module()
    module[5] = module[5].double()
    with pytest.raises(ValueError, match=r"5\.weight is torch\.float64"):
        TorchTrainer(module)


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        TorchTrainer(nn.ReLU())


def test_frozen_parameters_are_loaded_and_read_but_not_trained() -> None:
    module = small_module()
    module[0].requires_grad_(False)
    trainer = TorchTrainer(module, optimizer=optimizers.SGD(0.1, weight_decay=0.1), proximal_mu=0.1)
    before = trainer.state_dict()
    trainer.fit(Batches(examples(8), 4))
    after = trainer.state_dict()
    assert after["0.weight"].tobytes() == before["0.weight"].tobytes()
    assert after["5.weight"].tobytes() != before["5.weight"].tobytes()


def test_buffer_names_are_the_statistics_in_the_state() -> None:
    assert TorchTrainer(small_module()).buffer_names() == {
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }


def test_buffer_names_leave_out_what_the_state_leaves_out() -> None:
    module = small_module()
    module.register_buffer("mask", torch.ones(3), persistent=False)
    trainer = TorchTrainer(module)
    assert trainer.buffer_names() <= trainer.state_dict().keys()


# Randomness.


def weights_trained_with(seed: int, trainer: TorchTrainer, start: dict[str, np.ndarray]) -> bytes:
    trainer.load_state_dict(start)
    trainer.reseed(seed)
    trainer.fit(Batches(examples(12), 4))
    return trainer.state_dict()["5.weight"].tobytes()


def test_dropout_is_repeatable_through_reseed() -> None:
    trainer = TorchTrainer(small_module())
    start = trainer.state_dict()
    first, again, other = (weights_trained_with(seed, trainer, start) for seed in (7, 7, 8))
    assert first == again
    assert first != other


# Figures.


def test_evaluate_is_the_mean_over_all_rows_with_a_short_last_batch() -> None:
    trainer = TorchTrainer(small_module(), loss=losses.CrossEntropy(0.1))
    rows = examples(10)
    trainer.fit(Batches(rows, 5))
    logits = trainer.predict(rows.x)
    figures = trainer.evaluate(Batches(rows, 4))
    assert figures["loss"] == pytest.approx(smoothed_cross_entropy(logits.astype(np.float64), rows.y, 0.1), rel=1e-5)
    assert figures["accuracy"] == np.mean(logits.argmax(1) == rows.y)


def test_predict_is_the_module_in_evaluation_mode() -> None:
    module = small_module()
    trainer = TorchTrainer(module)
    trainer.fit(Batches(examples(8), 4))
    rows = examples(3, seed=1)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(rows.x)).numpy()
    module.train()
    np.testing.assert_array_equal(trainer.predict(rows.x), expected)


def test_evaluation_leaves_no_trace_on_the_state_or_on_later_training() -> None:
    states = []
    for evaluates in (False, True):
        trainer = TorchTrainer(small_module(), optimizer=optimizers.Adam())
        for seed in range(3):
            trainer.fit(Batches(examples(8, seed), 4))
            if evaluates:
                trainer.evaluate(Batches(examples(9), 4))
                trainer.predict(examples(3).x)
        states.append(trainer.state_dict())
    assert_same_state(*states)


def test_evaluate_measures_what_it_is_asked_to() -> None:
    trainer, rows = TorchTrainer(small_module()), examples(30)
    figures = trainer.evaluate(Batches(rows, 7), ["accuracy", "f1_macro", Accuracy(2)])
    predicted = trainer.predict(rows.x).argmax(1)
    assert figures.keys() == {"loss", "accuracy", "precision_macro", "recall_macro", "f1_macro", "top2_accuracy"}
    assert figures["f1_macro"] == pytest.approx(f1_score(rows.y, predicted, average="macro"))
    assert trainer.evaluate(Batches(rows, 7), []).keys() == {"loss"}


def test_read_only_arrays_are_trained_on() -> None:
    rows = examples(6)
    for array in (rows.x, rows.y):
        array.setflags(write=False)
    trainer = TorchTrainer(small_module())
    trainer.fit([(rows.x, rows.y)])
    trainer.evaluate([(rows.x, rows.y)])


def test_accuracy_is_left_out_where_targets_are_no_classes() -> None:
    trainer = TorchTrainer(nn.Linear(3, 1), loss=losses.MSE())
    assert trainer.evaluate([(X, FAR)]).keys() == {"loss"}


def test_evaluating_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no examples"):
        TorchTrainer(small_module()).evaluate([])


def test_fit_reports_every_step_in_order() -> None:
    seen: list[tuple[int, float]] = []
    trainer = TorchTrainer(small_module())
    history = trainer.fit(Batches(examples(10), 4), epochs=2, callbacks=[lambda *step: seen.append(step)])
    assert seen == list(enumerate(history.losses))
    assert len(seen) == 2 * 3
    assert history.examples == 2 * 10
    assert history.mean_loss == pytest.approx(sum(history.losses) / 6)


def test_training_learns_what_can_be_learnt() -> None:
    rng = np.random.default_rng(9)
    rows = rng.normal(size=(200, 3)).astype(np.float32)
    task = Examples(rows, (rows @ [1.0, -2.0, 0.5] > 0).astype(np.int64))
    trainer = TorchTrainer(nn.Linear(3, 2), optimizer=optimizers.SGD(0.5, momentum=0.9))
    trainer.fit(Batches(task, 20, rng), epochs=20)
    assert trainer.evaluate(Batches(task, 64))["accuracy"] > 0.97


def test_accuracy_and_agreement_by_hand() -> None:
    logits = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert accuracy(logits, np.array([1, 1, 1])) == pytest.approx(2 / 3)
    assert accuracy(np.zeros((0, 2)), np.zeros(0, np.int64)) == 0.0
    assert agreement(logits, -logits) == 0.0
    assert agreement(logits, logits * 5) == 1.0
    with pytest.raises(ValueError, match="do not fit"):
        accuracy(logits, np.zeros(2, np.int64))


# Batches.


@given(count=st.integers(0, 40), batch_size=st.integers(1, 50), seed=st.none() | st.integers(0, 9))
def test_a_pass_holds_every_row_once_with_its_own_target(count: int, batch_size: int, seed: int | None) -> None:
    numbers = np.arange(count)
    rng = None if seed is None else np.random.default_rng(seed)
    batches = Batches(Examples(numbers * 2, numbers), batch_size, rng)
    for _ in range(2):
        passed = list(batches)
        assert sorted(int(y) for _, ys in passed for y in ys) == numbers.tolist()
        assert all((x == 2 * y).all() for x, y in passed)
        assert all(len(x) == batch_size for x, _ in passed[:-1])


def order(batches: Batches) -> list[int]:
    return [int(y) for _, ys in batches for y in ys]


def test_passes_differ_with_a_generator_and_repeat_with_its_seed() -> None:
    rows = Examples(np.arange(30), np.arange(30))
    one, two = (Batches(rows, 7, np.random.default_rng(3)) for _ in range(2))
    first, second = order(one), order(one)
    assert first != second
    assert [order(two), order(two)] == [first, second]


def test_without_a_generator_rows_keep_their_order() -> None:
    batches = Batches(Examples(np.arange(30), np.arange(30)), 7)
    assert order(batches) == order(batches) == list(range(30))


def test_inputs_without_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="3 inputs but 2 targets"):
        Examples(np.zeros(3), np.zeros(2))


# From settings to a trainer.


def test_the_same_seed_draws_the_same_model() -> None:
    config = ModelConfig(name="digits_cnn")
    first, again, other = (
        {name: tensor.numpy() for name, tensor in make_module(config, seed).state_dict().items()} for seed in (1, 1, 2)
    )
    assert_same_state(first, again)
    assert first["conv.weight"].tobytes() != other["conv.weight"].tobytes()


def test_a_models_own_entry_wins_over_its_name() -> None:
    module = make_module(ModelConfig(name="lenet", entry="simulations.models:digits_cnn"), 0)
    assert type(module).__name__ == "DigitsCNN"


def test_an_entry_that_makes_no_module_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"must return a torch\.nn\.Module, not dict"):
        make_module(ModelConfig(entry="builtins:dict"), 0)


def test_an_entry_in_a_missing_package_says_so() -> None:
    with pytest.raises(MissingPackageError, match="no_such_package"):
        make_module(ModelConfig(entry="no_such_package:model"), 0)


@pytest.mark.parametrize("name", ["torch", "engine"])
def test_a_trainer_from_settings_trains_as_they_say(name: str) -> None:
    settings = TrainConfig(trainer=name, loss="cross_entropy", label_smoothing=0.1, batch_size=4)
    settings = replace(settings, optimizer=replace(settings.optimizer, lr=0.1, momentum=0.0))
    model = ModelConfig(name="digits_cnn", input="1x8x8")
    trainer = make_trainer(model, settings, proximal_mu=0.2, seed=4)
    by_hand = TorchTrainer(
        make_module(model, 4), loss=losses.CrossEntropy(0.1), optimizer=optimizers.SGD(0.1), proximal_mu=0.2
    )
    rng = np.random.default_rng(8)
    rows = Examples(rng.random((12, 1, 8, 8), np.float32), rng.integers(0, 10, 12))
    for each in (trainer, by_hand):
        each.fit(Batches(rows, 4))
    if name == "torch":
        assert_same_state(trainer.state_dict(), by_hand.state_dict())
    for key, tensor in by_hand.state_dict().items():
        np.testing.assert_allclose(trainer.state_dict()[key], tensor, atol=1e-5)
