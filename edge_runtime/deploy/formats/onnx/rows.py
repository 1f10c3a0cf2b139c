"""The table: how each op of the IR is written in ONNX. Standard operators only (onnx.ai, "ONNX Operators").

A row writes what makes the node's output and gives it; rounding is the emitter's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from edge_runtime.deploy.formats.onnx import sequences
from edge_runtime.deploy.formats.onnx.emitter import Emitter
from edge_runtime.ir.graph import Node

Row = Callable[[Emitter, Node], None]
ROWS: dict[str, Row] = {
    "attention": sequences.attention,
    "gru": sequences.gru,
    "lstm": sequences.lstm,
}
# Ops that need a later opset than the writer's lowest.
NEEDS: Mapping[str, int] = {"expand": 15, "zeros": 15, "layer_norm": 17, "gelu": 20}


def row(*ops: str) -> Callable[[Callable[[Emitter, Node], str]], Callable[[Emitter, Node], str]]:
    """A row with one output: the function returns its name."""

    def register(function: Callable[[Emitter, Node], str]) -> Callable[[Emitter, Node], str]:
        def write(e: Emitter, node: Node) -> None:
            e.give(node.outputs[0], function(e, node))

        ROWS.update(dict.fromkeys(ops, write))
        return function

    return register


# Elementwise.

_PLAIN = {
    "add": "Add",
    "mul": "Mul",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "exp": "Exp",
    "gelu": "Gelu",
}


@row(*_PLAIN)
def _plain(e: Emitter, node: Node) -> str:
    return e.node(_PLAIN[node.op], *map(e.read, node.inputs))


@row("silu")
def _silu(e: Emitter, node: Node) -> str:
    x = e.read(node.inputs[0])
    return e.node("Mul", x, e.node("Sigmoid", x))


@row("relu6")
def _relu6(e: Emitter, node: Node) -> str:
    return _clipped(e, node, 0.0, 6.0)


@row("clip")
def _clip(e: Emitter, node: Node) -> str:
    return _clipped(e, node, node.attributes["low"], node.attributes["high"])


def _clipped(e: Emitter, node: Node, low: float, high: float) -> str:
    return e.node("Clip", e.read(node.inputs[0]), e.constant(float(low)), e.constant(float(high)))


@row("scale")
def _scale(e: Emitter, node: Node) -> str:
    by, plus = (float(node.attributes[key]) for key in ("by", "plus"))
    x = e.read(node.inputs[0])
    scaled = e.node("Mul", x, e.constant(by)) if by != 1.0 else x
    return e.node("Add", scaled, e.constant(plus)) if plus != 0.0 else scaled


@row("softmax")
def _softmax(e: Emitter, node: Node) -> str:
    """Between two grids ONNX Runtime would take QLinearSoftmax, whose sums overflow where the output's is fine.

    It does not where something is added, and to a softmax a constant is nothing.
    """
    x = e.read(node.inputs[0])
    if e.quants.keys() >= {node.inputs[0], node.outputs[0]}:
        x = e.node("Add", x, e.constant(1.0))
    return e.node("Softmax", x, axis=node.attributes["dim"])


# Shapes.


@row("reshape")
def _reshape(e: Emitter, node: Node) -> str:
    return e.node("Reshape", e.read(node.inputs[0]), e.target(node.attributes["shape"]))


@row("detach")
def _detach(e: Emitter, node: Node) -> str:
    return e.read(node.inputs[0])


@row("transpose")
def _transpose(e: Emitter, node: Node) -> str:
    return e.node("Transpose", e.read(node.inputs[0]), perm=list(node.attributes["order"]))


@row("slice")
def _slice(e: Emitter, node: Node) -> str:
    a, name = node.attributes, node.inputs[0]
    if (a["start"], a["stop"]) == (0, e.shape(name)[a["dim"]]):
        return e.read(name)
    if e.has_batch(e.shape(name)[a["dim"]]):
        raise e.refuse("slice of the batch")
    return e.node("Slice", e.read(name), *(e.constant([a[key]]) for key in ("start", "stop", "dim")))


@row("pad")
def _pad(e: Emitter, node: Node) -> str:
    a, shape = node.attributes, e.shape(node.inputs[0])
    if e.has_batch(a["size"]) or e.has_batch(shape[a["dim"]]):
        raise e.refuse("pad of the batch")
    pads = [0] * (2 * len(shape))
    pads[a["dim"]] = a["start"]
    pads[len(shape) + a["dim"]] = a["size"] - a["start"] - shape[a["dim"]]
    return e.node("Pad", e.read(node.inputs[0]), e.constant(pads))


@row("cat")
def _cat(e: Emitter, node: Node) -> str:
    return e.node("Concat", *map(e.read, node.inputs), axis=node.attributes["dim"])


@row("expand")
def _expand(e: Emitter, node: Node) -> str:
    x, shape, by = e.shape(node.inputs[0]), node.attributes["shape"], float(node.attributes["by"])
    padded = (1,) * (len(shape) - len(x)) + x
    # 1 leaves a dim as it is, so the batch need not be told where x has it.
    sizes = e.sizes(tuple(1 if had == n else n for had, n in zip(padded, shape, strict=True)))
    made = e.node("Expand", e.read(node.inputs[0]), sizes)
    return made if by == 1.0 else e.node("Mul", made, e.constant(by))


@row("zeros")
def _zeros(e: Emitter, node: Node) -> str:
    return e.node("Expand", e.constant(0.0), e.sizes(node.attributes["shape"]))


# Reductions and pools.


@row("mean")
def _mean(e: Emitter, node: Node) -> str:
    a, name = node.attributes, node.inputs[0]
    dims = tuple(sorted(a["dims"]))
    if len(e.shape(name)) == 4 and dims == (2, 3):
        return _mean_of_planes(e, node)
    if e.opset >= 18:
        return e.node("ReduceMean", e.read(name), e.constant(list(dims)), keepdims=int(a["keepdim"]))
    return e.node("ReduceMean", e.read(name), axes=list(dims), keepdims=int(a["keepdim"]))


def _mean_of_planes(e: Emitter, node: Node) -> str:
    """GlobalAveragePool, which runtimes have for integers too; the reshape behind it is of rounded values."""
    made = e.node("GlobalAveragePool", e.read(node.inputs[0]))
    if node.attributes["keepdim"]:
        return made
    return e.node("Reshape", e.rounded(node.outputs[0], made), e.target(e.shape(node.outputs[0])))


@row("sum")
def _sum(e: Emitter, node: Node) -> str:
    dims = e.constant(list(node.attributes["dims"]))
    return e.node("ReduceSum", e.read(node.inputs[0]), dims, keepdims=int(node.attributes["keepdim"]))


@row("max_pool2d", "avg_pool2d")
def _pool(e: Emitter, node: Node) -> str:
    op = "MaxPool" if node.op == "max_pool2d" else "AveragePool"
    return e.node(op, e.read(node.inputs[0]), kernel_shape=list(node.attributes["kernel"]), **_window(node))


def _window(node: Node) -> dict[str, Any]:
    """Strides, and padding where there is any."""
    a = node.attributes
    padding = {"pads": [*a["padding"], *a["padding"]]} if any(a["padding"]) else {}
    return {"strides": list(a["stride"]), **padding}


# Layers.


@row("conv2d")
def _conv2d(e: Emitter, node: Node) -> str:
    groups = {"group": node.attributes["groups"]} if node.attributes["groups"] != 1 else {}
    return e.node("Conv", *map(e.read, node.inputs), **_window(node), **groups)


@row("linear")
def _linear(e: Emitter, node: Node) -> str:
    x, w, *bias = node.inputs
    if len(e.shape(x)) == 2:
        return e.node("Gemm", *map(e.read, node.inputs), transB=1)
    if e.integer(w):
        rows = e.rounded(x, e.node("Reshape", e.read(x), e.constant([-1, e.shape(w)[1]])))
        made = e.rounded(node.outputs[0], e.node("Gemm", rows, *map(e.read, node.inputs[1:]), transB=1))
        return e.node("Reshape", made, e.target(e.shape(node.outputs[0])))
    turned = e.tensor(e.stored(w).transposed()) if e.is_weight(w) else e.node("Transpose", e.read(w), perm=[1, 0])
    made = e.node("MatMul", e.read(x), turned)
    return e.node("Add", made, e.read(bias[0])) if bias else made


@row("embedding")
def _embedding(e: Emitter, node: Node) -> str:
    """Of a table of integers, only the rows that are asked for become float32."""
    table, ids = node.inputs
    quant = e.quants.get(table)
    if quant is None or quant.axis != 0 or not e.is_weight(table):
        return e.node("Gather", e.read(table), e.read(ids))
    rows = e.node("Cast", e.node("Gather", e.integers(e.stored(table)), e.read(ids)), to=TensorProto.FLOAT)
    return e.node("Mul", rows, e.node("Gather", e.constant(quant.scale.reshape(-1, 1)), e.read(ids)))


# Normalisation.


@row("batch_norm_apply")
def _batch_norm_apply(e: Emitter, node: Node) -> str:
    return e.node("BatchNormalization", *map(e.read, node.inputs), epsilon=node.attributes["eps"])


@row("layer_norm")
def _layer_norm(e: Emitter, node: Node) -> str:
    x, *parameters = node.inputs
    dims = node.attributes["dims"]
    scale = [e.constant(np.ones(e.shape(x)[-dims:], np.float32))] if not parameters else []
    inputs = [e.read(x), *scale, *map(e.read, parameters)]
    return e.node("LayerNormalization", *inputs, axis=-dims, epsilon=node.attributes["eps"])


@row("group_norm")
def _group_norm(e: Emitter, node: Node) -> str:
    """A group is a channel of InstanceNormalization; ONNX's own GroupNormalization is of opset 21."""
    x, w, b = node.inputs
    shape, groups = e.shape(x), node.attributes["groups"]
    as_groups = e.constant([0, groups, -1])
    ones, none = (e.constant(np.full(groups, one, np.float32)) for one in (1, 0))
    grouped = e.node("Reshape", e.read(x), as_groups)
    normal = e.node("InstanceNormalization", grouped, ones, none, epsilon=node.attributes["eps"])
    normal = e.node("Reshape", normal, e.target(shape))
    per_channel = e.constant([-1, *[1] * (len(shape) - 2)])
    w, b = (e.node("Reshape", e.read(one), per_channel) for one in (w, b))
    return e.node("Add", e.node("Mul", normal, w), b)
