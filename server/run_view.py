"""What a run's events come to: its settings, closed rounds, the round in progress, versions of the model, how it ended.

A fold over the event log, in order, which takes events a few at a time. Events are data from a file that another
process writes, perhaps an older or a newer release, and may be damaged: a value of the wrong type reads as absent.

Whatever happened between the last checkpoint and a `run_resumed` belongs to an attempt that was lost: it is taken back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.run_store import LoggedEvent

Data = Mapping[str, Any]

# What each device did in a round; the fold counts these and never looks into them, for there can be many.
COUNTED = {
    "update_received": "received",
    "client_late": "late",
    "client_dropped": "dropped",
    "client_declined": "declined",
}


@dataclass(frozen=True, slots=True)
class ClosedRound:
    """The row of a round, as in run.json, and the event that it stands in."""

    id: int
    unix_s: float
    row: Data


@dataclass(slots=True)
class Now:
    """The round in progress."""

    round: int | None
    asked: int
    goal: int
    mode: str
    deadline_s: float | None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED.values(), 0))


@dataclass(slots=True)
class RunView:
    """Everything up to event `last_id`."""

    last_id: int = 0
    started_s: float | None = None
    updated_s: float | None = None
    config: Data = field(default_factory=dict)
    facts: Data = field(default_factory=dict)
    rounds: list[ClosedRound] = field(default_factory=list)
    models: list[tuple[int, int, str]] = field(default_factory=list)  # event, round, sha256
    lost: list[tuple[int, int]] = field(default_factory=list)  # first and last event of each lost attempt
    rollout: list[LoggedEvent] = field(default_factory=list)
    exported: Data | None = None
    now: Now | None = None
    mode: str = ""
    paused: str | None = None
    error: str | None = None
    final: Data | None = None
    _safe_id: int = 0  # what a resumed run goes on from: the last checkpoint, or the run's beginning

    def take(self, events: Iterable[LoggedEvent]) -> None:
        """Go on with the events that follow `last_id`."""
        for event in events:
            if handler := _HANDLERS.get(event.kind):
                handler(self, event)
            elif event.kind.startswith("rollout_") and event.kind != "rollout_device":  # of those there can be many
                self.rollout.append(event)
            elif self.now and (count := COUNTED.get(event.kind)):
                self.now.counts[count] += 1
            self.last_id, self.updated_s = event.id, event.unix_s

    def is_lost(self, event_id: int) -> bool:
        return any(first <= event_id <= last for first, last in self.lost)


def _run_started(view: RunView, event: LoggedEvent) -> None:
    view.config, view.started_s, view._safe_id = event.data, event.unix_s, event.id


def _run_facts(view: RunView, event: LoggedEvent) -> None:
    view.facts = event.data
    view._safe_id = max(view._safe_id, event.id) if not view.models else view._safe_id


def _run_resumed(view: RunView, event: LoggedEvent) -> None:
    if view.last_id > view._safe_id:
        view.lost.append((view._safe_id + 1, view.last_id))
    view.rounds = [one for one in view.rounds if one.id <= view._safe_id]
    view.models = [one for one in view.models if one[0] <= view._safe_id]
    view.rollout = []
    view.now = view.paused = view.error = view.final = view.exported = None


def _round_planned(view: RunView, event: LoggedEvent) -> None:
    asked = event.data.get("asked")
    count = len(asked) if isinstance(asked, list) else whole(asked) or 0
    view.mode = text(event.data.get("mode")) or view.mode
    goal = whole(event.data.get("goal"))
    view.now = Now(event.round, count, count if goal is None else goal, view.mode, number(event.data.get("deadline_s")))


def _clients_asked(view: RunView, event: LoggedEvent) -> None:
    asked = event.data.get("asked")
    if view.now and isinstance(asked, list):
        view.now.asked += len(asked)


def _round_closed(view: RunView, event: LoggedEvent) -> None:
    view.rounds.append(ClosedRound(event.id, event.unix_s, event.data))
    view.now = None


def _checkpoint(view: RunView, event: LoggedEvent) -> None:
    view.models.append((event.id, event.round or 0, text(event.data.get("model"))))
    view._safe_id = event.id


def _artefact(view: RunView, event: LoggedEvent) -> None:
    view.exported = event.data


def _paused(view: RunView, event: LoggedEvent) -> None:
    view.paused = text(event.data.get("reason")) or "paused"


def _continued(view: RunView, event: LoggedEvent) -> None:
    view.paused = None


def _finished(view: RunView, event: LoggedEvent) -> None:
    view.final, view.now, view.paused = event.data, None, None


def _failed(view: RunView, event: LoggedEvent) -> None:
    view.error, view.now, view.paused = text(event.data.get("error")) or "failed", None, None


_HANDLERS: Mapping[str, Callable[[RunView, LoggedEvent], None]] = {
    "run_started": _run_started,
    "run_facts": _run_facts,
    "run_resumed": _run_resumed,
    "round_planned": _round_planned,
    "clients_asked": _clients_asked,
    "round_closed": _round_closed,
    "checkpoint": _checkpoint,
    "artefact": _artefact,
    "run_paused": _paused,
    "run_continued": _continued,
    "run_finished": _finished,
    "run_failed": _failed,
}


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def whole(value: Any) -> int | None:
    """A whole number that SQLite and JavaScript can hold, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else None


def text(value: Any, most: int = 2000) -> str:
    """Text of bounded length; empty if it is none."""
    return value[:most] if isinstance(value, str) else ""


def mapping(value: Any) -> Data:
    """A mapping; empty if it is none."""
    return value if isinstance(value, dict) else {}
