"""The ops on signed bytes, on every ISA, give NumPy's bits; they write their output alone; threads change nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.engine.reference import integers as reference
from edge_runtime.engine.reference.integers import Grid
from edge_runtime.kernels import int8, native
from edge_runtime.kernels.native import OP_DTYPE, NativeProgram, Status, Team

Array = np.ndarray[Any, Any]
LINE = 64
TEAM = Team(3)

each_isa = pytest.mark.parametrize("isa", native.isas())
grids = st.builds(
    lambda zero, bounds: Grid(zero, *sorted(bounds)),
    st.integers(-128, 127),
    st.one_of(st.just((-128, 127)), st.tuples(st.integers(-128, 127), st.integers(-128, 127))),
)
zeros = st.integers(-128, 127)
seeds = st.integers(0, 2**32 - 1)
# Around every tile's width, and some that take several.
channels = st.one_of(st.integers(1, 20), st.sampled_from([24, 31, 32, 33, 40, 48, 63, 64, 65, 96, 100, 130]))


def run(name: str, inputs: Sequence[Array], y: Array, ints: Sequence[int], floats: Sequence[float] = ()) -> Array:
    """What the op leaves in `y`, an array of that shape and type; every other byte of the arena is as it was."""
    offsets, end = [], LINE
    for array in (*inputs, y):
        offsets.append(end)
        end += -(-array.nbytes // LINE) * LINE + LINE
    block = np.full(end + LINE, 0x5A, np.uint8)
    arena = block[-block.ctypes.data % LINE :][:end]
    for array, offset in zip(inputs, offsets, strict=False):
        arena[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    expected, op = arena.copy(), np.zeros(1, OP_DTYPE)
    op["code"] = native.op_code(name)
    op["buffers"] = -1
    op["buffers"][0, : len(offsets)] = offsets
    op["ints"][0, : len(ints)] = ints
    op["floats"][0, : len(floats)] = floats
    program, place = NativeProgram(op, end), slice(offsets[-1], offsets[-1] + y.nbytes)
    assert program.run(arena, 0, 1) == (Status.OK, -1)
    result = arena[place].copy()
    expected[place] = result
    np.testing.assert_array_equal(arena, expected)
    arena[place] = 0x5A
    assert program.run(arena, 0, 1, TEAM) == (Status.OK, -1)
    np.testing.assert_array_equal(arena, expected)
    return result.view(y.dtype).reshape(y.shape)


def random_bytes(rng: np.random.Generator, *shape: int) -> Array:
    """Any, or the extremes alone."""
    if rng.integers(4) == 0:
        return rng.choice(np.array([-128, 127], np.int8), shape)
    return rng.integers(-128, 128, shape, np.int8)


class Layer:
    """Random weights, biases and multipliers that spread the results over all bytes and beyond; `packed` for an op."""

    def __init__(
        self, rng: np.random.Generator, shape: tuple[int, ...], x_zero: int, *, depthwise: bool = False
    ) -> None:
        self.w = np.maximum(random_bytes(rng, *shape), -127)
        depth = math.prod(shape[1:])
        self.bias = rng.integers(-4000, 4000, shape[0], np.int32)
        self.multiplier = (rng.uniform(0.2, 2, shape[0]) / (40 * math.sqrt(depth))).astype(np.float32)
        folded = self.bias - x_zero * self.w.reshape(shape[0], -1).sum(1, dtype=np.int32)
        if depthwise:
            self.packed = np.empty(int8.depthwise_packed_bytes(shape[0], depth), np.uint8)
            int8.pack_depthwise(self.w, folded, self.multiplier, self.packed)
        else:
            rows = shape[1] if len(shape) == 4 else 1
            self.packed = np.empty(int8.conv_packed_bytes(shape[0], rows, depth // rows), np.uint8)
            int8.pack_conv(self.w, folded, self.multiplier, self.packed)


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    """Image, kernel, stride and padding for which there is at least one place."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    least = [max(1, k - 2 * p) for k, p in zip(kernel, padding, strict=True)]
    image = tuple(n + draw(st.integers(0, 17)) for n in least)
    return image, kernel, draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), padding  # type: ignore[return-value]


@each_isa
@given(windows(), st.integers(1, 2), channels, channels, zeros, grids, seeds)
def test_conv2d(isa, window, images, inputs, outputs, x_zero, grid, seed):
    native.select_isa(isa)
    rng = np.random.default_rng(seed)
    image, kernel, stride, padding = window
    layer = Layer(rng, (outputs, *kernel, inputs), x_zero)
    x = random_bytes(rng, images, *image, inputs)
    expected = reference.conv2d(x, layer.w, layer.bias, layer.multiplier, stride, padding, x_zero, grid)
    ints = [images, *image, inputs, outputs, *kernel, *stride, *padding, x_zero, grid.zero, grid.low, grid.high]
    np.testing.assert_array_equal(run("conv2d_s8", [x, layer.packed], expected, ints), expected)


@each_isa
@pytest.mark.parametrize(
    ("image", "inputs", "outputs", "kernel", "stride", "padding"),
    [
        ((28, 28), 1, 6, 5, 1, 2),
        ((32, 32), 3, 16, 3, 1, 1),
        ((16, 16), 32, 32, 3, 1, 1),
        ((16, 16), 32, 64, 1, 2, 0),
        ((9, 200), 40, 20, 3, 2, 1),  # columns in several bands
        ((9, 9), 2000, 3, 3, 1, 1),  # a band of its own for each window
        ((3, 3), 14000, 2, 3, 1, 0),
        ((1, 70), 24, 12, 1, 1, 0),
    ],
)
def test_conv2d_of_many_bands(isa, image, inputs, outputs, kernel, stride, padding):
    native.select_isa(isa)
    rng = np.random.default_rng(0)
    layer, grid = Layer(rng, (outputs, kernel, kernel, inputs), 3), Grid(-7, -100, 90)
    x = random_bytes(rng, 2, *image, inputs)
    two = [(n, n) for n in (stride, padding)]
    expected = reference.conv2d(x, layer.w, layer.bias, layer.multiplier, two[0], two[1], 3, grid)
    ints = [2, *image, inputs, outputs, kernel, kernel, *two[0], *two[1], 3, grid.zero, grid.low, grid.high]
    np.testing.assert_array_equal(run("conv2d_s8", [x, layer.packed], expected, ints), expected)


@each_isa
@given(windows(), st.integers(1, 2), channels, zeros, grids, seeds)
def test_depthwise(isa, window, images, inputs, x_zero, grid, seed):
    native.select_isa(isa)
    rng = np.random.default_rng(seed)
    image, kernel, stride, padding = window
    layer = Layer(rng, (inputs, *kernel), x_zero, depthwise=True)
    x = random_bytes(rng, images, *image, inputs)
    expected = reference.depthwise(x, layer.w, layer.bias, layer.multiplier, stride, padding, x_zero, grid)
    ints = [images, *image, inputs, *kernel, *stride, *padding, x_zero, grid.zero, grid.low, grid.high]
    np.testing.assert_array_equal(run("depthwise_s8", [x, layer.packed], expected, ints), expected)


@each_isa
@pytest.mark.parametrize(("image", "inputs", "kernel"), [((33, 40), 500, 3), ((50, 50), 17, 45), ((12, 300), 96, 3)])
def test_depthwise_of_many_bands(isa, image, inputs, kernel):
    native.select_isa(isa)
    rng = np.random.default_rng(0)
    layer, grid = Layer(rng, (inputs, kernel, kernel), -9, depthwise=True), Grid(5)
    x = random_bytes(rng, 1, *image, inputs)
    expected = reference.depthwise(x, layer.w, layer.bias, layer.multiplier, (1, 1), (1, 1), -9, grid)
    ints = [1, *image, inputs, kernel, kernel, 1, 1, 1, 1, -9, grid.zero, grid.low, grid.high]
    np.testing.assert_array_equal(run("depthwise_s8", [x, layer.packed], expected, ints), expected)


@each_isa
@given(st.integers(1, 20), channels, st.one_of(channels, st.sampled_from([784, 3000])), zeros, grids, seeds)
def test_linear(isa, rows, outputs, inputs, x_zero, grid, seed):
    native.select_isa(isa)
    rng = np.random.default_rng(seed)
    layer, x = Layer(rng, (outputs, inputs), x_zero), random_bytes(rng, rows, inputs)
    expected = reference.linear(x, layer.w, layer.bias, layer.multiplier, x_zero, grid)
    ints = [rows, outputs, inputs, grid.zero, grid.low, grid.high]
    np.testing.assert_array_equal(run("linear_s8", [x, layer.packed], expected, ints), expected)


@each_isa
@pytest.mark.parametrize("x", [-128, 127])
@pytest.mark.parametrize("w", [-127, 127])
@pytest.mark.parametrize("depth", [1, 15, 64, 1000, 131071])
def test_the_largest_sums_are_exact(isa, x, w, depth):
    """The multiplier brings the sum into a byte's range: one that wrapped, or saturated on its way, shows."""
    native.select_isa(isa)
    packed, total = np.empty(int8.conv_packed_bytes(5, 1, depth), np.uint8), depth * x * w
    multiplier = np.full(5, 100 / abs(total), np.float32)
    int8.pack_conv(np.full((5, depth), w, np.int8), np.zeros(5, np.int32), multiplier, packed)
    y = run(
        "linear_s8", [np.full((3, depth), x, np.int8), packed], np.empty((3, 5), np.int8), [3, 5, depth, 0, -128, 127]
    )
    np.testing.assert_array_equal(y, math.copysign(100, total))


@each_isa
@given(st.integers(1, 300), zeros, zeros, grids, seeds)
def test_add_and_mul(isa, n, a_zero, b_zero, grid, seed):
    native.select_isa(isa)
    rng = np.random.default_rng(seed)
    a, b = random_bytes(rng, n), random_bytes(rng, n)
    ratios = tuple(float(ratio) for ratio in rng.choice([0.5, 0.25, 1.0, *rng.uniform(0.01, 2, 3)], 2))
    ints = [n, a_zero, b_zero, grid.zero, grid.low, grid.high]
    expected = reference.add(a, b, (a_zero, b_zero), ratios, grid)
    np.testing.assert_array_equal(run("add_s8", [a, b], expected, ints, ratios), expected)
    expected = reference.mul(a, b, (a_zero, b_zero), ratios[0] / 100, grid)
    np.testing.assert_array_equal(run("mul_s8", [a, b], expected, ints, [ratios[0] / 100]), expected)


@each_isa
@given(windows(), st.integers(1, 2), channels, zeros, grids, seeds)
def test_pools(isa, window, images, inputs, x_zero, grid, seed):
    native.select_isa(isa)
    rng = np.random.default_rng(seed)
    image, kernel, stride, padding = window
    padding = (min(padding[0], kernel[0] // 2), min(padding[1], kernel[1] // 2))
    image = (max(image[0], kernel[0]), max(image[1], kernel[1]))
    x = random_bytes(rng, images, *image, inputs)
    ints = [images, *image, inputs, *kernel, *stride]
    expected = reference.max_pool(x, kernel, stride, padding, grid)
    np.testing.assert_array_equal(run("max_pool_s8", [x], expected, [*ints, *padding, grid.low, grid.high]), expected)
    ratio = rng.choice([1.0, 0.5, rng.uniform(0.1, 3)])
    expected = reference.avg_pool(x, kernel, stride, x_zero, ratio, grid)
    ints += [x_zero, grid.zero, grid.low, grid.high]
    np.testing.assert_array_equal(run("avg_pool_s8", [x], expected, ints, [ratio]), expected)


@each_isa
@given(st.integers(1, 3), st.one_of(channels, st.just(3)), st.integers(1, 150), zeros, seeds)
def test_into_bytes_and_back(isa, images, inputs, places, zero, seed):
    native.select_isa(isa)
    rng = np.random.default_rng(seed)
    scale = float(rng.choice([0.5, 1.0, rng.uniform(1e-3, 1)]))
    x = (rng.integers(-300, 300, (images, inputs, places)) * np.float32(scale) / 2).astype(np.float32)
    x.flat[:: max(1, x.size // 5)] = rng.choice(np.array([np.nan, np.inf, -np.inf, 3e38, -0.0], np.float32), 1)
    sizes, grid = [images, inputs, places, zero], Grid(zero)
    expected = reference.quantize(x, scale, grid)
    q = run("quantize_s8", [x], expected, sizes, [scale])
    np.testing.assert_array_equal(q, expected)
    back = reference.dequantize(q, scale, zero)
    np.testing.assert_array_equal(run("dequantize_s8", [q], back, sizes, [scale]), back)


@each_isa
@given(st.integers(1, 300), seeds)
def test_lookup(isa, n, seed):
    native.select_isa(isa)
    rng = np.random.default_rng(seed)
    x, table = random_bytes(rng, n), random_bytes(rng, 256)
    expected = reference.lookup(x, table)
    np.testing.assert_array_equal(run("lookup_s8", [x, table], expected, [n]), expected)


@each_isa
@given(st.permutations(range(4)), st.lists(st.integers(1, 5), min_size=4, max_size=4), seeds)
def test_bytes_are_copied_by_stride(isa, order, shape, seed):
    native.select_isa(isa)
    x = random_bytes(np.random.default_rng(seed), *shape)
    y, rest = np.ascontiguousarray(x.transpose(order)), [0, 0]
    ints = [1, 4, *y.shape, *rest, *x.transpose(order).strides, *rest, *y.strides, *rest, 0, 0]
    np.testing.assert_array_equal(run("copy", [x], y, ints, [1.0]), y)
    ints = [1, 4, *y.shape, *rest, *[0] * 6, *y.strides, *rest, 0, 0]
    np.testing.assert_array_equal(run("copy", [x.reshape(-1)[:1]], y, ints, [1.0]), np.full_like(y, x.flat[0]))


def test_what_cannot_be_packed_is_refused():
    w, bias, multiplier = np.zeros((3, 2, 2, 5), np.int8), np.zeros(3, np.int32), np.ones(3, np.float32)
    out = np.empty(int8.conv_packed_bytes(3, 2, 10), np.uint8)
    int8.pack_conv(w, bias, multiplier, out)
    with pytest.raises(ValueError, match="out must have"):
        int8.pack_conv(w, bias, multiplier, out[1:])
    with pytest.raises(ValueError, match="bias must have"):
        int8.pack_conv(w, bias[1:], multiplier, out)
    with pytest.raises(ValueError, match="NaN or infinity"):
        int8.pack_conv(w, bias, multiplier * np.float32(np.inf), out)
    w[1, 1, 1, 1] = -128
    with pytest.raises(ValueError, match="-128"):
        int8.pack_conv(w, bias, multiplier, out)
    with pytest.raises(ValueError, match="-128"):
        int8.pack_depthwise(
            w[:, :, :, 1].copy(), bias, multiplier, np.empty(int8.depthwise_packed_bytes(3, 4), np.uint8)
        )
    for sizes in ((0, 1, 1), (1, 1, 0), (1, 2, 65536), (1, 131072, 1), (2**31, 1, 1), (1, 2**62, 2**62), (-1, 1, 1)):
        with pytest.raises(ValueError, match="no int8 convolution"):
            int8.conv_packed_bytes(*sizes)
    for sizes in ((0, 1), (1, 0), (1, 2049), (2**31, 1)):
        with pytest.raises(ValueError, match="no int8 depthwise"):
            int8.depthwise_packed_bytes(*sizes)
