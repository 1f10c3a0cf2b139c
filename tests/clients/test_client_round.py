"""A client's round without network: replayable from its inputs alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from clients.round import Workbench
from edge_runtime.config import from_flat
from edge_runtime.train.batches import Examples
from edge_runtime.train.config import ModelConfig, RoundTask, TrainConfig
from edge_runtime.train.factory import make_trainer
from edge_runtime.updates.delta import FloatVector

MODEL = ModelConfig(name="digits_cnn", input="1x8x8")


def task(**settings: Any) -> RoundTask:
    return from_flat(RoundTask, {"round": 3, "seed": 5, "model.name": "digits_cnn", **settings})


def bench(trainer: str, **settings: Any) -> Workbench:
    train = from_flat(TrainConfig, {"trainer": trainer, **settings})
    return Workbench(make_trainer(MODEL, train, seed=5))


def weights(bench: Workbench) -> FloatVector:
    return bench.tensors.layout.flatten(bench.initial)


@pytest.fixture(scope="module", params=["engine", "torch"])
def trainer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def shared(trainer: str) -> Workbench:
    return bench(trainer)


@pytest.fixture(scope="module")
def examples() -> Examples:
    rng = np.random.default_rng(0)
    return Examples(rng.normal(size=(50, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, 50))


def test_the_same_inputs_give_the_same_bits_whatever_was_trained_before(examples: Examples, trainer: str) -> None:
    fresh, used = bench(trainer), bench(trainer)
    used.train(task(round=3, seed=9), weights(used), examples.rows(slice(7)), client=1)
    used.evaluate(weights(used), examples)
    ours, theirs = (one.train(task(), weights(one), examples, 4) for one in (used, fresh))
    np.testing.assert_array_equal(ours.delta, theirs.delta)
    assert (ours.examples, ours.loss) == (theirs.examples, theirs.loss)


def test_an_update_counts_its_examples(shared: Workbench, examples: Examples) -> None:
    update = shared.train(task(), weights(shared), examples, 4)
    assert np.isfinite(update.delta).all()
    assert np.abs(update.delta).max() > 0
    assert update.examples == 50
    assert update.loss > 0


def test_an_update_holds_the_tensors_that_move_and_no_others(trainer: str, examples: Examples) -> None:
    part = bench(trainer, trainable="out.*")
    assert [name for name, _ in part.tensors.moving.shapes] == ["out.weight", "out.bias"]
    update = part.train(task(**{"train.trainable": "out.*"}), weights(part), examples, 4)
    assert update.delta.shape == (part.tensors.moving.size,)
    assert all(np.abs(tensor).max() > 0 for tensor in part.tensors.moving.views(update.delta).values())


@pytest.mark.parametrize("change", ["client", "seed"])
def test_another_client_or_seed_shuffles_otherwise(shared: Workbench, examples: Examples, change: str) -> None:
    first = shared.train(task(), weights(shared), examples, 4)
    other = shared.train(task(seed=6 if change == "seed" else 5), weights(shared), examples, 4 + (change == "client"))
    assert not np.array_equal(first.delta, other.delta)


def test_another_round_shuffles_otherwise(shared: Workbench, examples: Examples) -> None:
    deltas = [shared.train(task(round=number), weights(shared), examples, 4).delta for number in (3, 4)]
    assert not np.array_equal(*deltas)


def test_evaluation_is_the_trainers_own_and_leaves_the_weights_alone(shared: Workbench, examples: Examples) -> None:
    figures = shared.evaluate(weights(shared), examples)
    plain = make_trainer(MODEL, TrainConfig(trainer="torch"), seed=5)
    expected = plain.evaluate([(examples.x, examples.y)])
    assert figures == pytest.approx(expected, rel=1e-5)
    assert shared.evaluate(weights(shared), examples) == figures


def delta(bench: Workbench, examples: Examples, **settings: Any) -> FloatVector:
    return bench.train(task(**settings), weights(bench), examples, 4).delta


def test_a_schedule_over_rounds_scales_the_steps_of_a_round(trainer: str, examples: Examples) -> None:
    """One plain step on all examples is -lr times the gradient: the updates of two rounds are in the rates' ratio."""
    one_step = bench(trainer, **{"batch_size": 50, "optimizer.momentum": 0.0})
    exponential = {"train.batch_size": 50, "train.schedule.name": "exponential", "train.schedule.gamma": 0.25}
    first, second, third = (delta(one_step, examples, round=number, **exponential) for number in (1, 2, 3))
    assert np.abs(first).max() > 1e-3
    np.testing.assert_allclose(second, first / 4, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(third, first / 16, rtol=1e-3, atol=1e-7)
    constant = delta(one_step, examples, round=3, **{"train.batch_size": 50})
    np.testing.assert_allclose(constant, first, rtol=1e-3, atol=1e-7)


def test_a_schedule_over_steps_starts_anew_in_every_round(trainer: str, examples: Examples) -> None:
    """The rate is as good as zero from the second step on, so three passes move the weights as far as one."""
    whole = bench(trainer, **{"batch_size": 50, "optimizer.momentum": 0.0})
    name, over = "train.schedule.name", "train.schedule.over"
    falling = {"train.batch_size": 50, name: "step", over: "steps", "train.schedule.every": 1}
    one, three = (
        delta(whole, examples, **falling, **{"train.epochs": epochs, "train.schedule.gamma": 1e-9}) for epochs in (1, 3)
    )
    np.testing.assert_allclose(three, one, rtol=1e-4, atol=1e-7)
    again = delta(whole, examples, round=9, **falling, **{"train.epochs": 3, "train.schedule.gamma": 1e-9})
    np.testing.assert_allclose(again, one, rtol=1e-3, atol=1e-7)
    steady = delta(whole, examples, **{"train.batch_size": 50, "train.epochs": 3})
    assert np.linalg.norm(steady) > 2 * np.linalg.norm(one)


def test_a_warmup_over_rounds_starts_low(trainer: str, examples: Examples) -> None:
    one_step = bench(trainer, **{"batch_size": 50, "optimizer.momentum": 0.0})
    warm = {"train.batch_size": 50, "train.schedule.warmup": 2}
    norms = [float(np.linalg.norm(delta(one_step, examples, round=number, **warm))) for number in (1, 2, 3, 4)]
    assert norms == pytest.approx([0.1 * norms[3], 0.55 * norms[3], norms[3], norms[3]], rel=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer.name": "adamw", "optimizer.lr": 0.003, "optimizer.weight_decay": 0.01},
        {"clip_norm": 0.5},
        {"clip_value": 0.01},
        {"micro_batch": 3},
        {"loss": "focal", "focal_gamma": 1.0},
        {"label_smoothing": 0.1},
    ],
    ids=lambda settings: next(iter(settings), "default"),
)
@pytest.mark.parametrize("proximal_mu", [0.0, 2.0])
def test_the_engine_trains_as_pytorch_does(examples: Examples, settings: dict[str, Any], proximal_mu: float) -> None:
    """The same order of examples, the same update: three passes in batches of 8, the last one short."""
    asked = task(**{"train.batch_size": 8, "train.epochs": 3, **{f"train.{key}": it for key, it in settings.items()}})
    ours, theirs = (
        Workbench(make_trainer(MODEL, dataclasses.replace(asked.train, trainer=name), proximal_mu=proximal_mu, seed=5))
        for name in ("engine", "torch")
    )
    updates = [one.train(asked, weights(one), examples, 4) for one in (ours, theirs)]
    moved, expected = (update.delta for update in updates)
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(moved, expected, atol=2e-5)
    assert updates[0].loss == pytest.approx(updates[1].loss, rel=1e-4)
