"""What a named data set offers to a client and to a server, whoever implements it."""

from __future__ import annotations

from typing import Protocol

from edge_runtime.train.batches import Examples
from edge_runtime.train.config import DataConfig


class DataSource(Protocol):
    """A registered data set (entry-point group `hedgerow.datasets`). Both calls are pure: same settings, same rows."""

    def client_split(self, data: DataConfig, seed: int, client: int) -> Examples:
        """The training examples of client number `client`, from 0."""

    def test_split(self, data: DataConfig, seed: int) -> Examples:
        """The held-out examples that no client trains on."""
