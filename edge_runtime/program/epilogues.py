"""Joins an activation with the op before it, so that the elements are visited once.

Done on the op table, when every buffer has its place: what is joined ran in place anyway, so no plan changes, and the
core promises the same bits (`act` in `kernels/program/ops.h`).
"""

from __future__ import annotations

import dataclasses
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
        one = joined and _with_activation(joined[-1], op)
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
