"""Row orders from Philox: permutations, all equally likely, the same again from a seed or a state."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

import edge_runtime as er
from edge_runtime.errors import ConfigError


@pytest.mark.parametrize("count", [0, 1, 2, 17, 1000])
def test_every_pass_is_a_permutation_and_another_one(count):
    shuffle = er.Shuffle(5)
    orders = [shuffle.permutation(count) for _ in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(count))
    if count > 10:
        assert not any(np.array_equal(a, b) for a, b in itertools.combinations(orders, 2))


def test_all_orders_of_four_rows_are_equally_likely():
    shuffle, draws = er.Shuffle(1), 4800
    seen = Counter(tuple(shuffle.permutation(4)) for _ in range(draws))
    expected = draws / 24
    chi_square = sum((seen[order] - expected) ** 2 / expected for order in itertools.permutations(range(4)))
    assert len(seen) == 24
    assert chi_square < 49.7  # 0.1 % of fair draws lie above, at 23 degrees of freedom


def test_a_seed_repeats_and_another_does_not():
    assert np.array_equal(er.Shuffle(3).permutation(50), er.Shuffle(3).permutation(50))
    assert not np.array_equal(er.Shuffle(3).permutation(50), er.Shuffle(4).permutation(50))
    assert not np.array_equal(er.Shuffle(3).permutation(50), er.Shuffle(3 + 2**32).permutation(50))


def test_batches_go_on_from_a_state():
    examples = er.Examples(np.arange(20, dtype=np.float32)[:, None], np.arange(20))
    batches = er.Batches(examples, 6, er.Shuffle(7))
    list(batches)
    state = batches.state()
    expected = [y for _, y in batches]
    other = er.Batches(examples, 6, er.Shuffle(0))
    other.restore(state)
    for got, y in zip(other, expected, strict=True):
        np.testing.assert_array_equal(got[1], y)
    with pytest.raises(ConfigError, match="generator state"):
        other.restore({**state, "rng": {"shuffle": -1, "drawn": 0}})
