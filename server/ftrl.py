"""DP-FTRL with a trusted server: noise that later rounds partly take back, and no claim about who is drawn.

Privacy rests on one client's rounds being at least `separation` apart, which the server sees to. Neighbours differ by
one client, whose updates turn to zeros. The whole run is one release, entered when it begins: a run that ends early
has spent as much. See `edge_runtime.privacy.matrix`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_runtime.errors import ConfigError
from edge_runtime.privacy import MatrixMechanism, MatrixStream, Strategy, banded, blt
from edge_runtime.privacy.words import KEY_BYTES
from edge_runtime.train.config import RoundTask
from server.aggregate import Aggregate
from server.budget import Budget
from server.checkpoint import Tree
from server.clipped_sum import VARIATION, Clip, ClippedRounds, Grid, Mean, Sums
from server.config import ServerConfig
from server.private import swamped
from server.rounds import RoundResult
from server.run_store import RunStore
from server.sampling import Entropy, Participations, SeededDraws


class Ftrl:
    """`Privacy` of `privacy.mechanism = "ftrl"`, for updates of `size` values."""

    def __init__(self, config: ServerConfig, size: int, entropy: Entropy = os.urandom) -> None:
        settings, self._draws, self._entropy = config.privacy, SeededDraws(config.seed), entropy
        self._clients, self._rounds = config.server.cohort, config.server.rounds
        self._population = settings.population
        self._separation = min(self._rounds, settings.separation or max(1, settings.population // self._clients))
        self._strategy = _strategy(settings.strategy, self._rounds, self._separation)
        self._sensitivity = self._strategy.sensitivity(self._separation, -(-self._rounds // self._separation))
        self._budget = Budget.of(settings)
        self._noise_multiplier = (
            settings.noise_multiplier * self._sensitivity
            if settings.noise_multiplier
            else self._budget.noise_for(
                lambda z: MatrixMechanism(z, self._sensitivity, self._rounds, size + 1, VARIATION)
            )
        )
        self._clip = Clip(settings)
        self._grid = Grid(size)
        if self._clip.adaptive:
            self._grid = self._grid.with_vote(self._noise_multiplier, self._clients)
        sigma = self._strategy.noise_sigma(self._noise_multiplier, self._grid.l2)
        self._stream = MatrixStream(self._strategy, self._grid.count, sigma)
        self._event = MatrixMechanism(
            self._noise_multiplier, self._sensitivity, self._rounds, self._grid.count, self._stream.sample_variation
        )
        if reason := self._budget.why_not(self._event):
            raise ConfigError(f"{reason}; under DP-FTRL a run is one release: take fewer rounds or more noise")
        self._last: dict[str, int] = {}  # the round in which each client took part last
        self._taken = Participations()
        self._sums = ClippedRounds(self._grid, self._clip, self._clients, self._noised)

    def open(self, store: RunStore) -> None:
        self._budget.open(store)
        if not self._budget.own:
            self._budget.spend(self._event)

    def why_stop(self) -> str | None:
        """The whole run was paid for when it began."""
        return None

    def cohort(self, nodes: Sequence[int], number: int) -> list[int]:
        return self.further(nodes, self._clients, number)

    def further(self, nodes: Sequence[int], size: int, number: int) -> list[int]:
        # What is asked for now counts in this round or in a later one: further from the last one, never nearer.
        never = number - self._separation
        rested = [node for node in nodes if number - self._last.get(str(node), never) >= self._separation]
        return self._draws.choose(rested, size, number)

    def task(self, task: RoundTask) -> RoundTask:
        # Rounds of which nothing was told have their noise all the same: the strategy counts rounds, not releases.
        while self._stream.round < task.round - 1:
            self._noised(np.zeros(self._grid.count, np.int64))
        return task

    def aggregate(self) -> Aggregate:
        return self._sums.open()

    def settle(self, number: int, result: RoundResult) -> None:
        if result.delta is None:
            return
        self._last |= dict.fromkeys(result.clients, number)
        self._taken.add(result.clients)
        self._sums.settle()

    @property
    def clip(self) -> float | None:
        return self._sums.clip

    @property
    def epsilon(self) -> float:
        return self._budget.epsilon

    def warnings(self) -> tuple[str, ...]:
        after_all = self._strategy.error(self._noise_multiplier).largest * math.sqrt(self._grid.size) / self._clients
        return self._dwindling() + swamped(after_all / math.sqrt(self._rounds), self._rounds)

    def final(self) -> dict[str, Any]:
        figures = self._budget.figures()
        return figures | {
            "mechanism": "ftrl",
            "epsilon_without_sampling": figures["epsilon"],
            "noise_multiplier": self._noise_multiplier,
            "sensitivity": self._sensitivity,
            "separation": self._separation,
            "sampling_rate": 1.0,
            "clip": self._clip.now,
            "participations": self._taken.most,
        }

    def state(self) -> Tree:
        return {
            "last": self._last,
            "stream": self._stream.state(),
            "taken": self._taken.state(),
            "sums": self._sums.state(),
        }

    def restore(self, state: Tree) -> None:
        self._last = dict(state["last"])
        self._stream.restore(state["stream"])
        self._taken.restore(state["taken"])
        self._sums.restore(state["sums"])

    def _dwindling(self) -> tuple[str, ...]:
        """A warning where full cohorts would have asked all of a known population before the first may come again."""
        most = max(1, self._population // self._clients)
        if not self._population or self._separation <= most:
            return ()
        return (
            f"privacy.separation = {self._separation}: after {most} full rounds all {self._population} clients have "
            f"had their turn, and later cohorts are smaller or empty; {most}, or 0, keeps them full",
        )

    def _noised(self, total: Sums) -> Mean:
        return self._stream.release(total, self._entropy(KEY_BYTES))


def _strategy(name: str, rounds: int, separation: int) -> Strategy:
    if name == "blt":
        return blt(rounds, separation, -(-rounds // separation), bands=separation)
    return banded(separation, rounds)
