"""A client's round without network: replayable from its inputs alone, and closed to models of other rounds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.round import Workbench
from edge_runtime.config import from_flat
from edge_runtime.errors import PeerError
from edge_runtime.train.batches import Examples
from edge_runtime.train.config import ModelConfig, RoundTask, TrainConfig
from edge_runtime.train.factory import make_trainer
from edge_runtime.updates import make_codec
from edge_runtime.updates.delta import FloatVector

MODEL = ModelConfig(name="digits_cnn", input="1x8x8")


def task(**settings: Any) -> RoundTask:
    return from_flat(RoundTask, {"round": 3, "seed": 5, "model.name": "digits_cnn", **settings})


def bench(trainer: str, **settings: Any) -> Workbench:
    train = from_flat(TrainConfig, {"trainer": trainer, **settings})
    return Workbench(make_trainer(MODEL, train, seed=5))


def payload(bench: Workbench, round_number: int = 3) -> bytes:
    values = bench.layout.flatten(bench.initial)
    return make_codec("float32").encode_vector(values, bench.layout, round_number=round_number)


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


def test_the_same_inputs_give_the_same_bytes_whatever_was_trained_before(examples: Examples, trainer: str) -> None:
    fresh, used = bench(trainer), bench(trainer)
    used.train(task(round=3, seed=9), payload(used), examples.rows(slice(7)), client=1)
    used.evaluate(task(), payload(used), examples)
    assert used.train(task(), payload(used), examples, 4) == fresh.train(task(), payload(fresh), examples, 4)


def test_an_update_names_its_round_and_counts_its_examples(shared: Workbench, examples: Examples) -> None:
    update = shared.train(task(), payload(shared), examples, 4)
    delta = make_codec("float32").decode_vector(update.payload, shared.layout, round_number=3)
    assert np.isfinite(delta).all()
    assert np.abs(delta).max() > 0
    assert update.examples == 50
    assert update.loss > 0


@pytest.mark.parametrize("change", ["client", "seed"])
def test_another_client_or_seed_shuffles_otherwise(shared: Workbench, examples: Examples, change: str) -> None:
    first = shared.train(task(), payload(shared), examples, 4)
    other = shared.train(task(seed=6 if change == "seed" else 5), payload(shared), examples, 4 + (change == "client"))
    assert first.payload != other.payload


def test_another_round_shuffles_otherwise(shared: Workbench, examples: Examples) -> None:
    codec = make_codec("float32")
    deltas = [
        codec.decode_vector(
            shared.train(task(round=number), payload(shared, number), examples, 4).payload, shared.layout
        )
        for number in (3, 4)
    ]
    assert not np.array_equal(*deltas)


@pytest.mark.parametrize("number", [2, 4])
def test_a_model_of_another_round_is_refused(shared: Workbench, examples: Examples, number: int) -> None:
    with pytest.raises(PeerError, match=f"belongs to round {number}, this is round 3"):
        shared.train(task(), payload(shared, number), examples, 4)
    with pytest.raises(PeerError, match=f"belongs to round {number}, this is round 3"):
        shared.evaluate(task(), payload(shared, number), examples)


def test_a_model_with_other_tensors_is_refused(shared: Workbench, examples: Examples) -> None:
    other = Workbench(make_trainer(ModelConfig(name="mlp"), TrainConfig(trainer="torch")))
    with pytest.raises(PeerError, match="are not the model's"):
        shared.train(task(), payload(other), examples, 4)


@settings(deadline=None)
@given(raw=st.binary(max_size=200))
def test_bytes_that_are_no_model_are_refused(shared: Workbench, examples: Examples, raw: bytes) -> None:
    with pytest.raises(PeerError):
        shared.evaluate(task(), raw, examples)


@settings(deadline=None)
@given(data=st.data())
def test_a_model_cut_short_or_with_a_damaged_head_is_refused(
    shared: Workbench, examples: Examples, data: st.DataObject
) -> None:
    good = payload(shared)
    head = len(good) - 4 * shared.layout.size
    cut = data.draw(st.integers(0, len(good) - 1))
    at, flip = data.draw(st.integers(0, head - 1)), data.draw(st.integers(1, 255))
    for bad in (good[:cut], good + b"\0", good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :]):
        with pytest.raises(PeerError):
            shared.evaluate(task(), bad, examples)


def test_evaluation_is_the_trainers_own_and_leaves_the_weights_alone(shared: Workbench, examples: Examples) -> None:
    figures = shared.evaluate(task(), payload(shared), examples)
    plain = make_trainer(MODEL, TrainConfig(trainer="torch"), seed=5)
    expected = plain.evaluate([(examples.x, examples.y)])
    assert figures == pytest.approx(expected, rel=1e-5)
    assert shared.evaluate(task(), payload(shared), examples) == figures


def delta(bench: Workbench, examples: Examples, **settings: Any) -> FloatVector:
    asked = task(**settings)
    update = bench.train(asked, payload(bench, asked.round), examples, 4)
    return make_codec("float32").decode_vector(update.payload, bench.layout)


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
    updates = [one.train(asked, payload(one), examples, 4) for one in (ours, theirs)]
    moved, expected = (
        make_codec("float32").decode_vector(update.payload, one.layout)
        for one, update in zip((ours, theirs), updates, strict=True)
    )
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(moved, expected, atol=2e-5)
    assert updates[0].loss == pytest.approx(updates[1].loss, rel=1e-4)
