"""Splits by row numbers: nothing lost, nothing twice, classes in proportion, repeatable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edge_runtime import optimizers
from edge_runtime.errors import ConfigError
from edge_runtime.train.batches import Batches, Examples, Subset
from edge_runtime.train.splits import cross_validate, hold_out, k_fold, oversample
from edge_runtime.train.torch_trainer import TorchTrainer

LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=80).map(np.array)
SEEDS = st.integers(0, 2**32)


@given(labels=LABELS, share=st.floats(0.01, 0.99), seed=SEEDS, stratify=st.booleans())
@settings(deadline=None)
def test_a_hold_out_is_a_partition_with_the_share_of_every_class(
    labels: np.ndarray, share: float, seed: int, stratify: bool
) -> None:
    count = len(labels)
    train, held = hold_out(count, share, np.random.default_rng(seed), labels if stratify else None)
    assert sorted([*train, *held]) == list(range(count))
    assert len(held) == min(max(round(share * count), 1), count - 1)
    if stratify:
        for label in np.unique(labels):
            expected = (labels == label).sum() * len(held) / count
            assert abs((labels[held] == label).sum() - expected) < 1 + 1e-9


@given(labels=LABELS, data=st.data(), seed=SEEDS, stratify=st.booleans())
@settings(deadline=None)
def test_folds_are_partitions_of_equal_size_with_equal_classes(
    labels: np.ndarray, data: st.DataObject, seed: int, stratify: bool
) -> None:
    count = len(labels)
    k = data.draw(st.integers(2, min(count, 10)))
    folds = list(k_fold(count, k, np.random.default_rng(seed), labels if stratify else None))
    assert len(folds) == k
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(count))
    for train, test in folds:
        assert sorted([*train, *test]) == list(range(count))
    sizes = [len(test) for _, test in folds]
    assert max(sizes) - min(sizes) <= 1
    if stratify:
        for label in np.unique(labels):
            counts = [(labels[test] == label).sum() for _, test in folds]
            assert max(counts) - min(counts) <= 1


@given(labels=LABELS, seed=SEEDS)
@settings(deadline=None)
def test_oversampling_makes_all_classes_as_frequent_as_the_largest(labels: np.ndarray, seed: int) -> None:
    index = oversample(labels, np.random.default_rng(seed))
    _, before = np.unique(labels, return_counts=True)
    _, after = np.unique(labels[index], return_counts=True)
    assert (after == before.max()).all()
    assert set(index) == set(range(len(labels)))
    times = np.bincount(index)
    for label in np.unique(labels):
        own = times[labels == label]
        assert own.max() - own.min() <= 1


def test_oversampled_batches_are_balanced_without_a_copy_of_the_data() -> None:
    labels = np.array([0] * 18 + [1] * 2)
    rows = Subset(Examples(np.arange(20), labels), oversample(labels, np.random.default_rng(0)))
    seen = np.concatenate([y for _, y in Batches(rows, 5, np.random.default_rng(1))])
    assert np.bincount(seen).tolist() == [18, 18]


def test_the_seed_decides_and_nothing_else() -> None:
    def splits(seed: int) -> list[list[int]]:
        rng = np.random.default_rng(seed)
        held = hold_out(50, 0.2, rng)[1]
        return [held.tolist(), *(test.tolist() for _, test in k_fold(50, 3, rng))]

    assert splits(1) == splits(1) != splits(2)


def test_held_out_rows_are_a_random_choice_of_each_class() -> None:
    labels = np.arange(40) % 2
    rng = np.random.default_rng(0)
    times = np.bincount(np.concatenate([hold_out(40, 0.25, rng, labels)[1] for _ in range(400)]), minlength=40)
    assert (abs(times - 100) < 50).all()


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="cannot hold out"):
        hold_out(10, share, np.random.default_rng(0))


def test_what_cannot_be_split_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="of 1 rows"):
        hold_out(1, 0.5, rng)
    for k in (1, 11):
        with pytest.raises(ConfigError, match=f"k = {k}: must be >= 2 and <= 10"):
            k_fold(10, k, rng)
    with pytest.raises(ConfigError, match="one class per row"):
        k_fold(10, 2, rng, np.zeros(9, np.int64))
    assert oversample(np.zeros(0, np.int64), rng).tolist() == []


# Cross-validation.


def learnable(count: int = 60) -> Examples:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 3)).astype(np.float32)
    return Examples(x, (x @ [1.0, -2.0, 0.5] > 0).astype(np.int64))


def make_trainer() -> TorchTrainer:
    torch.manual_seed(0)
    return TorchTrainer(nn.Linear(3, 2), optimizer=optimizers.SGD(0.5))


def test_every_fold_is_trained_afresh_and_tested_on_rows_it_never_saw() -> None:
    rows = learnable()
    result = cross_validate(make_trainer, rows, 3, np.random.default_rng(4), epochs=5, batch_size=8, labels=rows.y)
    rng = np.random.default_rng(4)
    for (train, test), figures in zip(k_fold(60, 3, rng, rows.y), result.folds, strict=True):
        trainer = make_trainer()
        trainer.fit(Batches(rows.rows(train), 8, rng), 5)
        assert trainer.evaluate(Batches(rows.rows(test), 8)) == figures
    accuracies = [figures["accuracy"] for figures in result.folds]
    assert result.mean["accuracy"] > 0.8
    assert result.mean["accuracy"] == pytest.approx(np.mean(accuracies))
    assert result.std["accuracy"] == pytest.approx(np.std(accuracies, ddof=1))
