"""`hedgerow join`: this device takes part in the runs of a SuperLink, as one process that keeps running."""

from __future__ import annotations

import argparse
import logging
import signal
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.key_file import read_key_file, write_key_file
from edge_runtime.config import flatten_tree
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

KEY, NODE, ROUNDS = "device.key", "node-id", "rounds"  # in the state folder
_SETTINGS = ("superlink", "ca", "insecure", "state", "key")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What `hedgerow join` was told; `node` is Flower's node config."""

    superlink: str
    ca: Path | None
    insecure: bool
    state: Path
    key: Path
    node: Mapping[str, str | int | float | bool]


def join_command(parser: argparse.ArgumentParser) -> None:
    """Let this device take part in the runs of a server; keeps running."""
    parser.add_argument("--config", metavar="FILE.toml", help="the settings below as keys, node settings under [node]")
    parser.add_argument("--superlink", metavar="HOST:PORT", help="the server's address for devices")
    parser.add_argument("--ca", metavar="FILE", help="certificate that the server's must lead to (default: system's)")
    parser.add_argument("--insecure", action="store_true", help="plain HTTP; to this machine alone")
    parser.add_argument("--state", metavar="DIR", help="folder of this device's own (default: ~/.hedgerow)")
    parser.add_argument("--key", metavar="FILE", help=f"this device's key (default: {KEY} in the state folder)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a node setting, such as data-path=/srv/data"
    )
    parser.set_defaults(run=_join)


def _join(options: argparse.Namespace) -> int:
    settings = read_settings(options)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # Imported here: a wrong setting needs no second of flwr to be told.
    from clients.agent import Agent
    from clients.app import app
    from clients.superlink import SuperLink

    key = open_key(settings.key)
    link = SuperLink(settings.superlink, key, ca=settings.ca, insecure=settings.insecure)
    # A node's id belongs to one key at one server.
    path = settings.state / f"{NODE}-{settings.superlink.replace('/', '_')}"
    agent = Agent(link, app, settings.node, known=_known(path), remember=lambda node: _remember(path, node))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    try:
        agent.run()
    finally:
        link.close()
    return 0


def read_settings(options: argparse.Namespace) -> Settings:
    """From the command line and, below it, the file that it names.

    Raises:
        ConfigError: no server, an unknown key, or plain HTTP to another machine.

    """
    values: dict[str, Any] = {}
    node: dict[str, Any] = {}
    if options.config:
        path = Path(options.config)
        try:
            table = tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read as TOML ({error})") from error
        node = flatten_tree(table.pop("node", {}))
        if unknown := sorted(set(table) - set(_SETTINGS)):
            raise ConfigError(
                f"{path}: {unknown[0]}: no such key; there are {', '.join(_SETTINGS)} and the table [node]"
            )
        values = table
    given = {name: getattr(options, name) for name in _SETTINGS if getattr(options, name)}
    values |= given
    node |= dict(map(_setting, options.set))
    address = str(values.get("superlink", ""))
    host = address.rpartition(":")[0].strip("[]")
    if not host:
        raise ConfigError(f"--superlink {address!r}: give the server's HOST:PORT")
    insecure = bool(values.get("insecure", False))
    if insecure and not _is_loopback(host):
        raise ConfigError(f"--insecure: only to this machine, and {host} may be another; give --ca")
    if insecure and values.get("ca"):
        raise ConfigError("--insecure: there is nothing to check with --ca over plain HTTP; give one of them")
    state = Path(str(values.get("state", "~/.hedgerow"))).expanduser()
    if "state-path" not in node:
        node["state-path"] = str(state / ROUNDS)
    return Settings(
        address,
        Path(str(values["ca"])).expanduser() if values.get("ca") else None,
        insecure,
        state,
        Path(str(values.get("key") or state / KEY)).expanduser(),
        node,
    )


def open_key(path: Path) -> EllipticCurvePrivateKey:
    """The device's key (EC P-384, OpenSSH format, as Flower's node authentication takes), made if it is not there.

    Raises:
        ConfigError: others may read it, or it is no such key.

    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    content = read_key_file(path, f"--key {path}", _make_key)
    try:
        key = load_ssh_private_key(content, None)
    except (TypeError, ValueError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"--key {path}: is no elliptic-curve key in OpenSSH's format without a passphrase")
    return key


def _make_key(path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    private = ec.generate_private_key(ec.SECP384R1())
    if not write_key_file(path, private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())):
        return  # another process was first: its key stays
    public = path.with_name(f"{path.name}.pub")
    public.write_bytes(private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")
    _LOG.info("a new device key is in %s; enrol it on the server: hedgerow devices enrol NAME %s", path, public)


def _known(path: Path) -> int:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return 0


def _remember(path: Path, node_id: int) -> None:
    if _known(path) != node_id:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_text(str(node_id), "ascii")
        temporary.replace(path)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {text!r}: must be of the form key=value")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
