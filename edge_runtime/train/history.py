"""What a training leaves behind: its losses and its epochs' figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edge_runtime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the batches: mean training loss, learning-rate factor of its last step, validation figures."""

    train_loss: float
    lr_scale: float
    validation: Mapping[str, float]

    def figure(self, name: str) -> float:
        """A validation figure; "train_loss", which "loss" means too where nothing was validated."""
        figures = {"loss": self.train_loss, **self.validation, "train_loss": self.train_loss}
        if name not in figures:
            raise ConfigError(f"no figure is called {name!r}; this training measures {', '.join(figures)}")
        return figures[name]


@dataclass(slots=True)
class History:
    """What `fit` saw: the mean loss of every optimizer step, in order, how many examples went through, every epoch.

    `stopped` is the reason why a callback ended training early, empty where none did.
    """

    losses: list[float] = field(default_factory=list)
    examples: int = 0
    epochs: list[Epoch] = field(default_factory=list)
    stopped: str = ""

    @property
    def mean_loss(self) -> float:
        """Mean over steps; NaN when there were none."""
        return float(np.mean(self.losses)) if self.losses else float("nan")
