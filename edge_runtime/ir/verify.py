"""The rules of a graph, checked after capture and after every pass."""

from __future__ import annotations

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.ir.graph import ITEM_BYTES, Graph, Node
from edge_runtime.ir.ops import OPS, ShapeError, shapes_of


class GraphError(EdgeRuntimeError, ValueError):
    """A graph that breaks its own rules; a fault of the pass that made it."""


# Ops that may read a state tensor which an earlier node has overwritten: a gradient's sum after its use, and the
# statistics of a batch norm that the model uses twice.
_AGAIN = ("clear", "running_stats")


def verify(graph: Graph) -> Graph:
    """The same graph, if every rule of `ir/graph.py` holds and every node fits its row of `ir/ops.py`.

    Raises:
        GraphError: with the node and the rule it breaks.

    """
    for name, value in graph.values.items():
        if value.name != name or value.dtype not in ITEM_BYTES or any(n < 1 for n in value.shape):
            raise GraphError(f"value {name}: bad name, dtype or shape ({value})")
    known = set(graph.inputs) | set(graph.state)
    if len(known) != len(graph.inputs) + len(graph.state) or not known <= graph.values.keys():
        raise GraphError("inputs and state must be distinct values of the graph")
    overwritten: set[str] = set()
    for place, node in enumerate(graph.nodes):
        where = f"node {place} ({node.op} -> {', '.join(node.outputs)})"
        if missing := [name for name in node.inputs if name not in known]:
            raise GraphError(f"{where}: reads {missing[0]} before it is written")
        if again := [name for name in node.outputs if name in known]:
            raise GraphError(f"{where}: writes {again[0]} a second time")
        if foreign := [name for name in node.writes if name not in graph.state]:
            raise GraphError(f"{where}: overwrites {foreign[0]}, which is not state")
        if stale := [name for name in node.inputs if name in overwritten and node.op not in _AGAIN]:
            raise GraphError(f"{where}: reads {stale[0]}, which an earlier node has overwritten")
        overwritten.update(node.writes)
        _check_op(graph, node, where)
        known.update(node.outputs)
    if lost := [name for name in graph.outputs if name not in known]:
        raise GraphError(f"output {lost[0]} is never written")
    if unwritten := graph.values.keys() - known:
        raise GraphError(f"value {sorted(unwritten)[0]} is written by no node")
    return graph


def _check_op(graph: Graph, node: Node, where: str) -> None:
    op = OPS.get(node.op)
    if op is None:
        raise GraphError(f"{where}: no such op")
    low, high = op.inputs
    if not low <= len(node.inputs) <= high or sorted(node.attributes) != sorted(op.attributes):
        raise GraphError(f"{where}: takes {low} to {high} inputs and attributes {', '.join(op.attributes) or 'none'}")
    try:
        shapes = shapes_of(node.op, [graph.values[name] for name in node.inputs], node.attributes)
    except ShapeError as error:
        raise GraphError(f"{where}: {error}") from error
    written = [(graph.values[name].shape, graph.values[name].dtype) for name in node.outputs if name in graph.values]
    if written != shapes:
        raise GraphError(f"{where}: writes {written}, its rule says {shapes}")
