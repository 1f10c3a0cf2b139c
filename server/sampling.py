"""Who is asked in a round, and how often any one client was."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np

from edge_runtime.errors import ConfigError
from server.checkpoint import Tree
from server.config import ServerConfig
from server.rounds import FURTHER, choose_cohort

Entropy = Callable[[int], bytes]  # so many random bytes that nobody else knows


class Sampling(Protocol):
    """`rate` is what the ledger may claim: each client is in a cohort with at most this probability, by itself."""

    rate: float

    def draw(self, nodes: Sequence[int], number: int) -> list[int]:
        """Who of the nodes online is asked in this round, in ascending order."""

    def further(self, nodes: Sequence[int], size: int, number: int) -> list[int]:
        """Up to `size` of these nodes that are asked in this round as well."""


class PoissonSampling:
    """Each client by itself with probability cohort / population, by the operating system's entropy.

    The privacy that this adds holds against those who do not learn who was drawn: so nothing here follows from a seed.
    """

    def __init__(self, cohort: int, population: int, entropy: Entropy = os.urandom) -> None:
        if cohort > population:
            raise ConfigError(f"privacy.population = {population}: must be at least server.cohort ({cohort})")
        self.rate = cohort / population
        self._entropy = entropy
        self._below = int(Fraction(self.rate) * 2**64)  # rounded down: no client is drawn more often than claimed

    def draw(self, nodes: Sequence[int], number: int) -> list[int]:
        pool = sorted(nodes)
        words = np.frombuffer(self._entropy(8 * len(pool)), "<u8").tolist()
        return [node for node, word in zip(pool, words, strict=True) if word < self._below]

    def further(self, nodes: Sequence[int], size: int, number: int) -> list[int]:
        """Nobody: each client had its one chance."""
        return []


class SeededDraws:
    """Nodes drawn by the run's seed, in one round once or several times."""

    def __init__(self, seed: int) -> None:
        self._seed, self._number, self._count = seed, 0, 0

    def choose(self, nodes: Sequence[int], size: int, number: int) -> list[int]:
        """`size` of these nodes (all, if there are fewer), in ascending order."""
        self._count = self._count + 1 if number == self._number else 0
        self._number = number
        return choose_cohort(nodes, size, self._seed, number, FURTHER + self._count if self._count else 0)


class SeededSampling:
    """A cohort drawn by the run's seed, which is no secret: no sampling is claimed."""

    rate = 1.0

    def __init__(self, cohort: int, seed: int) -> None:
        self._cohort, self._draws = cohort, SeededDraws(seed)

    def draw(self, nodes: Sequence[int], number: int) -> list[int]:
        return self._draws.choose(nodes, self._cohort, number)

    def further(self, nodes: Sequence[int], size: int, number: int) -> list[int]:
        return self._draws.choose(nodes, size, number)


def make_sampling(config: ServerConfig, entropy: Entropy = os.urandom) -> Sampling:
    """By `privacy.population`."""
    if config.privacy.population:
        return PoissonSampling(config.server.cohort, config.privacy.population, entropy)
    return SeededSampling(config.server.cohort, config.seed)


class Participations:
    """In how many rounds each client took part."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, clients: Iterable[str]) -> None:
        self._counts.update(clients)

    def of(self, client: str) -> int:
        return self._counts[client]

    @property
    def most(self) -> int:
        """Of any one client."""
        return max(self._counts.values(), default=0)

    def state(self) -> Tree:
        return dict(self._counts)

    def restore(self, state: Tree) -> None:
        self._counts = Counter(state)
