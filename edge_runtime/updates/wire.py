r"""The envelope around every encoded update or model, version 1. All integers are little-endian.

    offset  bytes  field
    0       4      magic "HGR\x01", the last byte being the version
    4       1      number of codecs, 1..8
    5       ...    per codec: one length byte (1..32), then its name in printable ASCII
    +0      16     digest of the tensor layout (delta.TensorLayout.digest)
    +16     4      round, unsigned
    +20     8      body length, unsigned
    ...     0-7    zero bytes up to a multiple of 8, so that values in the body are aligned
    ...     ...    body, exactly to the end of the payload

Nothing here allocates by a length that the other side named: lengths are compared with the bytes at hand.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from edge_runtime.errors import PeerError

STYPE = "hedgerow.update.v1"  # how Flower labels the one opaque Array that carries these bytes

MAGIC = b"HGR\x01"
_TAIL = struct.Struct("<16sIQ")
_MAX_CODECS, _MAX_NAME, _ALIGN = 8, 32, 8


@dataclass(frozen=True, slots=True)
class Envelope:
    """A parsed payload: who encoded it how, for which layout and round, and the codec's own bytes."""

    codecs: tuple[str, ...]
    layout: bytes
    round: int
    body: memoryview


def pack(codecs: tuple[str, ...], layout: bytes, round_number: int, body: bytes | memoryview) -> bytes:
    """The payload bytes of one update."""
    names = [name.encode("ascii") for name in codecs]
    if not 1 <= len(names) <= _MAX_CODECS or not all(1 <= len(name) <= _MAX_NAME for name in names):
        raise ValueError(f"codecs = {codecs!r}: must be 1 to {_MAX_CODECS} names of 1 to {_MAX_NAME} characters")
    listed = b"".join(bytes([len(name)]) + name for name in names)
    header = MAGIC + bytes([len(names)]) + listed + _TAIL.pack(layout, round_number, len(body))
    return b"".join((header, bytes(-len(header) % _ALIGN), body))


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
    if len(view) < at + _TAIL.size:
        raise PeerError(f"payload ends inside its header, after {len(view)} bytes")
    layout, round_number, length = _TAIL.unpack_from(view, at)
    at += _TAIL.size
    padding = bytes(view[at : at + -at % _ALIGN])
    body = view[at + len(padding) :]
    if padding != bytes(-at % _ALIGN):
        raise PeerError(f"payload has other than zero bytes as padding at byte {at}")
    if length != len(body):
        raise PeerError(f"payload says its body has {length} bytes, {len(body)} are there")
    return Envelope(tuple(codecs), layout, round_number, body)
