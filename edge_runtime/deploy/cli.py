"""`hedgerow export`: a trained model, or a finished run's, to files for devices; made small enough first, if asked."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.config import key, parse_bytes, pick, section
from edge_runtime.errors import ConfigError, MissingPackageError
from edge_runtime.train.config import DATASETS, DataConfig, ModelConfig, TrainConfig

if TYPE_CHECKING:
    from edge_runtime.deploy.compress.search import Found, Tried
    from edge_runtime.deploy.graph.float_model import FloatModel
    from edge_runtime.train.batches import Examples
    from edge_runtime.train.loop import State

MIXED, MIXED_ROWS = "mixed", 1000  # training examples that layers are measured on
EXIT_REFUSED = 3  # a file is not good enough to be released; as for a run that failed


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What `hedgerow export` reads of a run's config."""

    seed: int = key(1, low=0, high=2**31 - 1)
    data: DataConfig = section(DataConfig)
    model: ModelConfig = section(ModelConfig)
    train: TrainConfig = section(TrainConfig)


def export_command(parser: argparse.ArgumentParser) -> None:
    """Write a trained model as files for devices, checked on held-out data; with --target-size, made to fit."""
    parser.add_argument(
        "model", help="a run directory; or a registered name, package.module:function or file.py:function"
    )
    parser.add_argument("--weights", metavar="FILE", help="trained tensors, .safetensors or .npz (a run has its own)")
    parser.add_argument("--data", metavar="NAME", help="data set for calibration and checks (a run has its own)")
    parser.add_argument("--data-path", default="", metavar="PATH", help="where the data set finds its files")
    parser.add_argument("--formats", default="onnx", help="of onnx, tflite, engine, with commas (default: onnx)")
    parser.add_argument("--precision", default="int8", choices=("int8", "fp32"))
    parser.add_argument("--batch", type=int, help="batch size of the files, 0 for any (default: the format's own)")
    parser.add_argument("--calibration", type=int, default=200, help="training examples that give the ranges")
    parser.add_argument("--calibrate", default="minmax", choices=("minmax", "percentile", "entropy", "mse"))
    parser.add_argument(
        "--weight-bits",
        default="8",
        metavar="BITS",
        help='2 to 8, or "mixed": each layer 8 or 4, by what it was measured to cost; fewer is smaller, not faster',
    )
    parser.add_argument(
        "--target-size", metavar="BYTES", help='such as "30KB": compress until every file is that small'
    )
    parser.add_argument("--epochs", type=int, default=12, help="longest training of a --target-size (default: 12)")
    parser.add_argument("--max-drop", type=float, default=1.0, help="points of accuracy that may be lost (default: 1)")
    parser.add_argument("--seed", type=int, help="of the held-out split and of the search (default: the run's, or 1)")
    parser.add_argument("--out", metavar="DIR", help="folder to write to (default: exported, or RUN_DIR/exported)")
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    import numpy as np

    from edge_runtime.deploy import parity
    from edge_runtime.deploy.exporter import FORMATS, prepare, write_files

    formats = tuple(name.strip() for name in options.formats.split(",") if name.strip())
    if not formats or set(formats) - set(FORMATS):
        raise ConfigError(f"--formats {options.formats}: must be some of {', '.join(FORMATS)}")
    settings, state, out = _read(options)
    train, test = _examples(settings)
    model = _float_model(options.model, settings, state, train)
    released = model
    bits: int | dict[str, int]
    if options.target_size:
        found = _fitted(options, model, train, test, formats, settings.seed)
        released, bits = found.model, found.levers.bits or 8
    else:
        bits = _weight_bits(options, model, train)
    prepared = prepare(
        released,
        None,
        [np.asarray(train.x[: options.calibration])],
        precision=options.precision,
        calibrate=options.calibrate,
        weight_bits=bits,
    )
    y = np.asarray(test.y)
    classes = y.astype(np.int64) if y.dtype.kind in "iu" else None
    original = prepared.float_model if released is model else model
    expected = parity.expected_of(original, prepared, np.asarray(test.x), classes, options.max_drop)
    contents = {name: prepared.contents(name, options.batch) for name in formats}
    if options.target_size:  # the float32 file beside an INT8 one would not fit
        contents = {name: {options.precision: of[options.precision]} for name, of in contents.items()}
    rows, kept = parity.judged(contents, expected)
    passed = sum(row.refused is None for row in rows)
    if kept:
        write_files(prepared, kept, out)
    sys.stdout.write(
        f"{parity.table(rows)}\n"
        f"{len(test):,} held-out examples; {prepared.float_model.parameters:,} parameters, the original has "
        f"{model.parameters:,}\n{out}: {passed} of {len(rows)} files released\n"
    )
    return 0 if passed == len(rows) else EXIT_REFUSED


def _weight_bits(options: argparse.Namespace, model: FloatModel, train: Examples) -> int | dict[str, int]:
    """What `--weight-bits` says; measured layer by layer on training examples where it says "mixed"."""
    if options.weight_bits != MIXED:
        if not options.weight_bits.isdecimal():
            raise ConfigError(f"--weight-bits {options.weight_bits}: must be 2 to 8, or {MIXED}")
        return int(options.weight_bits)
    import numpy as np

    from edge_runtime.deploy.compress.sensitivity import RUNNABLE, choose_bits, sensitivity, to_text

    y = np.asarray(train.y[:MIXED_ROWS])
    if y.dtype.kind not in "iu":
        raise ConfigError(f"--weight-bits {MIXED}: needs classes, and these targets are numbers")
    table = sensitivity(model, np.asarray(train.x[:MIXED_ROWS]), y.astype(np.int64), RUNNABLE)
    chosen = choose_bits(table, max_drop=options.max_drop)
    sys.stdout.write(to_text(table, chosen))
    return chosen


def _read(options: argparse.Namespace) -> tuple[RunSettings, State, Path]:
    """Settings, trained tensors and output folder, from a run directory or from the options."""
    run = Path(options.model)
    record = run / "run.json"
    if record.is_file():
        try:
            values = json.loads(record.read_text("utf-8"))["config"]
        except (ValueError, KeyError, OSError) as error:
            raise ConfigError(f"{record}: is no record of a run ({error})") from error
        settings = pick(RunSettings, values)
        if options.data:
            settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, name=options.data))
        weights = Path(options.weights or run / "model.safetensors")
        out = Path(options.out or run / "exported")
    elif run.is_dir():
        raise ConfigError(f"{run}: is a folder without a run.json; give a run directory, or a model by name")
    else:
        if not options.weights or not options.data:
            raise ConfigError("--weights and --data are needed with a model by name; a run directory has its own")
        settings = RunSettings(data=DataConfig(name=options.data, path=options.data_path))
        weights, out = Path(options.weights), Path(options.out or "exported")
    if options.seed is not None:
        settings = dataclasses.replace(settings, seed=options.seed)
    return settings, _tensors(weights), out


def _tensors(path: Path) -> State:
    import numpy as np

    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as content:
                return {name: content[name] for name in content.files}
        from safetensors.numpy import load_file
    except ImportError as error:
        raise MissingPackageError("reading .safetensors needs safetensors: pip install 'hedgerow[server]'") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    try:
        return dict(load_file(path))
    except Exception as error:  # safetensors has an error type of its own
        raise ConfigError(f"{path}: is no safetensors file ({error})") from error


def _examples(settings: RunSettings) -> tuple[Examples, Examples]:
    """All training examples as one client's, and the held-out ones of the run."""
    from edge_runtime import plugins
    from edge_runtime.train.sources import DataSource

    source: DataSource = plugins.load(DATASETS, settings.data.name)
    data = dataclasses.replace(settings.data, clients=1, partition="iid")
    return source.client_split(data, settings.seed, 0), source.test_split(data, settings.seed)


def _float_model(name: str, settings: RunSettings, state: State, train: Examples) -> FloatModel:
    from edge_runtime.deploy.exporter import float_model_of
    from edge_runtime.deploy.graph.fold import fold
    from edge_runtime.train.factory import make_module, module_named

    run = (Path(name) / "run.json").is_file()
    sys.path.append(str(Path.cwd()))  # where the user's own model usually stands
    module = make_module(settings.model, settings.seed) if run else module_named(name, settings.seed)
    return fold(float_model_of(module, state, train.x[:1]))


def _fitted(
    options: argparse.Namespace,
    model: FloatModel,
    train: Examples,
    test: Examples,
    formats: tuple[str, ...],
    seed: int,
) -> Found:
    from edge_runtime.deploy.compress.search import Effort, Goal, search

    goal = Goal(
        parse_bytes(options.target_size, "--target-size"), formats, options.precision, options.batch, options.max_drop
    )
    sys.stdout.write(f"searching for at most {goal.target_bytes:,} bytes as {', '.join(formats)}\n{_HEADER}\n")
    epochs = max(options.epochs, 1)
    effort = Effort(epochs=(1, max(epochs // 4, 1), epochs), seed=seed)
    found = search(model, train, test, goal, effort, _say)
    sys.stdout.write(
        f"chosen: {found.levers}\n"
        f"held-out accuracy {100 * found.accuracy:.1f} %, the original in float32 "
        f"{100 * found.original_accuracy:.1f} %\n"
    )
    return found


_HEADER = f"{'parameters':>10} {'bytes':>9} {'validation':>10}  levers"


def _say(row: Tried) -> None:
    right = "-" if row.accuracy is None else f"{100 * row.accuracy:.1f} %"
    sys.stdout.write(f"{row.parameters:>10,} {row.nbytes:>9,} {right:>10}  {row.levers}: {row.note}\n")
    sys.stdout.flush()
