"""A model of changed nodes and weights: shapes follow from both, so a lever states none."""

from __future__ import annotations

from collections.abc import Iterable

from edge_runtime.deploy.graph.float_model import FloatModel, Weights, checked
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.graph import Graph, Node, Value
from edge_runtime.ir.ops import ShapeError, shapes_of


def rebuilt(model: FloatModel, nodes: Iterable[Node], weights: Weights) -> FloatModel:
    """The model of `nodes`, in order, between the input and the output of `model`; of `weights`, what they read.

    Raises:
        UnsupportedOpError: the nodes do not fit each other; or a dim has become a multiple of the number that stands
            for the batch, which could then not be told from it.

    """
    nodes = tuple(nodes)
    read = {name for node in nodes for name in node.inputs}
    state = tuple(name for name in weights if name in read)
    values = {name: model.graph.values[name] for name in model.graph.inputs}
    values |= {name: Value(name, weights[name].shape) for name in state}
    for name in state:
        if any(n % model.batch == 0 for n in weights[name].shape):
            raise UnsupportedOpError(f"{name} would be {weights[name].shape}: keep one channel more or less")
    for node in nodes:
        try:
            shapes = shapes_of(node.op, [values[name] for name in node.inputs], node.attributes)
        except ShapeError as error:
            raise UnsupportedOpError(f"{node.op} {node.outputs[0]}, {node.source or 'no line'}: {error}") from error
        for name, (shape, dtype) in zip(node.outputs, shapes, strict=True):
            values[name] = Value(name, shape, dtype)
    graph = Graph(values, model.graph.inputs, state, nodes, model.graph.outputs)
    return checked(FloatModel(graph, {name: weights[name] for name in state}, model.batch))
