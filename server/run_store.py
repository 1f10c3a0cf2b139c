"""What a run leaves on disk: an append-only event log (SQLite), run.json, and the model as safetensors."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from edge_runtime.errors import ConfigError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY,
  unix_s REAL NOT NULL,
  kind TEXT NOT NULL,
  round INTEGER,
  data TEXT NOT NULL
)
"""


class RunStore:
    """A run directory. Every file in it is written whole or not at all."""

    def __init__(self, directory: Path) -> None:
        if (directory / "run.json").exists():
            raise ConfigError(f"run.out = {str(directory)!r}: already holds a run; choose another directory")
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run.out = {str(directory)!r}: cannot be made ({error.strerror})") from error
        self.directory = directory
        self._events = sqlite3.connect(directory / "events.sqlite", isolation_level=None)
        self._events.execute("PRAGMA journal_mode=WAL")
        self._events.execute("PRAGMA synchronous=NORMAL")  # with WAL: an event survives a crash of ours, no fsync each
        self._events.execute(_SCHEMA)

    def append(self, kind: str, data: Mapping[str, Any], round_number: int | None = None) -> None:
        """Add one event; it is with the operating system when this returns."""
        self._events.execute(
            "INSERT INTO events (unix_s, kind, round, data) VALUES (?, ?, ?, ?)",
            (time.time(), kind, round_number, json.dumps(data)),
        )

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        self.write(name, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())

    def write(self, name: str, content: bytes) -> None:
        """Replace a file atomically: readers see the old content or the new, never a part."""
        path = self.directory / name
        temporary = path.with_name(f".{name}.part")
        temporary.write_bytes(content)
        temporary.replace(path)

    def close(self) -> None:
        self._events.close()


def model_bytes(state: Mapping[str, NDArray[np.generic]]) -> bytes:
    """The state dict as safetensors, names sorted, so that equal models are equal bytes."""
    return bytes(save({name: np.ascontiguousarray(state[name]) for name in sorted(state)}))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
