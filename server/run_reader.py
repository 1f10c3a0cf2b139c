"""Run directories, as someone sees them who only watches: the dashboard, an export, a test.

Nothing is ever written, no lock is taken, and a transaction lasts as long as one query: the process that trains never
waits for a reader. A folder that was copied half-way, or damaged, reads as `unreadable` with the reason.
"""

from __future__ import annotations

import json
import math
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from edge_runtime.errors import RunError
from server import run_devices, run_files, run_lock
from server.run_store import EVENTS, LOCK, LoggedEvent
from server.run_view import COUNTED, Data, Now, RunView, mapping, number, text, whole

_MOST_BYTES = 16 << 20  # of one event's data that is read; what is longer reads as empty
_BATCH = 5000  # events a query
_WAIT_S = 1.0  # for SQLite, which is busy for moments when a run starts or ends
_SETTLED_S = 2.0  # a file that was changed this lately may change again within its time stamp's resolution
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._+=@-]{0,127}", re.ASCII)
_ETA_ROUNDS = 5
_MOST_SHOWN = 100
_COUNTED_S = 2.0  # for which a count of all devices holds
_TOLD_OF_A_CLIENT = frozenset({"client", "bytes", "reason", "phase", "ask", "place", "version", "staleness"})
LIVE = ("running", "paused")


def find_runs(place: Path) -> dict[str, Path]:
    """The runs in a folder, or the one that it is, by their ids: the names of their folders.

    A folder whose name is a link, or could not stand in an address, is not one of them.
    """
    if (place / EVENTS).is_file():
        name = place.resolve().name
        return {name if _NAME.fullmatch(name) else "run": place}
    found = {}
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    directory = place / entry.name
                    if (directory / EVENTS).is_file():
                        found[entry.name] = directory
    except OSError:
        return {}
    return found


class RunReader:
    """One run directory. May be used by several threads; cheap to ask again, for it goes on from what it has read."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name, self.directory = name, directory
        self._guard = threading.Lock()
        self._view, self._unreadable = RunView(), ""
        self._stamp: object = None
        self._identity: object = None
        self._counted: tuple[float | None, dict[str, Any] | None] = (None, None)

    def view(self) -> RunView:
        """What the run's events come to by now. Not to be changed, and complete up to its `last_id`."""
        with self._guard:
            self._refresh()
            return self._view

    def is_there(self) -> bool:
        """Whether the directory still stands where it was found, and is no link."""
        return not self.directory.is_symlink() and (self.directory / EVENTS).is_file()

    @property
    def unreadable(self) -> str:
        """Why the directory could not be read the last time; empty if it could."""
        return self._unreadable

    def events_after(self, event_id: int, most: int) -> list[LoggedEvent]:
        """The events that follow that one, in order."""
        query = f"SELECT {_COLUMNS} FROM events WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608 - constants
        return [_event(row) for row in self._read(query, (event_id, most))]

    def state(self, view: RunView) -> str:
        """running, paused, finished, failed, interrupted or unreadable."""
        if self._unreadable:
            return "unreadable"
        if view.final is not None:
            return "finished"
        if view.error is not None:
            return "failed"
        if not run_lock.held(self.directory / LOCK):
            return "interrupted"
        return "running" if view.paused is None else "paused"

    def summary(self) -> dict[str, Any]:
        """The run in the figures of one row of a table."""
        return self._summary(self.view())

    def details(self) -> dict[str, Any]:
        """The summary, and all that is known of the run as a whole."""
        view = self.view()
        summary, facts, now = self._summary(view), view.facts, view.now
        live, warnings = summary["state"] in LIVE, facts.get("warnings")
        return summary | {
            "config": dict(view.config),
            "parameters": whole(facts.get("parameters")) or whole(mapping(view.final).get("parameters")),
            "warnings": [text(one) for one in warnings] if isinstance(warnings, list) else [],
            "eta_s": _eta_s(view, summary) if live else None,
            "now": _now(now) if live and now else None,
            "final": None if view.final is None else dict(view.final),
        }

    def rounds(self, after: int = 0) -> list[dict[str, Any]]:
        """The rows of the closed rounds after that one, as in run.json but for the clients' names."""
        return [row for one in self.view().rounds if (row := plain_row(one.row))["round"] > after]

    def privacy(self) -> dict[str, Any]:
        """What was spent of the privacy budget, round by round."""
        view = self.view()
        config, rows = view.config, [one.row for one in view.rounds]
        told = mapping(mapping(view.final).get("privacy"))
        mechanism = mechanism_of(config)
        if mechanism == "none":
            return {"mechanism": "none"}
        clip, noise = _last(rows, "clip"), number(told.get("noise_multiplier"))
        return {
            "mechanism": mechanism,
            "epsilon": self._summary(view)["epsilon"],
            "limit": number(config.get("privacy.epsilon")) or None,
            "delta": number(config.get("privacy.delta")),
            "noise_multiplier": noise if noise is not None else number(config.get("privacy.noise_multiplier")) or None,
            "clip": clip if clip is not None else number(config.get("privacy.clip")) or None,
            "events": [
                {"round": whole(row.get("round")) or 0, "epsilon": value}
                for row in rows
                if (value := number(row.get("epsilon"))) is not None
            ],
        }

    def devices(
        self, page: int = 0, sort: str = "node", words: str = "", *, descending: bool = False
    ) -> dict[str, Any]:
        """One page of the devices that pass the filter, and counts of all of them; see run_devices.py."""
        view = self.view()
        online_s = self._online_s(view)
        counts = self.device_counts()
        if counts is None:  # of a release that kept no device table
            return {"total": 0, "counts": run_devices.totals([]), "devices": []}
        [(total,)] = self._read_devices(run_devices.count_query(words, online_s))
        rows = self._read_devices(run_devices.page_query(page, sort, words, online_s, descending=descending))
        protected = is_protected(view.config)
        found = [
            run_devices.device_row(node, seen_s, _parsed(data), protected=protected) for node, seen_s, data in rows
        ]
        return {"total": total, "counts": counts, "devices": found}

    def device_counts(self) -> dict[str, Any] | None:
        """Counts of all devices, at most a few seconds old; None where there is no device table."""
        now_s = time.monotonic()
        counted_s, counts = self._counted
        if counted_s is None or not counted_s <= now_s < counted_s + _COUNTED_S:
            try:
                rows = self._read_devices(run_devices.totals_query(self._online_s(self.view())))
                counts = run_devices.totals(rows)
            except RunError as error:
                if "no such table" not in str(error):
                    raise
                counts = None
            self._counted = now_s, counts
        return counts

    def models(self) -> dict[str, Any]:
        """Versions of the model, what was exported of it, and the roll-out; see run_files.py."""
        view = self.view()
        return run_files.models(self.directory, view) | {"downloads": run_files.there(self.directory, view)}

    def open_file(self, name: str) -> int | None:
        """A descriptor of one of the files that the run lists; None if it is none of them, or not there."""
        return run_files.open_file(self.directory, name) if name in run_files.downloads(self.view()) else None

    def events(self, before: int | None = None, kind: str = "", most: int = 100) -> list[dict[str, Any]]:
        """The log from its end, or from before an event; `lost` are events of attempts that count for nothing."""
        view = self.view()
        query = f"SELECT {_COLUMNS} FROM events WHERE id < ? {'AND kind = ?' if kind else ''} ORDER BY id DESC LIMIT ?"  # noqa: S608 - constants
        values = (2**62 if before is None else before, *([kind] if kind else []), most)
        return [shown(_event(row), view) for row in self._read(query, values)]

    def _summary(self, view: RunView) -> dict[str, Any]:
        config, final, rows = view.config, mapping(view.final), [one.row for one in view.rounds]
        state = self.state(view)

        def figure(key: str) -> float | None:
            return number(final[key]) if key in final else _last(rows, key)

        return {
            "id": self.name,
            "name": self.name,
            "state": state,
            "model": text(config.get("model.name")) or text(config.get("model.entry")),
            "data": text(config.get("data.name")),
            "strategy": text(config.get("server.strategy")),
            "mode": view.mode or text(config.get("server.mode")) or "sync",
            "round": max((whole(row.get("round")) or 0 for row in rows), default=0),
            "rounds": whole(config.get("server.rounds")) or 0,
            "started_s": view.started_s,
            "updated_s": view.updated_s,
            "seconds": number(final.get("seconds")) or _elapsed(view, state),
            "accuracy": figure("accuracy"),
            "loss": figure("loss"),
            "epsilon": figure("epsilon"),
            "epsilon_limit": number(config.get("privacy.epsilon")) or None,
            "delta": number(config.get("privacy.delta")) if mechanism_of(config) != "none" else None,
            "protection": text(view.facts.get("protection")) or protection_of(config),
            "uplink_bytes": sum(whole(row.get("uplink_bytes")) or 0 for row in rows),
            "downlink_bytes": sum(whole(row.get("downlink_bytes")) or 0 for row in rows),
            "error": self._unreadable or view.error or view.paused or "",
        }

    def _refresh(self) -> None:
        """Read on where the last call ended."""
        before = time.time()
        try:
            stamp = _stamp(self.directory)
            if stamp == self._stamp:
                return
            identity = stamp[0]
            if identity != self._identity:  # another file stands there now
                self._view, self._identity = RunView(), identity
            view = self._view
            # Devices' part in rounds is counted; to parse what each of them did would be most of the work.
            counted = ", ".join(f"'{kind}'" for kind in COUNTED)
            columns = _COLUMNS.replace("data", f"CASE WHEN kind IN ({counted}) THEN '' ELSE data END AS data")
            query = f"SELECT {columns} FROM events WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608 - constants
            while rows := self._read(query, (view.last_id, _BATCH)):
                view.take(map(_event, rows))
                if len(rows) < _BATCH:
                    break
            self._unreadable = "" if view.last_id else "no event is written yet"
            settled = all(changed_s < before - _SETTLED_S for changed_s in stamp[1])
            self._stamp = stamp if settled and view.last_id else None
        except RunError as error:
            self._unreadable = str(error)
            self._stamp = None

    def _online_s(self, view: RunView) -> float:
        """Since when a device must have been heard of to be online; of a run that is over, before its end."""
        return (time.time() if self.state(view) in LIVE else view.updated_s or 0.0) - run_devices.ONLINE_S

    def _read_devices(self, query: run_devices.Query) -> list[Any]:
        try:
            return self._read(query.sql, query.values)
        except RunError as error:
            if "malformed JSON" not in str(error):
                raise
            return self._read(query.guarded().sql, query.values)

    def _read(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        try:
            with self._opened() as events:
                return events.execute(query, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            raise RunError(f"{self.name}/{EVENTS}: cannot be read ({error})") from error

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        path = (self.directory / EVENTS).absolute()
        # Without a -wal file nobody writes, and to open it as one who might would leave such a file behind.
        alone = not path.with_name(f"{EVENTS}-wal").exists()
        address = f"{path.as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
        with closing(sqlite3.connect(address, uri=True, timeout=_WAIT_S, isolation_level=None)) as events:
            events.text_factory = lambda raw: raw.decode("utf-8", "replace")
            yield events


def mechanism_of(config: Data) -> str:
    """How updates are made private, by the run's settings; see `PrivacyConfig.chosen`."""
    if not (config.get("privacy.epsilon") or config.get("privacy.noise_multiplier")):
        return "none"
    chosen = text(config.get("privacy.mechanism"), 64)
    return chosen or ("distributed" if config.get("secure.enabled") else "central")


def is_protected(config: Data) -> bool:
    """Whether the settings promise clients that no figure of one of them alone is told."""
    return bool(config.get("secure.enabled")) or mechanism_of(config) != "none"


def protection_of(config: Data) -> str:
    """What is done for the clients' data, in words; empty if nothing."""
    words = ["secure aggregation"] if config.get("secure.enabled") else []
    mechanism = mechanism_of(config)
    return ", ".join([*words, *([] if mechanism == "none" else [f"{mechanism} differential privacy"])])


def plain_row(row: Data) -> dict[str, Any]:
    """A closed round's row without the clients' names."""
    kept = {key: value for key, value in row.items() if key != "failures"}
    return kept | {"round": whole(row.get("round")) or 0}


def shown(event: LoggedEvent, view: RunView) -> dict[str, Any]:
    """An event as it is shown. Where clients are promised so, none that is about one of them holds a figure of its."""
    data = event.data
    if is_protected(view.config) and "client" in data:
        data = {name: value for name, value in data.items() if name in _TOLD_OF_A_CLIENT}
    if event.kind == "run_facts":
        data = {name: value for name, value in data.items() if name != "key"}  # what devices find their state by
    return {
        "id": event.id,
        "unix_s": event.unix_s,
        "kind": event.kind,
        "round": event.round,
        "data": {name: _shortened(value) for name, value in data.items()},
        "lost": view.is_lost(event.id),
    }


def _shortened(value: Any) -> Any:
    """A long list, of all devices perhaps, by its beginning."""
    if isinstance(value, list) and len(value) > _MOST_SHOWN:
        return [*value[:_MOST_SHOWN], f"... {len(value) - _MOST_SHOWN} more"]
    return value


_COLUMNS = "id, unix_s, kind, round, data"


def _event(row: tuple[Any, ...]) -> LoggedEvent:
    number_, unix_s, kind, round_number, data = row
    return LoggedEvent(number_, number(unix_s) or 0.0, text(kind, 64), whole(round_number), _parsed(data))


def _parsed(data: Any) -> dict[str, Any]:
    """An event's data; empty where it is no JSON object. What is no number in JSON reads as null."""
    if not data or not isinstance(data, str) or len(data) > _MOST_BYTES:
        return {}
    try:
        found = json.loads(data, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _finite(text_: str) -> float | None:
    """A number in JSON may be too large for one here, as 1e999 is."""
    value = float(text_)
    return value if math.isfinite(value) else None


def _stamp(directory: Path) -> tuple[object, tuple[float, ...], object]:
    """Which files these are, when they changed, and what else shows that they did."""
    found = []
    for name in (EVENTS, f"{EVENTS}-wal"):
        try:
            found.append((directory / name).stat())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RunError(f"{directory.name}/{name}: cannot be read ({error.strerror})") from error
    if not found:
        raise RunError(f"{directory.name}/{EVENTS}: is gone")
    first = found[0]
    return (
        (first.st_dev, first.st_ino),
        tuple(one.st_mtime for one in found),
        [(one.st_ino, one.st_size, one.st_mtime_ns) for one in found],
    )


def _last(rows: Sequence[Any], key: str) -> float | None:
    return next((value for row in reversed(rows) if (value := number(row.get(key))) is not None), None)


def _elapsed(view: RunView, state: str) -> float | None:
    if view.started_s is None or view.updated_s is None:
        return None
    until_s = time.time() if state in LIVE else view.updated_s
    return max(0.0, until_s - view.started_s)


def _eta_s(view: RunView, summary: Any) -> float | None:
    """What the rounds to come take if they take as long as the last few."""
    seconds = [value for one in view.rounds[-_ETA_ROUNDS:] if (value := number(one.row.get("seconds"))) is not None]
    left = summary["rounds"] - summary["round"]
    return sum(seconds) / len(seconds) * max(0, left) if seconds else None


def _now(now: Now) -> dict[str, Any]:
    plan = {"round": now.round, "asked": now.asked, "goal": now.goal, "deadline_s": now.deadline_s, "mode": now.mode}
    return plan | now.counts
