"""Values as floats of 32 or 16 bits, each rounded to the nearest, ties to even. The body is the values, nothing else.

A receiver gets what these formats can hold, NaN included: who sums updates checks them.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from edge_runtime.updates.delta import FloatVector, TensorLayout
from edge_runtime.updates.stage import Coder, Reader, chunks, destination


class Float32(Coder):
    """The values as they are: 4 bytes each. Decoded without `out`, they are a view of the payload."""

    name = "float32"
    unbiased = True

    def encode(self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator) -> memoryview:
        return np.ascontiguousarray(values, "<f4").data.cast("B")

    def decode(self, reader: Reader, layout: TensorLayout, out: FloatVector | None) -> FloatVector:
        values = reader.array("float32 values", layout.size, "<f4").view(np.float32)
        if out is None:
            return values
        out[...] = values
        return out


class Float16(Coder):
    """IEEE 754 half precision: 11 significant bits, up to 65504, steps of 6e-8 near zero."""

    name = "float16"
    largest = 65504.0

    def encode(self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator) -> memoryview:
        return values.astype("<f2").data.cast("B")

    def decode(self, reader: Reader, layout: TensorLayout, out: FloatVector | None) -> FloatVector:
        values, halves = destination(out, layout.size), reader.array("float16 values", layout.size, "<f2")
        reader.spread(partial(np.copyto, values[part], halves[part]) for part in chunks(0, layout.size))
        return values


class BFloat16(Coder):
    """The upper half of a float32: its whole range, 8 significant bits."""

    name = "bfloat16"
    largest = float.fromhex("0x1.fep127")

    def encode(self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator) -> memoryview:
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = bits >> 16 & 1  # half a unit in the last place, less one where the kept part is even
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        return rounded.astype("<u2").data.cast("B")

    def decode(self, reader: Reader, layout: TensorLayout, out: FloatVector | None) -> FloatVector:
        values, halves = destination(out, layout.size), reader.array("bfloat16 values", layout.size, "<u2")
        bits = values.view(np.uint32)
        reader.spread(
            partial(np.left_shift, halves[part], 16, out=bits[part], dtype="u4") for part in chunks(0, layout.size)
        )
        return values
