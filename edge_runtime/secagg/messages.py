"""The messages of a round, and their bounded binary form.

    header: version u8 | kind u8 | first 14 bytes of the round's config digest (zeros where no round is agreed on yet)
    body:   the fields in the order of the class; integers little-endian

Lists count their items in 4 bytes, at most the cohort, and are in strictly ascending order of client id: an id cannot
come twice. The header is 16 bytes long so that the words of a masked input, which come first, stay aligned. A message
of another round is refused by its header before anything in it is read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import lt
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import PeerError
from edge_runtime.secagg.config import HASH_BYTES, RoundConfig

VERSION = 1
KEY_BYTES = 32
SIGNATURE_BYTES = 64
SHARE_BYTES = 32  # of the seed, and of the mask key
SEALED_BYTES = 4 + 2 * SHARE_BYTES + 16  # index, the two shares, the AEAD's tag
MAX_REASON_BYTES = 300
MAX_CONFIG_BYTES = 2048

_HEADER = struct.Struct("<BB14s")
_COUNT = struct.Struct("<I")
Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Field:
    """How one field is written and read back; `largest(round)` bounds its bytes before any of them is read."""

    write: Callable[[Any], bytes | memoryview]
    read: Callable[[memoryview, RoundConfig | None], tuple[Any, memoryview]]
    largest: Callable[[RoundConfig | None], int]


def fixed(nbytes: int) -> Field:
    """That many bytes."""

    def read(data: memoryview, _: RoundConfig | None) -> tuple[bytes, memoryview]:
        if len(data) < nbytes:
            raise PeerError(f"a field of {nbytes} bytes, and {len(data)} are left")
        return bytes(data[:nbytes]), data[nbytes:]

    return Field(bytes, read, lambda _: nbytes)


def _config() -> Field:
    """A round's settings in their canonical bytes; all that is left."""

    def read(data: memoryview, _: RoundConfig | None) -> tuple[RoundConfig, memoryview]:
        return RoundConfig.parse(bytes(data)), data[:0]

    return Field(lambda config: config.canonical, read, lambda _: MAX_CONFIG_BYTES)


def pairs(nbytes: int) -> Field:
    """A mapping of client ids to so many bytes each."""
    item = struct.Struct(f"<Q{nbytes}s")

    def write(mapping: Mapping[int, bytes]) -> bytes:
        return _COUNT.pack(len(mapping)) + b"".join(item.pack(client, mapping[client]) for client in sorted(mapping))

    def read(data: memoryview, agreed: RoundConfig | None) -> tuple[dict[int, bytes], memoryview]:
        items, data = _counted(data, item, agreed)
        return dict(items), data

    return Field(write, read, lambda agreed: _COUNT.size + _clients(agreed) * item.size)


def ids() -> Field:
    """A set of client ids, as a tuple in ascending order."""
    item = struct.Struct("<Q")

    def write(clients: tuple[int, ...]) -> bytes:
        return struct.pack(f"<I{len(clients)}Q", len(clients), *sorted(clients))

    def read(data: memoryview, agreed: RoundConfig | None) -> tuple[tuple[int, ...], memoryview]:
        items, data = _counted(data, item, agreed)
        return tuple(client for (client,) in items), data

    return Field(write, read, lambda agreed: _COUNT.size + _clients(agreed) * item.size)


def _words() -> Field:
    """Exactly the round's uint64 words, as a read-only view of the message."""

    def read(data: memoryview, agreed: RoundConfig | None) -> tuple[Words, memoryview]:
        nbytes = _word_bytes(agreed)
        if len(data) < nbytes:
            raise PeerError(f"a masked input takes {nbytes} bytes, and {len(data)} are left")
        return np.frombuffer(data[:nbytes], "<u8"), data[nbytes:]

    # a view: the words are copied once, into the message
    return Field(lambda array: np.ascontiguousarray(array, "<u8").data.cast("B"), read, _word_bytes)


def _counted(data: memoryview, item: struct.Struct, agreed: RoundConfig | None) -> tuple[list[Any], memoryview]:
    if len(data) < _COUNT.size:
        raise PeerError("a list ends before its count")
    (count,) = _COUNT.unpack_from(data)
    end = _COUNT.size + count * item.size
    if count > _clients(agreed) or end > len(data):
        raise PeerError(f"a list of {count} items; the round has {_clients(agreed)} clients, the message {len(data)} B")
    items = list(item.iter_unpack(data[_COUNT.size : end]))
    ids = [item[0] for item in items]
    if not all(map(lt, ids, ids[1:])):
        raise PeerError("client ids must be in ascending order, each once")
    return items, data[end:]


def _clients(agreed: RoundConfig | None) -> int:
    return agreed.clients if agreed else 0


def _word_bytes(agreed: RoundConfig | None) -> int:
    return 8 * agreed.lanes.words if agreed else 0


@dataclass(frozen=True, slots=True)
class Setup:
    """Server to client: the round's public settings."""

    config: RoundConfig
    FIELDS: ClassVar = {"config": _config()}


@dataclass(frozen=True, slots=True)
class Advertise:
    """Client to server: two fresh public keys, signed by the device for this round and no other."""

    mask_key: bytes
    channel_key: bytes
    signature: bytes
    FIELDS: ClassVar = {
        "mask_key": fixed(KEY_BYTES),
        "channel_key": fixed(KEY_BYTES),
        "signature": fixed(SIGNATURE_BYTES),
    }

    @property
    def joined(self) -> bytes:
        """The three in one, as the roster holds them."""
        return self.mask_key + self.channel_key + self.signature

    @classmethod
    def split(cls, joined: bytes) -> Advertise:
        """The inverse of `joined`."""
        return cls(joined[:KEY_BYTES], joined[KEY_BYTES : 2 * KEY_BYTES], joined[2 * KEY_BYTES :])


@dataclass(frozen=True, slots=True)
class Roster:
    """Server to client: who advertised, with what; each client's three fields joined."""

    adverts: Mapping[int, bytes]
    FIELDS: ClassVar = {"adverts": pairs(2 * KEY_BYTES + SIGNATURE_BYTES)}


@dataclass(frozen=True, slots=True)
class Shares:
    """Client to server: a commitment to its seed, and for each neighbour the sealed shares of its two secrets."""

    commitment: bytes
    sealed: Mapping[int, bytes] = field(repr=False)
    FIELDS: ClassVar = {"commitment": fixed(HASH_BYTES), "sealed": pairs(SEALED_BYTES)}


@dataclass(frozen=True, slots=True)
class Routed:
    """Server to client: who shared, and what its neighbours among them sealed for it."""

    sharers: tuple[int, ...]
    sealed: Mapping[int, bytes] = field(repr=False)
    FIELDS: ClassVar = {"sharers": ids(), "sealed": pairs(SEALED_BYTES)}


@dataclass(frozen=True, slots=True)
class MaskedInput:
    """Client to server: its input under its masks, and the neighbours whose shares it could not open."""

    words: Words = field(repr=False)
    unopened: tuple[int, ...]
    FIELDS: ClassVar = {"words": _words(), "unopened": ids()}


@dataclass(frozen=True, slots=True)
class Survivors:
    """Server to client: whose inputs are in the sum, and whose masks have to be taken off it."""

    survivors: tuple[int, ...]
    dropped: tuple[int, ...]
    FIELDS: ClassVar = {"survivors": ids(), "dropped": ids()}


@dataclass(frozen=True, slots=True)
class Confirm:
    """Client to server: its signature under the list of survivors that it was shown."""

    signature: bytes
    FIELDS: ClassVar = {"signature": fixed(SIGNATURE_BYTES)}


@dataclass(frozen=True, slots=True)
class Quorum:
    """Server to client: its neighbours' signatures under the same list."""

    signatures: Mapping[int, bytes]
    FIELDS: ClassVar = {"signatures": pairs(SIGNATURE_BYTES)}


@dataclass(frozen=True, slots=True)
class Unmask:
    """Client to server: a share of the seed of each survivor, a share of the mask key of each that dropped."""

    seeds: Mapping[int, bytes] = field(repr=False)
    mask_keys: Mapping[int, bytes] = field(repr=False)
    FIELDS: ClassVar = {"seeds": pairs(SHARE_BYTES), "mask_keys": pairs(SHARE_BYTES)}


@dataclass(frozen=True, slots=True)
class Abort:
    """Either way: the sender takes no further part in this round."""

    reason: str
    FIELDS: ClassVar = {
        "reason": Field(
            lambda text: text.encode()[:MAX_REASON_BYTES],
            lambda data, _: (bytes(data).decode(errors="replace"), data[:0]),
            lambda _: MAX_REASON_BYTES,
        )
    }


Message = Setup | Advertise | Roster | Shares | Routed | MaskedInput | Survivors | Confirm | Quorum | Unmask | Abort
KINDS: dict[int, type[Any]] = {
    1: Setup, 2: Advertise, 3: Roster, 4: Shares, 5: Routed, 6: MaskedInput,
    7: Survivors, 8: Confirm, 9: Quorum, 10: Unmask, 11: Abort,
}  # fmt: skip
_KIND_OF = {kind: number for number, kind in KINDS.items()}


def encode(message: Message, agreed: RoundConfig | None) -> bytes:
    """The message's bytes, bound to the round; `agreed` is None for a Setup, and may be for an Abort."""
    header = _HEADER.pack(VERSION, _KIND_OF[type(message)], _tag(message, agreed))
    return b"".join([header, *(spec.write(getattr(message, name)) for name, spec in type(message).FIELDS.items())])


def kind_of(data: bytes) -> type[Any] | None:
    """The kind that a message says it is of, unread; None if there is no such kind."""
    return KINDS.get(data[1]) if len(data) >= _HEADER.size else None


def decode(data: bytes, agreed: RoundConfig | None) -> Message:
    """The message of these bytes.

    Raises:
        PeerError: malformed, of another version or round, an unknown kind, or longer than its kind can be.

    """
    if len(data) < _HEADER.size:
        raise PeerError(f"a message of {len(data)} bytes; its header alone takes {_HEADER.size}")
    version, number, tag = _HEADER.unpack_from(data)
    if version != VERSION:
        raise PeerError(f"a message of version {version}; this side speaks {VERSION}")
    kind = KINDS.get(number)
    if kind is None:
        raise PeerError(f"a message of unknown kind {number}; known are 1 to {len(KINDS)}")
    largest = _HEADER.size + sum(spec.largest(agreed) for spec in kind.FIELDS.values())
    if len(data) > largest:
        raise PeerError(f"{kind.__name__} of {len(data)} bytes; in this round it takes at most {largest}")
    if kind is not Setup and tag != _tag(None, agreed) and not (kind is Abort and not any(tag)):
        raise PeerError(f"{kind.__name__} of another round")
    body = memoryview(data)[_HEADER.size :]
    values = []
    for name, spec in kind.FIELDS.items():
        try:
            value, body = spec.read(body, agreed)
        except PeerError as error:
            raise PeerError(f"{kind.__name__}.{name}: {error}") from None
        values.append(value)
    if body:
        raise PeerError(f"{len(body)} bytes follow the last field of {kind.__name__}")
    message: Message = kind(*values)
    return message


def _tag(message: Message | None, agreed: RoundConfig | None) -> bytes:
    return bytes(14) if agreed is None or isinstance(message, Setup) else agreed.digest[:14]
