"""`hedgerow dashboard`. Heavy imports happen when the command runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_runtime.errors import ConfigError, MissingPackageError


def dashboard_command(parser: argparse.ArgumentParser) -> None:
    """Show runs in a browser, while they go on and after."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="a run directory, or a folder of run directories")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (default: 8080)")
    parser.set_defaults(run=_dashboard)


def _dashboard(options: argparse.Namespace) -> int:
    try:
        import uvicorn

        from server.dashboard.app import make_app
    except ImportError as error:
        raise MissingPackageError(
            f"the dashboard needs {error.name}, not installed: pip install 'hedgerow[server]'"
        ) from error
    if not options.directory.is_dir():
        raise ConfigError(f"{options.directory}: no such folder; give a run directory or a folder of them")
    uvicorn.run(make_app(options.directory), host=options.host, port=options.port, log_level="warning")
    return 0
