"""One update of many, some of which may be wrong on purpose.

A rule is a function of a round's updates, n rows of d float32 values, to one of d float64 values. Clients count alike:
their numbers of examples are their own claim, and whoever lies would claim many. `RobustConfig.why_not` has what each
rule needs; docs/robust.md says which one to take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import RunError
from edge_runtime.kernels import native
from server.aggregate import Aggregate, WeightedSum, check_update
from server.protection_config import RobustConfig

Rows = Sequence[NDArray[np.float32]]
Vector = NDArray[np.float64]

BLOCK = 8192  # coordinates at a time: what a rule works on stays in the cache, and beside the rows there is little else


def make_aggregate(config: RobustConfig, size: int) -> Aggregate:
    """What updates of shape (size,), or groups' means, are added to. `mean` raises RunError when they are too few."""
    return AGGREGATORS[config.aggregator](config, size)


def trimmed_mean(rows: Rows, cut: int) -> Vector:
    """Of each coordinate's n values the mean without the `cut` smallest and largest (Yin et al. 2018)."""
    result = np.empty(rows[0].size)
    for where, block in _blocks(rows):
        # Each coordinate's values side by side: NumPy sorts many short rows far faster than along the other axis.
        ordered = np.sort(np.ascontiguousarray(block.T), axis=1)
        result[where] = ordered[:, cut : len(rows) - cut].mean(axis=1, dtype=np.float64)
    return result


def median(rows: Rows) -> Vector:
    """Coordinate-wise (Yin et al. 2018): the middle value, or the mean of the middle two."""
    return trimmed_mean(rows, (len(rows) - 1) // 2)


def multi_krum(rows: Rows, byzantine: int, keep: int) -> Vector:
    """The mean of the `keep` updates of least score; of one, it is Krum (Blanchard et al. 2017)."""
    best = np.argsort(krum_scores(rows, byzantine), kind="stable")[:keep]
    return _mean([rows[k] for k in best], np.ones(keep))


def krum_scores(rows: Rows, byzantine: int) -> Vector:
    """Of each of the n updates, the sum of the squared distances to its n - f - 2 nearest others; f = `byzantine`."""
    distances = squared_distances(rows)
    np.fill_diagonal(distances, np.inf)
    scores: Vector = np.sort(distances, axis=1)[:, : len(rows) - byzantine - 2].sum(axis=1)
    return scores


def squared_distances(rows: Rows) -> Vector:
    """Between all pairs of rows, shape (n, n), as |x|^2 + |y|^2 - 2 x.y.

    In float64 that errs by 1e-15 of the larger square, and the largest float32 values do not overflow. An entry takes
    nothing from other rows, so a huge one spoils no distance but its own.
    """
    products = np.zeros((len(rows), len(rows)))
    for _, block in _blocks(rows):
        values = block.astype(np.float64)
        products += values @ values.T
    squares = np.diagonal(products)
    distances: Vector = np.maximum(squares[:, None] + squares - 2 * products, 0.0)
    return distances


def bounded_mean(rows: Rows, bound: float) -> Vector:
    """The mean of updates scaled down to an L2 norm of at most `bound` (Sun et al. 2019)."""
    return _mean(rows, [shrinkage(row, bound) for row in rows])


def shrinkage(row: NDArray[np.float32], bound: float) -> float:
    """What to multiply by."""
    length = norm(row)
    return bound / length if length > bound else 1.0


def median_norm(rows: Rows) -> float:
    return float(np.median([norm(row) for row in rows]))


def norm(row: NDArray[np.float32]) -> float:
    """The L2 norm in float64, where the largest float32 values have one."""
    squares = 0.0
    for _, block in _blocks([row]):
        values = block[0].astype(np.float64)
        squares += float(values @ values)
    return math.sqrt(squares)


def _mean(rows: Rows, factors: Sequence[float] | Vector) -> Vector:
    total = np.zeros(rows[0].size)
    for row, factor in zip(rows, factors, strict=True):
        native.accumulate(total, row, float(factor))
    return total / len(rows)


def _blocks(rows: Rows) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    for start in range(0, rows[0].size, BLOCK):
        where = slice(start, start + BLOCK)
        yield where, np.array([row[where] for row in rows])


class BoundedSum:
    """The running sum of updates scaled down to an L2 norm of at most `config.norm`; nothing but the sum is held."""

    def __init__(self, config: RobustConfig, size: int) -> None:
        self._config, self._sum = config, np.zeros(size)
        self.total_weight = 0
        self.count = 0

    def add(self, update: NDArray[np.float32], weight: int) -> None:
        check_update(update, weight)
        native.accumulate(self._sum, update, shrinkage(update, self._config.norm))
        self.total_weight += weight
        self.count += 1

    def mean(self) -> Vector:
        _check_enough(self._config, self.count)
        return self._sum / self.count


class HeldUpdates:
    """A round's updates, all of them, for a rule that compares them: 4 n d bytes."""

    def __init__(self, config: RobustConfig, rule: Callable[[Rows, RobustConfig], Vector]) -> None:
        self._config, self._rule = config, rule
        self._rows: list[NDArray[np.float32]] = []
        self.total_weight = 0
        self.count = 0

    def add(self, update: NDArray[np.float32], weight: int) -> None:
        check_update(update, weight)
        self._rows.append(update.copy())
        self.total_weight += weight
        self.count += 1

    def mean(self) -> Vector:
        _check_enough(self._config, self.count)
        return self._rule(self._rows, self._config)


def _check_enough(config: RobustConfig, count: int) -> None:
    if reason := config.why_not(count):
        raise RunError(f"of {count} good updates there is no {config.aggregator}: {reason}")


def _held(rule: Callable[[Rows, RobustConfig], Vector]) -> Callable[[RobustConfig, int], Aggregate]:
    return lambda config, size: HeldUpdates(config, rule)


def _norm_bound(config: RobustConfig, size: int) -> Aggregate:
    if config.norm:
        return BoundedSum(config, size)
    return HeldUpdates(config, lambda rows, _: bounded_mean(rows, median_norm(rows)))


AGGREGATORS: Mapping[str, Callable[[RobustConfig, int], Aggregate]] = {
    "mean": lambda config, size: WeightedSum(size),
    "median": _held(lambda rows, config: median(rows)),
    "trimmed_mean": _held(lambda rows, config: trimmed_mean(rows, config.cut(len(rows)))),
    "krum": _held(lambda rows, config: multi_krum(rows, config.byzantine, keep=1)),
    # As many as a score looks at: at least one more than there are bad ones.
    "multi_krum": _held(lambda rows, config: multi_krum(rows, config.byzantine, len(rows) - config.byzantine - 2)),
    "norm_bound": _norm_bound,
}
