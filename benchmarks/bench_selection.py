"""Who is asked: rounds and simulated time to a target accuracy, and how evenly devices take part, policy by policy.

Whole simulated runs on real data, in virtual time: data and their amount differ between devices, and so do speed
(log-normal), network and, in the worlds that say so, how often a device is online. All figures are simulated seconds
and counts: they are the same on any machine.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from server.run_store import RunStore
from simulations.runner import simulate
from simulations.scenario import load_scenario

POLICIES = {
    "uniform": ["selection.policy=uniform"],
    "availability": ["selection.policy=availability"],
    "utility": ["selection.policy=utility"],
    "utility, no floor": ["selection.policy=utility", "selection.fairness=0"],
}
COMMON = (
    "model.name=mlp train.epochs=2 train.batch_size=16 train.optimizer.lr=0.05 server.cohort=10 server.min_updates=2 "
    "server.strategy=fedavg server.evaluate=central deploy.formats= data.partition=dirichlet fleet.speed=lognormal "
    "fleet.jitter=0.2 fleet.seconds_per_example=0.05 fleet.latency_s=1 fleet.uplink_kbps=2000 fleet.downlink_kbps=8000 "
    "fleet.network_sigma=0.7"
)
# A deadline that the slowest devices miss; without spares they cost the round their update.
WORLDS = {
    "fast enough": "server.deadline_s=3600 server.over_selection=1.3 fleet.speed_sigma=1.0",
    "slow devices miss the deadline": "server.deadline_s=60 server.over_selection=1.0 fleet.speed_sigma=1.2",
    "day and night": (
        "server.deadline_s=120 server.over_selection=1.3 fleet.speed_sigma=1.0 fleet.online=0.4 fleet.swing=4 "
        "fleet.day_s=3600 server.patience_s=100000"
    ),
}


@dataclass(frozen=True)
class Played:
    """One run: after each round the accuracy and the simulated time; how often each device took part; rounds lost."""

    accuracy: Sequence[float]
    ended_s: Sequence[float]
    rounds_of: Sequence[int]
    lost: int  # updates of devices that were asked and dropped out

    def until(self, target: float) -> tuple[float, float]:
        """Rounds and seconds until the mean of three rounds' accuracy is there; infinite if it never is."""
        for at in range(2, len(self.accuracy)):
            if statistics.fmean(self.accuracy[at - 2 : at + 1]) >= target:
                return at + 1, self.ended_s[at]
        return math.inf, math.inf


def gini(values: Sequence[float]) -> float:
    """0 where all have the same, near 1 where one has all.

    >>> gini([1, 1, 1, 1]), gini([0, 0, 0, 1])
    (0.0, 0.75)
    """
    ranked = np.sort(np.asarray(values, np.float64))
    if not ranked.sum():
        return 0.0
    places = np.arange(1, ranked.size + 1)
    return float(2 * (places * ranked).sum() / (ranked.size * ranked.sum()) - (ranked.size + 1) / ranked.size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="mnist", help="a registered data set")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--alpha", type=float, default=0.1, help="of the Dirichlet split: smaller is more skewed")
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--target", type=float, nargs=2, default=(0.8, 0.88), help="an early and a late one")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--world", choices=WORLDS, action="append", help="one of them; default: all")
    options = parser.parse_args()
    print(
        f"{options.data}, {options.clients} devices, Dirichlet {options.alpha:g}, cohorts of 10, {options.rounds} "
        f"rounds, {options.seeds} seeds (medians)"
    )
    targets = " | ".join(f"rounds to {100 * one:g} % | simulated s" for one in options.target)
    for world in options.world or WORLDS:
        print(f"\n{world}\n| policy | {targets} | accuracy at the end | updates lost | Gini of participation | "
              "never took part |\n" + "|---" * 9 + "|")  # fmt: skip
        for policy in POLICIES:
            runs = [play(options, world, policy, seed) for seed in range(1, options.seeds + 1)]
            print(row(policy, runs, options.target), flush=True)


def play(options: argparse.Namespace, world: str, policy: str, seed: int) -> Played:
    overrides = [
        *COMMON.split(), *WORLDS[world].split(), *POLICIES[policy], f"seed={seed}", f"data.name={options.data}",
        f"data.clients={options.clients}", f"data.alpha={options.alpha}", f"server.rounds={options.rounds}",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        simulate(load_scenario("mnist", [*overrides, f"run.out={out}"]))
        rows = json.loads((out / "run.json").read_text())["rounds"]
        store = RunStore(out, resume=True)
        known = [json.loads(data)["rounds"] for (data,) in store.read("SELECT data FROM devices")]
        store.close()
    taken = known + [0] * (options.clients - len(known))
    accuracy = [one["accuracy"] or 0.0 for one in rows]
    return Played(accuracy, [one["ended_s"] for one in rows], taken, sum(one["dropped"] for one in rows))


def row(policy: str, runs: Sequence[Played], targets: Sequence[float]) -> str:
    cells = [policy]
    for target in targets:
        reached = [run.until(target) for run in runs]
        cells += [f"{statistics.median(one[at] for one in reached):.0f}" for at in (0, 1)]
    end = statistics.median(statistics.fmean(run.accuracy[-5:]) for run in runs)
    lost = statistics.median(run.lost for run in runs)
    uneven = statistics.median(gini(run.rounds_of) for run in runs)
    never = statistics.median(sum(count == 0 for count in run.rounds_of) for run in runs)
    cells += [f"{100 * end:.1f} %", f"{lost:.0f}", f"{uneven:.2f}", f"{never:.0f}"]
    return "| " + " | ".join("not reached" if cell == "inf" else cell for cell in cells) + " |"


if __name__ == "__main__":
    main()
