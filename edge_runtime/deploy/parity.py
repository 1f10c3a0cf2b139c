"""The gate between a written file and a released one: it is run, measured, and held against what it must be.

A file is released only if its answers are those that its graph defines, if it loses no more accuracy to the float32
model than was allowed, and if its latency and memory were measured in a process of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.exporter import Contents, Prepared, file_name
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.rounding import predict_rounded
from edge_runtime.deploy.latency import cost_of
from edge_runtime.deploy.runner import Runner
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.train.metrics import accuracy, agreement

Outputs = NDArray[np.float32]
# Root mean square of what a file answers beside its definition, over that of the definition. Float32 sums in another
# order; in INT8, steps of a grid that fall the other way.
FAITHFUL = {"fp32": 1e-3, "int8": 0.05}


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file is held against, on held-out inputs x (n, ...).

    Attributes:
        x, y: inputs, and classes (n,) or (n, T); None where the model gives no classes.
        float32: outputs of the float32 model (n, ...).
        defined: by precision, outputs that the graph defines.
        max_drop: points of accuracy that may be lost.

    """

    x: NDArray[np.generic]
    y: NDArray[np.integer] | None
    float32: Outputs
    defined: dict[str, Outputs]
    max_drop: float


@dataclass(frozen=True, slots=True)
class Figures:
    """One file's row. `refused` says why it is not released; None if it is.

    Attributes:
        accuracy, agreement: shares; agreement is that of rows with the float32 model's class. None without classes.
        difference: largest absolute difference of an output from the float32 model's.
        unfaithfulness: root mean square difference from what the graph defines, over its root mean square.
        latency_us: one row, one thread, processor time, median.
        peak_rss_bytes: of a process that loads and runs it.

    """

    file: str
    format: str
    precision: str
    nbytes: int
    accuracy: float | None = None
    agreement: float | None = None
    difference: float | None = None
    unfaithfulness: float | None = None
    latency_us: float | None = None
    peak_rss_bytes: int | None = None
    refused: str | None = None


def expected_of(
    original: FloatModel,
    prepared: Prepared,
    x: NDArray[np.generic],
    y: NDArray[np.integer] | None,
    max_drop: float,
) -> Expected:
    """What files of `prepared` are held against: their own graph's answers, and the accuracy of the original."""
    defined = {"fp32": predict(prepared.float_model, x)}
    if prepared.quantised is not None:
        defined["int8"] = predict_rounded(prepared.quantised, x)
    float32 = defined["fp32"] if original is prepared.float_model else predict(original, x)
    return Expected(x, y, float32, defined, max_drop)


def judged(contents: Contents, expected: Expected) -> tuple[list[Figures], Contents]:
    """Every file's row, and the files that may be released."""
    rows = [
        measured(file_name(name, precision), name, precision, content, expected)
        for name, of in contents.items()
        for precision, content in of.items()
    ]
    released: dict[str, dict[str, bytes]] = {}
    for row in rows:
        if row.refused is None:
            released.setdefault(row.format, {})[row.precision] = contents[row.format][row.precision]
    return rows, released


def measured(file: str, name: str, precision: str, content: bytes, expected: Expected) -> Figures:
    """Run the bytes of one file, and judge them."""
    figures = Figures(file, name, precision, len(content))
    try:
        outputs = Runner.of(content, Path(file).suffix).predict_all(expected.x)
        cost = cost_of(content, Path(file).suffix, expected.x[:1])
    except (EdgeRuntimeError, ValueError, MemoryError) as error:
        return dataclasses.replace(figures, refused=" ".join(str(error).split()))
    defined = expected.defined[precision].astype(np.float64)
    spread = max(_spread(defined, precision), 1e-12)
    figures = dataclasses.replace(
        figures,
        accuracy=None if expected.y is None else float(accuracy(outputs, expected.y)),
        agreement=None if expected.y is None else float(agreement(outputs, expected.float32)),
        difference=float(np.abs(outputs - expected.float32).max()),
        unfaithfulness=float(np.sqrt(np.mean((outputs - defined) ** 2))) / spread,
        latency_us=cost.latency_us,
        peak_rss_bytes=cost.peak_rss_bytes,
    )
    return dataclasses.replace(figures, refused=why_not(figures, expected))


def _spread(defined: NDArray[np.float64], precision: str) -> float:
    """Root mean square; in float32 about each output's mean, behind which an answer could hide that is no answer.

    Not below a hundredth of the whole, of which float32 sums keep some 1e-6; and a grid's steps are of the whole.
    """
    whole = float(np.sqrt(np.mean(defined**2)))
    return whole if precision != "fp32" else max(float(np.sqrt(np.mean(defined.var(0)))), 0.01 * whole)


def why_not(figures: Figures, expected: Expected) -> str | None:
    """Why the file is not released; None if it may be."""
    if (
        figures.difference is None
        or figures.unfaithfulness is None
        or not figures.latency_us
        or not figures.peak_rss_bytes
    ):
        return "it was not measured"
    if not np.isfinite(figures.difference):
        return "its answers are not finite"
    if figures.unfaithfulness > FAITHFUL[figures.precision]:
        return (
            f"its answers differ from what its graph defines by {100 * figures.unfaithfulness:.2g} %, "
            f"{100 * FAITHFUL[figures.precision]:g} % are allowed"
        )
    if expected.y is not None and figures.accuracy is not None:
        drop = 100 * (float(accuracy(expected.float32, expected.y)) - figures.accuracy)
        if drop > expected.max_drop + 1e-9:
            return f"it loses {drop:.1f} points of accuracy, {expected.max_drop:g} are allowed"
    return None


def table(rows: Iterable[Figures]) -> str:
    """One line for each file: format, size, accuracy, agreement, latency, memory."""
    head = ("file", "KB", "accuracy", "agreement", "latency", "RSS", "")
    lines = [head, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    text = []
    for line in lines:
        cells = [
            line[0].ljust(widths[0]),
            *(one.rjust(width) for one, width in zip(line[1:6], widths[1:], strict=True)),
        ]
        text.append("  ".join([*cells, line[6]]).rstrip())
    return "\n".join(text)


def _cells(row: Figures) -> tuple[str, ...]:
    return (
        row.file,
        f"{row.nbytes / 1e3:.1f}",
        "-" if row.accuracy is None else f"{100 * row.accuracy:.1f} %",
        "-" if row.agreement is None else f"{row.agreement:.3f}",
        "-" if row.latency_us is None else f"{row.latency_us:.0f} us",
        "-" if row.peak_rss_bytes is None else f"{row.peak_rss_bytes / 1e6:.0f} MB",
        "" if row.refused is None else f"not released: {row.refused}",
    )
