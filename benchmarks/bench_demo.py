"""What the demo run costs: wall and CPU seconds, peak memory over all its processes, and the accuracy it reaches.

Starts `hedgerow simulate mnist` in a fresh process and samples /proc every 50 ms. RSS counts a page once per process
that maps it, PSS once in all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as train.trainer=torch")
    parser.add_argument("scenario", nargs="?", default="mnist")
    options = parser.parse_args()
    arguments = [options.scenario, *(word for override in options.set for word in ("--set", override))]
    rows = [measure(arguments) for _ in range(options.runs)]
    print(f"hedgerow simulate {' '.join(arguments)}, {options.runs} runs: median (min .. max)")
    for name, unit in (
        ("wall_s", "s"), ("first_round_s", "s to the end of round 1"), ("cpu_s", "CPU-s"),
        ("rss_mib", "MiB, sum of RSS"), ("pss_mib", "MiB, sum of PSS"),
        ("accuracy", "test accuracy, fp32"), ("int8_accuracy", "test accuracy, INT8 ONNX"),
    ):  # fmt: skip
        values = sorted(row[name] for row in rows)
        print(f"  {name:14} {statistics.median(values):9.3f}  ({values[0]:.3f} .. {values[-1]:.3f}) {unit}")


def measure(arguments: list[str]) -> dict[str, float]:
    """One run in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        start = time.monotonic()
        command = [str(Path(sys.executable).with_name("hedgerow")), "simulate", *arguments, "--out", str(out)]
        process = psutil.Popen(command, stdout=subprocess.DEVNULL)
        peak = {"rss": 0, "pss": 0}
        cpu: dict[int, float] = {}
        first_round = None
        while process.poll() is None:
            usage = {"rss": 0, "pss": 0}
            for member in [process, *process.children(recursive=True)]:
                try:
                    memory, times = member.memory_full_info(), member.cpu_times()
                except psutil.Error:
                    continue
                usage["rss"] += memory.rss
                usage["pss"] += memory.pss
                cpu[member.pid] = times.user + times.system
            peak = {name: max(peak[name], usage[name]) for name in peak}
            if first_round is None and rounds_closed(out / "events.sqlite"):
                first_round = time.monotonic() - start
            time.sleep(0.05)
        wall = time.monotonic() - start
        if process.returncode != 0:
            raise SystemExit(f"the run failed with exit code {process.returncode}")
        final = json.loads((out / "run.json").read_text())["final"]
        return {
            "wall_s": wall,
            "first_round_s": first_round or wall,
            "cpu_s": sum(cpu.values()),
            "rss_mib": peak["rss"] / 2**20,
            "pss_mib": peak["pss"] / 2**20,
            "accuracy": final["accuracy"],
            "int8_accuracy": final["int8_accuracy"]["onnx"],
        }


def rounds_closed(events: Path) -> int:
    """Rounds in the event log of a run that is still going on."""
    if not events.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{events}?mode=ro", uri=True)) as log:
        try:
            return int(log.execute("SELECT count(*) FROM events WHERE kind = 'round_closed'").fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # the table is about to be made


if __name__ == "__main__":
    main()
