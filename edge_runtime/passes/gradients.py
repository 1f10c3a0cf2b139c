"""The gradient rule of every op that can stand between a loss and a weight.

A rule gets the builder, the node, the gradient of each of its outputs ("" where there is none) and which of its
inputs need one; it emits nodes and returns the gradient of each input, "" where none is needed or there is none.
Gradients of weights come before that of the input: the input's bytes are then free for its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from edge_runtime.ir.builder import Builder
from edge_runtime.ir.graph import Node, Shape

Rule = Callable[[Builder, Node, Sequence[str], Sequence[bool]], Sequence[str]]
GRADIENTS: dict[str, Rule] = {}


def gradient(*ops: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        GRADIENTS.update(dict.fromkeys(ops, rule))
        return rule

    return register


@gradient("zeros", "detach")
def _constant(_: Builder, node: Node, __: Sequence[str], ___: Sequence[bool]) -> Sequence[str]:
    return [""] * len(node.inputs)


@gradient("add")
def _add(b: Builder, node: Node, g: Sequence[str], wants: Sequence[bool]) -> Sequence[str]:
    return [_sum_to(b, g[0], b.shape(x)) if want else "" for x, want in zip(node.inputs, wants, strict=True)]


@gradient("mul")
def _mul(b: Builder, node: Node, g: Sequence[str], wants: Sequence[bool]) -> Sequence[str]:
    pairs = zip(node.inputs, node.inputs[::-1], wants, strict=True)
    return [_sum_to(b, b.emit("mul", g[0], other), b.shape(x)) if want else "" for x, other, want in pairs]


def _sum_to(b: Builder, g: str, shape: Shape) -> str:
    """`g` summed over the dims that broadcasting gave it."""
    extra = len(b.shape(g)) - len(shape)
    padded = (1,) * extra + shape
    dims = tuple(i for i, (n, m) in enumerate(zip(b.shape(g), padded, strict=True)) if i < extra or (m == 1 and n > 1))
    return _shaped(b, b.emit("sum", g, dims=dims, keepdim=False) if dims else g, shape)


def _shaped(b: Builder, x: str, shape: Shape) -> str:
    return x if b.shape(x) == shape else b.emit("reshape", x, shape=shape)


@gradient("scale")
def _scale(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    return [b.emit("scale", g[0], by=node.attributes["by"], plus=0.0)]


@gradient("exp")
def _exp(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    return [b.emit("mul", g[0], node.outputs[0])]


@gradient("relu", "relu6", "sigmoid", "tanh")
def _by_output(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    return [b.emit(f"{node.op}_grad", g[0], node.outputs[0])]


@gradient("gelu", "silu")
def _by_input(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    return [b.emit(f"{node.op}_grad", g[0], node.inputs[0])]


@gradient("dropout")
def _dropout(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    return [b.emit("dropout", g[0], node.inputs[1], **node.attributes), ""]  # the same mask


@gradient("fake_quant", "fake_quant_weight")
def _straight_through(_: Builder, node: Node, g: Sequence[str], __: Sequence[bool]) -> Sequence[str]:
    """As if nothing were rounded (Bengio et al. 2013, section 4): the grid holds every value, so none is cut off."""
    return [g[0], *[""] * (len(node.inputs) - 1)]


@gradient("reshape")
def _reshape(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    return [_shaped(b, g[0], b.shape(node.inputs[0]))]


@gradient("transpose")
def _transpose(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    order = node.attributes["order"]
    return [b.emit("transpose", g[0], order=tuple(order.index(i) for i in range(len(order))))]


@gradient("slice")
def _slice(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    dim, start = node.attributes["dim"], node.attributes["start"]
    return [b.emit("pad", g[0], dim=dim, start=start, size=b.shape(node.inputs[0])[dim])]


@gradient("cat")
def _cat(b: Builder, node: Node, g: Sequence[str], wants: Sequence[bool]) -> Sequence[str]:
    dim, start, pieces = node.attributes["dim"], 0, []
    for x, want in zip(node.inputs, wants, strict=True):
        stop = start + b.shape(x)[dim]
        pieces.append(b.emit("slice", g[0], dim=dim, start=start, stop=stop) if want else "")
        start = stop
    return pieces


@gradient("mean", "sum")
def _mean(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    shape, dims = b.shape(node.inputs[0]), node.attributes["dims"]
    kept = tuple(1 if i in dims else n for i, n in enumerate(shape))
    by = 1 / math.prod(shape[i] for i in dims) if node.op == "mean" else 1.0
    return [b.emit("expand", _shaped(b, g[0], kept), shape=shape, by=by)]


@gradient("expand")
def _expand(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    of = _sum_to(b, g[0], b.shape(node.inputs[0]))
    return [of if node.attributes["by"] == 1 else b.emit("scale", of, by=node.attributes["by"], plus=0.0)]


@gradient("max_pool2d")
def _max_pool(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    return [b.emit("max_pool2d_grad", g[0], node.outputs[1], shape=b.shape(node.inputs[0]), **node.attributes)]


@gradient("avg_pool2d")
def _avg_pool(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    return [b.emit("avg_pool2d_grad", g[0], shape=b.shape(node.inputs[0]), **node.attributes)]


@gradient("softmax")
def _softmax(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    return [b.emit("softmax_grad", g[0], node.outputs[0], **node.attributes)]


@gradient("linear")
def _linear(b: Builder, node: Node, g: Sequence[str], wants: Sequence[bool]) -> Sequence[str]:
    x, w = node.inputs[:2]
    dw = b.emit("linear_dw", g[0], x) if wants[1] else ""
    db = _bias(b, g[0], -1, wants[2:])
    return [b.emit("linear_dx", g[0], w) if wants[0] else "", dw, *db]


@gradient("conv2d")
def _conv2d(b: Builder, node: Node, g: Sequence[str], wants: Sequence[bool]) -> Sequence[str]:
    x, w = node.inputs[:2]
    dw = b.emit("conv2d_dw", g[0], x, shape=b.shape(w), **node.attributes) if wants[1] else ""
    db = _bias(b, g[0], 1, wants[2:])
    return [b.emit("conv2d_dx", g[0], w, shape=b.shape(x), **node.attributes) if wants[0] else "", dw, *db]


def _bias(b: Builder, g: str, channel: int, wants: Sequence[bool]) -> list[str]:
    """The gradient of a bias along dim `channel`, for a layer that has one."""
    rank = len(b.shape(g))
    dims = tuple(i for i in range(rank) if i != channel % rank)
    return [(b.emit("sum", g, dims=dims, keepdim=False) if dims else g) if want else "" for want in wants]


@gradient("batch_norm")
def _batch_norm(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    x, w, _bias, rows = node.inputs
    _y, mean, var = node.outputs
    return [*b.emit_all("batch_norm_grad", g[0], x, w, mean, var, rows, training=True, **node.attributes), ""]


@gradient("batch_norm_apply")
def _frozen_batch_norm(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    x, w, _bias, mean, var = node.inputs
    rows, batch = b.rows(), b.batch
    of = b.emit_all("batch_norm_grad", g[0], x, w, mean, var, rows, training=False, batch=batch, **node.attributes)
    return [*of, "", ""]


@gradient("group_norm")
def _group_norm(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    x, w, _bias = node.inputs
    return b.emit_all("group_norm_grad", g[0], x, w, *node.outputs[1:], groups=node.attributes["groups"])


@gradient("layer_norm")
def _layer_norm(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    x, *affine = node.inputs
    return b.emit_all(
        "layer_norm_grad", g[0], x, *node.outputs[1:], *affine[:1], affine=len(affine), dims=node.attributes["dims"]
    )


@gradient("embedding")
def _embedding(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    return [b.emit("embedding_grad", g[0], node.inputs[1], shape=b.shape(node.inputs[0])), ""]


@gradient("attention")
def _attention(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    return b.emit_all("attention_grad", g[0], *node.inputs, *node.outputs, **node.attributes)


@gradient("gru", "lstm")
def _recurrent(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    states = 1 if node.op == "gru" else 2
    weights = 3 + states  # x, the initial states, w_ih, w_hh; biases are not read
    given = [one or b.emit("zeros", shape=b.shape(y)) for one, y in zip(g, node.outputs[: 1 + states], strict=False)]
    y, kept = node.outputs[0], node.outputs[1 + states :]
    return b.emit_all(f"{node.op}_grad", *given, *node.inputs[:weights], y, *kept)[: len(node.inputs)]


@gradient("cross_entropy", "focal", "pair_loss", "distill")
def _loss(b: Builder, node: Node, g: Sequence[str], _: Sequence[bool]) -> Sequence[str]:
    return [b.emit(f"{node.op}_grad", g[0], *node.inputs, **node.attributes), *[""] * (len(node.inputs) - 1)]
