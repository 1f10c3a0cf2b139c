"""A model of your own for a federation: any function without arguments that returns a torch.nn.Module.

Run it from this folder: hedgerow simulate own_model.toml
"""

from torch import nn


def make() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
