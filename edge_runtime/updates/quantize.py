"""Values as small integers: symmetric per channel (`int8`, `int4`), or stochastic over a tensor's range (`uniform`).

Tensors without values leave no bytes.

    int8, int4: 3 bytes of scale per channel, then 8 or 4 bits per value (two's complement, packed as pack_bits.h says)
    uniform:    1 byte of bits; lowest and highest value of each tensor as float32; then `bits` bits per value
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_runtime.config import key
from edge_runtime.errors import PeerError
from edge_runtime.kernels import int8, vectors
from edge_runtime.updates import stage
from edge_runtime.updates.delta import FloatVector, TensorLayout
from edge_runtime.updates.stage import LARGEST, Coder, Reader, Task, chunks, destination

CHUNK = 1 << 16  # values worked on at once, so that temporary float64 arrays stay in the cache


class PerChannel(Coder):
    """q = round(x / s), ties to even, with s = max|x| / peak for each channel: each of the tensor's shape[0] rows.

    A tensor of fewer than two axes is one channel. Scales keep 16 significant bits, the rest cut off, so that q * s is
    exact in float32: what was decoded encodes to itself. None is below 2^-126, the smallest normal float32.
    The error is at most s / 2.
    """

    peak: ClassVar[int]

    def encode(self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator) -> bytes:
        codes: list[NDArray[np.uint32]] = []
        q = np.empty(layout.size, np.int8)
        for span, rows, columns in layout.matrices():
            tensor = values[span].reshape(rows, columns)
            low, high = int8.row_range(tensor)
            codes.append(self._scale_codes(np.maximum(np.abs(low), np.abs(high))))
            q[span] = int8.quantize(tensor, _scales(codes[-1])).ravel()
        listed = np.concatenate(codes) if codes else np.empty(0, np.uint32)
        return vectors.pack_bits(listed, 24).tobytes() + self._pack(q)

    def decode(self, reader: Reader, layout: TensorLayout, out: FloatVector | None) -> FloatVector:
        channels = list(layout.matrices())
        codes = reader.bits(f"{self.name} scales", sum(rows for _, rows, _ in channels), 24).astype(np.uint32)
        if codes.size and not (self._lowest_code <= codes.min() and codes.max() <= self._highest_code):
            raise PeerError(f"{self.name} scales must be 2^-126 or more, and finite times {self.peak}")
        scales, q = _scales(codes), self._unpack(reader, layout.size)
        if q.size and q.min() < -self.peak:
            raise PeerError(f"{self.name} values must be -{self.peak} to {self.peak}")
        values, channel = destination(out, layout.size), 0
        tasks: list[Task] = []
        for span, rows, columns in channels:
            matrix, into = q[span].reshape(rows, columns), values[span].reshape(rows, columns)
            for part in _row_chunks(rows, columns):
                scale = scales[channel + part.start : channel + part.stop]
                tasks.append(partial(int8.dequantize, matrix[part], scale, out=into[part]))
            channel += rows
        reader.spread(tasks)
        return values

    _lowest_code = 1 << 15  # of 2^-126

    @property
    def _highest_code(self) -> int:
        return int(np.float32(LARGEST / self.peak).view(np.uint32)) >> 8

    def _scale_codes(self, largest: FloatVector) -> NDArray[np.uint32]:
        """The upper 24 bits of each channel's scale."""
        nearest = (largest.astype(np.float64) / self.peak).astype(np.float32)
        codes: NDArray[np.uint32] = np.maximum(nearest.view(np.uint32) >> 8, np.uint32(self._lowest_code))
        return codes

    def _pack(self, q: NDArray[np.int8]) -> bytes:
        return q.tobytes()

    def _unpack(self, reader: Reader, size: int) -> NDArray[np.int8]:
        return reader.array(f"{self.name} values", size, "i1").view(np.int8)


class Int8(PerChannel):
    """8 bits per value, -127 to 127, and 3 bytes per channel."""

    name = "int8"
    peak = 127


class Int4(PerChannel):
    """4 bits per value, -7 to 7, and 3 bytes per channel."""

    name = "int4"
    peak = 7

    def _pack(self, q: NDArray[np.int8]) -> bytes:
        return vectors.pack_bits(q.view(np.uint8), 4).tobytes()

    def _unpack(self, reader: Reader, size: int) -> NDArray[np.int8]:
        nibbles = reader.bits("int4 values", size, 4).astype(np.uint8)
        return ((nibbles ^ 8) - np.uint8(8)).view(np.int8)


@dataclass(frozen=True)
class Uniform(Coder):
    """2^bits even levels from a tensor's lowest to its highest value, rounded up or down at random: unbiased.

    q = floor((x - low) / step + u) with u uniform on [0, 1) and step = (high - low) / (2^bits - 1), so E[q] is exact
    (QSGD, Alistarh et al. 2017, arXiv:1610.02132, section 3, with the range in place of the norm). The error is below
    one step. Heavy-tailed updates, whose range is far above their size, need many bits.
    """

    name = "uniform"
    unbiased = True
    bits: int = key(8, low=1, high=8)

    def encode(self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator) -> bytes:
        top = (1 << self.bits) - 1
        ranges = []
        q = np.empty(layout.size, np.uint8)
        for start, stop in layout.spans():
            (low,), (high,) = int8.row_range(values[start:stop].reshape(1, -1))
            ranges.append((low, high))
            steps_per_unit = top / (float(high) - float(low)) if high > low else 0.0
            for at in range(start, stop, CHUNK):
                chunk = slice(at, min(at + CHUNK, stop))
                steps = np.subtract(values[chunk], low, dtype=np.float64)
                steps *= steps_per_unit
                steps += rng.random(steps.size)
                q[chunk] = np.minimum(steps, top, out=steps)  # the cast rounds down
        return bytes([self.bits]) + np.array(ranges, "<f4").tobytes() + vectors.pack_bits(q, self.bits).tobytes()

    def decode(self, reader: Reader, layout: TensorLayout, out: FloatVector | None) -> FloatVector:
        bits = reader.byte("bits of uniform", 1, 8)
        spans = list(layout.spans())
        ranges = reader.floats("ranges of uniform", 2 * len(spans)).reshape(-1, 2).astype(np.float64)
        if not (ranges[:, 0] <= ranges[:, 1]).all():
            raise PeerError("ranges of uniform must go from low to high")
        q = reader.bits("values of uniform", layout.size, bits)
        values = destination(out, layout.size)
        tasks: list[Task] = []
        for (start, stop), (low, high) in zip(spans, ranges, strict=True):
            levels = np.linspace(low, high, 1 << bits).astype(np.float32)
            # "clip" checks no index, and none is out of range.
            tasks += [partial(np.take, levels, q[part], out=values[part], mode="clip") for part in chunks(start, stop)]
        reader.spread(tasks)
        return values


def _row_chunks(rows: int, columns: int) -> Iterator[slice]:
    """All rows, in pieces of about CHUNK values."""
    some = max(1, stage.CHUNK // max(1, columns))
    return (slice(row, min(row + some, rows)) for row in range(0, rows, some))


def _scales(codes: NDArray[np.uint32]) -> FloatVector:
    return (codes << 8).view(np.float32)
