"""Keys of a client: X25519 pairs for one round, what is derived from them, and the Ed25519 key of its device.

    mask or channel key of u and v = HKDF-SHA256(X25519(sk_u, pk_v), no salt, info = label, lesser pk, greater pk)

with a pair of its own for each of the two labels (RFC 7748, RFC 5869). A channel carries one message each way under
ChaCha20-Poly1305 (RFC 8439). Device signatures (Ed25519, RFC 8032) and commitments (SHA-256) are over a label and its
fields, each with its length before it.

What is secret here shows nothing in repr, str or format, and is neither copied nor pickled. Python cannot promise that
it is gone from memory after `wipe`, nor is anything here in constant time but what OpenSSL does.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import string
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edge_runtime.errors import ConfigError, PeerError

KEY_BYTES = 32
HASH_BYTES = 32
SIGNATURE_BYTES = 64
TAG_BYTES = 16  # what a channel adds to a message

# The points whose order divides 8, on the curve and its twist: any secret times one of them is zero. X25519 ignores the
# top bit of a key and takes numbers from 2^255 - 19 on modulo that prime (RFC 7748 sections 5 and 6.1).
_PRIME = 2**255 - 19
_LOW_ORDER = frozenset(
    {
        *(0, 1, _PRIME - 1, _PRIME, _PRIME + 1),
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)

MASK, CHANNEL = b"hedgerow secagg 1 mask", b"hedgerow secagg 1 channel"
_HELLO = b"hedgerow secagg 1 hello"
_SEALED = b"hedgerow secagg 1 sealed"

Random = Callable[[int], bytes]


class _Guarded:
    """Neither shown, nor copied, nor pickled."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is secret: it is not pickled or copied")


class Secret(_Guarded):
    """Secret bytes. `reveal` is the one way to them, and `wipe` overwrites them."""

    __slots__ = ("_bytes",)

    def __init__(self, content: bytes) -> None:
        self._bytes = bytearray(content)

    @classmethod
    def draw(cls, random: Random = os.urandom) -> Secret:
        """32 fresh bytes, for a self mask."""
        return cls(_drawn(random))

    def reveal(self) -> bytes:
        if not self._bytes:
            raise ValueError("this secret was wiped")
        return bytes(self._bytes)

    def wipe(self) -> None:
        self._bytes[:] = bytes(len(self._bytes))
        self._bytes = bytearray()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._bytes, other._bytes)

    __hash__ = None  # type: ignore[assignment]  # a hash would be shown and compared in the open


class KeyPair(_Guarded):
    """An X25519 pair. Fresh for each round: `generate`; of a dropped client, from its shares: `restore`."""

    __slots__ = ("_key", "public")

    def __init__(self, secret: Secret) -> None:
        self._key: X25519PrivateKey | None = X25519PrivateKey.from_private_bytes(secret.reveal())
        self.public = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, random: Random = os.urandom) -> KeyPair:
        return cls(Secret.draw(random))

    @classmethod
    def restore(cls, secret: bytes, public: bytes) -> KeyPair:
        """The pair of 32 rebuilt bytes.

        Raises:
            PeerError: it is not the pair of `public`: a share was wrong.

        """
        if len(secret) != KEY_BYTES or (pair := cls(Secret(secret))).public != public:
            raise PeerError("a rebuilt secret key does not belong to the advertised public key; a share was wrong")
        return pair

    def secret(self) -> Secret:
        """What is shared among the neighbours."""
        return Secret(self._private().private_bytes_raw())

    def derive(self, peer: bytes, label: bytes) -> Secret:
        """32 bytes that this pair and the one of the public key `peer` have in common, for `MASK` or `CHANNEL`.

        Raises:
            PeerError: `peer` is no public key, or a point of low order, which would make the secret known.

        """
        if len(peer) != KEY_BYTES:
            raise PeerError(f"an X25519 public key has {KEY_BYTES} bytes, got {len(peer)}")
        own = self._private()
        try:
            agreed = own.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise PeerError("an X25519 public key of low order: nothing secret comes of it") from None
        info = label + min(self.public, peer) + max(self.public, peer)
        return Secret(HKDF(SHA256(), KEY_BYTES, None, info).derive(agreed))

    def wipe(self) -> None:
        self._key = None

    def _private(self) -> X25519PrivateKey:
        if self._key is None:
            raise ValueError("this key was wiped")
        return self._key


def check_public(public: bytes) -> None:
    """Refuse what `KeyPair.derive` would refuse, without a secret key and in a hundredth of its time.

    Raises:
        PeerError: `public` is no X25519 public key, or a point of low order.

    """
    if len(public) != KEY_BYTES:
        raise PeerError(f"an X25519 public key has {KEY_BYTES} bytes, got {len(public)}")
    if int.from_bytes(public, "little") % 2**255 in _LOW_ORDER:
        raise PeerError("an X25519 public key of low order: nothing secret comes of it")


@dataclass(frozen=True, slots=True)
class Context:
    """What every sealed message is bound to: the run, the round, and a hash of all that was agreed before."""

    run: int
    round: int
    transcript: bytes

    def __post_init__(self) -> None:
        if not (0 <= self.run < 2**64 and 0 <= self.round < 2**64 and len(self.transcript) == HASH_BYTES):
            raise ValueError(
                f"a run and a round are 0 to 2^64 - 1 and a transcript has {HASH_BYTES} bytes; "
                f"got run {self.run}, round {self.round} and {len(self.transcript)} bytes"
            )


class Channel(_Guarded):
    """One message from `own` to `peer` and one back, under their channel key of this round.

    Both directions have the same key, so the nonce holds the sender: 4 zero bytes and its id. A second message would
    use it again, which gives both away; `seal` refuses.
    """

    __slots__ = ("_aead", "_context", "_key", "_own", "_peer", "_sealed")

    def __init__(self, key: Secret, context: Context, own: int, peer: int, *, sealed: bool = False) -> None:
        if own == peer or not (0 <= own < 2**64 and 0 <= peer < 2**64):
            raise ValueError(f"the two ends of a channel have ids of 0 to 2^64 - 1 that differ, got {own} and {peer}")
        self._aead = ChaCha20Poly1305(key.reveal())
        self._key, self._context, self._own, self._peer = key, context, own, peer
        self._sealed = sealed

    def seal(self, message: bytes) -> bytes:
        """The ciphertext, `TAG_BYTES` longer than the message.

        Raises:
            ValueError: a message was sealed before.

        """
        if self._sealed:
            raise ValueError(f"client {self._own} already sealed a message to {self._peer}; a new round has a new key")
        self._sealed = True
        return self._aead.encrypt(_nonce(self._own), message, self._bound(self._own, self._peer))

    def open(self, ciphertext: bytes) -> bytes:
        """The peer's message.

        Raises:
            PeerError: it was changed, or sealed by or for another client, in another round, or after other agreements.

        """
        try:
            return self._aead.decrypt(_nonce(self._peer), ciphertext, self._bound(self._peer, self._own))
        except InvalidTag:
            raise PeerError(f"what client {self._peer} sent to {self._own} was changed or not meant for it") from None

    def secret(self) -> Secret:
        """Its key. A channel made of it once more must be told that its message is `sealed`."""
        return self._key

    def wipe(self) -> None:
        self._key.wipe()

    def _bound(self, source: int, destination: int) -> bytes:
        context = self._context
        ids = struct.pack("<4Q", context.run, context.round, source, destination)
        return statement(_SEALED, ids, context.transcript)


class DeviceKey(_Guarded):
    """The Ed25519 key of an enrolled device: outlives rounds, and signs what the device took part in."""

    __slots__ = ("_key", "public")

    def __init__(self, secret: Secret) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(secret.reveal())
        self.public = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, random: Random = os.urandom) -> DeviceKey:
        return cls(Secret.draw(random))

    def secret(self) -> Secret:
        """What the device keeps in its key file."""
        return Secret(self._key.private_bytes_raw())

    def sign(self, label: bytes, *fields: bytes) -> bytes:
        """64 bytes of signature over the `statement` of these."""
        return self._key.sign(statement(label, *fields))


def verify(public: bytes, signature: bytes, label: bytes, *fields: bytes) -> None:
    """Return if the device of `public` signed exactly this.

    Raises:
        PeerError: it did not, or `public` is no Ed25519 key.

    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, statement(label, *fields))
    except (InvalidSignature, ValueError):
        raise PeerError(f"a signature of {label.decode(errors='replace')!r} is not by the device it names") from None


def device_id(public: bytes) -> int:
    """The client id of a device: the first 8 bytes of its public key's SHA-256, little-endian."""
    return int.from_bytes(hashlib.sha256(public).digest()[:8], "little")


def sign_hello(device: DeviceKey, run: int, node: int) -> bytes:
    """The device's word that it is this node of this run: nobody else can give its public key as his own."""
    return device.sign(_HELLO, struct.pack("<QQ", run, node))


def verify_hello(public: bytes, signature: bytes, run: int, node: int) -> None:
    """Return if the device of `public` is that node; PeerError if not."""
    verify(public, signature, _HELLO, struct.pack("<QQ", run, node))


def parse_public_keys(text: str, where: str) -> tuple[bytes, ...]:
    """One key a line, as 64 hexadecimal digits; blank lines, and what follows a #, say nothing.

    Raises:
        ConfigError: names `where` and the line.

    """
    found: list[bytes] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not (word := line.partition("#")[0].strip()):
            continue
        if len(word) != 2 * KEY_BYTES or not set(word) <= set(string.hexdigits):
            raise ConfigError(f"{where}: line {number} is no public key of {2 * KEY_BYTES} hexadecimal digits")
        found.append(bytes.fromhex(word))
    return tuple(dict.fromkeys(found))


def commitment(secret: Secret, label: bytes, *fields: bytes) -> bytes:
    """32 bytes that bind to a secret of 32 random bytes without showing it: SHA-256 of the statement with it."""
    return hashlib.sha256(statement(label, *fields, secret.reveal())).digest()


def statement(label: bytes, *fields: bytes) -> bytes:
    """Label and fields as bytes, each with its length before it: no two lists give the same."""
    return b"".join(struct.pack("<I", len(part)) + part for part in (label, *fields))


def _nonce(sender: int) -> bytes:
    return struct.pack("<4xQ", sender)


def _drawn(random: Random) -> bytes:
    drawn = random(KEY_BYTES)
    if len(drawn) != KEY_BYTES:
        raise ValueError(f"the source of randomness gave {len(drawn)} bytes of {KEY_BYTES}")
    return drawn
