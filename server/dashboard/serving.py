"""The dashboard's web server: uvicorn, bounded and quiet."""

from __future__ import annotations

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


def serve(runs: Path, listen: Listen, tokens: Tokens | None) -> None:
    """Serve until SIGINT or SIGTERM."""
    make_server(runs, listen, tokens).run()


def make_server(runs: Path, listen: Listen, tokens: Tokens | None) -> uvicorn.Server:
    """A server that is not started yet; one inside another process is stopped by its `should_exit`.

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


def _any(host: str) -> bool:
    return host in ("0.0.0.0", "::")  # noqa: S104 - compared, not listened on
