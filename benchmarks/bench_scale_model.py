"""What lies beyond one server: a discrete-event simulation of a round, fed with service times that were measured.

Devices ask their SuperLink for messages at an even interval and send heartbeats. A round begins: those asked learn of
it at their next poll, fetch the model, train, and send an update. A SuperLink is one process that serves one request
after another; several share the devices evenly. The server app takes finished updates one after another, or regions do,
each its own devices', and pass one on. The network is one line at the top, and no round is shorter than what it takes.

Measured on one machine: CPU of a SuperLink's request (bench_superlink_load.py --json), CPU of taking an update
(bench_aggregation.py --stream). Assumed: training times (log-normal), that a load balancer costs nothing, and that
SuperLinks behind one share a database which is no bottleneck. Flower's open package has neither: a SuperLink keeps its
state in SQLite and is alone; docs/scale.md says what would have to be built. What it shows is where a queue would be.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

DRAWN = 50  # answers that are simulated; more than that are drawn from these
BUSY = 0.7  # of a SuperLink's time that may be planned for: above it queues grow steeply


@dataclass(frozen=True)
class Service:
    """Seconds of one process for one thing."""

    pull_s: float = 0.011
    heartbeat_s: float = 0.008
    message_s: float = 0.120  # all requests for one message down and one reply up: some ten, and their objects
    take_s: float = 0.010  # server app: an update's objects put together and hashed, decoded, added, logged


@dataclass(frozen=True)
class Load:
    """Who asks how often, and what a round is. Bytes are of one device's model down and update up."""

    devices: int
    asked: int = 200
    poll_s: float = 30.0
    heartbeat_s: float = 30.0
    train_s: float = 20.0  # median
    spread: float = 0.4  # of the logarithm
    down_bytes: int = 4_000_000
    up_bytes: int = 1_000_000
    line_bytes_s: float = 125e6  # 1 Gbit/s
    app_poll_s: float = 0.5


@dataclass(frozen=True)
class Outcome:
    """One round of one arrangement."""

    superlinks: int
    busy: float  # share of a SuperLink's time
    wait_p95_s: float  # of a request in its queue
    app_busy: float
    line_busy: float
    round_s: float

    @property
    def bottleneck(self) -> str:
        """What a round of many more devices would wait for first; or the devices, while nothing is half busy."""
        shares = {"SuperLink": self.busy, "server app": self.app_busy, "line": self.line_busy}
        most = max(shares, key=lambda name: shares[name])
        return most if shares[most] >= 0.5 else "devices"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="*", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--polls", type=float, nargs="*", default=[3.0, 30.0, 300.0], help="seconds between two")
    parser.add_argument("--asked", type=int, nargs="*", default=[200, 2_000])
    parser.add_argument("--service", type=Path, help="what bench_superlink_load.py --json wrote")
    parser.add_argument("--take-ms", type=float, help="CPU-ms of the server app for one update")
    options = parser.parse_args()
    service = Service()
    if options.service:
        service = replace(service, **json.loads(options.service.read_text()))
    if options.take_ms:
        service = replace(service, take_s=options.take_ms / 1e3)
    print(
        f"pull {1e3 * service.pull_s:.1f} ms, heartbeat {1e3 * service.heartbeat_s:.1f} ms, a message and its reply "
        f"{1e3 * service.message_s:.0f} ms of a SuperLink; an update {1e3 * service.take_s:.1f} ms of the server app"
    )
    print(
        f"{'devices':>10}{'poll s':>8}{'asked':>8}{'SuperLinks':>12}{'busy':>7}{'p95 wait':>10}{'app busy':>10}"
        f"{'line':>7}{'round s':>9}  waits for"
    )
    for devices in options.devices:
        for poll_s in options.polls:
            for asked in options.asked:
                load = Load(devices, min(asked, devices), poll_s)
                one = simulate(load, service, needed(load, service))
                print(
                    f"{devices:>10,}{poll_s:>8g}{load.asked:>8,}{one.superlinks:>12,}{one.busy:>7.0%}"
                    f"{1e3 * one.wait_p95_s:>7.0f} ms{one.app_busy:>10.0%}{one.line_busy:>7.0%}{one.round_s:>9.1f}"
                    f"  {one.bottleneck}"
                )
    below = Load(carried(60.0, service), 200, 60.0)
    region = simulate(below, service, 1)
    print(
        f"regions of {below.devices:,} devices, what one SuperLink carries at a poll every {below.poll_s:g} s, "
        f"{below.asked} asked in each; one update from each to the top:"
    )
    for devices in options.devices:
        regions = math.ceil(devices / below.devices)
        above = Load(regions, regions, 3.0, train_s=region.round_s, spread=0.1)
        top = simulate(above, service, needed(above, service))
        updates = regions * below.asked
        print(
            f"{devices:>10,} devices: {regions:>4} regions, {top.superlinks} SuperLinks at the top "
            f"({top.busy:.0%} busy); {updates:,} updates in {top.round_s:.0f} s, {updates / top.round_s:.0f} a second"
        )


def carried(poll_s: float, service: Service) -> int:
    """Devices whose polls and heartbeats keep one SuperLink busy for half of its time: the rest is for rounds."""
    return int(0.5 / (service.pull_s / poll_s + service.heartbeat_s / Load.heartbeat_s))


def needed(load: Load, service: Service) -> int:
    """SuperLinks for which polls and heartbeats leave none busier than `BUSY`."""
    idle = load.devices * (service.pull_s / load.poll_s + service.heartbeat_s / load.heartbeat_s)
    return max(1, math.ceil(idle / BUSY))


def simulate(load: Load, service: Service, superlinks: int, seed: int = 0) -> Outcome:
    """One round: SuperLinks one after another, until as many devices have answered as matter; the rest are like them.

    What they answered then comes to the server app all together.
    """
    rng = np.random.default_rng(seed)
    devices, asked = math.ceil(load.devices / superlinks), math.ceil(load.asked / superlinks)
    warm_s = 3 * min(load.poll_s, 30.0)  # the queue is what it is before the round begins
    links = [
        _SuperLink(devices, asked, load, service, warm_s, rng) for _ in range(min(superlinks, math.ceil(DRAWN / asked)))
    ]
    for link in links:
        link.run()
    replies = np.concatenate([link.replies for link in links]) - warm_s
    if len(links) < superlinks:
        replies = rng.choice(replies, load.asked)
    end_s = 0.0
    for at_s in np.sort(replies)[: load.asked]:
        seen_s = math.ceil(at_s / load.app_poll_s) * load.app_poll_s
        end_s = max(seen_s, end_s) + service.take_s
    moved_s = load.asked * (load.down_bytes + load.up_bytes) / load.line_bytes_s
    round_s = max(end_s, moved_s)
    return Outcome(
        superlinks,
        sum(link.busy_s for link in links) / sum(link.end_s for link in links),
        float(np.percentile(np.concatenate([link.waits for link in links]), 95)),
        load.asked * service.take_s / round_s,
        moved_s / round_s,
        round_s,
    )


class _SuperLink:
    """One process, first come, first served."""

    def __init__(
        self, devices: int, asked: int, load: Load, service: Service, begins_s: float, rng: np.random.Generator
    ) -> None:
        self._load, self._service, self._begins_s, self._rng = load, service, begins_s, rng
        self._left = asked  # who has not answered
        self._asked = set(range(asked))
        polls = zip(rng.random(devices) * load.poll_s, range(devices), strict=True)
        beats = zip(rng.random(devices) * load.heartbeat_s, range(devices), strict=True)
        self._due = [(at, "pull", who) for at, who in polls] + [(at, "heartbeat", who) for at, who in beats]
        heapq.heapify(self._due)
        self.busy_s = self.end_s = 0.0
        self.waits: list[float] = []
        self.replies: list[float] = []

    def run(self) -> None:
        """Until all who are asked have answered, and for a while if nobody is."""
        costs = {"pull": self._service.pull_s, "heartbeat": self._service.heartbeat_s}
        costs |= dict.fromkeys(("fetch", "send"), self._service.message_s / 2)
        while self._left or self.end_s < self._begins_s:
            at_s, what, who = heapq.heappop(self._due)
            self.waits.append(max(0.0, self.end_s - at_s))
            self.end_s = max(at_s, self.end_s) + costs[what]
            self.busy_s += costs[what]
            getattr(self, f"_after_{what}")(who)

    def _after_pull(self, who: int) -> None:
        if who in self._asked and self.end_s >= self._begins_s:
            self._asked.discard(who)
            self._at(self._wire(self._load.down_bytes), "fetch", who)
        else:
            self._at(self._load.poll_s, "pull", who)

    def _after_heartbeat(self, who: int) -> None:
        self._at(self._load.heartbeat_s, "heartbeat", who)

    def _after_fetch(self, who: int) -> None:
        trained_s = self._load.train_s * float(np.exp(self._load.spread * self._rng.standard_normal()))
        self._at(trained_s + self._wire(self._load.up_bytes), "send", who)

    def _after_send(self, who: int) -> None:
        self._left -= 1
        self.replies.append(self.end_s)
        self._at(self._load.poll_s, "pull", who)

    def _wire(self, nbytes: int) -> float:
        """As if all who are asked shared the line evenly."""
        return nbytes / (self._load.line_bytes_s / max(1, min(self._load.asked, 50)))

    def _at(self, later_s: float, what: str, who: int) -> None:
        heapq.heappush(self._due, (self.end_s + later_s, what, who))


if __name__ == "__main__":
    main()
