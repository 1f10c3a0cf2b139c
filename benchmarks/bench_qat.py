"""Quantisation-aware training of a convolutional network on 4,000 MNIST digits, judged by 1,000 others.

The network has two 3x3 convolutions with batch norm (16 and 32 channels), a linear layer of 64 and one of 10, 105,962
parameters. It is trained in float; rounded as it is, weights to the width of the row and activations to 8 bits; and
trained on from the float weights with rounding in place, then rounded: by the engine, and by the torch trainer.
Accuracy is that of `predict_rounded`, the definition of what an exported file computes, with ranges from 200 training
examples. Time is CPU time of an epoch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from bars import Bar
from numpy.typing import NDArray
from processes import HERE, save
from torch import nn

import edge_runtime as er
from edge_runtime import plugins
from edge_runtime.deploy.graph.calibrate import calibrate
from edge_runtime.deploy.graph.captured import captured_model
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.fold import fold
from edge_runtime.deploy.graph.quantise import quantise
from edge_runtime.deploy.graph.rounding import predict_rounded
from edge_runtime.train.batches import Batches, Examples
from edge_runtime.train.config import DATASETS, DataConfig
from edge_runtime.train.loop import LocalTrainer, State
from edge_runtime.train.torch_trainer import TorchTrainer

RESULTS = HERE / "results" / "qat.json"
BATCH, CALIBRATION, LR, QAT_LR = 32, 200, 2e-3, 2e-3
WIDTHS, QAT_EPOCHS = (8, 4, 2), (1, 2)


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1568, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


Make = Callable[[nn.Module, Any, float, int], LocalTrainer]


def engine(module: nn.Module, x: NDArray[np.float32], lr: float, bits: int) -> LocalTrainer:
    return er.Trainer(er.build(module, x[:1], batch_size=BATCH, optimizer=er.Adam(lr=lr), qat_bits=bits))


def pytorch(module: nn.Module, _: Any, lr: float, bits: int) -> LocalTrainer:
    return TorchTrainer(module, optimizer=er.Adam(lr=lr), qat_bits=bits)


TRAINERS: Mapping[str, Make] = {"engine": engine, "torch": pytorch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="of the float model")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trainer", choices=(*TRAINERS, "all"), default="all")
    options = parser.parse_args()
    train, test = examples()
    rows = []
    print("trainer  seed  weights    float  rounded  1 epoch  2 epochs  CPU s/epoch, rounding/float")
    for name in TRAINERS if options.trainer == "all" else (options.trainer,):
        for seed in range(1, options.seeds + 1):
            rows += measure(name, seed, options.epochs, train, test)
    bars = judge(rows)
    for bar in bars:
        print(bar)
    if options.trainer == "all":
        save(RESULTS, {"command": "hedgerow bench qat", "seeds": options.seeds}, rows, list(map(str, bars)))


def examples() -> tuple[Examples, Examples]:
    source = plugins.load(DATASETS, "mnist")
    data = DataConfig(name="mnist", clients=1, partition="iid")
    return source.client_split(data, 1, 0), source.test_split(data, 1)


def measure(name: str, seed: int, epochs: int, train: Examples, test: Examples) -> list[dict[str, Any]]:
    torch.manual_seed(seed)
    module, make = network(), TRAINERS[name]
    state, float_s = fitted(make(module, train.x, LR, 0), None, epochs, seed, train)
    rows = []
    for bits in WIDTHS:
        row = {"trainer": name, "seed": seed, "bits": bits, "float": accuracy(state, 0, train, test)}
        row["rounded"] = accuracy(state, bits, train, test)
        trainer = make(network(), train.x, QAT_LR, bits)
        for run in QAT_EPOCHS:
            after, seconds = fitted(trainer, state, run, seed, train)
            row[f"after {run}"] = accuracy(after, bits, train, test)
        row["seconds"], row["float_seconds"] = seconds, float_s
        later = "  ".join(f"{100 * row[f'after {run}']:5.1f} %" for run in QAT_EPOCHS)
        print(
            f"{name:7}  {seed:4}  {bits:2} bits  {100 * row['float']:5.1f} %  {100 * row['rounded']:5.1f} %  {later}"
            f"  {row['seconds']:.2f}, {row['seconds'] / float_s:.2f}",
            flush=True,
        )
        rows.append(row)
    return rows


def fitted(trainer: LocalTrainer, start: State | None, epochs: int, seed: int, train: Examples) -> tuple[State, float]:
    """Weights after training from `start`, with a rate that falls to 0; CPU seconds of an epoch."""
    if start is not None:
        trainer.load_state_dict(start)
    trainer.lr_scale = 1.0
    began = time.process_time()
    batches = Batches(train, BATCH, np.random.default_rng(seed))
    trainer.fit(batches, epochs, schedule=er.schedules.Cosine(steps=epochs * -(-len(train) // BATCH)))
    return trainer.state_dict(), (time.process_time() - began) / epochs


def accuracy(state: State, bits: int, train: Examples, test: Examples) -> float:
    """Of the deployed model with weights of `bits` bits; 0 for float32."""
    model = fold(captured_model(network(), test.x, state))
    if bits:
        ranges = calibrate(model, [train.x[:CALIBRATION]])
        logits = predict_rounded(quantise(model, ranges, weight_bits=bits), test.x)
    else:
        logits = predict(model, test.x)
    return float((logits.argmax(1) == test.y).mean())


def judge(rows: list[dict[str, Any]]) -> list[Bar]:
    bars = []
    for name in dict.fromkeys(row["trainer"] for row in rows):
        of = [row for row in rows if row["trainer"] == name]
        two = [row for row in of if row["bits"] == 2]
        eight = [row for row in of if row["bits"] == 8]
        worst, least = (100 * of([row[key] for row in two]) for of, key in ((max, "rounded"), (min, "after 2")))
        lost = 100 * max(row["float"] - row["after 2"] for row in eight)
        bars += [
            Bar(f"{name}: 2-bit weights rounded as they are, %", worst, 50, at_most=True),
            Bar(f"{name}: 2-bit weights after 2 epochs with rounding, %", least, 95),
            Bar(f"{name}: points that 8-bit weights lose to float32 after 2 epochs", lost, 1, at_most=True),
        ]
    return bars


if __name__ == "__main__":
    main()
