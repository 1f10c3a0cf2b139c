"""Wide rounded Gaussians: cells and the places in them against exact probabilities, and against the plain table."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy import stats

from edge_runtime.errors import ConfigError
from edge_runtime.privacy import noise, pmf, rounded_gaussian, words
from edge_runtime.privacy.cells import CellSampler

KEY = bytes(range(32))
SAMPLES = 400_000
SIGMAS = ["2048", "3000.25", "123456.789", "16777216"]


def below(sigma: str, k: int) -> mpmath.mpf:
    """P(x < k) at the working precision."""
    return mpmath.ncdf((mpmath.mpf(k) - mpmath.mpf(1) / 2) / mpmath.mpf(sigma))


def fits(seen: np.ndarray, expected: np.ndarray) -> bool:
    """Chi-square; p below 1e-6 would be a defect, not chance."""
    return bool(stats.chisquare(seen, expected, sum_check=False).pvalue > 1e-6)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_every_cell_has_its_probability_to_128_bits(sigma: str) -> None:
    sampler = CellSampler(sigma)
    table = sampler._cells.entries
    assert 32 <= float(sigma) / sampler.width < 64
    with mpmath.workdps(60):
        for i in range(0, len(table), 7):
            exact = below(sigma, (i + 1 - sampler._half) * sampler.width)
            assert abs(table[i] - int(exact * mpmath.mpf(2) ** 128)) <= 1


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_places_share_of_its_cell_is_the_distributions_own(sigma: str) -> None:
    """The decimal quotient against normal probabilities, near 0, far out, and on both sides."""
    sampler = CellSampler(sigma)
    with mpmath.workdps(80):
        for cell in (0, 5, 130, 300, -1, -2, -299):
            first = cell * sampler.width
            near = first if cell >= 0 else first + sampler.width - 1
            for x in (first, first + 1, first + sampler.width // 3, first + sampler.width - 1):
                weights = [below(sigma, -abs(k) + 1) - below(sigma, -abs(k)) for k in (x, near)]
                edge = int(mpmath.ceil(weights[0] / weights[1] * mpmath.mpf(2) ** 108))
                assert x == near or edge < 2**108
                assert sampler._below_quotient(edge - 1, x, near)
                assert not sampler._below_quotient(edge, x, near) or edge == 2**108


@pytest.mark.parametrize("sigma", SIGMAS)
def test_floats_and_decimals_give_the_same_verdict(sigma: str) -> None:
    """Words about the exact border, within what floats leave open and just outside; those must not ask for more."""
    sampler = CellSampler(sigma)
    rng = np.random.default_rng(5)
    reach = int(8 * float(sigma)) // sampler.width
    asked = decided = 0
    for cell in rng.integers(-reach, reach, 40).tolist():
        first = cell * sampler.width
        near = first if cell >= 0 else first + sampler.width - 1
        x = first + int(rng.integers(sampler.width))
        with pmf.digits():
            border = pmf.rounded_weight(x, sampler._sigma) / pmf.rounded_weight(near, sampler._sigma)
            exact = Fraction(border)
        for away in (0, 1, -1, 2, -2, 40, -40, 2**30, -(2**30)):
            upper = min(max(int(exact * 2**44) + away, 0), 2**44 - 1)
            lower = int(rng.integers(2**63)) * 2
            drawn: list[int] = []

            def low(value: int = lower, asked_here: list[int] = drawn) -> np.ndarray:
                asked_here.append(value)
                return np.array([value], np.uint64)

            found = sampler.accept(np.array([x]), np.array([near]), np.array([upper], np.uint64), low)
            assert bool(found[0]) == (Fraction(upper << 64 | lower, 2**108) < exact)
            asked, decided = asked + bool(drawn), decided + (not drawn)
            if abs(away) == 2**30 and 0 < upper < 2**44 - 1:
                assert not drawn
    assert asked > 20
    assert decided > 20


def test_the_lower_bits_decide_where_the_upper_ones_cannot() -> None:
    sampler = CellSampler("5000")
    x, near = 10_100, 10_048
    with pmf.digits():
        exact = Fraction(pmf.rounded_weight(x, sampler._sigma) / pmf.rounded_weight(near, sampler._sigma))
    border = int(exact * 2**108)
    upper, both = np.full(2, border >> 64, np.uint64), np.array([(border % 2**64) - 1, (border % 2**64) + 1], np.uint64)
    accepted = sampler.accept(np.full(2, x), np.full(2, near), upper, lambda: both)
    assert accepted.tolist() == [True, False]


def test_samples_do_not_depend_on_what_floats_can_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """With floats trusted for nothing near the border, thousands go the exact way and no sample changes."""
    sampler = CellSampler("2500")
    usual = sampler.sample(20_000, KEY)
    verdicts: list[bool] = []
    exact = CellSampler._below_quotient

    def counted(self: CellSampler, drawn: int, x: int, near: int) -> bool:
        verdicts.append(exact(self, drawn, x, near))
        return verdicts[-1]

    monkeypatch.setattr(CellSampler, "_below_quotient", counted)
    monkeypatch.setattr("edge_runtime.privacy.cells._FLOAT_ERROR", 2.0**41)
    assert np.array_equal(sampler.sample(20_000, KEY), usual)
    assert verdicts.count(True) > 500
    assert verdicts.count(False) > 50


@pytest.mark.parametrize("sigma", SIGMAS)
def test_samples_fit_the_exact_distribution_in_bins_and_in_their_low_bits(sigma: str) -> None:
    samples = rounded_gaussian(sigma, SAMPLES, KEY)
    edges = np.unique(np.round(np.linspace(-3.5, 3.5, 301) * float(sigma)).astype(np.int64))
    share = np.diff(stats.norm.cdf((edges - 0.5) / float(sigma)))
    tails = stats.norm.cdf((edges[0] - 0.5) / float(sigma)), stats.norm.sf((edges[-1] - 0.5) / float(sigma))
    where = np.bincount(np.searchsorted(edges, samples, side="right"), minlength=edges.size + 1)
    assert fits(where, SAMPLES * np.array([tails[0], *share, tails[1]]))
    low = np.bincount(samples & 31, minlength=32)  # uniform but for e^(-2 pi^2 (sigma / 32)^2)
    assert fits(low, np.full(32, SAMPLES / 32))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_places_within_cells_fit(sigma: str) -> None:
    """By quarter of a cell, nearest to 0 first, over all cells beyond half a sigma: the density falls along each cell.

    Were every place accepted, the quarters would be equal, which 4,000,000 samples tell apart from what is expected.
    """
    sampler = CellSampler(sigma)
    samples = np.concatenate([sampler.sample(SAMPLES, bytes([i]) * 32) for i in range(10)])
    beyond = int(float(sigma) / sampler.width / 2)
    seen, expected = np.zeros(4), np.zeros(4)
    for cells, outwards in ((range(beyond, sampler._half), 1), (range(-sampler._half, -beyond), -1)):
        mine = samples[(samples >= cells[0] * sampler.width) & (samples < (cells[-1] + 1) * sampler.width)]
        seen += np.bincount(mine % sampler.width * 4 // sampler.width, minlength=4)[::outwards]
        starts = sampler.width * np.array([[c + i / 4 for i in range(5)] for c in cells]) - 0.5
        expected += np.diff(stats.norm.cdf(starts / float(sigma)), axis=1).sum(axis=0)[::outwards]
    assert fits(seen, seen.sum() * expected / expected.sum())
    assert not fits(seen, np.full(4, seen.sum() / 4))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_mean_and_variance(sigma: str) -> None:
    samples = rounded_gaussian(sigma, SAMPLES, KEY[::-1]).astype(np.float64) / float(sigma)
    assert abs(samples.mean()) < 5 / math.sqrt(SAMPLES)
    assert abs((samples**2).mean() - 1) < 5 * math.sqrt(2 / SAMPLES)
    assert abs((samples**4).mean() - 3) < 5 * math.sqrt(96 / SAMPLES)
    assert abs((samples**3).mean()) < 5 * math.sqrt(15 / SAMPLES)


def test_where_both_work_cells_and_the_plain_table_hold_the_same_distribution() -> None:
    cells, plain = CellSampler("2048.5"), noise.TableSampler("rounded_gaussian", "2048.5")
    reached = plain.reached.entries  # 2^128 P(x <= i - R)
    for i, entry in enumerate(cells._cells.entries):
        last = (i + 1 - cells._half) * cells.width - 1
        if abs(last) < plain.radius:
            assert abs(entry - reached[last + plain.radius]) <= 2
    one, other = cells.sample(SAMPLES, KEY), plain.sample(SAMPLES, KEY[::-1])
    edges = np.linspace(-7000, 7000, 401)
    counts = [np.bincount(np.searchsorted(edges, found), minlength=402) for found in (one, other)]
    assert stats.chi2_contingency(np.array(counts)).pvalue > 1e-6


def test_a_sampler_is_picked_by_its_sigma_and_samples_repeat() -> None:
    assert isinstance(noise.table("rounded_gaussian", "2047.9"), noise.TableSampler)
    assert isinstance(noise.table("rounded_gaussian", "2048"), CellSampler)
    assert isinstance(noise.table("discrete_gaussian", "2500"), noise.TableSampler)
    count = words.CHUNK + 500
    samples = rounded_gaussian("9999", count, KEY)
    assert samples.dtype == np.int64
    assert np.array_equal(samples, rounded_gaussian("9999", count, KEY))
    assert np.array_equal(samples[:1000], rounded_gaussian("9999", 1000, KEY))
    assert np.count_nonzero(samples[: count - words.CHUNK] == samples[words.CHUNK :]) < 20
    assert rounded_gaussian("9999", 0, KEY).size == 0


def test_the_stated_total_variation_covers_cells_places_and_tail() -> None:
    for sigma in SIGMAS:
        sampler = CellSampler(sigma)
        outside = 2 * stats.norm.sf(sampler._half * sampler.width / float(sigma) - 1e-3)
        assert outside + 2 * sampler._half * 2.0**-128 + 2.0**-107 <= sampler.total_variation < 2.0**-105


@pytest.mark.parametrize("sigma", ["2047", "16777217", "nan"])
def test_a_sigma_out_of_range_is_refused(sigma: str) -> None:
    with pytest.raises(ConfigError, match="sigma"):
        CellSampler(sigma)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        rounded_gaussian("5000", 3, b"short")
