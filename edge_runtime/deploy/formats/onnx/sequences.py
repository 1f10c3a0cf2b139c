"""Rows for attention and recurrent layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from edge_runtime.deploy.formats.onnx.emitter import Emitter
from edge_runtime.deploy.formats.onnx.stored import Stored
from edge_runtime.ir.graph import Graph, Node

# Our gates (PyTorch's order) as ONNX wants them: GRU z r h from r z n, LSTM i o f c from i f g o.
GATES = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}
STATES = {"gru": 1, "lstm": 2}
_MOVES = ("slice", "reshape", "transpose", "expand", "detach", "cat")


def without_zero_states(graph: Graph) -> Iterator[Node]:
    """The nodes, where recurrent layers that start from zeros name no start: "" in its place."""
    zero: set[str] = set()
    for node in graph.nodes:
        if node.op == "zeros" or (node.op in _MOVES and zero.issuperset(node.inputs)):
            zero.update(node.outputs)
        states = STATES.get(node.op, 0)
        if states and zero.issuperset(node.inputs[1 : 1 + states]):
            node = dataclasses.replace(node, inputs=(node.inputs[0], *[""] * states, *node.inputs[1 + states :]))
        yield node


def attention(e: Emitter, node: Node) -> None:
    """softmax(scale q k^T + mask) v; the mask is computed from two rows of numbers when the model is loaded."""
    q, k, v = map(e.read, node.inputs)
    rank = len(e.shape(node.inputs[0]))
    turned = e.node("Transpose", k, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = e.node("MatMul", e.node("Mul", q, e.constant(float(node.attributes["scale"]))), turned)
    if node.attributes["causal"]:
        scores = e.node("Add", scores, _causal_mask(e, e.shape(node.inputs[0])[-2], e.shape(node.inputs[1])[-2]))
    e.give(node.outputs[0], e.node("MatMul", e.node("Softmax", scores, axis=-1), v))


def _causal_mask(e: Emitter, rows: int, columns: int) -> str:
    """-infinity where a column is behind its row's number, else 0."""
    behind = e.once(
        "Greater",
        e.constant(np.arange(columns, dtype=np.int32)),
        e.constant(np.arange(rows, dtype=np.int32).reshape(-1, 1)),
    )
    return e.once("Where", behind, e.constant(-np.inf), e.constant(0.0))


def gru(e: Emitter, node: Node) -> None:
    _recurrent(e, node, "GRU", linear_before_reset=1)


def lstm(e: Emitter, node: Node) -> None:
    _recurrent(e, node, "LSTM")


def _recurrent(e: Emitter, node: Node, op: str, **more: int) -> None:
    """ONNX's layers are time first, and have their weights and states under one direction."""
    states = STATES[node.op]
    x, starts, (w_ih, w_hh, *biases) = node.inputs[0], node.inputs[1 : 1 + states], node.inputs[1 + states :]
    hidden = e.shape(node.outputs[0])[2]
    order = [gate * hidden + i for gate in GATES[node.op] for i in range(hidden)]
    if not all(map(e.is_weight, (w_ih, w_hh, *biases))):
        raise e.refuse(f"{node.op} whose weights are computed")
    first = e.constant([0])
    inputs = [e.node("Transpose", e.read(x), perm=[1, 0, 2])]
    inputs += [e.tensor(e.stored(name).rows(order).under_one()) for name in (w_ih, w_hh)]
    inputs += [_biases(e, biases, order), ""]
    inputs += ["" if not start else e.node("Unsqueeze", e.read(start), first) for start in starts]
    while not inputs[-1]:
        inputs.pop()
    outputs = (node.outputs[0], *node.outputs[1 : 1 + states])
    made = e.nodes(op, inputs, map(e.is_read, outputs), hidden_size=hidden, **more)
    for name, one in zip(outputs, made, strict=True):
        if one and name == outputs[0]:
            e.give(name, e.node("Transpose", e.node("Squeeze", one, e.constant([1])), perm=[1, 0, 2]))
        elif one:
            e.give(name, e.node("Squeeze", one, first))


def _biases(e: Emitter, biases: list[str], order: list[int]) -> str:
    if not biases:
        return ""
    return e.tensor(Stored(np.concatenate([e.stored(name).rows(order).real for name in biases])).under_one())
