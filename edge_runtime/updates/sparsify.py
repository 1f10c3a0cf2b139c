"""Transforms that keep few values: the largest (`topk`), or a random choice that both sides can draw (`randk`).

The stages after them see one tensor of one axis, so `int8` and `uniform` then use one scale or range for all.

    topk:  the positions, as golomb.py writes them
    randk: 4 bytes of seed, then the number of values as varint
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.config import key
from edge_runtime.kernels import vectors
from edge_runtime.updates import golomb, wire
from edge_runtime.updates.delta import FloatVector, TensorLayout
from edge_runtime.updates.shared_random import draw_seed, words
from edge_runtime.updates.stage import LARGEST, Reader, Restore, Transform, destination


@dataclass(frozen=True)
class TopK(Transform):
    """The `fraction` of values with the largest magnitude; of equal ones the first, and never a zero.

    Deep Gradient Compression, Lin et al. 2018, arXiv:1712.01887, without its momentum. Biased.
    """

    name = "topk"
    fraction: float = key(0.01, above=0, high=1)

    def apply(
        self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator
    ) -> tuple[bytes, FloatVector, TensorLayout]:
        positions, kept = largest(values, self.fraction)
        return golomb.encode_positions(positions, layout.size), kept, _line(kept.size)

    def read(self, reader: Reader, layout: TensorLayout) -> tuple[TensorLayout, Restore]:
        positions = golomb.decode_positions(reader, layout.size)

        def restore(kept: FloatVector, out: FloatVector | None) -> FloatVector:
            return scatter(kept, positions, destination(out, layout.size))

        return _line(positions.size), restore


@dataclass(frozen=True)
class RandK(Transform):
    """k = `fraction` of the values, drawn without replacement from a seed in the payload; received times size / k.

    Every value is kept with probability k / size, so the mean over seeds is the whole vector: unbiased, with a mean
    squared error of (size / k - 1) |x|^2 (Konecny et al. 2016, arXiv:1610.05492, section 3, random mask).
    """

    name = "randk"
    unbiased = True
    fraction: float = key(0.1, above=0, high=1)

    @property
    def largest(self) -> float:
        return LARGEST * self.fraction / 2  # so that the receiver's product is finite; k / size may be rounded down

    def apply(
        self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator
    ) -> tuple[bytes, FloatVector, TensorLayout]:
        seed, count = draw_seed(rng), kept_count(layout.size, self.fraction)
        kept = values[random_positions(seed, layout.size, count)]
        return struct.pack("<I", seed) + wire.pack_varint(count), kept, _line(count)

    def read(self, reader: Reader, layout: TensorLayout) -> tuple[TensorLayout, Restore]:
        seed = reader.word("seed of randk")
        count = reader.varint("number of values", 0, layout.size)

        def restore(kept: FloatVector, out: FloatVector | None) -> FloatVector:
            scaled = kept * np.float32(layout.size / max(count, 1))
            return scatter(scaled, random_positions(seed, layout.size, count), destination(out, layout.size))

        return _line(count), restore


def kept_count(size: int, fraction: float) -> int:
    """How many of `size` values a fraction is: the nearest, but at least one where there is any."""
    return max(1, round(fraction * size)) if size else 0


def largest(values: FloatVector, fraction: float) -> tuple[NDArray[np.uint32], FloatVector]:
    """Ascending positions and values of the largest magnitudes, without zeros."""
    positions, kept = vectors.top_k(values, kept_count(values.size, fraction))
    nonzero = kept != 0
    return positions[nonzero], kept[nonzero]


def scatter(kept: FloatVector, positions: NDArray[np.integer], out: FloatVector) -> FloatVector:
    """`out`, with `kept` at `positions` and zeros elsewhere."""
    out.fill(0)
    out[positions] = kept
    return out


def random_positions(seed: int, size: int, count: int) -> NDArray[np.intp]:
    """`count` ascending positions below `size`: those of the smallest of `size` random words, the first of equal ones.

    So the choice follows from the words alone, not from how an algorithm orders equal ones.
    """
    if count in (0, size):
        return np.arange(count)
    keys = words(seed, size)
    bound = np.partition(keys, count - 1)[count - 1]
    below, equal = np.flatnonzero(keys < bound), np.flatnonzero(keys == bound)
    return np.sort(np.concatenate((below, equal[: count - below.size])))


def _line(count: int) -> TensorLayout:
    return TensorLayout((("values", (count,)),))
