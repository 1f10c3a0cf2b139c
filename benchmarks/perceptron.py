"""A model for benchmarks, as a user's own `model.entry`."""

from __future__ import annotations

from torch import nn


def digits_mlp() -> nn.Module:
    """A 64-128-10 perceptron, 9,610 parameters, for (B, 1, 8, 8)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
