"""Pruning between rounds: after the server's step the least important weights of the global model are put at zero.

Only levers that keep shapes can act inside a run, for clients hold a Program of one shape. What changes shapes, such as
cutting channels, is for between runs: see `edge_runtime/deploy/compress/`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.config import key
from edge_runtime.deploy.compress.prune import lowest
from edge_runtime.updates.delta import FloatVector, TensorLayout
from server.checkpoint import Tree

MEMORY = 0.9  # of importance, from one round to the next


@dataclass(frozen=True, slots=True)
class CompressConfig:
    """Which weights go, and when.

    `fraction` of the weights with two or more dims, of all together, is zero from applied round `start` on; which ones
    is decided anew every `every` applied rounds. `magnitude`: those of least |w| (Han et al. 2015). `importance`: those
    of least (w d)^2, d being the rounds' mean update, which stands for the gradient that the server does not see
    (Molchanov et al. 2019, equation 8; Reddi et al. 2021, section 2), remembered with weight 0.9 from round to round.
    """

    lever: str = key("", choices=("", "magnitude", "importance"))
    fraction: float = key(0.5, low=0, below=1)
    every: int = key(1, low=1, high=1_000_000)
    start: int = key(1, low=1, high=1_000_000)


class Pruning:
    """The zeros of one run's global model. Clients move them away from zero; every call of `apply` puts them back."""

    def __init__(self, config: CompressConfig, moving: TensorLayout) -> None:
        self._config = config
        self._matrices = np.concatenate(
            [np.full(math.prod(shape), len(shape) >= 2) for _, shape in moving.shapes] or [np.zeros(0, np.bool_)]
        )
        self._importance = np.zeros(int(self._matrices.sum()))
        self._gone = np.zeros(self._importance.size, np.bool_)
        self._rounds = 0

    def apply(self, moved: FloatVector, delta: NDArray[np.float64]) -> FloatVector:
        """The moving values of the model after a round, with its zeros; `delta` is the round's mean update."""
        config = self._config
        self._rounds += 1
        weights = moved[self._matrices]
        if config.lever == "importance":
            seen = (weights.astype(np.float64) * delta[self._matrices]) ** 2
            self._importance = MEMORY * self._importance + (1 - MEMORY) * seen
        since = self._rounds - config.start
        if since >= 0 and since % config.every == 0:
            scores = np.abs(weights) if config.lever == "magnitude" else self._importance
            self._gone = lowest(scores, config.fraction)
        pruned = moved.copy()
        pruned[self._matrices] = np.where(self._gone, np.float32(0), weights)
        return pruned

    def state(self) -> Tree:
        return {"importance": self._importance, "gone": self._gone, "rounds": self._rounds}

    def restore(self, state: Tree) -> None:
        self._importance, self._gone, self._rounds = state["importance"], state["gone"], state["rounds"]
