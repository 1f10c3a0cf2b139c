"""INT8 models on two architectures, which must give the same bits.

    python infer.py make FOLDER        where PyTorch is: a `.hedgerow` file of each model, inputs, and the outputs here
    python infer.py run FOLDER         on each machine, without PyTorch: every ISA of its CPU must give those outputs

All of these models compute in integers, so there is no tolerance.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np

from edge_runtime.deploy.run.engine import EngineBackend
from edge_runtime.kernels import native

SHAPES = {"lenet": (1, 28, 28), "mlp": (1, 28, 28), "resnet8": (3, 32, 32), "mobilenet_v2_small": (3, 32, 32)}
ROWS = 3


def make(folder: Path) -> int:
    import torch

    from edge_runtime.deploy.formats.engine import write_engine
    from edge_runtime.deploy.graph.calibrate import calibrate
    from edge_runtime.deploy.graph.captured import captured_model
    from edge_runtime.deploy.graph.fold import fold
    from edge_runtime.deploy.graph.quantise import quantise
    from simulations import models

    folder.mkdir(parents=True, exist_ok=True)
    for name, shape in SHAPES.items():
        torch.manual_seed(0)
        x = np.random.default_rng(0).standard_normal((16, *shape)).astype(np.float32)
        model = fold(captured_model(getattr(models, name)(), x))
        file = write_engine(quantise(model, calibrate(model, [x])))
        (folder / f"{name}.hedgerow").write_bytes(file)
        np.savez(folder / f"{name}-int8.npz", x=x[:ROWS], y=answers(file, x[:ROWS]))
    return 0


def answers(file: bytes, x: np.ndarray) -> np.ndarray:
    predict = EngineBackend(file, threads=2).predict
    return np.concatenate([predict(row[None]) for row in x])


def run(folder: Path) -> int:
    wrong = 0
    for isa in native.isas():
        native.select_isa(isa)
        for name in SHAPES:
            data = np.load(folder / f"{name}-int8.npz")
            got = answers((folder / f"{name}.hedgerow").read_bytes(), data["x"])
            differing = int((got != data["y"]).sum())
            wrong += differing
            print(f"{platform.machine()}, {isa}: {name}, {differing} of {got.size} outputs differ from x86's")
    return wrong


if __name__ == "__main__":
    command, folder = sys.argv[1:]
    sys.exit(min(1, {"make": make, "run": run}[command](Path(folder))))
