"""Rounded Gaussians of large sigma: a table finds a cell of K = 2^j whole numbers, rejection the place inside it.

Cell c holds cK .. cK + K - 1, with sigma / K in 32..64: some 1,800 entries at most, whatever sigma is. A uniform place
x of the cell stays with probability P(x) / P(near), near being the cell's end next to 0; else another is drawn, in
the same cell. So samples are exact but for the table's 2^-128 an entry and the 108 bits that accept or refuse.

With t = (x^2 - near^2) / 2 sigma^2, exp(-t) <= P(x) / P(near) <= exp(-t + t / 4 sigma^2): P(k) exp(k^2 / 2 sigma^2) is
E[cosh(k s / sigma^2) exp(-s^2 / 2 sigma^2)] over s in -1/2..1/2, whose logarithm grows with k by at most
k s^2 / sigma^4. So floats decide all but one place in some 10^8; there the quotient is taken in 60-digit decimals.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from functools import partial
from itertools import accumulate, count

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError
from edge_runtime.privacy import pmf
from edge_runtime.privacy.words import Lookup, Samples, Source, Words, in_chunks

NARROWEST = 2048  # sigma; what `_DOUBT` rests on
_PLACE_BITS = 20  # of a word, for the place; K is 2^19 at most. The other 44 accept or refuse it
_ONE = 2.0**44
_FLOAT_ERROR = 2.0  # of 2^44 exp(-t) in float64, and of cutting a word to 44 bits: below 1/8 and 1
_DOUBT = 1 + 2.0**-24  # above exp(t / 4 sigma^2): t < 15 K / sigma < 1/2


class CellSampler:
    """round(N(0, sigma^2)) for sigma = `parameter`, exact decimal text, from 2048 on; as a `TableSampler` samples."""

    __slots__ = ("_cells", "_half", "_scale", "_sigma", "kind", "parameter", "total_variation", "width")

    def __init__(self, parameter: str) -> None:
        self.kind, self.parameter = "rounded_gaussian", parameter
        self._sigma = pmf.exact_parameter(self.kind, parameter)
        if self._sigma < NARROWEST:
            raise ConfigError(f"rounded_gaussian sigma = {parameter}: cells need {NARROWEST} or more; use a table")
        self.width = 1 << next(j for j in count() if self._sigma < 64 << j)
        with pmf.digits():
            weights = pmf.cell_weights(self._sigma, self.width)
            unit = Decimal(2) ** 128 / sum(weights)
            self._cells = Lookup(int(unit * reached) for reached in accumulate(weights[:-1]))
        self._half = len(weights) // 2
        self._scale = -1 / (2 * float(self._sigma) ** 2)
        # A place's probability is off by 2^-108 of one that averages above 1/2; the tail is in the outermost cells.
        self.total_variation = 2 * self._half * 2.0**-128 + 2.0**-106 + 2.0**-pmf.NEGLIGIBLE

    def sample(self, count: int, key: bytes) -> Samples:
        """`count` independent samples, int64; the same key gives the same samples."""
        return in_chunks(count, key, self._draw)

    def accept(self, x: Samples, near: Samples, upper: Words, lower: Callable[[], Words]) -> NDArray[np.bool_]:
        """Whether the uniform (2^64 `upper` + `lower()`) / 2^108 lies below P(x) / P(near), element by element.

        `upper` has 44 bits; `lower` is asked only where bounds in floats leave it open.
        """
        chance = np.exp(((x - near) * (x + near)) * self._scale)
        chance *= _ONE
        drawn = upper.astype(np.float64)
        accepted: NDArray[np.bool_] = drawn <= chance - _FLOAT_ERROR
        unsure = np.flatnonzero(~accepted & (drawn <= chance * _DOUBT + _FLOAT_ERROR))
        if unsure.size:
            second = lower()
            for i in unsure:
                accepted[i] = self._below_quotient(int(upper[i]) << 64 | int(second[i]), int(x[i]), int(near[i]))
        return accepted

    def _below_quotient(self, drawn: int, x: int, near: int) -> bool:
        with pmf.digits():
            here, there = (pmf.rounded_weight(k, self._sigma) for k in (x, near))
            return drawn * there < here * 2**108

    def _draw(self, size: int, source: Source) -> Samples:
        cells = self._cells.find(source(0, size), partial(source, 1, size)) - self._half
        first = cells * self.width
        near = first + (cells < 0) * (self.width - 1)
        samples, left = first.copy(), np.arange(size)
        for attempt in count(1):
            word = source(2 * attempt, left.size)
            x = first[left] + (word & np.uint64(self.width - 1)).astype(np.int64)
            lower = partial(source, 2 * attempt + 1, left.size)
            stays = self.accept(x, near[left], word >> np.uint64(_PLACE_BITS), lower)
            samples[left[stays]] = x[stays]
            left = left[~stays]
            if not left.size:
                break
        return samples
