"""The Flower ServerApp. `flwr run` starts `app`; a simulation makes its own with listeners and a clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.config import ServerConfig
from server.federation import Listener, federate
from server.link import Link


def make_app(listeners: Sequence[Listener] = (), clock: Callable[[], float] = time.monotonic) -> ServerApp:
    """A ServerApp whose run reports to `listeners` and measures deadlines with `clock` (seconds)."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        federate(Link(grid, clock), ServerConfig.from_run_config(context.run_config), listeners)

    return app


app = make_app()
