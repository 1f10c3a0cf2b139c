"""A staged roll-out as pure logic: who is asked what next, what reports mean, when it stops. No network, no clock.

A stage is a share of the devices that can take the artefact: those with SHA-256(node, version) % 100 below it. So
every stage holds the one before it, and another version meets other canaries first.

In each stage devices are offered the artefact, run it for a while, and are asked again. The roll-out goes on while no
more than `max_failures` of those offered in the stage failed, at least one did not, and no more than that share of all
that installed it fell back by themselves. Else it halts, and every device that has it, or may have it, is ordered back.

A device that lies costs at most what a device that fails does.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from statistics import median
from typing import Any

from edge_runtime.deploy.offer import Ask, Report
from edge_runtime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Plan:
    """What is rolled out, how wide each stage is (per cent, rising to 100), and which share of devices may fail."""

    version: int
    digest: str  # of its manifest
    format: str
    nbytes: int
    stages: tuple[int, ...]
    max_failures: float


def parse_stages(words: Sequence[str]) -> tuple[int, ...]:
    """Percentages that rise to 100.

    >>> parse_stages(("10", "50", "100"))
    (10, 50, 100)
    """
    stages = tuple(int(word) for word in words if word.isascii() and word.isdigit() and len(word) <= 3)
    if len(stages) < len(words) or not stages or stages[-1] != 100 or sorted({*stages, 0})[1:] != list(stages):
        raise ConfigError(
            f"rollout.stages = {','.join(words)!r}: must be percentages that rise to 100, such as 10,50,100"
        )
    return stages


def bucket(node: int, version: int) -> int:
    """Where a device stands between 0 and 99: in every stage of more per cent than that."""
    digest = hashlib.sha256(f"{node % 2**64}:{version}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100


class Place(Enum):
    """How far a device has come."""

    ASKED = "asked"
    ABLE = "able"
    UNABLE = "unable"
    ABSENT = "absent"
    OFFERED = "offered"
    INSTALLED = "installed"
    REFUSED = "refused"
    SILENT = "silent"  # was offered it, or had it, and no longer answers: it may run it
    ROLLED_BACK = "rolled back"  # by itself
    ORDERED_BACK = "ordered back"
    RECALLED = "recalled"  # by our order
    STUCK = "stuck"  # runs it, or may, after our order
    UNSURE = "unsure"  # was about to be offered it when the server was killed


class Heard(Enum):
    """What a device's answer comes down to."""

    RUNS = "runs it"
    FELL_BACK = "had it, and runs another"
    OTHER = "never had it"
    UNFIT = "cannot take it"
    NOTHING = "no answer"


# Where a device stands, what is heard of it -> where it stands then. In other places nothing is asked of a device.
MOVES: Mapping[Place, Mapping[Heard, Place]] = {
    Place.ASKED: {
        Heard.RUNS: Place.ABLE,
        Heard.FELL_BACK: Place.UNABLE,  # its floor is as high: it would not take it
        Heard.OTHER: Place.ABLE,
        Heard.UNFIT: Place.UNABLE,
        Heard.NOTHING: Place.ABSENT,
    },
    Place.OFFERED: {
        Heard.RUNS: Place.INSTALLED,
        Heard.FELL_BACK: Place.ROLLED_BACK,
        Heard.OTHER: Place.REFUSED,
        Heard.UNFIT: Place.REFUSED,
        Heard.NOTHING: Place.SILENT,
    },
    Place.INSTALLED: {
        Heard.RUNS: Place.INSTALLED,
        Heard.FELL_BACK: Place.ROLLED_BACK,
        Heard.OTHER: Place.ROLLED_BACK,  # it lost its slots
        Heard.UNFIT: Place.ROLLED_BACK,
        Heard.NOTHING: Place.SILENT,
    },
    Place.SILENT: {
        Heard.RUNS: Place.INSTALLED,
        Heard.FELL_BACK: Place.ROLLED_BACK,
        Heard.OTHER: Place.REFUSED,
        Heard.UNFIT: Place.REFUSED,
        Heard.NOTHING: Place.SILENT,
    },
    Place.ORDERED_BACK: {
        Heard.RUNS: Place.STUCK,
        Heard.FELL_BACK: Place.RECALLED,
        Heard.OTHER: Place.REFUSED,  # the offer had never reached it
        Heard.UNFIT: Place.REFUSED,
        Heard.NOTHING: Place.STUCK,
    },
    Place.UNSURE: {
        Heard.RUNS: Place.INSTALLED,
        Heard.FELL_BACK: Place.ROLLED_BACK,
        Heard.OTHER: Place.ABLE,  # the offer had never reached it
        Heard.UNFIT: Place.UNABLE,
        Heard.NOTHING: Place.SILENT,
    },
}
WHY = {
    Heard.FELL_BACK: "it has had this version, or a later one",
    Heard.UNFIT: "it has no runtime for this format, or takes no artefact as large",
    Heard.NOTHING: "no reply",
}
# What we ask -> whom, by where they stand, and where that takes them until they have answered.
SENT: Mapping[Ask, Mapping[Place, Place]] = {
    Ask.STATE: {Place.ABSENT: Place.ASKED, Place.UNSURE: Place.UNSURE},
    Ask.INSTALL: {Place.ABLE: Place.OFFERED},
    Ask.CHECK: {Place.INSTALLED: Place.INSTALLED, Place.SILENT: Place.SILENT},
    Ask.ROLL_BACK: {Place.INSTALLED: Place.ORDERED_BACK, Place.SILENT: Place.ORDERED_BACK},
}
# Where a device stood, as far as is known, when the server was killed -> from where it goes on.
RESUMED: Mapping[Place, Place] = {
    Place.ASKED: Place.ABSENT,
    Place.OFFERED: Place.UNSURE,
    Place.ORDERED_BACK: Place.SILENT,
}
MOST_SHOWN = 200  # characters of a device's reason where it stands for many; all of it is in the events
FAILED = frozenset({Place.REFUSED, Place.SILENT, Place.ROLLED_BACK})


@dataclass(slots=True)
class Device:
    """One device: where it stands, the version that it last said it runs (None before it did), and its last words."""

    place: Place = Place.ABSENT
    version: int | None = None
    latency_s: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """One question to these nodes. All of them are to be heard, or known silent, before the next order."""

    ask: Ask
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """How a stage ended; the counts are of the devices that were offered the artefact in it, at that time."""

    percent: int
    offered: int
    installed: int
    refused: int
    silent: int
    rolled_back: int
    good: bool
    latency_s: float | None  # of one row in the trial, median


@dataclass(slots=True)
class Rollout:
    """The roll-out in progress: `for order in rollout.orders()`, and `hear` every node of an order before the next."""

    plan: Plan
    devices: dict[int, Device] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    halted: str = ""
    begun: set[int] = field(default_factory=set)  # who was offered it in the stage in progress
    _waiting: set[int] = field(default_factory=set)
    _ordered: str = ""  # why somebody has it halted

    def meet(self, online: Iterable[int]) -> None:
        """These nodes are there; those not yet known take part from the next stage on."""
        for node in online:
            self.devices.setdefault(node, Device())

    def halt(self, reason: str) -> None:
        """Let the order in progress be the last one before all are ordered back."""
        self._ordered = self._ordered or reason

    def go_on(self) -> None:
        """Called once, before `orders`, on a roll-out as it was known when its server was killed."""
        for device in self.devices.values():
            device.place = RESUMED.get(device.place, device.place)

    def orders(self, before_stage: Callable[[int], None] = lambda percent: None) -> Iterator[Order]:
        """What to ask of whom, one order after another; ends when the roll-out is over.

        `before_stage` is called with each stage's per cent before it offers anything, and may wait, or `halt`.
        """
        if self.halted:
            yield from self._order(Ask.ROLL_BACK, self.devices)
            return
        for percent in self.plan.stages[len(self.stages) :]:
            yield from self._order(Ask.STATE, self.devices)
            before_stage(percent)
            fresh = sorted({*self.begun, *self._stage(percent)})
            yield from self._order(Ask.INSTALL, fresh)
            if fresh and not self._why_halt(fresh):
                yield from self._order(Ask.CHECK, self.devices)
            self.halted = self._why_halt(fresh)
            self.stages.append(self._closed(percent, fresh))
            self.begun = set()
            if self.halted:
                yield from self._order(Ask.ROLL_BACK, self.devices)
                return
        if not any(stage.offered for stage in self.stages):
            self.halted = self._why_nobody()

    def hear(self, node: int, report: Report | None, reason: str = "") -> Device:
        """A node's answer to the order in progress, None if there is none that can be read; returns where it stands."""
        device = self.devices[node]
        if node not in self._waiting:
            return device  # a second answer, or one that nobody asked for
        self._waiting.discard(node)
        heard = self._meaning(report)
        device.place = MOVES[device.place][heard]
        device.reason = reason or (report.reason if report else "") or WHY.get(heard, "")
        if report is not None:
            device.version = report.version
            device.latency_s = report.latency_s or device.latency_s
        return device

    @property
    def versions(self) -> dict[str, int]:
        """How many devices run which version, as they last said; "0" is none, "unknown" who never said."""
        said = Counter(self.devices[node].version for node in self.devices)
        return {"unknown" if version is None else str(version): n for version, n in sorted(said.items(), key=_first)}

    def record(self) -> dict[str, Any]:
        """The roll-out as it stands, as JSON."""
        places = Counter(device.place.value for device in self.devices.values())
        return {
            "version": self.plan.version,
            "format": self.plan.format,
            "bytes": self.plan.nbytes,
            "stages": [asdict(stage) for stage in self.stages],
            "halted": self.halted or None,
            "devices": dict(sorted(places.items())),
            "versions": self.versions,
        }

    def _order(self, ask: Ask, nodes: Iterable[int]) -> Iterator[Order]:
        """The order for those of the nodes that it is for. Who was not heard when the next one is due, is silent."""
        order = Order(ask, tuple(sorted(node for node in nodes if self.devices[node].place in SENT[ask])))
        if order.nodes:
            self.take_order(order)
            yield order
            for node in sorted(self._waiting):
                self.hear(node, None)

    def take_order(self, order: Order) -> None:
        """The order is about to be sent to its nodes, each of which stands where it can be asked this."""
        self.meet(order.nodes)
        for node in order.nodes:
            device = self.devices[node]
            device.place = SENT[order.ask].get(device.place, device.place)
        if order.ask is Ask.INSTALL:
            self.begun.update(order.nodes)
        self._waiting = set(order.nodes)

    def _stage(self, percent: int) -> list[int]:
        """Those that this stage offers the artefact for the first time; of a small fleet's empty first stage, one."""
        if self._ordered:
            return []
        able = sorted(
            (bucket(node, self.plan.version), node)
            for node, device in self.devices.items()
            if device.place is Place.ABLE
        )
        inside = [node for place, node in able if place < percent]
        nobody_yet = not self.begun and not any(stage.offered for stage in self.stages)
        return inside or [node for _, node in able[:1] if nobody_yet]

    def _meaning(self, report: Report | None) -> Heard:
        if report is None:
            return Heard.NOTHING
        if (report.version, report.digest) == (self.plan.version, self.plan.digest):
            return Heard.RUNS
        if report.floor >= self.plan.version:
            return Heard.FELL_BACK
        fits = self.plan.format in report.formats and self.plan.nbytes <= report.max_bytes
        return Heard.OTHER if fits else Heard.UNFIT

    def _why_halt(self, fresh: Sequence[int]) -> str:
        """The order or the regression that ends it; empty while there is none."""
        if self._ordered:
            return self._ordered
        places = Counter(self.devices[node].place for node in fresh)
        failed, limit = sum(places[place] for place in FAILED), self.plan.max_failures
        everywhere = Counter(device.place for device in self.devices.values())
        relapsed, had = everywhere[Place.ROLLED_BACK], everywhere[Place.ROLLED_BACK] + everywhere[Place.INSTALLED]
        if fresh and failed == len(fresh):
            return f"none of {len(fresh)} devices came to run it; {self._commonest(fresh)}"
        if failed > limit * len(fresh):
            return f"{failed} of {len(fresh)} devices failed, {limit:.0%} may; {self._commonest(fresh)}"
        if relapsed > limit * had:
            return f"{relapsed} of {had} devices rolled it back, {limit:.0%} may; {self._commonest(self.devices)}"
        return ""

    def _commonest(self, nodes: Iterable[int]) -> str:
        return _commonest_reason(self.devices[node] for node in nodes if self.devices[node].place in FAILED)

    def _why_nobody(self) -> str:
        return f"no device can take it; {_commonest_reason(self.devices.values())}"

    def _closed(self, percent: int, fresh: Sequence[int]) -> Stage:
        places = Counter(self.devices[node].place for node in fresh)
        seconds = [latency for node in fresh if (latency := self.devices[node].latency_s) is not None]
        return Stage(
            percent=percent,
            offered=len(fresh),
            installed=places[Place.INSTALLED],
            refused=places[Place.REFUSED],
            silent=places[Place.SILENT],
            rolled_back=places[Place.ROLLED_BACK],
            good=not self.halted,
            latency_s=round(median(seconds), 6) if seconds else None,
        )


def _commonest_reason(devices: Iterable[Device]) -> str:
    reasons = Counter(device.reason for device in devices if device.reason)
    if not reasons:
        return "none says why"
    reason = reasons.most_common(1)[0][0]
    return "most say: " + (reason if len(reason) <= MOST_SHOWN else reason[: MOST_SHOWN - 3] + "...")


def _first(item: tuple[int | None, int]) -> int:
    return -1 if item[0] is None else item[0]
