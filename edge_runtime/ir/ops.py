"""One row per op: what it takes, which attributes it has, the shapes that come out, and what a planner may do with it.

A new op is a row here, a function in `engine/reference/`, a row in `passes/gradients.py` if it is differentiated, a row
in `program/packed.py`, and one in `capture/aten.py` if PyTorch can make it. Formulas: `kernels/program/ops.h`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from edge_runtime.ir.graph import Attribute, Shape, Value

Attributes = Mapping[str, Attribute]
ShapeRule = Callable[[Sequence[Value], Mapping[str, Any]], list[tuple[Shape, str]]]
CostRule = Callable[[Sequence[Value], Mapping[str, Any]], int]


class ShapeError(ValueError):
    """The inputs of a node do not fit its op."""


class Recompute(Enum):
    """How a value may be had a second time in the backward pass, other than by being kept."""

    NEVER = 0
    HEAVY = 1  # costs about what its forward pass cost
    CHEAP = 2  # a pass or two over memory


@dataclass(frozen=True, slots=True)
class Op:
    """A row.

    Attributes:
        inputs: how many values it takes, from and to.
        view: the output is its input's bytes, unmoved.
        in_place: pairs (output, input) of which the output may take the input's bytes.
        work: bytes of scratch space that it needs while it runs.
        flops: multiply-adds count two; memory traffic is not in it.

    """

    inputs: tuple[int, int]
    shapes: ShapeRule
    attributes: tuple[str, ...] = ()
    view: bool = False
    in_place: tuple[tuple[int, int], ...] = ()
    recompute: Recompute = Recompute.NEVER
    work: CostRule = lambda xs, a: 0
    flops: CostRule = lambda xs, a: sum(x.size for x in xs)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ShapeError(message)


def _same(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    return [(xs[0].shape, xs[0].dtype)]


def _broadcast(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    rank = max(len(x.shape) for x in xs)
    padded = [(1,) * (rank - len(x.shape)) + x.shape for x in xs]
    shape = tuple(max(sizes) for sizes in zip(*padded, strict=True))
    fits = all(size in (1, out) for p in padded for size, out in zip(p, shape, strict=True))
    _require(fits, f"shapes {[x.shape for x in xs]} do not broadcast")
    return [(shape, "f32")]


def _linear(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    x, w = xs[0].shape, xs[1].shape
    _require(len(w) == 2 and x[-1:] == w[1:], f"input {x} does not fit weight {w}")
    _require(len(xs) == 2 or xs[2].shape == w[:1], "bias does not fit weight")
    return [((*x[:-1], w[0]), "f32")]


def _conv2d(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    x, w = xs[0].shape, xs[1].shape
    _require(len(x) == len(w) == 4 and x[1] == w[1] * a["groups"], f"input {x} does not fit weight {w}")
    _require(w[0] % a["groups"] == 0, f"{w[0]} output channels in {a['groups']} groups")
    _require(len(xs) == 2 or xs[2].shape == w[:1], "bias does not fit weight")
    return [((x[0], w[0], *_window(x[2:], w[2:], a)), "f32")]


def _pool2d(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    x = xs[0].shape
    _require(len(x) == 4, f"input {x} is not (N, C, H, W)")
    return [((*x[:2], *_window(x[2:], a["kernel"], a)), "f32")]


def _max_pool2d(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    """The maxima, and the place of each in its window, one byte."""
    _require(math.prod(a["kernel"]) <= 255, f"window {a['kernel']} has more than 255 places")
    _require(all(2 * p <= k for p, k in zip(a["padding"], a["kernel"], strict=True)), "padding is over half the window")
    return [(shape, dtype) for shape, _ in _pool2d(xs, a) for dtype in ("f32", "u8")]


def _window(size: Shape, kernel: Shape, a: Mapping[str, Any]) -> Shape:
    """Output height and width of a sliding window, rounding down."""
    out = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, a["stride"], a["padding"], strict=True))
    _require(min(out) >= 1, f"window {kernel} is larger than the padded input {size}")
    return out


def _sum(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    x, dims = xs[0].shape, a["dims"]
    _require(all(0 <= dim < len(x) for dim in dims), f"dims {dims} of {x}")
    kept = tuple(1 if i in dims else n for i, n in enumerate(x) if a["keepdim"] or i not in dims)
    return [(kept, "f32")]


def _channel_norm(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    x = xs[0].shape
    _require(len(x) >= 2 and all(p.shape == (x[1],) for p in xs[1:]), f"parameters do not fit channels of {x}")
    return [(x, "f32")]


def _batch_norm(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    """X, w, b, rows -> y, mean, var."""
    _require(xs[3].dtype == "i64" and xs[0].shape[0] % a["batch"] == 0, "rows do not fit")
    return [*_channel_norm(xs[:3], a), (xs[1].shape, "f32"), (xs[1].shape, "f32")]


def _batch_norm_grad(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    """G, x, w, mean, var, rows -> dx, dw, db."""
    _require(xs[0].shape == xs[1].shape, f"gradient {xs[0].shape} of {xs[1].shape}")
    return [*_channel_norm(xs[1:5], a), (xs[2].shape, "f32"), (xs[2].shape, "f32")]


def _nothing(_: Sequence[Value], __: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    return []


def _group_norm(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    """X, w, b -> y, mean, rstd."""
    x = xs[0].shape
    _require(x[1] % a["groups"] == 0, f"{x[1]} channels in {a['groups']} groups")
    return [*_channel_norm(xs, a), *[((x[0], a["groups"]), "f32")] * 2]


def _group_norm_grad(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    """G, x, w, mean, rstd -> dx, dw, db."""
    return [(xs[1].shape, "f32"), (xs[2].shape, "f32"), (xs[2].shape, "f32")]


def _layer_norm(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    """X, [w, [b]] -> y, mean, rstd."""
    x = xs[0].shape
    tail = x[len(x) - a["dims"] :]
    _require(all(p.shape == tail for p in xs[1:]), f"parameters do not fit the last {a['dims']} dims of {x}")
    return [(x, "f32"), *[(x[: len(x) - a["dims"]], "f32")] * 2]


def _layer_norm_grad(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    """G, x, mean, rstd, [w] -> dx, [dw, [db]]; `affine` says how many of w and b the layer has."""
    x = xs[1].shape
    return [(x, "f32"), *[(x[len(x) - a["dims"] :], "f32")] * a["affine"]]


def _embedding(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    table, ids = xs
    _require(len(table.shape) == 2 and ids.dtype == "i64", "needs a (V, D) table and i64 ids")
    return [((*ids.shape, table.shape[1]), "f32")]


def _attention(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    q, k, v = (x.shape for x in xs)
    _require(k[:-1] == v[:-1] and q[:-2] == k[:-2] and q[-1] == k[-1], f"q {q}, k {k}, v {v} do not fit")
    return [((*q[:-1], v[-1]), "f32"), (q[:-1], "f32")]


def _recurrent(gates: int, states: int) -> ShapeRule:
    """X (B, T, I), `states` initial states (B, H), w_ih (gH, I), w_hh (gH, H) and both biases or none.

    Gives y (B, T, H), the final states, the gates (B, T, 4H), and for an LSTM the cells (B, T, H).
    """

    def rule(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
        x, start, w_ih, w_hh = xs[0].shape, xs[1].shape, xs[1 + states].shape, xs[2 + states].shape
        hidden = start[-1]
        fits = len(x) == 3 and start == (x[0], hidden) and all(s.shape == start for s in xs[1 : 1 + states])
        fits = fits and w_ih == (gates * hidden, x[2]) and w_hh == (gates * hidden, hidden)
        _require(
            fits and all(b.shape == w_ih[:1] for b in xs[3 + states :]),
            f"input {x} does not fit weights {w_ih}, {w_hh}",
        )
        kept = [((*x[:2], 4 * hidden), "f32"), ((*x[:2], hidden), "f32")]
        return [((*x[:2], hidden), "f32"), *[(start, "f32")] * states, *kept[:states]]

    return rule


def _recurrent_gates(gates: int, states: int) -> ShapeRule:
    """What `_recurrent` takes, and its y as the last input; gives what it keeps for the gradient."""
    return lambda xs, a: _recurrent(gates, states)(xs[:-1], a)[1 + states :]


def _recurrent_grad(states: int) -> ShapeRule:
    """The gradients of y and of the final states, x, the initial states, w_ih, w_hh, y, gates, [cells].

    Gives dx, those of the initial states, dw_ih, dw_hh, db_ih, db_hh, dgates.
    """

    def rule(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
        inputs = [x.shape for x in xs[1 + states : 4 + 2 * states]]
        bias = inputs[-1][:1]
        return [(shape, "f32") for shape in (*inputs, bias, bias, xs[5 + 2 * states].shape)]

    return rule


def _cat(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    dim, first = a["dim"], xs[0].shape
    others = [x.shape[:dim] + x.shape[dim + 1 :] for x in xs]
    _require(len(set(others)) == 1, f"shapes {[x.shape for x in xs]} differ outside dim {dim}")
    return [((*first[:dim], sum(x.shape[dim] for x in xs), *first[dim + 1 :]), xs[0].dtype)]


def _pad(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    """X at `start` of dim, zeros around it up to `size`."""
    x, dim = xs[0].shape, a["dim"]
    _require(0 <= a["start"] <= a["size"] - x[dim], f"{x} at {a['start']} of {a['size']}")
    return [((*x[:dim], a["size"], *x[dim + 1 :]), "f32")]


def _slice(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    x, dim = xs[0].shape, a["dim"]
    _require(0 <= a["start"] < a["stop"] <= x[dim], f"[{a['start']}:{a['stop']}] of dim {dim} of {x}")
    return [((*x[:dim], a["stop"] - a["start"], *x[dim + 1 :]), xs[0].dtype)]


def _transpose(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    _require(sorted(a["order"]) == list(range(len(xs[0].shape))), f"order {a['order']} of {xs[0].shape}")
    return [(tuple(xs[0].shape[i] for i in a["order"]), xs[0].dtype)]


def _reshape(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    _require(math.prod(a["shape"]) == xs[0].size, f"{xs[0].shape} as {a['shape']}")
    return [(a["shape"], xs[0].dtype)]


def _zeros(_: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    return [(a["shape"], "f32")]


def _avg_pool2d(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    _require(a["padding"] == (0, 0), "avg_pool2d has no padding")
    return _pool2d(xs, a)


def _dropout(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    _require(
        xs[0].size % a["batch"] == 0 and xs[1].dtype == "i64",
        "dropout is for values that have the batch's rows, not for weights",
    )
    return _same(xs, a)


def _fake_quant(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    _require(2 <= a["bits"] <= 8, f"{a['bits']} bits, not 2 to 8")
    _require(len(xs) == 1 or xs[0].size % a["batch"] == 0, f"{xs[0].shape} does not have {a.get('batch')} rows")
    return _same(xs, a)


def _expand(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    _require(_broadcast([xs[0], Value("", a["shape"])], a)[0][0] == a["shape"], f"{xs[0].shape} to {a['shape']}")
    return [(a["shape"], "f32")]


def _to_shape(_: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    """A gradient, in the shape of what it is the gradient of."""
    return [(a["shape"], "f32")]


def _like(*places: int) -> ShapeRule:
    """Outputs in the shapes of these inputs."""
    return lambda xs, _: [(xs[place].shape, "f32") for place in places]


def _linear_dx(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    g, w = xs[0].shape, xs[1].shape
    _require(g[-1] == w[0], f"gradient {g} does not fit weight {w}")
    return [((*g[:-1], w[1]), "f32")]


def _linear_dw(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    g, x = xs[0].shape, xs[1].shape
    _require(g[:-1] == x[:-1], f"gradient {g} does not fit input {x}")
    return [((g[-1], x[-1]), "f32")]


def _scalar(_: Sequence[Value], __: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    return [((1,), "f32")]


def _class_loss(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    """Z (..., C), target (...), rows, norm, [class weights (C)]."""
    z, target = xs[0], xs[1]
    _require(target.dtype == "i64" and target.shape == z.shape[:-1], f"target {target.shape} does not fit {z.shape}")
    _require(all(w.shape == z.shape[-1:] for w in xs[4:]), "one weight per class")
    return [((1,), "f32")]


def _pair_loss(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    """Two tensors of one shape, rows, norm."""
    _require(xs[0].shape == xs[1].shape, f"target {xs[1].shape} does not fit {xs[0].shape}")
    return [((1,), "f32")]


def _conv_flops(x: Shape, w: Shape, a: Mapping[str, Any]) -> int:
    return 2 * x[0] * math.prod(w) * math.prod(_window(x[2:], w[2:], a))


_WINDOW = ("stride", "padding")
_CONV = (*_WINDOW, "groups")
_POOL = ("kernel", *_WINDOW)
_CLASS_LOSS = ("batch", "ignore_index")
_G = ((0, 0),)  # the gradient that goes in may be overwritten by the one that comes out


def _unary(**more: Any) -> Op:
    return Op((1, 1), _same, in_place=((0, 0),), recompute=Recompute.CHEAP, **more)


def _unary_grad() -> Op:
    """G, and the output or the input of the function, whichever its derivative is written in."""
    return Op((2, 2), _like(0), in_place=((0, 0), (0, 1)))


def _recurrent_ops(name: str, *, gates: int, states: int) -> dict[str, Op]:
    """The layer, its gates a second time, and its gradient; which may put that of the gates where those were."""
    work: CostRule = lambda xs, a: 4 * gates * xs[1].size  # noqa: E731  one of three in a table
    flops: CostRule = lambda xs, a: _gate_flops(xs, states)  # noqa: E731
    low, high = 3 + states, 5 + states
    return {
        name: Op((low, high), _recurrent(gates, states), work=work, flops=flops),
        f"{name}_gates": Op(
            (low + 1, high + 1),
            _recurrent_gates(gates, states),
            recompute=Recompute.HEAVY,
            work=work,
            flops=flops,
        ),
        f"{name}_grad": Op(
            (5 + 3 * states, 5 + 3 * states),
            _recurrent_grad(states),
            in_place=((5 + states, 5 + 2 * states),),
            work=lambda xs, a: 4 * states * xs[1].size,
            flops=lambda xs, a: 2 * _gate_flops(xs[1 + states :], states),
        ),
    }


OPS: dict[str, Op] = {
    # elementwise
    "add": Op((2, 2), _broadcast, in_place=((0, 0), (0, 1)), recompute=Recompute.CHEAP),
    "mul": Op((2, 2), _broadcast, in_place=((0, 0), (0, 1)), recompute=Recompute.CHEAP),
    "scale": _unary(attributes=("by", "plus")),
    "clip": _unary(attributes=("low", "high")),
    "exp": _unary(),
    "gelu": _unary(flops=lambda xs, a: 20 * xs[0].size),
    "relu": _unary(),
    "relu6": _unary(),
    "sigmoid": _unary(flops=lambda xs, a: 10 * xs[0].size),
    "silu": _unary(flops=lambda xs, a: 10 * xs[0].size),
    "tanh": _unary(flops=lambda xs, a: 10 * xs[0].size),
    "gelu_grad": _unary_grad(),
    "relu_grad": _unary_grad(),
    "relu6_grad": _unary_grad(),
    "sigmoid_grad": _unary_grad(),
    "silu_grad": _unary_grad(),
    "tanh_grad": _unary_grad(),
    "dropout": Op((2, 2), _dropout, ("batch", "id", "p"), in_place=((0, 0),), recompute=Recompute.CHEAP),
    # rounding to integers and back
    "fake_quant": Op((2, 2), _fake_quant, ("batch", "bits"), in_place=((0, 0),), recompute=Recompute.CHEAP),
    "fake_quant_weight": Op((1, 1), _fake_quant, ("bits",), recompute=Recompute.CHEAP),
    # shape
    "reshape": Op((1, 1), _reshape, ("shape",), view=True, recompute=Recompute.CHEAP),
    "detach": Op((1, 1), _same, view=True, recompute=Recompute.CHEAP),  # its gradient is nothing
    "transpose": Op((1, 1), _transpose, ("order",), recompute=Recompute.CHEAP),
    "slice": Op((1, 1), _slice, ("dim", "start", "stop"), recompute=Recompute.CHEAP),
    "pad": Op((1, 1), _pad, ("dim", "start", "size"), recompute=Recompute.CHEAP),
    "cat": Op((1, 64), _cat, ("dim",), recompute=Recompute.CHEAP),
    "expand": Op((1, 1), _expand, ("shape", "by"), recompute=Recompute.CHEAP),
    "zeros": Op((0, 0), _zeros, ("shape",), recompute=Recompute.CHEAP),
    # reductions and pools
    "mean": Op((1, 1), _sum, ("dims", "keepdim"), recompute=Recompute.CHEAP),
    "sum": Op((1, 1), _sum, ("dims", "keepdim"), recompute=Recompute.CHEAP),
    "avg_pool2d": Op((1, 1), _avg_pool2d, _POOL, recompute=Recompute.CHEAP),
    "avg_pool2d_grad": Op((1, 1), _to_shape, (*_POOL, "shape")),
    "max_pool2d": Op((1, 1), _max_pool2d, _POOL, recompute=Recompute.CHEAP),
    "max_pool2d_grad": Op((2, 2), _to_shape, (*_POOL, "shape")),
    "softmax": Op((1, 1), _same, ("dim",), in_place=((0, 0),), recompute=Recompute.CHEAP),
    "softmax_grad": Op((2, 2), _like(0), ("dim",), in_place=_G),
    # linear algebra
    "linear": Op((2, 3), _linear, recompute=Recompute.HEAVY, flops=lambda xs, a: 2 * xs[0].size * xs[1].shape[0]),
    "linear_dx": Op((2, 2), _linear_dx, flops=lambda xs, a: 2 * xs[0].size * xs[1].shape[1]),
    "linear_dw": Op((2, 2), _linear_dw, flops=lambda xs, a: 2 * xs[0].size * xs[1].shape[-1]),
    "conv2d": Op(
        (2, 3),
        _conv2d,
        _CONV,
        recompute=Recompute.HEAVY,
        flops=lambda xs, a: _conv_flops(xs[0].shape, xs[1].shape, a),
    ),
    "conv2d_dx": Op(
        (2, 2),
        _to_shape,
        (*_CONV, "shape"),
        flops=lambda xs, a: _conv_flops(a["shape"], xs[1].shape, a),
    ),
    "conv2d_dw": Op(
        (2, 2),
        _to_shape,
        (*_CONV, "shape"),
        flops=lambda xs, a: _conv_flops(xs[1].shape, a["shape"], a),
    ),
    "embedding": Op((2, 2), _embedding, recompute=Recompute.CHEAP),
    "embedding_grad": Op((2, 2), _to_shape, ("shape",)),
    # normalisation
    "batch_norm": Op((4, 4), _batch_norm, ("batch", "eps"), in_place=((0, 0),)),
    "batch_norm_apply": Op((5, 5), _channel_norm, ("eps",), in_place=((0, 0),), recompute=Recompute.CHEAP),
    "batch_norm_grad": Op((6, 6), _batch_norm_grad, ("batch", "eps", "training"), in_place=_G),
    "running_stats": Op((5, 5), _nothing, ("batch", "momentum", "shape")),
    "group_norm": Op((3, 3), _group_norm, ("eps", "groups"), recompute=Recompute.CHEAP),
    "group_norm_grad": Op((5, 5), _group_norm_grad, ("groups",), in_place=_G),
    "layer_norm": Op((1, 3), _layer_norm, ("dims", "eps"), recompute=Recompute.CHEAP),
    "layer_norm_grad": Op((4, 5), _layer_norm_grad, ("affine", "dims"), in_place=_G),
    # sequences
    "attention": Op(
        (3, 3),
        _attention,
        ("causal", "scale"),
        recompute=Recompute.HEAVY,
        flops=lambda xs, a: 2 * (xs[0].size + xs[2].size) * xs[1].shape[-2] // (2 if a["causal"] else 1),
    ),
    "attention_grad": Op(
        (6, 6),
        _like(1, 2, 3),
        ("causal", "scale"),
        flops=lambda xs, a: 7 * (xs[0].size + xs[2].size) * xs[2].shape[-2] // (2 if a["causal"] else 1),
    ),
    **_recurrent_ops("gru", gates=3, states=1),
    **_recurrent_ops("lstm", gates=4, states=2),
    # losses: each ends in `rows` and `norm`, then class weights if there are any; a gradient has that of the loss first
    "cross_entropy": Op((4, 5), _class_loss, (*_CLASS_LOSS, "smoothing")),
    "cross_entropy_grad": Op((5, 6), _like(1), (*_CLASS_LOSS, "smoothing"), in_place=((0, 1),)),
    "focal": Op((4, 5), _class_loss, (*_CLASS_LOSS, "gamma")),
    "focal_grad": Op((5, 6), _like(1), (*_CLASS_LOSS, "gamma"), in_place=((0, 1),)),
    "pair_loss": Op((4, 4), _pair_loss, ("batch", "delta", "kind")),
    "pair_loss_grad": Op((5, 5), _like(1), ("batch", "delta", "kind"), in_place=((0, 1),)),
    "distill": Op((4, 4), _pair_loss, ("batch", "temperature")),
    "distill_grad": Op((5, 5), _like(1), ("batch", "temperature"), in_place=((0, 1),)),
    # updates: state is overwritten, as the node's `writes` say
    "sgd": Op((3, 4), _nothing, ("momentum", "nesterov", "weight_decay")),
    "adam": Op((6, 6), _nothing, ("beta1", "beta2", "decoupled", "eps", "weight_decay")),
    "rmsprop": Op((4, 5), _nothing, ("alpha", "eps", "momentum", "weight_decay")),
    "adagrad": Op((4, 4), _nothing, ("eps", "weight_decay")),
    "proximal": Op((3, 3), _like(0), ("mu",), in_place=_G),
    "square_sum": Op((1, 1), _scalar),
    "clip_scale": Op((1, 1), _scalar, ("max_norm",)),
    "accumulate": Op((2, 2), _nothing),
    "clear": Op((1, 1), _nothing),
    "check_finite": Op((1, 1), _nothing),
}


# Inputs that are not float32: of these ops, the inputs at these places.
_OTHER_INPUTS: dict[str, dict[int, str]] = {
    "batch_norm": {3: "i64"},
    "batch_norm_grad": {5: "i64"},
    "cross_entropy": {1: "i64", 2: "i64"},
    "cross_entropy_grad": {2: "i64", 3: "i64"},
    "distill": {2: "i64"},
    "distill_grad": {3: "i64"},
    "dropout": {1: "i64"},
    "embedding": {1: "i64"},
    "embedding_grad": {1: "i64"},
    "fake_quant": {1: "i64"},
    "focal": {1: "i64", 2: "i64"},
    "focal_grad": {2: "i64", 3: "i64"},
    "max_pool2d_grad": {1: "u8"},
    "pair_loss": {2: "i64"},
    "pair_loss_grad": {3: "i64"},
    "running_stats": {2: "i64"},
}
_ANY_DTYPE = ("reshape", "detach", "transpose", "slice", "cat")


def shapes_of(op: str, inputs: Sequence[Value], attributes: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    """Shapes and dtypes of the outputs; ShapeError where inputs do not fit the op, or are of another dtype."""
    dtypes = [x.dtype for x in inputs]
    if op in _ANY_DTYPE:
        _require(len(set(dtypes)) == 1, f"inputs of dtypes {', '.join(dtypes)}")
    else:
        wanted = [_OTHER_INPUTS.get(op, {}).get(place, "f32") for place in range(len(inputs))]
        _require(dtypes == wanted, f"inputs are {', '.join(dtypes)}, it computes with {', '.join(wanted)}")
    return OPS[op].shapes(inputs, attributes)


def _gate_flops(xs: Sequence[Value], states: int) -> int:
    """Of x, the initial states, w_ih, w_hh: all gates at all steps."""
    x, weights = xs[0], xs[1 + states : 3 + states]
    return 2 * x.shape[0] * x.shape[1] * sum(w.size for w in weights)
