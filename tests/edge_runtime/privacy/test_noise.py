"""Noise tables against high-precision probabilities, and their samples against the exact distribution."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from decimal import Decimal, localcontext
from itertools import accumulate

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from edge_runtime.errors import ConfigError
from edge_runtime.privacy import TableSampler, discrete_gaussian, noise, rounded_gaussian, skellam, words

KEY = bytes(range(32))
SAMPLES = 400_000

DISTRIBUTIONS = [
    ("discrete_gaussian", "0.3"),
    ("discrete_gaussian", "1.5"),
    ("discrete_gaussian", "57.25"),
    ("rounded_gaussian", "1"),
    ("rounded_gaussian", "12.7"),
    ("skellam", "0.02"),
    ("skellam", "3"),
    ("skellam", "1234.5"),
]
DRAW: dict[str, Callable[[str, int, bytes], np.ndarray]] = {
    "discrete_gaussian": discrete_gaussian,
    "rounded_gaussian": rounded_gaussian,
    "skellam": skellam,
}


def probability(kind: str, parameter: str, k: np.ndarray) -> np.ndarray:
    """From scipy's special functions, in float64."""
    value = float(parameter)
    if kind == "skellam":
        return special.ive(np.abs(k), value)
    if kind == "rounded_gaussian":
        return stats.norm.cdf((k + 0.5) / value) - stats.norm.cdf((k - 0.5) / value)
    weights = np.exp(-(k**2) / (2 * value**2))
    return weights / weights.sum()


def exact_below(kind: str, parameter: str, radius: int) -> list[mpmath.mpf]:
    """P(x <= k) for k = -radius..-1 at 60 digits, summed from far in the tail."""
    value, half = mpmath.mpf(parameter), mpmath.mpf(1) / 2
    if kind == "rounded_gaussian":
        return [mpmath.ncdf((k + half) / value) for k in range(-radius, 0)]
    if kind == "skellam":
        weight = [mpmath.besseli(j, value) for j in range(radius + 60)]
    else:
        weight = [mpmath.exp(-(mpmath.mpf(j) ** 2) / (2 * value**2)) for j in range(radius + 60)]
    total = mpmath.exp(value) if kind == "skellam" else 2 * mpmath.fsum(weight) - 1
    reached = list(accumulate(reversed(weight)))  # from j = radius + 59 down to 0
    return [share / total for share in reached[59 : 59 + radius]]


def entries(sampler: TableSampler) -> list[int]:
    return sampler.reached.entries


@pytest.mark.parametrize(
    ("kind", "parameter"),
    [("discrete_gaussian", "2.25"), ("rounded_gaussian", "1.75"), ("skellam", "0.8"), ("skellam", "30")],
)
def test_every_entry_is_the_distribution_function_to_128_bits(kind: str, parameter: str) -> None:
    sampler = TableSampler(kind, parameter)
    table = entries(sampler)
    with mpmath.workdps(60):
        for i, below in enumerate(exact_below(kind, parameter, sampler.radius)):
            assert abs(table[i] - int(below * mpmath.mpf(2) ** 128)) <= 1
    for low, high in zip(table, reversed(table), strict=True):  # P(x <= k) = 1 - P(x <= -k - 1)
        assert abs(low + high - 2**128) <= 2


@pytest.mark.parametrize(("kind", "parameter"), DISTRIBUTIONS)
def test_samples_fit_the_exact_distribution(kind: str, parameter: str) -> None:
    """Chi-square over cells of at least 20 expected samples; p below 1e-6 would be a defect, not chance."""
    samples = DRAW[kind](parameter, SAMPLES, KEY)
    assert samples.dtype == np.int64
    reach = 2 * int(np.abs(samples).max()) + 30
    support = np.arange(-reach, reach + 1)
    expected = SAMPLES * probability(kind, parameter, support)
    seen = np.bincount(samples + reach, minlength=support.size).astype(np.float64)
    central = expected >= 20
    expected = np.append(expected[central], SAMPLES - expected[central].sum())
    seen = np.append(seen[central], SAMPLES - seen[central].sum())
    if expected[-1] < 5:  # too few in both tails together for a cell of their own
        expected[0], seen[0] = expected[0] + expected[-1], seen[0] + seen[-1]
        expected, seen = expected[:-1], seen[:-1]
    assert stats.chisquare(seen, expected, sum_check=False).pvalue > 1e-6


@pytest.mark.parametrize(("kind", "parameter"), DISTRIBUTIONS)
def test_mean_variance_and_symmetry(kind: str, parameter: str) -> None:
    """Each within five standard errors of the exact moment."""
    samples = DRAW[kind](parameter, SAMPLES, KEY[::-1]).astype(np.float64)
    reach = 2 * int(np.abs(samples).max()) + 30
    support = np.arange(-reach, reach + 1)
    p = probability(kind, parameter, support)
    variance, fourth = float(p @ support**2), float(p @ support.astype(np.float64) ** 4)
    assert abs(samples.mean()) < 5 * math.sqrt(variance / SAMPLES)
    assert abs((samples**2).mean() - variance) < 5 * math.sqrt((fourth - variance**2) / SAMPLES)
    assert abs(float((samples > 0).mean() - (samples < 0).mean())) < 5 / math.sqrt(SAMPLES)
    if kind == "skellam":
        assert variance == pytest.approx(float(parameter), rel=1e-9)


@pytest.mark.parametrize(("kind", "parameter"), DISTRIBUTIONS)
def test_the_stated_total_variation_covers_table_and_tail(kind: str, parameter: str) -> None:
    sampler = TableSampler(kind, parameter)
    assert (sampler.radius + 1) * 2.0**-128 < sampler.total_variation < (sampler.radius + 1) * 2.0**-128 + 2.0**-109
    if kind == "rounded_gaussian":
        tail = 2 * stats.norm.sf((sampler.radius + 0.5) / float(parameter))
    else:
        tail = 2 * probability(kind, parameter, np.arange(-sampler.radius - 400, sampler.radius + 401))[-400:].sum()
    assert tail <= sampler.total_variation


@given(st.data(), st.sampled_from([("discrete_gaussian", "1.5"), ("skellam", "0.02"), ("rounded_gaussian", "4")]))
def test_a_draw_is_the_number_of_entries_up_to_the_whole_word(data: st.DataObject, which: tuple[str, str]) -> None:
    sampler = noise.table(*which)
    table = entries(sampler)
    at_an_entry = st.sampled_from(table).flatmap(
        lambda entry: st.sampled_from([entry - 1, entry, entry + 1, entry >> 64 << 64, entry | 2**64 - 1])
    )
    drawn = data.draw(st.lists(at_an_entry | st.integers(0, 2**128 - 1), min_size=1, max_size=20))
    upper = np.array([word >> 64 for word in drawn], np.uint64)
    lower = np.array([word & 2**64 - 1 for word in drawn], np.uint64)
    found = sampler.look_up(upper, lambda: lower)
    assert found.tolist() == [bisect_right(table, word) - sampler.radius for word in drawn]


def test_the_lower_words_are_not_drawn_when_the_upper_ones_decide() -> None:
    def refuse() -> np.ndarray:
        raise AssertionError("drawn")

    assert (
        noise.table("discrete_gaussian", "2").look_up(np.array([2**62 + 12345, 2**63 + 12345], np.uint64), refuse).size
        == 2
    )


def test_words_are_the_chacha20_keystream_of_rfc_8439() -> None:
    """Appendix A.1, test vector 1: zero key, zero nonce, block 0."""
    assert words.keystream(bytes(32), 0, 0, 8).tobytes().hex() == (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )


def test_a_key_repeats_its_samples_and_every_chunk_and_key_has_others() -> None:
    count = 2 * words.CHUNK + 100
    samples = discrete_gaussian("40", count, KEY)
    assert np.array_equal(samples, discrete_gaussian("40", count, KEY))
    assert np.array_equal(samples[:1000], discrete_gaussian("40", 1000, KEY))
    other = discrete_gaussian("40", count, KEY[::-1])
    chunks = [
        *(samples[i * words.CHUNK :][:100] for i in range(3)),
        *(other[i * words.CHUNK :][:100] for i in range(3)),
    ]
    for i, a in enumerate(chunks):
        for b in chunks[:i]:
            assert np.count_nonzero(a == b) < 20


def test_the_sum_of_skellam_shares_is_skellam() -> None:
    """Kolmogorov-Smirnov would be conservative on whole numbers; chi-square over the cells is not."""
    total = sum(skellam("2.5", SAMPLES // 4, bytes([i]) * 32) for i in range(4))
    support = np.arange(-40, 41)
    expected = SAMPLES // 4 * special.ive(np.abs(support), 10.0)
    seen = np.bincount(total + 40, minlength=81).astype(np.float64)
    cells = expected >= 20
    result = stats.chisquare(
        np.append(seen[cells], seen[~cells].sum()), np.append(expected[cells], expected[~cells].sum()), sum_check=False
    )
    assert result.pvalue > 1e-6


def test_the_parameter_is_exact_text_and_the_callers_decimal_context_does_not_matter() -> None:
    with localcontext() as context:
        context.prec = 5
        coarse = TableSampler("discrete_gaussian", "1.00000000000000000001")
    assert entries(coarse) == entries(TableSampler("discrete_gaussian", "1.00000000000000000001"))
    assert entries(coarse) != entries(TableSampler("discrete_gaussian", "1"))
    assert entries(TableSampler("discrete_gaussian", "1.50")) == entries(
        TableSampler("discrete_gaussian", str(Decimal("1.5")))
    )


@pytest.mark.parametrize(
    ("kind", "parameter"),
    [
        ("gaussian", "1"),
        ("discrete_gaussian", "0"),
        ("discrete_gaussian", "-3"),
        ("discrete_gaussian", "nan"),
        ("discrete_gaussian", "inf"),
        ("discrete_gaussian", "1e999999999"),
        ("discrete_gaussian", "1" * 65),
        ("skellam", "two"),
        ("skellam", ""),
        ("rounded_gaussian", "0.5"),
        ("rounded_gaussian", "16384.5"),
    ],
)
def test_a_parameter_out_of_range_is_refused(kind: str, parameter: str) -> None:
    with pytest.raises(ConfigError, match="must be"):
        TableSampler(kind, parameter)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        discrete_gaussian("2", 3, b"short")
