"""The core's ops on signed bytes in plain NumPy: what its kernels are tested against, bit for bit.

`kernels/program/ops.h` is the specification. Images are (N, H, W, C); sums are exact, every other step is rounded to
float32 on its own. Weights are as a model holds them, and a bias is a layer's own: what the input's zero point adds is
the kernels' affair, so here it is subtracted from the input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from edge_runtime.engine.reference.arithmetic import Array

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Grid:
    """Where results are rounded to: a zero point, and the bytes that they are clamped to."""

    zero: int = 0
    low: int = -128
    high: int = 127

    def round(self, real: Array) -> Array:
        """clamp(round(real) + zero, low, high), ties to even."""
        clamped = np.clip(np.rint(real.astype(np.float64)), self.low - self.zero, self.high - self.zero)
        return (clamped + self.zero).astype(np.int8)


def quantize(x: Array, scale: float, grid: Grid) -> Array:
    """(N, C, S) of float32 as (N, S, C)."""
    with np.errstate(over="ignore"):
        real = x.astype(np.float32) / np.float32(scale)
    return grid.round(np.where(np.isnan(real), 0, real)).swapaxes(1, 2)


def dequantize(x: Array, scale: float, zero: int) -> Array:
    """(N, S, C) as (N, C, S) of float32."""
    return ((x.astype(np.int32) - zero).astype(np.float32) * np.float32(scale)).swapaxes(1, 2)


def conv2d(
    x: Array, w: Array, bias: Array, multiplier: Array, stride: Pair, padding: Pair, x_zero: int, grid: Grid
) -> Array:
    """Weights (O, kh, kw, C); the padding is a real 0."""
    sums = np.einsum("nhwckl,oklc->nhwo", _windows(x.astype(np.int64) - x_zero, w.shape[1:3], stride, padding), w)
    return grid.round(_scaled(sums + bias, multiplier))


def depthwise(
    x: Array, w: Array, bias: Array, multiplier: Array, stride: Pair, padding: Pair, x_zero: int, grid: Grid
) -> Array:
    """Weights (C, kh, kw)."""
    sums = np.einsum("nhwckl,ckl->nhwc", _windows(x.astype(np.int64) - x_zero, w.shape[1:], stride, padding), w)
    return grid.round(_scaled(sums + bias, multiplier))


def linear(x: Array, w: Array, bias: Array, multiplier: Array, x_zero: int, grid: Grid) -> Array:
    sums = (x.astype(np.int64) - x_zero) @ w.astype(np.int64).T
    return grid.round(_scaled(sums + bias, multiplier))


def add(a: Array, b: Array, zeros: Pair, ratios: tuple[float, float], grid: Grid) -> Array:
    one, other = (
        _scaled(x.astype(np.int64) - zero, ratio) for x, zero, ratio in zip((a, b), zeros, ratios, strict=True)
    )
    return grid.round(one + other)


def mul(a: Array, b: Array, zeros: Pair, ratio: float, grid: Grid) -> Array:
    return grid.round(_scaled((a.astype(np.int64) - zeros[0]) * (b.astype(np.int64) - zeros[1]), ratio))


def max_pool(x: Array, kernel: Pair, stride: Pair, padding: Pair, grid: Grid) -> Array:
    best = _windows(x.astype(np.int64), kernel, stride, padding, fill=-1000).max((4, 5))
    return np.clip(best, grid.low, grid.high).astype(np.int8)


def avg_pool(x: Array, kernel: Pair, stride: Pair, x_zero: int, ratio: float, grid: Grid) -> Array:
    sums = _windows(x.astype(np.int64) - x_zero, kernel, stride, (0, 0)).sum((4, 5))
    return grid.round(_scaled(sums, ratio / (kernel[0] * kernel[1])))


def lookup(x: Array, table: Array) -> Array:
    return table[x.astype(np.int64) + 128]


def _scaled(sums: Array, by: Array | float) -> Array:
    return sums.astype(np.float32) * np.asarray(by, np.float32)


def _windows(x: Array, kernel: Pair, stride: Pair, padding: Pair, fill: int = 0) -> Array:
    """All windows of the padded images, (N, H', W', C, kh, kw)."""
    (ph, pw), (sh, sw) = padding, stride
    padded = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)), constant_values=fill)
    return sliding_window_view(padded, kernel, axis=(1, 2))[:, ::sh, ::sw]
