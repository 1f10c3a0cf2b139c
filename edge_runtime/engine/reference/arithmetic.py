"""Elementwise functions and their gradients, shapes, reductions, softmax, and `linear`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * x))  # does not overflow


def gelu(x: Array) -> Array:
    """X Phi(x), exact (Hendrycks & Gimpel 2016)."""
    return x * _normal_cdf(x)


def gelu_grad(g: Array, x: Array) -> Array:
    return g * (_normal_cdf(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi))


def silu_grad(g: Array, x: Array) -> Array:
    return g * sigmoid(x) * (1 + x * (1 - sigmoid(x)))


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2)))


def softmax(x: Array, *, dim: int) -> Array:
    exponentials = np.exp(x - x.max(dim, keepdims=True))
    return exponentials / exponentials.sum(dim, keepdims=True)


def softmax_grad(g: Array, y: Array, *, dim: int) -> Array:
    return y * (g - (g * y).sum(dim, keepdims=True))


def pad(x: Array, *, dim: int, start: int, size: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[dim] = (start, size - start - x.shape[dim])
    return np.pad(x, widths)


def linear(x: Array, w: Array, b: Array | None = None) -> Array:
    return x @ w.T if b is None else x @ w.T + b


def linear_dw(g: Array, x: Array) -> Array:
    return g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def embedding(table: Array, ids: Array) -> Array:
    require_in_range(ids, table.shape[0])
    return table[ids]


def embedding_grad(g: Array, ids: Array, *, shape: Any) -> Array:
    table = np.zeros(shape, g.dtype)
    np.add.at(table, ids, g)
    return table


def require_in_range(places: Array, count: int) -> None:
    """NumPy alone would count negative places from the end."""
    if places.size and (places.min() < 0 or places.max() >= count):
        raise IndexError(f"places {places.min()} to {places.max()}, in a table of {count}")


ROWS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "mul": np.multiply,
    "scale": lambda x, by, plus: x * by + plus,
    "clip": lambda x, low, high: np.clip(x, low, high),
    "exp": np.exp,
    "gelu": gelu,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
    "gelu_grad": gelu_grad,
    "relu_grad": lambda g, y: g * (y > 0),
    "relu6_grad": lambda g, y: g * ((y > 0) & (y < 6)),
    "sigmoid_grad": lambda g, y: g * y * (1 - y),
    "silu_grad": silu_grad,
    "tanh_grad": lambda g, y: g * (1 - y * y),
    "detach": lambda x: x,
    "reshape": lambda x, shape: x.reshape(shape),
    "transpose": lambda x, order: x.transpose(order),
    "slice": lambda x, dim, start, stop: x.take(np.arange(start, stop), dim),
    "pad": pad,
    "cat": lambda *xs, dim: np.concatenate(xs, dim),
    "expand": lambda x, shape, by: np.broadcast_to(x, shape) * by,
    "zeros": lambda shape: np.zeros(shape, np.float32),  # what it meets decides the dtype
    "mean": lambda x, dims, keepdim: x.mean(tuple(dims), keepdims=keepdim),
    "sum": lambda x, dims, keepdim: x.sum(tuple(dims), keepdims=keepdim),
    "softmax": softmax,
    "softmax_grad": softmax_grad,
    "linear": linear,
    "linear_dx": lambda g, w: g @ w,
    "linear_dw": linear_dw,
    "embedding": embedding,
    "embedding_grad": embedding_grad,
}
