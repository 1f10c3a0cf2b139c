"""Signs alone, with one magnitude for many values.

signsgd: magnitude of each tensor that has values, float32; then 1 bit per value, set for negative ones
stc:     positions, as golomb.py writes them; one magnitude, float32; then 1 bit per position

Bits are packed as pack_bits.h says, zero bits filling the last byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.config import key
from edge_runtime.kernels import vectors
from edge_runtime.updates import golomb
from edge_runtime.updates.delta import FloatVector, TensorLayout
from edge_runtime.updates.sparsify import largest, scatter
from edge_runtime.updates.stage import Coder, Reader, destination


class SignSGD(Coder):
    """x -> mean|x| sign(x) for each tensor, the sign of 0 being +: 1 bit a value.

    signSGD, Bernstein et al. 2018, arXiv:1802.04434, with the magnitude of EF-signSGD, Karimireddy et al. 2019,
    arXiv:1901.09847, section 4, which has the least squared error of any. Biased.
    """

    name = "signsgd"

    def encode(self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator) -> bytes:
        tensors = [values[start:stop] for start, stop in layout.spans()]
        magnitudes = np.array([np.abs(tensor).mean(dtype=np.float64) for tensor in tensors], "<f4")
        return magnitudes.tobytes() + _pack_signs(values)

    def decode(self, reader: Reader, layout: TensorLayout, out: FloatVector | None) -> FloatVector:
        spans = list(layout.spans())
        magnitudes = reader.floats("magnitudes of signsgd", len(spans), low=0)
        negative = reader.bits("signs of signsgd", layout.size, 1)
        values = destination(out, layout.size)
        for (start, stop), magnitude in zip(spans, magnitudes, strict=True):
            values[start:stop] = _signed(magnitude, negative[start:stop])
        return values


@dataclass(frozen=True)
class STC(Coder):
    """The `fraction` of values with the largest magnitude, each as its sign times their mean magnitude. Biased.

    Sparse Ternary Compression, Sattler et al. 2019, arXiv:1903.02891, algorithm 1, with the Golomb coded positions of
    algorithm 3.
    """

    name = "stc"
    fraction: float = key(0.01, above=0, high=1)

    def encode(self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator) -> bytes:
        positions, kept = largest(values, self.fraction)
        magnitude = np.array(np.abs(kept).mean(dtype=np.float64) if kept.size else 0, "<f4")
        return golomb.encode_positions(positions, layout.size) + magnitude.tobytes() + _pack_signs(kept)

    def decode(self, reader: Reader, layout: TensorLayout, out: FloatVector | None) -> FloatVector:
        positions = golomb.decode_positions(reader, layout.size)
        (magnitude,) = reader.floats("magnitude of stc", 1, low=0)
        negative = reader.bits("signs of stc", positions.size, 1)
        return scatter(_signed(magnitude, negative), positions, destination(out, layout.size))


def _pack_signs(values: FloatVector) -> bytes:
    return vectors.pack_bits((values < 0).view(np.uint8), 1).tobytes()


def _signed(magnitude: np.float32, negative: NDArray[np.unsignedinteger[Any]]) -> FloatVector:
    return np.array([magnitude, -magnitude], np.float32).take(negative)
