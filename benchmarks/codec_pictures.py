"""The two pictures of the codec benchmark, drawn from figures that it just measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ("#c0392b", "#2c3e50", "#7f8c8d", "#2980b9", "#27ae60", "#8e44ad", "#e67e22", "#16a085", "#b8860b")
MARKERS = "osD^vPX<>"
DPI = 110


@dataclass(frozen=True, slots=True)
class Line:
    """A codec's (bits per parameter, NMSE) points in one panel."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Dot:
    """A codec in the accuracy picture: megabytes sent, mean accuracy, and the least and most over the seeds."""

    label: str
    megabytes: float
    accuracy: float
    low: float
    high: float


def draw_nmse(panels: Mapping[str, Sequence[Line]], out: Path) -> None:
    """NMSE against bits per parameter, both on a logarithmic scale, a panel a recording."""
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.4 * columns, 4.1 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (name, lines) in zip(axes.flat, panels.items(), strict=False):
        for line, colour, marker in zip(lines, COLOURS, MARKERS, strict=False):
            shown = sorted(line.points)
            axis.plot(
                [bits for bits, _ in shown],
                [nmse for _, nmse in shown],
                color=colour,
                marker=marker,
                ms=4,
                lw=1.3,
                label=line.label,
            )
        axis.set(xscale="log", yscale="log", title=name, xlim=(0.04, 10), ylim=(1e-4, 2))
        axis.set_xticks([0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8], ["0.05", "0.1", "0.25", "0.5", "1", "2", "4", "8"])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    for axis in axes[-1]:
        axis.set_xlabel("bits per parameter, of real bytes")
    for axis in axes[:, 0]:
        axis.set_ylabel("NMSE")
    axes[0, 0].legend(fontsize=8, loc="lower left")
    _write(figure, out)


def draw_accuracy(dots: Sequence[Dot], rounds: int, out: Path) -> None:
    """Accuracy against uplink megabytes of the whole run, which are on a logarithmic scale."""
    figure, axis = plt.subplots(figsize=(8.6, 4.2))
    for dot, colour, marker in zip(dots, COLOURS * 2, MARKERS * 2, strict=False):
        bar = [[max(0.0, dot.accuracy - dot.low)], [max(0.0, dot.high - dot.accuracy)]]
        axis.errorbar(
            dot.megabytes, dot.accuracy, bar, color=colour, marker=marker, ms=6, capsize=3, ls="", label=dot.label
        )
    axis.set(xscale="log", xlabel="uplink MB of the whole run", ylabel=f"test accuracy at round {rounds}")
    ticks = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _write(figure, out)


def _write(figure: plt.Figure, out: Path) -> None:
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=DPI)
    plt.close(figure)
