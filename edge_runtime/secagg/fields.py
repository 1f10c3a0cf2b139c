"""The fields GF(2^8) and GF(2^16) as tables of logarithms; addition is XOR.

    GF(2^8)  = GF(2)[x] / (x^8 + x^4 + x^3 + x + 1)      (0x11b, generator 3; FIPS 197 section 4)
    GF(2^16) = GF(2^8)[y] / (y^2 + y + 0x20)             (word = low byte + high byte * y)

The larger field is built on the smaller: a word below 256 is the same element in both, and such an element times a
word is that element times each of the word's bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Elements = NDArray[Any]  # unsigned, each an index of the tables

_REDUCTION = 0x11B
_WIDE_GENERATOR = 0x108  # the least whose powers reach all of GF(2^16) but zero
_Y_SQUARED = 0x20  # y^2 = y + 0x20: of absolute trace 1, so y^2 + y + 0x20 has no root in GF(2^8)


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A field of 2^bits elements; all operations are elementwise and broadcast.

    exp[log[a] + log[b]] is the product of any a and b: log[0] is so large that sums with it reach exp's zeros.
    """

    dtype: np.dtype[Any]
    log: NDArray[np.intp]
    exp: Elements

    @property
    def order(self) -> int:
        """How many elements are not zero."""
        return self.log.size - 1

    def multiply(self, a: Elements, b: Elements) -> Elements:
        product: Elements = self.exp[self.log[a] + self.log[b]]
        return product


@cache
def gf256() -> Field:
    powers = [1]
    for _ in range(254):
        doubled = powers[-1] << 1
        powers.append(powers[-1] ^ (doubled ^ _REDUCTION if doubled > 255 else doubled))  # times 3 = x + 1
    return _field(np.array(powers, np.uint8))


@cache
def gf65536() -> Field:
    small, powers, size = gf256(), np.ones(1 << 16, np.int64), 1
    factor = powers[:1] * _WIDE_GENERATOR
    while size < powers.size:  # powers holds g^0 to g^(size - 1), factor is g^size
        powers[size : 2 * size] = _times(factor, powers[:size], small)
        factor = _times(factor, factor, small)
        size *= 2
    return _field(powers[:-1].astype("<u2"))


def _times(a: NDArray[np.int64], b: NDArray[np.int64], small: Field) -> NDArray[np.int64]:
    """(a0 + a1 y)(b0 + b1 y) = (a0 b0 + 0x20 a1 b1) + (a0 b1 + a1 b0 + a1 b1) y."""
    a0, a1, b0, b1 = a & 255, a >> 8, b & 255, b >> 8
    times = small.multiply
    square = times(a1, b1)
    low = times(a0, b0) ^ times(np.array(_Y_SQUARED), square)
    high = times(a0, b1) ^ times(a1, b0) ^ square
    product: NDArray[np.int64] = low.astype(np.int64) | high.astype(np.int64) << 8
    return product


def _field(powers: Elements) -> Field:
    order = powers.size
    log = np.full(order + 1, 2 * order, np.intp)
    log[powers] = np.arange(order)
    exp = np.zeros(4 * order + 1, powers.dtype)
    exp[: 2 * order] = np.tile(powers, 2)
    return Field(powers.dtype, log, exp)
