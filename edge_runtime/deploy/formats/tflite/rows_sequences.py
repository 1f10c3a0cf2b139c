"""Tokens, attention, and recurrent layers, whose steps are written one after the other.

A loop (WHILE) would be smaller, but it copies all that the steps share at each of them.
"""

from __future__ import annotations

import numpy as np

from edge_runtime.deploy.formats.tflite.site import Site, row
from edge_runtime.deploy.formats.tflite.values import Array
from edge_runtime.ir.graph import Shape

HIDDEN = -1e9  # a score whose exponential is 0
BOTH = (0, 1)


@row("embedding")
def _embedding(s: Site) -> None:
    s.result("GATHER", [s.weight(0, BOTH), s.take(1)], axis=0)


@row("attention")
def _attention(s: Site) -> None:
    """softmax(scale q k^T + mask) v."""
    q, k = s.shape(0), s.shape(1)
    scores = (*q[:-1], k[-2])
    scaled = s.op("MUL", [s.take(0), s.const([s.a["scale"]])], q)
    z = s.op("BATCH_MATMUL", [scaled, s.take(1)], scores, adjY=True)
    if s.a["causal"]:
        z = s.op("ADD", [z, s.const(np.triu(np.full(scores[-2:], HIDDEN), 1))], scores)
    p = s.op("SOFTMAX", [z], scores, beta=1.0)
    s.result("BATCH_MATMUL", [p, s.take(2)])


@row("gru")
def _gru(s: Site) -> None:
    """r, z = sigmoid(...), n = tanh(i_n + r m), h = n + z (h - n), as `kernels/program/ops.h`.

    The inputs' share of the gates is one product for all steps; biases that are only added go with it.
    """
    rows, hidden = s.shape(1)
    both, one = (rows, 2 * hidden), (rows, hidden)
    steps, h, zero = s.shape(0)[1], s.take(1, broadcast=True), _is_zero(s, 1)
    b_ih, b_hh = (_bias(s, place, 3 * hidden) for place in (4, 5))
    cut = 2 * hidden
    x_rz = _from_inputs(s, 2, slice(0, cut), b_ih[:cut] + b_hh[:cut])
    x_n = _from_inputs(s, 2, slice(cut, None), b_ih[cut:])
    w_rz, w_n = _of_state(s, 3, np.r_[0:cut]), _of_state(s, 3, np.r_[cut : cut + hidden])
    b_n = s.const(b_hh[cut:])
    outputs = []
    for step in range(steps):
        sums, m = x_rz[step], b_n
        if step or not zero:
            sums = s.op("ADD", [sums, s.op("FULLY_CONNECTED", [h, w_rz, -1], both)], both)
            m = s.op("FULLY_CONNECTED", [h, w_n, b_n], one)
        r, z = s.ops("SPLIT", [s.const(np.int32(1)), s.op("LOGISTIC", [sums], both)], one, 2, numSplits=2)
        n = s.op("TANH", [s.op("ADD", [x_n[step], s.op("MUL", [r, m], one)], one)], one)
        kept = s.op("MUL", [z, s.op("SUB", [h, n], one)], one)
        h = s.op("ADD", [n, kept], one)
        outputs.append(h)
    _stacked(s, outputs)
    s.other_output(1, h)


@row("lstm")
def _lstm(s: Site) -> None:
    """i, f, o = sigmoid(...), g = tanh(...), c = f c + i g, h = o tanh c."""
    rows, hidden = s.shape(1)
    one, three = (rows, hidden), (rows, 3 * hidden)
    steps, h, c, zero = s.shape(0)[1], s.take(1, broadcast=True), s.take(2, broadcast=True), _is_zero(s, 1)
    i, f, g, o = (slice(k * hidden, (k + 1) * hidden) for k in range(4))
    sigmoids = np.r_[i, f, o]
    bias = _bias(s, 5, 4 * hidden) + _bias(s, 6, 4 * hidden)
    x_ifo, x_g = _from_inputs(s, 3, sigmoids, bias[sigmoids]), _from_inputs(s, 3, g, bias[g])
    w_ifo, w_g = _of_state(s, 4, sigmoids), _of_state(s, 4, np.r_[g])
    outputs = []
    for step in range(steps):
        gates, inner = x_ifo[step], x_g[step]
        if step or not zero:
            gates = s.op("ADD", [gates, s.op("FULLY_CONNECTED", [h, w_ifo, -1], three)], three)
            inner = s.op("ADD", [inner, s.op("FULLY_CONNECTED", [h, w_g, -1], one)], one)
        opened = s.op("LOGISTIC", [gates], three)
        into, forget, out = s.ops("SPLIT", [s.const(np.int32(1)), opened], one, 3, numSplits=3)
        kept = s.op("MUL", [forget, c], one)
        c = s.op("ADD", [kept, s.op("MUL", [into, s.op("TANH", [inner], one)], one)], one)
        h = s.op("MUL", [out, s.op("TANH", [c], one)], one)
        outputs.append(h)
    _stacked(s, outputs)
    s.other_output(1, h)
    s.other_output(2, c)


def _bias(s: Site, place: int, size: int) -> Array:
    return s.parameter(place) if s.has(place) else np.zeros(size, np.float32)


def _is_zero(s: Site, place: int) -> bool:
    content = s.constant_input(place)
    return content is not None and not content.any()


def _of_state(s: Site, place: int, rows: Array) -> int:
    """Rows of the weight that every step reads.

    LiteRT's delegate keeps a packed copy of a constant weight for each layer that reads it: 15 MB for 80 steps of 128
    units, and six times the time. It leaves GATHER alone, and a weight that comes out of one has no copies.
    """
    return s.op("GATHER", [s.weight(place, BOTH), s.const(rows)], (len(rows), s.shape(place)[1]), axis=0)


def _from_inputs(s: Site, place: int, gates: slice | Array, bias: Array) -> list[int]:
    """The product of the inputs and these rows of w, with a bias; one tensor for each step."""
    rows, steps = s.shape(0)[:2]
    shape: Shape = (rows, steps, len(bias))
    inputs = [s.take(0), s.weight_rows(place, gates), s.const(bias)]
    whole = s.op("FULLY_CONNECTED", inputs, shape, keepNumDims=True)
    return s.ops("UNPACK", [whole], (rows, len(bias)), steps, num=steps, axis=1)


def _stacked(s: Site, outputs: list[int]) -> None:
    s.result("PACK", outputs, valuesCount=len(outputs), axis=1)
