"""What one SuperLink carries: real nodes of the Fleet API that ask it for messages and find none, over loopback.

Each node is the line that `hedgerow join` speaks, with a key and an id of its own. The SuperLink is Flower's, with its
database on disk. CPU is that of the SuperLink's process per request; `most` is how many it answers with threads that
ask without a pause. The nodes' own CPU is another process's and not counted, but shares the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from bench_server_load import answers, free_port, percentile, wait_for

from edge_runtime.cli import FLOWER_ENV

BIN = Path(sys.executable).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each row")
    parser.add_argument("--rates", type=float, nargs="*", default=[10.0, 20.0, 40.0], help="pulls per second")
    parser.add_argument("--json", type=Path, help="write the service times there, for bench_scale_model.py")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, superlink(Path(folder)) as (process, address):
        report(options, process, address)


def report(options: argparse.Namespace, process: psutil.Process, address: str) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    from clients.superlink import SuperLink

    before, since = cpu_s(process), time.perf_counter()
    lines = [
        SuperLink(address, ec.generate_private_key(ec.SECP384R1()), ca=None, insecure=True)
        for _ in range(options.nodes)
    ]
    for line in lines:
        line.join()
    join_ms = 1e3 * (cpu_s(process) - before) / len(lines)
    print(
        f"{len(lines)} nodes joined in {time.perf_counter() - since:.1f} s, {join_ms:.1f} CPU-ms of the SuperLink "
        f"each; {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'':34}{'a second':>10}{'CPU-ms each':>13}{'median ms':>11}{'p95 ms':>9}{'SuperLink CPU':>15}")
    rows = {
        f"empty pulls, {rate:g}/s asked for": timed(process, [line.pull for line in lines], options.seconds, rate)
        for rate in options.rates
    }
    rows["empty pulls, most"] = timed(process, [line.pull for line in lines], options.seconds, None)
    rows["heartbeats, most"] = timed(process, [line.heartbeat for line in lines], options.seconds, None)
    for name, (rate, each_ms, ms, busy) in rows.items():
        median, p95 = statistics.median(ms), percentile(ms, 95)
        print(f"  {name:32}{rate:10.1f}{each_ms:13.2f}{median:11.1f}{p95:9.1f}{100 * busy:14.0f}%")
    if options.json:
        service = {"pull_s": rows["empty pulls, most"][1] / 1e3, "heartbeat_s": rows["heartbeats, most"][1] / 1e3}
        options.json.write_text(json.dumps(service) + "\n")
    for line in lines:
        line.close()


def timed(
    process: psutil.Process, calls: list[Callable[[], object]], seconds: float, rate: float | None
) -> tuple[float, float, list[float], float]:
    """(answers a second, CPU-ms of the process each, every answer's ms, share of a core), the calls taking turns.

    At `rate` a second, due at even times and measured from then on, so that a queue shows; or by four threads that do
    not wait, each with lines of its own.
    """
    threads = 16 if rate else 4
    ms: list[float] = []
    turns, end_s = itertools.count(), time.perf_counter() + seconds
    start_s, before = time.perf_counter(), cpu_s(process)

    def ask(own: int) -> None:
        mine = itertools.cycle(calls[own::threads])
        while True:
            due_s = start_s + next(turns) / rate if rate else time.perf_counter()
            if due_s >= end_s:
                return
            time.sleep(max(0.0, due_s - time.perf_counter()))
            next(mine)()
            ms.append(1e3 * (time.perf_counter() - due_s))

    workers = [threading.Thread(target=ask, args=(own,)) for own in range(min(threads, len(calls)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    spent, took = cpu_s(process) - before, time.perf_counter() - start_s
    return len(ms) / took, 1e3 * spent / len(ms), ms, spent / took


@contextlib.contextmanager
def superlink(folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """A SuperLink with its database on disk; ended by its id, with what it has started."""
    port = free_port()
    environment = {**os.environ, **FLOWER_ENV, "FLWR_HOME": str(folder), "PATH": f"{BIN}:{os.environ['PATH']}"}
    command = [str(BIN / "flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = psutil.Popen(
            [*command, "--database", str(folder / "state.db")],
            cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_for(lambda: answers(port) or process.poll() is not None, "the SuperLink")
            if process.poll() is not None:
                raise SystemExit((folder / "log").read_text()[-2000:])
            time.sleep(2)
            yield process, f"127.0.0.1:{port}"
        finally:
            family = [process, *process.children(recursive=True)]
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.terminate()
            for member in psutil.wait_procs(family, timeout=10)[1]:
                member.kill()


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
