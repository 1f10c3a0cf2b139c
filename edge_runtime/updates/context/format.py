"""The bytes of the `context` codec, and how they are read.

A weight matrix travels as the product of two thin ones where that is smaller, else as it is, like all other tensors.
All numbers are divided by one step, which sets the size of the whole, and become integers: each the one whose squared
error plus lambda times its cost in bits is least. What an integer costs is learned on the way from its neighbours, by
sender and receiver alike. Bytes of the body:

    0   2   e, signed, little-endian
    2   1   f: the step is 2^(e/4) (1 + f (2^(1/4) - 1) / 256)
    3   2   for tensors that are coded plainly, what a magnitude of 1 decodes to, and how far one of n > 1 lies above
            n - 1, in 64ths of a step; integers of factors are what they say
    5   ... one arithmetic-coded stream (kernels/context/context.h), for each tensor in order:
            its rank, 0 to 256: 0 says that it is coded plainly, and what follows is its integers
            else for each component its level, round(4 log2(singular value)) - e, as falls from one to the next; the lag
            and five taps that predict along rows of the right factor; its integers; those of the left factor

A tensor of two axes or more is a matrix of shape[0] rows. Its right factor holds the singular vectors of length
`columns`, times their singular values; the left one what fits best to them as they were decoded, of length `rows`. With
both in steps of the same size, an error in either weighs the same in the product. One component too many costs little,
so components are kept down to a size of about half a step per number (reverse water-filling; Cover and Thomas,
"Elements of Information Theory", section 10.3.3).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import PeerError
from edge_runtime.kernels.context import (
    CLASSES,
    LEVEL_UNIT,
    TAPS,
    PlaneDecoder,
    PlaneForm,
    decode_levels,
    low_rank_product,
)
from edge_runtime.updates.delta import FloatVector, TensorLayout
from edge_runtime.updates.stage import Reader, destination

Matrix = NDArray[np.float32]

PLAIN, FACTOR = 0, 1  # kinds of planes
# Slots of the numbers in the stream.
RANK, FIRST_LEVEL, LEVEL_FALL, LAG, TAP = range(5)

HEADER = struct.Struct("<h3B")
MAX_RANK, MAX_LEVEL, MAX_TAP = 256, 160, 16
MAX_EXPONENT = 4 * 110  # of the step, in quarter octaves, up and down
MIN_OFFSET, MAX_OFFSET = LEVEL_UNIT // 2, LEVEL_UNIT * 3 // 2
MIN_MATRIX = 256  # values from which on a tensor may be factored


@dataclass(frozen=True, slots=True)
class Step:
    """The first 3 bytes: quarter octaves, and 256ths of the way to the next one."""

    exponent: int
    fine: int

    @classmethod
    def near(cls, log2: float) -> Step:
        exponent = math.floor(4 * log2)
        return cls(exponent, min(255, round(256 * (2 ** (log2 - exponent / 4) - 1) / _TO_NEXT)))

    @property
    def mantissa(self) -> float:
        """What it is above 2^(exponent / 4)."""
        return 1 + self.fine * (_TO_NEXT / 256)

    @property
    def value(self) -> float:
        return _quarter_octaves(self.exponent) * self.mantissa


def _quarter_octaves(count: int) -> float:
    """2^(count/4), alike on all machines."""
    return math.ldexp((1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)[count % 4], count // 4)


_TO_NEXT = _quarter_octaves(1) - 1


def decode(reader: Reader, layout: TensorLayout, out: FloatVector | None) -> FloatVector:
    """The values of a body; PeerError if it is malformed."""
    exponent, fine, *offsets = HEADER.unpack(reader.take(HEADER.size, "header of context"))
    if abs(exponent) > MAX_EXPONENT:
        raise PeerError(
            f"step of context is 2^({exponent} / 4), must be 2^-{MAX_EXPONENT // 4} to 2^{MAX_EXPONENT // 4}"
        )
    if not all(MIN_OFFSET <= offset <= MAX_OFFSET for offset in offsets):
        raise PeerError(f"offsets of context are {offsets}, must be {MIN_OFFSET} to {MAX_OFFSET}")
    decoder, step = PlaneDecoder(reader.take(reader.remaining, "stream of context")), Step(exponent, fine)
    values = destination(out, layout.size)
    for span, rows, columns in layout.matrices():
        _decode_matrix(decoder, step, (offsets[0], offsets[1]), values[span].reshape(rows, columns))
    decoder.end()
    return values


def _decode_matrix(decoder: PlaneDecoder, step: Step, offsets: tuple[int, int], out: Matrix) -> None:
    rows, columns = out.shape
    most = min(rows, columns, MAX_RANK) if may_be_factored(rows, columns) else 0
    rank = decoder.number(RANK, most, "rank of context")
    if not rank:
        out[...] = decode_levels(decoder.plane(PlaneForm(rows, columns)), *offsets, step.value / LEVEL_UNIT)
        return
    levels = [decoder.number(FIRST_LEVEL, MAX_LEVEL, "level of context")]
    for _ in range(rank - 1):
        levels.append(levels[-1] - decoder.number(LEVEL_FALL, levels[-1], "fall of level of context"))
    lag = decoder.number(LAG, columns, "lag of context")
    if lag in (1, 2):
        raise PeerError(f"lag of context is {lag}, must be 0 or at least 3")
    taps = tuple(_from_zigzag(decoder.number(TAP, 2 * MAX_TAP, "tap of context")) for _ in range(TAPS))
    right = decoded_right(decoder.plane(right_form(levels, columns, lag, taps)), levels, step)
    left = decoded_left(decoder.plane(left_form(levels, rows)), step)
    low_rank_product(left, right, out)


def _from_zigzag(number: int) -> int:
    """0, -1, 1, -2, 2 ... of 0, 1, 2, 3, 4 ..."""
    return -(number + 1) // 2 if number % 2 else number // 2


def zigzag(number: int) -> int:
    return -2 * number - 1 if number < 0 else 2 * number


def may_be_factored(rows: int, columns: int) -> bool:
    return rows * columns >= MIN_MATRIX and min(rows, columns) >= 2


def right_form(levels: Sequence[int], columns: int, lag: int, taps: tuple[int, ...]) -> PlaneForm:
    return PlaneForm(len(levels), columns, FACTOR, lag, taps, _row_classes(levels, columns))


def left_form(levels: Sequence[int], rows: int) -> PlaneForm:
    return PlaneForm(len(levels), rows, FACTOR, row_class=_row_classes(levels, rows))


def _row_classes(levels: Sequence[int], length: int) -> NDArray[np.uint8]:
    """From the size that a component's numbers have in steps, in half octaves: 6 for 1."""
    fourfold_log2 = (length**4).bit_length() - 1  # in integers: logarithms differ between machines
    return np.clip([(2 * level - fourfold_log2) // 4 + 6 for level in levels], 0, CLASSES - 1).astype(np.uint8)


def decoded_left(q: NDArray[np.int16], step: Step) -> Matrix:
    return q * np.float32(step.value)


def decoded_right(q: NDArray[np.int16], levels: Sequence[int], step: Step) -> Matrix:
    """Singular vectors, of about unit length: in steps over singular values."""
    units = [_quarter_octaves(-level) * step.mantissa for level in levels]
    return q * np.array(units, np.float32)[:, None]
