"""Strategies where clients' data differ: rounds to a target accuracy, and what personalisation gives each client.

Simulated runs on scikit-learn's digits, 20 clients of which 10 take part in a round, 5 local epochs of plain SGD.
"Dirichlet 0.1" gives each client a few classes in very different amounts, "2 shards" two classes each at most. Every
strategy may choose the client's learning rate from the same few; the table has the rate that was best for it, and the
median over seeds of the first round from which the mean accuracy of five rounds is at or above the target. Personal
accuracy is on a fifth of each client's own examples that no round trains on, the mean over clients.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from processes import machine, save

SPLITS = {
    "Dirichlet 0.1": ["data.partition=dirichlet", "data.alpha=0.1"],
    "2 shards": ["data.partition=shards", "data.shards_per_client=2"],
}
STRATEGIES = {
    "fedavg": [],
    "fedprox": ["server.proximal_mu=0.1"],
    "fednova": [],
    "scaffold": [],
    "fedadam": [],
}
RATES = (0.1, 0.3)
WINDOW = 5  # rounds whose mean accuracy counts: with half of the clients in a round, single rounds jump
PERSONAL = {
    "the whole model": ["personal.fine_tune_epochs=5"],
    "its last layer": ["personal.fine_tune_epochs=5", "personal.fine_tune=head"],
    "own last layer": ["personal.layers=out.*", "personal.fine_tune_epochs=5"],
}
COMMON = [
    "data.clients=20",
    "data.min_examples=10",
    "server.cohort=10",
    "server.over_selection=1",
    "server.min_updates=5",
    "train.epochs=5",
    "train.batch_size=16",
    "train.optimizer.momentum=0.0",
    "server.workers=1",
    "deploy.formats=",
]


@dataclass(frozen=True, slots=True)
class Learned:
    """One strategy on one split with one learning rate: rounds to the target and final accuracy, by seed."""

    split: str
    strategy: str
    rate: float
    rounds: tuple[int | None, ...]  # None: not reached
    accuracy: tuple[float, ...]

    @property
    def order(self) -> tuple[float, float]:
        """Less is better."""
        return self.median, -statistics.mean(self.accuracy)

    @property
    def median(self) -> float:
        return statistics.median(float("inf") if one is None else one for one in self.rounds)


def main() -> None:
    options = parse(sys.argv[1:])
    seeds = range(1, options.seeds + 1)
    print(f"Machine: {machine()}; {options.seeds} seeds, {options.rounds} rounds at most, target {options.target:.0%}")
    start = time.monotonic()
    learned = [one for split in SPLITS for one in compare(split, seeds, options.rounds, options.target)]
    personal = [one for split in SPLITS for one in compare_personal(split, seeds, options.personal_rounds)]
    print(f"\n{time.monotonic() - start:.0f} s in all")
    if options.json:
        rows = [{"kind": "rounds", **asdict(one)} for one in learned] + [
            {"kind": "personal", **one} for one in personal
        ]
        save(Path(options.json), {"command": "hedgerow bench heterogeneity"}, rows, [])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--personal-rounds", type=int, default=30)
    parser.add_argument("--target", type=float, default=0.93, help="accuracy on held-out data, 0 to 1")
    parser.add_argument("--json", help="also write the figures to this file")
    return parser.parse_args(arguments)


def compare(split: str, seeds: Sequence[int], rounds: int, target: float) -> list[Learned]:
    """Each strategy with the rate that suits it best, printed as a table."""
    print(f"\n{split}\n| strategy | lr | rounds to {target:.0%} | accuracy at the end | bytes up a round |")
    print("|---|---|---|---|---|")
    best = []
    for name, own in STRATEGIES.items():
        tried, uplink_bytes = [], 0
        for rate in RATES:
            settings = [*SPLITS[split], *own, f"server.strategy={name}", f"train.optimizer.lr={rate}"]
            runs = [run(seed, [*settings, f"server.rounds={rounds}"]) for seed in seeds]
            uplink_bytes = runs[0]["rounds"][0]["uplink_bytes"]
            curves = [smoothed([row["accuracy"] for row in one["rounds"]]) for one in runs]
            reached = tuple(first(curve, target) for curve in curves)
            tried.append(Learned(split, name, rate, reached, tuple(curve[-1] for curve in curves)))
        one = min(tried, key=lambda tried: tried.order)
        best.append(one)
        took = "not reached" if one.median == float("inf") else f"{one.median:g}"
        spread = ", ".join("-" if count is None else str(count) for count in one.rounds)
        end = f"{statistics.mean(one.accuracy):.1%}"
        print(f"| `{name}` | {one.rate:g} | {took} ({spread}) | {end} | {uplink_bytes / 1e3:.0f} kB |", flush=True)
    return best


def compare_personal(split: str, seeds: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """How good the model is for each client, before and after it trains for itself, printed as a table."""
    print(f"\n{split}, {rounds} rounds of fedavg\n| a client trains | before | after | worst tenth below | bytes up |")
    print("|---|---|---|---|---|")
    rows = []
    for name, own in PERSONAL.items():
        settings = [*SPLITS[split], *own, f"server.rounds={rounds}", "train.optimizer.lr=0.1", "server.evaluate=none"]
        finals = [run(seed, settings)["final"] for seed in seeds]
        mean = {
            key: statistics.mean(final["personal"][key] for final in finals)
            for key in ("accuracy_before", "accuracy_after", "p10")
        }
        mean["uplink_bytes"] = statistics.mean(final["uplink_bytes"] for final in finals)
        rows.append({"split": split, "name": name, **mean})
        cells = [f"{mean[key]:.1%}" for key in ("accuracy_before", "accuracy_after", "p10")]
        print(f"| {name} | {' | '.join(cells)} | {mean['uplink_bytes'] / 1e6:.2f} MB |", flush=True)
    return rows


def run(seed: int, settings: Sequence[str]) -> dict[str, Any]:
    """The record of one simulated run."""
    from server.events import Event, RoundClosed
    from server.results import as_json
    from simulations.runner import simulate
    from simulations.scenario import load_scenario

    rows: list[dict[str, Any]] = []

    def note(event: Event) -> None:
        if isinstance(event, RoundClosed):
            rows.append(as_json(event.row))

    with tempfile.TemporaryDirectory() as folder:
        out = f"run.out={Path(folder) / 'run'}"
        final = simulate(load_scenario("digits", [*COMMON, *settings, f"seed={seed}", out]), [note]).final
    return {"rounds": rows, "final": final}


def smoothed(accuracy: Sequence[float]) -> list[float]:
    """Mean over the last `WINDOW` rounds; the first value belongs to round `WINDOW`."""
    return [float(value) for value in np.convolve(accuracy, np.full(WINDOW, 1 / WINDOW), "valid")]


def first(curve: Sequence[float], target: float) -> int | None:
    """The round at which a smoothed curve is there."""
    return next((number + WINDOW for number, value in enumerate(curve) if value >= target), None)


if __name__ == "__main__":
    main()
