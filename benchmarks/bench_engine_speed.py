"""How long a training step takes, beside PyTorch eager, ONNX Runtime training and ExecuTorch.

Five models (lenet, resnet8, mbv2, gru, tfm), float32, plain SGD(lr 0.01), mean cross-entropy, one thread, CPU time.
Each (framework, model, batch) runs in a fresh process, frameworks taking turns within each of `--rounds`; a process
gives its fastest step after 6 others, and the table the median of the processes. `x` columns say how many times faster
our step is. First-step losses of all frameworks must agree to 3 decimals, or the benchmark fails.

1. Steps: the cells of model and batch, against PyTorch and ONNX Runtime training.
2. Budgets: MobileNetV2 at batch 32 in arenas of 40 and 24 MB; time over PyTorch's (below 1 is faster).
3. ExecuTorch: LeNet, the one model of the five that it lowers; planned arenas side by side. Its gradients are wrong
   (it scatters into memory that it has not cleared), so only its time and arena count here.
4. Library: bytes of the native core as installed.
5. Two threads: ours against ours, wall time, fastest of several alternating processes. It says what the machine was
   busy with before; a second thread has nothing to gain on cores that others use.

Rivals that are not installed are skipped and said so; `make rivals` installs them beside the checkout's environment.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bars import Bar, geomean
from processes import NAMES, StepError, machine, run_steps, save, why_missing
from steps import MODELS

RIVALS = ("torch", "ort", "executorch")
PARTS = ("steps", "budgets", "executorch", "library", "threads")

LOSS_TOLERANCE = 5e-4
AT_BATCH_1 = {"lenet": 7.0, "gru": 7.0, "resnet8": 2.0, "tfm": 2.0, "mbv2": 2.0}  # times faster than PyTorch
OVER_TORCH, OVER_ORT, WORST_CELL = 2.0, 1.3, 1.0
BUDGETS = {"40 MB": 1.0, "24 MB": 1.35}  # most that a step may take, over PyTorch's
BUDGET_CELL = ("mbv2", 32)
OVER_EXECUTORCH, OF_ITS_ARENA = 20.0, 0.6
LIBRARY_MB = 1.5
TWO_THREADS, TWO_THREADS_CELLS = 1.6, (("resnet8", 32), ("mbv2", 32))


@dataclass
class Job:
    """One framework on one cell; `budget` for ours. What its processes gave, in seconds."""

    framework: str
    model: str
    batch: int
    budget: str = ""
    prepared: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, float]] = field(default_factory=list)
    failure: str = ""

    def folder(self, root: Path) -> Path:
        return root / "-".join([self.framework, self.model, str(self.batch), *self.budget.split()])

    @property
    def milliseconds(self) -> float:
        return 1e3 * statistics.median(step["cpu_s"] for step in self.steps) if self.steps else math.nan

    @property
    def loss(self) -> float:
        return self.steps[0]["loss"] if self.steps else math.nan


def main() -> None:
    options = parse(sys.argv[1:])
    print(f"Machine: {machine()}; one thread, CPU time, {options.rounds} rounds")
    rivals = [name for name in options.rivals if not _said_missing(name)]
    with tempfile.TemporaryDirectory() as folder:
        jobs = measure(planned(options, rivals), options.rounds, Path(folder))
        bars: list[Bar] = []
        if "steps" in options.only:
            bars += print_steps(jobs, options, rivals)
        if "budgets" in options.only:
            bars += print_budgets(jobs)
        if "executorch" in options.only:
            bars += print_executorch(jobs)
        if "library" in options.only:
            bars += print_library()
        if "threads" in options.only:
            bars += print_threads(options, Path(folder))
    print("\nBars")
    for bar in bars:
        print(f"   {bar}")
    differing = list(disagreeing(jobs))
    for line in differing:
        print(line, file=sys.stderr)
    if options.json:
        about = {"command": "hedgerow bench engine-speed", "rounds": options.rounds}
        save(Path(options.json), about, [cell(job) for job in jobs if job.steps], [str(bar) for bar in bars])
    if differing:
        raise SystemExit(1)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3, help="processes of each framework and cell")
    parser.add_argument("--rivals", nargs="*", default=RIVALS, choices=RIVALS)
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, help="parts to run")
    parser.add_argument("--alternations", type=int, default=10, help="of one and two threads")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    return parser.parse_args(arguments)


def _said_missing(framework: str) -> bool:
    if why := why_missing(framework):
        print(f"   {why}")
    return bool(why)


# Measuring.


def planned(options: argparse.Namespace, rivals: list[str]) -> list[Job]:
    """Every process to run in a round, in order: a cell's frameworks beside each other."""
    jobs = []
    for model in options.models:
        for batch in options.batches:
            budgets = "budgets" in options.only and (model, batch) == BUDGET_CELL
            lowered = "executorch" in options.only and model == "lenet" and "executorch" in rivals
            if "steps" in options.only or budgets or lowered:
                jobs.append(Job("ours", model, batch))
            if ("steps" in options.only or budgets) and "torch" in rivals:
                jobs.append(Job("torch", model, batch))
            if "steps" in options.only and "ort" in rivals:
                jobs.append(Job("ort", model, batch))
            if lowered:
                jobs.append(Job("executorch", model, batch))
            if budgets:
                jobs += [Job("ours", model, batch, budget) for budget in BUDGETS]
    return jobs


def measure(jobs: list[Job], rounds: int, root: Path) -> list[Job]:
    for number, job in enumerate(jobs):
        _progress(f"preparing {number + 1} of {len(jobs)}: {NAMES[job.framework]}, {job.model}, batch {job.batch}")
        try:
            job.prepared = run_steps("prepare", job.framework, job.folder(root), job.model, job.batch, job.budget)
        except StepError as error:
            job.failure = str(error)
    for number in range(rounds):
        for job in (job for job in jobs if not job.failure):
            _progress(f"round {number + 1} of {rounds}: {NAMES[job.framework]}, {job.model}, batch {job.batch}")
            try:
                job.steps.append(run_steps("time", job.framework, job.folder(root)))
            except StepError as error:
                job.failure = str(error)
    _progress("")
    for job in (job for job in jobs if job.failure):
        print(f"   FAILED: {NAMES[job.framework]}, {job.model}, batch {job.batch} {job.budget}: {job.failure}")
    return jobs


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:78}", end="" if text else "\r", file=sys.stderr, flush=True)


def find(jobs: list[Job], framework: str, model: str, batch: int, budget: str = "") -> Job:
    """The job, or an empty one whose figures are NaN."""
    wanted = (framework, model, batch, budget)
    fitting = (job for job in jobs if (job.framework, job.model, job.batch, job.budget) == wanted)
    return next(fitting, Job(*wanted))


def disagreeing(jobs: list[Job]) -> Iterable[str]:
    """A line for each job whose first loss is not that of the first framework measured on its cell."""
    first: dict[tuple[str, int], Job] = {}
    for job in (job for job in jobs if job.steps):
        other = first.setdefault((job.model, job.batch), job)
        if not abs(job.loss - other.loss) <= LOSS_TOLERANCE:
            yield (
                f"FAILED: {job.model}, batch {job.batch}: the first loss of {NAMES[job.framework]} is {job.loss:.5f}, "
                f"that of {NAMES[other.framework]} {other.loss:.5f}"
            )


# The parts: each prints its table and returns its bars.


def print_steps(jobs: list[Job], options: argparse.Namespace, rivals: list[str]) -> list[Bar]:
    print("\n1. A training step, CPU ms")
    print(f"   {'model':8} {'batch':>5} {'ours':>9} {'torch':>9} {'ORT':>9} {'x torch':>8} {'x ORT':>8} {'loss':>7}")
    over_torch: dict[tuple[str, int], float] = {}
    over_ort: dict[tuple[str, int], float] = {}
    for model in options.models:
        for batch in options.batches:
            ours, torch, ort = (find(jobs, name, model, batch) for name in ("ours", "torch", "ort"))
            over_torch[model, batch] = torch.milliseconds / ours.milliseconds
            over_ort[model, batch] = ort.milliseconds / ours.milliseconds
            print(
                f"   {model:8} {batch:5} {ours.milliseconds:9.3f} {torch.milliseconds:9.3f} {ort.milliseconds:9.3f} "
                f"{over_torch[model, batch]:8.2f} {over_ort[model, batch]:8.2f} {ours.loss:7.3f}"
            )
    all_torch, all_ort = geomean(over_torch.values()), geomean(over_ort.values())
    print(f"   {'geomean':14} {'':9} {'':9} {'':9} {all_torch:8.2f} {all_ort:8.2f}")
    agreed = not any(disagreeing(jobs)) and all(job.steps for job in jobs)
    print(f"   first-step losses agree to 3 decimals: {'yes' if agreed else 'NO'}")

    bars = []
    if "torch" in rivals:
        bars += [
            Bar(f"times faster than torch, {model}, batch 1", over_torch[model, 1], limit)
            for model, limit in AT_BATCH_1.items()
            if (model, 1) in over_torch
        ]
        slowest = min(over_torch, key=lambda cell: (math.isnan(over_torch[cell]), over_torch[cell]))
        where = f"slowest of {len(over_torch)} cells ({slowest[0]}, batch {slowest[1]})"
        bars.append(Bar(f"times faster than torch, geomean of {len(over_torch)} cells", all_torch, OVER_TORCH))
        bars.append(Bar(f"times faster than torch, {where}", over_torch[slowest], WORST_CELL))
    if "ort" in rivals:
        bars.append(Bar(f"times faster than ORT training, geomean of {len(over_ort)} cells", all_ort, OVER_ORT))
    return bars


def print_budgets(jobs: list[Job]) -> list[Bar]:
    torch, free = find(jobs, "torch", *BUDGET_CELL), find(jobs, "ours", *BUDGET_CELL)
    if not free.steps:
        return []
    print(f"\n2. Budgets: {BUDGET_CELL[0]} at batch {BUDGET_CELL[1]}; PyTorch {torch.milliseconds:.2f} ms")
    print(f"   {'budget':>8} {'arena bytes':>12} {'CPU ms':>8} {'over torch':>10} {'over no budget':>14}  plan")
    bars = []
    for budget in ("", *BUDGETS):
        job = find(jobs, "ours", *BUDGET_CELL, budget)
        ratio = job.milliseconds / torch.milliseconds
        print(
            f"   {budget or 'none':>8} {job.prepared.get('arena_bytes', 0):12,} {job.milliseconds:8.2f} {ratio:10.2f} "
            f"{job.milliseconds / free.milliseconds:14.2f}  {job.prepared.get('plan', job.failure)}"
        )
        if budget:
            text = f"time over torch's, {BUDGET_CELL[0]} at batch {BUDGET_CELL[1]} in {budget}"
            bars.append(Bar(text, math.inf if job.failure else ratio, BUDGETS[budget], at_most=True))
    return bars


def print_executorch(jobs: list[Job]) -> list[Bar]:
    measured = [job for job in jobs if job.framework == "executorch"]
    if not measured:
        return []
    print("\n3. ExecuTorch, lenet")
    print(f"   {'batch':>5} {'ours ms':>8} {'its ms':>8} {'x':>6} {'our arena':>11} {'its arena':>11} {'ours/its':>8}")
    bars = []
    for job in measured:
        ours = find(jobs, "ours", job.model, job.batch)
        ratio = job.milliseconds / ours.milliseconds
        arenas = [float(one.prepared.get("arena_bytes", math.nan)) for one in (ours, job)]
        print(
            f"   {job.batch:5} {ours.milliseconds:8.3f} {job.milliseconds:8.3f} {ratio:6.1f} {arenas[0]:11,.0f} "
            f"{arenas[1]:11,.0f} {arenas[0] / arenas[1]:8.2f}"
        )
        if job.batch == 8:
            bars.append(Bar("times faster than ExecuTorch, lenet, batch 8", ratio, OVER_EXECUTORCH))
            text = "arena over ExecuTorch's planned one, lenet, batch 8"
            bars.append(Bar(text, arenas[0] / arenas[1], OF_ITS_ARENA, at_most=True))
    return bars


def print_library() -> list[Bar]:
    import edge_runtime.kernels
    from edge_runtime.kernels.native import LIBRARY

    folders = [Path(folder) for folder in edge_runtime.kernels.__path__]
    megabytes = next((folder / LIBRARY).stat().st_size for folder in folders if (folder / LIBRARY).is_file()) / 1e6
    print(f"\n4. The native core as installed: {megabytes:.3f} MB")
    return [Bar("MB of the native core", megabytes, LIBRARY_MB, at_most=True)]


def print_threads(options: argparse.Namespace, root: Path) -> list[Bar]:
    print(
        f"\n5. Two threads, wall ms of the fastest step in {options.alternations} alternating processes; "
        f"load average before {os.getloadavg()[0]:.1f}"
    )
    bars = []
    for model, batch in TWO_THREADS_CELLS:
        if model not in options.models:
            continue
        job = Job("ours", model, batch)
        fastest = {1: math.inf, 2: math.inf}
        try:
            run_steps("prepare", "ours", job.folder(root), model, batch)
            for _ in range(options.alternations):
                for threads in fastest:
                    step = run_steps("time", "ours", job.folder(root), threads, threads=threads)
                    fastest[threads] = min(fastest[threads], 1e3 * step["wall_s"])
        except StepError as error:
            print(f"   {model:8} {batch:5} skipped: {error}")
            continue
        ratio = fastest[1] / fastest[2]
        print(f"   {model:8} {batch:5} one {fastest[1]:8.2f}   two {fastest[2]:8.2f}   x {ratio:5.2f}")
        bars.append(Bar(f"times faster on two threads, {model}, batch {batch}", ratio, TWO_THREADS))
    return bars


def cell(job: Job) -> dict[str, Any]:
    """A row of the JSON file."""
    return {
        "framework": NAMES[job.framework],
        "model": job.model,
        "batch": job.batch,
        "budget": job.budget or None,
        "cpu_ms": round(job.milliseconds, 4),
        "processes_cpu_ms": [round(1e3 * step["cpu_s"], 4) for step in job.steps],
        "first_loss": round(job.loss, 5),
        "arena_bytes": job.prepared.get("arena_bytes"),
    }


if __name__ == "__main__":
    main()
