"""Which device this node is under secure aggregation, whom it trusts, and what its processor is good at."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from flwr.app import Context

from clients.key_file import read_key_file, write_key_file
from clients.records import SECURE, ContextStore
from clients.secure_config import SecureConfig
from edge_runtime.errors import ConfigError
from edge_runtime.secagg import Device, DeviceKey
from edge_runtime.secagg.keys import KEY_BYTES, Secret, device_id, parse_public_keys

MAX_LIST_BYTES = 8 << 20
_EPHEMERAL = "device-key"
_LOG = logging.getLogger(__name__)


def open_key(config: SecureConfig, context: Context) -> DeviceKey:
    """The key of `device-key`, made if the file is not there; without that setting one of this run's own."""
    if config.device_key:
        return _key_of(Path(config.device_key))
    store = ContextStore(context.state, SECURE)
    content = store.read(_EPHEMERAL, KEY_BYTES)
    if content is None:
        key = DeviceKey.generate()
        store.write(_EPHEMERAL, key.secret().reveal())
        return key
    return DeviceKey(Secret(content))


def open_device(config: SecureConfig, context: Context, listed: Sequence[bytes]) -> Device:
    """The node as a device, and of the public keys that the server lists those that it trusts."""
    if config.enrolled:
        trusted = frozenset(_enrolled(config.enrolled))
        listed = [key for key in listed if key in trusted]
    else:
        _warn_once()
    key = open_key(config, context)
    return Device(device_id(key.public), key, {device_id(public): public for public in listed}, config.policy)


def has_aes(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has AES instructions; False where it can't be known."""
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return False
    return re.search(r"^(flags|Features)\s*:.*\baes\b", text, re.MULTILINE) is not None


def _key_of(path: Path) -> DeviceKey:
    """The private key (Ed25519, PKCS #8, PEM) of a file that only its owner may read."""
    name = f"node config: device-key = {str(path)!r}"
    content = read_key_file(path, name, _make_key)
    try:
        key = load_pem_private_key(content, None)
    except (TypeError, ValueError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{name}: is no Ed25519 key in PEM without a passphrase")
    return DeviceKey(Secret(key.private_bytes_raw()))


def _make_key(path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    if not write_key_file(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())):
        return  # another process was first: its key stays
    public = private.public_key().public_bytes_raw().hex()
    path.with_name(path.name + ".pub").write_text(f"{public}\n")
    _LOG.info("a new device key is in %s; enrol its public key %s", path, public)


def _enrolled(path: str) -> tuple[bytes, ...]:
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_LIST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"node config: enrolled = {path!r}: {error.strerror or error}") from error
    if len(content) > MAX_LIST_BYTES:
        raise ConfigError(f"node config: enrolled = {path!r}: larger than {MAX_LIST_BYTES >> 20} MiB")
    return parse_public_keys(content.decode(errors="replace"), f"node config: enrolled = {path!r}")


@lru_cache(maxsize=1)
def _warn_once() -> None:
    _LOG.warning("no file of enrolled devices in the node config: the device keys that the server lists are believed")
