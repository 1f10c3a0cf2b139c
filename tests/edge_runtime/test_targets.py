"""Targets and outputs of different shapes or dtypes: fitted where the meaning is clear, refused where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

import edge_runtime as er

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3)).astype(np.float32)


def loss_of(loss: er.losses.Loss, outputs: int, y: np.ndarray) -> dict[str, float]:
    import torch

    torch.manual_seed(0)
    return er.TorchTrainer(nn.Linear(3, outputs), loss=loss).evaluate([(X, y)])


@pytest.mark.parametrize("loss", [er.MSE(), er.L1(), er.Huber(), er.BCEWithLogits()])
def test_a_flat_target_means_the_same_as_a_column(loss):
    y = RNG.integers(0, 2, 12)
    column = loss_of(loss, 1, y.astype(np.float32)[:, None])
    assert loss_of(loss, 1, y.astype(np.float32)) == column
    assert loss_of(loss, 1, y) == column


def test_a_column_of_classes_means_the_same_as_a_flat_one():
    y = RNG.integers(0, 4, 12)
    figures = loss_of(er.CrossEntropy(), 4, y[:, None])
    assert figures == loss_of(er.CrossEntropy(), 4, y)
    assert 0 <= figures["accuracy"] <= 1


@pytest.mark.parametrize(
    ("loss", "y", "text"),
    [
        (er.MSE(), np.zeros((12, 3), np.float32), "do not fit"),
        (er.MSE(), np.zeros(11, np.float32), "do not fit"),
        (er.CrossEntropy(), np.zeros((12, 2), np.int64), "do not fit"),
        (er.CrossEntropy(), np.zeros(12, np.float32), "whole-number classes"),
    ],
)
def test_nothing_is_left_to_broadcasting(loss, y, text):
    with pytest.raises(ValueError, match=text):
        loss_of(loss, 4, y)
