"""The Flower ServerApp. `flwr run` starts `app`; a simulation makes its own with listeners and a clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from logging import INFO, WARNING

from flwr.app import Context
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from server.config import ServerConfig
from server.events import (
    Event,
    Listener,
    RolloutTold,
    RoundClosed,
    RunContinued,
    RunFinished,
    RunPaused,
    RunStarted,
)
from server.federation import federate
from server.journal import Peers
from server.link import Link
from server.pulling import pulling
from server.region.serve import serve_region
from server.results import describe, personal_lines, privacy_lines
from server.rollout_report import rollout_lines


def make_app(
    listeners: Sequence[Listener] = (),
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
    peers: Peers | None = None,
) -> ServerApp:
    """A ServerApp whose run reports to `listeners`, reads deadlines off `clock` and waits with `pause` (seconds).

    `peers` are the clients' own states, where they are the server's to keep.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        link, config = Link(pulling(grid), clock, pause), ServerConfig.from_run_config(context.run_config)
        if config.region.socket:
            serve_region(link, config)
        else:
            federate(link, config, listeners, peers)

    return app


def log_progress(event: Event) -> None:
    """Write every round to Flower's log, which `flwr run --stream` and `flwr log` show."""
    match event:
        case RunStarted(config, directory, parameters, warnings, closed):
            log(INFO, "%s rounds, %s parameters; run directory %s", config.server.rounds, parameters, directory)
            if closed:
                log(INFO, "goes on after round %s", closed)
            if config.protection:
                log(INFO, "%s", config.protection)
            for warning in warnings:
                log(WARNING, "%s", warning)
        case RoundClosed(row, rounds):
            log(INFO, "%s", describe(row, rounds))
            for failure in row.failures:
                log(WARNING, "round %s: client %s: %s", row.round, failure.client, failure.reason)
        case RunPaused() | RunContinued():
            log(WARNING, "%s", event.line)
        case RolloutTold(line):
            log(INFO, "%s", line)
        case RunFinished(_, final):
            for line in [*privacy_lines(final), *personal_lines(final), *rollout_lines(final)]:
                log(INFO, "%s", line)
            log(INFO, "model.safetensors sha256 %s, accuracy %s", final["model_sha256"], final["accuracy"])
        case _:
            pass


app = make_app([log_progress])
