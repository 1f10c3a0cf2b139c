"""The models a scenario can name, in PyTorch. Each function builds a new module with PyTorch's own initialisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LeNet(nn.Module):
    """61,706 parameters for (B, 1, 28, 28); after LeCun et al. 1998, with ReLU and max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 5, padding=2)
        self.c2 = nn.Conv2d(6, 16, 5)
        self.f1 = nn.Linear(400, 120)
        self.f2 = nn.Linear(120, 84)
        self.f3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.c1(x)), 2)
        x = torch.max_pool2d(torch.relu(self.c2(x)), 2).flatten(1)
        x = torch.relu(self.f2(torch.relu(self.f1(x))))
        return self.f3(x)  # type: ignore[no-any-return]  # torch modules are untyped callables


class DigitsCNN(nn.Module):
    """5,928 parameters for (B, 1, 8, 8): small enough for tests."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.hidden = nn.Linear(128, 42)
        self.out = nn.Linear(42, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.conv(x)), 2).flatten(1)
        return self.out(torch.relu(self.hidden(x)))  # type: ignore[no-any-return]  # torch modules are untyped callables


class WatchCNN(nn.Module):
    """Two convolutions over time for six-axis windows (B, 6, 1, 100); 7 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(6, 32, (1, 5), padding=(0, 2))
        self.c2 = nn.Conv2d(32, 64, (1, 5), padding=(0, 2))
        self.out = nn.Linear(64, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.c1(x)), (1, 2))
        x = torch.relu(self.c2(x)).mean((2, 3))
        return self.out(x)  # type: ignore[no-any-return]  # torch modules are untyped callables


class CharGRU(nn.Module):
    """Next-character logits (B, T, 81) for tokens (B, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(81, 16)
        self.gru = nn.GRU(16, 128, batch_first=True)
        self.out = nn.Linear(128, 81)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(self.embedding(x))[0])  # type: ignore[no-any-return]  # torch modules are untyped callables


def lenet() -> nn.Module:
    return LeNet()


def digits_cnn() -> nn.Module:
    return DigitsCNN()


def watch_cnn() -> nn.Module:
    return WatchCNN()


def char_gru() -> nn.Module:
    return CharGRU()


def mlp() -> nn.Module:
    """A 784-64-10 perceptron, 50,890 parameters, for (B, 1, 28, 28)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
