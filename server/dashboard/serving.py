"""The dashboard's web server: uvicorn, bounded and quiet."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from edge_runtime.errors import ConfigError
from server.dashboard.app import make_app
from server.dashboard.auth import Tokens
from server.dashboard.guard import MOST_HEADERS, MOST_URL


@dataclass(frozen=True, slots=True)
class Listen:
    """Where it listens, under which names, and with which certificate."""

    host: str = "127.0.0.1"
    port: int = 8080
    cert: Path | None = None
    key: Path | None = None
    hosts: tuple[str, ...] = ()


def make_server(runs: Path, listen: Listen, tokens: Tokens | None) -> uvicorn.Server:
    """A server for `run`, which ends by SIGINT or SIGTERM; inside another process, by its `should_exit`.

    Raises:
        ConfigError: the certificate or its key can't be read.

    """
    app = make_app(runs, tokens=tokens, hosts=(*listen.hosts, *([] if _any(listen.host) else [listen.host])))
    config = uvicorn.Config(
        app,
        host=listen.host,
        port=listen.port,
        http="h11",  # the one with a bound on what it reads before a request is complete
        h11_max_incomplete_event_size=MOST_URL + MOST_HEADERS,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=1,  # streams never end by themselves
        ssl_certfile=listen.cert,
        ssl_keyfile=listen.key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"--cert {listen.cert}, --key {listen.key}: cannot be used ({error})") from error
    return uvicorn.Server(config)


def open_socket(listen: Listen) -> socket.socket:
    """Bound, for `Server.run(sockets=[...])`; ConfigError if that address is not to be had."""
    try:
        family, *_, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        raise ConfigError(f"--host {listen.host} --port {listen.port}: cannot be listened on ({error})") from error


def _any(host: str) -> bool:
    return host in ("0.0.0.0", "::")  # noqa: S104 - compared, not listened on
