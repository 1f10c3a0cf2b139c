"""Planes of small integers as few bytes (`context/context.h`), and products of thin matrices (`low_rank/low_rank.h`).

Decoding gives the same bits on every machine. Encoding does too where `x` is the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import PeerError
from edge_runtime.kernels import native
from edge_runtime.kernels.checks import check, check_output, declare

KINDS, SLOTS, TAPS, CLASSES = 2, 16, 5, 32  # as context/context.h has them
MAX_MAGNITUDE = 32767
LEVEL_UNIT = 64
MAX_NUMBER = 2**31 - 1


@cache
def _core() -> ctypes.CDLL:
    size, pointer, number, real = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int32, ctypes.c_float
    plane = [pointer, number, size, size, pointer, size, pointer]
    return declare(
        native._core(),
        (
            ("hr_low_rank_product", [size, size, size, pointer, pointer, pointer], None),
            ("hr_context_state_bytes", [], size),
            ("hr_context_begin_encode", [pointer, pointer, size], None),
            ("hr_context_begin_decode", [pointer, pointer, size], None),
            ("hr_context_end_encode", [pointer], size),
            ("hr_context_end_decode", [pointer], number),
            ("hr_context_put_numbers", [pointer, number, size, pointer], None),
            ("hr_context_get_number", [pointer, number, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32)], number),
            ("hr_context_workspace_bytes", [size, size], size),
            ("hr_context_put_plane", [*plane, real, real, real, pointer, pointer, pointer, pointer], None),
            ("hr_context_get_plane", [*plane, pointer, pointer], number),
            ("hr_context_decode_levels", [size, pointer, number, number, real, pointer], None),
        ),
    )


@dataclass(frozen=True, slots=True)
class PlaneForm:
    """What both ends know of a plane beside its integers.

    `taps`, in eighths, predict an integer from those 1, 2, lag, lag - 1 and lag + 1 before it in its row; `lag` is 0 or
    at least 3. `row_class` holds one number below 32 for each row: rows of one class are expected to be alike.
    """

    rows: int
    columns: int
    kind: int = 0
    lag: int = 0
    taps: tuple[int, ...] = (0,) * TAPS
    row_class: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        if len(self.taps) != TAPS or not 0 <= self.kind < KINDS or self.lag in (1, 2) or min(self.rows, self.lag) < 0:
            raise ValueError(f"no such plane: {self}")
        if self.row_class is not None:
            check(self.row_class, "row_class", np.uint8, shape=(self.rows,))
            if self.rows and self.row_class.max() >= CLASSES:
                raise ValueError(f"row classes must be below {CLASSES}, got {self.row_class.max()}")


class PlaneEncoder:
    """Writes one stream. `capacity` bytes are set aside for it; a longer one is counted, and cannot be had."""

    def __init__(self, capacity: int) -> None:
        self._out = np.empty(capacity, np.uint8)
        self._state = _State()
        # For both kinds: counts and sums of |x| where |q| is 1, and of |x| - |q| + 1 where it is more.
        self.seen = np.zeros((KINDS, 4))
        _core().hr_context_begin_encode(self._state.address, self._out.ctypes.data, capacity)

    def put_numbers(self, slot: int, *values: int) -> None:
        """Numbers from 0 to 2^31 - 1; those of one slot are expected to be alike."""
        if not 0 <= slot < SLOTS or any(not 0 <= value <= MAX_NUMBER for value in values):
            raise ValueError(f"numbers {values} of slot {slot}: must be 0 to 2^31 - 1, the slot below {SLOTS}")
        _core().hr_context_put_numbers(self._state.address, slot, len(values), (ctypes.c_uint32 * len(values))(*values))

    def put_plane(
        self, form: PlaneForm, x: NDArray[np.float32], lambda_: float, d1: float, d2: float
    ) -> NDArray[np.int16]:
        """Choose and write the integers of finite x, contiguous float32 of the plane's shape, in steps.

        Each is chosen so that squared error + lambda_ * bits is small, where 1 stands for d1 and q > 1 for q - 1 + d2.
        With lambda_ = 0 and d1 = d2 = 1 whole numbers are kept as they are.
        """
        check(x, "x", np.float32, shape=(form.rows, form.columns))
        q = np.empty(x.shape, np.int16)
        seen = self.seen.ctypes.data + form.kind * self.seen.strides[0]
        _core().hr_context_put_plane(
            *self._state.plane(form),
            *(lambda_, d1, d2, x.ctypes.data, q.ctypes.data, self._state.workspace(form), seen),
        )
        return q

    def end(self) -> int:
        """How many bytes the stream has; nothing may be put after this."""
        self._size = int(_core().hr_context_end_encode(self._state.address))
        return self._size

    def data(self) -> bytes:
        """The stream that has ended."""
        if self._size > self._out.size:
            raise ValueError(f"the stream has {self._size} bytes, {self._out.size} were set aside")
        return self._out[: self._size].tobytes()


class PlaneDecoder:
    """Reads what a PlaneEncoder wrote. Bytes from anywhere: bounded by what is asked for, PeerError if malformed."""

    def __init__(self, data: memoryview | bytes) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self._state = _State()
        _core().hr_context_begin_decode(self._state.address, self._data.ctypes.data, self._data.size)

    def number(self, slot: int, most: int, what: str) -> int:
        value = ctypes.c_uint32()
        if _core().hr_context_get_number(self._state.address, slot, most, ctypes.byref(value)):
            raise PeerError(f"{what} must be at most {most}")
        return value.value

    def plane(self, form: PlaneForm) -> NDArray[np.int16]:
        """int16 of the plane's shape."""
        q = np.empty((form.rows, form.columns), np.int16)
        if _core().hr_context_get_plane(*self._state.plane(form), q.ctypes.data, self._state.workspace(form)):
            raise PeerError(f"a value of {form.rows} x {form.columns} is beyond {MAX_MAGNITUDE} steps")
        return q

    def end(self) -> None:
        if _core().hr_context_end_decode(self._state.address):
            raise PeerError(f"the {self._data.size} coded bytes have some missing or left over")


class _State:
    """The native state of a stream, and room for what coding a plane needs beside it."""

    def __init__(self) -> None:
        self._words = np.empty(-(-_core().hr_context_state_bytes() // 8), np.uint64)
        self.address = self._words.ctypes.data
        self._room = np.empty(0, np.uint8)

    def plane(self, form: PlaneForm) -> Sequence[object]:
        classes = None if form.row_class is None else form.row_class.ctypes.data
        taps = (ctypes.c_int32 * TAPS)(*form.taps)
        return self.address, form.kind, form.rows, form.columns, classes, form.lag, taps

    def workspace(self, form: PlaneForm) -> int:
        nbytes = _core().hr_context_workspace_bytes(form.columns, form.lag)
        if self._room.size < nbytes:
            self._room = np.empty(nbytes, np.uint8)
            self._address = self._room.ctypes.data
        return self._address


def decode_levels(q: NDArray[np.int16], d1: int, d2: int, scale: float) -> NDArray[np.float32]:
    """float32 scale * sign(q) * level, with levels 0, d1, and 64 (|q| - 1) + d2 from 2 on; of q's shape."""
    check(q, "q", np.int16)
    x = np.empty(q.shape, np.float32)
    _core().hr_context_decode_levels(q.size, q.ctypes.data, d1, d2, scale, x.ctypes.data)
    return x


def low_rank_product(a: NDArray[np.float32], b: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """`out[i, j] = sum_k a[k, i] * b[k, j]`, summed in float32 from k = 0 on: the same bits on every machine.

    Args:
        a: contiguous float32 of shape (rank, rows).
        b: contiguous float32 of shape (rank, columns).
        out: contiguous, writable float32 of shape (rows, columns), apart from both.

    """
    check(a, "a", np.float32, ndim=2)
    check(b, "b", np.float32, shape=(a.shape[0], b.shape[-1]))
    for source in (a, b):
        check_output(out, "out", np.float32, (a.shape[1], b.shape[1]), source)
    _core().hr_low_rank_product(*out.shape, a.shape[0], a.ctypes.data, b.ctypes.data, out.ctypes.data)
