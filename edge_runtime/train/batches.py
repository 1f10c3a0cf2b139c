"""Cutting examples into batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Batch = tuple[NDArray[np.generic], NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs and targets with one row per example: x (N, ...), y (N, ...)."""

    x: NDArray[np.generic]
    y: NDArray[np.generic]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"{len(self.x)} inputs but {len(self.y)} targets")

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: NDArray[np.integer] | slice) -> Examples:
        return Examples(self.x[index], self.y[index])


@dataclass(frozen=True, slots=True)
class Batches:
    """Examples in batches, any number of times over; the last batch of a pass may be short.

    With a generator every pass follows a new `rng.permutation(N)`, without one the rows' own order.
    """

    examples: Examples
    batch_size: int
    rng: np.random.Generator | None = None

    def __iter__(self) -> Iterator[Batch]:
        count = len(self.examples)
        order = np.arange(count) if self.rng is None else self.rng.permutation(count)
        for start in range(0, count, self.batch_size):
            batch = self.examples.rows(order[start : start + self.batch_size])
            yield batch.x, batch.y
