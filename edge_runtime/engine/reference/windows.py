"""Convolutions and pools: sums and maxima over windows of a padded image, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from edge_runtime.engine.reference.arithmetic import Array


def conv2d(x: Array, w: Array, b: Array | None = None, *, stride: Any, padding: Any, groups: int) -> Array:
    """out[n, o, i, j] = b[o] + sum over c, k, l of x[n, c, i s + k - p, j s + l - p] w[o, c, k, l], per group."""
    windows = _grouped(_windows(x, w.shape[2:], stride, padding), groups)
    out = np.einsum("ngchwkl,gockl->ngohw", windows, _kernels(w, groups))
    out = out.reshape(x.shape[0], w.shape[0], *out.shape[3:])
    return out if b is None else out + b[:, None, None]


def conv2d_dx(g: Array, w: Array, *, stride: Any, padding: Any, groups: int, shape: Any) -> Array:
    places = np.einsum("ngohw,gockl->ngchwkl", _grouped(g, groups), _kernels(w, groups))
    return _sum_of_windows(places.reshape(shape[0], shape[1], *places.shape[3:]), stride, padding, shape)


def conv2d_dw(g: Array, x: Array, *, stride: Any, padding: Any, groups: int, shape: Any) -> Array:
    windows = _grouped(_windows(x, shape[2:], stride, padding), groups)
    return np.einsum("ngohw,ngchwkl->gockl", _grouped(g, groups), windows).reshape(shape)


def max_pool2d(x: Array, *, kernel: Any, stride: Any, padding: Any) -> tuple[Array, Array]:
    """The maxima and the place, counted along the rows of the window, of the first of each; a NaN is a maximum."""
    above_padding = np.maximum(x, np.finfo(x.dtype).min)  # so that padding loses to an element of -inf, too
    windows, clipped = (
        image.reshape(*image.shape[:4], -1)
        for image in (
            _windows(x, kernel, stride, padding, -np.inf),
            _windows(above_padding, kernel, stride, padding, -np.inf),
        )
    )
    places = clipped.argmax(-1)
    return np.take_along_axis(windows, places[..., None], -1)[..., 0], places.astype(np.uint8)


def max_pool2d_grad(g: Array, index: Array, *, kernel: Any, stride: Any, padding: Any, shape: Any) -> Array:
    places = np.where(index[..., None] == np.arange(kernel[0] * kernel[1]), g[..., None], 0)
    return _sum_of_windows(places.reshape(*g.shape, *kernel), stride, padding, shape)


def avg_pool2d(x: Array, *, kernel: Any, stride: Any, padding: Any) -> Array:
    return _windows(x, kernel, stride, padding).mean((4, 5))


def avg_pool2d_grad(g: Array, *, kernel: Any, stride: Any, padding: Any, shape: Any) -> Array:
    share = g[..., None, None] / (kernel[0] * kernel[1])
    return _sum_of_windows(np.broadcast_to(share, (*g.shape, *kernel)), stride, padding, shape)


def _windows(x: Array, kernel: Any, stride: Any, padding: Any, fill: float = 0.0) -> Array:
    """All windows of the padded input, (N, C, H', W', kh, kw)."""
    (ph, pw), (sh, sw) = padding, stride
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=fill)
    return sliding_window_view(padded, tuple(kernel), axis=(2, 3))[:, :, ::sh, ::sw]


def _sum_of_windows(windows: Array, stride: Any, padding: Any, shape: Any) -> Array:
    """The image in which every element is the sum of its places in the windows: `_windows` transposed."""
    (n, channels, height, width), (ph, pw), (sh, sw) = shape, padding, stride
    padded = np.zeros((n, channels, height + 2 * ph, width + 2 * pw), windows.dtype)
    rows, columns, kh, kw = windows.shape[2:]
    for k, m in np.ndindex(kh, kw):
        padded[:, :, k : k + rows * sh : sh, m : m + columns * sw : sw] += windows[..., k, m]
    return padded[:, :, ph : ph + height, pw : pw + width]


def _grouped(x: Array, groups: int) -> Array:
    """(N, C, ...) as (N, G, C/G, ...)."""
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


def _kernels(w: Array, groups: int) -> Array:
    """(O, C/G, kh, kw) as (G, O/G, C/G, kh, kw)."""
    return w.reshape(groups, w.shape[0] // groups, *w.shape[1:])


ROWS: dict[str, Callable[..., Any]] = {
    "conv2d": conv2d,
    "conv2d_dx": conv2d_dx,
    "conv2d_dw": conv2d_dw,
    "max_pool2d": max_pool2d,
    "max_pool2d_grad": max_pool2d_grad,
    "avg_pool2d": avg_pool2d,
    "avg_pool2d_grad": avg_pool2d_grad,
}
