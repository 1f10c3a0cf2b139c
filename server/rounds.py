"""One round as pure logic: who is asked, what is made of each answer, how the round ends. No network, no clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import PeerError, RunError
from edge_runtime.updates import Codec, TensorLayout
from edge_runtime.updates.delta import FloatVector
from server.aggregate import Aggregate
from server.counting import Counting


@dataclass(frozen=True, slots=True)
class Update:
    """What a client says after training: its encoded delta and the figures about it."""

    payload: bytes
    examples: int
    loss: float
    steps: int = 0  # local steps, where the strategy asks for them


@dataclass(frozen=True, slots=True)
class Failure:
    """A client that cost this round its update, and why."""

    client: str
    reason: str


@dataclass(frozen=True, slots=True)
class RoundResult:
    """How a round ended. `delta` is None when fewer than the minimum of good updates came: the model stays.

    Under secure aggregation a client lost after its masked input is one of `clients`, for its update is in the sum, and
    stands in `failures` as well. `dropped_in` counts the clients lost in each phase, and `votes` is the sum of +-1 over
    those whose update was within the clip or not. `opened` are the clients of a sum that the server could know, whether
    or not it has one: their masks were to be opened.
    """

    round: int
    delta: NDArray[np.float64] | None
    clients: tuple[str, ...]
    failures: tuple[Failure, ...]
    train_loss: float | None
    uplink_bytes: int
    uplink_bits_per_parameter: float | None
    dropped_in: Mapping[str, int] | None = None
    votes: float | None = None
    unchanged: str | None = None  # why there is no delta
    opened: tuple[str, ...] = ()
    tau_eff: float = 1.0  # what a mean of normalised updates is to be multiplied with
    downlink_bytes: int = 0  # sent to clients: models, Programs, and what secure aggregation sends beside them


def choose_cohort(nodes: Sequence[int], size: int, seed: int, round_number: int, purpose: int = 0) -> list[int]:
    """`size` distinct nodes (all, if there are fewer), drawn uniformly by (seed, round, purpose) alone, sorted."""
    rng = np.random.default_rng([seed, round_number, purpose] if purpose else [seed, round_number])
    pool = sorted(nodes)
    if not pool:
        return []
    # Draw places, not ids: Flower's are 64-bit unsigned, and NumPy would round a mixed list of them to floats.
    places = rng.choice(len(pool), size=min(size, len(pool)), replace=False)
    return [pool[place] for place in sorted(places)]


def not_played(number: int, reason: str) -> RoundResult:
    """The result of a round in which nobody was asked."""
    return RoundResult(number, None, (), (), None, 0, None, unchanged=reason)


@dataclass(slots=True)
class OpenRound:
    """A round while answers come in. Every asked client ends up in `clients` or in `failures`, exactly once.

    `layout` is that of the updates: the tensors that training moves.
    """

    number: int
    names: dict[int, str]  # node id -> the name shown to people, for every asked client
    layout: TensorLayout
    codec: Codec
    min_updates: int
    total: Aggregate
    counting: Counting = Counting()
    _outcome: dict[int, Failure | None] = field(init=False, default_factory=dict)
    _loss: float = field(init=False, default=0.0)
    _steps: float = field(init=False, default=0.0)
    _uplink_bytes: int = field(init=False, default=0)
    _payloads: int = field(init=False, default=0)
    _scratch: FloatVector | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        # A float32 update is read where it lies; the others are decoded here, one after another. Not into the sum: an
        # update that shows itself malformed half-way must not have left its first half there.
        if self.codec.names != ("float32",):
            self._scratch = np.empty(self.layout.size, np.float32)

    def receive(self, node: int, update: Update) -> Failure | None:
        """Check one update and add it to the sum; a bad one becomes that client's failure, which is returned."""
        if node not in self.names or node in self._outcome:
            return None  # not asked, or a second answer: the first one stands
        self._uplink_bytes += len(update.payload)
        self._payloads += 1
        try:
            if not math.isfinite(update.loss):
                raise PeerError("update reports a loss that is not finite")
            delta = self.codec.decode_vector(update.payload, self.layout, round_number=self.number, out=self._scratch)
            weight, steps = self.counting.weight(update.examples), self.counting.steps(update.examples, update.steps)
            self.total.add(delta, weight)
        except PeerError as error:
            return self.fail(node, str(error))
        self._loss += weight * update.loss
        self._steps += weight * steps
        self._outcome[node] = None
        return None

    def fail(self, node: int, reason: str) -> Failure | None:
        """Record that no usable update came from this client, unless it has its outcome."""
        if node not in self.names or node in self._outcome:
            return None
        self._outcome[node] = failure = Failure(self.names[node], reason)
        return failure

    def close(self, silent_reason: str) -> RoundResult:
        """End the round; whoever has not answered failed for `silent_reason`."""
        for node in self.names:
            self.fail(node, silent_reason)
        values = self._payloads * self.layout.size
        delta, unchanged = self._delta()
        return RoundResult(
            round=self.number,
            delta=delta,
            clients=tuple(name for node, name in self.names.items() if self._outcome[node] is None),
            failures=tuple(failure for failure in self._outcome.values() if failure is not None),
            train_loss=self._loss / self.total.total_weight if self.total.total_weight else None,
            uplink_bytes=self._uplink_bytes,
            uplink_bits_per_parameter=8 * self._uplink_bytes / values if values else None,
            unchanged=unchanged,
            tau_eff=self._steps / self.total.total_weight if self.counting.task and self.total.total_weight else 1.0,
        )

    def _delta(self) -> tuple[NDArray[np.float64] | None, str | None]:
        """What the good updates come to, or why there is nothing."""
        if self.total.count < self.min_updates:
            return None, f"fewer than {self.min_updates} good updates"
        try:
            return self.total.mean(), None
        except RunError as error:
            return None, str(error)
