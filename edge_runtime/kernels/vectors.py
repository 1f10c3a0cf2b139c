"""Vectors of updates on the native core: dense bits, sums of masked words, and the largest magnitudes.

Every array is checked before the call: `ValueError` for another dtype, shape or memory order than the docstring says.
Results are the same bits on every ISA. `pack_bits/pack_bits.h`, `mask_add/mask_add.h` and `topk/topk.h` are the
specifications.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import NumericsError
from edge_runtime.kernels import native
from edge_runtime.kernels.checks import check, check_output, declare, float32

MAX_VALUES = 2**59  # so that no count of bits overflows

# values -> what packs and what unpacks
_BITS = {
    np.dtype(np.uint8): ("hr_pack_u8", "hr_unpack_u8"),
    np.dtype(np.uint32): ("hr_pack_u32", "hr_unpack_u32"),
}
# (acc, mask) -> what adds and what subtracts
_MASKS = {
    (np.dtype(np.uint64), np.dtype(np.uint64)): ("hr_add_u64", "hr_subtract_u64"),
    (np.dtype(np.uint32), np.dtype(np.uint32)): ("hr_add_u32", "hr_subtract_u32"),
    (np.dtype(np.uint64), np.dtype(np.uint32)): ("hr_add_u32_to_u64", "hr_subtract_u32_from_u64"),
}


@cache
def _core() -> ctypes.CDLL:
    size, pointer, width, real = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_float
    return declare(
        native._core(),
        (
            ("hr_packed_bytes", [size, width], size),
            *((name, [size, width, pointer, pointer], None) for names in _BITS.values() for name in names),
            *((name, [size, pointer, pointer], None) for names in _MASKS.values() for name in names),
            ("hr_count_at_least", [size, pointer, real], size),
            ("hr_kth_magnitude", [size, pointer, size, ctypes.POINTER(real)], ctypes.c_int32),
            ("hr_take_at_least", [size, pointer, real, size, pointer, pointer], size),
        ),
    )


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
    check(values, "values", values.dtype)
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
    check(source, "data", np.uint8)
    if source.size != packed_bytes(n, width):
        raise ValueError(f"{n} values of {width} bits take {packed_bytes(n, width)} bytes, got {source.size}")
    if (used := n * width % 8) and source.flat[-1] >> used:
        raise ValueError(f"bits are set after the last of {n} values of {width} bits")
    values: NDArray[Any] = np.empty(n, dtype)
    getattr(_core(), unpack)(n, width, source.ctypes.data, values.ctypes.data)
    return values


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
    check(x, "x", np.float32)
    return int(_core().hr_count_at_least(x.size, x.ctypes.data, _threshold(threshold)))


def kth_magnitude(x: NDArray[np.float32], k: int) -> float:
    """The k-th largest `abs(x)`, 1 <= k <= x.size, each of several equal ones counted.

    Raises:
        ValueError: x is not contiguous float32, or k is out of range.
        NumericsError: x holds a NaN, which has no place in an order.

    """
    check(x, "x", np.float32)
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
    check(x, "x", np.float32)
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


def _bit_kernels(dtype: np.dtype[np.generic], width: int) -> tuple[str, str]:
    if dtype not in _BITS or not 1 <= width <= 8 * dtype.itemsize:
        raise ValueError(f"values are uint8 of 1 to 8 bits or uint32 of 1 to 32, got {dtype} of {width}")
    return _BITS[dtype]


def _mask(acc: NDArray[np.generic], mask: NDArray[np.generic], way: int) -> None:
    names = _MASKS.get((acc.dtype, mask.dtype))
    if names is None:
        raise ValueError(f"acc and mask are uint64 or uint32, mask no wider than acc; got {acc.dtype} and {mask.dtype}")
    check(mask, "mask", mask.dtype)
    check_output(acc, "acc", acc.dtype.type, mask.shape, mask)
    getattr(_core(), names[way])(mask.size, mask.ctypes.data, acc.ctypes.data)


def _threshold(number: float) -> np.float32:
    threshold = float32(number)
    if not threshold >= 0:
        raise ValueError(f"a threshold is 0 or more, got {number}")
    return threshold
