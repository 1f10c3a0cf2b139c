"""The checker finds every way in which a graph can break its rules."""

from __future__ import annotations

import dataclasses

import pytest

from edge_runtime.ir.graph import Graph, Node, Value
from edge_runtime.ir.ops import OPS, ShapeError
from edge_runtime.ir.verify import GraphError, verify

VALUES = {
    "x": Value("x", (2, 3)),
    "w": Value("w", (4, 3)),
    "y": Value("y", (2, 4)),
    "z": Value("z", (2, 4)),
}
GOOD = Graph(
    VALUES, ("x",), ("w",), (Node("linear", ("x", "w"), ("y",)), Node("relu", ("y",), ("z",))), ("z",)
)  # fmt: skip
CLEAR = Node("clear", ("w",), (), {}, ("w",))


def test_a_good_graph_passes():
    assert verify(GOOD) is GOOD
    cleared_at_the_end = dataclasses.replace(GOOD, nodes=(*GOOD.nodes, CLEAR))
    assert verify(cleared_at_the_end) is cleared_at_the_end


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
        (dataclasses.replace(GOOD, nodes=(CLEAR, *GOOD.nodes)), "reads w, which an earlier node has overwritten"),
    ],
)
def test_a_broken_rule_is_named(broken, rule):
    with pytest.raises(GraphError, match=rule):
        verify(broken)


ROWS = ((1,), "i64")
POOL = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        ("add", [(2, 3), (2, 4)], {}, "do not broadcast"),
        ("expand", [(2, 1)], {"shape": (3, 4), "by": 1.0}, "do not broadcast"),
        ("expand", [(2, 4)], {"shape": (2, 1), "by": 1.0}, r"to \(2, 1\)"),
        ("pad", [(2, 3)], {"dim": 1, "start": 2, "size": 4}, "at 2 of 4"),
        ("slice", [(2, 3)], {"dim": 1, "start": 2, "stop": 4}, "dim 1"),
        ("linear_dx", [(2, 3), (4, 5)], {}, "does not fit weight"),
        ("linear_dw", [(2, 3), (4, 5)], {}, "does not fit input"),
        ("max_pool2d", [(1, 1, 9, 9)], {**POOL, "kernel": (16, 16)}, "255 places"),
        ("max_pool2d", [(1, 1, 9, 9)], {**POOL, "padding": (2, 0)}, "over half the window"),
        ("avg_pool2d", [(1, 1, 1, 9)], POOL, "larger than the padded input"),
        ("batch_norm", [(6, 3), (3,), (3,), ROWS], {"batch": 4, "eps": 1e-5}, "rows do not fit"),
        ("batch_norm", [(8, 3), (3,), (4,), ROWS], {"batch": 4, "eps": 1e-5}, "channels"),
        ("group_norm", [(2, 6), (6,), (6,)], {"groups": 4, "eps": 1e-5}, "4 groups"),
        ("cross_entropy", [(4, 5), ((3,), "i64"), ROWS, (1,)], {}, "target"),
        ("cross_entropy", [(4, 5), (4,), ROWS, (1,)], {}, "target"),
        ("focal", [(4, 5), ((4,), "i64"), ROWS, (1,), (4,)], {}, "one weight per class"),
        ("pair_loss", [(4, 5), (4, 4), ROWS, (1,)], {}, "target"),
        ("gru", [(2, 4, 3), (2, 5), (15, 3), (15, 4)], {}, "does not fit weights"),
        ("lstm", [(2, 4, 3), (2, 5), (2, 4), (20, 3), (20, 5)], {}, "does not fit weights"),
    ],
)
def test_inputs_that_do_not_fit_an_op_are_refused(op, inputs, attributes, message):
    values = [Value("", *(given if isinstance(given[0], tuple) else (given,))) for given in inputs]
    with pytest.raises(ShapeError, match=message):
        OPS[op].shapes(values, attributes)
