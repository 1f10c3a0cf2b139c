"""What a run leaves on disk: an append-only event log (SQLite), checkpoints and models by content, run.json.

    events.sqlite   tables `events` (what happened, in order) and `devices` (the last that is known of each)
    blobs/SHA256    checkpoints and what they refer to; a blob's name is the hash of its content
    models/SHA256.safetensors   versions of the model
    privacy.ledger  see server/budget.py
    lock            held by the process that writes

A round is closed by one transaction, which the disk has before the next round begins. Whatever a process that was
killed did after its last closed round is in the log, for it happened, and counts for nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from edge_runtime.errors import ConfigError, RunError
from edge_runtime.files import write_atomically
from server import run_lock

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY,
  unix_s REAL NOT NULL,
  kind TEXT NOT NULL,
  round INTEGER,
  data TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_kind ON events (kind, id);
CREATE TABLE IF NOT EXISTS devices (
  node TEXT PRIMARY KEY,
  seen_s REAL NOT NULL,
  data TEXT NOT NULL
);
-- What run_devices.py counts over all devices, in its words; data is no JSON where a disk has damaged it.
CREATE INDEX IF NOT EXISTS devices_told ON devices (
  CASE WHEN json_valid(data) THEN json_extract(data, '$.running') END,
  CASE WHEN json_valid(data) THEN json_extract(data, '$.eligible') END,
  seen_s
);
"""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
EVENTS, BLOBS, MODELS, LOCK = "events.sqlite", "blobs", "models", "lock"


@dataclass(frozen=True, slots=True)
class Sighting:
    """A device was heard of at `seen_s` (Unix seconds). `data` is what is known of it now; None: as before."""

    node: int
    seen_s: float
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One row of the event log."""

    id: int
    unix_s: float
    kind: str
    round: int | None
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The run as it was when `round` closed (0: before the first): the names of its blob and of its model's file."""

    round: int
    blob: str
    model: str


def run_directory(out: str) -> Path:
    """The folder that `run.out` means: that one, or one named after the time."""
    return Path(out or f"runs/{datetime.now(UTC):%Y%m%d-%H%M%S}")


def refuse_used(directory: Path) -> None:
    """ConfigError if the directory holds a run, finished or not: two runs must not mix."""
    if any((directory / name).exists() for name in ("run.json", EVENTS)):
        raise ConfigError(
            f"run.out = {str(directory)!r}: already holds a run; choose another directory, or resume that run"
        )


class RunStore:
    """A run directory, open for writing by this process alone. Every file in it is written whole or not at all.

    May be used by several threads. With `resume` the directory must hold a run, else it must not.

    Raises:
        ConfigError: it does, or does not; another process writes there; or nothing can be written.

    """

    def __init__(self, directory: Path, *, resume: bool = False) -> None:
        if not resume:
            refuse_used(directory)
        elif not (directory / EVENTS).is_file():
            raise ConfigError(f"run.out = {str(directory)!r}: holds no run to resume")
        self.directory = directory
        self._guard = threading.RLock()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(directory / LOCK)
            for left in (*directory.glob(".*.part"), *directory.glob("*/.*.part")):
                left.unlink(missing_ok=True)  # of a process that was killed while it wrote
            self._events = sqlite3.connect(directory / EVENTS, isolation_level=None, check_same_thread=False)
            self._events.execute("PRAGMA journal_mode=WAL")
            # With WAL an event survives a crash of ours without an fsync each.
            self._events.execute("PRAGMA synchronous=NORMAL")
            self._events.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"run.out = {str(directory)!r}: cannot be written ({error})") from error

    def append(
        self, kind: str, data: Mapping[str, Any], round_number: int | None = None, *, durable: bool = False
    ) -> None:
        """Add one event; it is with the operating system when this returns, if `durable` on the disk itself."""
        with self._writing(durable=durable):
            self._insert(kind, data, round_number)

    def close_round(self, number: int, row: Mapping[str, Any], checkpoint: Checkpoint) -> None:
        """The round's row and its checkpoint, both or neither; on the disk itself when this returns."""
        with self._writing(durable=True):
            self._insert("round_closed", row, number)
            self._insert("checkpoint", {"blob": checkpoint.blob, "model": checkpoint.model}, number)

    def seen(self, sightings: Iterable[Sighting]) -> None:
        """Bring the device table up to date, in one transaction."""
        rows = [(str(one.node), one.seen_s, None if one.data is None else json.dumps(one.data)) for one in sightings]
        with self._writing():
            self._events.executemany(
                "INSERT INTO devices (node, seen_s, data) VALUES (?1, ?2, coalesce(?3, '{}')) ON CONFLICT (node) "
                "DO UPDATE SET seen_s = max(seen_s, ?2), data = coalesce(?3, data)",
                rows,
            )

    def last_checkpoint(self) -> Checkpoint | None:
        """Of the last closed round; None if there is none."""
        found = self.read("SELECT round, data FROM events WHERE kind = 'checkpoint' ORDER BY id DESC LIMIT 1")
        if not found:
            return None
        data = self._parsed(found[0][1])
        return Checkpoint(found[0][0], str(data.get("blob")), str(data.get("model")))

    def events(self, kind: str) -> list[tuple[int | None, dict[str, Any]]]:
        """Round and data of all events of that kind, in order."""
        rows = self.read("SELECT round, data FROM events WHERE kind = ? ORDER BY id", (kind,))
        return [(number, self._parsed(data)) for number, data in rows]

    def last_event(self, *kinds: str) -> LoggedEvent | None:
        """The newest event of these kinds."""
        return next(iter(self.log(*kinds, newest_first=True, most=1)), None)

    def log(self, *kinds: str, newest_first: bool = False, most: int = -1) -> list[LoggedEvent]:
        """The events of these kinds, in order."""
        found = self.read(
            "SELECT id, unix_s, kind, round, data FROM events WHERE kind IN (SELECT value FROM json_each(?)) "
            "ORDER BY CASE WHEN ? THEN -id ELSE id END LIMIT ?",
            (json.dumps(kinds), newest_first, most),
        )
        return [LoggedEvent(at, unix_s, kind, number, self._parsed(data)) for at, unix_s, kind, number, data in found]

    def events_after(self, number: int) -> int:
        """How many events have a higher id."""
        return int(self.read("SELECT count(*) FROM events WHERE id > ?", (number,))[0][0])

    def read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a query."""
        with self._guard:
            try:
                return self._events.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise RunError(f"{self.directory / EVENTS}: cannot be read ({error})") from error

    def keep(self, content: bytes) -> str:
        """Write a blob, if it is not there; returns its name. It is on the disk itself when this returns."""
        return self._keep(BLOBS, content, "", mode=0o600)  # a checkpoint may hold what the model does not tell

    def keep_model(self, content: bytes) -> str:
        """As `keep`, of a model's safetensors file in `models`."""
        return self._keep(MODELS, content, ".safetensors")

    def blob(self, name: str) -> bytes:
        """A kept blob; RunError if it is gone or no longer what it was."""
        return self._kept(self.directory / BLOBS / name, name)

    def model(self, name: str) -> bytes:
        """A kept model; RunError if it is gone or no longer what it was."""
        return self._kept(self.directory / MODELS / f"{name}.safetensors", name)

    def forget(self, keep_blobs: Iterable[str], keep_models: Iterable[str]) -> None:
        """Remove all other blobs and models; what can't be removed stays."""
        for folder, names in ((BLOBS, set(keep_blobs)), (MODELS, {f"{name}.safetensors" for name in keep_models})):
            for path in (self.directory / folder).glob("*"):
                if path.name not in names:
                    with suppress(OSError):
                        path.unlink()

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        self.write(name, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())

    def write(self, name: str, content: bytes) -> None:
        """Replace a file atomically: readers see the old content or the new, never a part."""
        path = self.directory / name
        try:
            write_atomically(path, [content])
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
        with self._guard:
            self._events.close()
            os.close(self._lock)

    @contextmanager
    def _writing(self, *, durable: bool = False) -> Iterator[None]:
        """One transaction; `durable`: forced to the disk."""
        with self._guard:
            try:
                if durable:
                    self._events.execute("PRAGMA synchronous=FULL")
                self._events.execute("BEGIN IMMEDIATE")
                yield
                self._events.execute("COMMIT")
            except BaseException as error:
                if self._events.in_transaction:
                    self._events.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise RunError(f"{self.directory / EVENTS}: cannot be written ({error})") from error
                raise
            finally:
                if durable:
                    self._events.execute("PRAGMA synchronous=NORMAL")

    def _insert(self, kind: str, data: Mapping[str, Any], round_number: int | None) -> None:
        row = (time.time(), kind, round_number, json.dumps(data))
        self._events.execute("INSERT INTO events (unix_s, kind, round, data) VALUES (?, ?, ?, ?)", row)

    def _keep(self, folder: str, content: bytes, suffix: str, mode: int = 0o666) -> str:
        name = sha256(content)
        path = self.directory / folder / f"{name}{suffix}"
        try:
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, [content], mode=mode)
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error
        return name

    def _parsed(self, data: Any) -> dict[str, Any]:
        """An event's data; RunError if it is none that this class wrote."""
        try:
            found = json.loads(data)
        except (TypeError, ValueError, RecursionError) as error:
            raise RunError(f"{self.directory / EVENTS}: is damaged, an event is no JSON ({error})") from error
        if not isinstance(found, dict):
            raise RunError(f"{self.directory / EVENTS}: is damaged, an event is no JSON object")
        return found

    def _kept(self, path: Path, name: str) -> bytes:
        if not _SHA256.fullmatch(name):
            raise RunError(f"{path.parent}: {name[:80]!r} is no file's name there")  # nor one of elsewhere
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror or error})") from error
        if sha256(content) != name:
            raise RunError(f"{path}: is damaged, its content is not what its name says")
        return content


def _locked(path: Path) -> int:
    """An open descriptor that holds the lock until it is closed, or its process ends in whichever way."""
    try:
        return run_lock.take(path)
    except BlockingIOError:
        raise ConfigError(f"run.out = {str(path.parent)!r}: another process is at work on this run") from None


def is_disk_trouble(error: BaseException) -> bool:
    """Whether it comes of a disk that is full, or takes no writes: what failed may be tried again once it does."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in _DISK_TROUBLE:
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def model_bytes(state: Mapping[str, NDArray[np.generic]]) -> bytes:
    """The state dict as safetensors, names sorted, so that equal models are equal bytes."""
    return bytes(save({name: np.ascontiguousarray(state[name]) for name in sorted(state)}))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
