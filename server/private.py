"""What a run does for the privacy of its clients, round by round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from edge_runtime.train.config import RoundTask
from server.aggregate import Aggregate
from server.checkpoint import Stateful, Tree
from server.config import ServerConfig
from server.robust import make_aggregate
from server.rounds import RoundResult
from server.run_store import RunStore
from server.selection import make_selection


class Privacy(Stateful, Protocol):
    """One mechanism.

    `open` once, and where a run is resumed `restore` before it; then in every round, in this order: `why_stop`,
    `cohort`, and if the round is played, `task`, `aggregate` where updates are read, and `settle`.
    """

    def open(self, store: RunStore) -> None:
        """The run begins, or goes on: what is spent from here on is written there before it is used.

        What that run had spent before, closed rounds or not, stays spent.
        """

    def why_stop(self) -> str | None:
        """Why no further round may be played; None if one may."""

    def cohort(self, nodes: Sequence[int], number: int) -> list[int]:
        """Who of the nodes that may be asked is, in this order."""

    def further(self, nodes: Sequence[int], size: int, number: int) -> list[int]:
        """Up to `size` of these nodes that are asked as well, or in place of a cohort; `task` comes after it, too."""

    def task(self, task: RoundTask) -> RoundTask:
        """What clients are sent: the task, and what they do for privacy themselves."""

    def aggregate(self) -> Aggregate:
        """What the round's updates are added to."""

    def settle(self, number: int, result: RoundResult) -> None:
        """Enter into the books what the round has told; also of rounds whose delta is not applied."""

    @property
    def epsilon(self) -> float | None:
        """What all rounds so far have spent; None if nothing is promised."""

    @property
    def clip(self) -> float | None:
        """The L2 norm to which the last round's updates were clipped; None if they were not."""

    def warnings(self) -> tuple[str, ...]:
        """What the user had better know before the first round."""

    def final(self) -> dict[str, Any] | None:
        """The closing figures, as `run.json` has them."""


class NoPrivacy:
    """Nothing is promised: a cohort chosen as `[selection]` asks, and the mean that `[robust]` asks for."""

    epsilon = None
    clip = None

    def __init__(self, config: ServerConfig, size: int) -> None:
        self._selection = make_selection(config.selection, config.seed)
        self._config, self._size = config, size

    def open(self, store: RunStore) -> None:
        """There are no books."""

    def why_stop(self) -> str | None:
        return None

    def cohort(self, nodes: Sequence[int], number: int) -> list[int]:
        """A cohort, and after it the spares: they are needed where others fail, or are slower than they."""
        cohort = self._selection.choose(nodes, self._config.server.cohort, number)
        if not self._config.spares:
            return cohort
        rest = sorted(set(nodes) - set(cohort))
        return [*cohort, *self._selection.choose(rest, self._config.spares, number)]

    def further(self, nodes: Sequence[int], size: int, number: int) -> list[int]:
        return self._selection.choose(nodes, size, number)

    def task(self, task: RoundTask) -> RoundTask:
        return task

    def aggregate(self) -> Aggregate:
        return make_aggregate(self._config.robust, self._size)

    def settle(self, number: int, result: RoundResult) -> None:
        self._selection.learn(number, result.outcomes)

    def warnings(self) -> tuple[str, ...]:
        return ()

    def final(self) -> dict[str, Any] | None:
        return None

    def state(self) -> Tree:
        return {"selection": self._selection.state()}

    def restore(self, state: Tree) -> None:
        self._selection.restore(state["selection"])


def swamped(ratio: float, rounds: int) -> tuple[str, ...]:
    """A warning where noise that adds up over all rounds, as their root, passes all that updates can add up to.

    `ratio`: the norm of the noise in one round's mean, in clips, which no mean of updates is longer than.
    """
    if ratio <= math.sqrt(rounds):
        return ()
    return (
        f"privacy: the noise in each round's mean is {ratio:.1f} times as long as the longest update, and over "
        f"{rounds} rounds still {ratio / math.sqrt(rounds):.1f} times: the model will hardly learn. What helps: a "
        "larger server.cohort (and more clients to draw it from), fewer values that train (train.trainable, "
        "train.lora_rank, a smaller model), a larger privacy.epsilon",
    )
