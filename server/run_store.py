"""What a run leaves on disk: an append-only event log (SQLite), run.json, and the model as safetensors."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from edge_runtime.errors import ConfigError, RunError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY,
  unix_s REAL NOT NULL,
  kind TEXT NOT NULL,
  round INTEGER,
  data TEXT NOT NULL
)
"""

EVENTS = "events.sqlite"


def run_directory(out: str) -> Path:
    """The folder that `run.out` means: that one, or one named after the time."""
    return Path(out or f"runs/{datetime.now(UTC):%Y%m%d-%H%M%S}")


def refuse_used(directory: Path) -> None:
    """ConfigError if the directory holds a run, finished or not: two runs must not mix."""
    if any((directory / name).exists() for name in ("run.json", EVENTS)):
        raise ConfigError(f"run.out = {str(directory)!r}: already holds a run; choose another directory")


class RunStore:
    """A run directory. Every file in it is written whole or not at all."""

    def __init__(self, directory: Path) -> None:
        refuse_used(directory)
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._events = sqlite3.connect(directory / EVENTS, isolation_level=None)
            self._events.execute("PRAGMA journal_mode=WAL")
            # With WAL an event survives a crash of ours without an fsync each.
            self._events.execute("PRAGMA synchronous=NORMAL")
            self._events.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"run.out = {str(directory)!r}: cannot be written ({error})") from error

    def append(self, kind: str, data: Mapping[str, Any], round_number: int | None = None) -> None:
        """Add one event; it is with the operating system when this returns."""
        row = (time.time(), kind, round_number, json.dumps(data))
        try:
            self._events.execute("INSERT INTO events (unix_s, kind, round, data) VALUES (?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise RunError(f"{self.directory / EVENTS}: cannot be written ({error})") from error

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        self.write(name, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())

    def write(self, name: str, content: bytes) -> None:
        """Replace a file atomically: readers see the old content or the new, never a part."""
        path = self.directory / name
        temporary = path.with_name(f".{name}.part")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error

    def append_line(self, name: str, line: str) -> None:
        """Add to the end of a text file; on the disk itself when this returns, so that no crash takes it back."""
        path = self.directory / name
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            folder = os.open(self.directory, os.O_RDONLY)  # a new file's name is its folder's content
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error

    def close(self) -> None:
        self._events.close()


def model_bytes(state: Mapping[str, NDArray[np.generic]]) -> bytes:
    """The state dict as safetensors, names sorted, so that equal models are equal bytes."""
    return bytes(save({name: np.ascontiguousarray(state[name]) for name in sorted(state)}))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
