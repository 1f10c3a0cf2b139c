"""Runs a Program's phases in one arena: views into it, the scalars of a step, and what a failed op means.

Nothing is allocated per step but what Python itself needs for a call; the arena is one block, whatever the plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import NumericsError, ProgramError
from edge_runtime.kernels.native import MAX_BUFFERS, OP_DTYPE, NativeProgram, Status, Team, op_code
from edge_runtime.program.native_op import ABSENT, NativeOp
from edge_runtime.program.program import Phase, Program, Tensor

ALIGNMENT = 64
DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "i64": np.dtype(np.int64)}
POISON = np.uint32(0x7FA5A5A5)  # a signalling NaN that no computation gives


class Session:
    """One Program, ready to run.

    Args:
        program: its op tables are checked here, all of them, before anything runs.
        threads: that share the work of each op; they change no bit of a result.
        poison: fill the arena with NaN first, so that reading what was never written shows, and count what is touched.

    Raises:
        ProgramError: an op reaches outside the arena or is malformed; names it.

    """

    def __init__(self, program: Program, *, threads: int = 1, poison: bool = False) -> None:
        self.program = program
        self._team = Team(threads) if threads > 1 else None
        self._native = {id(phase): _native(phase, program.arena_bytes) for phase in program.phases}
        guard = ALIGNMENT if poison else 0
        try:
            block = np.zeros(program.arena_bytes + ALIGNMENT + guard, np.uint8)
        except MemoryError as error:
            raise ProgramError(f"it needs {program.arena_bytes} bytes to train, and there are not so many") from error
        start = -block.ctypes.data % ALIGNMENT
        self._guarded = block[start : start + program.arena_bytes + guard]
        self.arena: NDArray[np.uint8] = self._guarded[: program.arena_bytes]
        if poison:
            words = self._guarded[: len(self._guarded) // 4 * 4].view(np.uint32)
            words[program.state_bytes // 4 :] = POISON
        self.state = self.arena[: program.state_bytes]
        # Kept, for making a view costs as much as a small op.
        self._views: dict[tuple[int, str, tuple[int, ...]], NDArray[Any]] = {}

    def view(self, tensor: Tensor) -> NDArray[Any]:
        """The tensor's own memory."""
        place = (tensor.offset, tensor.dtype, tensor.shape)
        if (view := self._views.get(place)) is None:
            dtype = DTYPES[tensor.dtype]
            nbytes = math.prod(tensor.shape) * dtype.itemsize
            view = self.arena[tensor.offset : tensor.offset + nbytes].view(dtype).reshape(tensor.shape)
            self._views[place] = view
        return view

    def run(self, phase: Phase, scalars: Mapping[str, float | tuple[float, ...]]) -> None:
        """Run all ops of `phase`; `scalars` are those of its inputs that hold numbers rather than data.

        Raises:
            NumericsError: a loss or gradient is NaN or infinite.
            ValueError: a token or class is outside its table, or batch norm has one value per channel.

        """
        for tensor in phase.inputs:
            if tensor.name in scalars:
                self.view(tensor)[...] = scalars[tensor.name]
        status, op = self._native[id(phase)].run(self.arena, 0, len(phase.ops), self._team)
        if status != Status.OK:
            raise _failure(status, phase, op)

    def first_not_finite(self, phase: Phase, scalars: Mapping[str, float | tuple[float, ...]]) -> str:
        """Run op by op and return the label of the first node that makes a NaN or an infinity; "" where none does."""
        for tensor in phase.inputs:
            if tensor.name in scalars:
                self.view(tensor)[...] = scalars[tensor.name]
        for place, op in enumerate(phase.ops):
            status, _ = self._native[id(phase)].run(self.arena, place, 1, self._team)
            offset, elements = op.makes
            last = place + 1 == len(phase.ops) or phase.ops[place + 1].node != op.node
            made = self.arena[offset : offset + 4 * elements].view(np.float32) if offset != ABSENT and last else ()
            if status != Status.OK or not np.all(np.isfinite(made)):
                return phase.labels[op.node]
        return ""

    def touched_bytes(self) -> int:
        """Where the last byte lies that a run has written, counted from the arena's start; needs `poison`.

        Beyond the arena's end it would show too: a guard of poison lies there.
        """
        words = self._guarded[: len(self._guarded) // 4 * 4].view(np.uint32)
        changed = np.nonzero(words != POISON)[0]
        return int(changed[-1] + 1) * 4 if len(changed) else 0


def _native(phase: Phase, arena_bytes: int) -> NativeProgram:
    """The phase's ops as the core's records, checked."""
    try:
        return NativeProgram(native_ops(phase.ops), arena_bytes)
    except ProgramError as error:
        raise ProgramError(f"phase {phase.kind}: {error}") from error


def native_ops(ops: Sequence[NativeOp]) -> NDArray[np.void]:
    """The ops as the core's records (`OP_DTYPE`). Raises ProgramError for an op that the core does not have."""
    records = np.zeros(len(ops), OP_DTYPE)
    records["buffers"] = ABSENT
    for record, op in zip(records, ops, strict=True):
        record["code"] = op_code(op.name)
        _write(record, op)
    return records


def _write(record: np.void, op: NativeOp) -> None:
    if len(op.buffers) > MAX_BUFFERS:
        raise ProgramError(f"op {op.name} has {len(op.buffers)} buffers")
    record["buffers"][: len(op.buffers)] = op.buffers
    record["ints"][: len(op.ints)] = op.ints
    record["floats"][: len(op.floats)] = op.floats


def _failure(status: int, phase: Phase, op: int) -> Exception:
    label = phase.labels[phase.ops[op].node] if 0 <= op < len(phase.ops) else "an unknown op"
    match status:
        case Status.NOT_FINITE:
            of = "the loss" if phase.ops[op].name == "check_finite" else "a gradient"
            return NumericsError(f"{of} is NaN or infinite ({label})")
        case Status.OUT_OF_RANGE:
            return ValueError(f"a token or class is outside its table, in {label}")
        case Status.ONE_VALUE:
            return ValueError(f"batch norm needs more than one value per channel in training, in {label}")
        case _:
            return ProgramError(f"phase {phase.kind} stopped with status {status} at {label}")
