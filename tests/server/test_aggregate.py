"""The running sum: equal to FedAvg, exact about bad updates, and no larger than one model."""

from __future__ import annotations

import gc
import tracemalloc
from functools import partial

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.errors import PeerError
from server.aggregate import SHARED_FROM, WeightedSum, spread

finite = st.floats(-1e6, 1e6, width=32)


cohorts = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float32, (n, 37), elements=finite),
        st.lists(st.integers(1, 10**6), min_size=n, max_size=n),
    )
)


@given(cohorts)
def test_mean_is_the_weighted_mean(case):
    updates, weights = case
    total = WeightedSum(37)
    for update, weight in zip(updates, weights, strict=True):
        total.add(update, weight)
    np.testing.assert_allclose(
        total.mean(), np.average(updates.astype(np.float64), axis=0, weights=weights), rtol=1e-9, atol=1e-6
    )


def test_mean_equals_flowers_fedavg():
    rng = np.random.default_rng(1)
    updates = [rng.normal(size=1000).astype(np.float32) for _ in range(9)]
    examples = [int(n) for n in rng.integers(1, 500, 9)]
    replies = [
        RecordDict({"arrays": ArrayRecord({"w": Array(update)}), "metrics": MetricRecord({"num-examples": count})})
        for update, count in zip(updates, examples, strict=True)
    ]
    total = WeightedSum(1000)
    for update, count in zip(updates, examples, strict=True):
        total.add(update, count)
    np.testing.assert_allclose(
        total.mean(), aggregate_arrayrecords(replies, "num-examples")["w"].numpy(), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 40, 99])
def test_a_bad_update_leaves_the_sum_as_it_was(bad, place):
    total = WeightedSum(100)
    total.add(np.ones(100, np.float32), 3)
    spoilt = np.ones(100, np.float32)
    spoilt[place] = bad
    with pytest.raises(PeerError, match="NaN or infinite"):
        total.add(spoilt, 5)
    np.testing.assert_array_equal(total.mean(), 1)
    assert (total.count, total.total_weight) == (1, 3)


@pytest.mark.parametrize("weight", [0, -1, 2**28 + 1])
def test_a_claimed_weight_is_bounded(weight):
    with pytest.raises(PeerError, match="examples"):
        WeightedSum(1).add(np.ones(1, np.float32), weight)


def test_large_updates_are_added_by_all_cores_as_by_one():
    size = 2 * SHARED_FROM + 17
    rng = np.random.default_rng(2)
    total, expected = WeightedSum(size), np.zeros(size)
    for weight in (3, 70_001, 2**28):
        update = rng.normal(size=size).astype(np.float32)
        total.add(update, weight)
        expected += update.astype(np.float64) * weight
    spoilt = np.ones(size, np.float32)
    spoilt[-1] = np.nan
    with pytest.raises(PeerError, match="NaN"):
        total.add(spoilt, 1)
    assert total.mean().tobytes() == (expected / (3 + 70_001 + 2**28)).tobytes()


def test_tasks_are_all_done_and_an_error_among_them_is_raised():
    done = []
    spread(partial(done.append, number) for number in range(40))
    assert sorted(done) == list(range(40))
    with pytest.raises(PeerError, match="seven"):
        spread(partial(fail_at_seven, number) for number in range(20))


def fail_at_seven(number):
    if number == 7:
        raise PeerError("seven")


def test_no_update_has_no_mean():
    with pytest.raises(ValueError, match="no update"):
        WeightedSum(3).mean()


def test_memory_is_one_model_however_many_clients():
    size = 500_000
    update = np.ones(size, np.float32)
    gc.collect()
    tracemalloc.start()
    total = WeightedSum(size)
    for _ in range(50):
        total.add(update, 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.1 * size * 8
