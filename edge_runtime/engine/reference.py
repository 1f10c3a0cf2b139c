"""Every op of `ir/ops.py` in plain NumPy: slow, short, and what faster engines are tested against.

Arithmetic is in the dtype of the inputs; feed float64 for an oracle without rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edge_runtime.ir.graph import Graph

Array = NDArray[Any]


def run(graph: Graph, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """All values of the graph after one forward pass; `tensors` holds its inputs and state.

    State that a node overwrites (running statistics) stands in the result with its new content; `tensors` is not
    changed.
    """
    values = {name: np.array(tensors[name]) for name in (*graph.inputs, *graph.state)}
    for node in graph.nodes:
        results = FORWARD[node.op](*(values[name] for name in node.inputs), **node.attributes)
        results = results if isinstance(results, tuple) else (results,)
        values.update(zip((*node.outputs, *node.writes), results, strict=True))
    return values


def conv2d(x: Array, w: Array, b: Array | None = None, *, stride: Any, padding: Any, groups: int) -> Array:
    """out[n, o, i, j] = b[o] + sum over c, k, l of x[n, c, i s + k - p, j s + l - p] w[o, c, k, l], per group."""
    windows = _windows(x, w.shape[2:], stride, padding, 0.0)
    n, channels, height, width = windows.shape[:4]
    windows = windows.reshape(n, groups, channels // groups, height, width, *w.shape[2:])
    kernels = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    out = np.einsum("ngchwkl,gockl->ngohw", windows, kernels).reshape(n, w.shape[0], height, width)
    return out if b is None else out + b[:, None, None]


def linear(x: Array, w: Array, b: Array | None = None) -> Array:
    return x @ w.T if b is None else x @ w.T + b


def max_pool2d(x: Array, *, kernel: Any, stride: Any, padding: Any) -> Array:
    return _windows(x, kernel, stride, padding, -np.inf).max((4, 5))


def avg_pool2d(x: Array, *, kernel: Any, stride: Any, padding: Any) -> Array:
    return _windows(x, kernel, stride, padding, 0.0).mean((4, 5))


def _windows(x: Array, kernel: Any, stride: Any, padding: Any, fill: float) -> Array:
    """All windows of the padded input, (N, C, H', W', kh, kw)."""
    (ph, pw), (sh, sw) = padding, stride
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=fill)
    return sliding_window_view(padded, tuple(kernel), axis=(2, 3))[:, :, ::sh, ::sw]


def mean(x: Array, *, dims: Any, keepdim: bool) -> Array:
    return x.mean(tuple(dims), keepdims=keepdim)


def batch_norm(
    x: Array,
    w: Array,
    b: Array,
    running_mean: Array,
    running_var: Array,
    *,
    training: bool,
    momentum: float,
    eps: float,
) -> Array | tuple[Array, Array, Array]:
    """Ioffe & Szegedy 2015; in training also the new running statistics, of the unbiased variance as in PyTorch."""
    per_channel = (slice(None), *[None] * (x.ndim - 2))
    if not training:
        return (
            _normalised(x, running_mean[per_channel], running_var[per_channel], eps) * w[per_channel] + b[per_channel]
        )
    axes = (0, *range(2, x.ndim))
    batch_mean, batch_var = x.mean(axes), x.var(axes)
    count = x.size // x.shape[1]
    y = _normalised(x, batch_mean[per_channel], batch_var[per_channel], eps) * w[per_channel] + b[per_channel]
    new_mean = (1 - momentum) * running_mean + momentum * batch_mean
    new_var = (1 - momentum) * running_var + momentum * batch_var * count / (count - 1)
    return y, new_mean, new_var


def group_norm(x: Array, w: Array, b: Array, *, groups: int, eps: float) -> Array:
    """Wu & He 2018."""
    grouped = x.reshape(x.shape[0], groups, -1)
    flat = _normalised(grouped, grouped.mean(2, keepdims=True), grouped.var(2, keepdims=True), eps)
    per_channel = (slice(None), *[None] * (x.ndim - 2))
    return flat.reshape(x.shape) * w[per_channel] + b[per_channel]


def layer_norm(x: Array, w: Array | None = None, b: Array | None = None, *, dims: int, eps: float) -> Array:
    """Ba et al. 2016, over the last `dims` axes."""
    axes = tuple(range(x.ndim - dims, x.ndim))
    y = _normalised(x, x.mean(axes, keepdims=True), x.var(axes, keepdims=True), eps)
    y = y if w is None else y * w
    return y if b is None else y + b


def _normalised(x: Array, centre: Array, variance: Array, eps: float) -> Array:
    return (x - centre) / np.sqrt(variance + eps)


def attention(q: Array, k: Array, v: Array, *, causal: bool, scale: float) -> Array:
    """softmax(scale q k^T) v over the last two axes; causal rows see columns up to their own."""
    scores = scale * q @ np.swapaxes(k, -1, -2)
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:]) > 0, scores, -np.inf)
    return softmax(scores, dim=-1) @ v


def softmax(x: Array, *, dim: int) -> Array:
    exponentials = np.exp(x - x.max(dim, keepdims=True))
    return exponentials / exponentials.sum(dim, keepdims=True)


def sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * x))  # does not overflow


def gelu(x: Array) -> Array:
    """X Phi(x), exact (Hendrycks & Gimpel 2016)."""
    return 0.5 * x * (1 + _erf(x / np.sqrt(2.0)))


def gru(
    x: Array, h: Array, w_ih: Array, w_hh: Array, b_ih: Array | None = None, b_hh: Array | None = None
) -> tuple[Array, Array]:
    """PyTorch's GRU, gates in the order r, z, n: n = tanh(i_n + r h_n), h = (1 - z) n + z h; x (B, T, I), h (B, H)."""
    outputs = []
    for t in range(x.shape[1]):
        (ir, iz, i_n), (hr, hz, hn) = (
            np.split(linear(a, w, b), 3, -1) for a, w, b in ((x[:, t], w_ih, b_ih), (h, w_hh, b_hh))
        )
        r, z = sigmoid(ir + hr), sigmoid(iz + hz)
        h = (1 - z) * np.tanh(i_n + r * hn) + z * h
        outputs.append(h)
    return np.stack(outputs, 1), h


def lstm(
    x: Array, h: Array, c: Array, w_ih: Array, w_hh: Array, b_ih: Array | None = None, b_hh: Array | None = None
) -> tuple[Array, Array, Array]:
    """PyTorch's LSTM, gates in the order i, f, g, o: c = f c + i g, h = o tanh c; x (B, T, I), h and c (B, H)."""
    outputs = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(linear(x[:, t], w_ih, b_ih) + linear(h, w_hh, b_hh), 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, 1), h, c


def _erf(x: Array) -> Array:

    return np.vectorize(math.erf, otypes=[x.dtype])(x)


FORWARD: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "attention": attention,
    "avg_pool2d": avg_pool2d,
    "batch_norm": batch_norm,
    "cat": lambda *xs, dim: np.concatenate(xs, dim),
    "conv2d": conv2d,
    "embedding": lambda table, ids: table[ids],
    "gelu": gelu,
    "group_norm": group_norm,
    "gru": gru,
    "layer_norm": layer_norm,
    "linear": linear,
    "lstm": lstm,
    "max_pool2d": max_pool2d,
    "mean": mean,
    "mul": np.multiply,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "reshape": lambda x, shape: x.reshape(shape),
    "scale": lambda x, by, plus: x * by + plus,
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "slice": lambda x, dim, start, stop: x.take(np.arange(start, stop), dim),
    "softmax": softmax,
    "tanh": np.tanh,
    "transpose": lambda x, order: x.transpose(order),
    "zeros": lambda shape: np.zeros(shape),
}
