"""From nodes to the ops of the native core (`kernels/program/ops.h`): offsets for names, numbers for attributes.

One row per op of the IR; most become one native op, views none.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_runtime.ir.graph import ITEM_BYTES, Graph, Node, Shape, Value
from edge_runtime.program.epilogues import join_activations
from edge_runtime.program.native_op import ABSENT, NativeOp

RANK = 6  # dims that a strided op of the core takes


@dataclass(frozen=True, slots=True)
class Site:
    """A node with its values and their offsets: what a row reads."""

    node: Node
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    at: Mapping[str, int]
    work: int

    @property
    def a(self) -> Mapping[str, Any]:
        return self.node.attributes

    def ins(self, *places: int) -> tuple[int, ...]:
        """Offsets of these inputs; ABSENT for one the node does not have."""
        return tuple(self.at[self.inputs[i].name] if i < len(self.inputs) else ABSENT for i in places)

    def outs(self, *places: int) -> tuple[int, ...]:
        return tuple(self.at[self.outputs[i].name] if i < len(self.outputs) else ABSENT for i in places)


Row = Callable[[Site], list[NativeOp]]
ROWS: dict[str, Row] = {}


def row(*ops: str) -> Callable[[Row], Row]:
    def register(function: Row) -> Row:
        ROWS.update(dict.fromkeys(ops, function))
        return function

    return register


def pack(graph: Graph, offsets: Mapping[str, int], work: Mapping[int, int]) -> list[NativeOp]:
    """The ops of `graph`; `offsets` says where each value lies, `work` where node i has its scratch space."""
    ops: list[NativeOp] = []
    for place, node in enumerate(graph.nodes):
        inputs, outputs = (tuple(graph.values[name] for name in names) for names in (node.inputs, node.outputs))
        site = Site(node, inputs, outputs, offsets, work.get(place, ABSENT))
        made = next((graph.values[name] for name in (*node.outputs, *node.writes)), None)
        makes = (offsets[made.name], made.size) if made and made.dtype == "f32" else (ABSENT, 0)
        ops += [dataclasses.replace(op, node=place, makes=makes) for op in ROWS[node.op](site)]
    return join_activations(ops)


def row_strides(shape: Shape) -> tuple[int, ...]:
    """Elements from one index to the next in each dim of a contiguous tensor."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _repeating_strides(shape: Shape, out: Shape) -> tuple[int, ...]:
    """Strides that read a tensor of `shape` as if it were broadcast to `out`."""
    padded = (1,) * (len(out) - len(shape)) + shape
    return tuple(0 if n == 1 else s for n, s in zip(padded, row_strides(padded), strict=True))


def merged(shape: Shape, *strides: Sequence[int]) -> tuple[Shape, list[tuple[int, ...]]]:
    """The same walk over memory in as few dims as it takes: dims of 1 go, neighbours that follow each other join."""
    dims = [i for i, n in enumerate(shape) if n > 1]
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for i in dims:
        if sizes and all(s[-1] == one[i] * shape[i] for s, one in zip(steps, strides, strict=True)):
            sizes[-1] *= shape[i]
            for s, one in zip(steps, strides, strict=True):
                s[-1] = one[i]
        else:
            sizes.append(shape[i])
            for s, one in zip(steps, strides, strict=True):
                s.append(one[i])
    if not sizes:
        sizes, steps = [1], [[0] for _ in strides]
    if len(sizes) > RANK:
        raise ValueError(f"{len(sizes)} dims of {shape} do not merge to {RANK}")
    return tuple(sizes), [tuple(s) for s in steps]


def _walk(shape: Shape, *strides: Sequence[int]) -> tuple[int, ...]:
    """rank, shape[6], then each set of strides[6]."""
    sizes, steps = merged(shape, *strides)
    fill = (0,) * (RANK - len(sizes))
    return (len(sizes), *sizes, *fill, *(n for step in steps for n in (*step, *fill)))


@row("reshape", "detach")
def _view(_: Site) -> list[NativeOp]:
    return []


_BINARY = {"add": 0, "mul": 1}
_UNARY = {"relu": 0, "relu6": 1, "gelu": 2, "sigmoid": 3, "silu": 4, "tanh": 5, "exp": 6, "scale": 7, "clip": 8}
_PAIR_LOSS = {"mse": 0, "l1": 1, "huber": 2, "bce_with_logits": 3}


@row(*_BINARY)
def _binary(s: Site) -> list[NativeOp]:
    shape = s.outputs[0].shape
    walk = _walk(shape, *(_repeating_strides(x.shape, shape) for x in s.inputs))
    return [NativeOp("binary", (*s.ins(0, 1), *s.outs(0)), (_BINARY[s.node.op], *walk))]


@row(*_UNARY)
def _unary(s: Site) -> list[NativeOp]:
    first, second = {"scale": ("by", "plus"), "clip": ("low", "high")}.get(s.node.op, ("", ""))
    numbers = (s.a[first], s.a[second]) if first else (0.0, 0.0)
    return [NativeOp("unary", (*s.ins(0), *s.outs(0)), (_UNARY[s.node.op], s.inputs[0].size), numbers)]


@row(*(f"{name}_grad" for name in ("relu", "relu6", "gelu", "sigmoid", "silu", "tanh")))
def _unary_grad(s: Site) -> list[NativeOp]:
    kind = _UNARY[s.node.op.removesuffix("_grad")]
    return [NativeOp("unary_grad", (*s.ins(0, 1), *s.outs(0)), (kind, s.inputs[0].size))]


@row("dropout")
def _dropout(s: Site) -> list[NativeOp]:
    x = s.inputs[0]
    return [NativeOp("dropout", (*s.ins(0, 1), *s.outs(0)), (x.size, s.a["id"], x.size // s.a["batch"]), (s.a["p"],))]


@row("fake_quant")
def _fake_quant(s: Site) -> list[NativeOp]:
    return [NativeOp("fake_quant", (*s.ins(0, 1), *s.outs(0)), (s.inputs[0].size, s.a["batch"], s.a["bits"]))]


@row("fake_quant_weight")
def _fake_quant_weight(s: Site) -> list[NativeOp]:
    channels = s.inputs[0].shape[0]
    ints = (channels, s.inputs[0].size // channels, s.a["bits"])
    return [NativeOp("fake_quant_weight", (*s.ins(0), *s.outs(0)), ints)]


def _copy(x: Value, shape: Shape, xs: Sequence[int], ys: Sequence[int], x0: int, y0: int) -> tuple[int, ...]:
    return (ITEM_BYTES[x.dtype], *_walk(shape, xs, ys), x0, y0)


@row("transpose")
def _transpose(s: Site) -> list[NativeOp]:
    x, y = s.inputs[0], s.outputs[0]
    strides = row_strides(x.shape)
    ints = _copy(x, y.shape, [strides[i] for i in s.a["order"]], row_strides(y.shape), 0, 0)
    return [NativeOp("copy", (*s.ins(0), *s.outs(0)), ints, (1.0,))]


@row("slice")
def _slice(s: Site) -> list[NativeOp]:
    x, y = s.inputs[0], s.outputs[0]
    strides = row_strides(x.shape)
    ints = _copy(x, y.shape, strides, row_strides(y.shape), s.a["start"] * strides[s.a["dim"]], 0)
    return [NativeOp("copy", (*s.ins(0), *s.outs(0)), ints, (1.0,))]


@row("pad")
def _pad(s: Site) -> list[NativeOp]:
    x, y = s.inputs[0], s.outputs[0]
    strides = row_strides(y.shape)
    ints = _copy(x, x.shape, row_strides(x.shape), strides, 0, s.a["start"] * strides[s.a["dim"]])
    return [*_fill(s, 0.0), NativeOp("copy", (*s.ins(0), *s.outs(0)), ints, (1.0,))]


@row("cat")
def _cat(s: Site) -> list[NativeOp]:
    y, start, ops = s.outputs[0], 0, []
    strides = row_strides(y.shape)
    for i, x in enumerate(s.inputs):
        ints = _copy(x, x.shape, row_strides(x.shape), strides, 0, start * strides[s.a["dim"]])
        ops.append(NativeOp("copy", (*s.ins(i), *s.outs(0)), ints, (1.0,)))
        start += x.shape[s.a["dim"]]
    return ops


@row("expand")
def _expand(s: Site) -> list[NativeOp]:
    x, shape = s.inputs[0], s.a["shape"]
    ints = _copy(x, shape, _repeating_strides(x.shape, shape), row_strides(shape), 0, 0)
    return [NativeOp("copy", (*s.ins(0), *s.outs(0)), ints, (s.a["by"],))]


@row("zeros")
def _zeros(s: Site) -> list[NativeOp]:
    return _fill(s, 0.0)


def _fill(s: Site, value: float) -> list[NativeOp]:
    return [NativeOp("fill", s.outs(0), (s.outputs[0].size,), (value,))]


@row("mean", "sum")
def _reduce(s: Site) -> list[NativeOp]:
    x, dims = s.inputs[0], s.a["dims"]
    kept = tuple(1 if i in dims else n for i, n in enumerate(x.shape))
    by = math.prod(kept) / x.size if s.node.op == "mean" else 1.0
    walk = _walk(x.shape, row_strides(x.shape), _repeating_strides(kept, x.shape))
    ints = (*walk[: 1 + RANK], *walk[1 + 2 * RANK :])  # x is contiguous: its own strides are not asked for
    return [NativeOp("reduce", (*s.ins(0), *s.outs(0)), ints, (by,))]


@row("linear")
def _linear(s: Site) -> list[NativeOp]:
    x, w = s.inputs[:2]
    return [NativeOp("linear", (*s.ins(0, 1, 2), *s.outs(0)), (x.size // w.shape[1], *w.shape))]


@row("linear_dx")
def _linear_dx(s: Site) -> list[NativeOp]:
    g, w = s.inputs
    return [NativeOp("linear_dx", (*s.ins(0, 1), *s.outs(0)), (g.size // w.shape[0], *w.shape))]


@row("linear_dw")
def _linear_dw(s: Site) -> list[NativeOp]:
    g, dw = s.inputs[0], s.outputs[0]
    return [NativeOp("linear_dw", (*s.ins(0, 1), *s.outs(0)), (g.size // dw.shape[0], *dw.shape))]


@row("conv2d")
def _conv2d(s: Site) -> list[NativeOp]:
    ints = _conv(s.inputs[0].shape, s.inputs[1].shape, s.a)
    return [NativeOp("conv2d", (*s.ins(0, 1, 2), *s.outs(0)), ints)]


@row("conv2d_dx")
def _conv2d_dx(s: Site) -> list[NativeOp]:
    ints = _conv(s.outputs[0].shape, s.inputs[1].shape, s.a)
    return [NativeOp("conv2d_dx", (*s.ins(0, 1), *s.outs(0)), ints)]


@row("conv2d_dw")
def _conv2d_dw(s: Site) -> list[NativeOp]:
    ints = _conv(s.inputs[1].shape, s.outputs[0].shape, s.a)
    return [NativeOp("conv2d_dw", (*s.ins(0, 1), *s.outs(0)), ints)]


def _conv(x: Shape, w: Shape, a: Mapping[str, Any]) -> tuple[int, ...]:
    return (*x, w[0], *w[2:], *a["stride"], *a["padding"], a["groups"])


@row("max_pool2d", "avg_pool2d")
def _pool(s: Site) -> list[NativeOp]:
    return [NativeOp(s.node.op, (*s.ins(0), *s.outs(*range(len(s.outputs)))), _window(s.inputs[0].shape, s))]


@row("max_pool2d_grad", "avg_pool2d_grad")
def _pool_grad(s: Site) -> list[NativeOp]:
    return [NativeOp(s.node.op, (*s.ins(*range(len(s.inputs))), *s.outs(0)), _window(s.outputs[0].shape, s))]


def _window(x: Shape, s: Site) -> tuple[int, ...]:
    padding = s.a["padding"] if s.node.op.startswith("max") else ()
    return (x[0] * x[1], *x[2:], *s.a["kernel"], *s.a["stride"], *padding)


@row("batch_norm")
def _batch_norm(s: Site) -> list[NativeOp]:
    ints = (*_channels(s.inputs[0].shape), s.a["batch"])
    return [NativeOp("batch_norm", (*s.ins(0, 1, 2, 3), *s.outs(0, 1, 2)), ints, (s.a["eps"],))]


@row("batch_norm_apply")
def _batch_norm_apply(s: Site) -> list[NativeOp]:
    buffers = (*s.ins(0, 1, 2, 3, 4), *s.outs(0))
    return [NativeOp("batch_norm_apply", buffers, _channels(s.inputs[0].shape), (s.a["eps"],))]


@row("batch_norm_grad")
def _batch_norm_grad(s: Site) -> list[NativeOp]:
    ints = (*_channels(s.inputs[1].shape), s.a["batch"], int(s.a["training"]))
    return [NativeOp("batch_norm_grad", (*s.ins(0, 1, 2, 3, 4, 5), *s.outs(0, 1, 2)), ints, (s.a["eps"],))]


@row("running_stats")
def _running_stats(s: Site) -> list[NativeOp]:
    ints = (*_channels(s.a["shape"]), s.a["batch"])
    return [NativeOp("running_stats", s.ins(0, 1, 2, 3, 4), ints, (s.a["momentum"],))]


@row("group_norm")
def _group_norm(s: Site) -> list[NativeOp]:
    ints = (*_channels(s.inputs[0].shape), s.a["groups"])
    return [NativeOp("group_norm", (*s.ins(0, 1, 2), *s.outs(0, 1, 2)), ints, (s.a["eps"],))]


@row("group_norm_grad")
def _group_norm_grad(s: Site) -> list[NativeOp]:
    ints = (*_channels(s.inputs[1].shape), s.a["groups"])
    return [NativeOp("group_norm_grad", (*s.ins(0, 1, 2, 3, 4), *s.outs(0, 1, 2)), ints)]


def _channels(shape: Shape) -> tuple[int, int, int]:
    """N, C and what is left of (N, C, ...)."""
    return (shape[0], shape[1], math.prod(shape[2:]))


@row("layer_norm")
def _layer_norm(s: Site) -> list[NativeOp]:
    rows, width = s.outputs[1].size, s.inputs[0].size // s.outputs[1].size
    return [NativeOp("layer_norm", (*s.ins(0, 1, 2), *s.outs(0, 1, 2)), (rows, width), (s.a["eps"],))]


@row("layer_norm_grad")
def _layer_norm_grad(s: Site) -> list[NativeOp]:
    rows, width = s.inputs[2].size, s.inputs[1].size // s.inputs[2].size
    buffers = (*s.ins(0, 1, 4, 2, 3), *s.outs(0, 1, 2))
    return [NativeOp("layer_norm_grad", buffers, (rows, width))]


@row("embedding")
def _embedding(s: Site) -> list[NativeOp]:
    return [NativeOp("embedding", (*s.ins(0, 1), *s.outs(0)), (*s.inputs[0].shape, s.inputs[1].size))]


@row("embedding_grad")
def _embedding_grad(s: Site) -> list[NativeOp]:
    return [NativeOp("embedding_grad", (*s.ins(0, 1), *s.outs(0)), (*s.outputs[0].shape, s.inputs[1].size))]


@row("attention")
def _attention(s: Site) -> list[NativeOp]:
    ints = _attention_sizes(s.inputs, s.a)
    return [NativeOp("attention", (*s.ins(0, 1, 2), *s.outs(0, 1), s.work), ints, (s.a["scale"],))]


@row("attention_grad")
def _attention_grad(s: Site) -> list[NativeOp]:
    ints = _attention_sizes(s.inputs[1:4], s.a)
    buffers = (*s.ins(0, 1, 2, 3, 4, 5), *s.outs(0, 1, 2), s.work)
    return [NativeOp("attention_grad", buffers, ints, (s.a["scale"],))]


def _attention_sizes(inputs: Sequence[Value], a: Mapping[str, Any]) -> tuple[int, ...]:
    q, k, v = inputs
    planes = math.prod(q.shape[:-2])
    return (planes, q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1], int(a["causal"]))


@row("softmax")
def _softmax(s: Site) -> list[NativeOp]:
    return [NativeOp("softmax", (*s.ins(0), *s.outs(0)), _along(s))]


@row("softmax_grad")
def _softmax_grad(s: Site) -> list[NativeOp]:
    return [NativeOp("softmax_grad", (*s.ins(0, 1), *s.outs(0)), _along(s))]


def _along(s: Site) -> tuple[int, int, int]:
    shape, dim = s.outputs[0].shape, s.a["dim"]
    return (math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :]))


@row("gru", "lstm")
def _recurrent(s: Site) -> list[NativeOp]:
    states = 1 if s.node.op == "gru" else 2
    inputs = s.ins(*range(5 + states))  # biases are the last two, and may be absent
    return [NativeOp(s.node.op, (*inputs, *s.outs(*range(len(s.outputs))), s.work), _steps(s, 0, states))]


@row("gru_gates", "lstm_gates")
def _recurrent_gates(s: Site) -> list[NativeOp]:
    states = 1 if s.node.op == "gru_gates" else 2
    y = len(s.inputs) - 1
    inputs = tuple(s.ins(i)[0] if i < y else ABSENT for i in range(5 + states))
    buffers = (*inputs, *s.ins(y), *s.outs(*range(len(s.outputs))), s.work)
    return [NativeOp(s.node.op, buffers, _steps(s, 0, states))]


@row("gru_grad", "lstm_grad")
def _recurrent_grad(s: Site) -> list[NativeOp]:
    states = 1 if s.node.op == "gru_grad" else 2
    buffers = (*s.ins(*range(len(s.inputs))), *s.outs(*range(len(s.outputs))), s.work)
    return [NativeOp(s.node.op, buffers, _steps(s, 1 + states, states))]


def _steps(s: Site, x: int, states: int) -> tuple[int, ...]:
    """B, T, I, H; `x` is the place of the input sequence."""
    return (*s.inputs[x].shape, s.inputs[x + states].shape[-1])


@row("cross_entropy", "focal")
def _class_loss(s: Site) -> list[NativeOp]:
    z, target, rows, norm, weight = s.ins(0, 1, 2, 3, 4)
    return [NativeOp(s.node.op, (z, target, weight, rows, norm, *s.outs(0)), _classes(s, 0), _sharpness(s))]


@row("cross_entropy_grad", "focal_grad")
def _class_loss_grad(s: Site) -> list[NativeOp]:
    g, z, target, rows, norm, weight = s.ins(0, 1, 2, 3, 4, 5)
    return [NativeOp(s.node.op, (g, z, target, weight, rows, norm, *s.outs(0)), _classes(s, 1), _sharpness(s))]


def _classes(s: Site, z: int) -> tuple[int, ...]:
    shape = s.inputs[z].shape
    return (math.prod(shape[:-1]), shape[-1], s.a["batch"], s.a["ignore_index"])


def _sharpness(s: Site) -> tuple[float]:
    return (s.a["gamma"] if s.node.op.startswith("focal") else s.a["smoothing"],)


@row("pair_loss", "pair_loss_grad")
def _pair_loss(s: Site) -> list[NativeOp]:
    ints = (_PAIR_LOSS[s.a["kind"]], s.inputs[-3].size, s.a["batch"])
    return [NativeOp(s.node.op, (*s.ins(*range(len(s.inputs))), *s.outs(0)), ints, (s.a["delta"],))]


@row("distill", "distill_grad")
def _distill(s: Site) -> list[NativeOp]:
    shape = s.inputs[-3].shape
    ints = (math.prod(shape[:-1]), shape[-1], s.a["batch"])
    return [NativeOp(s.node.op, (*s.ins(*range(len(s.inputs))), *s.outs(0)), ints, (s.a["temperature"],))]


@row("sgd")
def _sgd(s: Site) -> list[NativeOp]:
    numbers = (s.a["momentum"], s.a["weight_decay"])
    return [NativeOp("sgd", s.ins(0, 1, 3, 2), (s.inputs[0].size, int(s.a["nesterov"])), numbers)]


@row("adam")
def _adam(s: Site) -> list[NativeOp]:
    numbers = tuple(s.a[name] for name in ("beta1", "beta2", "eps", "weight_decay"))
    return [NativeOp("adam", s.ins(0, 1, 2, 3, 4, 5), (s.inputs[0].size, int(s.a["decoupled"])), numbers)]


@row("rmsprop")
def _rmsprop(s: Site) -> list[NativeOp]:
    numbers = tuple(s.a[name] for name in ("alpha", "eps", "momentum", "weight_decay"))
    return [NativeOp("rmsprop", s.ins(0, 1, 2, 4, 3), (s.inputs[0].size,), numbers)]


@row("adagrad")
def _adagrad(s: Site) -> list[NativeOp]:
    return [NativeOp("adagrad", s.ins(0, 1, 2, 3), (s.inputs[0].size,), (s.a["eps"], s.a["weight_decay"]))]


@row("proximal")
def _proximal(s: Site) -> list[NativeOp]:
    return [NativeOp("proximal", (*s.ins(0, 1, 2), *s.outs(0)), (s.inputs[0].size,), (s.a["mu"],))]


@row("square_sum")
def _square_sum(s: Site) -> list[NativeOp]:
    return [NativeOp("square_sum", (*s.ins(0), *s.outs(0)), (s.inputs[0].size,))]


@row("clip_scale")
def _clip_scale(s: Site) -> list[NativeOp]:
    return [NativeOp("clip_scale", (*s.ins(0), *s.outs(0)), (), (s.a["max_norm"],))]


@row("accumulate")
def _accumulate(s: Site) -> list[NativeOp]:
    shape = s.inputs[0].shape
    walk = _walk(shape, row_strides(shape), row_strides(shape))
    return [NativeOp("binary", (*s.ins(0, 1), *s.ins(0)), (_BINARY["add"], *walk))]


@row("clear")
def _clear(s: Site) -> list[NativeOp]:
    return [NativeOp("fill", s.ins(0), (s.inputs[0].size,), (0.0,))]


@row("check_finite")
def _check_finite(s: Site) -> list[NativeOp]:
    return [NativeOp("check_finite", s.ins(0), (s.inputs[0].size,))]
