"""Whether a model that has just been installed does its work: errors, latency and confidence over a window of answers.

The caller reports every answer; `verdict` is the window's. What it is compared with was measured before: the trial's
latency, or the same figures of the model before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum


class Verdict(Enum):
    """Of a window."""

    WAIT = "wait"
    GOOD = "good"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Expected:
    """The bounds of a healthy window.

    `confidence` is the mean of the top probability that the model showed before, or None where there is none.
    """

    window: int = 100
    max_error_rate: float = 0.02
    max_latency_p95_s: float = math.inf
    confidence: float | None = None
    max_confidence_drift: float = 0.15


@dataclass(slots=True)
class Health:
    """Counts the first `expected.window` answers, and then knows. Errors beyond repair end it early."""

    expected: Expected = field(default_factory=Expected)
    errors: int = 0
    latencies_s: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)

    def answered(self, latency_s: float, confidence: float | None = None) -> None:
        """One answer: how long it took, and its top probability where it has one. NaN counts as an error."""
        if self.seen >= self.expected.window:
            return
        if not math.isfinite(latency_s) or (confidence is not None and not math.isfinite(confidence)):
            self.failed()
            return
        self.latencies_s.append(latency_s)
        if confidence is not None:
            self.confidences.append(confidence)

    def failed(self) -> None:
        """An input that got no answer, or one that cannot be."""
        self.errors += self.seen < self.expected.window

    @property
    def seen(self) -> int:
        """Answers and errors so far."""
        return self.errors + len(self.latencies_s)

    @property
    def latency_p95_s(self) -> float:
        """The latency that 95 % of the answers keep; 0 before the first."""
        ordered = sorted(self.latencies_s)
        return ordered[math.ceil(0.95 * len(ordered)) - 1] if ordered else 0.0

    @property
    def confidence(self) -> float | None:
        """The mean top probability."""
        return sum(self.confidences) / len(self.confidences) if self.confidences else None

    def judge(self) -> tuple[Verdict, str]:
        """The verdict so far, and why."""
        expected, seen = self.expected, self.seen
        if self.errors > expected.max_error_rate * expected.window:
            return Verdict.BAD, f"{self.errors} errors in {seen} answers; {expected.max_error_rate:.1%} are allowed"
        if seen < expected.window:
            return Verdict.WAIT, f"{seen} of {expected.window} answers"
        if self.latency_p95_s > expected.max_latency_p95_s:
            return Verdict.BAD, f"latency p95 {self.latency_p95_s:.4g} s is above {expected.max_latency_p95_s:.4g} s"
        mean, wanted = self.confidence, expected.confidence
        if mean is not None and wanted is not None and abs(mean - wanted) > expected.max_confidence_drift:
            return Verdict.BAD, f"mean confidence {mean:.3f}, expected {wanted:.3f}"
        return Verdict.GOOD, f"{seen} answers, {self.errors} errors, latency p95 {self.latency_p95_s:.4g} s"
