"""What is known of every device that was ever online: what it says of itself, and what became of it in rounds.

The run store's device table is brought up to date from here. Where clients are promised privacy, nothing that depends
on a client's data is noted: no loss, no number of examples, no time that its training took.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_runtime.config import text_bytes
from edge_runtime.device.report import DeviceReport, one_line, parse_report
from edge_runtime.errors import PeerError
from edge_runtime.secagg import PHASES
from server.checkpoint import Tree
from server.link import Answer, read_device, read_figures, read_running
from server.rounds import DECLINED, DROPPED, LATE, TAKEN, Outcome, RoundResult
from server.run_store import RunStore, Sighting

SEEN_EVERY_S = 10.0  # so often the table is told of devices that are online and idle
TOLD_EVERY_S = 1.0  # and so often, at most, of those of whom there is news
RETRY_S = 60.0  # after which a device is asked again that declined and did not say when

_Figures = tuple[int, float] | None


@dataclass(slots=True)
class _Device:
    """One device. `until_s` is the run's time up to which it is not asked; None: it may be asked."""

    report: DeviceReport | None = None
    until_s: float | None = None
    why_not: str = ""
    budget: int | None = None  # bytes; kept beside the report, which does not outlive a restart
    running: int | None = None
    seconds: float | None = None
    ends: Counter[str] = field(default_factory=Counter)
    dropped_in: Counter[str] = field(default_factory=Counter)
    last_reason: str = ""


class Fleet:
    """All devices of a run. `clock` is the run's time, which may be a simulation's; `unix` the world's.

    `private`: clients are promised that the server learns nothing of a single one.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        private: bool = False,
        unix: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._private, self._unix = clock, private, unix
        self._devices: dict[int, _Device] = {}
        self._store: RunStore | None = None
        self._online: set[int] = set()  # since the table was told last
        self._news: set[int] = set()
        self._told_s = self._seen_s = -math.inf
        self._asked: dict[int, float] = {}  # when, of those whose end is not known yet
        self._heard: dict[int, tuple[float, _Figures]] = {}  # of these, who has answered: after how long, and what
        self._needs = 0
        self._restored_s: float | None = None  # what the clock said when the state was taken that is not yet in use

    def open(self, store: RunStore) -> None:
        """Sightings go there from now on. What devices said of themselves before a restart stands there."""
        self._store = store
        for node, data in store.read("SELECT node, data FROM devices"):
            said = {name: value for name, value in json.loads(data).get("report", {}).items() if value is not None}
            if int(node) in self._devices and said:
                self._devices[int(node)].report = parse_report(said)

    def online(self, nodes: Iterable[int]) -> None:
        """Take note that these are online now."""
        for node in nodes:
            self._online.add(node)
            if node not in self._devices:
                self._devices[node] = _Device()
                self._news.add(node)
        if self.to_be_seen:
            self.tell()

    @property
    def to_be_seen(self) -> bool:
        """Whether it is time again to ask who is online, also in the middle of a round."""
        return self._unix() - self._seen_s >= SEEN_EVERY_S

    def eligible(self, nodes: Sequence[int], needs: int = 0) -> list[int]:
        """Those of the nodes that may be asked now to train what takes `needs` bytes.

        Not those that have declined, until the time that they named; nor those with a smaller memory budget.
        """
        self.online(nodes)
        self._needs, now = needs, self._now()
        return [node for node in nodes if self._may(self._devices[node], now)]

    def why_not(self, nodes: Iterable[int]) -> Counter[str]:
        """Why devices of these may not be asked now, and how many for each reason."""
        now = self._now()
        out = [device for node in nodes if not self._may(device := self._devices[node], now)]
        return Counter(_kind(device.why_not) if self._fits(device) else "memory budget too small" for device in out)

    def next_s(self, nodes: Iterable[int]) -> float | None:
        """In how many seconds the first of these may be asked that may not now; None if none of them will."""
        now = self._now()
        times = [device.until_s - now for node in nodes if (device := self._devices[node]).until_s is not None]
        return max(0.0, min(times)) if times else None

    def ask(self, nodes: Iterable[int]) -> None:
        """These are asked now."""
        now = self._now()
        for node in nodes:
            self._asked[node] = now
            self._heard.pop(node, None)
            self._devices.setdefault(node, _Device())

    def hear(self, answer: Answer) -> None:
        """Take note of a reply, or of why there is none."""
        device = self._devices.setdefault(answer.node, _Device())
        self._online.add(answer.node)
        self._news.add(answer.node)
        figures: _Figures = None
        if answer.content is None:
            device.last_reason = one_line(answer.error)
        else:
            version = read_running(answer.content)
            device.running = device.running if version is None else version
            self._take_word(device, answer)
            if not self._private:
                figures = _figures(answer)
        if answer.node in self._asked and answer.node not in self._heard:
            self._heard[answer.node] = (self._now() - self._asked[answer.node], figures)

    def settle(self, result: RoundResult) -> tuple[Outcome, ...]:
        """The round is over: what became of each that was asked."""
        ends = dict.fromkeys(result.clients, TAKEN) | dict.fromkeys(result.late, LATE)
        reasons = {failure.client: failure.reason for failure in result.declined}
        ends |= dict.fromkeys(reasons, DECLINED)
        for failure in result.failures:  # under secure aggregation also of some whose update is in the sum
            ends.setdefault(failure.client, DROPPED)
            reasons[failure.client] = failure.reason
        outcomes = tuple(
            self._end(int(name), end, reasons.get(name, "")) for name, end in sorted(ends.items(), key=_id)
        )
        for outcome in outcomes:
            self._asked.pop(outcome.node, None)
            self._heard.pop(outcome.node, None)
        if self._unix() - self._told_s >= TOLD_EVERY_S:
            self.tell()
        return outcomes

    def tell(self) -> None:
        """Bring the device table up to date, in one transaction."""
        if self._store is None:
            return
        now = self._unix()
        seen = [
            Sighting(node, now, self._data(node, now) if node in self._news else None)
            for node in sorted(self._online | self._news)
        ]
        self._store.seen(seen)
        self._online, self._news = set(), set()
        self._told_s = self._seen_s = now

    @property
    def versions(self) -> Mapping[str, int]:
        """How many devices run which version; "0" is none."""
        known = Counter(device.running for device in self._devices.values() if device.running is not None)
        return {str(version): count for version, count in sorted(known.items())}

    def state(self) -> Tree:
        """Columns, for there may be many thousands. Of texts the device table has the last."""
        now, devices = self._now(), self._devices.values()
        until = [math.nan if one.until_s is None else one.until_s for one in devices]
        seconds = [math.nan if one.seconds is None else one.seconds for one in devices]
        counts = [[one.ends[end] for end in (TAKEN, DROPPED, LATE, DECLINED)] for one in devices]
        wholes = [[-1 if value is None else value for value in (one.budget, one.running)] for one in devices]
        return {
            "nodes": np.array(list(self._devices), np.uint64),
            "until": np.array(until, np.float64),
            "seconds": np.array(seconds, np.float64),
            "counts": np.array(counts, np.int64).reshape(-1, 4),
            "wholes": np.array(wholes, np.int64).reshape(-1, 2),
            "dropped_in": {str(node): dict(one.dropped_in) for node, one in self._devices.items() if one.dropped_in},
            "now": now,
            "asked": {str(node): asked for node, asked in self._asked.items()},
            "heard": {str(node): [elapsed, figures] for node, (elapsed, figures) in self._heard.items()},
        }

    def restore(self, state: Tree) -> None:
        self._devices, self._restored_s = {}, state["now"]
        self._asked = {int(node): asked for node, asked in state["asked"].items()}
        heard = ((int(node), elapsed, figures) for node, (elapsed, figures) in state["heard"].items())
        self._heard = {
            node: (elapsed, (figures[0], figures[1]) if figures else None) for node, elapsed, figures in heard
        }
        columns = (state[name].tolist() for name in ("nodes", "until", "seconds", "counts", "wholes"))
        for node, until, seconds, counts, wholes in zip(*columns, strict=True):
            budget, running = (None if value < 0 else value for value in wholes)
            self._devices[node] = _Device(
                until_s=None if math.isnan(until) else until,
                budget=budget,
                running=running,
                seconds=None if math.isnan(seconds) else seconds,
                ends=Counter(dict(zip((TAKEN, DROPPED, LATE, DECLINED), counts, strict=True))),
                dropped_in=Counter(state["dropped_in"].get(str(node), {})),
            )

    def _now(self) -> float:
        """The run's time. Where it was restored, times noted before count as if it had stood still in between."""
        now = self._clock()
        if self._restored_s is not None:
            gone_by, self._restored_s = now - self._restored_s, None
            for device in self._devices.values():
                device.until_s = None if device.until_s is None else device.until_s + gone_by
            self._asked = {node: asked + gone_by for node, asked in self._asked.items()}
        return now

    def _may(self, device: _Device, now: float) -> bool:
        if device.until_s is not None and now >= device.until_s:
            device.until_s = None
        return device.until_s is None and self._fits(device)

    def _fits(self, device: _Device) -> bool:
        return device.budget is None or device.budget >= self._needs

    def _take_word(self, device: _Device, answer: Answer) -> None:
        """Believe the device's report, if it is one; a malformed one is no reason to lose its update."""
        assert answer.content is not None
        try:
            said = read_device(answer.content)
        except PeerError as error:
            device.last_reason = str(error)
            return
        if said is None:
            return
        device.report, device.budget, device.why_not = said, said.memory_budget, said.why_not
        wait_s = RETRY_S if said.retry_s is None else said.retry_s
        device.until_s = None if said.eligible else self._now() + wait_s

    def _end(self, node: int, end: str, reason: str) -> Outcome:
        device = self._devices.setdefault(node, _Device())
        self._news.add(node)
        device.ends[end] += 1
        if reason:
            device.last_reason = one_line(reason)
        if end == DROPPED and (phase := _phase(reason)):
            device.dropped_in[phase] += 1
        elapsed, figures = self._heard.get(node, (None, None))
        if end in (LATE, DROPPED) and elapsed is None and node in self._asked:
            elapsed = self._now() - self._asked[node]
        if self._private or end == DECLINED:
            return Outcome(node, end)
        if end == DROPPED:
            return Outcome(node, end, seconds=elapsed)
        device.seconds = elapsed
        examples, loss = figures or (0, None)
        return Outcome(node, end, examples, loss, elapsed, self._headroom(device))

    def _headroom(self, device: _Device) -> float | None:
        left = device.report.memory_available if device.report else None
        return None if left is None or not self._needs else left / self._needs

    def _data(self, node: int, now: float) -> dict[str, Any]:
        """A row of the device table."""
        device = self._devices[node]
        waits = device.until_s is not None
        why_not = device.why_not if waits else ""
        if not self._fits(device):
            assert device.budget is not None
            why_not = f"memory budget {text_bytes(device.budget)}, training takes {text_bytes(self._needs)}"
        return {
            "report": device.report.as_json() if device.report else {},
            "eligible": not waits and self._fits(device),
            "why_not": why_not,
            "retry_s": None if device.until_s is None else now + device.until_s - self._now(),
            "rounds": device.ends[TAKEN],
            "dropped": device.ends[DROPPED],
            "late": device.ends[LATE],
            "declined": device.ends[DECLINED],
            "last_reason": device.last_reason,
            "dropped_in": dict(device.dropped_in),
            "running": device.running,
            "seconds": device.seconds,
        }


def _figures(answer: Answer) -> _Figures:
    assert answer.content is not None
    try:
        return read_figures(answer.content)
    except ValueError:
        return None


def _id(item: tuple[str, str]) -> int:
    return int(item[0])


def _kind(why_not: str) -> str:
    """A reason without the figures that differ from device to device."""
    return why_not.partition(":")[0] or "not eligible"


def _phase(reason: str) -> str:
    """The phase of secure aggregation that a reason begins with; empty if it begins with none."""
    phase, colon, _ = reason.partition(": ")
    return phase if colon and phase in PHASES else ""
