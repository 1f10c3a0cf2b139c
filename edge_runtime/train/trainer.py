"""What every trainer does, whatever runs underneath."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.train.batches import Batch

State = dict[str, NDArray[np.generic]]


@dataclass(slots=True)
class History:
    """What `fit` saw: the mean loss of every optimizer step, in order, and how many examples went through."""

    losses: list[float] = field(default_factory=list)
    examples: int = 0

    @property
    def mean_loss(self) -> float:
        """Mean over steps; NaN when there were none."""
        return float(np.mean(self.losses)) if self.losses else float("nan")


# Called after every optimizer step with the step's number, from 0, and its loss.
Callback = Callable[[int, float], None]


class Trainer(Protocol):
    """Trains one model on this machine. Arrays go in and out; names are those of the module's `state_dict()`."""

    def load_state_dict(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Copy weights in and start local training afresh.

        Optimizer state is cleared, and these weights become the anchor of a proximal term.

        Raises:
            ValueError: a tensor is missing, unknown, or of another shape.

        """

    def state_dict(self) -> State:
        """A copy of all weights and buffers."""

    def buffer_names(self) -> set[str]:
        """Names in `state_dict()` of running statistics and counters: moved by the forward pass, not by gradients."""

    def reseed(self, seed: int) -> None:
        """Restart the random numbers that training uses (dropout)."""

    def step(self, x: NDArray[np.generic], y: NDArray[np.generic]) -> float:
        """One optimizer step on one batch; returns its mean loss before the step."""

    def fit(self, batches: Iterable[Batch], epochs: int = 1, callbacks: Iterable[Callback] = ()) -> History:
        """`step` over all batches, `epochs` times."""

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Mean `loss`, and `accuracy` where targets are classes, with the model in evaluation mode."""

    def predict(self, x: NDArray[np.generic]) -> NDArray[np.float32]:
        """The model's output for x, in evaluation mode."""
