"""The step at which an update keeps to a number of bytes, or to an error, found in as few codings as may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from edge_runtime.kernels.context import MAX_MAGNITUDE
from edge_runtime.updates.context.encoding import Coding, Update
from edge_runtime.updates.context.format import HEADER, Step

MOST_CODINGS = 6
NEAR = 0.1  # from here on, in log2, other ranks would do better
SLOPE, MIN_SLOPE = 0.75, 0.1  # of the measure over the step, both in log2, while ranks stay: the usual and the least
MIN_EXPONENT = -100  # of the step: an update below it vanishes
OFFSETS = (80, 66)  # to begin with: what they turn out to be in most updates

Measure = Literal["nbytes", "nmse"]


def search(update: Update, measure: Measure, target: float, slack: float) -> Coding:
    """A coding that measures at most `target` and, where a few attempts find one, at least (1 - slack) of it."""
    forecast = _Forecast(update, measure)
    best: Coding | None = None
    points: list[tuple[float, float]] = []  # step and measure of codings with the present ranks, in log2
    goal = math.log2(target * (1 - slack / 2))
    at = forecast.step_for(goal)
    ranks, offsets = update.ranks(at), OFFSETS
    for attempt in range(MOST_CODINGS):
        coding = Coding(update, Step.near(at), ranks, offsets)
        measured = max(float(getattr(coding, measure)), 1e-30)
        if measured <= target and (best is None or measured > getattr(best, measure)):
            best = coding
        if (1 - slack) * target <= measured <= target:
            break
        offsets, before = coding.better_offsets, at
        points.append((at, math.log2(measured)))
        at = forecast.next_step(points, goal, far=attempt == 0)
        if attempt == 0 and (other := update.ranks(at)) != ranks:
            # Only once: with a component more or less, bytes jump over the target.
            ranks, points = other, []
        if at == before:
            break
    return best or Coding(update, Step.near(forecast.safest), [0] * len(update.matrices), offsets)


class _Forecast:
    """log2 of steps, and what the measure should be at each: from the sizes of the numbers alone.

    A number of rms s steps takes about log2(1 + 5 s^2) / 2 bits and leaves an error of min(s^2, 1/8). What codings turn
    out to measure is some factor away, and one that hardly depends on the step.
    """

    def __init__(self, update: Update, measure: Measure) -> None:
        # No integer may pass MAX_MAGNITUDE, nor the step fall below the normal numbers; at 4 all is zero.
        largest = max((math.sqrt(matrix.energy) for matrix in update.matrices), default=0.0)
        finest = max(math.log2(max(largest, 1e-9) * 1.2 / MAX_MAGNITUDE), MIN_EXPONENT - update.exponent)
        self._steps = np.linspace(finest, max(2.0, finest), 40)
        self.safest = float(self._steps[-1 if measure == "nbytes" else 0])
        parts = [matrix.groups() for matrix in update.matrices] or [np.empty((4, 0))]
        counts, sizes, limits, scales = np.concatenate(parts, axis=1)
        steps = 2.0 ** self._steps[:, None]
        coded = steps < limits
        if measure == "nbytes":
            bits = np.where(coded, scales * counts * np.log2(1 + 5 * (sizes / steps) ** 2) / 2, 0).sum(axis=1)
            self._rising, forecast = -1, HEADER.size + bits / 8
        else:
            errors = counts * np.where(coded, np.minimum(sizes**2, steps**2 / 8), sizes**2 / 2)
            self._rising, forecast = 1, errors.sum(axis=1) / max(update.energy, 1e-30)
        self._logs = np.log2(np.maximum(forecast, 1e-30))

    def step_for(self, goal: float) -> float:
        """The step at which the measure should be `goal`, in log2: the nearest one that is allowed."""
        way = slice(None, None, self._rising)
        return float(np.interp(goal, self._logs[way], self._steps[way]))

    def next_step(self, points: Sequence[tuple[float, float]], goal: float, *, far: bool) -> float:
        """From what was measured with the same ranks, nearest to the goal: on the line through two points.

        With one, the measure moves by SLOPE; or where it is `far` from the goal, as the forecast does.
        """
        (at, measured), *others = sorted(points, key=lambda point: abs(point[1] - goal))
        slope = self._rising * SLOPE
        if others:
            drawn = (measured - others[0][1]) / (at - others[0][0])
            slope = drawn if drawn * self._rising > MIN_SLOPE else slope
        elif far and abs(measured - goal) > NEAR:
            return self.step_for(goal + float(np.interp(at, self._steps, self._logs)) - measured)
        return min(max(at + (goal - measured) / slope, float(self._steps[0])), float(self._steps[-1]))
