"""Every op of `ir/ops.py` in plain NumPy: slow, short, and what faster engines are tested against.

Arithmetic is in the dtype of the inputs; feed float64 for an oracle without rounding. A function takes a node's inputs
in their order and its attributes by name; it returns the outputs, then the new contents of what the node overwrites.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edge_runtime.engine.reference import arithmetic, dropout, losses, norms, rounding, sequences, updates, windows
from edge_runtime.engine.reference.arithmetic import Array
from edge_runtime.ir.graph import Graph

__all__ = ["FORWARD", "run"]

FORWARD: dict[str, Callable[..., Any]] = {
    **arithmetic.ROWS,
    **dropout.ROWS,
    **losses.ROWS,
    **norms.ROWS,
    **rounding.ROWS,
    **sequences.ROWS,
    **updates.ROWS,
    **windows.ROWS,
}


def run(graph: Graph, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """All values of the graph after its nodes ran once; `tensors` holds its inputs and state.

    State that a node overwrites (weights, moments, running statistics) stands in the result with its new content;
    `tensors` is not changed.

    Raises:
        NumericsError: from a check or an update that met NaN or infinity.
        IndexError: for a token or a class outside its table.
        ValueError: for batch norm over a single value.

    """
    values = {name: np.array(tensors[name]) for name in (*graph.inputs, *graph.state)}
    for node in graph.nodes:
        results = FORWARD[node.op](*(values[name] for name in node.inputs), **node.attributes)
        results = results if isinstance(results, tuple) else (results,)
        values.update(zip((*node.outputs, *node.writes), map(np.asarray, results), strict=True))
    return values
