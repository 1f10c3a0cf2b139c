"""Whole-number noise from a table, exact to a stated total variation; no float touches it (Mironov 2012).

A sample is the number of table entries that a 128-bit uniform word u reaches, less the radius R: entry i of 2R holds
2^128 P(x <= i - R), rounded down. Total variation from the exact distribution: at most (R + 1) 2^-128 + P(|x| > R), and
R is chosen for P(|x| > R) <= 2^-110. The upper 64 bits of u decide by binary search, but for one draw in some 2^64 / 2R
that meets an entry's own upper half; only there the lower 64 bits are drawn.

Words are ChaCha20 keystream. A key makes one vector of noise: 32 bytes from the operating system, used once, told to
nobody. Neither the search nor the arithmetic runs in constant time.

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

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError
from edge_runtime.privacy import pmf

Words = NDArray[np.uint64]
Samples = NDArray[np.int64]

KEY_BYTES = 32
CHUNK = 1 << 15  # words at once: 256 KiB of keystream stay in the L2 cache
_TAIL = Decimal(2) ** -110
_ZEROS = bytes(8 * CHUNK)


class TableSampler:
    """One distribution's table: `kind` is a row of `pmf.PMFS`, `parameter` its sigma or mu as exact decimal text."""

    __slots__ = ("_high", "_low", "kind", "parameter", "radius", "total_variation")

    def __init__(self, kind: str, parameter: str) -> None:
        entries, tail = _entries(pmf.weights(kind, parameter))
        self.kind, self.parameter, self.radius = kind, parameter, len(entries) // 2
        self.total_variation = math.nextafter(float((self.radius + 1) * Decimal(2) ** -128 + tail), 1.0)
        self._high = np.array([entry >> 64 for entry in entries], np.uint64)
        self._low = np.array([entry & (1 << 64) - 1 for entry in entries], np.uint64)

    def sample(self, count: int, key: bytes) -> Samples:
        """`count` independent samples, int64; the same key gives the same samples."""
        if len(key) != KEY_BYTES:
            raise ConfigError(f"noise key: must be {KEY_BYTES} bytes, not {len(key)}; take them from os.urandom")
        samples = np.empty(count, np.int64)
        words = np.empty(min(count, CHUNK), "<u8")
        for chunk, start in enumerate(range(0, count, CHUNK)):
            part = samples[start : start + CHUNK]
            _keystream(key, chunk, 0, words[: part.size])
            part[:] = self.look_up(words[: part.size], partial(_lower_words, key, chunk, part.size))
        return samples

    def look_up(self, upper: Words, lower: Callable[[], Words]) -> Samples:
        """The samples for the uniform words 2^64 `upper` + `lower()`; `lower` is asked only if it matters."""
        reached = np.searchsorted(self._high, upper, side="right")
        undecided = np.flatnonzero(self._high[np.maximum(reached, 1) - 1] == upper)
        if undecided.size:
            second = lower()
            first_equal = np.searchsorted(self._high, upper, side="left")
            for i in undecided:
                equal = self._low[first_equal[i] : reached[i]]
                reached[i] = first_equal[i] + np.searchsorted(equal, second[i], side="right")
        return reached - self.radius


@lru_cache(maxsize=16)
def table(kind: str, parameter: str) -> TableSampler:
    """`TableSampler(kind, parameter)`, kept: a table of 10,000 entries takes tens of milliseconds to make."""
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


def _keystream(key: bytes, chunk: int, stream: int, out: Words) -> None:
    """Fill `out` with the words of one chunk. The nonce holds chunk and stream, so no two chunks share keystream."""
    nonce = bytes(8) + chunk.to_bytes(4, "little") + stream.to_bytes(4, "little")
    encryptor = Cipher(ChaCha20(key, nonce), mode=None).encryptor()
    encryptor.update_into(memoryview(_ZEROS)[: out.nbytes], out.data.cast("B"))


def _lower_words(key: bytes, chunk: int, count: int) -> Words:
    words = np.empty(count, "<u8")
    _keystream(key, chunk, 1, words)
    return words
