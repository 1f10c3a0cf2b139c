"""A graph as blocks: a node, and the activation that only it feeds, which kernels do as a clamp at their end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

from edge_runtime.ir.graph import Graph, Node

ENDS_IN_ACTIVATION = ("conv2d", "linear", "add")
ACTIVATIONS = ("relu", "relu6")


@dataclass(frozen=True, slots=True)
class Block:
    """`node`, then `act` on its output where there is one: "" | "relu" | "relu6"; `output` is what comes out."""

    node: Node
    act: str
    output: str


def blocks(graph: Graph, rounded: Container[str] = ()) -> list[Block]:
    """The graph's nodes in order; an activation is joined to the node before it unless another node reads between.

    A value of `rounded` is on a grid of its own: nothing is joined across it.
    """
    readers = Counter(name for node in graph.nodes for name in node.inputs)
    readers.update(graph.outputs)
    by_input = {node.inputs[0]: node for node in graph.nodes if node.op in ACTIVATIONS}
    found: list[Block] = []
    joined: set[str] = set()
    for node in graph.nodes:
        if node.outputs[0] in joined:
            continue
        between = node.outputs[0]
        act = by_input.get(between)
        if node.op in ENDS_IN_ACTIVATION and act and readers[between] == 1 and between not in rounded:
            joined.add(act.outputs[0])
            found.append(Block(node, act.op, act.outputs[0]))
        else:
            found.append(Block(node, "", between))
    return found
