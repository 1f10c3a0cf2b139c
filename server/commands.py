"""What an operator asks of a run while it goes on: written by the dashboard or a command line, read by the server app.

A file of its own beside the run's events, so that nobody but the server app ever writes those.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from edge_runtime.errors import ConfigError, RunError

CONTROL = "control.sqlite"
_WAIT_S = 5.0  # for another writer
_SCHEMA = """
CREATE TABLE IF NOT EXISTS commands (
  id INTEGER PRIMARY KEY,
  unix_s REAL NOT NULL,
  name TEXT NOT NULL,
  by TEXT NOT NULL
)
"""


class Name(StrEnum):
    """What can be asked."""

    # Close the round in progress, then end the run as if it had been the last one; at once, if it is paused. A roll-out
    # in progress is halted.
    STOP = "stop"
    ROLLOUT_APPROVE = "rollout_approve"  # let the roll-out go on to its next stage
    ROLLOUT_HALT = "rollout_halt"  # stop the roll-out and bring back the version before


@dataclass(frozen=True, slots=True)
class Command:
    """`by` says who asked, for the log."""

    id: int
    unix_s: float
    name: Name
    by: str


def send(directory: Path, name: Name, by: str) -> None:
    """Ask it of the run in that directory.

    Raises:
        ConfigError: there is no such directory.
        RunError: it can't be written.

    """
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such run")
    with _opened(directory) as control:
        control.execute(_SCHEMA)
        control.execute("INSERT INTO commands (unix_s, name, by) VALUES (?, ?, ?)", (time.time(), name.value, by))


def read(directory: Path, after: int = 0) -> list[Command]:
    """What was asked since command `after`, in order; none where nobody ever asked."""
    if not (directory / CONTROL).is_file():
        return []
    with _opened(directory) as control:
        if not control.execute("SELECT 1 FROM sqlite_master WHERE name = 'commands'").fetchone():
            return []  # whoever writes there first has only just begun
        rows = control.execute(
            "SELECT id, unix_s, name, by FROM commands WHERE id > ? ORDER BY id", (after,)
        ).fetchall()
    known = set(Name)
    return [Command(number, unix_s, Name(name), by) for number, unix_s, name, by in rows if name in known]


@contextmanager
def _opened(directory: Path) -> Iterator[sqlite3.Connection]:
    path = directory / CONTROL
    try:
        control = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
        try:
            yield control
        finally:
            control.close()
    except sqlite3.Error as error:
        raise RunError(f"{path}: {error}") from error
