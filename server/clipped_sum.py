"""A sum of clipped updates in whole numbers, to which exact noise can be added.

    clip to c -> times s, rounded at random within l2_bound -> [a vote of +-K] -> added in int64 -> noise -> / s n

s c, the clip in whole numbers, is the same whatever c is: so one noise table serves all rounds of a clip that moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context, Decimal

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import NumericsError, PeerError
from edge_runtime.privacy import AdaptiveClip, conditional_round, l2_bound
from edge_runtime.privacy.clipping import is_within
from server.checkpoint import Tree
from server.protection_config import PrivacyConfig

Sums = NDArray[np.int64]
Mean = NDArray[np.float64]
Release = Callable[[Sums], Mean]  # the sum in, what may be told of it out: in the same units, with its noise

VARIATION = 2.0**-104  # no sampler of rounded Gaussians is further from them, in one value
_AT_LEAST = 1024.0
_PER_ROOT = 8.0  # rounding then makes the longest vector at most 0.2 % longer, whatever the update's size
_UP = 1 + 2.0**-40  # more than float rounding of scale * clip takes off
_MOST_OF_NOISE = 4.0  # the vote is at most 1 / 4 of the update's length: so it costs at most 3 % more noise


def largest_vote(l2: float, noise_multiplier: float, clients: int) -> float:
    """The vote beside values of length `l2` that leaves noise of clients / 10 on the sum of +-1 votes.

    As Andrew et al. (2021) choose. In small cohorts it would take a large share of the noise: there it is smaller, and
    the sum of votes noisier.
    """
    most = l2 / _MOST_OF_NOISE
    if clients / 10 > noise_multiplier:
        most = min(most, l2 / math.sqrt((clients / 10 / noise_multiplier) ** 2 - 1))
    return most


@dataclass(frozen=True, slots=True)
class Grid:
    """Whole numbers for updates of `size` values, and for one vote of +-`vote` after them (0: none)."""

    size: int
    vote: int = 0

    @property
    def length(self) -> float:
        """The clip in whole numbers, s c."""
        return max(_AT_LEAST, _PER_ROOT * math.sqrt(self.size))

    @property
    def l2(self) -> float:
        """How far one client can move the sum."""
        return math.hypot(l2_bound(self.length * _UP, 1.0, self.size), self.vote) * _UP

    @property
    def count(self) -> int:
        return self.size + bool(self.vote)

    def with_vote(self, noise_multiplier: float, clients: int) -> Grid:
        return Grid(self.size, max(1, round(largest_vote(self.l2, noise_multiplier, clients))))

    def sigma(self, noise_multiplier: float) -> str:
        """The exact sigma of noise that is at least `noise_multiplier` times as large as what one client can do."""
        exact = Decimal(noise_multiplier) * Decimal(self.l2)
        return str(max(Decimal(1), Context(prec=12, rounding=ROUND_CEILING).plus(exact)))


class ClippedSum:
    """An `Aggregate` in which all clients weigh the same, none moves the sum by more than `grid.l2`.

    The mean is over `clients`, a fixed number: how many there really were is not told.
    """

    total_weight = 0  # so that no mean of clients' losses is told

    def __init__(self, grid: Grid, clip: float, clients: float, release: Release) -> None:
        self._grid, self._clip, self._clients, self._release = grid, clip, clients, release
        self._scale = grid.length / clip
        self._sum = np.zeros(grid.count, np.int64)
        self._rng = np.random.default_rng()
        self.count = 0
        self.votes: float | None = None  # the noisy sum of votes, once `mean` is asked for

    def add(self, update: NDArray[np.float32], weight: int) -> None:
        """Add one client's update, whatever its weight.

        Raises:
            PeerError: a NaN or an infinity in the update. The sum is unchanged.

        """
        self.add_discounted(update, weight, 1.0)

    def add_discounted(self, update: NDArray[np.float32], weight: int, discount: float) -> None:
        """`add`, but of `discount`, at most 1, times the clipped update: shorter than the clip, so no bound moves."""
        if not 0 < discount <= 1:
            raise ValueError(f"discount = {discount:g}: must be above 0 and at most 1")
        try:
            whole = conditional_round(update, self._scale * discount, self._clip, self._rng)
        except NumericsError:
            raise PeerError("update holds NaN or infinite values") from None
        self._sum[: self._grid.size] += whole
        if self._grid.vote:
            self._sum[-1] += self._grid.vote if is_within(update, self._clip) else -self._grid.vote
        self.count += 1

    def mean(self) -> Mean:
        """The noisy mean, shape (size,)."""
        noisy = self._release(self._sum)
        if self._grid.vote:
            self.votes = float(noisy[-1]) / self._grid.vote
        return noisy[: self._grid.size] / (self._scale * self._clients)


class ClippedRounds:
    """The sums of a run's rounds, one after another, under a clip that may move with their votes.

    `clip` is that of the last round, None before the first.
    """

    def __init__(self, grid: Grid, clip: Clip, clients: float, release: Release) -> None:
        self._grid, self._next, self._clients, self._release = grid, clip, clients, release
        self._sum: ClippedSum | None = None
        self.clip: float | None = None

    def open(self) -> ClippedSum:
        """What the next round's updates are added to."""
        self.clip = self._next.now
        self._sum = ClippedSum(self._grid, self.clip, self._clients, self._release)
        return self._sum

    def settle(self) -> None:
        """The round's mean was told, and its votes with it."""
        if self._sum is not None:
            self._next.move(self._sum.votes, self._clients)

    def state(self) -> Tree:
        return {"clip": self.clip, "next": self._next.state()}

    def restore(self, state: Tree) -> None:
        self.clip = state["clip"]
        self._next.restore(state["next"])


class Clip:
    """The clip of every round: `privacy.clip`, or where that is 0, one that follows the clients' norms."""

    def __init__(self, settings: PrivacyConfig) -> None:
        self.adaptive = None if settings.clip else AdaptiveClip(1.0, settings.clip_quantile, settings.clip_rate)
        self._fixed = settings.clip

    @property
    def now(self) -> float:
        return self.adaptive.clip if self.adaptive else self._fixed

    def move(self, votes: float | None, clients: float) -> None:
        """Where the clip is adaptive, by the noisy sum of +-1 votes."""
        if self.adaptive and votes is not None:
            self.adaptive = self.adaptive.updated(votes, clients)

    def state(self) -> Tree:
        return {"clip": self.adaptive.clip} if self.adaptive else {}

    def restore(self, state: Tree) -> None:
        if self.adaptive:
            self.adaptive = replace(self.adaptive, clip=state["clip"])
