"""The `hedgerow` command. Each subcommand is an entry point of the group `hedgerow.commands`.

A command is a function `register(parser) -> None` that sets `run=` (a callable on the parsed arguments) as a
default. Exit codes: 0 done, 2 bad usage or config, 3 the run failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

import edge_runtime
from edge_runtime import plugins
from edge_runtime.errors import ConfigError, EdgeRuntimeError, MissingPackageError

COMMANDS = "hedgerow.commands"
EXIT_USAGE, EXIT_FAILED, EXIT_INTERRUPTED = 2, 3, 130

# Flower reports home and builds virtual environments unless told not to; see docs/decisions/0002-flower-quiet.md.
FLOWER_ENV = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors are one line on stderr, a traceback only with --debug."""
    os.environ.update(FLOWER_ENV)
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        options = _parser(arguments).parse_args(arguments)
        return int(options.run(options) or 0)
    except (ConfigError, MissingPackageError) as error:
        return _report(error, EXIT_USAGE, debug)
    except EdgeRuntimeError as error:
        return _report(error, EXIT_FAILED, debug)
    except KeyboardInterrupt as error:
        return _report(error, EXIT_INTERRUPTED, debug, "interrupted")
    except BrokenPipeError:
        # The reader of our output went away (`hedgerow ... | head`); not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        return _report(error, EXIT_FAILED, debug, f"unexpected {type(error).__name__}: {error} (--debug shows where)")


def _report(error: BaseException, code: int, debug: bool, text: str | None = None) -> int:
    if debug:
        traceback.print_exception(error)
    print("hedgerow: " + " ".join((text or str(error)).split()), file=sys.stderr)
    return code


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """A parser that has loaded the named command only; all of them when none is named, for the overview."""
    every = plugins.names(COMMANDS)
    wanted = [name for name in arguments[:1] if name in every] or every
    parser = argparse.ArgumentParser(prog="hedgerow", description="On-device federated learning runtime.")
    parser.add_argument("--version", action="version", version=f"hedgerow {edge_runtime.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in wanted:
        try:
            register = plugins.load(COMMANDS, name)
        except MissingPackageError as error:
            if len(wanted) == 1:
                raise
            commands.add_parser(name, help=f"not available: {error}")
            continue
        summary = (register.__doc__ or "").strip().partition("\n")[0]
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("--debug", action="store_true", help="show a traceback when something fails")
        register(command)
    return parser
