"""FlatBuffers from anywhere: every offset is checked before it is followed, and nothing is copied.

https://flatbuffers.dev/internals. A table starts with the distance back to its vtable: u16 sizes, then for each field
its u16 offset in the table, 0 for one that is not there. Vectors, texts and tables are reached by u32 offsets forward.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ArtefactError

MAX_FIELDS = 64  # of one table; many tables may share a description of it
_U32, _I32, _U16 = struct.Struct("<I"), struct.Struct("<i"), struct.Struct("<H")


class Table:
    """One table; fields are told by their number in the schema."""

    __slots__ = ("_content", "_fields", "_start", "what")

    def __init__(self, content: bytes, start: int, what: str) -> None:
        self._content, self._start, self.what = content, start, what
        vtable = start - self._read(_I32, start)
        size, table_size = self._read(_U16, vtable), self._read(_U16, vtable + 2)
        if size < 4 or size % 2 or vtable + size > len(content) or start + table_size > len(content):
            raise ArtefactError(f"{what}: a table reaches outside the file")
        if size > 4 + 2 * MAX_FIELDS:
            raise ArtefactError(f"{what}: a table of more than {MAX_FIELDS} fields")
        self._fields = struct.unpack_from(f"<{size // 2 - 2}H", content, vtable + 4)
        if max(self._fields, default=0) >= max(table_size, 1):
            raise ArtefactError(f"{what}: a field lies outside its table")

    def only(self, *numbers: int) -> None:
        """Refuse a table that has any other field."""
        others = [number for number, offset in enumerate(self._fields) if offset and number not in numbers]
        if others:
            raise ArtefactError(f"{self.what}: has the field {others[0]}, which no model here needs")

    def has(self, number: int) -> bool:
        """Whether the field is there."""
        return number < len(self._fields) and self._fields[number] != 0

    def number(self, number: int, code: str, default: int = 0) -> int:
        """A whole number; `code` is that of `struct`, without its byte order."""
        if not self.has(number):
            return default
        return self._read(struct.Struct(f"<{code}"), self._start + self._fields[number])

    def numbers(self, number: int, dtype: str) -> NDArray[np.generic]:
        """A vector of scalars, empty if it is not there."""
        at, count = self._vector(number, np.dtype(dtype).itemsize)
        found: NDArray[np.generic] = np.frombuffer(self._content, dtype, count, at) if count else np.zeros(0, dtype)
        return found

    def table(self, number: int, what: str) -> Table | None:
        """Another table."""
        return Table(self._content, self._target(number), what) if self.has(number) else None

    def tables(self, number: int, what: str, most: int) -> Iterator[Table]:
        """A vector of tables."""
        at, count = self._vector(number, 4)
        if count > most:
            raise ArtefactError(f"{self.what}: more than {most} of {what}")
        for place in range(at, at + 4 * count, 4):
            yield Table(self._content, place + self._read(_U32, place), what)

    def _vector(self, number: int, itemsize: int) -> tuple[int, int]:
        if not self.has(number):
            return 0, 0
        at = self._target(number)
        count = self._read(_U32, at)
        if count > (len(self._content) - at - 4) // itemsize:
            raise ArtefactError(f"{self.what}: a vector reaches outside the file")
        return at + 4, count

    def _target(self, number: int) -> int:
        place = self._start + int(self._fields[number])
        return place + self._read(_U32, place)

    def _read(self, kind: struct.Struct, at: int) -> int:
        if not 0 <= at <= len(self._content) - kind.size:
            raise ArtefactError(f"{self.what}: an offset leads outside the file")
        return int(kind.unpack_from(self._content, at)[0])


def root(content: bytes, identifier: bytes, what: str) -> Table:
    """The table that a file starts from.

    Raises:
        ArtefactError: it is another kind of file.

    """
    if len(content) < 8 or content[4:8] != identifier:
        raise ArtefactError(f"{what}: is no such file")
    return Table(content, _U32.unpack_from(content)[0], what)
