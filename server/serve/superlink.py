"""The SuperLink process: Flower's own app behind our two doors. Started by the supervisor, ends on SIGTERM.

    python -m server.serve.superlink --database FILE --public FD --inner FD [--certificate FILE --key FILE] ...

Both sockets are the supervisor's, which binds them once: nobody can take a port while the SuperLink restarts, and a
device that knocks in between waits instead of being turned away. All that this file takes from Flower's inside is the
app, its settings, and the table of its routes; where one of them is missing, the process does not start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn
from flwr.common.constant import (
    ACCESS_TOKEN_KEY,
    ISOLATION_MODE_PROCESS,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    TRANSPORT_TYPE_GRPC_RERE,
)
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app

from server.serve.door import CONTROL, FLEET, HEALTH, RUNTIME, App, Door
from server.serve.fleet_rules import FleetRules
from server.serve.patience import HEAD_BYTES, PatientProtocol

TOKEN = "HEDGEROW_CONTROL_TOKEN"  # noqa: S105  # the name of the variable that holds it
_INNER_BYTES = 1 << 30  # requests of our own processes
_OWN_DESCRIPTORS = 512  # files, the database and the other door
_PATIENCE_S = 2  # with requests in progress, at the end


class TokenAuth(NoOpControlAuthnPlugin):
    """The Control API answers whoever holds the token that the supervisor made at its start, and nobody else."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token.encode()

    def validate_tokens_in_metadata(
        self, metadata: Sequence[tuple[str, str | bytes]]
    ) -> tuple[bool, AccountInfo | None]:
        given = dict(metadata).get(ACCESS_TOKEN_KEY, b"")
        given = given.encode() if isinstance(given, str) else given
        if not hmac.compare_digest(given, self._token):
            return False, None
        return True, AccountInfo(flwr_aid=NOOP_FLWR_AID, account_name=NOOP_ACCOUNT_NAME)


class _Server(uvicorn.Server):
    """One of two in a loop, so signals are the loop's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", required=True)
    parser.add_argument("--public", type=int, required=True)
    parser.add_argument("--inner", type=int, required=True)
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    parser.add_argument("--superexec-secret", type=Path, required=True)
    parser.add_argument("--request-bytes", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.WARNING)  # it would tell of each request of ours
    token = os.environ.pop(TOKEN, "")
    if len(token) < 32:
        parser.error(f"{TOKEN} is not set")
    app = superlink_app(
        options.database,
        token,
        options.superexec_secret.read_bytes(),
        node_keys=options.certificate is not None,
    )
    # Twice: those whose TLS is still to be agreed on are not counted yet.
    descriptors = _allow_descriptors(2 * options.connections + _OWN_DESCRIPTORS)
    public = uvicorn.Config(
        public_door(app, options.request_bytes, node_keys=options.certificate is not None),
        http=PatientProtocol,
        h11_max_incomplete_event_size=HEAD_BYTES,
        proxy_headers=False,
        lifespan="off",
        ssl_certfile=options.certificate,
        ssl_keyfile=options.key,
        limit_concurrency=max(1, min(options.connections, (descriptors - _OWN_DESCRIPTORS) // 2)),
        server_header=False,
        access_log=False,
        ws="none",
        log_level="error",  # each malformed request would be a line in the log
        timeout_graceful_shutdown=_PATIENCE_S,
    )
    inner = uvicorn.Config(
        Door(app, routes(CONTROL, RUNTIME), _INNER_BYTES),
        lifespan="on",
        access_log=False,
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=_PATIENCE_S,
    )
    sockets = socket.socket(fileno=options.inner), socket.socket(fileno=options.public)
    sys.exit(asyncio.run(_serve(inner, public, *sockets)))


def superlink_app(database: str, token: str, superexec_secret: bytes, *, node_keys: bool) -> App:
    """Flower's SuperLink app. Tasks go to whoever holds the SuperExec's secret; it starts no process of its own."""
    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="",
        port=0,
        insecure=not node_keys,
        certificates=None,
        superexec_auth_secret=superexec_secret,
        authn_plugin=TokenAuth(token),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=node_keys,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=database,
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    return create_app(config, SuperLinkLifespan)


def public_door(app: App, max_bytes: int, *, node_keys: bool) -> Door:
    """The door for devices."""
    factory = app.state.linkstate_factory  # type: ignore[attr-defined]  # it is a FastAPI

    def known(public_key: bytes) -> bool:
        return factory.state().get_node_id_by_public_key(public_key) is not None

    return Door(app, routes(FLEET), max_bytes, FleetRules(known if node_keys else None))


def routes(*prefixes: str) -> set[tuple[str, str]]:
    """Flower's requests under these prefixes, and the question whether it is well."""
    found = {route for route in PROTOBUF_REQUEST_TYPES if route[1].startswith(prefixes)}
    assert all(any(path.startswith(prefix) for _, path in found) for prefix in prefixes)
    return found | HEALTH


def _allow_descriptors(wanted: int) -> int:
    """How many files may be open, at best `wanted`: where they run out, neither can the database be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


async def _serve(
    inner_config: uvicorn.Config,
    public_config: uvicorn.Config,
    inner_socket: socket.socket,
    public_socket: socket.socket,
) -> int:
    """Until a signal comes; returns the exit code."""
    inner, public = _Server(inner_config), _Server(public_config)

    def stop() -> None:
        public.should_exit = inner.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    inside = asyncio.create_task(inner.serve([inner_socket]))
    while not inner.started and not inside.done():
        await asyncio.sleep(0.02)
    begun = inner.started
    if begun:
        await public.serve([public_socket])
        stop()  # one without the other is no SuperLink
    await inside
    return 0 if begun else 3


if __name__ == "__main__":
    main()
