"""Local training as every trainer promises it: losses, the proximal term, momentum, fresh starts, figures, batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from edge_runtime import losses, optimizers
from edge_runtime.errors import ConfigError, MissingPackageError
from edge_runtime.train.batches import Batches, Examples
from edge_runtime.train.config import ModelConfig, TrainConfig
from edge_runtime.train.factory import make_module, make_trainer
from edge_runtime.train.metrics import accuracy, agreement
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


def smoothed_cross_entropy(z: np.ndarray, y: np.ndarray, s: float) -> float:
    z, y = z.reshape(-1, z.shape[-1]), y.reshape(-1)
    log_softmax = z - np.log(np.exp(z).sum(-1, keepdims=True))
    q = (1 - s) * np.eye(z.shape[-1])[y] + s / z.shape[-1]
    return float(-(q * log_softmax).sum(-1).mean())


def huber(z: np.ndarray, y: np.ndarray, delta: float) -> float:
    r = np.abs(z - y)
    return float(np.where(r <= delta, r**2 / 2, delta * (r - delta / 2)).mean())


def classes_first(z: torch.Tensor) -> torch.Tensor:
    return z.movedim(-1, 1)


Oracle = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Equation = Callable[[np.ndarray, np.ndarray], float]
LOSSES: list[tuple[losses.Loss, Oracle, Equation]] = [
    (
        losses.CrossEntropy(),
        lambda z, y: functional.cross_entropy(classes_first(z), y),
        lambda z, y: smoothed_cross_entropy(z, y, 0.0),
    ),
    (
        losses.CrossEntropy(0.2),
        lambda z, y: functional.cross_entropy(classes_first(z), y, label_smoothing=0.2),
        lambda z, y: smoothed_cross_entropy(z, y, 0.2),
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


@pytest.mark.parametrize("shape", [(5,), (5, 3)], ids=["rows", "sequences"])
@pytest.mark.parametrize(("loss", "oracle", "equation"), LOSSES, ids=[str(row[0]) for row in LOSSES])
def test_every_loss_is_pytorchs_and_its_equation(
    loss: losses.Loss, oracle: Oracle, equation: Equation, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(scale=2, size=(*shape, CLASSES)).astype(np.float32)
    classes = isinstance(loss, losses.CrossEntropy)
    targets = rng.integers(0, CLASSES, shape) if classes else rng.random(logits.shape).astype(np.float32)
    trainer = TorchTrainer(Identity(), loss=loss)
    ours = trainer.evaluate([(logits, targets)])["loss"]
    assert ours == pytest.approx(oracle(torch.from_numpy(logits), torch.from_numpy(targets)).item(), rel=1e-6)
    assert ours == pytest.approx(equation(logits.astype(np.float64), targets), rel=1e-5)
    assert trainer.step(logits, targets) == pytest.approx(ours, rel=1e-6)


class Identity(nn.Module):
    """Gives its input back, with a parameter that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.nothing


def test_every_loss_has_its_oracle_here() -> None:
    assert {type(loss) for loss, _, _ in LOSSES} == set(losses.LOSSES.values())


# Arithmetic of single steps, on a model whose gradient is the same at every step: |w.x - y| with y far away.

X, FAR = np.array([[1.0, -2.0, 4.0]], np.float32), np.array([[-1e6]], np.float32)
GRADIENT = X[0]
LR = 0.125


def constant_gradient_trainer(optimizer: optimizers.Optimizer, proximal_mu: float = 0.0) -> TorchTrainer:
    trainer = TorchTrainer(nn.Linear(3, 1, bias=False), loss=losses.L1(), optimizer=optimizer, proximal_mu=proximal_mu)
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


def test_a_trainer_from_settings_trains_as_they_say() -> None:
    settings = TrainConfig(loss="cross_entropy", label_smoothing=0.1)
    settings = replace(settings, optimizer=replace(settings.optimizer, lr=0.1, momentum=0.0))
    trainer = make_trainer(ModelConfig(name="digits_cnn"), settings, proximal_mu=0.2, seed=4)
    by_hand = TorchTrainer(
        make_module(ModelConfig(name="digits_cnn"), 4),
        loss=losses.CrossEntropy(0.1),
        optimizer=optimizers.SGD(0.1),
        proximal_mu=0.2,
    )
    rng = np.random.default_rng(8)
    rows = Examples(rng.random((12, 1, 8, 8), np.float32), rng.integers(0, 10, 12))
    for each in (trainer, by_hand):
        each.fit(Batches(rows, 4))
    assert_same_state(trainer.state_dict(), by_hand.state_dict())
