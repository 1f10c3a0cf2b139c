"""Summing client updates: Flower's FedAvg against our running sum, in CPU time and memory.

Each side runs in a fresh process and gets the same replies, each built when it is asked for, as a network would
deliver them. Flower's function takes all replies at once, so they are all alive; ours takes one after the other.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(VARIANTS[options.variant](options.clients, options.parameters)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(options.repeats):
        for name in VARIANTS:
            results[name].append(fresh(name, options))
    print(
        f"{options.clients} clients x {options.parameters:,} float32 parameters, {options.repeats} fresh processes each"
    )
    for name, rows in results.items():
        cpu, added = (statistics.median(row[key] for row in rows) for key in ("cpu_s", "added_mib"))
        print(f"  {name:18} {cpu:7.3f} CPU-s   {added:8.1f} MiB above the idle process")
    pairs = list(zip(results["flower FedAvg"], results["hedgerow"], strict=True))
    for key, label in (("cpu_s", "CPU"), ("added_mib", "memory")):
        ratios = [theirs[key] / ours[key] for theirs, ours in pairs]
        print(f"  Flower / hedgerow, {label}: {statistics.median(ratios):.1f} ({min(ratios):.1f} .. {max(ratios):.1f})")
    print(
        f"  largest relative difference of the two means: {max(row['difference'] for row in results['hedgerow']):.1e}"
    )


def fresh(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """One measurement in a process of its own."""
    size = ["--clients", str(options.clients), "--parameters", str(options.parameters)]
    command = [sys.executable, "-P", __file__, "--variant", variant, *size]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def updates(clients: int, parameters: int) -> Iterator[tuple[np.ndarray, int]]:
    """Each client's float32 update and number of examples, distinct for every client."""
    base = np.random.default_rng(0).normal(0, 0.01, parameters).astype(np.float32)
    for client in range(clients):
        yield base * np.float32(1 + client / 100), 10 + client


def expected(clients: int, parameters: int) -> np.ndarray:
    base = np.random.default_rng(0).normal(0, 0.01, parameters).astype(np.float32).astype(np.float64)
    scale = np.average(1 + np.arange(clients) / 100, weights=10 + np.arange(clients))
    return base * scale


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def flower(clients: int, parameters: int) -> dict[str, float]:
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    idle = peak_mib()
    replies = [
        RecordDict({"arrays": ArrayRecord({"w": Array(update)}), "metrics": MetricRecord({"num-examples": examples})})
        for update, examples in updates(clients, parameters)
    ]
    start = time.process_time()
    mean = aggregate_arrayrecords(replies, "num-examples")["w"].numpy()
    return figures(time.process_time() - start, idle, mean, clients)


def hedgerow(clients: int, parameters: int) -> dict[str, float]:
    from edge_runtime.updates import TensorLayout, make_codec
    from server.aggregate import WeightedSum
    from server.rounds import OpenRound, Update

    idle = peak_mib()
    layout, codec = TensorLayout((("w", (parameters,)),)), make_codec("float32")
    nodes = {node: str(node) for node in range(clients)}
    opened = OpenRound(1, nodes, layout, codec, min_updates=clients, total=WeightedSum(layout.size))
    spent = 0.0
    for node, (update, examples) in enumerate(updates(clients, parameters)):
        payload = codec.encode_vector(update, layout, round_number=1)
        start = time.process_time()
        opened.receive(node, Update(payload, examples, loss=0.0))
        spent += time.process_time() - start
    start = time.process_time()
    mean = opened.close("silent").delta
    spent += time.process_time() - start
    assert mean is not None
    return figures(spent, idle, mean, clients)


def figures(cpu_s: float, idle_mib: float, mean: np.ndarray, clients: int) -> dict[str, float]:
    added = peak_mib() - idle_mib
    truth = expected(clients, mean.size)
    return {"cpu_s": cpu_s, "added_mib": added, "difference": float(abs(mean - truth).max() / abs(truth).max())}


VARIANTS = {"flower FedAvg": flower, "hedgerow": hedgerow}

if __name__ == "__main__":
    main()
