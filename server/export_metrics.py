"""`hedgerow export-metrics`: a run's figures for TensorBoard, MLflow or Weights & Biases, where these are installed.

What is written are settings, every number of every closed round, and the closing figures; nothing of one client alone
is in any of these. A run may be exported while it goes on, as far as it has come.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.errors import ConfigError, EdgeRuntimeError, MissingPackageError, RunError
from server.run_reader import RunReader, find_runs
from server.run_view import Data, mapping, number, whole


@dataclass(frozen=True, slots=True)
class Step:
    """The figures of the round that closed at `unix_s`."""

    round: int
    unix_s: float
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Record:
    """A run as such tools see it."""

    name: str
    config: Data
    steps: tuple[Step, ...]
    final: Mapping[str, float]


def export_metrics_command(parser: argparse.ArgumentParser) -> None:
    """Write a run's figures for TensorBoard, MLflow or Weights & Biases."""
    parser.add_argument("run_directory", metavar="RUN", type=Path, help="a run directory")
    parser.add_argument("--to", required=True, choices=tuple(TARGETS), help="the tool that is to read them")
    parser.add_argument(
        "place",
        metavar="DIR/URI",
        help="a folder for TensorBoard's event files or W&B's offline runs; MLflow's tracking URI",
    )
    parser.set_defaults(run=_export)


def read_record(directory: Path) -> Record:
    """The record of the run in that directory.

    Raises:
        ConfigError: it is no run directory.
        RunError: it can't be read.

    """
    found = find_runs(directory)
    if list(found.values()) != [directory]:
        raise ConfigError(f"{directory}: is no run directory; it holds no events.sqlite")
    [(name, _)] = found.items()
    reader = RunReader(name, directory)
    view = reader.view()
    if reader.unreadable:
        raise RunError(f"{directory}: {reader.unreadable}")
    steps = [Step(whole(one.row.get("round")) or 0, one.unix_s, numbers(one.row)) for one in view.rounds]
    return Record(name, view.config, tuple(steps), numbers(mapping(view.final)))


def numbers(data: Data, prefix: str = "") -> dict[str, float]:
    """All finite numbers in it but the round's own, those of inner mappings under `outer/inner`.

    >>> numbers({"round": 1, "loss": 0.5, "applied": True, "dropped_in": {"unmask": 2}, "failures": [7]})
    {'loss': 0.5, 'dropped_in/unmask': 2}
    """
    found: dict[str, float] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{name}/")
        elif (figure := number(value)) is not None and name != "round":
            found[f"{prefix}{name}"] = figure
    return found


def to_tensorboard(record: Record, place: str) -> str:
    """An event file in the folder `place/RUN`."""
    writer_type = _writer_type()
    folder = Path(place) / record.name
    writer = writer_type(str(folder))
    with contextlib.closing(writer):
        settings = "\n".join(f"    {name} = {json.dumps(value)}" for name, value in record.config.items())
        writer.add_text("settings", settings, 0)
        for step in record.steps:
            for name, value in step.figures.items():
                writer.add_scalar(f"round/{name}", value, step.round, walltime=step.unix_s)
        for name, value in record.final.items():
            writer.add_scalar(f"final/{name}", value, record.steps[-1].round if record.steps else 0)
    return f"{folder}; tensorboard --logdir {place}"


def to_mlflow(record: Record, place: str) -> str:
    """A run of the experiment `hedgerow` behind the tracking URI `place`."""
    mlflow = _module("mlflow")
    entities = _module("mlflow.entities")
    client = mlflow.MlflowClient(tracking_uri=place)
    experiment = client.get_experiment_by_name("hedgerow")
    number_ = client.create_experiment("hedgerow") if experiment is None else experiment.experiment_id
    run = client.create_run(number_, run_name=record.name).info.run_id
    params = [entities.Param(name, str(value)[:500]) for name, value in record.config.items()]
    metrics = [
        entities.Metric(_mlflow_name(f"round/{name}"), value, int(step.unix_s * 1000), step.round)
        for step in record.steps
        for name, value in step.figures.items()
    ]
    at_ms = int(record.steps[-1].unix_s * 1000) if record.steps else 0
    metrics += [entities.Metric(_mlflow_name(f"final/{name}"), value, at_ms, 0) for name, value in record.final.items()]
    for some in _parts(params, 100):
        client.log_batch(run, params=some)
    for some in _parts(metrics, 1000):  # the most that one call takes
        client.log_batch(run, metrics=some)
    client.set_terminated(run)
    return f"run {run} at {place}"


def to_wandb(record: Record, place: str) -> str:
    """An offline run in the folder `place`; nothing is sent anywhere until `wandb sync` is called."""
    wandb = _module("wandb")
    Path(place).mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project="hedgerow", name=record.name, dir=place, mode="offline", config=dict(record.config), reinit=True
    )
    for step in record.steps:
        run.log({f"round/{name}": value for name, value in step.figures.items()}, step=step.round)
    run.summary.update({f"final/{name}": value for name, value in record.final.items()})
    run.finish()
    return f"{place}/wandb; `wandb sync` sends it"


TARGETS: Mapping[str, Callable[[Record, str], str]] = {
    "tensorboard": to_tensorboard,
    "mlflow": to_mlflow,
    "wandb": to_wandb,
}


# These tools report home unless told not to.
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}


def _export(options: argparse.Namespace) -> int:
    record = read_record(options.run_directory)
    os.environ.update(_QUIET)
    try:
        where = TARGETS[options.to](record, options.place)
    except EdgeRuntimeError:
        raise
    except Exception as error:  # each of these tools raises many types of its own
        raise RunError(f"--to {options.to} {options.place}: {type(error).__name__}: {error}") from error
    print(f"{record.name}: {len(record.steps)} rounds written to {where}")
    return 0


def _writer_type() -> Any:
    """A SummaryWriter: tensorboardX's, which needs nothing else, or the one that PyTorch has beside TensorBoard."""
    for name in ("tensorboardX", "torch.utils.tensorboard"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name).SummaryWriter
    raise MissingPackageError("--to tensorboard: needs tensorboardX or tensorboard, pip install tensorboardX")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingPackageError(f"--to {package}: needs {package}, not installed: pip install {package}") from error


def _mlflow_name(name: str) -> str:
    """MLflow takes letters, digits and _-. :/ alone."""
    return "".join(char if char.isalnum() or char in "_-. :/" else "_" for char in name)[:250]


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
