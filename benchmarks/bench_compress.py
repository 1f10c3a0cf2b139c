"""What each compression lever does to LeNet on real digits (4,000 to train, 1,000 held out).

A model is trained once; every lever starts from it. Accuracy is on held-out digits, 1 of them being 0.1 points: with
INT8 rounding (4-bit weights where the row says so), before and after fine-tuning with the original as teacher. Bytes
are those of real INT8 files; zlib is of the INT8 weights alone, as an update over the air would carry them. Latency is
that of the engine's own file, one thread, batch 1, the median over runs in which all rows take turns. Then the search
(`hedgerow export --target-size`), with its real files.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from bars import Bar
from processes import save

from edge_runtime import plugins
from edge_runtime.deploy.compress.binary import binarise
from edge_runtime.deploy.compress.channels import prune_channels
from edge_runtime.deploy.compress.distil import distil, student
from edge_runtime.deploy.compress.finetune import Tuning, finetune
from edge_runtime.deploy.compress.low_rank import factored
from edge_runtime.deploy.compress.prune import prune
from edge_runtime.deploy.compress.report import before_after
from edge_runtime.deploy.compress.scores import taylor
from edge_runtime.deploy.compress.search import Goal, search
from edge_runtime.deploy.exporter import export
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.runner import Runner
from edge_runtime.train.batches import Batches, Examples
from edge_runtime.train.config import DATASETS, DataConfig
from edge_runtime.train.metrics import accuracy
from simulations.models import lenet

FORMATS = ("onnx", "tflite", "engine")
SMALLEST, LEAST_ACCURACY = 30_000, 96.0
TUNED = Tuning(epochs=2, lr=2e-3, alpha=0.5)
TURNS = 60


@dataclass(frozen=True, slots=True)
class Row:
    """One lever; shares of right answers, bytes by format, microseconds."""

    lever: str
    parameters: int
    bits: int
    untuned: float
    tuned: float
    agreement: float
    nbytes: dict[str, int]
    zlib_bytes: int
    latency_us: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the figures here too, as JSON")
    options = parser.parse_args()
    train, test = _digits(options.seed)
    torch.manual_seed(options.seed)
    original = finetune(student(lenet(), train.x[:1]), train, Tuning(epochs=12, lr=2e-3, seed=options.seed), threads=1)
    rows, files = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, lever, bits) in enumerate(_levers(original, train)):
            row, files[name] = _measured(name, lever, bits, original, train, test, Path(folder) / str(number))
            rows.append(row)
        latency = _latencies(files, np.asarray(test.x[:1]))
        rows = [Row(**{**asdict(row), "latency_us": latency[row.lever]}) for row in rows]
        print(_table(rows))
        students = _students(original, train, test)
        bars = _search(original, train, test, Path(folder) / "search", options.seed)
    for bar in bars:
        print(bar)
    if options.out:
        save(
            options.out,
            {"benchmark": "compress", "seed": options.seed, "students": students},
            list(map(asdict, rows)),
            list(map(str, bars)),
        )
    if not all(bar.holds for bar in bars):
        raise SystemExit(1)


def _digits(seed: int) -> tuple[Examples, Examples]:
    source = plugins.load(DATASETS, "mnist")
    data = DataConfig(name="mnist", clients=1, partition="iid")
    return source.client_split(data, seed, 0), source.test_split(data, seed)


Lever = Callable[[FloatModel], FloatModel]


def _levers(original: FloatModel, train: Examples) -> list[tuple[str, Lever, int]]:
    scores = taylor(original, Batches(train, 50))
    return [
        ("as it is, 8 bit", lambda m: m, 8),
        ("as it is, 4-bit weights", lambda m: m, 4),
        ("as it is, 2-bit weights", lambda m: m, 2),
        *(
            (f"{share:.0%} of channels, {name}", _channels(share, options), 8)
            for share in (0.5, 0.75)
            for name, options in (
                ("magnitude", {}),
                ("importance", {"scores": scores}),
                ("importance over all layers", {"scores": scores, "together": True}),
            )
        ),
        *((f"{share:.0%} of weights, magnitude", _weights(share, {}), 8) for share in (0.5, 0.8, 0.9)),
        ("90% of weights, importance", _weights(0.9, {"scores": scores}), 8),
        ("rank for 80% of energy", lambda m: factored(m, energy=0.8), 8),
        ("rank 8 in f1", lambda m: factored(m, ranks={"f1.weight": 8}), 8),
        ("one-bit f2", lambda m: binarise(m), 8),
    ]


def _channels(share: float, options: dict[str, object]) -> Lever:
    return lambda m: prune_channels(m, share, **options)  # type: ignore[arg-type]


def _weights(share: float, options: dict[str, object]) -> Lever:
    return lambda m: prune(m, share, **options)  # type: ignore[arg-type]


def _measured(
    name: str, lever: Lever, bits: int, original: FloatModel, train: Examples, test: Examples, folder: Path
) -> tuple[Row, Path]:
    """The lever's row but for its latency, and the file to run for that."""
    calibration = [train.x[start : start + 50] for start in range(0, 200, 50)]
    cut = lever(original)
    tuning = Tuning(TUNED.epochs, lr=TUNED.lr, alpha=TUNED.alpha, weight_bits=bits if bits < 8 else 0)
    tuned = finetune(cut, train, tuning, teacher=original, threads=1)
    if name.startswith("one-bit"):
        tuned = lever(tuned)  # a float weight was trained; what is stored has one bit
    if name == "as it is, 8 bit":
        tuned = original
    y = np.asarray(test.y)
    given = {"calibration": calibration, "formats": FORMATS, "weight_bits": bits}
    raw, done = before_after(original, cut, test.x, y, **given), before_after(original, tuned, test.x, y, **given)
    artefact = export(tuned, formats=("engine",), calibration=calibration, out=folder, weight_bits=bits)
    after = done.after
    row = Row(
        name, after.parameters, bits, raw.after.int8_accuracy, after.int8_accuracy, done.agreement,
        dict(after.int8_bytes), after.zlib_bytes, 0.0,
    )  # fmt: skip
    return row, artefact.paths["engine_int8"]


def _latencies(files: dict[str, Path], x: np.ndarray) -> dict[str, float]:
    """Median microseconds of one inference, the models taking turns."""
    runners = {name: Runner.open(path) for name, path in files.items()}
    seen: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(TURNS):
        for name, runner in runners.items():
            runner.predict(x)
            start = time.perf_counter()
            for _ in range(10):
                runner.predict(x)
            seen[name].append((time.perf_counter() - start) * 1e5)
    return {name: statistics.median(times) for name, times in seen.items()}


def _table(rows: list[Row]) -> str:
    lines = [
        f"{'lever':42} {'parameters':>10} {'cut':>6} {'tuned':>6} {'agree':>6} "
        f"{'onnx':>7} {'tflite':>7} {'engine':>7} {'zlib':>7} {'us':>6}"
    ]
    for row in rows:
        sizes = " ".join(f"{row.nbytes[name] / 1000:6.1f}k" for name in FORMATS)
        lines.append(
            f"{row.lever:42} {row.parameters:10,} {100 * row.untuned:6.1f} {100 * row.tuned:6.1f} {row.agreement:6.3f} "
            f"{sizes} {row.zlib_bytes / 1000:6.1f}k {row.latency_us:6.1f}"
        )
    return "\n".join(lines)


def _students(original: FloatModel, train: Examples, test: Examples) -> dict[str, dict[str, float]]:
    """A LeNet of a quarter of the channels, from scratch: from labels, and with the original as teacher; 6 epochs."""
    figures: dict[str, dict[str, float]] = {}
    for labels in (len(train), 400):
        own = train.rows(slice(labels))
        small = prune_channels(student(lenet(), train.x[:1]), 0.75)
        epochs = 6 * len(train) // labels
        alone = finetune(small, own, Tuning(epochs, lr=3e-3), threads=1)
        with_labels = finetune(small, own, Tuning(epochs, lr=3e-3), teacher=original, threads=1)
        on_all = distil(small, original, train.x, Tuning(6, lr=3e-3))
        figures[f"{labels} labels"] = row = {
            name: 100 * accuracy(predict(model, test.x), np.asarray(test.y))
            for name, model in (("labels", alone), ("and teacher", with_labels), ("teacher on all inputs", on_all))
        }
        said = ", ".join(f"{name} {right:.1f}" for name, right in row.items())
        print(f"student of {small.parameters:,} parameters, {labels:,} labels: {said} %")
    return figures


def _search(original: FloatModel, train: Examples, test: Examples, folder: Path, seed: int) -> list[Bar]:
    """The best model of at most 30 KB, as real files of every format."""
    started = time.monotonic()
    found = search(original, train, test, Goal(SMALLEST, FORMATS))
    seconds = time.monotonic() - started
    calibration = [train.x[start : start + 50] for start in range(0, 200, 50)]
    artefact = export(found.model, formats=FORMATS, calibration=calibration, out=folder, weight_bits=found.levers.bits)
    print(f"\nsearch for {SMALLEST:,} bytes: {found.levers}, {found.model.parameters:,} parameters, {seconds:.0f} s")
    bars = []
    for name in FORMATS:
        path = artefact.paths[f"{name}_int8"]
        runner = Runner.open(path)
        right = 100 * accuracy(np.concatenate([runner.predict(x) for x, _ in Batches(test, 50)]), np.asarray(test.y))
        bars.append(Bar(f"search, {name}: % of held-out digits", right, LEAST_ACCURACY))
        bars.append(Bar(f"search, {name}: bytes", path.stat().st_size, SMALLEST, at_most=True))
    return bars


if __name__ == "__main__":
    main()
