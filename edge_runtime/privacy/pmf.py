"""Symmetric distributions on the whole numbers, as weights in 60-digit decimal arithmetic.

Each row of `PMFS` gives w(0), w(1), ..., w(n), proportional to the probabilities of 0, +-1, ..., +-n, where all that
lies beyond n has a probability below 2^-140. A weight's own error stays below 1e-45 of the total.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext

from edge_runtime.errors import ConfigError

NEGLIGIBLE = 140  # bits: 2^-140 is what lies beyond the last weight
_LONGEST = 64  # characters of a parameter's text; it may come from a peer


def digits() -> AbstractContextManager[Context]:
    """60 decimal digits, whatever the caller's own decimal context is."""
    return localcontext(Context(prec=60, traps=[DivisionByZero, InvalidOperation, Overflow]))


@dataclass(frozen=True, slots=True)
class Pmf:
    """One row: the parameter's name, its range, and the weights it gives."""

    parameter: str
    low: Decimal
    high: Decimal
    weights: Callable[[Decimal], list[Decimal]]


def exact_parameter(kind: str, text: str) -> Decimal:
    """The number that `text` says, exactly; ConfigError if there is no such kind, or it is outside the kind's range."""
    if kind not in PMFS:
        raise ConfigError(f"noise {kind!r}: must be one of {', '.join(PMFS)}")
    pmf = PMFS[kind]
    try:
        value = Decimal(text) if len(text) <= _LONGEST else Decimal("NaN")
    except InvalidOperation:
        value = Decimal("NaN")
    if not (value.is_finite() and pmf.low <= value <= pmf.high):
        shown = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
        raise ConfigError(f"{kind} {pmf.parameter} = {shown!r}: must be a decimal number, {pmf.low} to {pmf.high}")
    return value


def weights(kind: str, text: str) -> list[Decimal]:
    """w(0), ..., w(n) of the distribution `kind` whose parameter is exactly what `text` says."""
    value = exact_parameter(kind, text)
    with digits():
        return PMFS[kind].weights(value)


def _discrete_gaussian(sigma: Decimal) -> list[Decimal]:
    """w(k) = exp(-k^2 / 2 sigma^2), by w(k+1) / w(k) = exp(-(2k+1) / 2 sigma^2)."""
    ratio = (-1 / (2 * sigma * sigma)).exp()
    shrink = ratio * ratio
    found = [Decimal(1)]
    for _ in range(_gaussian_reach(sigma)):
        found.append(found[-1] * ratio)
        ratio *= shrink
    return found


def _rounded_gaussian(sigma: Decimal) -> list[Decimal]:
    """w(k) = integral of exp(-x^2 / 2 sigma^2) over k - 1/2 to k + 1/2."""
    return [_bump_area(Decimal(k), height, sigma * sigma) for k, height in enumerate(_discrete_gaussian(sigma))]


def rounded_weight(k: int, sigma: Decimal) -> Decimal:
    """w(k) of the rounded Gaussian alone."""
    return _bump_area(Decimal(k), (-k * k / (2 * sigma * sigma)).exp(), sigma * sigma)


def cell_weights(sigma: Decimal, width: int) -> list[Decimal]:
    """Of the rounded Gaussian: the weights of cK .. cK + K - 1 for c = -n..n-1, K = `width`, all in one unit."""
    half, square = Decimal("0.5"), (sigma / width) ** 2
    cells = -(-_gaussian_reach(sigma) // width)
    middles = [c + half - half / width for c in range(-cells, cells)]
    return [_bump_area(middle, (-middle * middle / (2 * square)).exp(), square) for middle in middles]


def _bump_area(middle: Decimal, height: Decimal, square: Decimal) -> Decimal:
    """The integral of exp(-x^2 / 2 s^2) over middle -+ 1/2, by the Taylor series there; `height` is its first term.

    With a_n the coefficients: a_(n+1) = -(middle a_n + a_(n-1)) / (s^2 (n+1)); odd powers integrate to nothing.
    """
    smallest = Decimal(10) ** -50 * height
    before, current = Decimal(0), height
    area, width, n = Decimal(0), Decimal(1), 0  # width = 2 (1/2)^(n+1)
    while n < 6 or max(abs(before), abs(current)) * width > smallest:
        if n % 2 == 0:
            area += current * width / (n + 1)
        before, current = current, -(middle * current + before) / (square * (n + 1))
        width /= 2
        n += 1
    return area


def _skellam(mu: Decimal) -> list[Decimal]:
    """w(k) = I_k(mu), the difference of two Poisson variables of mean mu / 2, so of variance mu.

    By I_(k-1) = I_(k+1) + (2k / mu) I_k from far beyond the tail down (Miller 1952): upwards it would be unstable.
    """
    reach = _skellam_reach(float(mu), NEGLIGIBLE)
    above, current = Decimal(0), Decimal(10) ** -400
    found = []
    for k in range(_skellam_reach(float(mu), 3 * NEGLIGIBLE) + 16, 0, -1):
        above, current = current, above + 2 * k * current / mu
        found.append(current)
    return found[::-1][: reach + 1]


def _gaussian_reach(sigma: Decimal) -> int:
    """P(|x| > r) < 2 exp(-r^2 / 2 sigma^2), for sigma's continuous and discrete Gaussian; two more for the rounding."""
    return math.ceil(float(sigma) * math.sqrt(2 * math.log(2) * (NEGLIGIBLE + 1))) + 2


def _skellam_reach(mu: float, bits: int) -> int:
    """Chernoff: P(|x| > r) <= 2 exp(-r asinh(r / mu) + sqrt(r^2 + mu^2) - mu)."""
    reach = 4
    while reach * math.asinh(reach / mu) - reach * reach / (math.hypot(reach, mu) + mu) < (bits + 1) * math.log(2):
        reach += max(1, reach // 16)
    return reach


PMFS = {
    "discrete_gaussian": Pmf("sigma", Decimal("0.05"), Decimal(16384), _discrete_gaussian),
    "rounded_gaussian": Pmf("sigma", Decimal(1), Decimal(2**24), _rounded_gaussian),
    "skellam": Pmf("mu", Decimal("0.01"), Decimal(2**28), _skellam),
}
