"""Layers with weights, and pools: NHWC, with PAD in front where TFLite's own padding is another."""

from __future__ import annotations

import numpy as np

from edge_runtime.deploy.formats.tflite.layout import IHWO, NHWC, OHWI, Order, border, is_same
from edge_runtime.deploy.formats.tflite.site import Site, always, row, same_grid
from edge_runtime.deploy.formats.tflite.values import Array
from edge_runtime.deploy.graph.quantised import Quant
from edge_runtime.ir.graph import Shape

SAME, VALID = 0, 1
LEAST = np.finfo(np.float32).min


@row("conv2d", integer=always)
def _conv(s: Site) -> None:
    channels, (outputs, own, *kernel) = s.shape(0)[1], s.shape(1)
    (down, right), (padding, x) = s.a["stride"], _padded(s, tuple(kernel), fill=0)
    options = {"padding": padding, "strideH": down, "strideW": right, "fusedActivationFunction": s.fused}
    if s.a["groups"] > 1 and own == 1:
        w = s.weight(1, IHWO)
        s.result("DEPTHWISE_CONV_2D", [x, w, s.bias(2)], NHWC, depthMultiplier=outputs // channels, **options)
    else:
        s.result("CONV_2D", [x, s.weight(1, OHWI), s.bias(2)], NHWC, **options)


def _padded(s: Site, kernel: Shape, fill: float) -> tuple[int, int]:
    """The padding option, and input 0 in NHWC with a border of `fill` where that option can't say it."""
    x, (height, width) = s.take(0, NHWC), s.shape(0)[2:]
    axes = list(zip((height, width), kernel, s.a["stride"], s.a["padding"], strict=True))
    if not any(s.a["padding"]):
        return VALID, x
    if all(is_same(*axis) for axis in axes):
        return SAME, x
    borders = [(0, 0), *(border(*axis) for axis in axes), (0, 0)]
    shape = [n + sum(one) for n, one in zip((s.shape(0)[0], height, width, s.shape(0)[1]), borders, strict=True)]
    inputs = [x, s.const(np.array(borders))]
    quant = s.quant(0) if s.integer else None
    if not fill:
        return VALID, s.op("PAD", inputs, tuple(shape), quant)
    least = s.const(np.array([-128], np.int8), quant) if quant else s.const([fill])
    return VALID, s.op("PADV2", [*inputs, least], tuple(shape), quant)


@row("linear", integer=always)
def _linear(s: Site) -> None:
    if len(s.shape(0)) != 2:
        x = s.take(0)
        s.result(
            "FULLY_CONNECTED",
            [x, s.weight(1, (0, 1)), s.bias(2)],
            keepNumDims=True,
            fusedActivationFunction=s.fused,
        )
        return
    # TFLite flattens an input of more dims itself; columns follow the order in which that input lies.
    x, shape, order = s.take_rows(0)
    w = s.weight(1, (0, 1), lambda w: _columns(w, shape, order))
    s.result("FULLY_CONNECTED", [x, w, s.bias(2)], fusedActivationFunction=s.fused)


def _columns(w: Array, shape: Shape, order: Order) -> Array:
    """Of a weight (O, K) whose input is (B, ...) of `shape`, as if that lay in `order`."""
    return w.reshape(len(w), *shape[1:]).transpose(order).reshape(w.shape)


@row("max_pool2d", integer=same_grid)
def _max_pool(s: Site) -> None:
    padding, x = _padded(s, s.a["kernel"], fill=float(LEAST))
    s.result("MAX_POOL_2D", [x], NHWC, padding=padding, **_window(s))


@row("avg_pool2d", integer=always)
def _avg_pool(s: Site) -> None:
    if s.integer and not same_grid(s):
        # AVERAGE_POOL_2D keeps its input's grid; a depthwise convolution with equal weights goes to another exactly.
        height, width = s.a["kernel"]
        channels = s.shape(0)[1]
        one = Quant(np.array([1 / (127 * height * width)], np.float32), np.zeros(1, np.int32), 8, 3, symmetric=True)
        w = s.const(np.full((1, height, width, channels), 127, np.int8), one)
        scale = s.quant(0).scale * one.scale
        zeros = s.const(np.zeros(channels, np.int32), Quant(scale, np.zeros(1, np.int32), 32, 0, symmetric=True))
        x, (down, right) = s.take(0, NHWC), s.a["stride"]
        s.result(
            "DEPTHWISE_CONV_2D", [x, w, zeros], NHWC, padding=VALID, strideH=down, strideW=right, depthMultiplier=1
        )
        return
    s.result("AVERAGE_POOL_2D", [s.take(0, NHWC)], NHWC, padding=VALID, **_window(s))


def _window(s: Site) -> dict[str, int]:
    (height, width), (down, right) = s.a["kernel"], s.a["stride"]
    return {"filterHeight": height, "filterWidth": width, "strideH": down, "strideW": right}


@row("batch_norm_apply")
def _batch_norm(s: Site) -> None:
    """What folding left over: a multiplication and an addition for each channel."""
    gamma, beta, mean, var = (s.parameter(place).astype(np.float64) for place in range(1, 5))
    by = gamma / np.sqrt(var + s.a["eps"])
    order = s.order(0)
    per_channel = [1 if dim != 1 else len(by) for dim in order]
    while per_channel[0] == 1 and len(per_channel) > 1:
        per_channel.pop(0)
    shape = tuple(s.shape(0)[dim] for dim in order)
    scaled = s.op("MUL", [s.take(0, order), s.const(by.reshape(per_channel))], shape)
    s.result("ADD", [scaled, s.const((beta - mean * by).reshape(per_channel))], order)
