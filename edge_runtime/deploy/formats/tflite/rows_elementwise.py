"""One number in, one number out; in whatever order the input lies."""

from __future__ import annotations

import math

import numpy as np

from edge_runtime.deploy.formats.tflite.layout import ordered, plain
from edge_runtime.deploy.formats.tflite.site import Site, row

# What a grid must be for TFLite's own tables of these functions: scale, zero point.
FIXED = {"sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)}
UNARY = {
    "exp": "EXP",
    "gelu": "GELU",
    "relu": "RELU",
    "relu6": "RELU6",
    "sigmoid": "LOGISTIC",
    "tanh": "TANH",
}
CLIPS = {(0.0, 6.0): "RELU6", (0.0, 1.0): "RELU_0_TO_1", (-1.0, 1.0): "RELU_N1_TO_1"}


def _per_tensor(s: Site) -> bool:
    return all(s.quant(place).axis is None for place in range(len(s.node.inputs)))


@row("add", "mul", integer=_per_tensor)
def _binary(s: Site) -> None:
    """Both in the order of the one that has most to move; NumPy's broadcasting needs equal orders."""
    rank = len(s.out_shape)
    values = [place for place in (0, 1) if s.constant_input(place) is None]
    order = plain(rank)
    if values and all(len(s.shape(place)) == rank for place in values):
        order = s.order(max(values, key=lambda place: math.prod(s.shape(place))))
    tensors = [
        s.take(place, order if len(s.shape(place)) == rank or place not in values else None, broadcast=True)
        for place in (0, 1)
    ]
    s.result(s.node.op.upper(), tensors, order, fusedActivationFunction=s.fused)


def _unary_fits(s: Site) -> bool:
    if s.node.op in ("relu", "relu6"):
        return True
    scale, zero = FIXED.get(s.node.op, (0.0, 0))
    return float(s.quant(-1).scale[0]) == scale and int(s.quant(-1).zero_point[0]) == zero


@row(*UNARY, integer=_unary_fits)
def _unary(s: Site) -> None:
    s.result(UNARY[s.node.op], [s.take(0, s.order(0))], s.order(0))


@row("silu")
def _silu(s: Site) -> None:
    x, order = s.take(0, s.order(0)), s.order(0)
    s.result("MUL", [x, s.op("LOGISTIC", [x], ordered(s.out_shape, order))], order)


@row("scale")
def _scale(s: Site) -> None:
    x, order = s.take(0, s.order(0)), s.order(0)
    if s.a["plus"] and s.a["by"] != 1:
        x = s.op("MUL", [x, s.const([s.a["by"]])], ordered(s.out_shape, order))
    if s.a["plus"]:
        s.result("ADD", [x, s.const([s.a["plus"]])], order)
    else:
        s.result("MUL", [x, s.const([s.a["by"]])], order)


def _saturates(s: Site) -> bool:
    """Whether what the output's grid can't hold is what the clip cuts off."""
    grid = s.quant(-1)
    least, most = grid.dequantise(np.array([grid.low, grid.high]))
    half = float(grid.scale[0]) / 2
    return bool(s.a["low"] - half <= least and most <= s.a["high"] + half)


@row("clip", integer=_saturates)
def _clip(s: Site) -> None:
    order, low, high = s.order(0), float(s.a["low"]), float(s.a["high"])
    x = s.take(0, order)
    if s.integer:
        s.result("QUANTIZE", [x], order)
    elif (low, high) in CLIPS:
        s.result(CLIPS[low, high], [x], order)
    else:
        x = s.op("MAXIMUM", [x, s.const([low])], ordered(s.out_shape, order))
        s.result("MINIMUM", [x, s.const([high])], order)
