"""DP-FedAvg with a trusted server (McMahan, Ramage, Talwar, Zhang 2018): it clips each update and noises their sum.

Neighbours differ by one client, in all its rounds. What is released is the model after every round.

Where rounds take in late answers (`server.mode`), each is still one such release: it holds one update of a client at
most, clipped, and then made no longer for being stale. No sampling is claimed there: who is in a round follows from how
fast devices are. That this does not depend on their data is assumed, as it is of who is online.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_runtime.privacy import SampledGaussian
from edge_runtime.privacy.noise import table
from edge_runtime.privacy.running import RunningEpsilon
from edge_runtime.privacy.words import KEY_BYTES
from edge_runtime.train.config import RoundTask
from server.aggregate import Aggregate
from server.budget import Budget
from server.checkpoint import Tree
from server.clipped_sum import VARIATION, Clip, ClippedRounds, Grid, Mean, Sums
from server.config import ServerConfig
from server.private import swamped
from server.results import finite
from server.rounds import RoundResult
from server.run_store import RunStore
from server.sampling import Entropy, Participations, make_sampling


class Central:
    """`Privacy` of `privacy.mechanism = "central"`, for updates of `size` values."""

    def __init__(self, config: ServerConfig, size: int, entropy: Entropy = os.urandom) -> None:
        settings, self._clients = config.privacy, config.server.cohort
        self._sampling = make_sampling(config, entropy)
        self._entropy = entropy
        self._budget = Budget.of(settings)
        self._noise_multiplier = settings.noise_multiplier or self._budget.noise_for(
            lambda z: SampledGaussian(z, self._sampling.rate, config.server.rounds, size + 1, VARIATION)
        )
        self._clip = Clip(settings)
        self._grid = Grid(size)
        if self._clip.adaptive:
            self._grid = self._grid.with_vote(self._noise_multiplier, self._clients)
        self._noise = table("rounded_gaussian", self._grid.sigma(self._noise_multiplier))
        self._event = SampledGaussian(
            self._noise_multiplier, self._sampling.rate, 1, self._grid.count, self._noise.total_variation
        )
        self._rounds = config.server.rounds
        self._taken = Participations()
        self._sums = ClippedRounds(self._grid, self._clip, self._clients, self._noised)

    def open(self, store: RunStore) -> None:
        self._budget.open(store)

    def why_stop(self) -> str | None:
        return self._budget.why_not(self._event)

    def cohort(self, nodes: Sequence[int], number: int) -> list[int]:
        return self._sampling.draw(nodes, number)

    def further(self, nodes: Sequence[int], size: int, number: int) -> list[int]:
        return self._sampling.further(nodes, size, number)

    def task(self, task: RoundTask) -> RoundTask:
        return task

    def aggregate(self) -> Aggregate:
        return self._sums.open()

    def settle(self, number: int, result: RoundResult) -> None:
        if result.delta is None:
            return  # no noise was drawn and nothing of the sum is told
        self._budget.spend(self._event, number)
        self._taken.add(result.clients)
        self._sums.settle()

    @property
    def clip(self) -> float | None:
        return self._sums.clip

    @property
    def epsilon(self) -> float:
        return self._budget.epsilon

    def warnings(self) -> tuple[str, ...]:
        return swamped(self._noise_multiplier * math.sqrt(self._grid.size) / self._clients, self._rounds)

    def final(self) -> dict[str, Any]:
        return self._budget.figures() | {
            "mechanism": "central",
            "epsilon_without_sampling": finite(self._without_sampling()),
            "noise_multiplier": self._noise_multiplier,
            "sampling_rate": self._sampling.rate,
            "clip": self._clip.now,
            "participations": self._taken.most,
        }

    def state(self) -> Tree:
        return {"taken": self._taken.state(), "sums": self._sums.state()}

    def restore(self, state: Tree) -> None:
        self._taken.restore(state["taken"])
        self._sums.restore(state["sums"])

    def _noised(self, total: Sums) -> Mean:
        return (total + self._noise.sample(total.size, self._entropy(KEY_BYTES))).astype(np.float64)

    def _without_sampling(self) -> float:
        """The run's own epsilon against those who know who was drawn: of the client that took part most often."""
        if not self._taken.most:
            return 0.0
        known = SampledGaussian(self._noise_multiplier, 1.0, self._taken.most)
        return RunningEpsilon(self._budget.delta).append(known).epsilon
