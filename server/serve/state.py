"""The state folder: everything that a server keeps, for its owner's eyes alone.

    lock               held by the `hedgerow serve` at work here
    serve.sqlite       the tables of devices and jobs
    superlink.sqlite   the SuperLink's own database
    superexec.secret   by which the SuperLink knows our SuperExec
    flower/            Flower's home (FLWR_HOME)
    bin/               see launch.py
    logs/              of each child process
    certs/             unless server.toml names another folder
    runs/NAME          one run directory for each job

Whoever may write here may enrol devices and start runs: the folder's permissions are the authentication. Commands
write what they want into the tables; `hedgerow serve` alone speaks to the SuperLink, and makes it so.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from edge_runtime.errors import ConfigError, RunError
from server import commands
from server.devices import DeviceKey, check_name

VARIABLE = "HEDGEROW_STATE"
_WAIT_S = 10.0  # for another writer
_SCHEMA = """
CREATE TABLE IF NOT EXISTS devices (
  fingerprint TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  pem BLOB NOT NULL,
  enrolled_s REAL NOT NULL,
  revoked_s REAL,
  node TEXT,
  status TEXT NOT NULL DEFAULT '',
  seen_s REAL,
  settled INTEGER NOT NULL DEFAULT 0,
  problem TEXT NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX IF NOT EXISTS devices_by_name ON devices (name) WHERE revoked_s IS NULL;
CREATE TABLE IF NOT EXISTS jobs (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  config TEXT NOT NULL,
  submitted_s REAL NOT NULL,
  state TEXT NOT NULL DEFAULT 'queued',
  stop TEXT NOT NULL DEFAULT '',
  starts INTEGER NOT NULL DEFAULT 0,
  ended_s REAL,
  reason TEXT NOT NULL DEFAULT ''
);
"""


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


ENDED = (JobState.DONE, JobState.FAILED, JobState.STOPPED)


class Stop(StrEnum):
    """What an operator asked of a job."""

    NO = ""
    AFTER_ROUND = "after_round"  # the round in progress is closed, and the run ends as if it had been the last
    NOW = "now"


@dataclass(frozen=True, slots=True)
class Device:
    """`status` as the SuperLink last told it; `settled`: the SuperLink has heard of the last change to this row."""

    fingerprint: str
    name: str
    pem: bytes
    enrolled_s: float
    revoked_s: float | None
    node: str | None
    status: str
    seen_s: float | None
    settled: bool
    problem: str

    @property
    def shown_status(self) -> str:
        if self.problem:
            return "refused"
        if self.revoked_s is not None:
            return "revoked" if self.settled else "revoked when the server starts"
        return (self.status or "enrolled") if self.settled else "enrolled when the server starts"


@dataclass(frozen=True, slots=True)
class Told:
    """What the SuperLink says of a device, now that it knows whether the device is `revoked`. None: as before."""

    fingerprint: str
    revoked: bool
    node: str | None = None
    status: str = ""
    seen_s: float | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """A run to be played. `starts` counts how often Flower was asked to."""

    id: int
    name: str
    config: Mapping[str, Any]
    submitted_s: float
    state: JobState
    stop: Stop
    starts: int
    ended_s: float | None
    reason: str


class State:
    """An open state folder. Rows are short and writers wait for each other, so any number of processes may."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.folder = folder.resolve()
        if not create and not (self.folder / "serve.sqlite").is_file():
            raise ConfigError(
                f"{folder}: no server's state folder; give --state DIR or set {VARIABLE}, as for `hedgerow serve`"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = self.folder.stat()
            if found.st_uid != os.geteuid():
                raise ConfigError(f"{folder}: belongs to another user, who could start runs as you; be that user")
            if found.st_mode & 0o022:
                raise ConfigError(f"{folder}: others may write here, and so start runs; chmod go-w {folder}")
            self._tables = sqlite3.connect(self.folder / "serve.sqlite", timeout=_WAIT_S, isolation_level=None)
            (self.folder / "serve.sqlite").chmod(0o600)
            self._tables.execute("PRAGMA journal_mode=WAL")
            self._tables.execute("PRAGMA synchronous=FULL")
            self._tables.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{folder}: cannot be used ({error})") from error

    def close(self) -> None:
        self._tables.close()

    def run_directory(self, job: str) -> Path:
        return self.folder / "runs" / job

    # Devices

    def enrol(self, name: str, key: DeviceKey) -> None:
        """Let a device in, as soon as a SuperLink is there to be told.

        Raises:
            ConfigError: the name is taken or no name, or the key is known, be it only as a revoked one.

        """
        check_name(name)
        with self._writing() as tables:
            known = tables.execute(
                "SELECT name, revoked_s FROM devices WHERE fingerprint = ?", (key.fingerprint,)
            ).fetchone()
            if known and known[1] is not None:
                raise ConfigError(
                    f"{key.fingerprint}: was revoked as {known[0]}, and stays so; make the device a new key"
                )
            if known:
                raise ConfigError(f"{key.fingerprint}: is enrolled already, as {known[0]}")
            if tables.execute("SELECT 1 FROM devices WHERE name = ? AND revoked_s IS NULL", (name,)).fetchone():
                raise ConfigError(f"device {name}: is enrolled already, with another key; revoke it first")
            tables.execute(
                "INSERT INTO devices (fingerprint, name, pem, enrolled_s) VALUES (?, ?, ?, ?)",
                (key.fingerprint, name, key.pem, time.time()),
            )

    def revoke(self, name: str) -> None:
        """Shut a device out for good; its name is free again. ConfigError if there is no such device."""
        with self._writing() as tables:
            changed = tables.execute(
                "UPDATE devices SET revoked_s = ?, settled = 0 WHERE name = ? AND revoked_s IS NULL",
                (time.time(), name),
            ).rowcount
        if not changed:
            raise ConfigError(f"device {name!r}: none of that name is enrolled; `hedgerow devices list` shows all")

    def devices(self) -> list[Device]:
        """All there ever were, in the order of their enrolment."""
        rows = self._read(
            "SELECT fingerprint, name, pem, enrolled_s, revoked_s, node, status, seen_s, settled, problem "
            "FROM devices ORDER BY enrolled_s, rowid"
        )
        return [Device(*(*row[:8], bool(row[8]), row[9])) for row in rows]

    def devices_told(self, told: Iterable[Told]) -> None:
        """Write down what the SuperLink says; in one transaction, for there may be thousands."""
        rows = [(one.node, one.status, one.seen_s, one.problem, one.fingerprint, one.revoked) for one in told]
        with self._writing() as tables:
            # Another change since then is not settled by this.
            tables.executemany(
                "UPDATE devices SET node = coalesce(?, node), status = ?, seen_s = coalesce(?, seen_s), settled = 1, "
                "problem = ? WHERE fingerprint = ? AND (revoked_s IS NOT NULL) = ?",
                rows,
            )

    def version(self) -> int:
        """Another one whenever another process has written into the tables."""
        return int(self._read("PRAGMA data_version")[0][0])

    # Jobs

    def submit(self, name: str, config: Mapping[str, Any]) -> None:
        """Put a job at the end of the queue; ConfigError if there is, or was, one of that name."""
        check_name(name, "run")
        if self.run_directory(name).exists():
            raise ConfigError(f"run {name}: {self.run_directory(name)} is there already; choose another --name")
        try:
            with self._writing() as tables:
                tables.execute(
                    "INSERT INTO jobs (name, config, submitted_s) VALUES (?, ?, ?)",
                    (name, json.dumps(config, sort_keys=True), time.time()),
                )
        except sqlite3.IntegrityError:
            raise ConfigError(f"run {name}: there is a run of that name already; choose another --name") from None

    def ask_to_stop(self, name: str, stop: Stop) -> Job:
        """Ask for the end of a job that has not ended; returns it as it was."""
        job = self.job(name)
        if job.state in ENDED:
            raise ConfigError(f"run {name}: has ended already ({job.state})")
        with self._writing() as tables:
            tables.execute("UPDATE jobs SET stop = ? WHERE name = ?", (stop.value, name))
        return job

    def again(self, name: str) -> None:
        """Put a job back into the queue that failed, or was stopped at once: it goes on after its last closed round.

        Raises:
            ConfigError: it did not, or the run itself was told to stop, which it would hear again.

        """
        job = self.job(name)
        if job.state not in (JobState.FAILED, JobState.STOPPED):
            raise ConfigError(f"run {name}: is {job.state}; only a run that failed or was stopped can go on")
        if any(one.name is commands.Name.STOP for one in commands.read(self.run_directory(name))):
            raise ConfigError(f"run {name}: was told to stop after its round, and would hear that again")
        with self._writing() as tables:
            tables.execute(
                "UPDATE jobs SET state = 'queued', stop = '', reason = '', ended_s = NULL WHERE name = ?", (name,)
            )

    def job(self, name: str) -> Job:
        """ConfigError if there is none of that name."""
        for job in self.jobs("WHERE name = ?", (name,)):
            return job
        raise ConfigError(f"run {name!r}: no such run; `hedgerow run --list` shows all")

    def jobs(self, where: str = "", values: tuple[Any, ...] = ()) -> list[Job]:
        """All jobs, oldest first."""
        rows = self._read(
            "SELECT id, name, config, submitted_s, state, stop, starts, ended_s, reason "  # noqa: S608  # ours
            f"FROM jobs {where} ORDER BY id",
            values,
        )
        return [
            Job(row[0], row[1], json.loads(row[2]), row[3], JobState(row[4]), Stop(row[5]), *row[6:]) for row in rows
        ]

    def next_job(self) -> Job | None:
        """The one at work, else the first in the queue."""
        for state in (JobState.RUNNING, JobState.QUEUED):
            for job in self.jobs("WHERE state = ?", (state.value,)):
                return job
        return None

    def job_started(self, name: str) -> None:
        with self._writing() as tables:
            tables.execute("UPDATE jobs SET state = 'running', starts = starts + 1 WHERE name = ?", (name,))

    def job_ended(self, name: str, state: JobState, reason: str) -> None:
        with self._writing() as tables:
            tables.execute(
                "UPDATE jobs SET state = ?, reason = ?, ended_s = ? WHERE name = ?",
                (state.value, reason, time.time(), name),
            )

    def _read(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        try:
            return self._tables.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise RunError(f"{self.folder / 'serve.sqlite'}: cannot be read ({error})") from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            self._tables.execute("BEGIN IMMEDIATE")
            yield self._tables
            self._tables.execute("COMMIT")
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise RunError(f"{self.folder / 'serve.sqlite'}: cannot be written ({error})") from error
        finally:
            if self._tables.in_transaction:
                self._tables.execute("ROLLBACK")


class Lock:
    """Held by one `hedgerow serve`, until its process ends in whichever way."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = _opened(folder)
        for attempt in range(5):  # `is_served` asks by holding the lock for an instant
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.05 * attempt)
        os.close(self._descriptor)
        raise ConfigError(f"{folder}: another `hedgerow serve` is at work here")

    def release(self) -> None:
        os.close(self._descriptor)


def is_served(folder: Path) -> bool:
    """Whether a `hedgerow serve` is at work there now."""
    descriptor = _opened(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _opened(folder: Path) -> int:
    return os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def state_folder(given: str | None) -> Path:
    """`--state`, else $HEDGEROW_STATE, else a folder in the user's home."""
    return Path(given or os.environ.get(VARIABLE) or Path.home() / ".hedgerow" / "server").expanduser()
