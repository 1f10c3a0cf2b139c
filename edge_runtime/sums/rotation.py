"""The rotation that all clients of a round share: it spreads an update's energy evenly over its coordinates.

    R x = H D P x        P a permutation, D signs, H the orthonormal Walsh-Hadamard matrix in blocks of 512

R keeps lengths and makes coordinates look Gaussian, of standard deviation |x| / sqrt(padded): so one grid and one
modulus fit all updates. P deals every run of values out to all blocks, for updates whose energy sits in few tensors,
and each run from a random block on, for those whose energy sits at regular distances. (Energy in fewer values than
there are blocks stays in few blocks.) Of R x a random share may travel alone, the same coordinates from every client.

All in float64: to a length, rounding adds at most 1e-14 of it, for which `clip_by_norm` leaves room.
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
_SIGNS, _STARTS, _KEPT = (stream << 64 for stream in range(3))  # above the seed's bits: independent draws


class Rotation:
    """R for vectors of `size` values, of whose coordinates `kept` travel. All of it follows from the 64-bit seed."""

    __slots__ = ("_kept", "_signs", "_starts", "kept", "padded", "size")

    def __init__(self, seed: int, size: int, kept: int) -> None:
        self.size, self.kept, self.padded = size, kept, padded_size(size)
        flips = np.unpackbits(words(seed + _SIGNS, self.padded // 32).view(np.uint8), bitorder="little")
        self._signs = 1 - 2 * flips.view(np.int8)
        self._starts = (words(seed + _STARTS, BLOCK) % np.uint32(self.padded // BLOCK)).tolist()
        self._kept = random_positions(seed + _KEPT, self.padded, kept) if kept < self.padded else slice(None)

    def apply(self, x: Vector) -> Vector:
        """The coordinates of R x that travel, shape (kept,). x has the shape (size,)."""
        runs = np.zeros(self.padded)
        runs[: self.size] = x
        coordinates = self._dealt(runs)
        coordinates *= self._signs
        return _hadamard(coordinates)[self._kept]

    def undo(self, y: Vector) -> Vector:
        """R^-1 of the coordinates y, zeros where none travelled; shape (size,). A scale for these is the caller's."""
        coordinates = np.zeros(self.padded)
        coordinates[self._kept] = y
        coordinates = _hadamard(coordinates)
        coordinates *= self._signs
        return self._gathered(coordinates)[: self.size]

    def _dealt(self, values: Vector) -> Vector:
        """P: 512 runs, each turned round to its start; block b holds what stands at place b in every run."""
        runs = values.reshape(BLOCK, -1)
        turned = np.empty_like(runs)
        for run, into, start in zip(runs, turned, self._starts, strict=True):
            split = run.size - start
            into[:split], into[split:] = run[start:], run[:start]
        return np.ascontiguousarray(turned.T).reshape(-1)

    def _gathered(self, coordinates: Vector) -> Vector:
        """The inverse of P."""
        turned = np.ascontiguousarray(coordinates.reshape(-1, BLOCK).T)
        runs = np.empty_like(turned)
        for run, out, start in zip(turned, runs, self._starts, strict=True):
            split = run.size - start
            out[start:], out[:start] = run[:split], run[split:]
        return runs.reshape(-1)


def _hadamard(values: Vector) -> Vector:
    """H times the values; its own inverse. Overwrites them."""
    blocks = values.reshape(-1, BLOCK)
    for first in range(0, len(blocks), _AT_ONCE):
        part = blocks[first : first + _AT_ONCE]
        part[...] = walsh_hadamard(part)
    values /= math.sqrt(BLOCK)
    return values
