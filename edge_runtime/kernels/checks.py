"""What the kernels' Python sides share: declaring functions of the core, and checking an array before it is passed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def declare(core: ctypes.CDLL, signatures: Iterable[tuple[str, Sequence[Any], Any]]) -> ctypes.CDLL:
    """`core`, with these functions' argument and result types declared."""
    for name, arguments, result in signatures:
        function = getattr(core, name)
        function.argtypes, function.restype = arguments, result
    return core


def check(
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


def check_output(
    array: NDArray[np.generic], name: str, dtype: type[np.generic], shape: tuple[int, ...], source: NDArray[np.generic]
) -> None:
    check(array, name, dtype, shape=shape)
    if not array.flags.writeable or np.may_share_memory(array, source):
        raise ValueError(f"{name} must be writable and apart from what is read")


def float32(number: float) -> np.float32:
    """The nearest float32, infinity for what is too large."""
    with np.errstate(over="ignore"):
        return np.float32(number)
