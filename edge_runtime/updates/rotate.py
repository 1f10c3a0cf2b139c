"""Values rotated at random, so that they look Gaussian, then each as one of the best few levels for a Gaussian.

    4 bytes of seed, 1 byte of bits, one float32 scale per block, then `bits` bits per value

A block is 4096 values of the flat vector. What is left over makes blocks of falling powers of two: nothing is padded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.config import key
from edge_runtime.kernels import vectors
from edge_runtime.updates.delta import FloatVector, TensorLayout
from edge_runtime.updates.shared_random import draw_seed, words
from edge_runtime.updates.stage import LARGEST, Coder, Reader, destination

BLOCK = 4096
_CHUNK = 16  # blocks worked on at once, so that they stay in the cache

# The positive levels that give a unit Gaussian the least squared error (Lloyd 1982; Max 1960, table I).
LLOYD_MAX = {
    1: (0.797884561,),
    2: (0.452780035, 1.510417608),
    3: (0.245094179, 0.756005281, 1.343909279, 2.151945705),
    4: (0.12839503, 0.388048299, 0.656759119, 0.942340456, 1.256231197, 1.618046386, 2.069017227, 2.732589571),
}

# A block of levels sums to at most this many times its scale: the bound keeps what is decoded finite.
_LARGEST_SCALE = LARGEST / (2 * BLOCK * LLOYD_MAX[4][-1])


@dataclass(frozen=True)
class Hadamard(Coder):
    """Each block x as S R^-1 Q, with R x = H D x: shared random signs D, the orthonormal Walsh-Hadamard matrix H.

    Q holds the Lloyd-Max level of every coordinate of R x over its rms. The scale S either has the least squared
    error, S = <R x, Q> / |Q|^2 (DRIVE, Vargaftik et al. 2021, arXiv:2105.08339, section 3 and appendix), or is unbiased
    over random rotations, S = |x|^2 / <R x, Q> (EDEN, Vargaftik et al. 2022, arXiv:2108.08842, section 3). With D and H
    in place of a uniform rotation the latter holds up to a small error, as EDEN's authors say.

    The classical reference: rotation spends bits on making structured, heavy-tailed updates the worst source there is.
    """

    name = "hadamard"
    bits: int = key(1, low=1, high=4)
    unbiased: bool = key(False)

    @property
    def largest(self) -> float:
        # By Cauchy-Schwarz, S is at most 1 / 0.128 times the largest value.
        return _LARGEST_SCALE / 8

    def encode(self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator) -> bytes:
        seed = draw_seed(rng)
        signs, levels = _Signs(seed, layout.size), _levels(self.bits)
        thresholds = (levels[1:] + levels[:-1]) / 2
        scales: list[NDArray[np.float64]] = []
        q = np.zeros(layout.size, np.uint8)
        for span, width in _chunks(layout.size):
            x = signs.applied(values[span], span).reshape(-1, width)
            _, exponents = np.frexp(np.abs(x).max(axis=1, keepdims=True))
            x = walsh_hadamard(np.ldexp(x, -exponents))  # at most 1 before, so nothing overflows
            energy = _row_sums(x, x)
            unit = x / np.maximum(np.sqrt(energy / width), 1e-30).astype(np.float32)[:, None]
            index = q[span].reshape(-1, width)
            for threshold in thresholds:
                index += unit >= threshold
            quantised = levels[index]
            product = _row_sums(x, quantised)
            if self.unbiased:
                scale = energy / np.where(product > 0, product, 1)
            else:
                scale = product / _row_sums(quantised, quantised)
            scales.append(np.ldexp(scale / width, exponents[:, 0]))
        listed = np.concatenate(scales) if scales else np.empty(0)
        header = struct.pack("<IB", seed, self.bits)
        return header + listed.astype("<f4").tobytes() + vectors.pack_bits(q, self.bits).tobytes()

    def decode(self, reader: Reader, layout: TensorLayout, out: FloatVector | None) -> FloatVector:
        signs = _Signs(reader.word("seed of hadamard"), layout.size)
        bits = reader.byte("bits of hadamard", 1, 4)
        count = sum((span.stop - span.start) // width for span, width in _chunks(layout.size))
        scales = reader.floats("scales of hadamard", count, low=0, high=_LARGEST_SCALE)
        q = reader.bits("levels of hadamard", layout.size, bits)
        levels, values, done = _levels(bits), destination(out, layout.size), 0
        for span, width in _chunks(layout.size):
            x = walsh_hadamard(levels[q[span]].reshape(-1, width))
            x *= scales[done : done + len(x), None]
            values[span] = signs.applied(x.ravel(), span)
            done += len(x)
        return values


def walsh_hadamard(blocks: FloatVector) -> FloatVector:
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


def _butterflies(blocks: FloatVector) -> None:
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


class _Signs:
    """A random sign for each of `size` values."""

    def __init__(self, seed: int, size: int) -> None:
        self._bytes = words(seed, (size + 31) // 32).view(np.uint8)

    def applied(self, values: FloatVector, span: slice) -> FloatVector:
        """A copy of the values that stand at `span`, with the signs of some flipped."""
        first = span.start // 8
        bits = np.unpackbits(self._bytes[first : (span.stop + 7) // 8], bitorder="little")
        flips = bits[span.start - 8 * first :][: values.size].astype(np.uint32)
        flips <<= 31
        flips ^= values.view(np.uint32)
        return flips.view(np.float32)


def _chunks(size: int) -> Iterator[tuple[slice, int]]:
    """Where blocks of one width stand, at most `_CHUNK` of them at a time."""
    at, full = 0, size - size % BLOCK
    while at < full:
        stop = min(at + _CHUNK * BLOCK, full)
        yield slice(at, stop), BLOCK
        at = stop
    width = BLOCK
    while at < size:
        width //= 2
        if width <= size - at:
            yield slice(at, at + width), width
            at += width


def _levels(bits: int) -> FloatVector:
    positive = np.array(LLOYD_MAX[bits], np.float32)
    return np.concatenate((-positive[::-1], positive))


def _row_sums(a: FloatVector, b: FloatVector) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = np.sum(a * b, axis=1, dtype=np.float64)
    return sums
