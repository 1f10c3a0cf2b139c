"""The native core's kernels on plain arrays: INT8 products, quantising, bit packing, masks, largest magnitudes.

Every array is checked before the call: `ValueError` for another dtype, shape or memory order than the docstring says.
Results are the same bits on every ISA. Each family's header, such as `gemm_s8/gemm_s8.h`, is its specification.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import EdgeRuntimeError, NumericsError
from edge_runtime.kernels import native

GEMM_S8_EXACT_DEPTH = 131071  # a longer sum of products of bytes may not fit 32 bits
PACK_ALIGNMENT = 64
MAX_VALUES = 2**59  # so that no count of bits overflows


@cache
def _core() -> ctypes.CDLL:
    core = native._core()
    size, pointer, width = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_uint32
    byte, real, i32 = ctypes.c_int8, ctypes.c_float, ctypes.c_int32
    for name, arguments, result in (
        ("hr_gemm_s8_pack_bytes", [size, size], size),
        ("hr_gemm_s8_pack", [size, size, pointer, pointer, size], i32),
        ("hr_gemm_s8", [size, size, size, pointer, pointer, pointer], i32),
        ("hr_quantize_s8", [size, size, pointer, pointer, pointer, pointer], None),
        ("hr_dequantize_s8", [size, size, pointer, pointer, pointer, pointer], None),
        ("hr_range_f32", [size, size, pointer, pointer, pointer], None),
        ("hr_requantize_rows_s8", [size, size, pointer, pointer, pointer, byte, pointer], None),
        ("hr_requantize_columns_s8", [size, size, pointer, pointer, pointer, byte, pointer], None),
        ("hr_packed_bytes", [size, width], size),
        *((name, [size, width, pointer, pointer], None) for names in _BITS.values() for name in names),
        *((name, [size, pointer, pointer], None) for names in _MASKS.values() for name in names),
        ("hr_count_at_least", [size, pointer, real], size),
        ("hr_kth_magnitude", [size, pointer, size, ctypes.POINTER(real)], i32),
        ("hr_take_at_least", [size, pointer, real, size, pointer, pointer], size),
    ):
        function = getattr(core, name)
        function.argtypes, function.restype = arguments, result
    return core


class PackedS8:
    """The constant side of `gemm_s8`: an (n, k) int8 matrix, such as weights, laid out for this CPU's kernels.

    It remembers the ISA that was selected when it was made, and is always multiplied by that one's kernels. It can be
    neither copied nor pickled: another machine packs its own.

    Raises:
        ValueError: b is not a contiguous int8 matrix, or k is above `GEMM_S8_EXACT_DEPTH`.

    """

    __slots__ = ("_address", "_data", "k", "n")

    def __init__(self, b: NDArray[np.int8]) -> None:
        _check(b, "b", np.int8, ndim=2)
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
    _check(a, "a", np.int8, ndim=2)
    m, k = a.shape
    if k != b.k:
        raise ValueError(f"a has {k} columns, and b was packed with {b.k}")
    if out is not None:
        _check_output(out, "out", np.int32, (m, b.n), a)
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
    _check(x, "x", np.float32)
    rows, columns, scales, zeros = _per_row(x, scale, zero_point)
    q = np.empty(x.shape, np.int8)
    _core().hr_quantize_s8(rows, columns, x.ctypes.data, scales.ctypes.data, zeros.ctypes.data, q.ctypes.data)
    return q


def dequantize(
    q: NDArray[np.int8], scale: float | NDArray[np.float32], zero_point: int | NDArray[np.int8] = 0
) -> NDArray[np.float32]:
    """`(q - zero_point) * scale` in float32, with `quantize`'s arguments and errors."""
    _check(q, "q", np.int8)
    rows, columns, scales, zeros = _per_row(q, scale, zero_point)
    x = np.empty(q.shape, np.float32)
    _core().hr_dequantize_s8(rows, columns, q.ctypes.data, scales.ctypes.data, zeros.ctypes.data, x.ctypes.data)
    return x


def row_range(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The least and the greatest of each row of a contiguous float32 (rows, columns >= 1): two (rows,) vectors.

    Both are NaN for a row that holds one.

    Raises:
        ValueError: a wrong dtype, shape or memory order.

    """
    _check(x, "x", np.float32, ndim=2)
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
    _check(sums, "sums", np.int32, ndim=2)
    if axis not in (0, 1):
        raise ValueError(f"axis is 0 or 1, got {axis}")
    _check(multiplier, "multiplier", np.float32, shape=(sums.shape[axis],))
    if not native.all_finite(multiplier):
        raise ValueError("multiplier holds NaN or infinity")
    if bias is not None:
        _check(bias, "bias", np.int32, shape=multiplier.shape)
    if not -128 <= zero_point <= 127:
        raise ValueError(f"zero_point is -128 to 127, got {zero_point}")
    q = np.empty(sums.shape, np.int8)
    kernel = _core().hr_requantize_columns_s8 if axis == 1 else _core().hr_requantize_rows_s8
    plus = None if bias is None else bias.ctypes.data
    kernel(*sums.shape, sums.ctypes.data, plus, multiplier.ctypes.data, zero_point, q.ctypes.data)
    return q


# values -> what packs and what unpacks
_BITS = {
    np.dtype(np.uint8): ("hr_pack_u8", "hr_unpack_u8"),
    np.dtype(np.uint32): ("hr_pack_u32", "hr_unpack_u32"),
}


def packed_bytes(n: int, width: int) -> int:
    """How many bytes `pack_bits` makes of n values of 1 <= width <= 32 bits.

    Raises:
        ValueError: n or width is out of range.

    """
    if not 1 <= width <= 32:
        raise ValueError(f"a width is 1 to 32 bits, got {width}")
    if not 0 <= n <= MAX_VALUES:
        raise ValueError(f"a count of values is 0 to 2^59, got {n}")
    return int(_core().hr_packed_bytes(n, width))


def pack_bits(values: NDArray[np.uint8] | NDArray[np.uint32], width: int) -> NDArray[np.uint8]:
    """The low `width` bits of each value, one after another from the lowest bit of the first byte; zeros fill the last.

    Args:
        values: contiguous uint8 (width <= 8) or uint32 (width <= 32) of any shape.
        width: bits of a value, at least 1.

    Raises:
        ValueError: a wrong dtype, memory order or width.

    """
    pack, _ = _bit_kernels(values.dtype, width)
    _check(values, "values", values.dtype)
    data = np.empty(packed_bytes(values.size, width), np.uint8)
    getattr(_core(), pack)(values.size, width, values.ctypes.data, data.ctypes.data)
    return data


def unpack_bits(
    data: bytes | NDArray[np.uint8], n: int, width: int, dtype: type[np.uint8] | type[np.uint32] = np.uint32
) -> NDArray[np.uint8] | NDArray[np.uint32]:
    """The n values that `pack_bits` made `data` of, as uint32, or as uint8 where the width is at most 8.

    Raises:
        ValueError: data has not exactly `packed_bytes(n, width)` bytes, or bits are set after the last value.

    """
    _, unpack = _bit_kernels(np.dtype(dtype), width)
    source = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    _check(source, "data", np.uint8)
    if source.size != packed_bytes(n, width):
        raise ValueError(f"{n} values of {width} bits take {packed_bytes(n, width)} bytes, got {source.size}")
    if (used := n * width % 8) and source.flat[-1] >> used:
        raise ValueError(f"bits are set after the last of {n} values of {width} bits")
    values: NDArray[Any] = np.empty(n, dtype)
    getattr(_core(), unpack)(n, width, source.ctypes.data, values.ctypes.data)
    return values


# (acc, mask) -> what adds and what subtracts
_MASKS = {
    (np.dtype(np.uint64), np.dtype(np.uint64)): ("hr_add_u64", "hr_subtract_u64"),
    (np.dtype(np.uint32), np.dtype(np.uint32)): ("hr_add_u32", "hr_subtract_u32"),
    (np.dtype(np.uint64), np.dtype(np.uint32)): ("hr_add_u32_to_u64", "hr_subtract_u32_from_u64"),
}


def mask_add(acc: NDArray[np.uint64] | NDArray[np.uint32], mask: NDArray[np.uint64] | NDArray[np.uint32]) -> None:
    """`acc += mask` in place, mod 2^64 or 2^32.

    Args:
        acc: contiguous, writable uint64 or uint32.
        mask: contiguous, of acc's shape, apart from it; of acc's dtype, or uint32 into uint64.

    Raises:
        ValueError: anything else.

    """
    _mask(acc, mask, 0)


def mask_subtract(acc: NDArray[np.uint64] | NDArray[np.uint32], mask: NDArray[np.uint64] | NDArray[np.uint32]) -> None:
    """`acc -= mask` in place, as `mask_add`."""
    _mask(acc, mask, 1)


def count_at_least(x: NDArray[np.float32], threshold: float) -> int:
    """How many elements of the contiguous float32 `x` have `abs(x) >= float32(threshold)`; a NaN has not.

    Raises:
        ValueError: x is another kind of array, or the threshold is negative or NaN.

    """
    _check(x, "x", np.float32)
    return int(_core().hr_count_at_least(x.size, x.ctypes.data, _threshold(threshold)))


def kth_magnitude(x: NDArray[np.float32], k: int) -> float:
    """The k-th largest `abs(x)`, 1 <= k <= x.size, each of several equal ones counted.

    Raises:
        ValueError: x is not contiguous float32, or k is out of range.
        NumericsError: x holds a NaN, which has no place in an order.

    """
    _check(x, "x", np.float32)
    if not 1 <= k <= x.size:
        raise ValueError(f"k is 1 to {x.size}, the size of x; got {k}")
    threshold = ctypes.c_float()
    if _core().hr_kth_magnitude(x.size, x.ctypes.data, k, ctypes.byref(threshold)) != 0:
        raise NumericsError("x holds a NaN, so it has no k-th largest magnitude")
    return threshold.value


def take_at_least(x: NDArray[np.float32], threshold: float, k: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Up to k elements with `abs(x) >= float32(threshold)`: their flat indices, ascending, and their values.

    Larger ones go before equal ones, and of those that do not all fit the first are taken. With
    `threshold = kth_magnitude(x, k)` they are exactly k.

    Raises:
        ValueError: x is not contiguous float32 of at most 2^32 elements, k is not 0 to x.size, or the threshold is
            negative or NaN.

    """
    _check(x, "x", np.float32)
    if not 0 <= k <= x.size <= 2**32:
        raise ValueError(f"k is 0 to the size of x, which is at most 2^32; got {k} of {x.size}")
    indices, values = np.empty(k, np.uint32), np.empty(k, np.float32)
    least = _threshold(threshold)
    n = int(_core().hr_take_at_least(x.size, x.ctypes.data, least, k, indices.ctypes.data, values.ctypes.data))
    return indices[:n], values[:n]


def top_k(x: NDArray[np.float32], k: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """The k elements of largest magnitude, ties resolved to the first: flat indices, ascending, and values.

    Raises:
        ValueError: x is not contiguous float32 of at most 2^32 elements, or k is not 0 to x.size.
        NumericsError: x holds a NaN and k is not 0.

    """
    return take_at_least(x, kth_magnitude(x, k) if k != 0 else math.inf, k)


def _check(
    array: NDArray[np.generic],
    name: str,
    dtype: type[np.generic] | np.dtype[np.generic],
    ndim: int | None = None,
    shape: tuple[int, ...] | None = None,
) -> None:
    if array.dtype != dtype or not array.flags.c_contiguous or not array.flags.aligned:
        raise ValueError(f"{name} must be contiguous, aligned {np.dtype(dtype)}, got {array.dtype} {array.strides}")
    if ndim not in (None, array.ndim) or shape not in (None, array.shape):
        raise ValueError(f"{name} must have {shape or f'{ndim} axes'}, got the shape {array.shape}")


def _check_output(
    array: NDArray[np.generic], name: str, dtype: type[np.generic], shape: tuple[int, ...], source: NDArray[np.generic]
) -> None:
    _check(array, name, dtype, shape=shape)
    if not array.flags.writeable or np.may_share_memory(array, source):
        raise ValueError(f"{name} must be writable and apart from what is read")


def _per_row(
    x: NDArray[np.generic], scale: float | NDArray[np.float32], zero_point: int | NDArray[np.int8]
) -> tuple[int, int, NDArray[np.float32], NDArray[np.int8]]:
    """Rows, columns, and one scale and zero point a row; all of x is one row where neither is a vector."""
    vectors = isinstance(scale, np.ndarray) or isinstance(zero_point, np.ndarray)
    if vectors and x.ndim == 0:
        raise ValueError("an array of no axes has no rows, so its scale and zero_point must be numbers")
    rows = x.shape[0] if vectors else 1
    if not isinstance(scale, np.ndarray):
        scale = np.full(rows, _float32(scale), np.float32)
    if not isinstance(zero_point, np.ndarray):
        if not -128 <= zero_point <= 127:
            raise ValueError(f"zero_point is -128 to 127, got {zero_point}")
        zero_point = np.full(rows, zero_point, np.int8)
    _check(scale, "scale", np.float32, shape=(rows,))
    _check(zero_point, "zero_point", np.int8, shape=(rows,))
    if not (scale > 0).all() or not native.all_finite(scale):
        raise ValueError("scale must be finite and above 0 in float32")
    return rows, x.size // rows if rows else 0, scale, zero_point


def _bit_kernels(dtype: np.dtype[np.generic], width: int) -> tuple[str, str]:
    if dtype not in _BITS or not 1 <= width <= 8 * dtype.itemsize:
        raise ValueError(f"values are uint8 of 1 to 8 bits or uint32 of 1 to 32, got {dtype} of {width}")
    return _BITS[dtype]


def _mask(acc: NDArray[np.generic], mask: NDArray[np.generic], way: int) -> None:
    names = _MASKS.get((acc.dtype, mask.dtype))
    if names is None:
        raise ValueError(f"acc and mask are uint64 or uint32, mask no wider than acc; got {acc.dtype} and {mask.dtype}")
    _check(mask, "mask", mask.dtype)
    _check_output(acc, "acc", acc.dtype.type, mask.shape, mask)
    getattr(_core(), names[way])(mask.size, mask.ctypes.data, acc.ctypes.data)


def _float32(number: float) -> np.float32:
    with np.errstate(over="ignore"):
        return np.float32(number)


def _threshold(number: float) -> np.float32:
    threshold = _float32(number)
    if not threshold >= 0:
        raise ValueError(f"a threshold is 0 or more, got {number}")
    return threshold
