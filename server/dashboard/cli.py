"""`hedgerow dashboard`. Heavy imports happen when the command runs."""

from __future__ import annotations

import argparse
import ipaddress
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError, MissingPackageError

if TYPE_CHECKING:
    from server.dashboard.serving import Listen


def dashboard_command(parser: argparse.ArgumentParser) -> None:
    """Show runs in a browser, while they go on and after."""
    parser.add_argument(
        "directory", metavar="DIR", type=Path, nargs="?", help="a run directory, or a folder of run directories"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (default: 8080)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="who may log in; needed beyond this machine")
    parser.add_argument(
        "--new-token", choices=("viewer", "admin"), help="add a token to --token-file, print it, and do nothing else"
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name that browsers use; may be repeated"
    )
    parser.add_argument("--cert", type=Path, metavar="FILE", help="TLS certificate chain, PEM")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its private key, PEM")
    parser.set_defaults(run=_dashboard)


def _dashboard(options: argparse.Namespace) -> int:
    try:
        from server.dashboard.auth import Role, Tokens, new_token
        from server.dashboard.serving import Listen, make_server, open_socket
    except ImportError as error:
        raise MissingPackageError(
            f"the dashboard needs {error.name}, not installed: pip install 'hedgerow[server]'"
        ) from error
    if options.new_token:
        if options.token_file is None:
            raise ConfigError("--new-token: needs --token-file FILE, to which it is added")
        sys.stdout.write(new_token(options.token_file, Role(options.new_token)) + "\n")
        return 0
    if options.directory is None or not options.directory.is_dir():
        raise ConfigError(f"{options.directory or 'DIR'}: no such folder; give a run directory or a folder of them")
    tokens = Tokens.read(options.token_file) if options.token_file else None
    listen = Listen(options.host, options.port, options.cert, options.key, tuple(options.allow_host))
    check(listen, with_tokens=tokens is not None)
    server = make_server(options.directory, listen, tokens)
    with open_socket(listen) as door:
        host = f"[{listen.host}]" if ":" in listen.host else listen.host
        where = f"{'https' if listen.cert else 'http'}://{host}:{door.getsockname()[1]}/"
        sys.stderr.write(f"dashboard of {options.directory} at {where}, until Ctrl-C\n")
        server.run(sockets=[door])
    return 0


def check(listen: Listen, *, with_tokens: bool) -> None:
    """Refuse what would show runs to a network by mistake; warn of what would let it read along.

    Raises:
        ConfigError: half a certificate, no such port, or another machine could reach it without a token.

    """
    if (listen.cert is None) != (listen.key is None):
        raise ConfigError("--cert and --key: TLS needs both")
    if not 0 <= listen.port < 65536:
        raise ConfigError(f"--port {listen.port}: must be 0..65535")
    if is_loopback(listen.host):
        return
    if not with_tokens:
        raise ConfigError(
            f"--host {listen.host}: other machines could reach it, which needs --token-file; "
            "`hedgerow dashboard --new-token viewer --token-file FILE` makes one"
        )
    if listen.cert is None:
        sys.stderr.write(
            f"hedgerow: warning: --host {listen.host} without --cert and --key: tokens cross the network unencrypted\n"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
