"""What benchmarks hold their figures against, and the mean of ratios."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """What a figure is held against; a figure that is NaN was not measured."""

    text: str
    figure: float
    limit: float
    at_most: bool = False

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        verdict = "not measured" if math.isnan(self.figure) else "holds" if self.holds else "MISSED"
        return f"{self.text} {sign} {self.limit:g}: {self.figure:.2f}, {verdict}"

    @property
    def holds(self) -> bool:
        return self.figure <= self.limit if self.at_most else self.figure >= self.limit


def geomean(ratios: Iterable[float]) -> float:
    """Of those that were measured; NaN if none was."""
    logs = [math.log(ratio) for ratio in ratios if not math.isnan(ratio)]
    return math.exp(statistics.fmean(logs)) if logs else math.nan
