"""Batch, group and layer normalisation: y = xhat w + b with xhat = (x - mean) / sqrt(var + eps).

With e = g w, the gradient through n elements that share their statistics is
dx = (e - mean(e) - xhat mean(e xhat)) / sqrt(var + eps).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edge_runtime.engine.reference.arithmetic import Array


def real_rows(x: Array, rows: Array, batch: int) -> Array:
    """The part of x that belongs to the first `rows` of its `batch` rows; what follows is padding."""
    return x[: int(rows.item()) * (x.shape[0] // batch)]


def batch_norm(x: Array, w: Array, b: Array, rows: Array, *, batch: int, eps: float) -> tuple[Array, Array, Array]:
    """Ioffe & Szegedy 2015, the statistics being those of the real rows; the variance is the biased one."""
    real, axes = real_rows(x, rows, batch), _but_channels(x)
    if real.size // real.shape[1] < 2:
        raise ValueError("batch norm needs more than one value per channel")
    mean, var = real.mean(axes), real.var(axes)
    return batch_norm_apply(x, w, b, mean, var, eps=eps), mean, var


def batch_norm_apply(x: Array, w: Array, b: Array, mean: Array, var: Array, *, eps: float) -> Array:
    w, b, mean, var = (_per_channel(v, x) for v in (w, b, mean, var))
    return (x - mean) / np.sqrt(var + eps) * w + b


def batch_norm_grad(
    g: Array, x: Array, w: Array, mean: Array, var: Array, rows: Array, *, batch: int, eps: float, training: bool
) -> tuple[Array, Array, Array]:
    """In training, padding rows have no part in it; otherwise the statistics are constants and all rows count."""
    axes = _but_channels(x)
    w, mean, rstd = (_per_channel(v, x) for v in (w, mean, 1 / np.sqrt(var + eps)))
    xhat = (x - mean) * rstd
    if not training:
        return g * w * rstd, (g * xhat).sum(axes), g.sum(axes)
    dx, g, xhat = np.zeros_like(x), real_rows(g, rows, batch), real_rows(xhat, rows, batch)
    dx[: len(g)] = _through_statistics(g * w, xhat, rstd, axes)
    return dx, (g * xhat).sum(axes), g.sum(axes)


def running_stats(
    mean: Array, var: Array, rows: Array, rmean: Array, rvar: Array, *, batch: int, momentum: float, shape: Any
) -> tuple[Array, Array]:
    """PyTorch's: the variance that moves is the unbiased one; `shape` is that of the normalised tensor."""
    n = int(rows.item()) * (shape[0] // batch) * math.prod(shape[2:])
    return (1 - momentum) * rmean + momentum * mean, (1 - momentum) * rvar + momentum * var * n / (n - 1)


def group_norm(x: Array, w: Array, b: Array, *, groups: int, eps: float) -> tuple[Array, Array, Array]:
    """Wu & He 2018; mean and 1 / sqrt(var + eps) are (N, G)."""
    grouped = x.reshape(x.shape[0], groups, -1)
    mean, rstd = grouped.mean(2), 1 / np.sqrt(grouped.var(2) + eps)
    xhat = ((grouped - mean[..., None]) * rstd[..., None]).reshape(x.shape)
    return xhat * _per_channel(w, x) + _per_channel(b, x), mean, rstd


def group_norm_grad(
    g: Array, x: Array, w: Array, mean: Array, rstd: Array, *, groups: int
) -> tuple[Array, Array, Array]:
    grouped, axes = (x.shape[0], groups, -1), _but_channels(x)
    xhat = (x.reshape(grouped) - mean[..., None]) * rstd[..., None]
    dx = _through_statistics((g * _per_channel(w, x)).reshape(grouped), xhat, rstd[..., None], (2,))
    return dx.reshape(x.shape), (g * xhat.reshape(x.shape)).sum(axes), g.sum(axes)


def layer_norm(
    x: Array, w: Array | None = None, b: Array | None = None, *, dims: int, eps: float
) -> tuple[Array, Array, Array]:
    """Ba et al. 2016, over the last `dims` axes; mean and 1 / sqrt(var + eps) have the shape of the others."""
    axes = tuple(range(x.ndim - dims, x.ndim))
    mean, rstd = x.mean(axes, keepdims=True), 1 / np.sqrt(x.var(axes, keepdims=True) + eps)
    y = (x - mean) * rstd
    y = y if w is None else y * w
    return y if b is None else y + b, mean.squeeze(axes), rstd.squeeze(axes)


def layer_norm_grad(
    g: Array, x: Array, mean: Array, rstd: Array, w: Array | None = None, *, affine: int, dims: int
) -> tuple[Array, ...]:
    """Dx, then the gradients of the first `affine` of w and b."""
    axes, others = tuple(range(x.ndim - dims, x.ndim)), tuple(range(x.ndim - dims))
    mean, rstd = np.expand_dims(mean, axes), np.expand_dims(rstd, axes)
    xhat = (x - mean) * rstd
    dx = _through_statistics(g if w is None else g * w, xhat, rstd, axes)
    return (dx, *((g * xhat).sum(others), g.sum(others))[:affine])


def _through_statistics(e: Array, xhat: Array, rstd: Array, axes: tuple[int, ...]) -> Array:
    return (e - e.mean(axes, keepdims=True) - xhat * (e * xhat).mean(axes, keepdims=True)) * rstd


def _per_channel(v: Array, x: Array) -> Array:
    """(C,) as (C, 1, ...), to go with x (N, C, ...)."""
    return v.reshape(-1, *[1] * (x.ndim - 2))


def _but_channels(x: Array) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


ROWS: dict[str, Callable[..., Any]] = {
    "batch_norm": batch_norm,
    "batch_norm_apply": batch_norm_apply,
    "batch_norm_grad": batch_norm_grad,
    "running_stats": running_stats,
    "group_norm": group_norm,
    "group_norm_grad": group_norm_grad,
    "layer_norm": layer_norm,
    "layer_norm_grad": layer_norm_grad,
}
