"""Reductions and what is made of them: softmax, layer norm and group norm."""

from __future__ import annotations

import numpy as np

from edge_runtime.deploy.formats.tflite.layout import NHWC, Order, ordered, plain, without
from edge_runtime.deploy.formats.tflite.site import Site, always, row
from edge_runtime.ir.graph import Shape


@row("mean", integer=always)
def _mean(s: Site) -> None:
    _reduce(s, "MEAN")


@row("sum")
def _sum(s: Site) -> None:
    _reduce(s, "SUM")


def _reduce(s: Site, code: str) -> None:
    order, dims = s.order(0), tuple(s.a["dims"])
    inputs = [s.take(0, order), s.const(np.array([i for i, dim in enumerate(order) if dim in dims]))]
    if s.a["keepdim"]:
        s.result(code, inputs, order, keepDims=True)
    elif order == NHWC and dims == (2, 3):
        # Kernels are fast for this one; the dims of 1 vanish in the layer behind it.
        shape = (*s.out_shape, 1, 1)
        s.is_reshaped_from(s.inner(code, inputs, ordered(shape, NHWC), keepDims=True), shape, NHWC)
    else:
        s.result(code, inputs, without(order, dims))


@row("softmax")
def _softmax(s: Site) -> None:
    order = s.order(0)
    if order[-1] != s.a["dim"]:
        order = (*(dim for dim in plain(len(order)) if dim != s.a["dim"]), s.a["dim"])
    s.result("SOFTMAX", [s.take(0, order)], order, beta=1.0)


@row("layer_norm")
def _layer_norm(s: Site) -> None:
    rank = len(s.out_shape)
    axes = tuple(range(rank - s.a["dims"], rank))
    y = _normalised(s, s.take(0), s.shape(0), axes)
    factors = [s.take(place, broadcast=True) for place in range(1, len(s.node.inputs))]
    _affine(s, y, factors, s.shape(0), plain(rank))


@row("group_norm")
def _group_norm(s: Site) -> None:
    """Channels last, where groups of them are one more dim; else in the value's own order."""
    (rows, channels, *area), groups, order = s.shape(0), s.a["groups"], s.order(0)
    first = -1 if s.any_batch else rows
    size = int(np.prod(area))
    if order == NHWC:
        split: Shape = (rows, size, groups, channels // groups)
        axes: Shape = (1, 3)
        per_channel: Shape = (channels,)
    else:
        order = plain(len(order))
        split = (rows, groups, channels // groups * size)
        axes, per_channel = (2,), (channels, *[1] * len(area))
    x = s.op("RESHAPE", [s.take(0, order), s.const(np.array((first, *split[1:])))], split)
    shape = ordered(s.shape(0), order)
    y = s.op("RESHAPE", [_normalised(s, x, split, axes), s.const(np.array((first, *shape[1:])))], shape)
    _affine(s, y, [s.const(s.parameter(place).reshape(per_channel)) for place in (1, 2)], shape, order)


def _normalised(s: Site, x: int, shape: Shape, axes: tuple[int, ...]) -> int:
    """(x - mean) / sqrt(var + eps) over `axes` of a tensor of `shape`."""
    one = tuple(1 if dim in axes else n for dim, n in enumerate(shape))
    over = s.const(np.array(axes))
    mean = s.op("MEAN", [x, over], one, keepDims=True)
    square = s.op("SQUARED_DIFFERENCE", [x, mean], shape)
    var = s.op("MEAN", [square, over], one, keepDims=True)
    rstd = s.op("RSQRT", [s.op("ADD", [var, s.const([s.a["eps"]])], one)], one)
    return s.op("MUL", [s.op("SUB", [x, mean], shape), rstd], shape)


def _affine(s: Site, y: int, factors: list[int], shape: Shape, order: Order) -> None:
    """Times the first, plus the second, as far as there are."""
    match factors:
        case [by, plus]:
            s.result("ADD", [s.op("MUL", [y, by], shape), plus], order)
        case [by]:
            s.result("MUL", [y, by], order)
        case _:
            s.is_held(y, order)
