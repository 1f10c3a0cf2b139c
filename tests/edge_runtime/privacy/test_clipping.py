"""No input, however chosen, gets past a clip or a rounding bound; rounding is unbiased where it is not conditioned."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.errors import ConfigError, NumericsError
from edge_runtime.privacy import AdaptiveClip, clip_by_norm, clipping, conditional_round, l1_bound, l2_bound

finite = st.floats(allow_nan=False, allow_infinity=False)
vectors = hnp.arrays(np.float64, st.integers(1, 40), elements=finite)
clips = st.floats(1e-6, 1e6)


@given(vectors, clips)
def test_a_clipped_vector_is_never_longer_than_the_clip(x: np.ndarray, clip: float) -> None:
    clipped = clip_by_norm(x, clip)
    assert sum(Fraction(float(value)) ** 2 for value in clipped) <= Fraction(clip) ** 2
    assert np.all(np.sign(clipped) * np.sign(x) >= 0)


@given(hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e3, 1e3)), clips)
def test_clipping_keeps_the_direction_and_what_is_short_enough(x: np.ndarray, clip: float) -> None:
    norm = float(np.linalg.norm(x))
    expected = x * min(1.0, clip / norm) if norm else x
    np.testing.assert_allclose(clip_by_norm(x, clip), expected, rtol=1e-8, atol=1e-200)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    with pytest.raises(NumericsError, match="leave this client out"):
        clip_by_norm(np.array([1.0, bad]), 1.0)
    with pytest.raises(NumericsError):
        conditional_round(np.array([1.0, bad]), 10.0, 1.0, np.random.default_rng(0))


class Contrary:
    """A generator whose draws are as low as can be: every value with a fraction is rounded up."""

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape)


def squares(rounded: np.ndarray) -> int:
    return sum(int(value) ** 2 for value in rounded)


@settings(max_examples=200)
@given(
    hnp.arrays(np.float64, st.integers(1, 300), elements=st.floats(-10, 10)),
    st.floats(1e-3, 1e4),
    st.floats(1e-3, 10),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_case_40_no_rounded_vector_is_longer_than_the_bound(
    x: np.ndarray, scale: float, clip: float, seed: int, contrary: bool
) -> None:
    rng = Contrary() if contrary else np.random.default_rng(seed)
    rounded = conditional_round(x, scale, clip, rng)  # type: ignore[arg-type]
    bound = l2_bound(scale, clip, x.size)
    assert squares(rounded) <= bound**2
    assert int(np.abs(rounded).sum()) <= l1_bound(bound, x.size) * (1 + 1e-12)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
def test_case_40_all_coordinates_just_above_a_whole_number_and_the_norm_at_the_clip(sign: int, fraction: float) -> None:
    """The worst input: each coordinate gains most by rounding, and every draw rounds away from zero."""
    d, whole = 4096, 3
    x = np.full(d, sign * (whole + fraction))
    clip = float(np.linalg.norm(x))
    away = Contrary() if sign > 0 else np.random.default_rng(3)
    rounded = conditional_round(x, 1.0, clip, away)  # type: ignore[arg-type]
    assert squares(rounded) <= l2_bound(1.0, clip, d) ** 2
    if fraction == 0.5:  # rounding all of them away from zero would have broken it
        assert d * (whole + 1) ** 2 > l2_bound(1.0, clip, d) ** 2


def test_the_bound_is_the_smaller_of_its_two_forms() -> None:
    assert l2_bound(1.0, 1.0, 1) == pytest.approx(math.sqrt(1 + 0.25 + 1.5))
    assert l2_bound(0.001, 1.0, 1) == pytest.approx(math.sqrt(1e-6 + 0.25 + 0.501))
    assert l2_bound(1000.0, 1.0, 10_000) == pytest.approx(math.sqrt(1e6 + 2500 + 1050))
    assert l2_bound(1e-6, 1.0, 1_000_000) == pytest.approx(math.sqrt(250_000 + 500), rel=1e-6)


def test_rounding_is_unbiased() -> None:
    """2,000 draws, each mean within five standard errors; the clip is far, so that no draw is refused."""
    x = np.linspace(-3, 3, 41)
    rng = np.random.default_rng(7)
    draws = np.stack([conditional_round(x, 1.3, 100.0, rng) for _ in range(2000)])
    fraction = 1.3 * x - np.floor(1.3 * x)
    error = np.sqrt(np.maximum(fraction * (1 - fraction), 1e-9) / len(draws))
    assert np.all(np.abs(draws.mean(axis=0) - 1.3 * x) < 5 * error)
    assert np.all(np.abs(draws - 1.3 * x) < 1)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, 2.0**31])
def test_a_scale_out_of_range_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        conditional_round(np.ones(3), scale, 1.0, np.random.default_rng(0))


def test_the_adaptive_clip_finds_the_quantile_of_the_norms() -> None:
    """Andrew et al.: the clip goes to the quantile at a geometric pace, from above and from below."""
    norms = np.random.default_rng(2).lognormal(1.0, 0.7, 5000)
    for start, quantile in [(0.05, 0.5), (400.0, 0.5), (1.0, 0.8)]:
        clip = AdaptiveClip(clip=start, quantile=quantile)
        for _ in range(200):
            clip = clip.updated(sum(clip.vote(norm) for norm in norms[:500]), 500)
        assert np.mean(norms[:500] <= clip.clip) == pytest.approx(quantile, abs=0.02)


def test_one_step_of_the_adaptive_clip_is_the_papers() -> None:
    assert AdaptiveClip(2.0).updated(votes=30, voters=100).clip == pytest.approx(2 * math.exp(-0.2 * (0.65 - 0.5)))
    assert AdaptiveClip(2.0).updated(votes=1e9, voters=100).clip == pytest.approx(2 * math.exp(-0.1))


def test_update_and_votes_together_cost_what_was_asked() -> None:
    """Two Gaussians on one sample: their squared inverse multipliers add."""
    z, votes_std = 0.8, 10.0
    update = clipping.update_multiplier(z, votes_std)
    assert update**-2 + votes_std**-2 == pytest.approx(z**-2)
    assert update > z
    with pytest.raises(ConfigError, match="votes_std"):
        clipping.update_multiplier(1.0, 0.9)
