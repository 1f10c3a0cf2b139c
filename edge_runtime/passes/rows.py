"""Do the rows of a batch go through a model independently? Padding, splitting and masking a batch rest on that."""

from __future__ import annotations

import math

from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.graph import Graph, Node, Shape

# Where the batch is in a value: its dim, or None for a value that is the same for all rows.
Axis = int | None

_ANYWHERE = {"detach", "relu", "relu6", "gelu", "sigmoid", "silu", "tanh", "exp", "scale", "clip"}
_ON_DIMS = {"softmax", "slice", "pad", "cat"}
# Ops whose first input has the batch in front; all others of theirs are the same for all rows.
_FROM_FRONT = {
    "conv2d", "max_pool2d", "avg_pool2d", "batch_norm", "batch_norm_apply", "group_norm", "dropout",
}  # fmt: skip


def require_independent_rows(graph: Graph, batch: int, *, split: bool = True) -> None:
    """Nothing, if every output row depends on its own input row alone (and, through batch norm, on statistics).

    Where batches are never split, a row may also depend on its place in the batch.

    Raises:
        UnsupportedOpError: names the first node that lets rows act on each other, or moves the batch out of dim 0.

    """
    axes: dict[str, Axis] = dict.fromkeys(graph.state)
    axes.update((name, None if name in ("rows", "random") else 0) for name in graph.inputs)
    for node in graph.nodes:
        given = [axes[name] for name in node.inputs]
        if node.op in ("zeros", "expand") and not any(one is not None for one in given):
            shape = node.attributes["shape"]
            axis = shape.index(batch) if batch in shape else None
        elif any(one is not None for one in given) or node.op == "dropout":
            axis = _axis(graph, node, given, batch, split)
        else:
            axis = None
        axes.update(dict.fromkeys(node.outputs, axis))
    for name in graph.outputs:
        if axes[name] != 0:
            raise UnsupportedOpError(f"output {name} does not have one row for each row of the input")


def _axis(graph: Graph, node: Node, given: list[Axis], batch: int, split: bool) -> Axis:
    """Where the batch is in what `node` makes."""
    shapes = [graph.values[name].shape for name in node.inputs]
    first = next((axis for axis in given if axis is not None), -1)
    good = True
    match node.op:
        case op if op in _ANYWHERE:
            pass
        case "add" | "mul":
            rank = max(map(len, shapes))
            places = {axis + rank - len(shape) for axis, shape in zip(given, shapes, strict=True) if axis is not None}
            good, first = len(places) == 1, min(places)
            # A weight with a row for every row of the batch would be another weight for every split.
            good = good and all(
                axis is not None or len(shape) < rank - first or shape[first - rank] == 1 or not split
                for axis, shape in zip(given, shapes, strict=True)
            )
        case "transpose":
            first = node.attributes["order"].index(first)
        case "linear":
            good = given[0] is not None and given[0] < len(shapes[0]) - 1 and given[1:] == [None] * len(given[1:])
        case "reshape":
            return _reshaped(node, shapes[0], first, batch)
        case "mean" | "sum":
            good = first == 0 and 0 not in node.attributes["dims"]
        case "layer_norm":
            good = first == 0 and len(shapes[0]) > node.attributes["dims"]
        case "attention":
            good = given == [0, 0, 0] and len(shapes[0]) > 2
        case op if op in _ON_DIMS:
            good = node.attributes["dim"] != first and all(axis == first for axis in given)
        case op if op in _FROM_FRONT:
            good = given[0] == 0 and given[1:] == [None] * len(given[1:])
        case "embedding":
            good = given == [None, 0]
        case "gru" | "lstm":
            states = 1 if node.op == "gru" else 2
            weights = given[1 + states :]
            good = given[0] == 0 and weights == [None] * len(weights) and set(given[1 : 1 + states]) <= {0, None}
        case "expand":
            good = len(node.attributes["shape"]) == len(shapes[0])
        case "running_stats":
            pass
        case _:
            good = False
    if not good:
        raise _mixed(node)
    return first


def _reshaped(node: Node, shape: Shape, axis: int, batch: int) -> int:
    """The dim of the new shape that starts where the batch starts, and holds whole rows."""
    new: Shape = node.attributes["shape"]
    before = math.prod(shape[:axis])
    places = [place for place in range(len(new)) if math.prod(new[:place]) == before and new[place] % batch == 0]
    if not places:
        raise _mixed(node)
    return places[0]


def _mixed(node: Node) -> UnsupportedOpError:
    return UnsupportedOpError(
        f"{node.op} lets the rows of a batch act on each other, or moves them out of dim 0, at "
        f"{node.source or 'an unknown line'}; only batch norm may do that here"
    )
