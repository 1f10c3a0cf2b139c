"""The model that goes back to the devices: exported, run as a device would run it, and released where it holds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.deploy import parity
from edge_runtime.deploy.artefact import Artefact
from edge_runtime.deploy.exporter import Contents, Prepared, prepare, write_files
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.train.batches import Examples
from edge_runtime.train.factory import make_module
from edge_runtime.train.loop import State
from server.config import ServerConfig
from server.results import finite

MOST_ROWS = 5000  # held-out examples that a file is run on


def export_and_check(config: ServerConfig, state: State, test: Examples | None, directory: Path) -> dict[str, Any]:
    """Export `state`, and release into `directory` the files that pass the gate.

    Calibration reads inputs, never labels, of the first `deploy.calibration` held-out examples. Returns `run.json`'s
    `final.deploy`: of each file its figures, and why it was refused if it was; and the manifest's entries.
    """
    if test is None:
        return {"skipped": 'ranges and accuracy need held-out data on the server: server.evaluate = "central"'}
    x = np.asarray(test.x[:MOST_ROWS])
    y = np.asarray(test.y[:MOST_ROWS], np.int64) if config.train.loss == "cross_entropy" else None
    prepared = prepare(
        make_module(config.model, config.seed),
        state,
        [np.asarray(test.x[: config.deploy.calibration])],
        precision=config.deploy.precision,
        calibrate=config.deploy.calibrate,
        weight_bits=config.train_at(config.server.rounds).qat_bits or 8,
    )
    rows: dict[str, Any] = {}
    contents: dict[str, Mapping[str, bytes]] = {}
    for name in config.deploy.formats:
        try:
            contents[name] = prepared.contents(name)
        except UnsupportedOpError as error:
            rows[name] = {"file": None, "format": name, "refused": " ".join(str(error).split())}
    expected = parity.expected_of(prepared.float_model, prepared, x, y, config.deploy.max_drop)
    judged, released = parity.judged(contents, expected)
    rows |= {f"{one.format}_{one.precision}": _row(one) for one in judged}
    artefact = _write(prepared, released, directory, rows)
    return {"files": artefact.manifest["files"] if artefact else {}, "formats": rows}


def _row(figures: parity.Figures) -> dict[str, Any]:
    row = dataclasses.asdict(figures)
    return {name: finite(one) if isinstance(one, float) else one for name, one in row.items()}


def _write(prepared: Prepared, released: Contents, directory: Path, rows: dict[str, Any]) -> Artefact | None:
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
