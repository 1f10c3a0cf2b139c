"""What a run does for the privacy of its clients, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from server.aggregate import Aggregate
from server.config import ServerConfig
from server.robust import make_aggregate
from server.rounds import RoundResult, choose_cohort


class Privacy(Protocol):
    """One mechanism. In every round in this order: `why_stop`, `cohort`, `aggregate` if updates are read, `settle`."""

    def why_stop(self, number: int) -> str | None:
        """Why this round may not be played, nor any later one; None if it may."""

    def cohort(self, nodes: Sequence[int], number: int) -> list[int]:
        """Who of the nodes online is asked, in ascending order."""

    def aggregate(self) -> Aggregate:
        """What the round's updates are added to."""

    def settle(self, number: int, result: RoundResult) -> None:
        """Enter into the books what the round has told; also of rounds whose delta is not applied."""

    @property
    def epsilon(self) -> float | None:
        """What all rounds so far have spent; None if nothing is promised."""

    def final(self) -> dict[str, Any] | None:
        """The closing figures, as `run.json` has them."""


class NoPrivacy:
    """Nothing is promised: a cohort drawn from the run's seed, and the mean that `[robust]` asks for."""

    epsilon = None

    def __init__(self, config: ServerConfig, size: int) -> None:
        self._config, self._size = config, size

    def why_stop(self, number: int) -> str | None:
        return None

    def cohort(self, nodes: Sequence[int], number: int) -> list[int]:
        return choose_cohort(nodes, self._config.server.cohort, self._config.seed, number)

    def aggregate(self) -> Aggregate:
        return make_aggregate(self._config.robust, self._size)

    def settle(self, number: int, result: RoundResult) -> None:
        """There are no books."""

    def final(self) -> dict[str, Any] | None:
        return None
