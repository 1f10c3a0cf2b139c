"""Do the rows of a batch go through a model independently? Padding, splitting and masking a batch rest on that.

Asked of the graph for a prime number of rows, which shows in a dim only where the batch is. A value then is either the
same for all rows, or `outer` blocks of such rows one after the other: element (o, row, i) in the order of its bytes.
Reshaping keeps that, whatever dims it is cut into; the batch is in front where outer is 1.
"""

from __future__ import annotations

import math

from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.graph import Graph, Node, Shape

Outer = int | None  # None: the same for all rows

_ANYWHERE = {"detach", "relu", "relu6", "gelu", "sigmoid", "silu", "tanh", "exp", "scale", "clip"}
# Ops whose first input has the batch in front; all others of theirs are the same for all rows.
_FROM_FRONT = {
    "conv2d", "max_pool2d", "avg_pool2d", "batch_norm", "batch_norm_apply", "group_norm", "dropout",
}  # fmt: skip


def require_independent_rows(graph: Graph, batch: int, *, split: bool = True) -> None:
    """Nothing, if every output row depends on its own input row alone (and, through batch norm, on statistics).

    Where batches are never split, a row may also depend on its place in the batch.

    Raises:
        UnsupportedOpError: names the first node that lets rows act on each other, or an output without the batch first.

    """
    known: dict[str, Outer] = dict.fromkeys(graph.state)
    known.update((name, None if name in ("rows", "random") else 1) for name in graph.inputs)
    for node in graph.nodes:
        given = [known[name] for name in node.inputs]
        shapes = [graph.values[name].shape for name in node.inputs]
        outer: Outer = None
        if node.op in ("zeros", "expand") and all(one is None for one in given):
            shape: Shape = node.attributes["shape"]
            outer = math.prod(shape[: shape.index(batch)]) if batch in shape else None
        elif any(one is not None for one in given) or node.op == "dropout":
            outer = _outer(node, shapes, given, batch, split)
        known.update(dict.fromkeys(node.outputs, outer))
        if node.op == "batch_norm":
            known.update(dict.fromkeys(node.outputs[1:]))  # statistics of all rows
    for name in graph.outputs:
        if known[name] != 1 or graph.values[name].shape[0] % batch:
            raise UnsupportedOpError(f"output {name} does not have one row for each row of the input")


def _outer(node: Node, shapes: list[Shape], given: list[Outer], batch: int, split: bool) -> int:
    """How many blocks of rows lie in what `node` makes."""
    first = next((place for place, one in enumerate(given) if one is not None), 0)
    outer, shape = given[first] or 0, shapes[first]
    dim = _batch_dim(shape, batch)
    leads = dim is not None and math.prod(shape[:dim]) == outer  # the batch begins its dim
    front = leads and outer == 1 and dim == 0
    alone = [one for place, one in enumerate(given) if place != first] == [None] * (len(given) - 1)
    good = dim is not None
    match node.op:
        case op if op in _ANYWHERE:
            pass
        case "add" | "mul":
            good, outer = _broadcast(shapes, given, batch, split)
        case "transpose":
            order = node.attributes["order"]
            good = leads
            outer = math.prod(shape[i] for i in order[: order.index(dim)]) if good else 0
        case "reshape":
            new: Shape = node.attributes["shape"]
            to = _batch_dim(new, batch)
            good = to is not None and outer % math.prod(new[:to]) == 0
            good = good and to is not None and math.prod(new[: to + 1]) % (outer * batch) == 0
        case "linear":
            good = first == 0 and alone and dim is not None and dim < len(shape) - 1
        case "mean" | "sum":
            good = front and 0 not in node.attributes["dims"]
        case "layer_norm":
            good = alone and dim is not None and dim < len(shape) - node.attributes["dims"]
        case "attention":
            good = front and given == [1, 1, 1] and len(shape) > 2
        case "softmax":
            good = leads and node.attributes["dim"] != dim
            good = good or (dim is not None and node.attributes["dim"] > dim)
        case "slice" | "pad" | "cat":
            good = leads and node.attributes["dim"] != dim and set(given) == {outer}
            if good and dim is not None and node.attributes["dim"] < dim:
                of, out = shapes[0][node.attributes["dim"]], _size_along(node, shapes)
                outer = outer // of * out
        case op if op in _FROM_FRONT:
            good = front and first == 0 and alone
        case "embedding":
            good = given[0] is None and leads and outer == 1
        case "gru" | "lstm":
            states = 1 if node.op == "gru" else 2
            weights = given[1 + states :]
            good = given[0] == 1 and front and weights == [None] * len(weights)
            good = good and set(given[1 : 1 + states]) <= {1, None}
        case "expand":
            good = len(node.attributes["shape"]) == len(shape) and front
        case _:
            good = False
    if not good:
        raise UnsupportedOpError(
            f"{node.op} lets the rows of a batch act on each other, or moves them where they cannot be followed, at "
            f"{node.source or 'an unknown line'}; only batch norm may let rows act on each other here"
        )
    return outer


def _batch_dim(shape: Shape, batch: int) -> int | None:
    """The dim that holds the batch, alone or with others."""
    return next((place for place, n in enumerate(shape) if n % batch == 0), None)


def _broadcast(shapes: list[Shape], given: list[Outer], batch: int, split: bool) -> tuple[bool, int]:
    """Whether two values go together row by row, and the blocks of what comes out."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    out = tuple(max(sizes) for sizes in zip(*padded, strict=True))
    dims = {
        _batch_dim(shape, batch) for shape, one in zip(padded, given, strict=True) if one is not None
    }  # of those that have rows
    dim = dims.pop()
    if dims or dim is None:
        return False, 0
    blocks = set()
    for shape, one in zip(padded, given, strict=True):
        if one is None:
            # A weight with a row for every row of the batch would be another weight for every split.
            if shape[dim] != 1 and split:
                return False, 0
        else:
            inside = one // math.prod(shape[:dim])  # blocks inside the dim itself
            blocks.add(inside * math.prod(out[:dim]))
            if one % math.prod(shape[:dim]):
                return False, 0
    return len(blocks) == 1, blocks.pop()


def _size_along(node: Node, shapes: list[Shape]) -> int:
    """What becomes of the size of the dim that a slice, pad or cat works along."""
    a = node.attributes
    match node.op:
        case "slice":
            return int(a["stop"] - a["start"])
        case "pad":
            return int(a["size"])
        case _:
            return sum(shape[a["dim"]] for shape in shapes)
