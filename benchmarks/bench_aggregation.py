"""Summing client updates: Flower's FedAvg against our running sum, in CPU time, wall time and memory.

Each side runs in a fresh process and gets the same replies, each built when it is asked for, as a network would
deliver them. Flower's function takes all replies at once, so they are all alive; ours takes one after the other, on one
core and on all. `--tensors` splits the parameters: Flower works tensor by tensor, an update of ours is one vector.

`--stream` is ours alone: so many updates, one after another, with the peak of memory, for each codec of `--codecs`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

ENCODED_ONCE = ("context",)  # encoding takes seconds: the same payload is sent again and again, each a copy of its own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--tensors", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--codecs", default="float32,float16,int8,context")
    parser.add_argument("--variant", choices=[*VARIANTS, "stream"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant == "stream":
        print(json.dumps(stream(options.clients, options.parameters, options.codecs)))
    elif options.variant:
        if options.variant == ONE_CORE:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(json.dumps(VARIANTS[options.variant](options.clients, options.parameters, options.tensors)))
    elif options.stream:
        print_streams(options)
    else:
        print_comparison(options)


def print_comparison(options: argparse.Namespace) -> None:
    results: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(options.repeats):
        for name in VARIANTS:
            results[name].append(fresh(name, options))
    print(
        f"{options.clients} clients x {options.parameters:,} float32 parameters in {options.tensors} tensors, "
        f"{options.repeats} fresh processes each, {len(os.sched_getaffinity(0))} cores"
    )
    for name, rows in results.items():
        cpu, wall, added = (statistics.median(row[key] for row in rows) for key in ("cpu_s", "wall_s", "added_mib"))
        print(f"  {name:20} {cpu:7.3f} CPU-s  {wall:7.3f} s   {added:8.1f} MiB above the idle process")
    for name in (ONE_CORE, ALL_CORES):
        pairs = list(zip(results[FLOWER], results[name], strict=True))
        for key, label in (("cpu_s", "CPU"), ("wall_s", "wall"), ("added_mib", "memory")):
            ratios = [theirs[key] / ours[key] for theirs, ours in pairs]
            print(
                f"  Flower / {name}, {label}: {statistics.median(ratios):.1f} ({min(ratios):.1f} .. {max(ratios):.1f})"
            )
    worst = max(row["difference"] for name in (ONE_CORE, ALL_CORES) for row in results[name])
    print(f"  largest relative difference of the means: {worst:.1e}")


def print_streams(options: argparse.Namespace) -> None:
    model = options.parameters * 4 / 2**20
    print(
        f"{options.clients} updates of {options.parameters:,} parameters ({model:.1f} MiB as float32), "
        f"{len(os.sched_getaffinity(0))} cores"
    )
    for codec in options.codecs.split(","):
        options.codecs = codec
        row = fresh("stream", options)
        print(
            f"  {codec:9} {row['bytes'] / 1e6:8.2f} MB each  {row['cpu_s'] / options.clients * 1e3:8.2f} CPU-ms  "
            f"{row['wall_s'] / options.clients * 1e3:8.2f} ms  peak {row['added_mib']:7.1f} MiB above the idle process "
            f"= {row['added_mib'] / model:.1f} models"
        )


def fresh(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """One measurement in a process of its own."""
    size = ["--clients", str(options.clients), "--parameters", str(options.parameters)]
    rest = ["--tensors", str(options.tensors), "--codecs", options.codecs]
    command = [sys.executable, "-P", __file__, "--variant", variant, *size, *rest]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def updates(clients: int, parameters: int) -> Iterator[tuple[np.ndarray, int]]:
    """Each client's float32 update and number of examples, distinct for every client."""
    base = np.random.default_rng(0).standard_normal(parameters, np.float32)
    base *= np.float32(0.01)
    for client in range(clients):
        yield base * np.float32(1 + client / 100), 10 + client


def expected(clients: int, parameters: int) -> np.ndarray:
    base = np.random.default_rng(0).standard_normal(parameters, np.float32) * np.float32(0.01)
    scale = np.average(1 + np.arange(clients) / 100, weights=10 + np.arange(clients))
    return base.astype(np.float64) * scale


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Watch:
    """CPU and wall seconds spent inside."""

    def __init__(self) -> None:
        self.cpu_s = self.wall_s = 0.0

    def __enter__(self) -> None:
        self._since = time.process_time(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        cpu, wall = self._since
        self.cpu_s += time.process_time() - cpu
        self.wall_s += time.perf_counter() - wall


def flower(clients: int, parameters: int, tensors: int) -> dict[str, float]:
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    idle, watch = peak_mib(), Watch()
    replies = []
    for update, examples in updates(clients, parameters):
        arrays = {str(place): Array(part) for place, part in enumerate(np.array_split(update, tensors))}
        replies.append(RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": examples})}))
    with watch:
        record = aggregate_arrayrecords(replies, "num-examples")
        means = [array.numpy() for array in record.values()]
    return figures(watch, peak_mib() - idle, np.concatenate(means), clients)


def hedgerow(clients: int, parameters: int, tensors: int) -> dict[str, float]:
    from edge_runtime.updates import TensorLayout, make_codec
    from server.aggregate import WeightedSum
    from server.rounds import OpenRound, Update

    idle, watch, codec = peak_mib(), Watch(), make_codec("float32")
    layout = TensorLayout.of(
        {str(k): part.shape for k, part in enumerate(np.array_split(np.empty(parameters), tensors))}
    )
    with watch:
        nodes = {node: str(node) for node in range(clients)}
        opened = OpenRound(1, nodes, layout, codec, min_updates=clients, total=WeightedSum(layout.size))
    for node, (update, examples) in enumerate(updates(clients, parameters)):
        payload = codec.encode_vector(update, layout, round_number=1)
        with watch:
            opened.receive(node, Update(payload, examples, loss=0.0))
    with watch:
        mean = opened.close("silent").delta
    assert mean is not None
    return figures(watch, peak_mib() - idle, mean, clients)


def stream(clients: int, parameters: int, codec_name: str) -> dict[str, float]:
    """Time and memory of the server's half alone: the peak is taken while a process does nothing but receive.

    What encodes is another process, as in a federation: its memory does not count here.
    """
    from edge_runtime.updates import TensorLayout, make_codec
    from server.aggregate import WeightedSum
    from server.rounds import OpenRound, Update

    layout, codec = TensorLayout((("w", (parameters // 1000, 1000)),)), make_codec(codec_name)
    nodes = {node: str(node) for node in range(clients)}
    down, up = os.pipe()
    if (child := os.fork()) == 0:
        os.close(down)
        send(up, clients, codec_name, layout.size)
        os._exit(0)
    os.close(up)
    idle, watch, nbytes = peak_mib(), Watch(), 0
    with watch:
        opened = OpenRound(1, nodes, layout, codec, min_updates=clients, total=WeightedSum(layout.size))
    with os.fdopen(down, "rb", buffering=0) as pipe:
        for node in range(clients):
            payload = read(pipe.fileno(), int.from_bytes(read(pipe.fileno(), 8), "little"))
            nbytes = len(payload)
            with watch:
                opened.receive(node, Update(payload, 10 + node, loss=0.0))
            del payload
    os.waitpid(child, 0)
    with watch:
        result = opened.close("silent")
    assert result.delta is not None
    assert len(result.clients) == clients
    return {"cpu_s": watch.cpu_s, "wall_s": watch.wall_s, "added_mib": peak_mib() - idle, "bytes": nbytes}


def send(pipe: int, clients: int, codec_name: str, parameters: int) -> None:
    from edge_runtime.updates import TensorLayout, make_codec

    layout, codec = TensorLayout((("w", (parameters // 1000, 1000)),)), make_codec(codec_name)
    payload = b""
    for update, _ in updates(clients, parameters):
        if not payload or codec_name not in ENCODED_ONCE:
            payload = codec.encode_vector(update, layout, round_number=1)
        for part in (len(payload).to_bytes(8, "little"), payload):
            view = memoryview(part)
            while view:
                view = view[os.write(pipe, view) :]


def read(pipe: int, nbytes: int) -> bytes:
    content = bytearray(nbytes)
    view = memoryview(content)
    while view:
        view = view[os.readv(pipe, [view]) :]
    return content  # type: ignore[return-value]  # a codec reads any buffer


def figures(watch: Watch, added_mib: float, mean: np.ndarray, clients: int) -> dict[str, float]:
    truth = expected(clients, mean.size)
    difference = float(abs(mean - truth).max() / abs(truth).max())
    return {"cpu_s": watch.cpu_s, "wall_s": watch.wall_s, "added_mib": added_mib, "difference": difference}


FLOWER, ONE_CORE, ALL_CORES = "flower FedAvg", "hedgerow, one core", "hedgerow, all cores"
VARIANTS = {FLOWER: flower, ONE_CORE: hedgerow, ALL_CORES: hedgerow}

if __name__ == "__main__":
    main()
