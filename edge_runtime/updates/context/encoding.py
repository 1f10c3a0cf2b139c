"""An update at one step, as bytes of the `context` codec. What does not depend on the step is worked out once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.kernels import int8
from edge_runtime.kernels.context import LEVEL_UNIT, PlaneEncoder, PlaneForm, decode_levels
from edge_runtime.updates.context import factors
from edge_runtime.updates.context.format import (
    FACTOR,
    FIRST_LEVEL,
    HEADER,
    LAG,
    LEVEL_FALL,
    MAX_LEVEL,
    MAX_OFFSET,
    MAX_RANK,
    MIN_OFFSET,
    PLAIN,
    RANK,
    TAP,
    Matrix,
    Step,
    decoded_left,
    decoded_right,
    left_form,
    may_be_factored,
    right_form,
    zigzag,
)
from edge_runtime.updates.delta import FloatVector, TensorLayout

LAMBDA = {PLAIN: 0.15, FACTOR: 0.11}  # steps^2 per bit; found on recorded updates
KEPT = 0.2  # of steps^2 per number: the energy from which on a component is kept
SAMPLE = 1024  # values from which to tell what coding a matrix would take


class Update:
    """What is to be encoded, over a power of two so that it is at most 1, with all that does not depend on the step."""

    def __init__(self, values: FloatVector, layout: TensorLayout, bits: float) -> None:
        self.size = layout.size
        low, high = int8.row_range(values.reshape(1, -1)) if values.size else ([0.0], [0.0])
        self.exponent = math.frexp(max(-float(low[0]), float(high[0])))[1]
        # By a product where that is exact, for it takes a tenth of the time.
        small = abs(self.exponent) < 100
        scaled = values * np.float32(2.0**-self.exponent) if small else np.ldexp(values, -self.exponent)
        self.matrices = [
            _Matrix(scaled[span].reshape(rows, columns), bits) for span, rows, columns in layout.matrices()
        ]
        self.energy = sum(matrix.energy for matrix in self.matrices)

    def ranks(self, log2_step: float) -> list[int]:
        return [matrix.rank(2**log2_step) for matrix in self.matrices]


class _Matrix:
    """One tensor and, if it may be factored, its singular values and scaled right singular vectors."""

    def __init__(self, x: Matrix, bits: float) -> None:
        self.x = x
        self.energy = float(np.vdot(x, x))
        self.singular = np.empty(0)
        if may_be_factored(*x.shape) and self.energy > 0:
            # A component takes 1.8 bits per number or more, the more of them there are.
            most = int(bits * x.size / (1.8 * sum(x.shape))) + 8
            self.singular, self.right = factors.right_factors(x, min(most, MAX_RANK, *x.shape))
            self.lag = factors.strongest_lag(self.right)
            # Where neighbours are alike, their numbers take fewer bits; the figures fit recorded updates within 7 %.
            self.bits_forecast = math.exp(0.36 - 0.8 * max(0.0, factors.likeness(self.right)))
            self.sample = _sample(x)

    def rank(self, step: float) -> int:
        """How many components to keep; 0 where the matrix is coded better as it is."""
        rank = int(np.count_nonzero(self.singular > self.least_kept(step)))
        if not rank:
            return 0
        rows, kept = self.x.shape[0], self.singular[:rank]
        left_out = max(0.0, self.energy - float(np.sum(kept**2))) / step**2
        right = self.right[:rank]
        factored = _cost(kept / (step * math.sqrt(rows)), rows * rank) + _cost(_sample(right) / step, right.size)
        return rank if left_out + factored < _cost(self.sample / step, self.x.size) else 0

    def least_kept(self, step: float) -> float:
        """The singular value from which on a component is worth its numbers."""
        return step * math.sqrt(KEPT * sum(self.x.shape))

    def groups(self) -> NDArray[np.float64]:
        """How many numbers of what rms up to which step are coded, and a factor of their bits: (4, groups)."""
        if not self.singular.size:
            return np.array([[self.x.size], [math.sqrt(self.energy / self.x.size)], [math.inf], [1.0]])
        groups = np.empty((4, 2, self.singular.size))
        groups[0] = lengths = np.array(self.x.shape)[:, None]
        groups[1] = self.singular / np.sqrt(lengths)
        groups[2] = self.singular / self.least_kept(1.0)
        groups[3] = self.bits_forecast
        return groups.reshape(4, -1)


def _sample(x: Matrix) -> Matrix:
    """Some of its values, from all of its columns."""
    stride = max(1, x.size // SAMPLE)
    while math.gcd(stride, x.shape[1]) > 1:
        stride += 1
    return x.ravel()[::stride]


def _cost(numbers: NDArray[np.floating], count: int) -> float:
    """Roughly squared errors + lambda * bits, in steps^2, of `count` numbers in steps that are like these."""
    sizes = np.abs(numbers)
    return float(np.mean(np.minimum(sizes * sizes, 0.1) + 0.3 * np.log2(1 + sizes))) * count


class Coding:
    """One update at one step: `nbytes` of body, and offsets that would have been better."""

    def __init__(self, update: Update, step: Step, ranks: Sequence[int], offsets: tuple[int, int]) -> None:
        self._header = HEADER.pack(step.exponent + 4 * update.exponent, step.fine, *offsets)
        self._step, self._offsets, self._encoder = step, offsets, PlaneEncoder(8 * update.size + 4096)
        self._energy, self._errors = update.energy, list(map(self._put, update.matrices, ranks))
        self.nbytes = HEADER.size + self._encoder.end()
        one, more = (
            total / count if count else 1.0 for count, total in self._encoder.seen[PLAIN].reshape(-1, 2).tolist()
        )
        self.better_offsets = _offset(one), _offset(more)

    @property
    def nmse(self) -> float:
        return sum(error() for error in self._errors) / self._energy if self._energy else 0.0

    @property
    def body(self) -> bytes:
        return self._header + self._encoder.data()

    def _put(self, matrix: _Matrix, rank: int) -> Callable[[], float]:
        """Write one tensor; returns what works out the sum of squared errors."""
        self._encoder.put_numbers(RANK, rank)
        if rank:
            return self._put_factors(matrix, rank)
        x = matrix.x / np.float32(self._step.value)
        one, more = self._offsets
        q = self._encoder.put_plane(PlaneForm(*x.shape), x, LAMBDA[PLAIN], one / LEVEL_UNIT, more / LEVEL_UNIT)

        def error() -> float:
            lost = x - decode_levels(q, one, more, 1 / LEVEL_UNIT)
            return float(np.vdot(lost, lost)) * self._step.value**2

        return error

    def _put_factors(self, matrix: _Matrix, rank: int) -> Callable[[], float]:
        singular, (rows, columns) = matrix.singular[:rank], matrix.x.shape
        # Against the step's exponent alone: were it against the step, a hair's breadth could move all by a fifth.
        levels = np.clip(np.rint(4 * np.log2(singular)) - self._step.exponent, 0, MAX_LEVEL).astype(int).tolist()
        self._encoder.put_numbers(FIRST_LEVEL, levels[0])
        self._encoder.put_numbers(LEVEL_FALL, *(before - after for before, after in itertools.pairwise(levels)))
        in_steps = 2.0 ** (np.array(levels) / 4) / self._step.mantissa / singular
        right = matrix.right[:rank] * in_steps.astype(np.float32)[:, None]
        lag, taps = factors.prediction(right, matrix.lag)
        self._encoder.put_numbers(LAG, lag)
        self._encoder.put_numbers(TAP, *map(zigzag, taps))
        right = decoded_right(self._put_factor(right_form(levels, columns, lag, taps), right), levels, self._step)
        products, gram = right @ matrix.x.T, right @ right.T
        left = factors.left_factors(gram, products)
        q = self._put_factor(left_form(levels, rows), left / np.float32(self._step.value))

        def error() -> float:
            """|x - leftᵀ right|²."""
            left = decoded_left(q, self._step)
            return max(0.0, matrix.energy - 2 * float(np.vdot(left, products)) + float(np.vdot(left, gram @ left)))

        return error

    def _put_factor(self, form: PlaneForm, x: Matrix) -> NDArray[np.int16]:
        return self._encoder.put_plane(form, x, LAMBDA[FACTOR], 1, 1)


def _offset(mean: float) -> int:
    return min(max(round(LEVEL_UNIT * mean), MIN_OFFSET), MAX_OFFSET)
