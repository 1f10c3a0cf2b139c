"""What `hedgerow serve` starts: the commands of its children, and the sockets that it hands them."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from edge_runtime import plugins
from edge_runtime.cli import COMMANDS, FLOWER_ENV
from edge_runtime.errors import ConfigError
from server.serve.config import ServeConfig
from server.serve.processes import Child, environment
from server.serve.superlink import TOKEN


def flower(
    config: ServeConfig,
    state: Path,
    address: str,
    token: str,
    secret: Path,
    files: tuple[Path, Path] | None,
    public: socket.socket,
    inner: socket.socket,
) -> tuple[Child, Child]:
    """The SuperLink and the SuperExec, which starts the server app."""
    extra = dict(entry.split("=", 1) for entry in config.superlink.environment)
    quiet = {**FLOWER_ENV, "FLWR_HOME": str(state / "flower"), **extra}
    command = [
        *_python("server.serve.superlink"),
        *("--database", str(state / "superlink.sqlite"), "--superexec-secret", str(secret)),
        *("--public", str(public.fileno()), "--inner", str(inner.fileno())),
        *("--request-bytes", str(config.limits.request_bytes), "--connections", str(config.limits.connections)),
    ]
    if files is not None:
        command += ["--certificate", str(files[0]), "--key", str(files[1])]
    superlink = Child(
        "superlink",
        command,
        environment(state, {**quiet, TOKEN: token}),
        state / "logs" / "superlink.log",
        (public.fileno(), inner.fileno()),
    )
    superexec = Child(
        "superexec",
        [
            str(Path(sys.executable).parent / "flower-superexec"),
            *("--insecure", "--runtime-api-address", address, "--superexec-auth-secret-file", str(secret)),
            *("--parent-pid", str(os.getpid())),
        ],
        environment(state, {**quiet, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(config.superlink.poll_s)}, state / "bin"),
        state / "logs" / "superexec.log",
    )
    return superlink, superexec


def dashboard(config: ServeConfig, state: Path) -> Child | None:
    """None where it is switched off, or where this installation has none."""
    settings = config.dashboard
    if not settings.enabled or "dashboard" not in plugins.names(COMMANDS):
        return None
    command = [*_python("edge_runtime"), "dashboard", str(state / "runs")]
    command += ["--host", settings.host, "--port", str(settings.port)]
    if settings.token_file:
        command += ["--token-file", settings.token_file]
    return Child("dashboard", command, environment(state, {}), state / "logs" / "dashboard.log")


def _python(module: str) -> list[str]:
    # -P: the folder we are started from is not searched for modules.
    return [sys.executable, "-P", "-m", module]


def listening(host: str, port: int) -> socket.socket:
    """A listening socket, ours for as long as we live."""
    family_ = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family_, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{host}:{port}: cannot listen there ({error.strerror or error}); see host and port"
        ) from error
    return listener
