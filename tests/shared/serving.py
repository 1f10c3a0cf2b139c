"""A real SuperLink behind our doors, and a real `hedgerow serve`, on loopback."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from server.serve.bundle import build
from server.serve.children import flower, listening
from server.serve.config import CertsConfig, DashboardConfig, ServeConfig
from server.serve.control import Control
from server.serve.processes import Child


@dataclass(frozen=True)
class SuperLink:
    """`inner` is the address of the door on loopback, `public` that of the door for devices."""

    child: Child
    control: Control
    inner: str
    public: str
    token: str


@contextlib.contextmanager
def running_superlink(state: Path, files: tuple[Path, Path] | None = None) -> Iterator[SuperLink]:
    """With TLS if there are a certificate and its key; no SuperExec, so that no run ever begins."""
    public, inner = listening("127.0.0.1", free_port()), listening("127.0.0.1", 0)
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in (inner, public)]
    token, secret = secrets.token_urlsafe(32), state / "superexec.secret"
    secret.write_bytes(secrets.token_bytes(32))
    config = ServeConfig(
        host="127.0.0.1", insecure=files is None, certs=CertsConfig(), dashboard=DashboardConfig(enabled=False)
    )
    child, _ = flower(config, state, addresses[0], token, secret, files, public, inner)
    control = Control(addresses[0], token)
    try:
        child.start(time.monotonic())
        wait_for(control.healthy)
        yield SuperLink(child, control, *addresses, token)
    finally:
        control.close()
        child.stop()
        public.close()
        inner.close()


@cache
def bundle() -> bytes:
    """What `hedgerow serve` hands to its SuperLink."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Flower's builder, of a name in pathspec
        return build()


def wait_for(true, seconds: float = 60.0) -> None:  # type: ignore[no-untyped-def]
    """Until `true()` is; TimeoutError after that many seconds."""
    until_s = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until_s:
            raise TimeoutError(f"not so within {seconds:g} s: {true}")
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
