"""The running weighted sum of updates: memory for one model, however many clients report."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import cache
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edge_runtime.engine.cores import allowed_cores
from edge_runtime.errors import PeerError
from edge_runtime.kernels import native
from edge_runtime.updates.stage import Task, in_turn

# What a client may claim. Up to here float32 x weight is exact in float64.
MAX_EXAMPLES = 2**28


# Values from which on several threads add. What is smaller takes a fifth of a millisecond on one, and to wake and wait
# for the others would take half as much again of all cores' time.
SHARED_FROM = 2**20


class Aggregate(Protocol):
    """What a round's updates are added to, one after another, and what becomes of them."""

    @property
    def count(self) -> int:
        """Of updates added."""

    @property
    def total_weight(self) -> int:
        """Of the mean of their losses; 0 where that must not be told."""

    def add(self, update: NDArray[np.float32], weight: int) -> None:
        """Add one client's update, of shape (size,), which may be reused by the caller; PeerError if it is no good."""

    def mean(self) -> NDArray[np.float64]:
        """The one update that stands for all, shape (size,); asked for once, when all are added.

        RunError if they are too few for one: the round leaves the model as it was, for that reason.
        """


@runtime_checkable
class Clipping(Protocol):
    """An `Aggregate` that bounds each update. It must do so before any discount, to bite on stale ones too."""

    def add_discounted(self, update: NDArray[np.float32], weight: int, discount: float) -> None:
        """`add` an update, `discount` times what is left of it once it is bounded."""


def add_discounted(
    total: Aggregate,
    update: NDArray[np.float32],
    weight: int,
    discount: float,
    scratch: NDArray[np.float32] | None = None,
) -> None:
    """Add `discount` times the update, above 0 and at most 1; `weight` stays what it is.

    So stale updates move the model less, rather than the others more: sum_k weight_k discount_k x_k / sum_k weight_k,
    as in FedBuff (Nguyen et al. 2022).
    """
    if discount == 1.0:
        total.add(update, weight)
    elif isinstance(total, Clipping):
        total.add_discounted(update, weight, discount)
    else:
        with np.errstate(invalid="ignore"):  # infinities are for `add` to find
            total.add(np.multiply(update, np.float32(discount), out=scratch), weight)


def check_update(update: NDArray[np.float32], weight: int) -> None:
    """PeerError for a NaN or an infinity in the update, or a weight outside 1..2^28."""
    if not 1 <= weight <= MAX_EXAMPLES:
        raise PeerError(f"update claims {weight} examples; must be 1 to 2^28")
    if not native.all_finite(update, team_for(update.size)):
        raise PeerError("update holds NaN or infinite values")


def team_for(size: int) -> native.Team | None:
    """The threads that share work on so many values: one for each core, or none where waking them would cost more."""
    return _all_cores() if size >= SHARED_FROM else None


def spread(tasks: Iterable[Task]) -> None:
    """Do the tasks on all cores; the first error is raised when all have ended."""
    listed = list(tasks)
    if len(listed) < 2 or _cores() == 1:
        in_turn(listed)
        return
    # Each in the caller's context: there NumPy keeps what it makes of an overflow.
    done, _ = wait([_threads().submit(copy_context().run, task) for task in listed])
    for future in done:
        future.result()


@cache
def _cores() -> int:
    return allowed_cores()


@cache
def _all_cores() -> native.Team:
    return native.Team(_cores())


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_cores(), "decode")


class EqualSum:
    """The plain mean, whatever weights the clients claim: under privacy none counts for more than another."""

    total_weight = 0

    def __init__(self, size: int) -> None:
        self._sum = WeightedSum(size)

    @property
    def count(self) -> int:
        return self._sum.count

    def add(self, update: NDArray[np.float32], weight: int) -> None:
        self._sum.add(update, 1)

    def mean(self) -> NDArray[np.float64]:
        return self._sum.mean()


class WeightedSum:
    """sum_k weight_k x_k over float32 vectors of shape (size,), kept in float64; nothing but the sum is held."""

    def __init__(self, size: int) -> None:
        self._sum = np.zeros(size)
        self.total_weight = 0
        self.count = 0

    def add(self, update: NDArray[np.float32], weight: int) -> None:
        """Add one client's update with its number of examples.

        Raises:
            PeerError: a NaN or an infinity in the update, or a weight outside 1..2^28. The sum is unchanged.

        """
        # A whole pass before the first addition: half an update in the sum could not be taken back.
        check_update(update, weight)
        native.accumulate(self._sum, update, weight, team_for(update.size))
        self.total_weight += weight
        self.count += 1

    def mean(self) -> NDArray[np.float64]:
        """The weighted mean, shape (size,): the sum itself, divided where it lies. Nothing can be added after it."""
        if not self.count:
            raise ValueError("no update was added, so there is no mean")
        if self._sum.flags.writeable:
            self._sum /= self.total_weight
            self._sum.flags.writeable = False
        return self._sum
