"""Our `.tflite` files beside those of litert-torch and ai-edge-quantizer: size, CPU seconds, accuracy, agreement.

Both get the same trained modules and the same 200 calibration images; both files then run in the same LiteRT, one row
at a time, on 1,000 digits that nobody trained on. Agreement is how often the answer is PyTorch's. Models without a
recipe in `trained_models.py` have random weights and inputs: their answers have little margin, and agree less. The
rivals' environment is that of `make rivals-litert-torch`; without it, only ours is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bars import Bar, geomean
from numpy.typing import NDArray
from processes import HERE, ONE_THREAD, save
from trained_models import RECIPES, trained

from edge_runtime.deploy.formats.tflite import write_tflite
from edge_runtime.deploy.graph.calibrate import calibrate
from edge_runtime.deploy.graph.captured import captured_model
from edge_runtime.deploy.graph.fold import fold
from edge_runtime.deploy.graph.quantise import quantise
from edge_runtime.deploy.runner import Runner
from simulations import models

CALIBRATION, ROWS = 200, 256
KINDS = ("fp32", "int8")
UNTRAINED = {"ds_cnn": (1, 49, 10), "watch_cnn": (6, 1, 100), "char_gru": (80,), "char_transformer": (64,)}
PYTHON = HERE.parent / ".venv-litert-torch" / "bin" / "python"


@dataclass(frozen=True)
class Case:
    """A module, its calibration inputs, and inputs with PyTorch's answers; classes, or nothing."""

    name: str
    module: torch.nn.Module
    calibration: NDArray[np.generic]
    x: NDArray[np.generic]
    answers: NDArray[np.int64]
    classes: NDArray[np.int64] | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[*RECIPES, *(one for one in UNTRAINED if one not in RECIPES)])
    parser.add_argument("--save", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not PYTHON.is_file():
        print("skipped: litert-torch (make rivals-litert-torch installs it)")
    print("| model | file | ours KB | theirs KB | ours s | theirs s | ours correct | theirs | ours agree | theirs |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for name in options.models:
        for row in compared(case(name)):
            rows.append(row)
            print(shown(row), flush=True)
    bars = [str(bar) for bar in held(rows)]
    print("\n".join(["", *bars]))
    if options.save:
        save(options.save, {"benchmark": "export"}, rows, bars)


def case(name: str) -> Case:
    if name in RECIPES:
        one = trained(name)
        module, x, classes = one.module, one.test.x, one.test.y
        calibration = one.train.x[:CALIBRATION]
    else:
        torch.manual_seed(1)
        module, shape = getattr(models, name)().eval(), (ROWS + CALIBRATION, *UNTRAINED[name])
        given = torch.randint(0, 80, shape) if name.startswith("char") else torch.randn(shape)
        calibration, x, classes = given[:CALIBRATION].numpy(), given[CALIBRATION:].numpy(), None
    with torch.no_grad():
        answers = module(torch.from_numpy(x)).numpy().argmax(-1)
    return Case(name, module, calibration, x, answers, classes)


def compared(one: Case) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        theirs = rivals(one, Path(scratch))
        files = ours(one)
        for kind in KINDS:
            row: dict[str, Any] = {"model": one.name, "file": kind}
            row["ours"] = judged(one, *files[kind])
            path = Path(scratch) / f"{kind}.tflite"
            row["theirs"] = judged(one, path.read_bytes(), theirs[f"{kind}_s"]) if f"{kind}_s" in theirs else None
            yield row


def ours(one: Case) -> dict[str, tuple[bytes, float]]:
    """Each file, and the seconds from the module to it."""
    began = time.process_time()
    model = fold(captured_model(one.module, one.calibration))
    fp32 = write_tflite(model)
    written = time.process_time()
    int8 = write_tflite(quantise(model, calibrate(model, [one.calibration])))
    return {"fp32": (fp32, written - began), "int8": (int8, time.process_time() - written)}


def rivals(one: Case, folder: Path) -> dict[str, Any]:
    if not PYTHON.is_file():
        return {}
    np.savez(folder / "weights.npz", **{key: value.numpy() for key, value in one.module.state_dict().items()})
    np.save(folder / "calibration.npy", one.calibration)
    line = [PYTHON, "-W", "ignore", HERE / "litert_torch_rival.py", one.name, folder]
    limits = dict.fromkeys(ONE_THREAD, "1")
    environment = {**os.environ, **limits, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(line, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(f"litert-torch fails on {one.name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return {}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "int8_error" in found:
        print(f"ai-edge-quantizer fails on {one.name}: {found['int8_error']}", file=sys.stderr)
    return found


def judged(one: Case, data: bytes, seconds: float) -> dict[str, float]:
    got = Runner.of(data, ".tflite").predict(one.x).argmax(-1)
    correct = math.nan if one.classes is None else float((got == one.classes).mean())
    agree = float((got == one.answers).mean())
    return {"bytes": len(data), "seconds": round(seconds, 3), "correct": correct, "agree": agree}


def shown(row: dict[str, Any]) -> str:
    def pair(key: str, text: str, factor: float = 1) -> str:
        cells = [one[key] * factor if one else math.nan for one in (row["ours"], row["theirs"])]
        return " | ".join("-" if math.isnan(cell) else text.format(cell) for cell in cells)

    parts = [pair("bytes", "{:.1f}", 1 / 1024), pair("seconds", "{:.2f}"), pair("correct", "{:.3f}")]
    return f"| {row['model']} | {row['file']} | " + " | ".join([*parts, pair("agree", "{:.3f}")]) + " |"


def held(rows: list[dict[str, Any]]) -> list[Bar]:
    pairs = [(row["ours"], row["theirs"]) for row in rows if row["theirs"]]
    bars = []
    for kind in KINDS:
        sizes = [row["ours"]["bytes"] / row["theirs"]["bytes"] for row in rows if row["theirs"] and row["file"] == kind]
        bars.append(Bar(f"largest {kind} file over theirs", max(sizes, default=math.nan), 1.0, at_most=True))
    times = [mine["seconds"] / other["seconds"] for mine, other in pairs]
    bars.append(Bar("seconds over theirs, geometric mean", geomean(times), 0.5, at_most=True))
    bars.append(Bar("seconds of the slowest export", max(row["ours"]["seconds"] for row in rows), 5.0, at_most=True))
    # Of 1,000 answers; both are rounded, each in its own way.
    gaps = [100 * (other["agree"] - mine["agree"]) for mine, other in pairs]
    bars.append(Bar("points that theirs agrees more, at most", max(gaps, default=math.nan), 0.5, at_most=True))
    return bars


if __name__ == "__main__":
    main()
