"""One server under a fleet's load: the run store, the dashboard's API and its readers, each in a process of its own.

10,000 devices send a heartbeat every 30 s, spread evenly, with a report of their state every tenth time; 200 of them
send an update in every round, and a round closes every two seconds with a real checkpoint. The writer is the real run
store as the server app uses it. A page is open in some browsers: each polls the run, its rounds and a page of devices
over HTTP, and one listens to the stream of events. At the end every event and every device is counted again in the
database and on the stream, and must be there once.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

HEARTBEAT_S, ROUND_S, TICK_S = 30.0, 2.0, 0.5
REPORT_EVERY = 10  # heartbeats
MODEL_VALUES = 60_000
ASKED_MS = 200.0  # of the page's API, 95th percentile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--updating", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pages", type=int, default=5, help="browsers with the page open")
    parser.add_argument("--period", type=float, default=1.0, help="seconds between two polls of one browser")
    parser.add_argument("--part", choices=("writer", "dashboard", "reader"), help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        {"writer": write, "dashboard": show, "reader": read}[options.part](options)
    else:
        measure(options)


def measure(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options.run, options.port = Path(folder) / "run", free_port()
        writer = start("writer", options)
        wait_for(lambda: (options.run / "ready").exists(), "the run")
        dashboard = start("dashboard", options)
        wait_for(lambda: answers(options.port), "the dashboard")
        reader = start("reader", options)
        peaks = watch({"run store": writer, "dashboard": dashboard, "readers": reader}, writer)
        wrote, told = result(writer, options.run / "wrote"), result(reader, options.run / "told")
        dashboard.terminate()
        dashboard.wait(10)
        report(options, wrote, told, peaks, counted(options.run))


def report(
    options: argparse.Namespace,
    wrote: dict[str, Any],
    told: dict[str, Any],
    usage: dict[str, tuple[float, float]],
    found: dict[str, Any],
) -> None:
    seconds = wrote["seconds"]
    print(
        f"{options.devices:,} devices, a heartbeat every {HEARTBEAT_S:g} s; {options.updating} updates every "
        f"{ROUND_S:g} s; {options.pages} pages; {seconds:.0f} s "
        f"on {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"  written: {wrote['heartbeats']:,} heartbeats ({wrote['heartbeats'] / seconds:.0f}/s), {wrote['events']:,} "
        f"events ({wrote['events'] / seconds:.0f}/s), {wrote['rounds']} rounds; late by {wrote['late_s']:.2f} s at most"
    )
    for name, (cpu_s, rss) in usage.items():
        print(f"  {name:10} {100 * cpu_s / seconds:6.1f} % of a core, {rss:6.0f} MiB")
    for name, times in told["ms"].items():
        p95 = percentile(times, 95)
        print(f"  {name:28} {len(times):5} answers, median {statistics.median(times):6.1f} ms, p95 {p95:6.1f} ms")
    everything = [ms for times in told["ms"].values() for ms in times]
    p95 = percentile(everything, 95)
    lost = {
        "events lost in the database": wrote["events"] - found["events"],
        "events lost on the stream": wrote["last_id"] - told["first_id"] - told["events"],
        "events told twice": told["twice"],
        "devices lost": options.devices - found["devices"],
        "devices with an old heartbeat": sum(
            abs(found["seen"].get(node, 0) - at) > 1e-6 for node, at in wrote["seen"].items()
        ),
        "answers that were none": told["failed"],
    }
    print("  " + ", ".join(f"{name}: {count}" for name, count in lost.items()))
    print(f"  database {found['mib']:.1f} MiB, run directory {found['all_mib']:.1f} MiB")
    verdict = "holds" if not any(lost.values()) and p95 <= ASKED_MS else "FAILS"
    print(f"  page API p95 {p95:.1f} ms (asked: {ASKED_MS:g}), nothing lost: {verdict}")
    if verdict == "FAILS":
        raise SystemExit(1)


# ---- the server app's part


def write(options: argparse.Namespace) -> None:
    """Heartbeats and rounds at their times; what can't keep up falls behind, and says by how much."""
    import numpy as np

    from edge_runtime.config import flatten, from_flat
    from server import results
    from server.checkpoint import pack
    from server.config import ServerConfig
    from server.rounds import Failure, RoundResult
    from server.run_store import Checkpoint, RunStore, Sighting, model_bytes

    store, rng = RunStore(options.run), np.random.default_rng(0)
    config = from_flat(
        ServerConfig, {"server.rounds": int(options.seconds / ROUND_S), "server.cohort": options.updating}
    )
    store.append("run_started", flatten(config))
    store.append("run_facts", {"parameters": MODEL_VALUES, "warnings": [], "protection": "", "evaluated_on": None})
    store.seen(Sighting(node, time.time(), device(node, 0)) for node in range(options.devices))
    (options.run / "ready").touch()
    time.sleep(3)  # the readers start
    events, heartbeats, rounds, late_s, seen = 2, 0, 0, 0.0, {}
    order, start_s, beat, last_id = rng.permutation(options.devices), time.monotonic(), 0, 0
    per_tick = options.devices * TICK_S / HEARTBEAT_S
    for tick in range(int(options.seconds / TICK_S)):
        due_s = start_s + tick * TICK_S
        time.sleep(max(0.0, due_s - time.monotonic()))
        late_s = max(late_s, time.monotonic() - due_s)
        now, some = time.time(), []
        while beat < (tick + 1) * per_tick:
            node, lap = int(order[beat % options.devices]), beat // options.devices
            full = (node + lap) % REPORT_EVERY == 0
            some.append(Sighting(node, now, device(node, lap) if full else None))
            seen[str(node)] = now
            beat += 1
        store.seen(some)
        heartbeats += len(some)
        if (tick + 1) * TICK_S % ROUND_S:
            continue
        rounds += 1
        asked = [int(node) for node in rng.choice(options.devices, options.updating, replace=False)]
        about = {"asked": [str(node) for node in asked], "goal": options.updating, "mode": "sync", "deadline_s": 60.0}
        store.append("round_planned", about, rounds)
        for node in asked:
            about = {"client": str(node), "bytes": 4 * MODEL_VALUES, "examples": 100, "loss": 1.0}
            store.append("update_received", about, rounds)
        store.append("client_dropped", {"client": str(asked[0]), "reason": "no reply within 60 s"}, rounds)
        weights = rng.normal(size=MODEL_VALUES).astype(np.float32)
        failures = (Failure(str(asked[0]), "no reply within 60 s"),)
        names = tuple(map(str, asked))
        taken = RoundResult(rounds, None, names, failures, 1.0, 4 * MODEL_VALUES * len(asked), 32.0)
        row = results.round_row(
            taken, None, {"loss": 1 / rounds, "accuracy": 0.5}, 4 * MODEL_VALUES * len(asked), None, 2.0
        )
        blob = store.keep(pack({"weights": weights}))
        checkpoint = Checkpoint(rounds, blob, store.keep_model(model_bytes({"weights": weights})))
        store.close_round(rounds, results.as_json(row), checkpoint)
        store.forget({checkpoint.blob}, {checkpoint.model})
        events += len(asked) + 4
    seconds = time.monotonic() - start_s
    last_id = store.read("SELECT max(id) FROM events")[0][0]
    (options.run / "last").write_text(str(last_id))
    time.sleep(3)  # the stream catches up
    store.close()
    (options.run / "wrote").write_text(
        json.dumps(
            {
                "events": events, "heartbeats": heartbeats, "rounds": rounds, "late_s": late_s, "seconds": seconds,
                "seen": seen, "last_id": last_id,
            }
        )
    )  # fmt: skip


def device(node: int, lap: int) -> dict[str, Any]:
    """What a device table's row holds."""
    report = {
        "name": f"pi-{node}", "version": "1.0", "arch": "aarch64", "isa": "dotprod", "memory_budget": 64 << 20,
        "memory_available": 400 << 20, "rss": 70 << 20, "rss_peak": 90 << 20, "temperature_c": 50.0 + lap % 10,
        "throttled": False, "power": "mains", "metered": False, "eligible": node % 7 != 0, "why_not": "",
        "retry_s": None,
    }  # fmt: skip
    return {
        "report": report, "eligible": node % 7 != 0, "why_not": "", "retry_s": None, "rounds": lap, "dropped": 0,
        "late": 0, "declined": 0, "last_reason": "", "dropped_in": {}, "running": 1, "seconds": 1.5,
    }  # fmt: skip


# ---- the dashboard, and those who look at it


def show(options: argparse.Namespace) -> None:
    from server.dashboard.serving import Listen, make_server

    make_server(options.run, Listen(port=options.port), None).run()


def read(options: argparse.Namespace) -> None:
    """Pages that poll, and one listener; ends when the listener has heard the last event."""
    ms: dict[str, list[float]] = {"": [], "/rounds": [], "/devices?page=": []}
    failed, done = [0], threading.Event()

    def page(number: int) -> None:
        connection, asked, after = http.client.HTTPConnection("127.0.0.1", options.port, timeout=30), 0, 0
        done.wait(number * options.period / options.pages)
        while not done.wait(options.period):
            for name in ms:
                asked += 1
                more = {"/rounds": f"?after={after}", "/devices?page=": str(1 + asked % 5)}.get(name, "")
                since = time.perf_counter()
                try:
                    connection.request("GET", f"/api/runs/run{name}{more}")
                    answer = connection.getresponse()
                    content = answer.read()
                except OSError:
                    failed[0] += 1
                    connection.close()
                    continue
                ms[name].append(1e3 * (time.perf_counter() - since))
                failed[0] += answer.status != 200
                if name == "/rounds" and (rows := json.loads(content)["rounds"]):
                    after = rows[-1]["round"]

    pages = [threading.Thread(target=page, args=(number,)) for number in range(options.pages)]
    for one in pages:
        one.start()
    heard = listen(options)
    done.set()
    for one in pages:
        one.join()
    said = {f"GET /api/runs/ID{name}": times for name, times in ms.items()}
    (options.run / "told").write_text(json.dumps({"ms": said, "failed": failed[0], **heard}))


def listen(options: argparse.Namespace) -> dict[str, int]:
    """Every event that the stream tells, from its first `id` to the writer's last."""
    connection = http.client.HTTPConnection("127.0.0.1", options.port, timeout=60)
    connection.request("GET", "/api/stream?run=run")
    answer = connection.getresponse()
    first_id, ids, twice = -1, set(), 0
    kind, number, until_s = "", 0, time.monotonic() + options.seconds + 30
    while time.monotonic() < until_s:
        line = answer.readline().decode().rstrip("\n")
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("id: "):
            number = int(line.removeprefix("id: "))
        elif line.startswith("data: ") and first_id < 0:
            first_id = number
        elif line.startswith("data: ") and kind == "event":
            event = json.loads(line.removeprefix("data: "))["id"]
            twice += event in ids
            ids.add(event)
        if not line.startswith("data: "):
            continue
        last = options.run / "last"
        if ids and number >= max(ids) and last.exists() and (text := last.read_text()) and number >= int(text):
            break
    connection.close()
    return {"first_id": first_id, "events": len(ids), "twice": twice}


# ---- plumbing


def counted(run: Path) -> dict[str, Any]:
    """What a fresh look at the database finds."""
    with sqlite3.connect(run / "events.sqlite") as store:
        events = store.execute("SELECT count(*) FROM events").fetchone()[0]
        seen = dict(store.execute("SELECT node, seen_s FROM devices").fetchall())
    store.close()
    size = sum(path.stat().st_size for path in run.glob("events.sqlite*")) / 2**20
    everything = sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) / 2**20
    return {"events": events, "devices": len(seen), "seen": seen, "mib": size, "all_mib": everything}


def start(part: str, options: argparse.Namespace) -> psutil.Popen:
    settings = {
        "devices": options.devices, "updating": options.updating, "seconds": options.seconds, "pages": options.pages,
        "period": options.period, "run": options.run, "port": options.port, "part": part,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return psutil.Popen([sys.executable, "-P", __file__, *words])


def watch(parts: dict[str, psutil.Popen], until: psutil.Popen) -> dict[str, tuple[float, float]]:
    """CPU seconds and largest memory (MiB) of each part, while the writer lives."""
    usage = dict.fromkeys(parts, (0.0, 0.0))
    before = {name: part.cpu_times() for name, part in parts.items()}
    while until.poll() is None:
        for name, part in parts.items():
            try:
                now, rss = part.cpu_times(), part.memory_info().rss / 2**20
            except psutil.Error:
                continue
            spent = now.user + now.system - before[name].user - before[name].system
            usage[name] = (spent, max(rss, usage[name][1]))
        time.sleep(0.5)
    return usage


def result(part: psutil.Popen, where: Path) -> dict[str, Any]:
    if part.wait(120):
        raise SystemExit(f"a part of the benchmark failed: {part.args}")
    found: dict[str, Any] = json.loads(where.read_text())
    return found


def wait_for(there: Any, what: str) -> None:
    until_s = time.monotonic() + 300
    while not there():
        if time.monotonic() > until_s:
            raise SystemExit(f"{what} did not come up")
        time.sleep(0.05)


def answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def percentile(values: list[float], share: int) -> float:
    return statistics.quantiles(values, n=100)[share - 1]


if __name__ == "__main__":
    main()
