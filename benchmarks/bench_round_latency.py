"""How long a round takes when there is hardly anything to do: two idle clients, a fit of milliseconds, over loopback.

Three ways in one run, each with a SuperLink and clients of its own, in fresh processes:

    flower      stock SuperNodes, Flower's FedAvg and its round loop; the fit adds 1 to 1,000 float32
    supernodes  our server app, stock SuperNodes with our client app; the fit trains a small CNN on 8x8 digits
    join        our server app and `hedgerow join`; the same fit

Wall time from one round's end to the next's, the first round left out (start-up); CPU seconds are of all processes of
the server and of one client. Ours really trains, encodes and checks; Flower's row does not.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from edge_runtime.cli import FLOWER_ENV

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CLIENTS = 2

PYPROJECT = """
[project]
name = "trivial"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "trivial.app:server"
clientapp = "trivial.app:client"
[tool.flwr.app.config]
rounds = 4
out = ""
"""
APP = """
import time
from pathlib import Path
import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()

@client.train()
def train(message, context):
    weights = [array + 1 for array in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 1, "loss": 0.0})
    return Message(RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics}), reply_to=message)

@server.main()
def main(grid, context):
    out = Path(str(context.run_config["out"]))
    def closed(number, arrays):
        with out.open("a") as file:
            file.write(f"{time.time()}\\n")
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2)
    strategy.start(grid, ArrayRecord([np.zeros(1000, np.float32)]), num_rounds=int(context.run_config["rounds"]),
                   evaluate_fn=closed)
"""


@dataclass(frozen=True)
class Row:
    """Medians over rounds after the first, in wall seconds and CPU seconds a round; client memory in MiB."""

    seconds: float
    server_cpu_s: float
    client_cpu_s: float
    client_rss: float
    client_processes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("ways", nargs="*", default=["flower", "supernodes", "join"])
    options = parser.parse_args()
    rows = {way: measure(way, options.rounds) for way in options.ways}
    print(f"a round with {CLIENTS} idle clients and a trivial fit, median of {options.rounds - 1} rounds")
    print(f"{'':12}{'wall s':>8}{'server CPU-s':>14}{'client CPU-s':>14}{'client RSS MiB':>16}{'processes':>11}")
    for way, row in rows.items():
        cpu = f"{row.server_cpu_s:14.2f}{row.client_cpu_s:14.2f}"
        print(f"{way:12}{row.seconds:8.2f}{cpu}{row.client_rss:16.0f}{row.client_processes:11}")
    if "flower" in rows and "join" in rows:
        print(f"join takes {rows['join'].seconds / rows['flower'].seconds:.2f} of Flower's time")


def measure(way: str, rounds: int) -> Row:
    """One SuperLink, its clients and a run on it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with federation(way, folder) as (environment, server, clients):
            ends = folder / "ends"
            if way == "flower":
                app = folder / "app"
                (app / "trivial").mkdir(parents=True)
                (app / "trivial" / "__init__.py").touch()
                (app / "pyproject.toml").write_text(PYPROJECT)
                (app / "trivial" / "app.py").write_text(APP)
                settings = {"rounds": rounds, "out": str(ends)}
            else:
                app = ROOT
                settings = {
                    "data.name": "digits", "data.clients": CLIENTS, "data.partition": "iid", "model.name": "digits_cnn",
                    "server.rounds": rounds, "server.cohort": CLIENTS, "server.min_updates": CLIENTS,
                    "server.evaluate": "none", "deploy.formats": "", "run.out": str(folder / "run"),
                }  # fmt: skip
            words = " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
            # The server's processes end and their CPU time with them: it is read while they live.
            command = [str(BIN / "flwr"), "run", str(app), "bench", "--stream", "-c", words]
            log = (folder / "run.log").open("w")
            run = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            before, after, rss, count = {}, {}, 0.0, 0
            while run.poll() is None:
                closed = len(round_ends(way, folder))
                if closed >= 1 and not before:
                    before = cpu(server), cpu(clients[:1])
                if 1 <= closed <= rounds - 1:
                    used, alive = memory(clients[:1])
                    rss, count = max(rss, used), max(count, alive)
                if closed >= rounds and not after:
                    after = cpu(server), cpu(clients[:1])
                time.sleep(0.05)
            times = round_ends(way, folder)
            if len(times) < rounds or not before or not after:
                raise SystemExit(f"{way}: the run failed\n{(folder / 'run.log').read_text()[-3000:]}")
    spent = [(late - early) / (rounds - 1) for early, late in zip(before, after, strict=True)]
    return Row(statistics.median(b - a for a, b in itertools.pairwise(times)), *spent, rss, count)


def round_ends(way: str, folder: Path) -> list[float]:
    """When each closed round ended, Unix seconds."""
    if way == "flower":
        lines = (folder / "ends").read_text().split() if (folder / "ends").exists() else []
        return [float(line) for line in lines][1:]  # FedAvg evaluates once before the first round
    import sqlite3

    path = folder / "run" / "events.sqlite"
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
        try:
            return [at for (at,) in store.execute("SELECT unix_s FROM events WHERE kind = 'round_closed' ORDER BY id")]
        except sqlite3.Error:
            return []


@contextlib.contextmanager
def federation(way: str, folder: Path) -> Iterator[tuple[dict[str, str], list[psutil.Process], list[psutil.Process]]]:
    """A SuperLink and its clients, all ended by id at the end."""
    home = folder / "flwr"
    home.mkdir()
    environment = {**os.environ, **FLOWER_ENV, "FLWR_HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}
    port = free_port()
    address = f"127.0.0.1:{port}"
    profile = f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "{address}"\ninsecure = true\n'
    (home / "config.toml").write_text(profile)
    log = (folder / "flower.log").open("w")

    def start(program: str, *arguments: str) -> psutil.Popen:
        command = [str(BIN / program), *arguments]
        return psutil.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)

    link = ["--insecure", "--host", "127.0.0.1", "--port", str(port), "--database", str(folder / "state.db")]
    processes = [start("flower-superlink", *link)]
    try:
        wait_until_listening(port)
        for node in range(CLIENTS):
            place = {"partition-id": node, "num-partitions": CLIENTS}
            if way == "join":
                sets = [word for key, value in place.items() for word in ("--set", f"{key}={value}")]
                state = str(folder / f"device-{node}")
                client = start("hedgerow", "join", "--insecure", "--superlink", address, "--state", state, *sets)
            else:
                config = " ".join(f"{key}={value}" for key, value in place.items())
                own = ["--port", str(free_port()), "--node-config", config]
                client = start("flower-supernode", "--insecure", "--superlink", address, *own)
            processes.append(client)
        time.sleep(10)  # idle: what starts them is not measured
        yield environment, processes[:1], processes[1:]
    finally:
        end(processes)
        log.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until_listening(port: int) -> None:
    for _ in range(600):
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit("the SuperLink does not come up")


def family(roots: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [root, *root.children(recursive=True)]
    return found


def cpu(roots: list[psutil.Process]) -> float:
    """Of the processes and all that they started, ended ones too."""
    total = 0.0
    for process in family(roots):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def memory(roots: list[psutil.Process]) -> tuple[float, int]:
    """Sum of RSS in MiB, and of how many processes."""
    sizes = []
    for process in family(roots):
        with contextlib.suppress(psutil.NoSuchProcess):
            sizes.append(process.memory_info().rss / 2**20)
    return sum(sizes), len(sizes)


def end(roots: list[psutil.Process]) -> None:
    processes = family(roots)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=15)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    main()
