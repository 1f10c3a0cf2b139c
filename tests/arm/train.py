"""The same training on two architectures, which must give the same weights.

    python train.py make FOLDER        where PyTorch is: a Program of each model and a batch to train on
    python train.py run FOLDER NAME    on each machine, without PyTorch: trains, writes what came out
    python train.py compare FOLDER A B

Weights and losses may differ by 1e-5, rounding: the architectures sum in vectors of different widths.
"""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path

import numpy as np

import edge_runtime as er

MODELS = ("lenet", "char_gru")
STEPS, BATCH = 5, 8
TOLERANCE = 1e-5


def make(folder: Path) -> None:
    import torch

    from simulations import models

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in MODELS:
        torch.manual_seed(0)
        if name == "lenet":
            x, y = rng.standard_normal((BATCH, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, BATCH)
        else:
            x, y = (rng.integers(0, 80, (BATCH, 64)) for _ in range(2))
        optimizer = er.SGD(lr=0.1, momentum=0.9)
        program = er.build(getattr(models, name)(), torch.tensor(x[:1]), optimizer=optimizer, batch_size=BATCH)
        program.save(folder / f"{name}.program")
        np.savez(folder / f"{name}.npz", x=x, y=y)


def run(folder: Path, where: str) -> None:
    for name in MODELS:
        trainer = er.Trainer(er.Program.load(folder / f"{name}.program"), threads=2)
        data = np.load(folder / f"{name}.npz")
        start = time.process_time()
        losses = [trainer.step(data["x"], data["y"]) for _ in range(STEPS)]
        # The emulator's seconds say nothing of a board's: they are printed so that a lane that gets slow is noticed.
        print(f"{platform.machine()}: {name}, {STEPS} steps, losses {losses[0]:.4f} to {losses[-1]:.4f}", end="")
        print(f" ({time.process_time() - start:.1f} s of this process)")
        np.savez(folder / f"{name}-{where}.npz", losses=losses, **trainer.state_dict())


def compare(folder: Path, one: str, other: str) -> int:
    wrong = 0
    for name in MODELS:
        a, b = (np.load(folder / f"{name}-{where}.npz") for where in (one, other))
        assert sorted(a) == sorted(b)
        difference = {key: float(np.abs(a[key] - b[key]).max()) for key in a}
        worst = max(difference, key=difference.__getitem__)
        print(f"{name}: {one} and {other} differ by {difference[worst]:.2g} at most (in {worst})")
        wrong += not difference[worst] <= TOLERANCE
    return wrong


if __name__ == "__main__":
    command, folder, *names = sys.argv[1:]
    sys.exit({"make": make, "run": run, "compare": compare}[command](Path(folder), *names))
