"""Losses: norm times a sum over the examples of the real rows, of shape (1,), and the gradient of that.

Examples are rows of (..., C) logits, or the elements of a pair; with rows of `batch` real, the first rows/batch of them
count, and of those the ones whose target is not to be ignored. The others have gradient 0, whatever they hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edge_runtime.engine.reference.arithmetic import Array, require_in_range, sigmoid, softmax
from edge_runtime.engine.reference.norms import real_rows


def cross_entropy(
    z: Array,
    target: Array,
    rows: Array,
    norm: Array,
    weight: Array | None = None,
    *,
    batch: int,
    ignore_index: int,
    smoothing: float,
) -> Array:
    """-sum_c q_c w_c log softmax(z)_c with q = (1 - s) onehot(target) + s/C; Szegedy et al. 2016, section 7."""
    counts = _counting(target, rows, batch, ignore_index)
    z, target = z[counts], target[counts]
    return -norm * (_smoothed(z, target, weight, smoothing) * _log_softmax(z)).sum()


def cross_entropy_grad(
    gl: Array,
    z: Array,
    target: Array,
    rows: Array,
    norm: Array,
    weight: Array | None = None,
    *,
    batch: int,
    ignore_index: int,
    smoothing: float,
) -> Array:
    counts = _counting(target, rows, batch, ignore_index)
    dz = np.zeros_like(z)
    q = _smoothed(z[counts], target[counts], weight, smoothing)
    dz[counts] = gl * norm * (q.sum(-1, keepdims=True) * softmax(z[counts], dim=-1) - q)
    return dz


def focal(
    z: Array,
    target: Array,
    rows: Array,
    norm: Array,
    weight: Array | None = None,
    *,
    batch: int,
    ignore_index: int,
    gamma: float,
) -> Array:
    """-w_t (1 - p_t)^gamma log p_t; Lin et al. 2017, equation 5."""
    counts = _counting(target, rows, batch, ignore_index)
    w, log_p = (
        (_onehot(z[counts], target[counts]) * v).sum(-1)
        for v in (1 if weight is None else weight, _log_softmax(z[counts]))
    )
    return norm * (w * (-np.expm1(log_p)) ** gamma * -log_p).sum()


def focal_grad(
    gl: Array,
    z: Array,
    target: Array,
    rows: Array,
    norm: Array,
    weight: Array | None = None,
    *,
    batch: int,
    ignore_index: int,
    gamma: float,
) -> Array:
    """w_t (1 - p_t)^gamma (gamma p_t log(p_t) / (1 - p_t) - 1) (onehot(t) - p); at p_t = 1 the quotient is -1."""
    counts = _counting(target, rows, batch, ignore_index)
    onehot = _onehot(z[counts], target[counts])
    w, log_p = ((onehot * v).sum(-1, keepdims=True) for v in (1 if weight is None else weight, _log_softmax(z[counts])))
    others = -np.expm1(log_p)
    quotient = np.divide(log_p, others, out=-np.ones_like(others), where=others > 0)
    slope = w * others**gamma * (gamma * np.exp(log_p) * quotient - 1)
    dz = np.zeros_like(z)
    dz[counts] = gl * norm * slope * (onehot - softmax(z[counts], dim=-1))
    return dz


def _counting(target: Array, rows: Array, batch: int, ignore_index: int) -> Array:
    """A mask over the examples."""
    counts = np.zeros(target.size, bool)
    real_rows(counts, rows, batch)[:] = True
    return counts.reshape(target.shape) & (target != ignore_index)


def _onehot(z: Array, target: Array) -> Array:
    require_in_range(target, z.shape[-1])
    return np.eye(z.shape[-1], dtype=z.dtype)[target]


def _smoothed(z: Array, target: Array, weight: Array | None, smoothing: float) -> Array:
    q = (1 - smoothing) * _onehot(z, target) + smoothing / z.shape[-1]
    return q if weight is None else q * weight


def _log_softmax(z: Array) -> Array:
    shifted = z - z.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def pair_loss(p: Array, t: Array, rows: Array, norm: Array, *, batch: int, delta: float, kind: str) -> Array:
    p, t = (real_rows(v.reshape(-1), rows, batch) for v in (p, t))
    return norm * PAIRS[kind][0](p, t, delta).sum()


def pair_loss_grad(
    gl: Array, p: Array, t: Array, rows: Array, norm: Array, *, batch: int, delta: float, kind: str
) -> Array:
    dp = np.zeros(p.size, p.dtype)
    real_rows(dp, rows, batch)[:] = (
        gl * norm * PAIRS[kind][1](*(real_rows(v.reshape(-1), rows, batch) for v in (p, t)), delta)
    )
    return dp.reshape(p.shape)


def _huber(p: Array, t: Array, delta: float) -> Array:
    d = np.abs(p - t)
    return np.where(d <= delta, d * d / 2, delta * (d - delta / 2))


# The loss of an element and its derivative by p, both of (p, t, delta).
PAIRS: dict[str, tuple[Callable[..., Array], Callable[..., Array]]] = {
    "mse": (lambda p, t, _: (p - t) ** 2, lambda p, t, _: 2 * (p - t)),
    "l1": (lambda p, t, _: np.abs(p - t), lambda p, t, _: np.sign(p - t)),
    "huber": (_huber, lambda p, t, delta: np.clip(p - t, -delta, delta)),
    "bce_with_logits": (
        lambda p, t, _: np.maximum(p, 0) - p * t + np.log1p(np.exp(-np.abs(p))),
        lambda p, t, _: sigmoid(p) - t,
    ),
}


def distill(z: Array, teacher: Array, rows: Array, norm: Array, *, batch: int, temperature: float) -> Array:
    """T^2 KL(softmax(t/T) || softmax(z/T)), t being the teacher's logits; Hinton et al. 2015."""
    log_q, log_p = (_log_softmax(v) for v in _soft_logits(z, teacher, rows, batch, temperature))
    return norm * temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum()


def distill_grad(
    gl: Array, z: Array, teacher: Array, rows: Array, norm: Array, *, batch: int, temperature: float
) -> Array:
    q, p = (softmax(v, dim=-1) for v in _soft_logits(z, teacher, rows, batch, temperature))
    dz = np.zeros((z.size // z.shape[-1], z.shape[-1]), z.dtype)
    real_rows(dz, rows, batch)[:] = gl * norm * temperature * (q - p)
    return dz.reshape(z.shape)


def _soft_logits(z: Array, teacher: Array, rows: Array, batch: int, temperature: float) -> list[Array]:
    return [real_rows(v.reshape(-1, v.shape[-1]), rows, batch) / temperature for v in (z, teacher)]


ROWS: dict[str, Callable[..., Any]] = {
    "cross_entropy": cross_entropy,
    "cross_entropy_grad": cross_entropy_grad,
    "focal": focal,
    "focal_grad": focal_grad,
    "pair_loss": pair_loss,
    "pair_loss_grad": pair_loss_grad,
    "distill": distill,
    "distill_grad": distill_grad,
}
