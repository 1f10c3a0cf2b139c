"""Values rotated at random, so that they look Gaussian, then each as one of the best few levels for a Gaussian.

    4 bytes of seed, 1 byte of bits, 1 byte of rotations, one float32 scale per block, then `bits` bits per coordinate

A block is 4096 values of the flat vector. What is left over makes blocks of falling powers of two, and the last few
values a block of 128 with zeros: at most 127 coordinates more than values.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_runtime.config import key
from edge_runtime.kernels import vectors
from edge_runtime.updates.delta import FloatVector, TensorLayout
from edge_runtime.updates.shared_random import draw_seed, words
from edge_runtime.updates.stage import LARGEST, Coder, Reader, destination

F = TypeVar("F", np.float32, np.float64)

BLOCK, SMALLEST_BLOCK = 4096, 128
_CHUNK = 16  # blocks worked on at once, so that they stay in the cache

# The positive levels that give a unit Gaussian the least squared error (Lloyd 1982; Max 1960, table I).
LLOYD_MAX = {
    1: (0.797884561,),
    2: (0.452780035, 1.510417608),
    3: (0.245094179, 0.756005281, 1.343909279, 2.151945705),
    4: (0.12839503, 0.388048299, 0.656759119, 0.942340456, 1.256231197, 1.618046386, 2.069017227, 2.732589571),
}

# Undoing two rotations adds up at most BLOCK^2 levels: within this bound, what is decoded is finite.
_LARGEST_SCALE = LARGEST / (2 * BLOCK**2 * LLOYD_MAX[4][-1])


@dataclass(frozen=True)
class Hadamard(Coder):
    """Each block x as S R^-1 Q, with R x = H D x: random signs D that both sides draw, the Walsh-Hadamard matrix H.

    Q holds the Lloyd-Max level of every coordinate of R x over its rms. The scale S either has the least squared
    error, S = <R x, Q> / |Q|^2 (DRIVE, Vargaftik et al. 2021, arXiv:2105.08339, section 3), or makes the mean over
    rotations right, S = |x|^2 / <R x, Q> (EDEN, Vargaftik et al. 2022, arXiv:2108.08842, section 3). The proof of the
    latter wants a uniform rotation, which H D is not: where a few values hold the norm, the others come out as 0. So
    the unbiased form rotates twice, R = H D' H D, which makes any x look Gaussian; what bias is left, 500 draws do not
    show.

    The classical reference: rotation spends bits on making structured, heavy-tailed updates the worst source there is.
    """

    name = "hadamard"
    bits: int = key(1, low=1, high=4)
    unbiased: bool = key(False)

    @property
    def largest(self) -> float:
        # S is at most the largest value over the least level, by Cauchy-Schwarz and |y|_1 >= |y|_2.
        return _LARGEST_SCALE / 8

    def encode(self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator) -> bytes:
        blocks = list(_blocks(layout.size))
        rotation = _Rotation(draw_seed(rng), 2 if self.unbiased else 1, blocks[-1][0].stop if blocks else 0)
        levels = _levels(self.bits)
        scales: list[NDArray[np.float64]] = []
        q = np.zeros(rotation.size, np.uint8)
        for span, width in blocks:
            x = _padded(values[span], span).reshape(-1, width)
            _, exponents = np.frexp(np.abs(x).max(axis=1, keepdims=True))
            x = rotation.apply(np.ldexp(x, -exponents), span)  # at most 1 before, so nothing overflows
            index = q[span].reshape(x.shape)
            energy = _row_sums(x, x)
            _nearest_levels(x, np.sqrt(energy / width), levels, index)
            quantised = levels[index]
            product = _row_sums(x, quantised)
            if self.unbiased:
                scale = energy / np.where(product > 0, product, 1)
            else:
                scale = product / _row_sums(quantised, quantised)
            scales.append(np.ldexp(scale / width**rotation.count, exponents[:, 0]))
        header = struct.pack("<IBB", rotation.seed, self.bits, rotation.count)
        listed = np.concatenate(scales) if scales else np.empty(0)
        return header + listed.astype("<f4").tobytes() + vectors.pack_bits(q, self.bits).tobytes()

    def decode(self, reader: Reader, layout: TensorLayout, out: FloatVector | None) -> FloatVector:
        blocks = list(_blocks(layout.size))
        seed = reader.word("seed of hadamard")
        bits, rotations = reader.byte("bits of hadamard", 1, 4), reader.byte("rotations of hadamard", 1, 2)
        rotation = _Rotation(seed, rotations, blocks[-1][0].stop if blocks else 0)
        count = sum((span.stop - span.start) // width for span, width in blocks)
        scales = reader.floats("scales of hadamard", count, low=0, high=_LARGEST_SCALE)
        q = reader.bits("levels of hadamard", rotation.size, bits)
        levels, values, done = _levels(bits), destination(out, layout.size), 0
        for span, width in blocks:
            x = rotation.undo(levels[q[span]].reshape(-1, width), span)
            x *= scales[done : done + len(x), None]
            values[span] = x.ravel()[: layout.size - span.start]
            done += len(x)
        return values


def walsh_hadamard(blocks: NDArray[F]) -> NDArray[F]:
    """Each row of (n, 2^m) times the Hadamard matrix of +1 and -1: its own inverse but for the factor 2^m.

    Additions and subtractions in one fixed order, so the bits are the same everywhere. Overwrites `blocks`.
    """
    count, width = blocks.shape
    rows = 1 << (width.bit_length() - 1) // 2
    # H(rows * columns) = H(rows) x H(columns): butterflies between rows, then, turned around, between columns, so that
    # the innermost loop is long in both.
    square = blocks.reshape(count, rows, width // rows)
    _butterflies(square)
    turned = np.ascontiguousarray(square.transpose(0, 2, 1))
    _butterflies(turned)
    return np.ascontiguousarray(turned.transpose(0, 2, 1)).reshape(count, width)


def _butterflies(blocks: NDArray[F]) -> None:
    """The Walsh-Hadamard transform along axis 1 of contiguous (n, 2^m, inner), in place."""
    count, length, inner = blocks.shape
    half = 1
    while half < length:
        pairs = blocks.reshape(count, length // (2 * half), 2, half * inner)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        difference = first - second
        first += second
        second[...] = difference
        half *= 2


class _Rotation:
    """R of `size` coordinates in blocks, and its inverse; without their factors of sqrt(width) per rotation."""

    def __init__(self, seed: int, count: int, size: int) -> None:
        self.seed, self.count, self.size = seed, count, size
        self._signs = words(seed, count * size // 32).view(np.uint8).reshape(count, size // 8)

    def apply(self, x: FloatVector, span: slice) -> FloatVector:
        for signs in self._signs:
            x = walsh_hadamard(_flipped(x, signs[span.start // 8 : span.stop // 8]))
        return x

    def undo(self, x: FloatVector, span: slice) -> FloatVector:
        for signs in self._signs[::-1]:
            x = _flipped(walsh_hadamard(x), signs[span.start // 8 : span.stop // 8])
        return x


def _flipped(x: FloatVector, signs: NDArray[np.uint8]) -> FloatVector:
    """A copy of x with the signs of those values flipped whose bit is set."""
    flips = np.unpackbits(signs, bitorder="little").astype(np.uint32).reshape(x.shape)
    flips <<= 31
    flips ^= x.view(np.uint32)
    return flips.view(np.float32)


def _blocks(size: int) -> Iterator[tuple[slice, int]]:
    """Where blocks of one width stand, at most `_CHUNK` of them at a time; the last may reach past `size`."""
    at, full = 0, size - size % BLOCK
    while at < full:
        stop = min(at + _CHUNK * BLOCK, full)
        yield slice(at, stop), BLOCK
        at = stop
    width = BLOCK
    while at < size:
        width = max(width // 2, SMALLEST_BLOCK)
        if width <= size - at or width == SMALLEST_BLOCK:
            yield slice(at, at + width), width
            at += width


def _padded(values: FloatVector, span: slice) -> FloatVector:
    missing = span.stop - span.start - values.size
    return np.pad(values, (0, missing)) if missing else values


def _nearest_levels(x: FloatVector, rms: NDArray[np.float64], levels: FloatVector, index: NDArray[np.uint8]) -> None:
    """Add to `index`, all zeros, which level is nearest to each x over its row's rms."""
    unit = x / np.where(rms > 0, rms, 1).astype(np.float32)[:, None]
    for threshold in (levels[1:] + levels[:-1]) / 2:
        index += unit >= threshold


def _levels(bits: int) -> FloatVector:
    positive = np.array(LLOYD_MAX[bits], np.float32)
    return np.concatenate((-positive[::-1], positive))


def _row_sums(a: FloatVector, b: FloatVector) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = np.sum(a * b, axis=1, dtype=np.float64)
    return sums
