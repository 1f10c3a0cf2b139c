"""Simulated seconds and bytes to a target accuracy: synchronous rounds, with spares, semi-synchronous, and FedBuff.

All train the same model on the same clients' data, on the same virtual devices: their speeds are log-normal with a
heavy tail, and so are their networks (`[fleet]`, simulations/traces.py). What takes simulated time is the devices'
training and travel; the server's own work takes none. A run counts as there at the first round whose accuracy on the
held-out data, in the mean with the round before, is at the target. Uplink counts what reached the server by then, and
apart from that what late devices will still have sent in vain, estimated by the mean update: a real device is not told
that the round went on without it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.events import Event, RoundClosed
from server.results import RoundRow
from simulations.runner import simulate
from simulations.scenario import load_scenario

FLEET = (
    "fleet.speed=lognormal fleet.speed_sigma=1.2 fleet.seconds_per_example=0.02 fleet.jitter=0.2 "
    "fleet.uplink_kbps=1000 fleet.downlink_kbps=4000 fleet.network_sigma=0.8 fleet.latency_s=0.2"
)
COMMON = "server.cohort=10 server.min_updates=2 server.deadline_s=3600 deploy.formats="
TASKS = {
    "digits": ("digits", 0.93, "data.clients=100 data.partition=dirichlet data.alpha=1.0"),
    "mnist": ("mnist", 0.90, "data.clients=100"),
}
MODES: Mapping[str, str] = {
    "sync": "server.over_selection=1",
    "sync, 130 % asked": "server.over_selection=1.3",
    "semi-sync, half a round": "server.mode=semi_sync server.period_s={half}",
    "FedBuff, 10 of 20 at work": "server.mode=async buffer.concurrency=20",
    "FedBuff, 10 of 40 at work": "server.mode=async buffer.concurrency=40",
}


@dataclass(frozen=True)
class Outcome:
    """How far a run had come when it was at the target."""

    seconds: float
    rounds: int
    updates: int
    up_bytes: int
    late_bytes: float
    down_bytes: int
    staleness: float


class ThereError(Exception):
    """The target is reached, and the rest of the run not wanted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("tasks", nargs="*", default=["digits"], metavar="task", help=", ".join(TASKS))
    options = parser.parse_args()
    for task in options.tasks:
        _compare(task, options.seeds, options.rounds, options.set)


def _compare(task: str, seeds: int, rounds: int, changes: Sequence[str]) -> None:
    name, target, data = TASKS[task]
    print(f"{task}: to {target:.0%} on held-out data, {seeds} seeds, median (least .. most)")
    columns = (
        f"{'simulated s':>24} {'speed-up':>8} {'rounds':>6} {'updates':>7} {'up':>8} {'+ late':>8} {'down':>8} stale"
    )
    print(f"  {'':26} {columns}")
    base: list[float] = []
    half = 30.0
    for mode, keys in MODES.items():
        own = keys.format(half=round(half, 1))
        settings = [*data.split(), *FLEET.split(), *COMMON.split(), *own.split(), *changes, f"server.rounds={rounds}"]
        runs = [_play(name, target, [*settings, f"seed={seed}"]) for seed in range(1, seeds + 1)]
        there = [one for one in runs if one is not None]
        if len(there) < len(runs):
            print(f"  {mode:26} {len(runs) - len(there)} of {len(runs)} runs were not there after {rounds} rounds")
            continue
        seconds = [one.seconds for one in there]
        if not base:
            base, half = seconds, statistics.median(one.seconds / one.rounds for one in there) / 2
        ratio = statistics.median(slow / fast for slow, fast in zip(base, seconds, strict=True))
        spread = f"{statistics.median(seconds):.0f} ({min(seconds):.0f} .. {max(seconds):.0f})"
        up, late, down = (
            f"{statistics.median(values) / 1e6:.1f} MB"
            for values in (
                [one.up_bytes for one in there],
                [one.late_bytes for one in there],
                [one.down_bytes for one in there],
            )
        )
        print(
            f"  {mode:26} {spread:>24} {ratio:7.2f}x {statistics.median(one.rounds for one in there):6.0f} "
            f"{statistics.median(one.updates for one in there):7.0f} {up:>8} {late:>8} {down:>8} "
            f"{statistics.median(one.staleness for one in there):5.1f}"
        )


def _play(name: str, target: float, settings: Sequence[str]) -> Outcome | None:
    """One run, ended where it is there; None if it never was."""
    rows: list[RoundRow] = []

    def watch(event: Event) -> None:
        if isinstance(event, RoundClosed):
            rows.append(event.row)
            if _is_there(rows, target):
                raise ThereError

    with tempfile.TemporaryDirectory() as folder:
        try:
            simulate(load_scenario(name, [*settings, f"run.out={Path(folder) / 'run'}"]), [watch])
        except ThereError:
            return _outcome(rows)
    return None


def _is_there(rows: Sequence[RoundRow], target: float) -> bool:
    last = [row.accuracy or 0.0 for row in rows[-2:]]
    return len(last) == 2 and sum(last) / 2 >= target


def _outcome(rows: Sequence[RoundRow]) -> Outcome:
    updates, up = sum(row.clients for row in rows), sum(row.uplink_bytes for row in rows)
    return Outcome(
        seconds=rows[-1].ended_s or 0.0,
        rounds=len(rows),
        updates=updates,
        up_bytes=up,
        late_bytes=sum(row.late for row in rows) * up / max(1, updates),
        down_bytes=sum(row.downlink_bytes for row in rows),
        staleness=statistics.fmean(row.staleness or 0.0 for row in rows),
    )


if __name__ == "__main__":
    main()
