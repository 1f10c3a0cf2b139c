"""How much one client can move a sum: clipping, a clip that finds itself, and rounding that keeps the bound.

Sensitivity is of adding or removing one client. All bounds hold for every input, not with some probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from edge_runtime.config import check, key
from edge_runtime.errors import ConfigError, NumericsError

Vector = NDArray[np.float64]

DRAWS = 100  # each fits with probability 1 - BETA at least: all fail once in 10^21
BETA = math.exp(-0.5)
LARGEST = 2.0**30  # scale * clip: keeps the sum of squares inside int64


def clip_by_norm(x: NDArray[np.floating], clip: float) -> Vector:
    """The vector x times min(1, clip / |x|), float64, never longer than `clip`; NumericsError if x is not finite."""
    if not (math.isfinite(clip) and clip > 0):
        raise ConfigError(f"clip = {clip}: must be a number above 0")
    values = np.array(x, np.float64)
    largest = float(np.abs(values).max(initial=0.0))
    if not math.isfinite(largest):
        raise NumericsError("update holds NaN or infinity, so it has no norm to clip; leave this client out")
    inside = clip * (1 - 2.0**-30)  # more than float rounding of the norm, in any order of its sum, can hide
    if _norm(values) > inside:
        values /= largest
        values *= inside / _root_sum_squares(values)
    return values


def is_within(x: NDArray[np.floating], clip: float) -> bool:
    """Whether |x| <= clip: what a client's vote says to `AdaptiveClip`."""
    with np.errstate(over="ignore"):  # then the norm is infinite, which is the right answer
        return math.sqrt(np.square(x, dtype=np.float64).sum()) <= clip


def _norm(values: Vector) -> float:
    """|values|, also where its square would not fit in a float."""
    largest = float(np.abs(values).max(initial=0.0))
    return largest * _root_sum_squares(values / largest) if largest else 0.0


def _root_sum_squares(values: Vector) -> float:
    """Not np.linalg.norm: that wakes all threads of BLAS, for 40 times the CPU at 60,000 values."""
    return math.sqrt(np.square(values).sum())


@dataclass(frozen=True, slots=True)
class AdaptiveClip:
    """A clip that follows the `quantile` of the clients' norms (Andrew, Thakkar, McMahan, Ramaswamy 2021).

    Each client votes +1 if its norm is at most the clip, else -1; the noisy sum b of n votes moves the clip to
    clip * exp(-rate * ((b / n + 1) / 2 - quantile)). One vote moves b by 1: it is summed and noised like a coordinate.
    """

    clip: float = key(1.0, above=0)
    quantile: float = key(0.5, low=0, high=1)
    rate: float = key(0.2, above=0, high=1)

    def __post_init__(self) -> None:
        check(self)

    def vote(self, norm: float) -> int:
        return 1 if norm <= self.clip else -1

    def updated(self, votes: float, voters: float) -> AdaptiveClip:
        """The next round's clip, from the noisy sum of `voters` votes."""
        below = min(1.0, max(0.0, (votes / voters + 1) / 2))
        return replace(self, clip=self.clip * math.exp(-self.rate * (below - self.quantile)))


def update_multiplier(noise_multiplier: float, votes_std: float) -> float:
    """The update's noise multiplier that leaves update and votes together as private as `noise_multiplier` alone.

    (z^-2 - s^-2)^(-1/2), for noise of standard deviation s on the sum of +-1 votes; s = n / 10 is the paper's choice.
    The round is one event with `noise_multiplier`: two, one for each part, would cost too little where clients are
    sampled, because both parts see the same sample.
    """
    if votes_std <= noise_multiplier:
        raise ConfigError(
            f"votes_std = {votes_std}: must be above the noise multiplier {noise_multiplier}; cohort / 10 is usual"
        )
    return 1 / math.sqrt(noise_multiplier**-2 - votes_std**-2)


def l2_bound(scale: float, clip: float, dimension: int) -> float:
    """Delta_2: the longest a vector may be after `conditional_round` (Kairouz, Liu, Steinke 2021).

    min(sc + sqrt d, sqrt((sc)^2 + d/4 + sqrt(2 ln 1/beta) (sc + sqrt(d)/2))), with beta = e^-1/2.
    """
    length = scale * clip
    if not 0 < length <= LARGEST:
        raise ConfigError(f"scale * clip = {length}: must be above 0 and at most 2^30; lower the scale")
    root = math.sqrt(dimension)
    likely = length**2 + dimension / 4 + math.sqrt(2 * math.log(1 / BETA)) * (length + root / 2)
    return min(length + root, math.sqrt(likely))


def l1_bound(l2: float, dimension: int) -> float:
    """Delta_1 of a whole-number vector with Delta_2 = `l2`: a whole number is at most its own square."""
    return l2 * min(math.sqrt(dimension), l2)


def conditional_round(
    x: NDArray[np.floating], scale: float, clip: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Clip x, multiply by `scale`, round each value up or down at random, unbiased; redraw what exceeds `l2_bound`.

    Conditioning leaves a slight bias. Should no draw fit, values are cut towards zero, which always fits. Privacy rests
    on the bound, not on `rng`: it holds for every x and every draw.
    """
    bound = l2_bound(scale, clip, x.size)
    most = math.floor(Fraction(bound) ** 2)  # exact: no float comparison at the edge
    scaled = clip_by_norm(x, clip) * scale
    below = np.floor(scaled)
    fraction = scaled - below
    for _ in range(DRAWS):
        rounded = (below + (rng.random(scaled.shape) < fraction)).astype(np.int64)
        if int(np.vdot(rounded, rounded)) <= most:
            return rounded
    return np.trunc(scaled).astype(np.int64)
