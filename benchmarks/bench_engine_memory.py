"""What training costs in memory: the planned arena against its bound and its use, budgets, and whole processes.

MB are 10^6 bytes. Every figure is of a fresh process (`python -P`, one thread), and a median over `--repeats` of them
where it is read from /proc. `VmHWM` is a process's own highest resident set; `ru_maxrss` would count the parent, as
which a child starts.

1. Arena: planned peak; the bound, which is what the same schedule needs at its fullest op; and where the last byte lies
   that a training step has written, in an arena filled with NaN.
2. Budget: every plan of one model that no other beats; the training under `--budget`; and by how much a process grows
   over its idle size, ours and PyTorch's. Idle is after the imports (for PyTorch with one 4x4 product); then
   /proc/self/clear_refs resets VmHWM; then the model or Program is loaded and `--steps` steps run.
3. Whole process: loads a Program (no torch), trains on data made by arithmetic, and ends; and again with rows shuffled
   by NumPy's generator, as importing `numpy.random` is a part of it. PyTorch eager and ONNX Runtime training (its C
   bindings, without torch) do the same steps with SGD.
4. ExecuTorch: LeNet's arena as it plans it, beside ours.

Models, weights and data: five of `simulations.models` after torch.manual_seed(0); standard normal x or tokens below 80.
Rivals that are not installed are skipped and said so; `make rivals` installs them beside the checkout's environment.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps import MODELS, idle_mb, status_mb

if TYPE_CHECKING:
    import argparse

# Imports at the top are a part of every process that is measured: only what the engine itself imports stands there,
# and in steps.py.

Run = Callable[[], dict[str, Any]]

WHOLE_PROCESS_MODELS = ("lenet", "resnet8", "gru", "tfm")
GOAL_MB = 40


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        kind, *arguments = sys.argv[2:]
        print(json.dumps(CHILDREN[kind](*arguments)))
        return
    import argparse
    import tempfile

    from processes import why_missing

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--budget", default="40 MB", help="for the budget table")
    parser.add_argument("--budget-model", default="mbv2", choices=MODELS)
    parser.add_argument("--budget-batch", type=int, default=32)
    parser.add_argument("--process-batch", type=int, default=8, help="for the table of whole processes")
    options = parser.parse_args()
    for why in filter(None, map(why_missing, ("ort", "executorch"))):
        print(why)
    with tempfile.TemporaryDirectory() as folder:
        print_arenas(options.models, options.batches, Path(folder))
        print_budget(options, Path(folder))
        print_processes(options, Path(folder))
        print_executorch(options.batches, Path(folder))


def fresh(kind: str, *arguments: object) -> dict[str, Any]:
    """What a child of that kind reports, run in a process of its own."""
    import subprocess

    from processes import ONE_THREAD

    command = [sys.executable, __file__, "--child", kind, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **ONE_THREAD})
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ours(path: Path, steps: int, order: str) -> Run:
    return lambda: fresh("train", path, steps, order)


def rival(framework: str, model: str, batch: int, steps: int, folder: Path) -> Run | None:
    """A process of `steps.py`; None where the framework is not installed."""
    from processes import run_steps, why_missing

    if why_missing(framework):
        return None
    place = folder / f"{framework}-{model}-{batch}"
    run_steps("prepare", framework, place, model, batch)
    return lambda: run_steps("memory", framework, place, steps)


def repeated(repeats: int, *runs: Run | None) -> list[dict[str, float]]:
    """Median of each figure over `repeats` processes of each of `runs`, which take turns; {} for one that is None."""
    import statistics

    found: list[list[dict[str, Any]]] = [[] for _ in runs]
    for _ in range(repeats):
        for rows, run in zip(found, runs, strict=True):
            rows += [run()] if run else []
    return [{key: statistics.median(row[key] for row in rows) for key in (rows or [{}])[0]} for rows in found]


# The tables.


def print_arenas(models: list[str], batches: list[int], folder: Path) -> None:
    print("1. Arena of a training step with no budget, bytes: weights, gradients, activations, workspace, input")
    print(f"   {'model':8} {'batch':>5} {'planned':>12} {'bound':>12} {'planned/bound':>13} {'written up to':>13}")
    for model in models:
        for batch in batches:
            row = fresh("build", model, batch, 0, folder / "program")
            print(
                f"   {model:8} {batch:5} {row['planned']:12,} {row['bound']:12,} "
                f"{row['planned'] / row['bound']:13.4f} {row['written']:13,}{_verdict(row)}"
            )


def _verdict(row: dict[str, Any]) -> str:
    return "" if row["written"] <= row["planned"] else "  OVER: beyond the planned arena"


def print_budget(options: argparse.Namespace, folder: Path) -> None:
    model, batch = options.budget_model, options.budget_batch
    path = folder / "budgeted"
    free = fresh("build", model, batch, 0, folder / "free")
    row = fresh("build", model, batch, options.budget, path)
    print(f"\n2. Budgets: {model} at batch {batch}; the plans that no other beats, smallest first")
    print(f"   {'arena MB':>8} {'est. cost':>9} {'extra MFLOP':>11} {'rows at once':>12}  plan")
    for point in sorted(row["curve"], key=lambda point: point["peak_bytes"]):
        print(
            f"   {point['peak_bytes'] / 1e6:8.2f} {point['cost']:9.3f} {point['extra_flops'] / 1e6:11.1f} "
            f"{point['micro_batch']:12}  {point['name']}"
        )
    print(
        f"   under {options.budget}: planned {row['planned']:,} bytes ({row['plan']}), written up to "
        f"{row['written']:,}{_verdict(row)}; loss {row['losses'][0]:.6f}, with no budget {free['losses'][0]:.6f}; "
        f"weights after {len(row['losses'])} steps {'the same bits' if row['digest'] == free['digest'] else 'DIFFER'}"
    )
    rivals = {"torch eager": "torch", "onnxruntime-training": "ort"}
    runs = [rival(framework, model, batch, options.steps, folder) for framework in rivals.values()]
    mine, *others = repeated(options.repeats, ours(path, options.steps, "plain"), *runs)
    print(f"   {'process':22} {'idle MB':>8} {'added MB':>8} {'whole MB':>8} {'x ours':>8}")
    for name, one in zip((f"ours under {options.budget}", *rivals), (mine, *others), strict=True):
        if one:
            times = _added(one) / _added(mine)
            print(f"   {name:22} {one['idle']:8.1f} {_added(one):8.1f} {one['peak']:8.1f} {times:8.1f}")


def _added(row: dict[str, float]) -> float:
    return row["peak"] - row["idle"]


def print_processes(options: argparse.Namespace, folder: Path) -> None:
    batch = options.process_batch
    stages = ("bare", "numpy", "loaded", "trainer", "peak")
    titles = (
        "Python", "+ numpy", "+ Program", "+ Trainer", "peak", "shuffled", "torch", "ORT", "ours/torch", "ours/ORT"
    )  # fmt: skip
    print(f"\n3. Whole process at batch {batch}, MB; goal <= {GOAL_MB} (VmHWM after each stage, {options.steps} steps)")
    print(f"   {'model':8} " + " ".join(f"{title:>10}" for title in titles))
    for model in (one for one in options.models if one in WHOLE_PROCESS_MODELS):
        path = folder / f"{model}.program"
        fresh("build", model, batch, 0, path)
        plain, shuffled, torch, ort = repeated(
            options.repeats,
            ours(path, options.steps, "plain"),
            ours(path, options.steps, "shuffled"),
            rival("torch", model, batch, options.steps, folder),
            rival("ort", model, batch, options.steps, folder),
        )
        rivals = [one.get("peak", math.nan) for one in (torch, ort)]
        cells = [*(plain[stage] for stage in stages), shuffled["peak"], *rivals]
        over = "  OVER" if plain["peak"] > GOAL_MB else ""
        over += "  OVER when shuffled" if shuffled["peak"] > GOAL_MB else ""
        shares = " ".join(f"{plain['peak'] / peak:10.3f}" for peak in rivals)
        print(f"   {model:8} " + " ".join(f"{cell:10.1f}" for cell in cells) + f" {shares}{over}")


def print_executorch(batches: list[int], folder: Path) -> None:
    from processes import run_steps, why_missing

    if why_missing("executorch"):
        return
    print("\n4. Planned arena of lenet, bytes: ours and ExecuTorch's")
    print(f"   {'batch':>5} {'ours':>12} {'executorch':>12} {'ours/its':>8}")
    for batch in batches:
        mine, its = (
            run_steps("prepare", framework, folder / f"{framework}-arena-{batch}", "lenet", batch)["arena_bytes"]
            for framework in ("ours", "executorch")
        )
        print(f"   {batch:5} {mine:12,} {its:12,} {mine / its:8.2f}")


# What runs in processes of its own; each imports for itself.


def build(model: str, batch: str, budget: str, path: str) -> dict[str, Any]:
    """Plan, save, and train three steps in an arena of NaN."""
    import hashlib

    from steps import torch_model

    import edge_runtime as er
    from edge_runtime.engine.session import Session

    module, x, y = torch_model(model, int(batch))
    program = er.build(
        module, x, batch_size=int(batch), optimizer=er.SGD(lr=0.01), memory_budget=None if budget == "0" else budget
    )
    program.save(path)
    trainer = er.Trainer(program)
    weights = trainer.state_dict()
    trainer._session = session = Session(program, poison=True)
    trainer.load_state_dict(weights)
    losses = [trainer.step(x.numpy(), y.numpy()) for _ in range(3)]
    digest = hashlib.sha256(b"".join(array.tobytes() for array in trainer.state_dict().values()))
    points = [
        {name: getattr(point, name) for name in ("peak_bytes", "cost", "extra_flops", "micro_batch", "name")}
        for point in program.report.curve
    ]
    return {
        "planned": program.peak_bytes, "bound": program.lower_bound_bytes, "written": session.touched_bytes(),
        "losses": losses, "digest": digest.hexdigest(), "curve": points, "plan": program.report.chosen.name,
    }  # fmt: skip


def train(path: str, steps: str, order: str) -> dict[str, float]:
    """A device's process: load, train, end. Megabytes after each stage."""
    found = {"bare": status_mb("VmHWM")}
    import numpy as np

    found["numpy"] = status_mb("VmHWM")
    import edge_runtime as er

    Program, Trainer = er.Program, er.Trainer  # noqa: N806  the lazy names, so that idle holds their imports
    found["idle"] = idle_mb()
    program = Program.load(path)
    found["loaded"] = status_mb("VmHWM")
    trainer = Trainer(program, threads=1)
    found["trainer"] = status_mb("VmHWM")
    inputs = {one.name: one for one in next(phase for phase in program.phases if phase.kind != "predict").inputs}
    target = inputs["target.0"]
    data = next(one for name, one in inputs.items() if name not in _SCALARS and not name.startswith(("norm.", "targ")))
    counts = np.arange(int(np.prod(data.shape))).reshape(data.shape)
    x = counts * 7919 % 80 if data.dtype == "i64" else ((counts * 7919 % 1009 - 504) / 291).astype(np.float32)
    y = (np.arange(int(np.prod(target.shape))) * 31 % 10).reshape(target.shape)
    order_of = er.Shuffle(0)
    for _ in range(int(steps)):
        rows = order_of.permutation(len(x)) if order == "shuffled" else slice(None)
        trainer.step(x[rows], y[rows])
    if "torch" in sys.modules:
        raise AssertionError("a device's process must not import torch")
    return {**found, "peak": status_mb("VmHWM")}


_SCALARS = ("rows", "random", "lr", "corrections", "share")


CHILDREN = {"build": build, "train": train}

if __name__ == "__main__":
    main()
