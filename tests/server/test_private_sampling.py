"""A Poisson sample: each client by itself, at no more than the rate that the ledger claims."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.config import from_flat
from edge_runtime.errors import ConfigError
from server.config import ServerConfig
from server.sampling import Participations, PoissonSampling, SeededSampling, make_sampling

NODES = [2**63 + 5, *range(10, 60)]


def test_each_client_is_drawn_at_the_rate_and_for_itself():
    rounds, sampling = 3000, PoissonSampling(12, 50)
    drawn = np.array([np.isin(NODES, sampling.draw(NODES, number)) for number in range(rounds)])
    rate = 12 / 50
    spread = math.sqrt(rate * (1 - rate) / rounds)
    assert np.abs(drawn.mean(axis=0) - rate).max() < 5 * spread
    sizes = drawn.sum(axis=1)  # binomial: a cohort of a fixed size would have no variance at all
    n = len(NODES)
    assert sizes.mean() == pytest.approx(n * rate, abs=5 * math.sqrt(n) * spread)
    assert sizes.var() == pytest.approx(n * rate * (1 - rate), rel=5 * math.sqrt(2 / rounds))
    correlation = np.corrcoef(drawn[:, :10].T) - np.eye(10)
    assert np.abs(correlation).max() < 5.5 / math.sqrt(rounds)
    again = np.corrcoef(drawn[1:].ravel(), drawn[:-1].ravel())[0, 1]
    assert abs(again) < 5 / math.sqrt(drawn[1:].size)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_nobody_is_drawn_more_often_than_claimed(cohort, more):
    words = iter([0])

    def entropy(count: int) -> bytes:
        return b"".join(int(word).to_bytes(8, "little") for word in words)

    sampling = PoissonSampling(cohort, cohort + more, entropy)
    edge = Fraction(sampling.rate) * 2**64  # of the 2^64 words, those below the edge draw a client
    below = math.floor(edge)
    words = iter([below - 1, below, min(below + 1, 2**64 - 1)])
    assert sampling.draw([1, 2, 3], 1) == [1]


def test_a_rate_of_one_takes_everyone_and_the_order_is_ascending():
    sampling = PoissonSampling(5, 5)
    assert sampling.rate == 1
    assert sampling.draw([9, 3, 2**64 - 1, 7], 1) == [3, 7, 9, 2**64 - 1]
    assert sampling.draw([], 1) == []


def test_two_runs_of_one_seed_draw_differently():
    draws = [tuple(tuple(PoissonSampling(20, 50).draw(NODES, number)) for number in range(5)) for _ in range(2)]
    assert draws[0] != draws[1]


def test_a_population_below_the_cohort_is_refused():
    with pytest.raises(ConfigError, match=r"privacy\.population = 5: must be at least server\.cohort \(6\)"):
        PoissonSampling(6, 5)


def test_without_a_population_nothing_is_claimed():
    config = from_flat(ServerConfig, {"privacy.noise_multiplier": 1.0, "server.cohort": 4})
    sampling = make_sampling(config)
    assert isinstance(sampling, SeededSampling)
    assert sampling.rate == 1
    assert len(sampling.draw(NODES, 1)) == 4


def test_participations():
    taken = Participations()
    assert taken.most == 0
    taken.add(["a", "b"])
    taken.add(["a"])
    assert (taken.most, taken.of("a"), taken.of("b"), taken.of("c")) == (2, 2, 1, 0)
