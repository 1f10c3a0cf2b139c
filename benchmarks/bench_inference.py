"""How long one inference takes in Hedgerow's own engine, beside ONNX Runtime, LiteRT, tflite-runtime and PyTorch.

Batch 1, one thread, CPU time, through each runtime's best Python call: LiteRT set_tensor, invoke and get_tensor, ONNX
Runtime run, the engine its backend's predict, which takes and gives float32; the int8 files of LiteRT are given int8,
and that conversion is not counted. Each (runtime, model) is a fresh process; they take turns within each of `--rounds`,
and the tables have the medians. Weights are PyTorch's initial ones (no time depends on them) and grids come from
calibration on random inputs; all runtimes must give the same answer, or the benchmark fails.

`ratio` is the engine's INT8 time over the best rival's, below 1 is faster. MB are 10^6 bytes: of the whole process
after its first inference, Python and NumPy included. Rivals that are not installed are skipped and said so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bars import Bar
from processes import HERE, ONE_THREAD, machine, save

from edge_runtime.errors import UnsupportedOpError

SHAPES: dict[str, tuple[int, ...] | None] = {  # None: 64 tokens
    "lenet": (1, 28, 28),
    "mlp": (1, 28, 28),
    "resnet8": (3, 32, 32),
    "mobilenet_v2_small": (3, 32, 32),
    "watch_cnn": (6, 1, 100),
    "ds_cnn": (1, 49, 10),
    "char_gru": None,
    "char_transformer": None,
}
CALIBRATION_ROWS = 32
TOKENS, VOCABULARY = 64, 80

# Runtime and precision, and the file it loads.
RUNTIMES = {
    ("engine", "int8"): "int8.hedgerow",
    ("engine", "fp32"): "fp32.hedgerow",
    ("ort", "int8"): "int8.onnx",
    ("ort", "fp32"): "fp32.onnx",
    ("litert", "int8"): "int8.tflite",
    ("litert", "fp32"): "fp32.tflite",
    ("tflite", "int8"): "int8.tflite",
    ("tflite", "fp32"): "fp32.tflite",
    ("torch", "fp32"): "module.pt",
}
NAMES = {
    "engine": "engine",
    "ort": "ONNX Runtime",
    "litert": "LiteRT",
    "tflite": "tflite-runtime",
    "torch": "torch eager",
}
RIVALS = ("ort", "litert")  # that the ratio is held against
BARS = {"lenet": 1.0, "mlp": 1.0, "resnet8": 1.0}  # most of the ratio
LENET_MB = 32.0
# Of the range of the outputs: grids of 8 bits differ by less, wrong layouts by far more.
TOLERANCE = {"fp32": 1e-3, "int8": 0.1}


@dataclass
class Job:
    """One runtime with one model, and what its process says."""

    runtime: str
    precision: str
    model: str
    file: Path
    about: dict[str, Any] = field(default_factory=dict)
    rounds: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def label(self) -> str:
        return f"{NAMES[self.runtime]} {self.precision}"

    @property
    def microseconds(self) -> float:
        return statistics.median(self.rounds) if self.rounds else math.nan


def main() -> None:
    options = parse(sys.argv[1:])
    print(f"Machine: {machine()}; one thread, CPU time, medians of {options.rounds} rounds")
    bars: list[Bar] = []
    jobs: list[Job] = []
    wrong: list[str] = []
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(model, options, Path(folder))
            if found:
                print_table(model, found)
                bars += bars_of(model, found)
                wrong += disagreeing(found)
                jobs += found
    print("\nBars")
    for bar in bars:
        print(f"   {bar}")
    for line in wrong:
        print(line, file=sys.stderr)
    if options.json:
        about = {"command": "hedgerow bench inference", "rounds": options.rounds}
        save(Path(options.json), about, [row(job) for job in jobs if job.rounds], [str(bar) for bar in bars])
    if wrong:
        raise SystemExit(1)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = ["lenet", "mlp", "resnet8", "mobilenet_v2_small", "char_gru"]
    parser.add_argument("--models", nargs="+", default=models, choices=SHAPES)
    parser.add_argument("--runtimes", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.1, help="of CPU time that a round takes at least")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    return parser.parse_args(arguments)


def measure(model: str, options: argparse.Namespace, folder: Path) -> list[Job]:
    written = write_files(model, folder)
    jobs = [
        Job(runtime, precision, model, folder / file, failure=written.get(file, ""))
        for (runtime, precision), file in RUNTIMES.items()
        if runtime in options.runtimes
    ]
    children = {id(job): child for job in jobs if not job.failure and (child := started(job, folder / "x.npy"))}
    try:
        for _ in range(options.rounds):
            for job in jobs:
                if child := children.get(id(job)):
                    job.rounds.append(float(asked(child, f"{options.seconds}\n")))
    finally:
        for child in children.values():
            child.communicate()
    return jobs


def write_files(model: str, folder: Path) -> dict[str, str]:
    """Every file of RUNTIMES in `folder`, and `x.npy`; gives those that could not be made, with the reason."""
    import torch

    from edge_runtime.deploy.artefact import write_manifest
    from edge_runtime.deploy.formats.engine import write_engine
    from edge_runtime.deploy.formats.onnx import write_onnx
    from edge_runtime.deploy.formats.tflite import write_tflite
    from edge_runtime.deploy.graph.calibrate import calibrate
    from edge_runtime.deploy.graph.captured import captured_model
    from edge_runtime.deploy.graph.fold import fold
    from edge_runtime.deploy.graph.quantise import quantise
    from simulations import models

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    shape = SHAPES[model]
    x = (
        rng.integers(0, VOCABULARY, (CALIBRATION_ROWS, TOKENS))
        if shape is None
        else rng.standard_normal((CALIBRATION_ROWS, *shape)).astype(np.float32)
    )
    np.save(folder / "x.npy", x[:1])
    if not hasattr(models, model):
        return dict.fromkeys(RUNTIMES.values(), f"there is no model {model} here")
    module = getattr(models, model)().eval()
    torch.save(module, folder / "module.pt")
    fp32 = fold(captured_model(module, x))
    int8 = quantise(fp32, calibrate(fp32, [x]))
    failures = {}
    for suffix, write in ((".hedgerow", write_engine), (".onnx", write_onnx), (".tflite", write_tflite)):
        for precision, one in (("fp32", fp32), ("int8", int8)):
            try:
                (folder / f"{precision}{suffix}").write_bytes(write(one, batch=1))
            except UnsupportedOpError as error:
                failures[f"{precision}{suffix}"] = str(error)
    ours = {f"engine_{path.stem}": path for path in folder.glob("*.hedgerow")}
    write_manifest(folder, ours, {})
    return failures


def started(job: Job, x: Path) -> subprocess.Popen[str] | None:
    """A child that has loaded its model; None, with the reason in the job, where it cannot."""
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(HERE.parent)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else "load" is the time to compile what is imported late
    python = tflite_python() if job.runtime == "tflite" else Path(sys.executable)
    if not python.is_file():
        job.failure = "not installed (make rivals-tflite)"
        return None
    line = [python, "-W", "ignore", HERE / "inference_child.py", job.runtime, job.file, x]
    pipe = subprocess.PIPE
    child = subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
    assert child.stdout is not None
    if first := child.stdout.readline():
        job.about = json.loads(first)
        return child
    said = [text for text in child.communicate()[1].splitlines() if text.strip()]
    job.failure = said[-1].strip()[:100] if said else f"ended with {child.returncode}"
    return None


def tflite_python() -> Path:
    folder = os.environ.get("HEDGEROW_RIVALS_TFLITE")
    return (Path(folder) if folder else HERE.parent / ".venv-tflite") / "bin" / "python"


def asked(child: subprocess.Popen[str], line: str) -> str:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(line)
    child.stdin.flush()
    return child.stdout.readline()


def print_table(model: str, jobs: list[Job]) -> None:
    print(f"\n{model}\n   {'':24}{'us':>10}{'file KB':>10}{'load ms':>10}{'MB':>8}")
    for job in jobs:
        if job.failure:
            print(f"   {job.label:24}  skipped: {job.failure}")
            continue
        size = job.file.stat().st_size / 1e3 if job.file.exists() else math.nan
        about = job.about
        print(f"   {job.label:24}{job.microseconds:10.1f}{size:10.1f}{about['load_ms']:10.1f}{about['rss_mb']:8.1f}")
    print(f"   ratio {ratio(jobs):.2f}")


def ratio(jobs: list[Job]) -> float:
    """The engine's INT8 over the best rival of any precision."""
    ours = [job.microseconds for job in jobs if (job.runtime, job.precision) == ("engine", "int8")]
    theirs = [job.microseconds for job in jobs if job.runtime in RIVALS and job.rounds]
    return ours[0] / min(theirs) if ours and theirs else math.nan


def bars_of(model: str, jobs: list[Job]) -> list[Bar]:
    bars = (
        [
            Bar(
                f"{model}: engine INT8 over the best of {' and '.join(NAMES[one] for one in RIVALS)}",
                ratio(jobs),
                BARS[model],
                at_most=True,
            )
        ]
        if model in BARS
        else []
    )
    if model == "lenet":
        ours = [job.about["rss_mb"] for job in jobs if (job.runtime, job.precision) == ("engine", "int8") and job.about]
        bars.append(
            Bar("lenet: MB of a process with the engine", ours[0] if ours else math.nan, LENET_MB, at_most=True)
        )
    return bars


def disagreeing(jobs: list[Job]) -> list[str]:
    """Runtimes whose answer is another than the reference's, which is PyTorch's, or the engine's fp32."""
    whole = [job for job in jobs if job.about and job.precision == "fp32"]
    reference = next((job for job in whole if job.runtime == "torch"), whole[0] if whole else None)
    if reference is None:
        return []
    want = np.array(reference.about["output"])
    return [
        f"{job.model}: {job.label} is {off:.2g} of the range away from {reference.label}"
        for job in jobs
        if job.about
        and (off := np.abs(np.array(job.about["output"]) - want).max() / np.ptp(want)) > TOLERANCE[job.precision]
    ]


def row(job: Job) -> dict[str, Any]:
    return {
        "model": job.model,
        "runtime": NAMES[job.runtime],
        "precision": job.precision,
        "us": round(job.microseconds, 2),
        "load_ms": round(job.about["load_ms"], 2),
        "rss_mb": round(job.about["rss_mb"], 1),
    }


if __name__ == "__main__":
    main()
