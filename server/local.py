"""Local differential privacy: each client noises its own update, and need not trust the server with it.

Neighbours differ in all the data of one client. Every update is a release of its own: so noise is that of one client,
not of a cohort, and the mean of n updates still carries 1 / sqrt(n) of it, where central noise carries 1 / n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edge_runtime.privacy import SampledGaussian
from edge_runtime.privacy.noise import table
from edge_runtime.train.config import LocalPrivacy, RoundTask
from server.aggregate import Aggregate, EqualSum
from server.budget import Budget
from server.checkpoint import Tree
from server.clipped_sum import VARIATION, Grid
from server.config import ServerConfig
from server.private import swamped
from server.rounds import RoundResult
from server.run_store import RunStore
from server.sampling import Participations


class Local:
    """`Privacy` of `privacy.mechanism = "local"`, for updates of `size` values.

    Who has taken part least is asked first, nobody more than `most` times: as often as cohorts of a known population
    need, else in every round. The ledger holds the events of the one client that was asked most often; being asked
    counts, for an answer that came too late was seen all the same.
    """

    def __init__(self, config: ServerConfig, size: int) -> None:
        settings, self._server, self._seed = config.privacy, config.server, config.seed
        self._size, self.clip = size, settings.clip
        self._budget = Budget.of(settings)
        rounds = config.server.rounds
        asked = rounds * config.server.cohort + (config.concurrency if config.server.mode == "async" else 0)
        self._most = min(rounds, -(-asked // settings.population)) if settings.population else rounds
        self._noise_multiplier = settings.noise_multiplier or self._budget.noise_for(
            lambda z: SampledGaussian(z, 1.0, self._most, size, VARIATION)
        )
        grid = Grid(size)
        sigma = grid.sigma(2 * self._noise_multiplier)  # replacing one's data moves them by up to 2 l2
        self._local = LocalPrivacy(settings.clip, grid.length / settings.clip, sigma)
        variation = table("rounded_gaussian", sigma).total_variation
        self._event = SampledGaussian(self._noise_multiplier, 1.0, 1, size, variation)
        self._asked = Participations()
        self._cohort: list[int] = []  # drawn last
        self._number = self._turn = 0  # the round in which that was, and how many draws it had had before
        self._store: RunStore | None = None

    def open(self, store: RunStore) -> None:
        self._budget.open(store)
        self._store = store
        # All that were ever asked, in closed rounds and in others: a client has answered whatever became of the server.
        for _, asked in store.events("privacy_asked"):
            self._asked.add(asked["clients"])
        while len(self._budget.own) < self._asked.most:  # killed between the asking and the booking of it
            self._budget.spend(self._event)

    def why_stop(self) -> str | None:
        return self._budget.why_not(self._event) if self._asked.most < self._most else None

    def cohort(self, nodes: Sequence[int], number: int) -> list[int]:
        return self.further(nodes, self._server.cohort, number)

    def further(self, nodes: Sequence[int], size: int, number: int) -> list[int]:
        self._turn = self._turn + 1 if number == self._number else 0
        self._number = number
        rng = np.random.default_rng([self._seed, number, *([self._turn] if self._turn else [])])
        able = [node for node in sorted(nodes) if self._asked.of(str(node)) < self._most]
        order = sorted(
            (self._asked.of(str(able[place])), turn, place) for turn, place in enumerate(rng.permutation(len(able)))
        )
        self._cohort = sorted(able[place] for _, _, place in order[:size])
        return self._cohort

    def task(self, task: RoundTask) -> RoundTask:
        """The task with what clients are to do; booked before it is sent, for their answers can't be taken back."""
        before, clients = self._asked.most, [str(node) for node in self._cohort]
        if self._store is not None:
            self._store.append("privacy_asked", {"clients": clients}, task.round, durable=True)
        self._asked.add(clients)
        if self._asked.most > before:
            self._budget.spend(self._event, task.round)
        return replace(task, local=self._local)

    def aggregate(self) -> Aggregate:
        return EqualSum(self._size)

    def settle(self, number: int, result: RoundResult) -> None:
        """All is in the books since the clients were asked."""

    @property
    def epsilon(self) -> float:
        return self._budget.epsilon

    def warnings(self) -> tuple[str, ...]:
        ratio = 2 * self._noise_multiplier * math.sqrt(self._size / self._server.cohort)
        return swamped(ratio, self._server.rounds)

    def final(self) -> dict[str, Any]:
        return self._budget.figures() | {
            "mechanism": "local",
            "epsilon_without_sampling": self._budget.figures()["epsilon"],
            "noise_multiplier": self._noise_multiplier,
            "sampling_rate": 1.0,
            "clip": self.clip,
            "participations": self._asked.most,
        }

    def state(self) -> Tree:
        """Nothing: who was asked stands in the run's events, be the round closed or not."""
        return {}

    def restore(self, state: Tree) -> None:
        """There is nothing to restore."""
