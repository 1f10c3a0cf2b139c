"""The model that goes back to the devices: exported, run as a device would run it, and released where it holds."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy import parity
from edge_runtime.deploy.artefact import Artefact
from edge_runtime.deploy.exporter import Prepared, file_name, prepare, write_files
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.rounding import predict_rounded
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.train.batches import Batches, Examples
from edge_runtime.train.factory import make_module
from edge_runtime.train.loop import State
from server.config import ServerConfig
from server.results import finite

CALIBRATION_BATCH = 50
MOST_ROWS = 5000  # held-out examples that a file is run on


def export_and_check(config: ServerConfig, state: State, test: Examples | None, directory: Path) -> dict[str, Any]:
    """Export `state`, and release into `directory` the files that pass the gate.

    Calibration reads inputs, never labels, of the first `deploy.calibration` held-out examples. Returns `run.json`'s
    `final.deploy`: of each file its figures, and why it was refused if it was; and the manifest's entries.
    """
    if test is None:
        return {"skipped": 'ranges and accuracy need held-out data on the server: server.evaluate = "central"'}
    inputs = test.rows(slice(config.deploy.calibration))
    prepared = prepare(
        make_module(config.model, config.seed),
        state,
        [x for x, _ in Batches(inputs, CALIBRATION_BATCH)],
        precision=config.deploy.precision,
        calibrate=config.deploy.calibrate,
        weight_bits=config.train_at(config.server.rounds).qat_bits or 8,
    )
    expected = what_is_expected(prepared, test, config.deploy.max_drop, classes=config.train.loss == "cross_entropy")
    rows: dict[str, Any] = {}
    released: dict[str, dict[str, bytes]] = {}
    for name in config.deploy.formats:
        try:
            contents = prepared.contents(name)
        except UnsupportedOpError as error:
            rows[name] = {"file": None, "format": name, "refused": " ".join(str(error).split())}
            continue
        for precision, content in contents.items():
            figures = parity.measured(file_name(name, precision), name, precision, content, expected)
            rows[f"{name}_{precision}"] = _row(figures)
            if figures.refused is None:
                released.setdefault(name, {})[precision] = content
    artefact = _write(prepared, released, directory, rows)
    return {"files": artefact.manifest["files"] if artefact else {}, "formats": rows}


def what_is_expected(prepared: Prepared, test: Examples, max_drop: float, *, classes: bool) -> parity.Expected:
    """What files of `prepared` must answer on held-out examples."""
    x: NDArray[np.generic] = np.asarray(test.x[:MOST_ROWS])
    defined = {"fp32": predict(prepared.float_model, x)}
    if prepared.quantised is not None:
        defined["int8"] = predict_rounded(prepared.quantised, x)
    y = np.asarray(test.y[:MOST_ROWS], np.int64) if classes else None
    return parity.Expected(x, y, defined["fp32"], defined, max_drop)


def _row(figures: parity.Figures) -> dict[str, Any]:
    row = dataclasses.asdict(figures)
    return {name: finite(one) if isinstance(one, float) else one for name, one in row.items()}


def _write(
    prepared: Prepared, released: dict[str, dict[str, bytes]], directory: Path, rows: dict[str, Any]
) -> Artefact | None:
    """Files and manifest; nothing where nothing was released."""
    if not released:
        return None
    metrics = {
        f"{key}.{what}": row[what]
        for key, row in rows.items()
        for what in ("accuracy", "agreement", "latency_us", "peak_rss_bytes")
        if row["refused"] is None and row[what] is not None
    }
    return write_files(prepared, released, directory, version=int(time.time()), metrics=metrics)
