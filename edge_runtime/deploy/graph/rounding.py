"""What a quantised graph computes, by definition: float arithmetic, with rounding at every value that has a grid.

Writers and integer engines are tested against it. They differ from it by the order of float32 sums alone, so by one
step of a grid where a value lies between two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.graph.evaluate import ROWS, Evaluator
from edge_runtime.deploy.graph.quantised import QuantisedModel


class RoundingEvaluator(Evaluator):
    """An `Evaluator` that rounds."""

    def __init__(self, quantised: QuantisedModel, rows: int = ROWS) -> None:
        super().__init__(quantised.rounded(), rows)
        self._quants = quantised.quants

    def _run(self, x: NDArray[np.generic]) -> None:
        self._fill(x)
        self._round(self._graph.inputs)
        for place, node in enumerate(self._graph.nodes):
            self._run_node(place)
            self._round(node.outputs)

    def _round(self, names: tuple[str, ...]) -> None:
        for name in names:
            if name in self._quants:
                self._views[name][...] = self._quants[name].round(self._views[name])


def predict_rounded(quantised: QuantisedModel, x: NDArray[np.generic]) -> NDArray[np.float32]:
    """The quantised model's output for inputs x (n, ...)."""
    return RoundingEvaluator(quantised, max(1, min(ROWS, len(x)))).predict(x)
