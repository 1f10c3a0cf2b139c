"""Where an element of an int8 value lies in memory.

A value (N, ...) whose rows are a canonical (C, S), such as (N, C, H, W), can lie as (N, S, C): `channels` is C then.
`channels` = 1 is the canonical order. So is C = 1 or S = 1, which are therefore called 1 too.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_runtime.ir.graph import Shape
from edge_runtime.program.packed import row_strides


def normal(channels: int, shape: Shape) -> int:
    """1 for orders that are the canonical one."""
    return 1 if channels == math.prod(shape[1:]) else channels


def fits(channels: int, shape: Shape) -> bool:
    """Whether `strides` can tell where an index is."""
    return channels == 1 or (len(shape) > 1 and channels == shape[1])


def strides(channels: int, shape: Shape) -> tuple[int, ...]:
    """Elements from one index to the next, in each dim."""
    if channels == 1:
        return row_strides(shape)
    inner = tuple(n * channels for n in row_strides(shape[2:]))
    return (math.prod(shape[1:]), 1, *inner)


def arranged(content: NDArray[np.int32], channels: int) -> NDArray[np.int32]:
    """A constant (N, ...) in that order of memory; its shape stays."""
    if channels == 1:
        return content
    split = content.reshape(len(content), channels, -1)
    return np.ascontiguousarray(split.transpose(0, 2, 1)).reshape(content.shape)
