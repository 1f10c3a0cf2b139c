"""Our partitioners beside flwr-datasets': equal where they are deterministic, close in distribution elsewhere."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.train.config import DataConfig
from simulations.datasets import MNIST, WATCH
from simulations.partition import Rows, partition

pytestmark = [
    # Third-party packages import each other's deprecated names.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "FLWR_TELEMETRY_ENABLED": "0"}
CLIENTS, SEEDS = 10, range(12)

Labels = NDArray[np.int64]


class Theirs:
    """flwr-datasets on our arrays, as row indices per client."""

    def __init__(self) -> None:
        self.dataset = importlib.import_module("datasets").Dataset
        self.kinds = importlib.import_module("flwr_datasets.partitioner")

    def split(self, kind: str, labels: Labels, users: Labels | None = None, **settings: Any) -> list[Rows]:
        columns = {"idx": np.arange(len(labels)), "label": labels, "user": labels if users is None else users}
        partitioner = getattr(self.kinds, kind)(**settings)
        partitioner.dataset = self.dataset.from_dict(columns)
        parts = range(partitioner.num_partitions)
        return [np.asarray(partitioner.load_partition(part)["idx"], np.intp) for part in parts]


@pytest.fixture(scope="module")
def theirs() -> Iterator[Theirs]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OFFLINE.items():
            patch.setenv(name, value)
        yield Theirs()


@pytest.fixture(scope="module")
def labels() -> Labels:
    return MNIST.load(DataConfig()).y[::2]


def label_entropy(labels: Labels, part: Rows) -> float:
    shares = np.bincount(labels[part], minlength=10) / len(part)
    return float(-sum(share * np.log(share) for share in shares if share))


def figures(labels: Labels, runs: Sequence[list[Rows]]) -> tuple[float, float]:
    """Mean label entropy of a client in nats, and mean standard deviation of sizes as a share of the mean size."""
    entropy = np.mean([label_entropy(labels, part) for run in runs for part in run])
    spread = np.mean([np.std([len(part) for part in run]) for run in runs]) / (len(labels) / CLIENTS)
    return float(entropy), float(spread)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 10.0])
def test_dirichlet_agrees_in_distribution(theirs: Theirs, labels: Labels, alpha: float) -> None:
    """Over 12 seeds x 10 clients: entropies within 0.15 nats (of 2.3), size spreads within 25 %."""
    data = DataConfig(partition="dirichlet", clients=CLIENTS, alpha=alpha, min_examples=2)
    ours = figures(labels, [partition(labels, None, data, seed) for seed in SEEDS])
    settings = {"num_partitions": CLIENTS, "partition_by": "label", "alpha": alpha, "min_partition_size": 2}
    reference = figures(labels, [theirs.split("DirichletPartitioner", labels, seed=seed, **settings) for seed in SEEDS])
    assert abs(ours[0] - reference[0]) < 0.15
    assert ours[1] == pytest.approx(reference[1], rel=0.25)


@pytest.mark.parametrize("clients", [10, 7])
def test_iid_sizes_are_equal(theirs: Theirs, labels: Labels, clients: int) -> None:
    ours = partition(labels, None, DataConfig(partition="iid", clients=clients), 1)
    reference = theirs.split("IidPartitioner", labels, num_partitions=clients)
    assert sorted(map(len, ours)) == sorted(map(len, reference))


def test_natural_parts_are_equal(theirs: Theirs) -> None:
    table = WATCH.load(DataConfig(name="watch"))
    assert table.users is not None
    ours = partition(table.y, table.users, DataConfig(partition="natural", clients=10), 1)
    reference = theirs.split("NaturalIdPartitioner", table.y, table.users, partition_by="user")
    assert {frozenset(part) for part in ours} == {frozenset(part) for part in reference}


def class_counts(labels: Labels, runs: Sequence[list[Rows]]) -> NDArray[np.float64]:
    """Share of clients that hold 0, 1, 2, ... classes."""
    counts = [len(np.unique(labels[part])) for run in runs for part in run]
    return np.bincount(counts, minlength=11) / len(counts)


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_give_clients_as_many_classes(theirs: Theirs, labels: Labels, shards: int) -> None:
    """Total variation distance of the two histograms over 12 seeds x 10 clients below 0.15."""
    data = DataConfig(partition="shards", clients=CLIENTS, shards_per_client=shards)
    settings = {"num_partitions": CLIENTS, "partition_by": "label", "num_shards_per_partition": shards}
    ours = [partition(labels, None, data, seed) for seed in SEEDS]
    reference = [
        theirs.split("ShardPartitioner", labels, keep_incomplete_shard=True, seed=seed, **settings) for seed in SEEDS
    ]
    distance = np.abs(class_counts(labels, ours) - class_counts(labels, reference)).sum() / 2
    assert distance < 0.15
