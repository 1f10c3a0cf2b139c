"""One record of a Program's op table, as it stands in the file and goes to the native core."""

from __future__ import annotations

from dataclasses import dataclass

ABSENT = -1


@dataclass(frozen=True, slots=True)
class NativeOp:
    """One record: the core's name for it, byte offsets, and numbers.

    `node` is the place of the node it comes from; `makes` the offset and the elements of the float32 tensor that the
    node writes first, for finding where a NaN comes from; (-1, 0) if there is none.
    """

    name: str
    buffers: tuple[int, ...]
    ints: tuple[int, ...] = ()
    floats: tuple[float, ...] = ()
    node: int = 0
    makes: tuple[int, int] = (ABSENT, 0)
