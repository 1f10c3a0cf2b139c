"""A run's own log, read while the server app writes it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from edge_runtime.errors import RunError
from server.results import describe, row_from_json
from server.run_store import EVENTS, LoggedEvent

_WAIT_S = 5.0


class UnreadableError(RunError):
    """A run's log is damaged."""


class RunLog:
    """What stands in a run directory; a directory that is not there yet holds nothing."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / EVENTS

    def entries(self, after: int = 0) -> list[LoggedEvent]:
        rows = self._read("SELECT id, unix_s, kind, round, data FROM events WHERE id > ? ORDER BY id", after)
        return [LoggedEvent(at, unix_s, kind, number, json.loads(data)) for at, unix_s, kind, number, data in rows]

    def begun(self) -> bool:
        """Whether there is a run to resume."""
        return bool(self._read("SELECT 1 FROM events WHERE kind = 'run_started' LIMIT 1"))

    def last_event(self) -> int:
        return int((self._read("SELECT max(id) FROM events") or [[0]])[0][0] or 0)

    def closed_rounds(self) -> int:
        return int((self._read("SELECT max(round) FROM events WHERE kind = 'round_closed'") or [[0]])[0][0] or 0)

    def finished(self) -> Mapping[str, Any] | None:
        """The run's closing figures, if it came to its end."""
        rows = self._read("SELECT data FROM events WHERE kind = 'run_finished' ORDER BY id DESC LIMIT 1")
        return None if not rows else json.loads(rows[0][0])

    def error(self, after: int) -> str:
        """Why it failed since event `after`; empty if it did not."""
        rows = self._read(
            "SELECT data FROM events WHERE kind = 'run_failed' AND id > ? ORDER BY id DESC LIMIT 1", after
        )
        return "" if not rows else str(json.loads(rows[0][0]).get("error", "unknown"))

    def _read(self, query: str, *values: int) -> list[Any]:
        if not self._path.is_file():
            return []
        try:
            with closing(sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None)) as log:
                log.execute("PRAGMA query_only = ON")
                return log.execute(query, values).fetchall()
        except sqlite3.Error as error:
            if "no such table" in str(error):  # its first transaction is still to come
                return []
            raise UnreadableError(f"{self._path}: cannot be read ({error})") from error


def lines(entry: LoggedEvent, rounds: int) -> list[str]:
    """What a person is told of an event, if anything."""
    data = entry.data
    match entry.kind:
        case "run_started":
            return [
                f"{data.get('server.rounds', '?')} rounds, model {data.get('model.name') or data.get('model.entry')}"
            ]
        case "run_resumed":
            return [f"goes on after round {data.get('round', '?')}"]
        case "round_closed":
            return [describe(row_from_json(data), rounds)]
        case "client_dropped":
            return [f"round {entry.round}: client {data.get('client')} dropped: {data.get('reason')}"]
        case "run_paused":
            return [f"paused: {data.get('reason')}"]
        case "run_continued":
            return ["goes on"]
        case "run_finished":
            accuracy = data.get("accuracy")
            shown = "" if accuracy is None else f"accuracy {accuracy:.3f}, "
            return [f"finished: {shown}model.safetensors sha256 {data.get('model_sha256')}"]
    return []
