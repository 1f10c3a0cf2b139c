"""nncodec's best NMSE at any rate: its curves over the step size in every setting, and their lower envelope.

nncodec runs in an environment of its own, .venv-nncodec of the checkout or the folder that HEDGEROW_NNCODEC names
(`make rivals-nncodec` sets it up).
"""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from codec_jobs import Coder, size_and_rms
from processes import HERE

OCTAVE = 16  # values of qp that double the step
COARSE = OCTAVE // 2
FEWEST, MOST = 0.08, 1.25  # bits per parameter that a curve covers, with one point beyond at either end
WIDEST = 1.4  # ratio of the rates of neighbouring points, where there is a qp between them


@dataclass(frozen=True, slots=True)
class Setting:
    """With or without dependent quantisation, and the weight of the rate in its decisions."""

    use_dq: bool
    lambda_scale: float

    def __str__(self) -> str:
        return f"{'DQ' if self.use_dq else 'SQ'} lambda {self.lambda_scale:g}"


# With it, 1 and 2 are best nearly everywhere; 4 and 6 on updates of few steps of Adam, most of whose values are equal.
SETTINGS = (
    *(Setting(False, scale) for scale in (0.0, 1.0, 2.0)),
    *(Setting(True, scale) for scale in (0.0, 1.0, 2.0, 4.0, 6.0)),
)


@dataclass(frozen=True, slots=True)
class Point:
    """One coded update: bits per parameter and NMSE."""

    qp: int
    bits: float
    nmse: float


@dataclass(frozen=True, slots=True)
class Curve:
    """What one setting reaches on one update, from few bits to many."""

    setting: Setting
    points: tuple[Point, ...]

    def nmse_at(self, bits: float) -> float:
        """Interpolated in log NMSE over log bits; see `interpolate` for rates outside the curve."""
        return interpolate([(point.bits, point.nmse) for point in self.points], bits)

    def nearest(self, bits: float) -> Point:
        return min(self.points, key=lambda point: abs(math.log(point.bits / bits)))

    def as_json(self) -> dict[str, Any]:
        return {"setting": asdict(self.setting), "points": [asdict(point) for point in self.points]}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Curve:
        return cls(Setting(**found["setting"]), tuple(Point(**point) for point in found["points"]))


@dataclass(frozen=True, slots=True)
class Best:
    """The lower envelope at one rate: the NMSE, and the setting and step size that come to lie there."""

    bits: float
    nmse: float
    setting: Setting
    qp: int


def interpolate(points: Iterable[tuple[float, float]], bits: float) -> float:
    """NMSE at `bits` on the curve through (bits, nmse) points, straight in logarithms.

    Below the curve it is that of the curve's first point, as if that took no more bytes; above it is infinite.
    """
    rates, errors = zip(*sorted(points), strict=True)
    if bits > rates[-1]:
        return math.inf
    return float(np.exp(np.interp(math.log(bits), np.log(rates), np.log(errors))))


def lower_envelope(curves: Sequence[Curve], bits: float) -> Best:
    """The least NMSE that any of the curves has at this rate."""
    best = min(curves, key=lambda curve: curve.nmse_at(bits))
    return Best(bits, best.nmse_at(bits), best.setting, best.nearest(bits).qp)


def nncodec_python() -> Path:
    folder = os.environ.get("HEDGEROW_NNCODEC")
    return (Path(folder) if folder else HERE.parent / ".venv-nncodec") / "bin" / "python"


def why_missing() -> str:
    """Why nncodec cannot run here, as one line for the reader; "" where it can."""
    python = nncodec_python()
    look = "import sys; from importlib.util import find_spec; sys.exit(find_spec('nncodec') is None)"
    there = python.is_file() and subprocess.run([python, "-c", look], check=False).returncode == 0
    return "" if there else "skipped: nncodec (make rivals-nncodec builds it)"


def start_nncodec() -> Coder:
    return Coder(nncodec_python(), "nncodec_rival.py")


def curves(nncodec: Coder, update: Path, settings: Sequence[Setting] = SETTINGS) -> list[Curve]:
    """One curve a setting, by ever finer steps from FEWEST to MOST bits per parameter."""
    return [Curve(setting, tuple(_walk(nncodec, update, setting))) for setting in settings]


def _walk(nncodec: Coder, update: Path, setting: Setting) -> list[Point]:
    def code(qp: int) -> Point:
        found = nncodec.run(update, qp=qp, **asdict(setting))
        return Point(qp, found.bits, found.nmse)

    _, rms = size_and_rms(update)
    # Begin where nearly all is zero.
    points = [code(COARSE * round(OCTAVE * math.log2(16 * rms) / COARSE))]
    while points[-1].bits < MOST:
        points.append(code(points[-1].qp - COARSE))
    while len(points) > 1 and points[1].bits < FEWEST:
        points.pop(0)
    at = 0
    while at + 1 < len(points):
        here, there = points[at : at + 2]
        # Some updates have many values of one size, and a small change of the step doubles the rate.
        if there.bits > WIDEST * here.bits and here.qp - there.qp > 1:
            points.insert(at + 1, code((here.qp + there.qp) // 2))
        else:
            at += 1
    return points
