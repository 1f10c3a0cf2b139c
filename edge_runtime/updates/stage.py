"""What a codec is made of: transforms and one coder, and the reader through which a receiver sees their bytes.

A stage is a frozen dataclass whose fields are its options, with their ranges (`edge_runtime.config.key`). Sender and
receiver hold equal stages, but the bytes alone say how to read them: a receiver's options never change what it decodes.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import PeerError
from edge_runtime.kernels import vectors
from edge_runtime.updates import wire
from edge_runtime.updates.delta import FloatVector, TensorLayout

LARGEST = float(np.finfo(np.float32).max)

# Turns the decoded values of a transform's inner layout into those of its outer one, into `out` where that is given.
Restore = Callable[[FloatVector, FloatVector | None], FloatVector]

# Does all tasks, in any order and on any threads, and returns when they are done; no two write to the same place.
Task = Callable[[], object]
Spread = Callable[[Iterable[Task]], None]


@dataclass(frozen=True)
class Stage(ABC):
    """One entry of a codec list."""

    name: ClassVar[str]

    @property
    def unbiased(self) -> bool:
        """Whether the mean of what is decoded, over many seeds, is what was encoded."""
        return False

    @property
    def largest(self) -> float:
        """The largest magnitude that this stage can write; the codec refuses values beyond it."""
        return LARGEST


class Transform(Stage):
    """A stage that leaves fewer or other values to the stages after it, and side bytes for its own other half."""

    @abstractmethod
    def apply(
        self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator
    ) -> tuple[bytes, FloatVector, TensorLayout]:
        """Side bytes, the values that remain, and their layout."""

    @abstractmethod
    def read(self, reader: Reader, layout: TensorLayout) -> tuple[TensorLayout, Restore]:
        """What the side bytes say: the layout of the values that follow, and how to undo `apply` on them.

        Raises:
            PeerError: the bytes are malformed.

        """


class Coder(Stage):
    """The stage that turns values into bytes: the last one of a codec."""

    @abstractmethod
    def encode(self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator) -> bytes | memoryview:
        """The bytes of finite values, float32 of shape (layout.size,), none of which is beyond `largest`."""

    @abstractmethod
    def decode(self, reader: Reader, layout: TensorLayout, out: FloatVector | None) -> FloatVector:
        """The values, float32 of shape (layout.size,): `out` itself where it is given.

        Reads its own bytes and no more. Memory and time are bounded by `layout` alone, whatever the bytes say.

        Raises:
            PeerError: the bytes are malformed.

        """


def destination(out: FloatVector | None, size: int) -> FloatVector:
    """`out`, or a new vector of that size with undefined values."""
    return np.empty(size, np.float32) if out is None else out


def in_turn(tasks: Iterable[Task]) -> None:
    """`Spread` over one thread."""
    for task in tasks:
        task()


CHUNK = 1 << 18  # values of one task: NumPy does so many in far more time than it takes to start


def chunks(start: int, stop: int) -> Iterator[slice]:
    """From start to stop, in pieces of CHUNK."""
    return (slice(at, min(at + CHUNK, stop)) for at in range(start, stop, CHUNK))


class Reader:
    """A cursor over a body. Every read says what it may find; anything else is a PeerError that names the field.

    `spread` does what a coder has to do for parts of the values that do not overlap.
    """

    __slots__ = ("_at", "_body", "spread")

    def __init__(self, body: bytes | memoryview, spread: Spread = in_turn) -> None:
        self._body, self._at, self.spread = memoryview(body), 0, spread

    @property
    def remaining(self) -> int:
        """Bytes not yet read."""
        return len(self._body) - self._at

    def take(self, nbytes: int, what: str) -> memoryview:
        """The next bytes, as a view."""
        if not 0 <= nbytes <= self.remaining:
            raise PeerError(
                f"{what} takes {nbytes} bytes; the body has {len(self._body)} bytes, {self.remaining} from there on"
            )
        self._at += nbytes
        return self._body[self._at - nbytes : self._at]

    def peek(self, nbytes: int) -> memoryview:
        """Up to `nbytes` of what comes next, without reading it."""
        return self._body[self._at : self._at + nbytes]

    def byte(self, what: str, low: int, high: int) -> int:
        """One byte of that range."""
        return self._within(self.take(1, what)[0], what, low, high)

    def word(self, what: str) -> int:
        """An unsigned integer of 4 bytes."""
        number: int = struct.unpack("<I", self.take(4, what))[0]
        return number

    def varint(self, what: str, low: int, high: int) -> int:
        """An unsigned LEB128 integer of that range, in its shortest form."""
        number, self._at = wire.unpack_varint(self._body, self._at)
        return self._within(number, what, low, high)

    def array(self, what: str, count: int, dtype: str) -> NDArray[np.generic]:
        """`count` items as a read-only view, copied only where they are not aligned."""
        kind: np.dtype[np.generic] = np.dtype(dtype)
        data = self.take(count * kind.itemsize, what)
        return np.require(np.frombuffer(data, kind), requirements="A")

    def floats(self, what: str, count: int, low: float = -LARGEST, high: float = LARGEST) -> FloatVector:
        """`count` float32 numbers, each finite and from low to high."""
        numbers: FloatVector = self.array(what, count, "<f4").astype(np.float32)
        if not ((numbers >= low) & (numbers <= high)).all():
            raise PeerError(f"{what} must be finite and {low:g} to {high:g}")
        return numbers

    def bits(self, what: str, count: int, width: int) -> NDArray[np.uint8] | NDArray[np.uint32]:
        """`count` integers of 1 <= width <= 32 bits, as `vectors.pack_bits` packs them; uint8 up to 8 bits."""
        data = self.take(vectors.packed_bytes(count, width), what)
        try:
            unsigned = np.uint8 if width <= 8 else np.uint32
            return vectors.unpack_bits(np.frombuffer(data, np.uint8), count, width, unsigned)
        except ValueError as error:
            raise PeerError(f"{what}: {error}") from None

    def end(self) -> None:
        """Nothing may follow."""
        if self.remaining:
            raise PeerError(f"{self.remaining} bytes follow the last field of a body of {len(self._body)} bytes")

    def _within(self, number: int, what: str, low: int, high: int) -> int:
        if not low <= number <= high:
            raise PeerError(f"{what} is {number}, must be {low} to {high}")
        return number
