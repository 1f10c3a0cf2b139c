"""Signed values side by side in uint64 words, so that sums of words are sums of values.

With L = floor(64 / b) lanes of b bits, lane j of word i holds value i L + j:

    word_i = sum_j q_{i L + j} 2^(b j)  mod 2^64

Sums of words mod 2^64 unpack to the exact sums of values while each sum fits in b bits. A sum that does not is off by
a multiple of 2^b, and the lane above it by the number of wraps; nothing else changes, and the words do not show it:
`Lanes.fits` rules it out beforehand. On the wire a value costs 64 / L bits, so widths that fill a word
(8, 9, 10, 12, 16, 21, 32) are the good ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError

MIN_BITS, MAX_BITS = 2, 64
_BLOCK_WORDS = 2**13  # so that a block's values stay in the cache over the lanes


@dataclass(frozen=True, slots=True)
class Lanes:
    """`count` signed values of `bits` bits, 2 to 64."""

    bits: int
    count: int

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ConfigError(f"bits of a lane are {MIN_BITS} to {MAX_BITS}, got {self.bits}")
        if self.count < 0:
            raise ConfigError(f"a count of values is 0 or more, got {self.count}")

    @property
    def per_word(self) -> int:
        return 64 // self.bits

    @property
    def words(self) -> int:
        """How many uint64 words hold the values."""
        return -(-self.count // self.per_word)

    @property
    def wire_bits(self) -> float:
        """Bits a value costs on the wire."""
        return 64 / self.per_word

    @property
    def max_value(self) -> int:
        """The largest value or sum of a lane; the smallest is `-max_value - 1`."""
        return (1 << self.bits - 1) - 1

    def fits(self, n: int, max_abs: int, max_weight: int = 1) -> bool:
        """Whether n values of up to max_abs, each times a weight of up to max_weight, and the weights, cannot wrap."""
        return n * max(max_abs, 1) * max_weight <= self.max_value

    def wrapped(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The values modulo 2^bits, in -2^(bits - 1)..2^(bits - 1) - 1."""
        return (values << 64 - self.bits) >> 64 - self.bits

    def pack(self, values: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The words of int64 values of shape (count,).

        Raises:
            ValueError: another dtype or shape, or a value that does not fit in its lane.

        """
        self._check(values, "values", np.int64, self.count)
        if values.size and not -self.max_value - 1 <= values.min() <= values.max() <= self.max_value:
            raise ValueError(
                f"values of {values.min()} to {values.max()} do not fit in lanes of {self.bits} bits; "
                "take a smaller scale or wider lanes"
            )
        words = np.zeros(self.words, np.uint64)
        lanes = np.ascontiguousarray(values).view(np.uint64)  # two's complement: negative values are right mod 2^64
        for first in range(0, self.words, _BLOCK_WORDS):
            block = words[first : first + _BLOCK_WORDS]
            for j in range(self.per_word):
                lane = lanes[first * self.per_word + j : (first + block.size) * self.per_word : self.per_word]
                block[: lane.size] += lane << np.uint64(self.bits * j)
        return words

    def unpack(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The values, or sums of values, of uint64 words of shape (words,).

        With H = sum_j 2^(b - 1) 2^(b j), every lane of word + H is a value + 2^(b - 1) that is not negative, so lanes
        no longer borrow from each other; XOR with H makes that two's complement again.

        Raises:
            ValueError: another dtype or shape.

        """
        self._check(words, "words", np.uint64, self.words)
        offset = np.uint64(sum(1 << self.bits * (j + 1) - 1 for j in range(self.per_word)))
        values = np.empty(self.count, np.int64)
        for first in range(0, self.words, _BLOCK_WORDS):
            block = (words[first : first + _BLOCK_WORDS] + offset) ^ offset
            for j in range(self.per_word):
                lane = values[first * self.per_word + j : (first + block.size) * self.per_word : self.per_word]
                top = (block[: lane.size] << np.uint64(64 - self.bits * (j + 1))).view(np.int64)
                np.right_shift(top, 64 - self.bits, out=lane)  # arithmetic: copies the sign
        return values

    def wrap(self, values: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        """The values `wrapped`, and how many of them that changed: noise, whose tails may leave the lane, does that."""
        wrapped = self.wrapped(values)
        return wrapped, int(np.count_nonzero(wrapped != values))

    def _check(self, array: NDArray[np.generic], name: str, dtype: type[np.generic], size: int) -> None:
        if array.dtype != dtype or array.shape != (size,):
            raise ValueError(
                f"{name} must be {np.dtype(dtype)} of shape ({size},), got {array.dtype} of shape {array.shape}"
            )
