"""Real client updates, recorded from federations that train with the product's own engine and clients.

A codec must be judged on what clients send, not on random vectors. Four federations of ten clients, all in every round:

    cnn      two convolutions (8, 16) and two linear layers, 52,138 parameters; rounds 1, 8 and 30
    big-cnn  the same with 16 and 32 channels and 512 hidden units, 813,258 parameters; rounds 1 and 3
    mlp      784-64-10, 50,890 parameters; rounds 1, 8 and 30
    gru      embedding 16, GRU 128, 67,809 parameters, next character; rounds 1, 8 and 30

Images are split by Dirichlet(0.5), text by role. A split is a set of data: `reporting` is 6,000 images of Fashion-MNIST
and ten roles of Shakespeare, `tuning` is MNIST's digits and ten other roles. What is tuned on one is reported on the
other. All comes from the seed, so a second recording gives the same bits on the same machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import edge_runtime as er
from clients.round import Workbench
from edge_runtime.train.batches import Examples
from edge_runtime.train.config import DataConfig, RoundTask, TrainConfig
from server.aggregate import WeightedSum
from simulations.datasets import FASHION_MNIST, MNIST, SHAKESPEARE
from simulations.partition import partition

if TYPE_CHECKING:
    from torch import nn

CACHE = Path("~/.cache/hedgerow/recordings")
CLIENTS, RECORDED = 10, 3  # of a federation, and those of them whose updates are kept
SEEDS = {"reporting": 1, "tuning": 2}
IMAGES = 6000

Tensors = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


@dataclass(frozen=True, slots=True)
class Recording:
    """What one client sent in one round, and the global weights that it started from, in the model's order."""

    family: str
    round: int
    client: int
    update: Tensors
    weights: Tensors

    @property
    def name(self) -> str:
        return f"{self.round_name}-c{self.client}"

    @property
    def round_name(self) -> str:
        return f"{self.family}-r{self.round:02d}"

    @property
    def parameters(self) -> int:
        return sum(tensor.size for tensor in self.update.values())


@dataclass(frozen=True, slots=True)
class Federation:
    """A model and how its clients train; `task` says which data."""

    family: str
    task: str
    rounds: tuple[int, ...]
    optimizer: er.SGD | er.Adam = er.SGD(lr=0.02, momentum=0.9)
    batch_size: int = 32
    epochs: int = 1

    def names(self) -> list[str]:
        return [f"{self.family}-r{number:02d}-c{client}" for number in self.rounds for client in range(RECORDED)]

    def about(self) -> dict[str, Any]:
        return {**asdict(self), "optimizer": repr(self.optimizer)}


FEDERATIONS = (
    Federation("cnn", "images", (1, 8, 30)),
    Federation("big-cnn", "images", (1, 3)),
    Federation("mlp", "images", (1, 8, 30)),
    # As the shipped shakespeare scenario trains: SGD at this rate hardly moves it.
    Federation("gru", "text", (1, 8, 30), er.Adam(lr=0.003), batch_size=10),
)


def make_module(family: str) -> nn.Module:
    from torch import nn

    from simulations.models import char_gru, mlp

    if family in ("mlp", "gru"):
        return {"mlp": mlp, "gru": char_gru}[family]()
    first, second, hidden = {"cnn": (8, 16, 64), "big-cnn": (16, 32, 512)}[family]
    return nn.Sequential(
        *(nn.Conv2d(1, first, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(49 * second, hidden), nn.ReLU(), nn.Linear(hidden, 10)),
    )


def image_clients(split: str, clients: int = CLIENTS, alpha: float = 0.5, seed: int | None = None) -> list[Examples]:
    """The clients' training images of a split."""
    seed = SEEDS[split] if seed is None else seed
    source = FASHION_MNIST if split == "reporting" else MNIST
    data = DataConfig(clients=clients, partition="dirichlet", alpha=alpha, min_examples=20)
    table = source.load(data)
    rows = np.arange(len(table.x)) if table.test is None else np.flatnonzero(~table.test)
    rows = np.random.default_rng([seed, 0xDA7A]).permutation(rows)[:IMAGES]
    x, y = source.prepare(table.x[rows]), table.y[rows]
    return [Examples(x[part], y[part]) for part in partition(y, None, data, seed)]


def text_clients(split: str, clients: int = CLIENTS) -> list[Examples]:
    """The training sequences of ten roles: the first ten of the plays to report on, the next ten to tune on."""
    table = SHAKESPEARE.load(DataConfig(clients=2 * clients))
    assert table.users is not None
    assert table.test is not None
    first = 0 if split == "reporting" else clients
    own = [(table.users == user) & ~table.test for user in range(first, first + clients)]
    return [Examples(table.x[rows], table.y[rows]) for rows in own]


DATA: dict[str, Callable[[str], list[Examples]]] = {"images": image_clients, "text": text_clients}


def make_workbench(
    family: str, example: Examples, optimizer: er.SGD | er.Adam, batch_size: int, seed: int
) -> Workbench:
    """An engine that trains a model of this family, its weights drawn from `seed`."""
    import torch

    torch.manual_seed(seed)
    program = er.build(make_module(family), example.x[:1], optimizer=optimizer, batch_size=batch_size)
    return Workbench(er.Trainer(program, threads=1))


def record(federation: Federation, split: str) -> list[Recording]:
    """Run a federation by plain federated averaging and keep the updates of its first clients in its rounds."""
    clients, seed = DATA[federation.task](split), SEEDS[split]
    bench = make_workbench(federation.family, clients[0], federation.optimizer, federation.batch_size, seed)
    layout = bench.tensors.layout
    train = TrainConfig(epochs=federation.epochs, batch_size=federation.batch_size)
    weights = layout.flatten(bench.initial)
    kept: list[Recording] = []
    for number in range(1, max(federation.rounds) + 1):
        task = RoundTask(round=number, seed=seed, train=train)
        total = WeightedSum(layout.size)
        for client, examples in enumerate(clients):
            update = bench.train(task, weights, examples, client)
            total.add(update.delta, update.examples)
            if number in federation.rounds and client < RECORDED:
                began = layout.views(weights)
                kept.append(Recording(federation.family, number, client, layout.views(update.delta), began))
        weights = (weights + total.mean()).astype(np.float32)
    return kept


def recordings(
    split: str, cache: Path | None = None, federations: Sequence[Federation] = FEDERATIONS
) -> list[Recording]:
    """The recordings of a split: read from `cache/split/` where they are there as asked for, else made and put there.

    `NAME.npz` is an update, `FAMILY-rNN-model.npz` the weights that its clients started from, with a tensor an entry.
    """
    folder = (cache or CACHE).expanduser() / split
    found: list[Recording] = []
    for federation in federations:
        settings = json.dumps({**federation.about(), "split": split, "seed": SEEDS[split]})
        mark = folder / f"{federation.family}.json"
        if not mark.is_file() or mark.read_text() != settings:
            for one in record(federation, split):
                save_tensors(folder / f"{one.name}.npz", one.update)
                save_tensors(folder / f"{one.round_name}-model.npz", one.weights)
            mark.write_text(settings)  # last: it says that all of them are there
        for number in federation.rounds:
            weights = load_tensors(folder / f"{federation.family}-r{number:02d}-model.npz")
            for client in range(RECORDED):
                update = load_tensors(folder / f"{federation.family}-r{number:02d}-c{client}.npz")
                found.append(Recording(federation.family, number, client, update, weights))
    return found


def save_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}.{path.name}")
    np.savez(part, **tensors)
    part.replace(path)


def load_tensors(path: Path) -> Tensors:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def flat_update(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.concatenate([tensor.ravel() for tensor in load_tensors(path).values()])


if __name__ == "__main__":
    import sys

    for split in SEEDS:
        for one in recordings(split, Path(sys.argv[1]) if len(sys.argv) > 1 else None):
            print(split, one.name, one.parameters)
