"""One round as pure logic: who is asked, what is made of each answer, how the round ends. No network, no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import PeerError, RunError
from edge_runtime.updates import Codec, TensorLayout
from edge_runtime.updates.delta import FloatVector
from server.aggregate import Aggregate, add_discounted, spread
from server.counting import Counting

FURTHER = 1000  # the purpose of a second draw in one round; a third has the next number, and so on


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


TAKEN, LATE, DROPPED, DECLINED = "taken", "late", "dropped", "declined"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one device that was asked: TAKEN, LATE, DROPPED or DECLINED.

    `seconds` is how long it took; of one that did not come to the end, how long it was waited for. `headroom` is the
    memory that it has left, in sizes of what training takes.
    """

    node: int
    end: str
    examples: int = 0
    loss: float | None = None
    seconds: float | None = None
    headroom: float | None = None


@dataclass(frozen=True, slots=True)
class RoundResult:
    """How a round ended. `delta` is None when fewer than the minimum of good updates came: the model stays.

    Under secure aggregation a client lost after its masked input is one of `clients`, for its update is in the sum, and
    stands in `failures` as well. `dropped_in` counts the clients lost in each phase, and `votes` is the sum of +-1 over
    those whose update was within the clip or not. `opened` are the clients of a sum that the server could know, whether
    or not it has one: their masks were to be opened.

    The round did not need the answers of those who are `late`, and those who `declined` said that they can't take part
    now: neither cost it anything. `staleness` is the mean over the good updates of the rounds that closed while they
    were made, where rounds take in such.
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
    late: tuple[str, ...] = ()
    declined: tuple[Failure, ...] = ()
    outcomes: tuple[Outcome, ...] = ()  # of all who were asked, as far as they may be told
    staleness: float | None = None

    @property
    def all_declined(self) -> bool:
        return bool(self.declined) and not (self.clients or self.failures or self.late)


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
    """A round while answers come in.

    Every client that it is about ends up, exactly once, among those whose updates count, or who failed, declined, or
    are late. `layout` is that of the updates: the tensors that training moves. An update that was asked for s rounds
    ago is multiplied by `discount(s)`, which is at most 1; with s above `max_staleness` it is refused.
    """

    number: int
    names: dict[int, str]  # node id -> the name shown to people, for every client that is to be counted
    layout: TensorLayout
    codec: Codec
    min_updates: int
    total: Aggregate
    counting: Counting = Counting()
    max_staleness: int = 0
    discount: Callable[[int], float] = lambda staleness: 1.0
    _outcome: dict[int, Failure | None] = field(init=False, default_factory=dict)
    _declined: dict[int, Failure] = field(init=False, default_factory=dict)
    _late: dict[int, str] = field(init=False, default_factory=dict)
    _loss: float = field(init=False, default=0.0)
    _staleness: int = field(init=False, default=0)
    _steps: float = field(init=False, default=0.0)
    _uplink_bytes: int = field(init=False, default=0)
    _payloads: int = field(init=False, default=0)
    _scratch: FloatVector | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        # A float32 update is read where it lies; the others are decoded here, one after another. Not into the sum: an
        # update that shows itself malformed half-way must not have left its first half there.
        if self.codec.names != ("float32",) or self.max_staleness:
            self._scratch = np.empty(self.layout.size, np.float32)

    @property
    def good(self) -> int:
        """Updates that count."""
        return self.total.count

    def receive(self, node: int, update: Update, made_for: int | None = None) -> Failure | None:
        """Check one update and add it to the sum; a bad one becomes that client's failure, which is returned.

        `made_for` is the round in which it was asked for; None for this one.
        """
        if not self._expects(node):
            return None  # not asked, or a second answer: the first one stands
        self._uplink_bytes += len(update.payload)
        self._payloads += 1
        asked_in = self.number if made_for is None else made_for
        staleness = self.number - asked_in
        try:
            if staleness > self.max_staleness:
                raise PeerError(self.too_stale(asked_in))
            if not math.isfinite(update.loss):
                raise PeerError("update reports a loss that is not finite")
            delta = self.codec.decode_vector(
                update.payload, self.layout, round_number=asked_in, out=self._scratch, spread=spread
            )
            weight, steps = self.counting.weight(update.examples), self.counting.steps(update.examples, update.steps)
            add_discounted(self.total, delta, weight, self.discount(staleness), self._scratch)
        except PeerError as error:
            return self.fail(node, str(error))
        self._loss += weight * update.loss
        self._steps += weight * steps
        self._staleness += staleness
        self._outcome[node] = None
        return None

    def too_stale(self, asked_in: int) -> str:
        """Why an update of that round is refused."""
        return f"made for round {asked_in}, and buffer.max_staleness = {self.max_staleness}"

    def fail(self, node: int, reason: str) -> Failure | None:
        """Record that no usable update came from this client, unless it has its outcome."""
        if not self._expects(node):
            return None
        self._outcome[node] = failure = Failure(self.names[node], reason)
        return failure

    def decline(self, node: int, reason: str) -> None:
        """Record that this client said that it can't take part now."""
        if self._expects(node):
            self._declined[node] = Failure(self.names[node], reason)

    def leave(self, node: int) -> None:
        """Record that the round did not wait for this client."""
        if self._expects(node):
            self._late[node] = self.names[node]

    def close(self, silent_reason: str) -> RoundResult:
        """End the round; whoever has not answered failed for `silent_reason`."""
        for node in self.names:
            self.fail(node, silent_reason)
        values = self._payloads * self.layout.size
        delta, unchanged = self._delta()
        return RoundResult(
            round=self.number,
            delta=delta,
            clients=tuple(name for node, name in self.names.items() if self._outcome.get(node, _NONE) is None),
            failures=tuple(failure for failure in self._outcome.values() if failure is not None),
            train_loss=self._loss / self.total.total_weight if self.total.total_weight else None,
            uplink_bytes=self._uplink_bytes,
            uplink_bits_per_parameter=8 * self._uplink_bytes / values if values else None,
            unchanged=unchanged,
            late=tuple(self._late.values()),
            declined=tuple(self._declined.values()),
            staleness=self._staleness / self.good if self.max_staleness and self.good else None,
            tau_eff=self._steps / self.total.total_weight if self.counting.task and self.total.total_weight else 1.0,
        )

    def _expects(self, node: int) -> bool:
        known = node in self._outcome or node in self._declined or node in self._late
        return node in self.names and not known

    def _delta(self) -> tuple[NDArray[np.float64] | None, str | None]:
        """What the good updates come to, or why there is nothing."""
        if self.good < self.min_updates:
            return None, f"fewer than {self.min_updates} good updates"
        try:
            return self.total.mean(), None
        except RunError as error:
            return None, str(error)


_NONE = Failure("", "")  # of a client that has no outcome
