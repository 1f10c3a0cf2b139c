"""Joins an activation with the op before it, and its gradient with batch norm's, so that the elements are visited once.

Done on the op table, when every buffer has its place: what is joined ran in place anyway, so no plan changes, and the
core promises the same bits (`act` in `kernels/program/ops.h`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from edge_runtime.program.native_op import NativeOp

# The kinds of `unary` that an op can end with, and its number for them.
ACTS = {0: 1, 1: 2}  # relu, relu6


@dataclass(frozen=True, slots=True)
class Ending:
    """Where an op has its output, and where among its ints `act` stands."""

    output: int
    act: int


ENDINGS = {
    "linear": Ending(output=3, act=3),
    "conv2d": Ending(output=3, act=12),
    "batch_norm": Ending(output=4, act=4),
    "batch_norm_apply": Ending(output=5, act=3),
    "binary": Ending(output=2, act=20),
}


def join_activations(ops: Sequence[NativeOp]) -> list[NativeOp]:
    """The same computation in fewer ops."""
    joined: list[NativeOp] = []
    for op in ops:
        one = joined and (_with_activation(joined[-1], op) or _through_activation(joined[-1], op))
        if one:
            joined[-1] = one
        else:
            joined.append(op)
    return joined


def _with_activation(op: NativeOp, unary: NativeOp) -> NativeOp | None:
    """`op`, with the activation that follows it in place."""
    ending = ENDINGS.get(op.name)
    if ending is None or unary.name != "unary" or unary.ints[0] not in ACTS or len(op.ints) > ending.act:
        return None
    x, y = unary.buffers
    if not x == y == op.buffers[ending.output] or op.makes != (y, unary.ints[1]):
        return None
    return dataclasses.replace(op, ints=(*op.ints, ACTS[unary.ints[0]]))


def _through_activation(unary: NativeOp, op: NativeOp) -> NativeOp | None:
    """The gradient `op` of a batch norm, with that of the activation before it, whose result nobody else sees."""
    if op.name != "batch_norm_grad" or unary.name != "unary_grad" or unary.ints[0] not in ACTS or len(op.ints) > 5:
        return None
    g, t, dx = unary.buffers
    _, channels, _ = op.ints[:3]
    elements = math.prod(op.ints[:3])
    if not dx == op.buffers[0] == op.buffers[6] or unary.ints[1] != elements:
        return None
    # g and t need not live longer than their op, so what batch norm writes beside dx may stand in their place.
    if any(_overlap(read, elements, made, channels) for read in (g, t) for made in op.buffers[7:9]):
        return None
    return dataclasses.replace(op, buffers=(g, *op.buffers[1:], t), ints=(*op.ints, ACTS[unary.ints[0]]))


def _overlap(a: int, a_floats: int, b: int, b_floats: int) -> bool:
    return a < b + 4 * b_floats and b < a + 4 * a_floats
