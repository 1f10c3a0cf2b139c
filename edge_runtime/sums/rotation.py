"""The rotation that all clients of a round share: it spreads an update's energy evenly over its coordinates.

    R x = H D P x        P a permutation, D signs, H the orthonormal Walsh-Hadamard matrix in blocks of 512

R keeps lengths and makes coordinates look Gaussian, of standard deviation |x| / sqrt(padded), whatever x is: so one
grid and one modulus fit all of them. P is for updates whose energy sits in few tensors, hence in few blocks. Of R x a
random share of the coordinates may travel alone, the same ones from every client.

All in float64: of a length, rounding may add 1e-14, which `clip_by_norm` leaves room for.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_runtime.secagg.plan import BLOCK, padded_size
from edge_runtime.updates.rotate import walsh_hadamard
from edge_runtime.updates.shared_random import words
from edge_runtime.updates.sparsify import random_positions

Vector = NDArray[np.float64]

_AT_ONCE = 64  # blocks, so that they stay in the cache
_SIGNS, _ORDER, _KEPT = (stream << 64 for stream in range(3))  # above the seed's bits: independent draws


class Rotation:
    """R for vectors of `size` values, of whose coordinates `kept` travel. All of it follows from the 64-bit seed."""

    __slots__ = ("_kept", "_order", "_signs", "kept", "padded", "size")

    def __init__(self, seed: int, size: int, kept: int) -> None:
        self.size, self.kept, self.padded = size, kept, padded_size(size)
        flips = np.unpackbits(words(seed + _SIGNS, self.padded // 32).view(np.uint8), bitorder="little")
        self._signs = 1 - 2 * flips.view(np.int8)
        self._order = _permutation(seed + _ORDER, self.padded)
        self._kept = random_positions(seed + _KEPT, self.padded, kept) if kept < self.padded else slice(None)

    def apply(self, x: Vector) -> Vector:
        """The coordinates of R x that travel, shape (kept,). x has the shape (size,)."""
        spread = np.zeros(self.padded)
        spread[: self.size] = x
        spread = spread[self._order]
        spread *= self._signs
        return _hadamard(spread)[self._kept]

    def undo(self, y: Vector) -> Vector:
        """R^-1 of the coordinates y, zeros where none travelled; shape (size,). A scale for these is the caller's."""
        coordinates = np.zeros(self.padded)
        coordinates[self._kept] = y
        coordinates = _hadamard(coordinates)
        coordinates *= self._signs
        values = np.empty(self.padded)
        values[self._order] = coordinates
        return values[: self.size]


def _hadamard(values: Vector) -> Vector:
    """H times the values; its own inverse. Overwrites them."""
    blocks = values.reshape(-1, BLOCK)
    for first in range(0, len(blocks), _AT_ONCE):
        part = blocks[first : first + _AT_ONCE]
        part[...] = walsh_hadamard(part)
    values /= math.sqrt(BLOCK)
    return values


def _permutation(seed: int, count: int) -> NDArray[np.intp]:
    """0..count-1 in the order of random words. Each word ends in its own number, so that no two are equal."""
    low = np.uint64((count - 1).bit_length())
    keys = words(seed, 2 * count).view("<u8").astype(np.uint64, copy=False)
    keys = (keys >> low << low) | np.arange(count, dtype=np.uint64)
    keys.sort()
    return (keys & ((np.uint64(1) << low) - np.uint64(1))).astype(np.intp)
