"""The range of every value, measured on example inputs: what the grids of activations are laid over.

Methods: `minmax`; `percentile` (the 0.01 % at each end is cut off); `mse` and `entropy`, which shrink the range to
where the mean squared error of rounding, or the Kullback-Leibler divergence between the values' histogram and that of
the rounded ones (Migacz 2017, "8-bit inference with TensorRT"), is least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.graph.evaluate import ROWS, Evaluator, all_inputs
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.errors import ConfigError, NumericsError

Range = tuple[float, float]
BINS, TAIL = 2048, 1e-4
FRACTIONS = np.linspace(0.4, 1.0, 31)  # of the whole range, that a search tries
STEPS = 255  # of the grid


def calibrate(
    model: FloatModel, batches: Iterable[NDArray[np.generic]], method: str = "minmax", rows: int = ROWS
) -> dict[str, Range]:
    """Least and greatest of each float32 value that has the batch in front, over all inputs.

    Raises:
        ConfigError: no such method, or no inputs.
        NumericsError: a value is NaN or infinite.

    """
    if method != "minmax" and method not in SEARCHES:
        raise ConfigError(f"calibrate = {method!r}: must be one of minmax, {', '.join(SEARCHES)}")
    inputs = [x for x in all_inputs(batches, rows) if len(x)]
    if not inputs:
        raise ConfigError("calibration is empty: give at least one batch of inputs")
    evaluator = Evaluator(model, max(map(len, inputs)))
    ranges = _extremes(evaluator, inputs)
    if method == "minmax":
        return ranges
    counts = {name: np.zeros(BINS, np.int64) for name in ranges}
    for x in inputs:
        for name, value in _floats(evaluator, x).items():
            counts[name] += np.histogram(value, BINS, _wide(ranges[name]))[0]
    return {name: SEARCHES[method](counts[name], _wide(ranges[name])) for name in ranges}


def _floats(evaluator: Evaluator, x: NDArray[np.generic]) -> Mapping[str, NDArray[np.generic]]:
    return {name: value for name, value in evaluator.values(x).items() if value.dtype == np.float32}


def _extremes(evaluator: Evaluator, inputs: list[NDArray[np.generic]]) -> dict[str, Range]:
    ranges: dict[str, Range] = {}
    for x in inputs:
        for name, value in _floats(evaluator, x).items():
            low, high = float(value.min()), float(value.max())
            if not np.isfinite((low, high)).all():
                raise NumericsError(f"calibration: {name} is NaN or infinite")
            before = ranges.get(name, (low, high))
            ranges[name] = (min(low, before[0]), max(high, before[1]))
    return ranges


def _wide(bounds: Range) -> Range:
    """With 0 in it, and not empty."""
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    return (low, high) if high > low else (low, low + 1.0)


def _percentile(counts: NDArray[np.int64], bounds: Range) -> Range:
    shares = np.cumsum(counts) / counts.sum()
    edges = np.linspace(*bounds, BINS + 1)
    first = int(np.searchsorted(shares, TAIL))
    last = int(np.searchsorted(shares, 1 - TAIL))
    return float(edges[first]), float(edges[min(last, BINS - 1) + 1])


def _least(cost: Callable[[NDArray[np.int64], Range, Range], float]) -> Callable[[NDArray[np.int64], Range], Range]:
    """A search for the shrunk range of least cost."""

    def search(counts: NDArray[np.int64], bounds: Range) -> Range:
        tried = [(bounds[0] * a, bounds[1] * a) for a in FRACTIONS]
        best: Range = min(reversed(tried), key=lambda shrunk: cost(counts, bounds, shrunk))
        return best

    return search


def _rounded(bounds: Range, shrunk: Range) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres of the bins, and where rounding puts them."""
    edges = np.linspace(*bounds, BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    step = (shrunk[1] - shrunk[0]) / STEPS
    return centres, np.clip(np.rint((centres - shrunk[0]) / step), 0, STEPS) * step + shrunk[0]


def _squared_error(counts: NDArray[np.int64], bounds: Range, shrunk: Range) -> float:
    centres, rounded = _rounded(bounds, shrunk)
    return float((counts * (centres - rounded) ** 2).sum())


def _divergence(counts: NDArray[np.int64], bounds: Range, shrunk: Range) -> float:
    """KL(p || q): p the histogram clipped to the range, q its mass spread evenly over the bins that round alike."""
    _, rounded = _rounded(bounds, shrunk)
    _, level = np.unique(rounded, return_inverse=True)
    centres = np.linspace(*bounds, BINS)
    inside = (centres >= shrunk[0]) & (centres <= shrunk[1])
    p = np.where(inside, counts, 0).astype(np.float64)
    first, last = np.flatnonzero(inside)[[0, -1]]
    p[first] += counts[:first].sum()
    p[last] += counts[last + 1 :].sum()
    filled = (p > 0) & inside
    mass = np.bincount(level, np.where(inside, counts, 0))
    places = np.bincount(level, filled)
    q = np.where(filled, (mass / np.maximum(places, 1))[level], 0)
    p, q = p / p.sum(), q / max(q.sum(), 1e-12)
    return float((p[filled] * np.log(p[filled] / np.maximum(q[filled], 1e-12))).sum())


SEARCHES: Mapping[str, Callable[[NDArray[np.int64], Range], Range]] = {
    "percentile": _percentile,
    "entropy": _least(_divergence),
    "mse": _least(_squared_error),
}
