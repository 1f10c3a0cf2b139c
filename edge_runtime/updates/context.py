"""The smallest updates: low rank where it pays, dead-zone quantisation, context-adaptive arithmetic coding.

A weight matrix travels as the product of two thin ones where that is smaller, else as it is, like all other tensors.
All numbers are divided by one step, which sets the size of the whole, and become integers: each the one whose squared
error plus lambda times its cost in bits is least. What an integer costs is learned on the way from its neighbours, by
sender and receiver alike. Bytes of the body:

    0   4   step, float32
    4   4   what a magnitude of 1 decodes to, and how far one of n > 1 lies above n - 1, in 64ths of a step: for the
            integers of plain tensors, then for those of factors
    8   ... one arithmetic-coded stream (kernels/context/context.h), for each tensor in order:
            its rank, 0 to 256: 0 says that it is coded plainly, and what follows is its integers
            else for each component its level, round(4 log2(singular value / step)), as falls from one to the next; the
            lag and five taps that predict along rows of the right factor; its integers; those of the left factor

A tensor of two axes or more is a matrix of shape[0] rows. Its right factor holds the singular vectors of length
`columns`, times their singular values; the left one what fits best to them as they were decoded, of length `rows`. With
both in steps of the same size, an error in either weighs the same in the product. One component too many costs little,
so components are kept down to a size of about half a step per number (reverse water-filling; Cover and Thomas,
"Elements of Information Theory", section 10.3.3).
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_runtime.config import key
from edge_runtime.errors import PeerError
from edge_runtime.kernels.context import (
    CLASSES,
    LEVEL_UNIT,
    MAX_MAGNITUDE,
    TAPS,
    PlaneDecoder,
    PlaneEncoder,
    PlaneForm,
    decode_levels,
    low_rank_product,
)
from edge_runtime.updates import factors
from edge_runtime.updates.delta import FloatVector, TensorLayout
from edge_runtime.updates.factors import MAX_RANK, MAX_TAP, Matrix
from edge_runtime.updates.stage import Coder, Reader, destination

PLAIN, FACTOR = 0, 1  # kinds of planes
# Slots of the numbers in the stream.
RANK, FIRST_LEVEL, LEVEL_FALL, LAG, TAP = range(5)

HEADER = struct.Struct("<f4B")
ENVELOPE_BYTES = 28  # what wire.py puts around a body that only this codec has made
MAX_LEVEL = 160
MIN_OFFSET, MAX_OFFSET = LEVEL_UNIT // 2, LEVEL_UNIT * 3 // 2

# The search aims at this part of the target, is content with that part, and gives up after so many codings.
AIM, CLOSE, MOST_CODINGS = 0.96, 0.92, 8
MIN_EXPONENT = -120  # of the step: an update below it vanishes

LAMBDA = {PLAIN: 0.25, FACTOR: 0.14}  # steps^2 per bit; found on recorded updates
KEPT = 0.25  # of steps^2 per number: the energy from which on a component is kept
MIN_MATRIX = 256  # values from which on a tensor may be factored
UNKNOWN_BITS = 1.0  # for how many bits to look for components where the bits are not given
SAMPLE = 4096  # values from which to tell what coding a tensor plainly would take

Measure = Literal["nbytes", "nmse"]


@dataclass(frozen=True)
class Context(Coder):
    """At most `bits` bits per value, counting every byte of the payload, or as few as reach `nmse` where that is set.

    NMSE = sum (x - decoded)^2 / sum x^2. Where not even a payload of zeros keeps to `bits`, that one is sent.
    """

    name = "context"
    bits: float = key(0.25, above=0, high=16)
    nmse: float = key(0.0, low=0, below=1)

    @property
    def largest(self) -> float:
        return math.ldexp(1, 110)  # singular values are larger than the values that they come from

    def encode(self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator) -> bytes:
        update = Update(values, layout, UNKNOWN_BITS if self.nmse else self.bits)
        if self.nmse:
            return _search(update, "nmse", self.nmse).body
        return _search(update, "nbytes", max(1.0, self.bits * layout.size / 8 - ENVELOPE_BYTES)).body

    def decode(self, reader: Reader, layout: TensorLayout, out: FloatVector | None) -> FloatVector:
        step, *numbers = HEADER.unpack(reader.take(HEADER.size, "header of context"))
        if not (math.isfinite(step) and step > 0):
            raise PeerError(f"step of context is {step:g}, must be finite and above 0")
        if not all(MIN_OFFSET <= number <= MAX_OFFSET for number in numbers):
            raise PeerError(f"offsets of context are {numbers}, must be {MIN_OFFSET} to {MAX_OFFSET}")
        decoder, offsets = PlaneDecoder(reader.take(reader.remaining, "stream of context")), Offsets(*numbers)
        values = destination(out, layout.size)
        for span, rows, columns in layout.matrices():
            _decode_matrix(decoder, step, offsets, values[span].reshape(rows, columns))
        decoder.end()
        return values


@dataclass(frozen=True, slots=True)
class Offsets:
    """Bytes 4 to 8 of the body."""

    plain_one: int = 80
    plain_more: int = 66
    factor_one: int = 65
    factor_more: int = 64

    @classmethod
    def of_means(cls, seen: NDArray[np.float64]) -> Offsets:
        """From `PlaneEncoder.seen`: the mean of what each level stands for."""
        means = [total / count if count else 1.0 for count, total in seen.reshape(-1, 2).tolist()]
        return cls(*(min(max(round(LEVEL_UNIT * mean), MIN_OFFSET), MAX_OFFSET) for mean in means))

    @property
    def plain(self) -> tuple[int, int]:
        return self.plain_one, self.plain_more

    @property
    def factor(self) -> tuple[int, int]:
        return self.factor_one, self.factor_more


def _may_be_factored(rows: int, columns: int) -> bool:
    return rows * columns >= MIN_MATRIX and min(rows, columns) >= 2


# What both ends do alike.


def _right_form(levels: Sequence[int], columns: int, lag: int, taps: tuple[int, ...]) -> PlaneForm:
    return PlaneForm(len(levels), columns, FACTOR, lag, taps, _row_classes(levels, columns))


def _left_form(levels: Sequence[int], rows: int) -> PlaneForm:
    return PlaneForm(len(levels), rows, FACTOR, row_class=_row_classes(levels, rows))


def _row_classes(levels: Sequence[int], length: int) -> NDArray[np.uint8]:
    """From the size that a component's numbers have in steps, in half octaves: 6 for 1."""
    fourfold_log2 = (length**4).bit_length() - 1  # in integers: logarithms differ between machines
    return np.clip([(2 * level - fourfold_log2) // 4 + 6 for level in levels], 0, CLASSES - 1).astype(np.uint8)


def _decoded_left(q: NDArray[np.int16], step: float, offsets: Offsets) -> Matrix:
    return decode_levels(q, *offsets.factor, step / LEVEL_UNIT)


def _decoded_right(q: NDArray[np.int16], levels: Sequence[int], offsets: Offsets) -> Matrix:
    """Singular vectors, of about unit length."""
    units = [math.ldexp(_QUARTER_OCTAVES[-level % 4], -level // 4) / LEVEL_UNIT for level in levels]
    return decode_levels(q, *offsets.factor, 1.0) * np.array(units, np.float32)[:, None]


_QUARTER_OCTAVES = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)  # 2^(i/4)


# Decoding.


def _decode_matrix(decoder: PlaneDecoder, step: float, offsets: Offsets, out: Matrix) -> None:
    rows, columns = out.shape
    most = min(rows, columns, MAX_RANK) if _may_be_factored(rows, columns) else 0
    rank = decoder.number(RANK, most, "rank of context")
    if not rank:
        out[...] = decode_levels(decoder.plane(PlaneForm(rows, columns)), *offsets.plain, step / LEVEL_UNIT)
        return
    levels = [decoder.number(FIRST_LEVEL, MAX_LEVEL, "level of context")]
    for _ in range(rank - 1):
        levels.append(levels[-1] - decoder.number(LEVEL_FALL, levels[-1], "fall of level of context"))
    lag = decoder.number(LAG, columns, "lag of context")
    if lag in (1, 2):
        raise PeerError(f"lag of context is {lag}, must be 0 or at least 3")
    taps = tuple(_from_zigzag(decoder.number(TAP, 2 * MAX_TAP, "tap of context")) for _ in range(TAPS))
    right = _decoded_right(decoder.plane(_right_form(levels, columns, lag, taps)), levels, offsets)
    left = _decoded_left(decoder.plane(_left_form(levels, rows)), step, offsets)
    low_rank_product(left, right, out)


def _from_zigzag(number: int) -> int:
    """0, -1, 1, -2, 2 ... of 0, 1, 2, 3, 4 ..."""
    return -(number + 1) // 2 if number % 2 else number // 2


def _zigzag(number: int) -> int:
    return -2 * number - 1 if number < 0 else 2 * number


# Encoding.


class Update:
    """What is to be encoded, over a power of two so that it is at most 1, with all that does not depend on the step."""

    def __init__(self, values: FloatVector, layout: TensorLayout, bits: float) -> None:
        self.size = layout.size
        self.exponent = math.frexp(float(np.abs(values).max(initial=0)))[1]
        scaled = np.ldexp(values, -self.exponent)
        self.matrices = [
            _Matrix(scaled[span].reshape(rows, columns), bits) for span, rows, columns in layout.matrices()
        ]
        self.energy = sum(matrix.energy for matrix in self.matrices)


class _Matrix:
    """One tensor and, if it may be factored, its singular values and scaled right singular vectors."""

    def __init__(self, x: Matrix, bits: float) -> None:
        self.x = x
        self.energy = float(np.vdot(x, x))
        self.singular = np.empty(0)
        if _may_be_factored(*x.shape) and self.energy > 0:
            # A component takes some 1.5 bits per number, more the more of them there are.
            most = int(bits * x.size / (1.5 * sum(x.shape))) + 8
            self.singular, self.right = factors.right_factors(x, min(most, MAX_RANK, *x.shape))
            self.lag = factors.strongest_lag(self.right)
            # Where neighbours are alike, their numbers take fewer bits; the figures fit recorded updates within 8 %.
            self.bits_forecast = math.exp(0.3 - 0.66 * max(0.0, factors.likeness(self.right)))
            stride = max(1, x.size // SAMPLE)
            while math.gcd(stride, x.shape[1]) > 1:
                stride += 1  # else only a few columns would be seen
            self.sample = x.ravel()[::stride]

    def rank(self, step: float) -> int:
        """How many components to keep; 0 where the matrix is coded better as it is."""
        rank = int(np.count_nonzero(self.singular > self.least_kept(step)))
        if not rank:
            return 0
        rows, kept = self.x.shape[0], self.singular[:rank]
        left_out = max(0.0, self.energy - float(np.sum(kept**2))) / step**2
        factored = left_out + _cost(kept / (step * math.sqrt(rows))) * rows + _cost(self.right[:rank] / step)
        return rank if factored < _cost(self.sample / step) * self.x.size / self.sample.size else 0

    def least_kept(self, step: float) -> float:
        """The singular value from which on a component is worth its numbers."""
        return step * math.sqrt(KEPT * sum(self.x.shape))

    def groups(self) -> Iterator[tuple[float, float, float, float]]:
        """How many numbers of what rms up to which step are coded, and a factor of their bits."""
        if not self.singular.size:
            yield self.x.size, math.sqrt(self.energy / self.x.size), math.inf, 1.0
        coarsest = 1 / self.least_kept(1.0)
        for value in self.singular.tolist():
            for length in self.x.shape:
                yield length, value / math.sqrt(length), value * coarsest, self.bits_forecast


def _cost(numbers: NDArray[np.floating]) -> float:
    """Roughly squared errors + lambda * bits, in steps^2, of numbers in steps."""
    sizes = np.abs(numbers)
    return float(np.sum(np.minimum(sizes * sizes, 0.1) + 0.3 * np.log2(1 + sizes)))


class Coding:
    """One update at one step, and what came of it: `nbytes` of body, `nmse`, and offsets that would be better."""

    def __init__(self, update: Update, step: float, ranks: Sequence[int], offsets: Offsets) -> None:
        self._step = float(np.float32(step))
        self._header = HEADER.pack(math.ldexp(self._step, update.exponent), *offsets.plain, *offsets.factor)
        self._offsets, self._encoder = offsets, PlaneEncoder(4 * update.size + 1024)
        error = sum(map(self._put, update.matrices, ranks))
        self.nmse = error / update.energy if update.energy else 0.0
        self.nbytes = HEADER.size + self._encoder.end()
        self.better_offsets = Offsets.of_means(self._encoder.seen)

    @property
    def body(self) -> bytes:
        return self._header + self._encoder.data()

    def _put(self, matrix: _Matrix, rank: int) -> float:
        """Write one tensor; returns the sum of squared errors."""
        self._encoder.put_number(RANK, rank)
        if rank:
            return self._put_factors(matrix, rank)
        x = matrix.x / np.float32(self._step)
        x -= decode_levels(self._put_plane(PlaneForm(*x.shape), x), *self._offsets.plain, 1 / LEVEL_UNIT)
        return float(np.vdot(x, x)) * self._step**2

    def _put_factors(self, matrix: _Matrix, rank: int) -> float:
        singular, (rows, columns) = matrix.singular[:rank], matrix.x.shape
        levels = np.clip(np.rint(4 * np.log2(singular / self._step)), 0, MAX_LEVEL).astype(int).tolist()
        self._encoder.put_number(FIRST_LEVEL, levels[0])
        for before, after in itertools.pairwise(levels):
            self._encoder.put_number(LEVEL_FALL, before - after)
        right = matrix.right[:rank] * (2.0 ** (np.array(levels) / 4) / singular).astype(np.float32)[:, None]
        lag, taps = factors.prediction(right, matrix.lag)
        self._encoder.put_number(LAG, lag)
        for tap in taps:
            self._encoder.put_number(TAP, _zigzag(tap))
        right = _decoded_right(self._put_plane(_right_form(levels, columns, lag, taps), right), levels, self._offsets)
        products, gram = right @ matrix.x.T, right @ right.T
        left = factors.left_factors(gram, products)
        q = self._put_plane(_left_form(levels, rows), left / np.float32(self._step))
        left = _decoded_left(q, self._step, self._offsets)
        # |x - left' right|^2
        return max(0.0, matrix.energy - 2 * float(np.vdot(left, products)) + float(np.vdot(left, gram @ left)))

    def _put_plane(self, form: PlaneForm, x: Matrix) -> NDArray[np.int16]:
        one, more = self._offsets.factor if form.kind == FACTOR else self._offsets.plain
        return self._encoder.put_plane(form, x, LAMBDA[form.kind], one / LEVEL_UNIT, more / LEVEL_UNIT)


# The search for the step.


def _search(update: Update, measure: Measure, target: float) -> Coding:
    """A coding that measures at most `target` and, where a few attempts find one, hardly less."""
    forecast = _Forecast(update, measure)
    best: Coding | None = None
    points: list[tuple[float, float]] = []  # step and measure of codings with the present ranks, in log2
    ranks: list[int] = []
    offsets, at, goal = Offsets(), forecast.step_for(math.log2(target * AIM)), math.log2(target * AIM)
    for attempt in range(MOST_CODINGS):
        if attempt < 2:  # then they stay: with one component more or less, bytes would jump over the target
            ranks, points = [matrix.rank(2**at) for matrix in update.matrices], []
        coding = Coding(update, 2**at, ranks, offsets)
        measured = max(float(getattr(coding, measure)), 1e-30)
        if measured <= target and (best is None or measured > getattr(best, measure)):
            best = coding
        if CLOSE * target <= measured <= target:
            break
        points.append((at, math.log2(measured)))
        following = forecast.next_step(points, goal)
        if following == at:
            break
        offsets, at = coding.better_offsets, following
    return best or Coding(update, 2**forecast.safest, [0] * len(update.matrices), offsets)


class _Forecast:
    """log2 of steps, and what the measure should be at each: from the sizes of the numbers alone.

    A number of rms s steps takes about log2(1 + 5 s^2) / 2 bits and leaves an error of min(s^2, 1/8). What codings turn
    out to measure is some factor away, and one that hardly depends on the step.
    """

    def __init__(self, update: Update, measure: Measure) -> None:
        # No integer may pass MAX_MAGNITUDE, nor the step fall below the normal numbers; at 4 all is zero.
        largest = max((math.sqrt(matrix.energy) for matrix in update.matrices), default=0.0)
        finest = max(math.log2(max(largest, 1e-9) / MAX_MAGNITUDE), MIN_EXPONENT - update.exponent)
        self._steps = np.linspace(finest, max(2.0, finest), 64)
        self.safest = float(self._steps[-1 if measure == "nbytes" else 0])
        groups = np.array([group for matrix in update.matrices for group in matrix.groups()]).reshape(-1, 4)
        counts, sizes, limits, factors_ = groups.T
        steps = 2.0 ** self._steps[:, None]
        coded = steps < limits
        if measure == "nbytes":
            bits = np.where(coded, factors_ * counts * np.log2(1 + 5 * (sizes / steps) ** 2) / 2, 0).sum(axis=1)
            self._rising, forecast = -1, HEADER.size + bits / 8
        else:
            errors = counts * np.where(coded, np.minimum(sizes**2, steps**2 / 8), sizes**2 / 2)
            self._rising, forecast = 1, errors.sum(axis=1) / max(update.energy, 1e-30)
        self._logs = np.log2(np.maximum(forecast, 1e-30))

    def step_for(self, goal: float) -> float:
        """The step at which the measure should be `goal`, in log2: the nearest one that is allowed."""
        way = slice(None, None, self._rising)
        return float(np.interp(goal, self._logs[way], self._steps[way]))

    def next_step(self, points: Sequence[tuple[float, float]], goal: float) -> float:
        """From what was measured: along the last two points if they differ, else beside the forecast."""
        at, measured = points[-1]
        following = self.step_for(goal + float(np.interp(at, self._steps, self._logs)) - measured)
        if len(points) > 1:
            before, was = points[-2]
            if (measured - was) * (at - before) * self._rising > 0:
                following = at + (goal - measured) * (at - before) / (measured - was)
        return min(max(following, float(self._steps[0])), float(self._steps[-1]))
