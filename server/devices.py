"""Keys by which the server knows its devices: EC P-384 pairs in OpenSSH's format, which is what SuperNodes take."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge_runtime.errors import ConfigError
from edge_runtime.files import write_atomically

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_MAX_KEY_BYTES = 8192
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """A public key. `pem` is it as Flower keeps it, `fingerprint` as `ssh-keygen -l` prints it."""

    pem: bytes
    fingerprint: str


def check_name(name: str, what: str = "device") -> str:
    """The name; ConfigError if it is not one that can be a file's, too."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} name {name!r}: must be 1 to 63 letters, digits, '.', '_' or '-', no '.' or '-' first"
        )
    return name


def make_key(path: Path, comment: str) -> DeviceKey:
    """A new pair: the private key at `path`, for its owner alone, and the public one beside it with `.pub` added.

    Raises:
        ConfigError: either file is there already, or can't be written.

    """
    public = path.with_name(path.name + ".pub")
    for there in (path, public):
        if there.exists():
            raise ConfigError(f"{there}: is there already; a device's key is not overwritten")
    key = ec.generate_private_key(ec.SECP384R1())
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, [content], mode=0o600)
        write_atomically(public, [line, b" ", comment.encode(), b"\n"], mode=0o644)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from error
    return _device_key(key.public_key())


def read_key(path: Path) -> DeviceKey:
    """A public key from an OpenSSH or PEM file.

    Raises:
        ConfigError: it can't be read, holds a private key, or one that is on no NIST curve.

    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    if b"PRIVATE KEY" in content:
        raise ConfigError(f"{path}: is a private key, which stays on its device; give {path.name}.pub")
    try:
        if content.lstrip().startswith(b"-----"):
            key = serialization.load_pem_public_key(content)
        else:
            key = serialization.load_ssh_public_key(content.strip())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: is no public key of OpenSSH or PEM ({error})") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise ConfigError(
            f"{path}: must be an elliptic-curve key on {', '.join(_CURVES)}; `ssh-keygen -t ecdsa -b 384`"
        )
    return _device_key(key)


def _device_key(key: ec.EllipticCurvePublicKey) -> DeviceKey:
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return DeviceKey(pem, "SHA256:" + base64.b64encode(digest).decode().rstrip("="))
