"""Ed25519 keys of a publisher, and files signed with them.

Two levels: the root key stays offline and signs one small statement, "this release key speaks for me until then"; the
release key signs manifests. Devices hold the root's public key alone. A release key that leaked is replaced by a
statement with a higher serial: a device that saw it takes none with a lower one.

A signature (RFC 8032) is over label + NUL + message, and its file names the key: {"key": id, "signature": hex}.
`cryptography` is loaded when a signature is made or checked, not before: it takes 8 MB.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.deploy.trust.digest import sha256_hex
from edge_runtime.deploy.trust.manifest import canonical, load_canonical
from edge_runtime.errors import ArtefactError, ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE, RELEASE, RELEASE_SIGNATURE = "manifest.sig", "release-key.json", "release-key.sig"
MAX_SIGNATURE_BYTES = 512
MAX_KEY_BYTES = 4096
MANIFEST_LABEL, RELEASE_LABEL = b"hedgerow artefact manifest 2", b"hedgerow release key 1"
PUBLIC_BYTES, SIGNATURE_BYTES = 32, 64


@dataclass(frozen=True, slots=True)
class ReleaseKey:
    """A root key's word: `public` may sign manifests until `expires` (seconds since 1970)."""

    public: bytes
    serial: int
    created: int
    expires: int

    def statement(self) -> bytes:
        """The text that the root signs."""
        return canonical(
            {"created": self.created, "expires": self.expires, "key": self.public.hex(), "serial": self.serial}
        )


def parse_release_key(content: bytes) -> ReleaseKey:
    """Read a statement.

    Raises:
        ArtefactError: it is malformed.

    """
    fields = load_canonical(content, RELEASE) if len(content) <= MAX_SIGNATURE_BYTES else {}
    numbers: list[Any] = [fields.get(name) for name in ("serial", "created", "expires")]
    if fields.keys() != {"created", "expires", "key", "serial"} or any(
        type(number) is not int or not 0 <= number < 2**53 for number in numbers
    ):
        raise ArtefactError(f"{RELEASE}: is no statement of a release key")
    return ReleaseKey(_hex(fields, "key", PUBLIC_BYTES, RELEASE), *numbers)


def key_id(public: bytes) -> str:
    """The first 8 bytes of the public key's SHA-256, in hex."""
    return sha256_hex(public)[:16]


def sign(private: Ed25519PrivateKey, label: bytes, message: bytes) -> bytes:
    """The signature file of `message`."""
    public = private.public_key().public_bytes_raw()
    return canonical({"key": key_id(public), "signature": private.sign(label + b"\0" + message).hex()})


def check_signature(public: bytes, label: bytes, message: bytes, signature: bytes, what: str) -> None:
    """Return if the key `public` signed exactly this.

    Raises:
        ArtefactError: it did not; `what` names the signature file.

    """
    fields = load_canonical(signature, what) if len(signature) <= MAX_SIGNATURE_BYTES else {}
    if fields.keys() != {"key", "signature"}:
        raise ArtefactError(f"{what}: is no signature file")
    raw = _hex(fields, "signature", SIGNATURE_BYTES, what)
    if fields["key"] != key_id(public):
        raise ArtefactError(f"{what}: is by the key {fields['key']!r}, not by {key_id(public)}")
    if not _verified(public, raw, label + b"\0" + message):
        raise ArtefactError(f"{what}: does not fit what it stands beside; that was changed, or never signed")


def _verified(public: bytes, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def new_key(path: Path) -> bytes:
    """Write a new private key (PEM, for its owner alone) to `path`, its public half to `path`.pub; returns that half.

    Raises:
        ConfigError: there is a key already; none is ever overwritten.

    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private = Ed25519PrivateKey.generate()
    content = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = private.public_key().public_bytes_raw()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        path.with_name(path.name + ".pub").write_text(f"{public.hex()}\n")
    except FileExistsError as error:
        raise ConfigError(f"{path}: there is a key already; it is not overwritten") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error
    return public


def read_private(path: Path) -> Ed25519PrivateKey:
    """The key of a PEM file that only its owner may read.

    Raises:
        ConfigError: it is missing, readable by others, or no Ed25519 key.

    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        with path.open("rb") as file:
            mode, content = os.fstat(file.fileno()).st_mode, file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    if mode & 0o077:
        raise ConfigError(f"{path}: others may read it; chmod 600 it")
    try:
        key: Any = load_pem_private_key(content, None)
    except (TypeError, ValueError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: is no Ed25519 key in PEM without a passphrase")
    return key


def public_key(given: bytes | str | Path) -> bytes:
    """A public key from its 32 bytes, its 64 hex digits, or a file that holds those.

    Raises:
        ConfigError: it is none of them.

    """
    if isinstance(given, bytes):
        text = given.hex()
    elif len(str(given)) == 2 * PUBLIC_BYTES and not Path(given).exists():
        text = str(given)
    else:
        try:
            with Path(given).open("rb") as file:
                text = file.read(MAX_KEY_BYTES).decode(errors="replace").strip()
        except OSError as error:
            raise ConfigError(f"{given}: cannot be read ({error.strerror}); a public key is needed") from error
    try:
        public = bytes.fromhex(text)
    except ValueError:
        public = b""
    if len(public) != PUBLIC_BYTES:
        raise ConfigError(f"{str(given)[:100]}: is no public key; give the .pub file, 64 hex digits")
    return public


def _hex(fields: Mapping[str, Any], name: str, nbytes: int, what: str) -> bytes:
    value = fields[name]
    try:
        raw = bytes.fromhex(value) if type(value) is str and len(value) == 2 * nbytes else b""
    except ValueError:
        raw = b""
    if raw.hex() != value:
        raise ArtefactError(f"{what}: {name} must be {2 * nbytes} hex digits")
    return raw
