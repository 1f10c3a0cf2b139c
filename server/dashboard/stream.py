"""Server-sent events of a run: one poller for each run that anybody watches, however many listen.

Messages (https://html.spec.whatwg.org/multipage/server-sent-events.html), in the order of the log:

    summary   the run's details, without its settings and closing figures; after everything else of the same moment
    round     the row of a round that closed
    event     one event of the log, as in GET /events
    reset     what was missed is too much to be sent: ask for everything anew

`id` is that of the last event told. A listener that comes back with it gets what it missed. One that does not keep up
is cut off, and comes back in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_runtime.errors import RunError
from server.run_reader import RunReader, plain_row, shown
from server.run_store import LoggedEvent
from server.run_view import RunView

PERIOD_S = 0.5  # between two looks at a run
ALIVE_S = 15.0  # between two signs of life
MOST_LISTENERS = 100  # over all runs
_QUEUE = 64  # batches that may wait for one listener
_BATCH = 500  # events a look
_MOST_MISSED = 5000  # events that are sent again
_NEVER = 2**62  # no event has this number

# What of a run's details never changes, or is long and comes once.
_LEFT_OUT = ("config", "final", "warnings")
_BY_THEMSELVES = ("seconds", "eta_s")  # change as time goes on, which is no news


class FullError(Exception):
    """As many listen as may."""


@dataclass(slots=True, eq=False)
class _Listener:
    queue: asyncio.Queue[bytes | None] = field(default_factory=lambda: asyncio.Queue(_QUEUE))
    cut_off: bool = False


class Feeds:
    """All runs that are watched; belongs to one event loop."""

    def __init__(
        self, *, period_s: float = PERIOD_S, alive_s: float = ALIVE_S, most_listeners: int = MOST_LISTENERS
    ) -> None:
        self._period_s, self._alive_s, self._most = period_s, alive_s, most_listeners
        self._feeds: dict[str, _Feed] = {}

    @property
    def listeners(self) -> int:
        return sum(feed.users for feed in self._feeds.values())

    @property
    def pollers(self) -> int:
        return len(self._feeds)

    def refuse_if_full(self) -> None:
        """FullError if nobody else may listen."""
        if self.listeners >= self._most:
            raise FullError(f"{self._most} listeners are all that this dashboard serves")

    async def listen(self, reader: RunReader, last_id: int | None, allowed: Callable[[], bool]) -> AsyncIterator[bytes]:
        """What happens in that run from here on, or since event `last_id`; ends once `allowed` is false."""
        if self.listeners >= self._most:
            return
        feed = self._feeds.get(reader.name)
        if feed is None or feed.reader is not reader:
            feed = self._feeds[reader.name] = _Feed(reader, self._period_s)
        listener = _Listener()
        feed.users += 1
        try:
            yield await feed.join(listener, last_id)
            while allowed() and not listener.cut_off:
                try:
                    part = await asyncio.wait_for(listener.queue.get(), self._alive_s)
                except TimeoutError:
                    part = b": here\n\n"
                if part is None:
                    return
                yield part
        finally:
            feed.leave(listener)
            if not feed.users and self._feeds.get(reader.name) is feed:
                del self._feeds[reader.name]


class _Feed:
    """One run's poller. What changes here changes on the event loop; threads only read the run."""

    def __init__(self, reader: RunReader, period_s: float) -> None:
        self.reader, self._period_s = reader, period_s
        self.users = 0
        self._listeners: set[_Listener] = set()
        self._told = -1  # the last event that listeners were told of
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    async def join(self, listener: _Listener, last_id: int | None) -> bytes:
        """What the listener is told at once; its queue gets all that follows."""
        async with self._starting:
            if self._task is None:
                _, view, details = await asyncio.to_thread(self._look, _NEVER)
                self._told = view.last_id
                self._task = asyncio.create_task(self._poll(_lasting(details)))
        told = self._told
        self._listeners.add(listener)  # nothing was awaited since: no event comes twice, none is left out
        return await asyncio.to_thread(self._welcome, last_id, told)

    def leave(self, listener: _Listener) -> None:
        self._listeners.discard(listener)
        self.users -= 1
        if not self.users and self._task is not None:
            self._task.cancel()

    async def _poll(self, figures: Mapping[str, Any]) -> None:
        try:
            while True:
                events, view, details = await asyncio.to_thread(self._look, self._told)
                if events:
                    self._told = events[-1].id
                if events or _lasting(details) != figures:
                    self._publish(_log(events, view) + _message("summary", details, self._told))
                    figures = _lasting(details)
                if len(events) < _BATCH:
                    await asyncio.sleep(self._period_s)
        finally:
            for listener in self._listeners:
                listener.cut_off = True
                if not listener.queue.full():
                    listener.queue.put_nowait(None)

    def _publish(self, part: bytes) -> None:
        for listener in self._listeners:
            if listener.queue.full():
                listener.cut_off = True
            elif not listener.cut_off:
                listener.queue.put_nowait(part)

    def _look(self, told: int) -> tuple[list[LoggedEvent], RunView, dict[str, Any]]:
        """What is new since event `told`, and the run as it is now."""
        view = self.reader.view()
        events: list[LoggedEvent] = []
        if view.last_id > told:
            with contextlib.suppress(RunError):  # the summary says so
                events = self.reader.events_after(told, _BATCH)
        return events, view, self._details()

    def _welcome(self, last_id: int | None, told: int) -> bytes:
        missed = b"" if last_id is None else self._missed(last_id, told)
        return b"retry: 2000\n\n" + missed + _message("summary", self._details(), told)

    def _missed(self, last_id: int, told: int) -> bytes:
        """The events after `last_id` up to `told`."""
        if last_id <= told and told - last_id <= _MOST_MISSED:
            with contextlib.suppress(RunError):
                events = self.reader.events_after(last_id, _MOST_MISSED)
                return _log([event for event in events if event.id <= told], self.reader.view())
        return _message("reset", {}, told)

    def _details(self) -> dict[str, Any]:
        return {name: value for name, value in self.reader.details().items() if name not in _LEFT_OUT}


def _lasting(details: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in details.items() if name not in _BY_THEMSELVES}


def _log(events: Iterable[LoggedEvent], view: RunView) -> bytes:
    parts = []
    for event in events:
        parts.append(_message("event", shown(event, view), event.id))
        if event.kind == "round_closed":
            parts.append(_message("round", plain_row(event.data), event.id))
    return b"".join(parts)


def _message(kind: str, data: Mapping[str, Any], event_id: int) -> bytes:
    body = json.dumps(data, allow_nan=False, separators=(",", ":"))  # in ASCII, on one line
    return f"id: {event_id}\nevent: {kind}\ndata: {body}\n\n".encode()
