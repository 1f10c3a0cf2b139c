"""The model that goes back to the devices: exported, opened again as a device would, and measured beside fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import deploy
from edge_runtime.train.batches import Batches, Examples
from edge_runtime.train.factory import make_module
from edge_runtime.train.loop import State
from edge_runtime.train.metrics import accuracy, agreement
from server.config import ServerConfig
from server.results import finite

CALIBRATION_BATCH = 50


def export_and_check(config: ServerConfig, state: State, test: Examples | None, directory: Path) -> dict[str, Any]:
    """Export `state` and run every exported file over the held-out examples.

    Calibration reads inputs, never labels, of the first `deploy.calibration` held-out examples. Returns `run.json`'s
    `final.deploy`: per format the accuracy and top-1 agreement with fp32, and per file its size and hash.
    """
    if test is None:
        return {"skipped": 'ranges and accuracy need held-out data on the server: server.evaluate = "central"'}
    inputs = test.rows(slice(config.deploy.calibration))
    artefact = deploy.export(
        make_module(config.model, config.seed),
        state,
        formats=config.deploy.formats,
        precision=config.deploy.precision,
        calibration=[x for x, _ in Batches(inputs, CALIBRATION_BATCH)],
        out=directory,
    )
    outputs = {name: _predict(artefact.paths[name], test) for name in artefact.paths if name != "onnx"}
    classes = config.train.loss == "cross_entropy"
    return {
        "files": artefact.manifest["files"],
        "formats": {
            name: {
                "file": artefact.paths[name].name,
                "accuracy": accuracy(output, np.asarray(test.y)) if classes else None,
                "agreement": agreement(output, outputs["onnx_fp32"]) if classes else None,
                "max_abs_difference": finite(float(np.abs(output - outputs["onnx_fp32"]).max())),
            }
            for name, output in outputs.items()
        },
    }


def _predict(path: Path, test: Examples) -> NDArray[np.float32]:
    runner = deploy.Runner.open(path)
    return np.concatenate([runner.predict(x) for x, _ in Batches(test, CALIBRATION_BATCH)])
