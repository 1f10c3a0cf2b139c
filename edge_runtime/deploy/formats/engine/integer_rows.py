"""The ops that compute in integers: one row each, which emits the core's op for a block and gives its output's bytes.

A row returns whether it could; where not, the block is done in float32. Formulas: `kernels/program/ops.h`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.formats.engine import layout
from edge_runtime.deploy.formats.engine.encode import floats, small, words
from edge_runtime.deploy.formats.engine.lowering import Lowering, scale_of, zero_of
from edge_runtime.deploy.graph.blocks import Block
from edge_runtime.deploy.graph.quantised import Quant
from edge_runtime.engine.reference import FORWARD
from edge_runtime.ir.graph import Shape

TABLES = ("relu", "relu6", "clip", "scale", "sigmoid", "tanh", "gelu", "silu", "exp")
EXACT_DEPTH = 65536  # a sum of so many products of bytes, and a bias, fit 32 bits

Row = Callable[[Lowering, Block], bool]
INTEGER: dict[str, Row] = {}


def row(*ops: str) -> Callable[[Row], Row]:
    def register(function: Row) -> Row:
        INTEGER.update(dict.fromkeys(ops, function))
        return function

    return register


@row("conv2d")
def _conv2d(one: Lowering, block: Block) -> bool:
    node, x = block.node, one.shape(block.node.inputs[0])
    out, deep, kh, kw = one.shape(node.inputs[1])
    groups = node.attributes["groups"]
    depthwise = groups > 1 and deep == 1 and out == groups
    if groups != 1 and not depthwise:
        return False
    integers = one.quantised.integers(node.inputs[1]).transpose(0, 2, 3, 1)  # (O, kh, kw, C)
    weights = _weights(one, block, integers[..., 0] if depthwise else integers)
    if weights is None:
        return False
    quants = one.quants[node.inputs[0]], one.quants[block.output]
    n, c, h, w = x
    window = (kh, kw, *node.attributes["stride"], *node.attributes["padding"])
    source, y = one.bytes_of(node.inputs[0], c), one.buffer(math.prod(one.shape(block.output)))
    sizes = (n, h, w, c) if depthwise else (n, h, w, c, out)
    ints = (*sizes, *window, *map(zero_of, quants), *_bounds(quants[1], block.act))
    one.emit("depthwise_s8" if depthwise else "conv2d_s8", source, *weights, y, ints=ints)
    one.give_bytes(block.output, out, y)
    return True


@row("linear")
def _linear(one: Lowering, block: Block) -> bool:
    node, x = block.node, one.shape(block.node.inputs[0])
    out, depth = one.shape(node.inputs[1])
    # After a flatten the columns are turned to the order of the bytes, once, rather than the bytes at every call.
    channels = one.held(node.inputs[0]) if len(x) == 2 else 1
    integers = layout.arranged(one.quantised.integers(node.inputs[1]), channels)
    weights = _weights(one, block, integers)
    if weights is None:
        return False
    quant = one.quants[block.output]
    source, y = one.bytes_of(node.inputs[0], channels), one.buffer(math.prod(one.shape(block.output)))
    ints = (math.prod(x) // depth, out, depth, zero_of(quant), *_bounds(quant, block.act))
    one.emit("linear_s8", source, *weights, y, ints=ints)
    one.give_bytes(block.output, 1, y)
    return True


def _weights(one: Lowering, block: Block, integers: NDArray[np.generic]) -> tuple[str, str, str] | None:
    """Weight, bias and multipliers of a layer; None where a sum might not fit 32 bits.

    The input's zero point goes into the bias: sum w (x - z) + b = sum w x + (b - z sum w).
    """
    node = block.node
    name, x = node.inputs[1], one.quants[node.inputs[0]]
    quant = one.quants[name]
    q = integers.reshape(len(integers), -1).astype(np.int64)
    bias = np.zeros(len(q), np.int64)
    if len(node.inputs) > 2:
        bias += one.quantised.integers(node.inputs[2])
    bias -= zero_of(x) * q.sum(1)
    if (np.abs(q).sum(1) * 128 + np.abs(bias)).max() >= 2**31 or q.shape[1] > EXACT_DEPTH or quant.zero_point.any():
        return None
    by = x.scale.astype(np.float64) * quant.scale / one.quants[block.output].scale
    return (
        one.constant(small(name, integers.astype(np.int8), quant.bits)),
        one.constant(words(f"{block.output}.bias", bias)),
        one.constant(floats(f"{block.output}.multiplier", np.broadcast_to(by, bias.shape))),
    )


def _bounds(quant: Quant, act: str = "") -> tuple[int, int]:
    """The integers that a block's activation leaves."""
    low = zero_of(quant) if act else quant.low
    high = int(quant.quantise(np.array([6.0], np.float32))[0]) if act == "relu6" else quant.high
    return max(low, quant.low), high


@row("add", "mul")
def _binary(one: Lowering, block: Block) -> bool:
    node, shape = block.node, one.shape(block.output)
    quants = [one.quants[name] for name in (*node.inputs, block.output)]
    if any(quant.axis is not None for quant in quants):
        return False
    whole = [name for name in node.inputs if one.shape(name) == shape and name not in one.state]
    channels = one.held(whole[0]) if whole else one.natural(block.output)
    if any(name not in whole for name in node.inputs) and not layout.fits(channels, shape):
        channels = 1
    a, b = (_operand(one, name, shape, channels, moved=name not in whole) for name in node.inputs)
    y, size = one.buffer(math.prod(shape)), math.prod(shape)
    scales = [scale_of(quant) for quant in quants]
    by = (
        (scales[0] / scales[2], scales[1] / scales[2])
        if node.op == "add"
        else (float(np.float64(scales[0]) * scales[1] / scales[2]),)
    )
    ints = (size, *map(zero_of, quants), *_bounds(quants[2], block.act))
    one.emit(f"{node.op}_s8", a, b, y, ints=ints, floats=by)
    one.give_bytes(block.output, channels, y)
    return True


def _operand(one: Lowering, name: str, shape: Shape, channels: int, *, moved: bool) -> int | str:
    """A value in a block of `shape`, repeated where it is smaller."""
    if not moved:
        return one.bytes_of(name, channels)
    own = one.shape(name)
    padded = (1,) * (len(shape) - len(own)) + own
    if padded == shape and name in one.state and (own == shape or channels == 1):
        return one.bytes_of(name, channels)
    order = 1 if name in one.state or not layout.fits(one.held(name), own) or padded != own else one.held(name)
    steps = layout.strides(order, padded)
    y = one.buffer(math.prod(shape))
    repeated = tuple(0 if n == 1 else step for n, step in zip(padded, steps, strict=True))
    one.copy(one.bytes_of(name, order), y, shape, repeated, layout.strides(channels, shape))
    return y


@row(*TABLES)
def _unary(one: Lowering, block: Block) -> bool:
    node = block.node
    x, y = one.quants[node.inputs[0]], one.quants[block.output]
    codes = np.arange(-128, 128)
    result = FORWARD[node.op](x.dequantise(codes), **node.attributes)
    table = y.quantise(np.asarray(result, np.float32))
    channels = one.held(node.inputs[0])
    one.give_bytes(block.output, channels, _looked_up(one, one.bytes_of(node.inputs[0], channels), block.output, table))
    return True


def _looked_up(one: Lowering, x: int | str, name: str, table: NDArray[np.integer]) -> int:
    """`table` holds what -128, -127, ... 127 become."""
    size = math.prod(one.shape(name))
    y = one.buffer(size)
    one.emit("lookup_s8", x, one.constant(small(f"{name}.table", table)), y, ints=(size,))
    return y


def _on_grid(one: Lowering, x: int, source: str, name: str, channels: int) -> bool:
    """Give `name` the bytes in `x`, which are on the grid of `source`: looked up where its own is another."""
    before, after = one.quants[source], one.quants[name]
    if not _same(before, after):
        x = _looked_up(one, x, name, after.quantise(before.dequantise(np.arange(-128, 128))))
    one.give_bytes(name, channels, x)
    return True


@row("max_pool2d")
def _max_pool2d(one: Lowering, block: Block) -> bool:
    node = block.node
    n, c, h, w = one.shape(node.inputs[0])
    a, quant = node.attributes, one.quants[node.inputs[0]]
    source, y = one.bytes_of(node.inputs[0], c), one.buffer(math.prod(one.shape(block.output)))
    ints = (n, h, w, c, *a["kernel"], *a["stride"], *a["padding"], *_bounds(quant))
    one.emit("max_pool_s8", source, y, ints=ints)
    return _on_grid(one, y, node.inputs[0], block.output, c)


@row("avg_pool2d")
def _avg_pool2d(one: Lowering, block: Block) -> bool:
    n, c, h, w = one.shape(block.node.inputs[0])
    a = block.node.attributes
    return _averaged(one, block, (n, h, w, c), (*a["kernel"], *a["stride"]), c, c)


@row("mean")
def _mean(one: Lowering, block: Block) -> bool:
    """Over all of an image, or over the steps of a sequence (N, T, C), which lies in memory as an image does."""
    shape, dims = one.shape(block.node.inputs[0]), tuple(block.node.attributes["dims"])
    if len(shape) > 2 and dims == tuple(range(2, len(shape))):
        n, c, h, w = *shape[:3], math.prod(shape[3:])
        return _averaged(one, block, (n, h, w, c), (h, w, 1, 1), c, 1)
    if len(shape) == 3 and dims == (1,):
        n, h, c = shape
        return _averaged(one, block, (n, h, 1, c), (h, 1, 1, 1), 1, 1)
    return False


def _averaged(one: Lowering, block: Block, image: Shape, window: Shape, channels: int, after: int) -> bool:
    x, quant = one.quants[block.node.inputs[0]], one.quants[block.output]
    source, y = one.bytes_of(block.node.inputs[0], channels), one.buffer(math.prod(one.shape(block.output)))
    ints = (*image, *window, zero_of(x), zero_of(quant), *_bounds(quant))
    one.emit("avg_pool_s8", source, y, ints=ints, floats=(scale_of(x) / scale_of(quant),))
    one.give_bytes(block.output, after, y)
    return True


@row("reshape")
def _reshape(one: Lowering, block: Block) -> bool:
    """The bytes stay where they are: in the order they have, where the rows stay rows, else in the canonical one."""
    source = block.node.inputs[0]
    before, after = one.shape(source), one.shape(block.output)
    channels = one.held(source) if before[:1] == after[:1] else 1
    x = one.bytes_of(source, channels)
    return isinstance(x, int) and _on_grid(one, x, source, block.output, channels)


@row("transpose", "slice", "expand")
def _moved(one: Lowering, block: Block) -> bool:
    """A walk over the input's bytes in the order of the output's."""
    node, source = block.node, block.node.inputs[0]
    before, after = one.shape(source), one.shape(block.output)
    held = one.held(source) if layout.fits(one.held(source), before) else 1
    steps, first = layout.strides(held, before), 0
    match node.op:
        case "transpose":
            steps = tuple(steps[dim] for dim in node.attributes["order"])
        case "slice":
            first = node.attributes["start"] * steps[node.attributes["dim"]]
        case "expand":
            if node.attributes["by"] != 1.0 or held != 1:
                return False
            padded = (1,) * (len(after) - len(before)) + before
            steps = (0,) * (len(after) - len(before)) + steps
            steps = tuple(0 if n == 1 else step for n, step in zip(padded, steps, strict=True))
    order = one.natural(block.output)
    y = one.buffer(math.prod(after))
    one.copy(one.bytes_of(source, held), y, after, steps, layout.strides(order, after), first)
    return _on_grid(one, y, source, block.output, order)


@row("pad")
def _pad(one: Lowering, block: Block) -> bool:
    node, source = block.node, block.node.inputs[0]
    before, after = one.shape(source), one.shape(block.output)
    zero = zero_of(one.quants[source])
    order = one.natural(block.output)
    held = one.held(source) if layout.fits(one.held(source), before) else 1
    steps = layout.strides(order, after)
    y = one.buffer(math.prod(after))
    nothing = one.constant(small(f"zero.{zero}", np.array([zero])))
    one.copy(nothing, y, (math.prod(after),), (0,), (1,))
    first = node.attributes["start"] * steps[node.attributes["dim"]]
    one.copy(one.bytes_of(source, held), y, before, layout.strides(held, before), steps, 0, first)
    return _on_grid(one, y, source, block.output, order)


@row("cat")
def _cat(one: Lowering, block: Block) -> bool:
    node, after = block.node, one.shape(block.output)
    order, dim = one.natural(block.output), block.node.attributes["dim"]
    steps, y, first = layout.strides(order, after), one.buffer(math.prod(after)), 0
    for name in node.inputs:
        before = one.shape(name)
        held = one.held(name) if name not in one.state and layout.fits(one.held(name), before) else 1
        x = one.bytes_of(name, held)
        if not _same(one.quants[name], one.quants[block.output]):
            table = one.quants[block.output].quantise(one.quants[name].dequantise(np.arange(-128, 128)))
            size = math.prod(before)
            x, source = one.buffer(size), x
            one.emit("lookup_s8", source, one.constant(small(f"{name}.for.{block.output}", table)), x, ints=(size,))
        one.copy(x, y, before, layout.strides(held, before), steps, 0, first * steps[dim])
        first += before[dim]
    one.give_bytes(block.output, order, y)
    return True


def _same(a: Quant, b: Quant) -> bool:
    return scale_of(a) == scale_of(b) and zero_of(a) == zero_of(b)
