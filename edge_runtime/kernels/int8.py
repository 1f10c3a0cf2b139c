"""INT8 on the native core: exact products, the ways between float32, int32 and int8, and layers' constants, packed.

Every array is checked before the call: `ValueError` for another dtype, shape or memory order than the docstring says.
Results are the same bits on every ISA. `gemm_s8/gemm_s8.h`, `quantize/quantize.h` and `integers/packed.h` are the
specifications.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.kernels import native
from edge_runtime.kernels.checks import check, check_output, declare, float32

GEMM_S8_EXACT_DEPTH = 131071  # a longer sum of products of bytes may not fit 32 bits
PACK_ALIGNMENT = 64


@cache
def _core() -> ctypes.CDLL:
    size, pointer, byte, i32 = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int8, ctypes.c_int32
    return declare(
        native._core(),
        (
            ("hr_gemm_s8_pack_bytes", [size, size], size),
            ("hr_gemm_s8_pack", [size, size, pointer, pointer, size], i32),
            ("hr_gemm_s8", [size, size, size, pointer, pointer, pointer], i32),
            ("hr_quantize_s8", [size, size, pointer, pointer, pointer, pointer], None),
            ("hr_dequantize_s8", [size, size, pointer, pointer, pointer, pointer], None),
            ("hr_range_f32", [size, size, pointer, pointer, pointer], None),
            ("hr_requantize_rows_s8", [size, size, pointer, pointer, pointer, byte, pointer], None),
            ("hr_requantize_columns_s8", [size, size, pointer, pointer, pointer, byte, pointer], None),
            ("hr_conv_s8_packed_bytes", [size, size, size], size),
            ("hr_depthwise_s8_packed_bytes", [size, size], size),
            ("hr_conv_s8_pack", [size, size, size, pointer, pointer, pointer, pointer, size], i32),
            ("hr_depthwise_s8_pack", [size, size, pointer, pointer, pointer, pointer, size], i32),
        ),
    )


class PackedS8:
    """The constant side of `gemm_s8`: an (n, k) int8 matrix, such as weights, laid out for this CPU's kernels.

    It remembers the ISA that was selected when it was made, and is always multiplied by that one's kernels. It can be
    neither copied nor pickled: another machine packs its own.

    Raises:
        ValueError: b is not a contiguous int8 matrix, or k is above `GEMM_S8_EXACT_DEPTH`.

    """

    __slots__ = ("_address", "_data", "k", "n")

    def __init__(self, b: NDArray[np.int8]) -> None:
        check(b, "b", np.int8, ndim=2)
        self.n, self.k = b.shape
        if self.k > GEMM_S8_EXACT_DEPTH:
            raise ValueError(f"k is {self.k}; int32 holds every sum only up to {GEMM_S8_EXACT_DEPTH}")
        size = int(_core().hr_gemm_s8_pack_bytes(self.n, self.k))
        memory = np.empty(size + PACK_ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % PACK_ALIGNMENT
        self._data = memory[start : start + size]
        self._address = self._data.ctypes.data
        if _core().hr_gemm_s8_pack(self.n, self.k, b.ctypes.data, self._address, size) != 0:
            raise EdgeRuntimeError("another thread selected another ISA while a matrix was packed; pack it again")

    @property
    def nbytes(self) -> int:
        return self._data.nbytes

    def __reduce__(self) -> NoReturn:
        raise TypeError("a PackedS8 cannot be copied or pickled; pack the matrix where it is used")


def gemm_s8(a: NDArray[np.int8], b: PackedS8, out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
    """`a @ b.T` of int8 (m, k) and (n, k), exact in int32 (m, n); into `out` where that is given.

    Raises:
        ValueError: a or out is not contiguous, of its dtype and of its shape, or out is read-only or overlaps a.

    """
    check(a, "a", np.int8, ndim=2)
    m, k = a.shape
    if k != b.k:
        raise ValueError(f"a has {k} columns, and b was packed with {b.k}")
    if out is not None:
        check_output(out, "out", np.int32, (m, b.n), a)
    c = np.empty((m, b.n), np.int32) if out is None else out
    if _core().hr_gemm_s8(m, b.n, k, a.ctypes.data, b._address, c.ctypes.data) != 0:
        raise EdgeRuntimeError("the packed matrix is damaged")
    return c


def quantize(
    x: NDArray[np.float32], scale: float | NDArray[np.float32], zero_point: int | NDArray[np.int8] = 0
) -> NDArray[np.int8]:
    """`saturate(round(x / scale) + zero_point)`, ties to even, as ONNX QuantizeLinear; NaN becomes the zero point.

    Args:
        x: contiguous float32 of any shape.
        scale: one for all, or a float32 vector with one for each of `x`'s rows (its first axis); finite and above 0.
        zero_point: one for all, or an int8 vector with one for each row.

    Raises:
        ValueError: a wrong dtype, shape or memory order, or a scale or zero point out of range.

    """
    check(x, "x", np.float32)
    rows, columns, scales, zeros = _per_row(x, scale, zero_point)
    q = np.empty(x.shape, np.int8)
    _core().hr_quantize_s8(rows, columns, x.ctypes.data, scales.ctypes.data, zeros.ctypes.data, q.ctypes.data)
    return q


def dequantize(
    q: NDArray[np.int8],
    scale: float | NDArray[np.float32],
    zero_point: int | NDArray[np.int8] = 0,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """`(q - zero_point) * scale` in float32, with `quantize`'s arguments and errors; into `out` where that is given."""
    check(q, "q", np.int8)
    rows, columns, scales, zeros = _per_row(q, scale, zero_point)
    if out is not None:
        check_output(out, "out", np.float32, q.shape, q)
    x = np.empty(q.shape, np.float32) if out is None else out
    _core().hr_dequantize_s8(rows, columns, q.ctypes.data, scales.ctypes.data, zeros.ctypes.data, x.ctypes.data)
    return x


def row_range(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The least and the greatest of each row of a contiguous float32 (rows, columns >= 1): two (rows,) vectors.

    Both are NaN for a row that holds one.

    Raises:
        ValueError: a wrong dtype, shape or memory order.

    """
    check(x, "x", np.float32, ndim=2)
    rows, columns = x.shape
    if columns == 0:
        raise ValueError("a row of no columns has no least element")
    low, high = np.empty(rows, np.float32), np.empty(rows, np.float32)
    _core().hr_range_f32(rows, columns, x.ctypes.data, low.ctypes.data, high.ctypes.data)
    return low, high


def requantize(
    sums: NDArray[np.int32],
    multiplier: NDArray[np.float32],
    zero_point: int = 0,
    bias: NDArray[np.int32] | None = None,
    axis: int = 1,
) -> NDArray[np.int8]:
    """`saturate(round(float32(sums + bias) * multiplier) + zero_point)`, ties to even.

    Args:
        sums: contiguous int32 (rows, columns); with the bias they wrap mod 2^32.
        multiplier: finite float32, one for each column, or for each row where `axis` is 0.
        zero_point: -128 to 127.
        bias: int32, as many as multipliers; None for none.
        axis: 0 or 1.

    Raises:
        ValueError: a wrong dtype, shape, memory order or zero point, or a multiplier that is not finite.

    """
    check(sums, "sums", np.int32, ndim=2)
    if axis not in (0, 1):
        raise ValueError(f"axis is 0 or 1, got {axis}")
    check(multiplier, "multiplier", np.float32, shape=(sums.shape[axis],))
    if not native.all_finite(multiplier):
        raise ValueError("multiplier holds NaN or infinity")
    if bias is not None:
        check(bias, "bias", np.int32, shape=multiplier.shape)
    if not -128 <= zero_point <= 127:
        raise ValueError(f"zero_point is -128 to 127, got {zero_point}")
    q = np.empty(sums.shape, np.int8)
    kernel = _core().hr_requantize_columns_s8 if axis == 1 else _core().hr_requantize_rows_s8
    plus = None if bias is None else bias.ctypes.data
    kernel(*sums.shape, sums.ctypes.data, plus, multiplier.ctypes.data, zero_point, q.ctypes.data)
    return q


def conv_packed_bytes(outputs: int, kernel_rows: int, row_elements: int) -> int:
    """Bytes that `pack_conv` writes for weights (outputs, kh, kw, C): `kernel_rows` is kh, `row_elements` is kw C.

    They do not depend on the ISA. A linear layer (outputs, K) has one row, of K.

    Raises:
        ValueError: an extent is below 1, or kh kw C is above 131071.

    """
    sizes = (outputs, kernel_rows, row_elements)
    nbytes = int(_core().hr_conv_s8_packed_bytes(*sizes)) if all(0 < n < 2**31 for n in sizes) else 0
    if nbytes == 0:
        raise ValueError(f"no int8 convolution has {outputs} outputs of {kernel_rows} x {row_elements} products each")
    return nbytes


def pack_conv(
    w: NDArray[np.int8], bias: NDArray[np.int32], multiplier: NDArray[np.float32], out: NDArray[np.uint8]
) -> None:
    """Write what `conv2d_s8` or `linear_s8` takes as its constant into `out`, in the layout of the ISA selected now.

    Args:
        w: contiguous (outputs, kh, kw, C), or (outputs, K) for `linear_s8`; -127 to 127.
        bias: (outputs,), with `- zero_point * (the sum of w)` of the input's zero point in it.
        multiplier: (outputs,): the scales of x and w over that of y; finite.
        out: a writable vector of just `conv_packed_bytes`; 64-byte aligned in the arena that the op runs in.

    Raises:
        ValueError: a wrong dtype, shape, memory order or length, or a weight of -128.

    """
    if w.ndim not in (2, 4):
        raise ValueError(f"w must be (outputs, kh, kw, C) or (outputs, K), got {w.shape}")
    check(w, "w", np.int8)
    rows, depth = (1, w.shape[1]) if w.ndim == 2 else (w.shape[1], w.shape[2] * w.shape[3])
    _check_layer(w, bias, multiplier, out, conv_packed_bytes(w.shape[0], rows, depth))
    where = (bias.ctypes.data, multiplier.ctypes.data, out.ctypes.data, out.nbytes)
    if _core().hr_conv_s8_pack(w.shape[0], rows, depth, w.ctypes.data, *where) != 0:
        raise ValueError("w holds -128; symmetric weights end at -127")


def depthwise_packed_bytes(channels: int, places: int) -> int:
    """Bytes that `pack_depthwise` writes for weights (channels, kh, kw), `places` being kh kw; the same on every ISA.

    Raises:
        ValueError: an extent is below 1, or kh kw is above 2048.

    """
    sizes = (channels, places)
    nbytes = int(_core().hr_depthwise_s8_packed_bytes(*sizes)) if all(0 < n < 2**31 for n in sizes) else 0
    if nbytes == 0:
        raise ValueError(f"no int8 depthwise convolution has {channels} channels of {places} places")
    return nbytes


def pack_depthwise(
    w: NDArray[np.int8], bias: NDArray[np.int32], multiplier: NDArray[np.float32], out: NDArray[np.uint8]
) -> None:
    """As `pack_conv`, for `depthwise_s8` and w (channels, kh, kw); `out` has `depthwise_packed_bytes`."""
    check(w, "w", np.int8, ndim=3)
    places = w.shape[1] * w.shape[2]
    _check_layer(w, bias, multiplier, out, depthwise_packed_bytes(w.shape[0], places))
    where = (bias.ctypes.data, multiplier.ctypes.data, out.ctypes.data, out.nbytes)
    if _core().hr_depthwise_s8_pack(w.shape[0], places, w.ctypes.data, *where) != 0:
        raise ValueError("w holds -128; symmetric weights end at -127")


def _check_layer(
    w: NDArray[np.int8], bias: NDArray[np.int32], multiplier: NDArray[np.float32], out: NDArray[np.uint8], nbytes: int
) -> None:
    check(bias, "bias", np.int32, shape=(w.shape[0],))
    check(multiplier, "multiplier", np.float32, shape=(w.shape[0],))
    if not native.all_finite(multiplier):
        raise ValueError("multiplier holds NaN or infinity")
    check_output(out, "out", np.uint8, (nbytes,), w)


def _per_row(
    x: NDArray[np.generic], scale: float | NDArray[np.float32], zero_point: int | NDArray[np.int8]
) -> tuple[int, int, NDArray[np.float32], NDArray[np.int8]]:
    """Rows, columns, and one scale and zero point a row; all of x is one row where neither is a vector."""
    vectors = isinstance(scale, np.ndarray) or isinstance(zero_point, np.ndarray)
    if vectors and x.ndim == 0:
        raise ValueError("an array of no axes has no rows, so its scale and zero_point must be numbers")
    rows = x.shape[0] if vectors else 1
    if not isinstance(scale, np.ndarray):
        scale = np.full(rows, float32(scale), np.float32)
    if not isinstance(zero_point, np.ndarray):
        if not -128 <= zero_point <= 127:
            raise ValueError(f"zero_point is -128 to 127, got {zero_point}")
        zero_point = np.full(rows, zero_point, np.int8)
    check(scale, "scale", np.float32, shape=(rows,))
    check(zero_point, "zero_point", np.int8, shape=(rows,))
    if not (scale > 0).all() or not native.all_finite(scale):
        raise ValueError("scale must be finite and above 0 in float32")
    return rows, x.size // rows if rows else 0, scale, zero_point
