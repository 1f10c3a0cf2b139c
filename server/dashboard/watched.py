"""The runs that a dashboard shows, each with one reader for all who ask."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from server.run_reader import RunReader, find_runs


class Watched:
    """A folder of run directories, or one of them. May be used by several threads."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._readers: dict[str, RunReader] = {}
        self._guard = threading.Lock()

    def all(self) -> list[RunReader]:
        """Those that are there now."""
        found = find_runs(self._place)
        with self._guard:
            self._readers = {
                name: self._readers.get(name) or RunReader(name, directory) for name, directory in found.items()
            }
            return list(self._readers.values())

    def one(self, name: str) -> RunReader | None:
        """That run; None if the folder has none of that name."""
        known = self._readers.get(name)
        if known is not None and known.is_there():
            return known
        return next((reader for reader in self.all() if reader.name == name), None)

    def summaries(self) -> list[dict[str, Any]]:
        """Of all runs, the newest first."""
        return newest_first([reader.summary() for reader in self.all()])


def newest_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["started_s"] or 0, row["id"]), reverse=True)
