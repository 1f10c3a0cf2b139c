"""What a Program file and a `.hedgerow` model have in common: a prelude, a canonical JSON header, and aligned bytes.

Prelude of 64 bytes: eight of magic, the header's length (u64, little-endian), the CRC-32 of everything behind the
prelude (u32), 44 zero bytes. The header is JSON with sorted keys and no spaces, so equal contents are equal files; the
blob behind it begins on a 64-byte border. CRC and not SHA-256: it finds damage, not malice, and OpenSSL would cost a
device 3.7 MiB.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from edge_runtime.errors import EdgeRuntimeError

T = TypeVar("T")
PRELUDE, ALIGNMENT = 64, 64
MAX_HEADER_BYTES = 16 << 20


def sealed(magic: bytes, header: Mapping[str, Any], blob: bytes | bytearray) -> bytes:
    """The file."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    body = text + bytes(-len(text) % ALIGNMENT) + bytes(blob)
    checksum = zlib.crc32(body).to_bytes(4, "little")
    return magic + len(text).to_bytes(8, "little") + checksum + bytes(PRELUDE - 20) + body


def opened(
    data: bytes, magic: bytes, version: int, what: tuple[str, str], error: type[EdgeRuntimeError]
) -> tuple[dict[str, Any], memoryview]:
    """Header and blob of a file whose checksum holds; `what` it is, in full and in short, for errors of that type.

    Bounded in time and memory by the length of `data`.
    """
    if len(data) < PRELUDE or data[:8] != magic:
        raise error(f"not a {what[0]}")
    length = int.from_bytes(data[8:16], "little")
    if length > min(MAX_HEADER_BYTES, len(data) - PRELUDE) or any(data[20:PRELUDE]):
        raise error("damaged: its prelude does not fit its length")
    body = memoryview(data)[PRELUDE:]
    if zlib.crc32(body) != int.from_bytes(data[16:20], "little"):
        raise error("damaged: its checksum does not hold")
    try:
        header = json.loads(bytes(body[:length]), parse_constant=_not_finite)
    except (ValueError, RecursionError) as cause:
        raise error("malformed header: not JSON") from cause
    if not isinstance(header, dict) or header.get("version") != version:
        raise error(f"not a {what[1]} of version {version}; make it again with this release")
    return header, body[min(len(body), length + -length % ALIGNMENT) :]


def parsed(read: Callable[..., T], header: dict[str, Any], blob: memoryview, error: type[EdgeRuntimeError]) -> T:
    """What `read` makes of the two; whatever it stumbles over becomes an error of that type."""
    try:
        return read(header, blob)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as cause:
        if isinstance(cause, error):
            raise
        raise error(f"malformed header: {type(cause).__name__}: {str(cause)[:200]}") from cause


@dataclass(frozen=True, slots=True)
class Fields:
    """Reads a header's values: each is of the type and in the range that is asked for, or an error of that type."""

    error: type[EdgeRuntimeError]
    max_text: int

    def integer(self, value: Any, low: int, high: int) -> int:
        kind = isinstance(value, int) and not isinstance(value, bool)
        return int(self._checked(kind and low <= value <= high, value, f"a whole number from {low} to {high}"))

    def number(self, value: Any) -> float:
        kind = isinstance(value, int | float) and not isinstance(value, bool)
        return float(self._checked(kind and math.isfinite(value), value, "a finite number"))

    def text(self, value: Any) -> str:
        kind = isinstance(value, str) and len(value) <= self.max_text and "\0" not in value
        return str(self._checked(kind, value, "a short text"))

    def items(self, value: Any, most: int) -> list[Any]:
        return list(self._checked(isinstance(value, list) and len(value) <= most, value, f"a list of at most {most}"))

    def _checked(self, condition: bool, value: Any, what: str) -> Any:
        if not condition:
            raise self.error(f"malformed header: {str(value)[:80]!r} is not {what}")
        return value


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is no JSON")
