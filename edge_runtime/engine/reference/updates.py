"""Optimizer steps, in PyTorch's arithmetic, and what happens to gradients before them.

An update returns the new contents of the weights, then of its moments. `lr` has shape (1,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edge_runtime.engine.reference.arithmetic import Array
from edge_runtime.errors import NumericsError


def sgd(
    w: Array, g: Array, lr: Array, v: Array | None = None, *, momentum: float, nesterov: bool, weight_decay: float
) -> tuple[Array, ...]:
    """Sutskever et al. 2013; without v there is no momentum."""
    check_finite(g)
    d = g + weight_decay * w
    if v is None:
        return (w - lr * d,)
    v = momentum * v + d
    return w - lr * (d + momentum * v if nesterov else v), v


def adam(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    lr: Array,
    corrections: Array,
    *,
    beta1: float,
    beta2: float,
    decoupled: bool,
    eps: float,
    weight_decay: float,
) -> tuple[Array, Array, Array]:
    """Kingma & Ba 2015, and with `decoupled` Loshchilov & Hutter 2019.

    `corrections` are 1/(1 - beta1^t) and 1/sqrt(1 - beta2^t) at step t = 1, 2, ...
    """
    check_finite(g)
    if decoupled:
        w = w - lr * weight_decay * w
    else:
        g = g + weight_decay * w
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    return w - lr * corrections[0] * m / (np.sqrt(v) * corrections[1] + eps), m, v


def rmsprop(
    w: Array,
    g: Array,
    v: Array,
    lr: Array,
    u: Array | None = None,
    *,
    alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
) -> tuple[Array, ...]:
    """Tieleman & Hinton 2012; without u there is no momentum."""
    check_finite(g)
    g = g + weight_decay * w
    v = alpha * v + (1 - alpha) * g * g
    d = g / (np.sqrt(v) + eps)
    if u is None:
        return w - lr * d, v
    u = momentum * u + d
    return w - lr * u, v, u


def adagrad(w: Array, g: Array, v: Array, lr: Array, *, eps: float, weight_decay: float) -> tuple[Array, Array]:
    """Duchi et al. 2011."""
    check_finite(g)
    g = g + weight_decay * w
    v = v + g * g
    return w - lr * g / (np.sqrt(v) + eps), v


def check_finite(x: Array) -> tuple[()]:
    if not np.isfinite(x).all():
        raise NumericsError("a loss or a gradient is NaN or infinite")
    return ()


ROWS: dict[str, Callable[..., Any]] = {
    "sgd": sgd,
    "adam": adam,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "proximal": lambda g, w, anchor, mu: g + mu * (w - anchor),  # Li et al. 2020
    "square_sum": lambda x: (x * x).sum().reshape(1),
    "clip_scale": lambda s, max_norm: np.minimum(1, max_norm / (np.sqrt(s) + 1e-6)),  # as torch's clip_grad_norm_
    "accumulate": np.add,
    "clear": np.zeros_like,
    "check_finite": check_finite,
}
