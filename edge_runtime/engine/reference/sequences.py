"""Attention and recurrent layers (PyTorch's, batch first), with what they keep for their gradients.

Shapes: x (B, T, I), h and c (B, H), w_ih (G H, I), w_hh (G H, H), y (B, T, H); gates (B, T, 4H).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edge_runtime.engine.reference.arithmetic import Array, linear, sigmoid


def attention(q: Array, k: Array, v: Array, *, causal: bool, scale: float) -> tuple[Array, Array]:
    """softmax(scale q k^T) v over the last two axes, and the logarithm of each row's sum of exponentials."""
    scores = _scores(q, k, causal, scale)
    largest = scores.max(-1, keepdims=True)
    lse = largest + np.log(np.exp(scores - largest).sum(-1, keepdims=True))
    return np.exp(scores - lse) @ v, lse[..., 0]


def attention_grad(
    g: Array, q: Array, k: Array, v: Array, y: Array, lse: Array, *, causal: bool, scale: float
) -> tuple[Array, Array, Array]:
    """Dq, dk, dv; softmax's own gradient needs only g y summed over a row (Dao et al. 2022, appendix B.2)."""
    p = np.exp(_scores(q, k, causal, scale) - lse[..., None])
    dscores = p * (g @ np.swapaxes(v, -1, -2) - (g * y).sum(-1, keepdims=True)) * scale
    return dscores @ k, np.swapaxes(dscores, -1, -2) @ q, np.swapaxes(p, -1, -2) @ g


def _scores(q: Array, k: Array, causal: bool, scale: float) -> Array:
    """Causal rows see the columns up to their own."""
    scores = scale * q @ np.swapaxes(k, -1, -2)
    return np.where(np.tri(*scores.shape[-2:]) > 0, scores, -np.inf) if causal else scores


def gru(
    x: Array, h: Array, w_ih: Array, w_hh: Array, b_ih: Array | None = None, b_hh: Array | None = None
) -> tuple[Array, Array, Array]:
    """Y, the last h, and the gates r, z, n, m: n = tanh(i_n + r m), m = h w_hn^T + b_hn, h = (1 - z) n + z h."""
    outputs, gates = [], []
    for t in range(x.shape[1]):
        (ir, iz, i_n), (hr, hz, m) = (
            np.split(linear(a, w, b), 3, -1) for a, w, b in ((x[:, t], w_ih, b_ih), (h, w_hh, b_hh))
        )
        r, z = sigmoid(ir + hr), sigmoid(iz + hz)
        n = np.tanh(i_n + r * m)
        h = (1 - z) * n + z * h
        outputs.append(h)
        gates.append(np.concatenate([r, z, n, m], -1))
    return np.stack(outputs, 1), h, np.stack(gates, 1)


def gru_grad(
    gy: Array, ghn: Array, x: Array, h0: Array, w_ih: Array, w_hh: Array, y: Array, gates: Array
) -> tuple[Array, ...]:
    """Dx, dh0, dw_ih, dw_hh, db_ih, db_hh, and dgates: of the sums inside r, z and n, then of m."""
    before = _shifted(h0, y)
    dgates, dh = np.zeros_like(gates), ghn
    for t in reversed(range(x.shape[1])):
        r, z, n, m = np.split(gates[:, t], 4, -1)
        dh = dh + gy[:, t]
        dn = dh * (1 - z) * (1 - n * n)
        dz = dh * (before[:, t] - n) * z * (1 - z)
        dr = dn * m * r * (1 - r)
        dgates[:, t] = np.concatenate([dr, dz, dn, dn * r], -1)
        dh = dh * z + np.concatenate([dr, dz, dn * r], -1) @ w_hh
    r_and_z, n, m = np.split(dgates, [2 * h0.shape[1], 3 * h0.shape[1]], -1)
    from_x, from_h = np.concatenate([r_and_z, n], -1), np.concatenate([r_and_z, m], -1)
    return from_x @ w_ih, dh, *_weight_gradients(from_x, x, from_h, before), dgates


def lstm(
    x: Array, h: Array, c: Array, w_ih: Array, w_hh: Array, b_ih: Array | None = None, b_hh: Array | None = None
) -> tuple[Array, ...]:
    """Y, the last h and c, the gates i, f, g, o, and the cells (B, T, H): c = f c + i g, h = o tanh c."""
    outputs, gates, cells = [], [], []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(linear(x[:, t], w_ih, b_ih) + linear(h, w_hh, b_hh), 4, -1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        c = f * c + i * g
        h = o * np.tanh(c)
        outputs.append(h)
        gates.append(np.concatenate([i, f, g, o], -1))
        cells.append(c)
    return np.stack(outputs, 1), h, c, np.stack(gates, 1), np.stack(cells, 1)


def lstm_grad(
    gy: Array,
    ghn: Array,
    gcn: Array,
    x: Array,
    h0: Array,
    c0: Array,
    w_ih: Array,
    w_hh: Array,
    y: Array,
    gates: Array,
    cells: Array,
) -> tuple[Array, ...]:
    """Dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh, and dgates: of the sums inside i, f, g and o."""
    cells_before = _shifted(c0, cells)
    dgates, dh, dc = np.zeros_like(gates), ghn, gcn
    for t in reversed(range(x.shape[1])):
        i, f, g, o = np.split(gates[:, t], 4, -1)
        dh, tanh_c = dh + gy[:, t], np.tanh(cells[:, t])
        dc = dc + dh * o * (1 - tanh_c * tanh_c)
        di, df = dc * g * i * (1 - i), dc * cells_before[:, t] * f * (1 - f)
        dg, do = dc * i * (1 - g * g), dh * tanh_c * o * (1 - o)
        dgates[:, t] = np.concatenate([di, df, dg, do], -1)
        dh, dc = dgates[:, t] @ w_hh, dc * f
    return dgates @ w_ih, dh, dc, *_weight_gradients(dgates, x, dgates, _shifted(h0, y)), dgates


def _shifted(start: Array, later: Array) -> Array:
    """What a step starts from: `start`, then each but the last of `later`."""
    return np.concatenate([start[:, None], later[:, :-1]], 1)


def _weight_gradients(from_x: Array, x: Array, from_h: Array, h: Array) -> tuple[Array, Array, Array, Array]:
    """dw_ih, dw_hh, db_ih, db_hh, given the gradients of x w_ih^T + b_ih and of h w_hh^T + b_hh."""
    dw_ih, dw_hh = (np.einsum("btg,bti->gi", g, a) for g, a in ((from_x, x), (from_h, h)))
    return dw_ih, dw_hh, from_x.sum((0, 1)), from_h.sum((0, 1))


ROWS: dict[str, Callable[..., Any]] = {
    "attention": attention,
    "attention_grad": attention_grad,
    "gru": gru,
    "gru_gates": lambda *inputs: gru(*inputs[:-1])[2],  # the last input is y, which spares a faster engine the order
    "gru_grad": gru_grad,
    "lstm": lstm,
    "lstm_gates": lambda *inputs: lstm(*inputs[:-1])[3:],
    "lstm_grad": lstm_grad,
}
