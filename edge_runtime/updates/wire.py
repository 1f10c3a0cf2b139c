r"""The envelope around every encoded update or model, version 2. All integers are little-endian.

    offset  bytes  field
    0       4      magic "HGR\x02", the last byte being the version
    4       1      number of codec stages, 1..8
    5       ...    per stage: one length byte (1..32), then its name in printable ASCII
    +0      8      digest of the tensor layout (delta.TensorLayout.digest)
    +8      4      round, unsigned
    +12     1-9    body length, unsigned LEB128 in its shortest form
    ...     0-3    zero bytes up to a multiple of 4, so that float32 values in the body are aligned
    ...     ...    body, exactly to the end of the payload

The body is each transform's side bytes in order, then the coder's; each stage's module says what they are.
Nothing here allocates by a length that the other side named: lengths are compared with the bytes at hand.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from edge_runtime.errors import PeerError

STYPE = "hedgerow.update.v2"  # how Flower labels the one opaque Array that carries these bytes

MAGIC = b"HGR\x02"
DIGEST_BYTES = 8
_FIXED = struct.Struct(f"<{DIGEST_BYTES}sI")
_MAX_CODECS, _MAX_NAME, _MAX_VARINT, _ALIGN = 8, 32, 9, 4


@dataclass(frozen=True, slots=True)
class Envelope:
    """A parsed payload: who encoded it how, for which layout and round, and the codec's own bytes."""

    codecs: tuple[str, ...]
    layout: bytes
    round: int
    body: memoryview


def pack(codecs: tuple[str, ...], layout: bytes, round_number: int, body: bytes | memoryview) -> bytes:
    """The payload bytes of one update."""
    return b"".join((_header(codecs, layout, round_number, len(body)), body))


def envelope_bytes(codecs: tuple[str, ...], body_bytes: int) -> int:
    """How many bytes `pack` puts before a body of that length."""
    return len(_header(codecs, bytes(DIGEST_BYTES), 0, body_bytes))


def _header(codecs: tuple[str, ...], layout: bytes, round_number: int, body_bytes: int) -> bytes:
    names = [name.encode("ascii") for name in codecs]
    if not 1 <= len(names) <= _MAX_CODECS or not all(1 <= len(name) <= _MAX_NAME for name in names):
        raise ValueError(f"codecs = {codecs!r}: must be 1 to {_MAX_CODECS} names of 1 to {_MAX_NAME} characters")
    if len(layout) != DIGEST_BYTES:
        raise ValueError(f"a layout's digest has {DIGEST_BYTES} bytes, got {len(layout)}")
    listed = b"".join(bytes([len(name)]) + name for name in names)
    header = MAGIC + bytes([len(names)]) + listed + _FIXED.pack(layout, round_number) + pack_varint(body_bytes)
    return header + bytes(-len(header) % _ALIGN)


def unpack(payload: bytes | memoryview) -> Envelope:
    """Parse a payload without copying its body.

    Raises:
        PeerError: not our magic or version, a length out of bounds, missing or trailing bytes.

    """
    view = memoryview(payload)
    if bytes(view[:4]) != MAGIC:
        raise PeerError(f"payload of {len(view)} bytes does not start with {MAGIC!r}")
    if len(view) < 5 or not 1 <= view[4] <= _MAX_CODECS:
        raise PeerError(f"payload names no codec, or more than {_MAX_CODECS}")
    at = 5
    codecs = []
    for _ in range(view[4]):
        length = view[at] if at < len(view) else 0
        name = bytes(view[at + 1 : at + 1 + length])
        if not 1 <= length <= _MAX_NAME or len(name) != length or not name.isascii() or not name.decode().isprintable():
            raise PeerError(f"payload has a malformed codec name at byte {at}")
        codecs.append(name.decode("ascii"))
        at += 1 + length
    if len(view) < at + _FIXED.size:
        raise PeerError(f"payload ends inside its header, after {len(view)} bytes")
    layout, round_number = _FIXED.unpack_from(view, at)
    length, at = unpack_varint(view, at + _FIXED.size)
    padding = bytes(view[at : at + -at % _ALIGN])
    body = view[at + len(padding) :]
    if padding != bytes(-at % _ALIGN):
        raise PeerError(f"payload has other than zero bytes as padding at byte {at}")
    if length != len(body):
        raise PeerError(f"payload says its body has {length} bytes, {len(body)} are there")
    return Envelope(tuple(codecs), layout, round_number, body)


def pack_varint(number: int) -> bytes:
    """Unsigned LEB128 of 0 <= number < 2^63: seven bits a byte, lowest first, the top bit set on all but the last.

    >>> pack_varint(300).hex()
    'ac02'
    """
    if not 0 <= number < 1 << 7 * _MAX_VARINT:
        raise ValueError(f"a varint is 0 to 2^63 - 1, got {number}")
    groups = [number >> shift & 0x7F for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def unpack_varint(view: memoryview, at: int) -> tuple[int, int]:
    """The number that starts at byte `at` and where the next field does; PeerError unless in its shortest form."""
    number = 0
    for place, byte in enumerate(view[at : at + _MAX_VARINT]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            if byte == 0 and place > 0:
                break
            return number, at + place + 1
    raise PeerError(f"payload has a malformed length at byte {at}")
