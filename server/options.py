"""Options that several commands share. Imports nothing, for `hedgerow --help` reads it on every machine."""

from __future__ import annotations

import argparse


def add_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state", metavar="DIR", help="the server's state folder (default: $HEDGEROW_STATE or ~/.hedgerow/server)"
    )
