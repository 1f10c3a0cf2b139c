"""Protocol Buffers from anywhere, read no further than the bytes go: fields by number, nothing else.

https://protobuf.dev/programming-guides/encoding. A message is a run of (tag, value); a value is a varint, 4 or 8 bytes,
or a length and that many bytes. Nothing is copied; a nested message is a view, read by another call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from enum import Enum

from edge_runtime.errors import ArtefactError

MAX_FIELDS = 200_000  # of one message
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # how a value is written
_LENGTHS = {_EIGHT: 8, _FOUR: 4}


class Kind(Enum):
    """What stands in a field, and whether more than once."""

    NUMBER = "number"
    FLOAT = "float"
    ONE = "one"  # bytes, a text or a message
    MANY = "many"
    NUMBERS = "numbers"  # packed or one by one
    FLOATS = "floats"


_WIRE = {
    Kind.NUMBER: {_VARINT}, Kind.FLOAT: {_FOUR}, Kind.ONE: {_BYTES}, Kind.MANY: {_BYTES},
    Kind.NUMBERS: {_VARINT, _BYTES}, Kind.FLOATS: {_FOUR, _EIGHT, _BYTES},
}  # fmt: skip

Schema = Mapping[int, tuple[str, Kind]]


class Message:
    """The fields of one message, by the names of its schema."""

    def __init__(self, content: memoryview, schema: Schema, what: str) -> None:
        self.what = what
        self._numbers: dict[str, list[int]] = defaultdict(list)
        self._bytes: dict[str, list[memoryview]] = defaultdict(list)
        for count, (number, wire, value) in enumerate(fields(content, what)):
            if number not in schema or count >= MAX_FIELDS:
                raise ArtefactError(f"{what}: has the field {number}, which no model here needs")
            name, kind = schema[number]
            if wire not in _WIRE[kind]:
                raise ArtefactError(f"{what}: {name} is not encoded as it must be")
            if kind in (Kind.NUMBER, Kind.FLOAT, Kind.ONE) and (name in self._numbers or name in self._bytes):
                # Parsers join the two, or take the last: what is checked must be what is run.
                raise ArtefactError(f"{what}: has {name} twice")
            if isinstance(value, int):
                self._numbers[name].append(value)
            else:
                self._bytes[name].append(value)

    def number(self, name: str, default: int = 0) -> int:
        """A signed number."""
        found = self._numbers.get(name)
        return _signed(found[0]) if found else default

    def numbers(self, name: str) -> list[int]:
        """Signed numbers, packed or not."""
        found = list(self._numbers.get(name, ()))
        for packed in self._bytes.get(name, ()):
            at = 0
            while at < len(packed):
                value, at = _varint(packed, at, self.what)
                found.append(value)
        return [_signed(value) for value in found]

    def count(self, name: str, width: int = 0) -> int:
        """How many numbers stand there, without reading them; `width` is that of floats, 0 for varints."""
        packed = self._bytes.get(name, ())
        if width:
            return sum(len(one) for one in packed) // width
        return len(self._numbers.get(name, ())) + sum(sum(byte < 128 for byte in one) for one in packed)

    def text(self, name: str) -> str:
        """A text, "" if it is not there."""
        found = self._bytes.get(name)
        return _text(found[0], self.what) if found else ""

    def texts(self, name: str) -> list[str]:
        """All texts of that name."""
        return [_text(one, self.what) for one in self._bytes.get(name, ())]

    def content(self, name: str) -> memoryview | None:
        """Bytes, None if they are not there."""
        found = self._bytes.get(name)
        return found[0] if found else None

    def messages(self, name: str, schema: Schema) -> list[Message]:
        """All messages of that name."""
        return [Message(one, schema, f"{self.what}: {name}") for one in self._bytes.get(name, ())]

    def __contains__(self, name: str) -> bool:
        return name in self._numbers or name in self._bytes


def fields(content: memoryview, what: str) -> Iterator[tuple[int, int, int | memoryview]]:
    """Number, wire type and value of each field of a message: varints as int, all else as bytes.

    Raises:
        ArtefactError: `content` is no message.

    """
    at = 0
    while at < len(content):
        tag, at = _varint(content, at, what)
        number, wire = tag >> 3, tag & 7
        if not number:
            raise ArtefactError(f"{what}: has a field of number 0")
        if wire == _VARINT:
            value, at = _varint(content, at, what)
            yield number, wire, value
            continue
        length, at = _varint(content, at, what) if wire == _BYTES else (_LENGTHS.get(wire, -1), at)
        if not 0 <= length <= len(content) - at:
            raise ArtefactError(f"{what}: field {number} is cut short or of no known type")
        yield number, wire, content[at : at + length]
        at += length


def _varint(content: memoryview, at: int, what: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            break
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64:
                break
            return value, at
    raise ArtefactError(f"{what}: a number is cut short or too long")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _text(content: memoryview, what: str) -> str:
    try:
        return bytes(content).decode()
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{what}: a text is not UTF-8") from error
