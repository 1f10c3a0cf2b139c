"""Robust aggregation: accuracy while some clients send poison, and the work beside Flower's functions.

Accuracy comes from simulated runs of the `digits` scenario with all 20 clients in every round: with label skew as
shipped, and with the digits split evenly. CPU time and memory come from fresh processes that get the same updates, one
after the other; Flower's functions take them as a list of arrays, one a client.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.protection_config import AGGREGATORS, RobustConfig

BYZANTINE = 4
ATTACKS = {
    "nobody": [],
    "sign flip x 10": ["faults.poison=0.2"],
    "noise x 100": ["faults.poison=0.2", "faults.poison_kind=noise", "faults.poison_scale=100"],
}
SPLITS = {"skewed": [], "even": ["data.partition=iid"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="runs per accuracy; 0 for the work alone")
    parser.add_argument("--variant", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(*options.variant, options.clients, options.parameters)))
        return
    if options.seeds:
        compare_accuracy(options.seeds)
    compare_work(options)


def compare_accuracy(seeds: int) -> None:
    print(f"Accuracy after 20 rounds, 4 of 20 clients poisoning, mean of {seeds} seeds")
    heads = [f"{attack}, {split}" for attack in ATTACKS for split in SPLITS]
    print("| aggregator | " + " | ".join(heads) + " |\n|---|" + "---|" * len(heads))
    for name in AGGREGATORS:
        cells = [
            statistics.mean(accuracy(name, seed, [*attack, *split]) for seed in range(1, seeds + 1))
            for attack in ATTACKS.values()
            for split in SPLITS.values()
        ]
        print(f"| `{name}` | " + " | ".join(f"{100 * cell:.1f} %" for cell in cells) + " |", flush=True)


def accuracy(name: str, seed: int, overrides: list[str]) -> float:
    """Of the last model of a run; 0 if no round could be applied."""
    from simulations.runner import simulate
    from simulations.scenario import load_scenario

    robust = [f"robust.aggregator={name}", f"robust.byzantine={BYZANTINE if name != 'mean' else 0}"]
    with tempfile.TemporaryDirectory() as folder:
        out = [f"seed={seed}", "server.cohort=20", "deploy.formats=", f"run.out={Path(folder) / 'run'}"]
        return float(simulate(load_scenario("digits", [*overrides, *robust, *out])).final["accuracy"] or 0)


def compare_work(options: argparse.Namespace) -> None:
    print(f"\n{options.clients} clients x {options.parameters:,} parameters, {options.repeats} fresh processes each")
    print("| aggregator | CPU-s | MiB | Flower's CPU-s | Flower's MiB | Flower / ours, CPU | norms differ by |")
    print("|---|---|---|---|---|---|---|")
    for name in AGGREGATORS:
        pairs = [(fresh("ours", name, options), fresh("flower", name, options)) for _ in range(options.repeats)]
        ours, theirs = zip(*pairs, strict=True)
        ratio = statistics.median(b["cpu_s"] / a["cpu_s"] for a, b in pairs) if "cpu_s" in theirs[0] else None
        cells = [f"{statistics.median(row['cpu_s'] for row in ours):.2f}", f"{ours[0]['mib']:.0f}"]
        if ratio is None:
            cells += ["-"] * 4
        else:
            cells += [f"{statistics.median(row['cpu_s'] for row in theirs):.2f}", f"{theirs[0]['mib']:.0f}"]
            cells += [f"{ratio:.1f}", f"{max(abs(a['probe'] - b['probe']) for a, b in pairs):.0e}"]
        print(f"| `{name}` | " + " | ".join(cells) + " |", flush=True)


def fresh(side: str, name: str, options: argparse.Namespace) -> dict[str, float]:
    """One measurement in a process of its own, on one core; empty where that side has no such function."""
    size = ["--clients", str(options.clients), "--parameters", str(options.parameters)]
    command = [sys.executable, "-P", __file__, "--variant", side, name, *size]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def updates(clients: int, parameters: int) -> Iterator[NDArray[np.float32]]:
    for client in range(clients):
        yield np.random.default_rng(client).standard_normal(parameters, dtype=np.float32) * np.float32(0.01)


def measure(side: str, name: str, clients: int, parameters: int) -> dict[str, float]:
    """CPU seconds from the first update to the mean, memory above the idle process, and one value to compare."""
    byzantine = clients // 5 if name != "mean" else 0
    if side == "ours":
        from server.robust import make_aggregate

        idle, spent = peak_mib(), 0.0
        total = make_aggregate(RobustConfig(name, byzantine=byzantine), parameters)
        for update in updates(clients, parameters):
            start = time.process_time()
            total.add(update, 1)
            spent += time.process_time() - start
        start = time.process_time()
        mean: NDArray[np.floating] = total.mean()
    else:
        if (theirs := flowers(byzantine, clients).get(name)) is None:
            return {}
        idle, spent = peak_mib(), 0.0
        results = [([update], 1) for update in updates(clients, parameters)]
        start = time.process_time()
        mean = theirs(results)[0]
    spent += time.process_time() - start
    probe = float(np.linalg.norm(mean[::97].astype(np.float64)))
    return {"cpu_s": spent, "mib": peak_mib() - idle, "probe": probe}


def flowers(byzantine: int, clients: int) -> dict[str, Callable[[list[tuple[list[NDArray], int]]], list[NDArray]]]:
    from flwr.server.strategy.aggregate import aggregate, aggregate_krum, aggregate_median, aggregate_trimmed_avg

    return {
        "mean": aggregate,
        "median": aggregate_median,
        "trimmed_mean": lambda results: aggregate_trimmed_avg(results, 0.2),
        "krum": lambda results: aggregate_krum(results, byzantine, 0),
        "multi_krum": lambda results: aggregate_krum(results, byzantine, clients - byzantine - 2),
    }


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
