"""Rewrites of the forward pass that change no number and cost less."""

from __future__ import annotations

import dataclasses

from edge_runtime.ir.builder import Builder
from edge_runtime.ir.graph import Graph, Node
from edge_runtime.ir.verify import verify


def pool_before_activation(graph: Graph) -> Graph:
    """max_pool(relu(x)) becomes relu(max_pool(x)): equal, as relu never falls, with fewer elements to keep and visit.

    Gradients are equal too: where the maximum is cut off by the activation, both give none.
    """
    readers: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers[name] = readers.get(name, 0) + 1
    nodes = list(graph.nodes)
    values = dict(graph.values)
    makers = {node.outputs[0]: place for place, node in enumerate(nodes) if node.outputs}
    for place, pool in enumerate(nodes):
        if pool.op != "max_pool2d" or pool.inputs[0] not in makers:
            continue
        at = makers[pool.inputs[0]]
        activation = nodes[at]
        between = activation.outputs[0]
        alone = readers[between] == 1 and between not in graph.outputs
        if activation.op in ("relu", "relu6") and alone:
            y, index = pool.outputs
            values[between] = dataclasses.replace(values[y], name=between)
            nodes[place] = dataclasses.replace(activation, inputs=(between,), outputs=(y,))
            nodes[at] = dataclasses.replace(pool, inputs=activation.inputs, outputs=(between, index))
    return verify(dataclasses.replace(graph, nodes=tuple(nodes), values=values))


def join_views(graph: Graph) -> Graph:
    """A reshape of a reshape is one, two transposes are one, and what does nothing goes."""
    made_by: dict[str, Node] = {}
    same: dict[str, str] = {}
    kept: list[Node] = []
    for old in graph.nodes:
        node = dataclasses.replace(old, inputs=tuple(same.get(name, name) for name in old.inputs))
        source = made_by.get(node.inputs[0]) if node.inputs else None
        if node.op == "reshape" and source and source.op == "reshape":
            node = dataclasses.replace(node, inputs=source.inputs)
        elif node.op == "transpose" and source and source.op == "transpose":
            first, second = source.attributes["order"], node.attributes["order"]
            node = dataclasses.replace(
                node, inputs=source.inputs, attributes={"order": tuple(first[i] for i in second)}
            )
        if _does_nothing(node, graph) and node.outputs[0] not in graph.outputs:
            same[node.outputs[0]] = node.inputs[0]
            continue
        made_by.update(dict.fromkeys(node.outputs, node))
        kept.append(node)
    return verify(Builder(dataclasses.replace(graph, nodes=tuple(kept))).finish(graph.outputs))


def _does_nothing(node: Node, graph: Graph) -> bool:
    match node.op:
        case "reshape":
            return bool(graph.values[node.inputs[0]].shape == node.attributes["shape"])
        case "transpose":
            order: tuple[int, ...] = node.attributes["order"]
            return order == tuple(range(len(order)))
        case "scale":
            return bool(node.attributes["by"] == 1 and node.attributes["plus"] == 0)
        case _:
            return False
