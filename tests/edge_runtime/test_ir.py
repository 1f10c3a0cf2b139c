"""The checker finds every way in which a graph can break its rules."""

from __future__ import annotations

import dataclasses

import pytest

from edge_runtime.ir import Graph, Node, Value, verify
from edge_runtime.ir.verify import GraphError

VALUES = {
    "x": Value("x", (2, 3)),
    "w": Value("w", (4, 3)),
    "y": Value("y", (2, 4)),
    "z": Value("z", (2, 4)),
}
GOOD = Graph(
    VALUES, ("x",), ("w",), (Node("linear", ("x", "w"), ("y",)), Node("relu", ("y",), ("z",))), ("z",)
)  # fmt: skip


def test_a_good_graph_passes():
    assert verify(GOOD) is GOOD


def with_node(place: int, **changes: object) -> Graph:
    nodes = list(GOOD.nodes)
    nodes[place] = dataclasses.replace(nodes[place], **changes)
    return dataclasses.replace(GOOD, nodes=tuple(nodes))


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (dataclasses.replace(GOOD, nodes=GOOD.nodes[::-1]), "before it is written"),
        (dataclasses.replace(GOOD, nodes=(*GOOD.nodes, GOOD.nodes[1])), "second time"),
        (dataclasses.replace(GOOD, outputs=("nowhere",)), "never written"),
        (dataclasses.replace(GOOD, values={**VALUES, "lost": Value("lost", (1,))}), "written by no node"),
        (dataclasses.replace(GOOD, values={**VALUES, "x": Value("x", (2, 0))}), "bad name, dtype or shape"),
        (dataclasses.replace(GOOD, values={**VALUES, "x": Value("x", (2, 3), "f16")}), "bad name, dtype or shape"),
        (dataclasses.replace(GOOD, values={**VALUES, "y": Value("y", (2, 5))}), "its rule says"),
        (dataclasses.replace(GOOD, state=("w", "x")), "distinct"),
        (with_node(0, op="matmul"), "no such op"),
        (with_node(0, inputs=("w", "x")), "its rule says"),
        (with_node(0, inputs=("x",)), "takes 2 to 3 inputs"),
        (with_node(0, attributes={"bias": True}), "attributes none"),
        (with_node(1, writes=("y",)), "not state"),
    ],
)
def test_a_broken_rule_is_named(broken, rule):
    with pytest.raises(GraphError, match=rule):
        verify(broken)
