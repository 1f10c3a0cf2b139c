"""Whole-number noise from a table, exact to a stated total variation; no float touches it (Mironov 2012).

A sample is the number of table entries that a 128-bit uniform word u reaches, less the radius R: entry i of 2R holds
2^128 P(x <= i - R), rounded down. Total variation from the exact distribution: at most (R + 1) 2^-128 + P(|x| > R), and
R is chosen for P(|x| > R) <= 2^-110. Wide rounded Gaussians come from `cells`, whose table stays small.

    rounded_gaussian     round(N(0, sigma^2)): on a sum of whole numbers, exactly the Gaussian mechanism, then rounding
    discrete_gaussian    P(k) ~ exp(-k^2 / 2 sigma^2) (Canonne, Kamath, Steinke 2020)
    skellam              Poisson(mu / 2) - Poisson(mu / 2), variance mu (Agarwal, Kairouz, Liu 2021); sums stay Skellam
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache, partial
from itertools import accumulate

from edge_runtime.errors import ConfigError
from edge_runtime.privacy import pmf
from edge_runtime.privacy.cells import NARROWEST, CellSampler
from edge_runtime.privacy.words import Lookup, Samples, Source, Words, in_chunks

WIDEST = 16384  # sigma of a plain table: some 400,000 entries, made in seconds
_TAIL = Decimal(2) ** -110


class TableSampler:
    """One distribution's table: `kind` is a row of `pmf.PMFS`, `parameter` its sigma or mu as exact decimal text."""

    __slots__ = ("kind", "parameter", "radius", "reached", "total_variation")

    def __init__(self, kind: str, parameter: str) -> None:
        if kind == "rounded_gaussian" and pmf.exact_parameter(kind, parameter) > WIDEST:
            raise ConfigError(
                f"rounded_gaussian sigma = {parameter}: must be at most {WIDEST} in a plain table; use cells"
            )
        entries, tail = _entries(pmf.weights(kind, parameter))
        self.kind, self.parameter, self.radius = kind, parameter, len(entries) // 2
        self.total_variation = math.nextafter(float((self.radius + 1) * Decimal(2) ** -128 + tail), 1.0)
        self.reached = Lookup(entries)

    def sample(self, count: int, key: bytes) -> Samples:
        """`count` independent samples, int64; the same key gives the same samples."""
        return in_chunks(count, key, self._draw)

    def look_up(self, upper: Words, lower: Callable[[], Words]) -> Samples:
        """The samples for the uniform words 2^64 `upper` + `lower()`; `lower` is asked only if it matters."""
        return self.reached.find(upper, lower) - self.radius

    def _draw(self, size: int, source: Source) -> Samples:
        return self.look_up(source(0, size), partial(source, 1, size))


Sampler = TableSampler | CellSampler


@lru_cache(maxsize=16)
def table(kind: str, parameter: str) -> Sampler:
    """The sampler of one distribution, kept: a table of 10,000 entries takes tens of milliseconds to make."""
    if kind == "rounded_gaussian" and pmf.exact_parameter(kind, parameter) >= NARROWEST:
        return CellSampler(parameter)
    return TableSampler(kind, parameter)


def discrete_gaussian(sigma: str, count: int, key: bytes) -> Samples:
    return table("discrete_gaussian", sigma).sample(count, key)


def rounded_gaussian(sigma: str, count: int, key: bytes) -> Samples:
    return table("rounded_gaussian", sigma).sample(count, key)


def skellam(mu: str, count: int, key: bytes) -> Samples:
    return table("skellam", mu).sample(count, key)


def _entries(weights: list[Decimal]) -> tuple[list[int], Decimal]:
    """2^128 P(x <= k) for k = -R..R-1, rounded down, with all that lies beyond R put at R and -R; and P(|x| > R)."""
    with pmf.digits():
        total = 2 * sum(weights) - weights[0]
        radius, tail = len(weights) - 1, Decimal(2) ** -pmf.NEGLIGIBLE
        while radius > 1 and tail + 2 * weights[radius] / total <= _TAIL:
            tail += 2 * weights[radius] / total
            radius -= 1
        unit = Decimal(2) ** 128 / total
        half = [weight * unit for weight in weights[: radius + 1]]
        half[radius] += tail / 2 * Decimal(2) ** 128
        return [int(reached) for reached in accumulate([*half[:0:-1], *half[:-1]])], tail
