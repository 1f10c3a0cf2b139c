"""One row per op: what it takes, which attributes it has, and the shapes that come out.

A new op is a row here, a function in `engine/reference.py`, and a row in `capture/aten.py` if PyTorch can make it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_runtime.ir.graph import Attribute, Shape, Value

Attributes = Mapping[str, Attribute]
ShapeRule = Callable[[Sequence[Value], Mapping[str, Any]], list[tuple[Shape, str]]]


class ShapeError(ValueError):
    """The inputs of a node do not fit its op."""


@dataclass(frozen=True, slots=True)
class Op:
    """`inputs` is the range of how many values it takes; `view` means the output is its input's bytes, unmoved."""

    inputs: tuple[int, int]
    shapes: ShapeRule
    attributes: tuple[str, ...] = ()
    view: bool = False


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


def _window(size: Shape, kernel: Shape, a: Mapping[str, Any]) -> Shape:
    """Output height and width of a sliding window, rounding down."""
    out = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, a["stride"], a["padding"], strict=True))
    _require(min(out) >= 1, f"window {kernel} is larger than the padded input {size}")
    return out


def _mean(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    x, dims = xs[0].shape, a["dims"]
    _require(all(0 <= dim < len(x) for dim in dims), f"dims {dims} of {x}")
    kept = tuple(1 if i in dims else n for i, n in enumerate(x) if a["keepdim"] or i not in dims)
    return [(kept, "f32")]


def _channel_norm(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    x = xs[0].shape
    _require(len(x) >= 2 and all(p.shape == (x[1],) for p in xs[1:]), f"parameters do not fit channels of {x}")
    return [(x, "f32")]


def _group_norm(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    _require(xs[0].shape[1] % a["groups"] == 0, f"{xs[0].shape[1]} channels in {a['groups']} groups")
    return _channel_norm(xs, a)


def _layer_norm(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    tail = xs[0].shape[len(xs[0].shape) - a["dims"] :]
    _require(all(p.shape == tail for p in xs[1:]), f"parameters do not fit the last {a['dims']} dims of {xs[0].shape}")
    return [(xs[0].shape, "f32")]


def _embedding(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    table, ids = xs
    _require(len(table.shape) == 2 and ids.dtype == "i64", "needs a (V, D) table and i64 ids")
    return [((*ids.shape, table.shape[1]), "f32")]


def _attention(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    q, k, v = (x.shape for x in xs)
    _require(k[:-1] == v[:-1] and q[:-2] == k[:-2] and q[-1] == k[-1], f"q {q}, k {k}, v {v} do not fit")
    return [((*q[:-1], v[-1]), "f32")]


def _recurrent(gates: int, states: int) -> ShapeRule:
    """X (B, T, I), `states` initial states (B, H), w_ih (gH, I), w_hh (gH, H) and both biases or none."""

    def rule(xs: Sequence[Value], _: Mapping[str, Any]) -> list[tuple[Shape, str]]:
        x, start, w_ih, w_hh = xs[0].shape, xs[1].shape, xs[1 + states].shape, xs[2 + states].shape
        hidden = start[-1]
        fits = len(x) == 3 and start == (x[0], hidden) and all(s.shape == start for s in xs[1 : 1 + states])
        fits = fits and w_ih == (gates * hidden, x[2]) and w_hh == (gates * hidden, hidden)
        _require(
            fits and all(b.shape == w_ih[:1] for b in xs[3 + states :]),
            f"input {x} does not fit weights {w_ih}, {w_hh}",
        )
        return [((*x[:2], hidden), "f32"), *[(start, "f32")] * states]

    return rule


def _cat(xs: Sequence[Value], a: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    dim, first = a["dim"], xs[0].shape
    others = [x.shape[:dim] + x.shape[dim + 1 :] for x in xs]
    _require(len(set(others)) == 1, f"shapes {[x.shape for x in xs]} differ outside dim {dim}")
    return [((*first[:dim], sum(x.shape[dim] for x in xs), *first[dim + 1 :]), xs[0].dtype)]


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


_WINDOW = ("stride", "padding")

OPS: dict[str, Op] = {
    "add": Op((2, 2), _broadcast),
    "attention": Op((3, 3), _attention, ("causal", "scale")),
    "avg_pool2d": Op((1, 1), _pool2d, ("kernel", *_WINDOW)),
    "batch_norm": Op((5, 5), _channel_norm, ("eps", "momentum", "training")),
    "cat": Op((1, 64), _cat, ("dim",)),
    "conv2d": Op((2, 3), _conv2d, (*_WINDOW, "groups")),
    "embedding": Op((2, 2), _embedding),
    "gelu": Op((1, 1), _same),
    "group_norm": Op((3, 3), _group_norm, ("eps", "groups")),
    "gru": Op((4, 6), _recurrent(3, 1)),
    "layer_norm": Op((1, 3), _layer_norm, ("dims", "eps")),
    "linear": Op((2, 3), _linear),
    "lstm": Op((5, 7), _recurrent(4, 2)),
    "max_pool2d": Op((1, 1), _pool2d, ("kernel", *_WINDOW)),
    "mean": Op((1, 1), _mean, ("dims", "keepdim")),
    "mul": Op((2, 2), _broadcast),
    "relu": Op((1, 1), _same),
    "relu6": Op((1, 1), _same),
    "reshape": Op((1, 1), _reshape, ("shape",), view=True),
    "scale": Op((1, 1), _same, ("by", "plus")),
    "sigmoid": Op((1, 1), _same),
    "silu": Op((1, 1), _same),
    "slice": Op((1, 1), _slice, ("dim", "start", "stop")),
    "softmax": Op((1, 1), _same, ("dim",)),
    "tanh": Op((1, 1), _same),
    "transpose": Op((1, 1), _transpose, ("order",)),
    "zeros": Op((0, 0), _zeros, ("shape",)),
}
