"""Splits of rows by their numbers: hold-out, k folds, balance, cross-validation. No row is ever copied.

With `labels`, one class per row, a split is stratified: rows are sorted by class, shuffled within each, and dealt out
along that order, so that every part has each class in proportion, to within one row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError
from edge_runtime.train.batches import Batches, Rows, Subset, Transform
from edge_runtime.train.loop import LocalTrainer
from edge_runtime.train.metrics import Metric

Indices = NDArray[np.intp]
Labels = NDArray[np.integer]


def hold_out(
    count: int, share: float, rng: np.random.Generator, labels: Labels | None = None
) -> tuple[Indices, Indices]:
    """(training rows, held-out rows), disjoint and together all; round(share count) are held out, at least one of each.

    Raises:
        ConfigError: fewer than two rows, or a share outside 0 to 1.

    """
    if count < 2 or not 0 < share < 1:
        raise ConfigError(f"cannot hold out the share {share} of {count} rows")
    held = min(max(round(share * count), 1), count - 1)
    place = np.arange(count)
    # Held out are the `held` evenly spaced places at which floor(place held / count) rises.
    chosen = (place + 1) * held // count > place * held // count
    order = _shuffled(count, rng, labels)
    return rng.permutation(order[~chosen]), rng.permutation(order[chosen])


def k_fold(
    count: int, k: int, rng: np.random.Generator, labels: Labels | None = None
) -> Iterator[tuple[Indices, Indices]]:
    """K pairs of (training rows, test rows); every row is tested once, and fold sizes differ by at most one.

    Raises:
        ConfigError: k below 2 or above the number of rows.

    """
    if not 2 <= k <= count:
        raise ConfigError(f"k = {k}: must be >= 2 and <= {count}, the number of rows")
    order = _shuffled(count, rng, labels)
    fold = np.arange(count) % k
    return ((order[fold != number], order[fold == number]) for number in range(k))


def oversample(labels: Labels, rng: np.random.Generator) -> Indices:
    """Row numbers in which every class is as frequent as the largest, for a `Subset`.

    Every row is there, and the numbers of times that two rows of one class are there differ by at most one.
    """
    classes, counts = np.unique(labels, return_counts=True)
    parts = [np.arange(0)]
    for label in classes:
        rows = np.flatnonzero(labels == label)
        rounds = -(-counts.max() // len(rows))
        repeated = [rows, *(rng.permutation(rows) for _ in range(rounds - 1))]
        parts.append(np.concatenate(repeated)[: counts.max()])
    return np.sort(np.concatenate(parts))


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Test figures of every fold, and their mean and standard deviation (of a sample) over folds."""

    folds: tuple[dict[str, float], ...]

    @property
    def mean(self) -> dict[str, float]:
        return {name: float(np.mean([fold[name] for fold in self.folds])) for name in self.folds[0]}

    @property
    def std(self) -> dict[str, float]:
        return {name: float(np.std([fold[name] for fold in self.folds], ddof=1)) for name in self.folds[0]}


def cross_validate(
    make_trainer: Callable[[], LocalTrainer],
    examples: Rows,
    k: int,
    rng: np.random.Generator,
    *,
    epochs: int = 1,
    batch_size: int = 32,
    labels: Labels | None = None,
    transforms: Sequence[Transform] = (),
    test_transforms: Sequence[Transform] = (),
    metrics: Sequence[Metric | str] | None = None,
) -> CrossValidation:
    """Train a new trainer on all folds but one, evaluate it on that one, k times."""
    figures = []
    for train, test in k_fold(len(examples), k, rng, labels):
        trainer = make_trainer()
        trainer.fit(Batches(Subset(examples, train), batch_size, rng, tuple(transforms)), epochs)
        batches = Batches(Subset(examples, test), batch_size, transforms=tuple(test_transforms))
        figures.append(trainer.evaluate(batches, metrics))
    return CrossValidation(tuple(figures))


def _shuffled(count: int, rng: np.random.Generator, labels: Labels | None) -> Indices:
    order = rng.permutation(count)
    if labels is None:
        return order
    if labels.shape != (count,):
        raise ConfigError(f"labels {labels.shape} for {count} rows: one class per row is needed")
    return order[np.argsort(labels[order], kind="stable")]
