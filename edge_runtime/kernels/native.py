"""Opens the native core with ctypes and gives its kernels NumPy signatures; every array is checked before the call.

`NativeProgram` runs op tables (`program/ops.h` has the ops); the rest are single kernels, of which `int8.py` and
`vectors.py` have more.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from enum import IntEnum
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import edge_runtime.kernels
from edge_runtime.errors import ConfigError, EdgeRuntimeError, MissingPackageError, ProgramError
from edge_runtime.kernels.checks import check, declare

LIBRARY = "libhedgerow_core.so"
ABI_VERSION = 6

MAX_BUFFERS, MAX_INTS, MAX_FLOATS = 20, 24, 6
ARENA_ALIGNMENT = 64
MAX_THREADS = 64

# struct Op of program/ops.h. What an op does not use is -1 in `buffers` and 0 in the other fields.
OP_DTYPE = np.dtype(
    [
        ("code", np.int32),
        ("reserved", np.int32),
        ("buffers", np.int64, MAX_BUFFERS),
        ("ints", np.int64, MAX_INTS),
        ("floats", np.float64, MAX_FLOATS),
    ]
)


class Status(IntEnum):
    """Why a run stopped, as in program/ops.h."""

    OK = 0
    NOT_FINITE = 1
    OUT_OF_RANGE = 2
    ONE_VALUE = 3
    NO_ARENA = 4


class _HrRun(ctypes.Structure):
    """struct HrRun of c_api.h."""

    _fields_ = (
        ("session", ctypes.c_void_p),
        ("team", ctypes.c_void_p),
        ("arena", ctypes.c_void_p),
        ("first", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("bad_op", ctypes.c_int64),
    )


@cache
def _core() -> ctypes.CDLL:
    # An editable install keeps the sources and the built library in two folders of one package path.
    found = [path for folder in edge_runtime.kernels.__path__ if (path := Path(folder) / LIBRARY).is_file()]
    if not found:
        raise MissingPackageError(f"the native core {LIBRARY} is not built; `pip install .` in the checkout builds it")
    core = ctypes.CDLL(str(found[0]))
    if (version := core.hr_abi_version()) != ABI_VERSION:
        raise EdgeRuntimeError(f"{found[0]} has ABI {version}, this package needs {ABI_VERSION}; reinstall hedgerow")
    size, pointer, text, i64 = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
    declare(
        core,
        (
            ("hr_isa_name", [ctypes.c_int32], text),
            ("hr_select_isa", [text], ctypes.c_int32),
            ("hr_selected_isa", [], text),
            ("hr_refused_isa", [], text),
            ("hr_all_finite_f32", [pointer, size, pointer], ctypes.c_int32),
            ("hr_accumulate_f32_f64", [pointer, size, pointer, ctypes.c_double, pointer], None),
            ("hr_op_code", [text], ctypes.c_int32),
            ("hr_session_create", [pointer, i64, i64, ctypes.POINTER(i64), ctypes.POINTER(text)], pointer),
            ("hr_session_run", [pointer, pointer, pointer, i64, i64, ctypes.POINTER(i64)], ctypes.c_int32),
            ("hr_session_free", [pointer], None),
            ("hr_team_create", [ctypes.c_int32], pointer),
            ("hr_team_threads", [pointer], ctypes.c_int32),
            ("hr_team_free", [pointer], None),
        ),
    )
    if refused := core.hr_refused_isa():
        raise ConfigError(f"HEDGEROW_ISA is {os.fsdecode(refused)!r}, and here are only {', '.join(_isas(core))}")
    return core


def isas() -> list[str]:
    """Instruction sets that this build holds and this CPU runs, best first; "scalar" is always the last."""
    return _isas(_core())


def _isas(core: ctypes.CDLL) -> list[str]:
    found: list[str] = []
    while name := core.hr_isa_name(len(found)):
        found.append(name.decode())
    return found


def selected_isa() -> str:
    return str(_core().hr_selected_isa().decode())


def select_isa(name: str) -> None:
    """Use the kernels of one ISA in this whole process, for tests and benchmarks.

    At load it is the best one, or the one that the environment variable HEDGEROW_ISA names.
    """
    if _core().hr_select_isa(name.encode()) != 0:
        raise ValueError(f"no ISA {name!r} here; there are {', '.join(isas())}")


def all_finite(x: NDArray[np.float32], team: Team | None = None) -> bool:
    """Whether no element of the contiguous float32 array `x` is NaN or infinite; looked at by the threads of `team`."""
    check(x, "x", np.float32)
    return bool(_core().hr_all_finite_f32(team.handle if team else None, x.size, x.ctypes.data))


def accumulate(acc: NDArray[np.float64], x: NDArray[np.float32], weight: float, team: Team | None = None) -> None:
    """`acc += weight * x` in place; contiguous float64 and float32 arrays of one size.

    Bit-identical on every ISA, and on the threads of a team of any size.
    """
    check(acc, "acc", np.float64)
    check(x, "x", np.float32)
    if acc.size != x.size or not acc.flags.writeable or np.may_share_memory(acc, x):
        raise ValueError(f"acc ({acc.size} elements) must be writable, apart from x, and as long as x ({x.size})")
    _core().hr_accumulate_f32_f64(team.handle if team else None, x.size, x.ctypes.data, weight, acc.ctypes.data)


def op_code(name: str) -> int:
    """The code of the native op of that name.

    Raises:
        ProgramError: this core has no such op.

    """
    code = int(_core().hr_op_code(name.encode()))
    if code < 0:
        raise ProgramError(f"the native core has no op {name!r}")
    return code


class Team:
    """The threads that share the ops of a run; they sleep between runs and end with this object.

    A program gives the same bits with a team of any size, or none.

    Args:
        threads: 1 to `MAX_THREADS`, the calling one included; the system may give fewer.

    """

    def __init__(self, threads: int) -> None:
        if not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"threads must be 1 to {MAX_THREADS}, got {threads}")
        self.handle = _core().hr_team_create(threads)
        if not self.handle:
            raise MemoryError("no memory for a team of threads")
        weakref.finalize(self, _core().hr_team_free, self.handle)

    @property
    def threads(self) -> int:
        return int(_core().hr_team_threads(self.handle))


class NativeProgram:
    """A table of ops, checked once against an arena's size, then run as often as wanted.

    No run leaves the arena, whatever the table came from and whatever the arena contains.

    Args:
        ops: records of `OP_DTYPE`, in the order in which they run; they are copied.
        arena_bytes: how long the arenas of `run` are, at least.

    Raises:
        ProgramError: an op is not sound; the text names it.

    """

    def __init__(self, ops: NDArray[np.void], arena_bytes: int) -> None:
        if ops.dtype != OP_DTYPE or ops.ndim != 1:
            raise ProgramError(f"expected a vector of OP_DTYPE records, got {ops.dtype} of shape {ops.shape}")
        if not 0 <= arena_bytes < 2**63:
            raise ProgramError(f"arena_bytes must be 0 to 2^63 - 1, got {arena_bytes}")
        records = np.ascontiguousarray(ops)
        bad, why = ctypes.c_int64(), ctypes.c_char_p()
        self._arena_bytes = arena_bytes
        self._session = _core().hr_session_create(
            records.ctypes.data, len(records), arena_bytes, ctypes.byref(bad), ctypes.byref(why)
        )
        if not self._session:
            where = f"op {bad.value}" if bad.value >= 0 else "op table"
            raise ProgramError(f"{where}: {(why.value or b'').decode()}")
        weakref.finalize(self, _core().hr_session_free, self._session)
        self._run = _core().hr_session_run
        self._checked: tuple[NDArray[np.uint8] | None, int] = (None, 0)  # the last arena, and its address

    def run(self, arena: NDArray[np.uint8], first: int, count: int, team: Team | None = None) -> tuple[int, int]:
        """Run ops `first` to `first + count - 1` in order, up to the first that fails; without the GIL.

        Returns:
            (status, op): `Status.OK` and -1, or why it stopped and at which op.

        Raises:
            ValueError: the arena is not uint8, contiguous, writable, 64-byte aligned and long enough.

        """
        checked = self._checked  # read and written whole: another thread may run with another arena
        if checked[0] is not arena:
            self._checked = checked = (arena, self._address_of(arena))
        bad = ctypes.c_int64()
        handle = team.handle if team else None
        status = self._run(self._session, handle, checked[1], first, count, ctypes.byref(bad))
        return int(status), bad.value

    def bound(self, arena: NDArray[np.uint8], first: int, count: int, team: Team | None = None) -> Callable[[], int]:
        """`run` with these arguments, as a call that gives the status alone, in the least time that Python takes.

        It keeps the program, the arena and the team alive. One thread at a time may call it.
        """
        record = _HrRun(self._session, team.handle if team else None, self._address_of(arena), first, count, -1)
        # A function object of its own, without declared arguments: checking them takes longer than a small op.
        call = partial(_core()["hr_run"], ctypes.byref(record))
        call.keeps = (self, arena, team)  # type: ignore[attr-defined]  # a partial takes attributes
        return call

    def _address_of(self, arena: NDArray[np.uint8]) -> int:
        if arena.dtype != np.uint8 or not arena.flags.c_contiguous or not arena.flags.writeable:
            raise ValueError(f"expected a contiguous, writable uint8 arena, got {arena.dtype}")
        address = arena.ctypes.data
        if arena.nbytes < self._arena_bytes or address % ARENA_ALIGNMENT != 0:
            raise ValueError(
                f"the arena has {arena.nbytes} bytes at {address:#x}; "
                f"it must have {self._arena_bytes}, aligned to {ARENA_ALIGNMENT}"
            )
        return address
