"""A client's round without network: replayable from its inputs alone, and closed to models of other rounds."""

from __future__ import annotations

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

MODEL = ModelConfig(name="digits_cnn")


def task(**settings: Any) -> RoundTask:
    return from_flat(RoundTask, {"round": 3, "seed": 5, "model.name": "digits_cnn", **settings})


def bench() -> Workbench:
    return Workbench(make_trainer(MODEL, TrainConfig(), seed=5))


def payload(bench: Workbench, round_number: int = 3) -> bytes:
    values = bench.layout.flatten(bench.initial)
    return make_codec("float32").encode_vector(values, bench.layout, round_number=round_number)


@pytest.fixture(scope="module")
def shared() -> Workbench:
    return bench()


@pytest.fixture(scope="module")
def examples() -> Examples:
    rng = np.random.default_rng(0)
    return Examples(rng.normal(size=(50, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, 50))


def test_the_same_inputs_give_the_same_bytes_whatever_was_trained_before(examples: Examples) -> None:
    fresh, used = bench(), bench()
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
    other = Workbench(make_trainer(ModelConfig(name="mlp"), TrainConfig()))
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
    trainer = make_trainer(MODEL, TrainConfig(), seed=5)
    expected = trainer.evaluate([(examples.x, examples.y)])
    assert figures == pytest.approx(expected, rel=1e-5)
    assert shared.evaluate(task(), payload(shared), examples) == figures
