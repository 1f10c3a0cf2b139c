"""The server of one round: one type per phase, events in, messages out.

    Advertising -> Sharing -> Masking -> [Confirming ->] Unmasking -> Ended

Each phase waits for one message of each client still in the round, and closes when it has them, or at its deadline. A
client that sends nothing by then has dropped. A message that is wrong raises PeerError and counts as not sent: it may
cost the round that client, never more. Inputs are added into one running sum as they come: memory is O(model). A round
that can't be finished ends with a reason and no sum at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import PeerError, RunError
from edge_runtime.secagg import keys, masks
from edge_runtime.secagg import messages as m
from edge_runtime.secagg import transcript as t
from edge_runtime.secagg.config import RoundConfig
from edge_runtime.secagg.graph import Neighbours
from edge_runtime.secagg.rebuild import Rebuilder
from edge_runtime.secagg.transitions import PHASES, SERVER, check_server


@dataclass(frozen=True, slots=True)
class Received:
    """A client's message. The connection vouches for the id."""

    client: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Gone:
    """The connection to a client is lost, or it failed: nobody waits for it any more."""

    client: int


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The phase that is open closes with what it has."""


Event = Received | Gone | DeadlinePassed


@dataclass(frozen=True, slots=True)
class Send:
    """A message for one client."""

    client: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a round ended.

    sum: int64 of shape (count,), exact unless `may_wrap`; None if the round was aborted.
    survivors: the clients in the sum; empty if the round was aborted.
    aborted: the reason, or None.
    weight: the sum of the survivors' weights, or None without weights.
    dropped: for each phase the clients that were lost in it.
    culprits: clients whose shares were wrong.
    opened: the clients of the sum whose masks may be open, to whoever has what the server was sent or works with a
        client: the survivors, from when shares of their secrets were asked for, also where no sum came of it.
    may_wrap: the settings let sums pass 2^(bits - 1), so lanes may be off by multiples of 2^bits.
    """

    sum: NDArray[np.int64] | None
    survivors: frozenset[int]
    aborted: str | None
    weight: int | None = None
    dropped: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    culprits: frozenset[int] = frozenset()
    may_wrap: bool = False
    opened: frozenset[int] = frozenset()


class Server:
    """One round. Whoever owns connections and clock feeds `receive` and sends what it returns, until `outcome` is set.

    Args:
        agreed: the round's settings.
        enrolled: the public device keys of the cohort's clients, by id.

    """

    __slots__ = ("_agreed", "_cohort", "_dropped", "_phase", "outcome")

    def __init__(self, agreed: RoundConfig, enrolled: Mapping[int, bytes]) -> None:
        self._agreed, self._cohort = agreed, frozenset(enrolled)
        self._dropped: dict[str, tuple[int, ...]] = dict.fromkeys(PHASES, ())
        self._phase: Phase = Advertising(agreed, dict(enrolled), set(enrolled))
        self.outcome: Outcome | None = None

    @property
    def phase(self) -> str:
        """The name of the phase it is in."""
        return type(self._phase).__name__

    @property
    def waiting(self) -> frozenset[int]:
        """The clients whose message is still awaited."""
        return frozenset(self._phase.waiting)

    def start(self) -> list[Send]:
        """The invitations."""
        setup = m.encode(m.Setup(self._agreed), None)
        return [Send(client, setup) for client in sorted(self._phase.waiting)]

    def receive(self, event: Event) -> list[Send]:
        """What to send now that this happened.

        Raises:
            PeerError: the client's message was refused; it counts as not sent.

        """
        match event:
            case Received(client, data):
                self._accept(client, data)
            case Gone(client):
                self._lose({client})
            case DeadlinePassed():
                self._lose(set(self._phase.waiting))
        return [] if self._phase.waiting or self.outcome else self._advance()

    def _accept(self, client: int, data: bytes) -> None:
        message: Any = m.decode(data, self._agreed)
        if isinstance(message, m.Abort):
            self._lose({client})
            return
        check_server(self.phase, message)
        if client not in self._phase.waiting:
            raise PeerError(f"client {client}: {type(message).__name__} came twice, or from one not in this phase")
        try:
            self._phase.accept(client, message)
        except PeerError as error:
            raise PeerError(f"client {client}: {error}") from None
        self._phase.waiting.discard(client)

    def _lose(self, clients: set[int]) -> None:
        lost = clients & self._phase.waiting
        self._phase.waiting -= lost
        if self.phase in SERVER and lost:
            name = next(name for name, kind in PHASES.items() if kind is SERVER[self.phase][0])
            self._dropped[name] += tuple(sorted(lost))

    def _advance(self) -> list[Send]:
        closed = self._phase
        try:
            phase, answers = closed.close()
        except RunError as error:
            self._phase = Ended(None)
            opened = closed.masked.survivors if isinstance(closed, Unmasking) else frozenset()
            self.outcome = Outcome(
                None, frozenset(), str(error), None, dict(self._dropped), closed.culprits(), opened=opened
            )
            farewell = m.encode(m.Abort(str(error)), None)  # to all: one that was late may still hold secrets
            return [Send(client, farewell) for client in sorted(self._cohort)]
        if type(phase).__name__ not in SERVER[type(closed).__name__][1]:
            raise AssertionError(f"{type(closed).__name__} led to {type(phase).__name__}, against the table")
        self._phase = phase
        if isinstance(phase, Ended):
            self._finish(phase, closed.culprits())
        distinct = {id(answer): answer for answer in answers.values()}  # a roster is one message to all: encode it once
        encoded = {key: m.encode(answer, self._agreed) for key, answer in distinct.items()}
        return [Send(client, encoded[id(answer)]) for client, answer in sorted(answers.items())]

    def _finish(self, ended: Ended, culprits: frozenset[int]) -> None:
        assert ended.words is not None
        lanes = self._agreed.lanes.unpack(ended.words)
        weight = int(lanes[-1]) if self._agreed.settings.max_weight else None
        self.outcome = Outcome(
            lanes[: self._agreed.count], ended.survivors, None, weight, dict(self._dropped), culprits,
            not self._agreed.cannot_wrap, ended.survivors,
        )  # fmt: skip
        self._phase = Ended(None)


Answers = tuple["Phase", Mapping[int, m.Message]]


@dataclass(slots=True, repr=False)
class _Open:
    """What all phases have: settings, the cohort's device keys, and whose message is still to come."""

    agreed: RoundConfig
    enrolled: Mapping[int, bytes]
    waiting: set[int]

    def culprits(self) -> frozenset[int]:
        """Who was caught giving wrong shares."""
        return frozenset()

    def _at_least(self, count: int, floor: int, what: str) -> None:
        if count < floor:
            raise RunError(f"round {self.agreed.round}: {count} clients {what}, {floor} are needed; no sum is made")


@dataclass(slots=True, repr=False)
class Advertising(_Open):
    """Collects the signed keys."""

    adverts: dict[int, bytes] = field(default_factory=dict)
    _seen: set[bytes] = field(default_factory=set)

    def accept(self, client: int, message: m.Advertise) -> None:
        """Refuse here what would make honest clients leave the round: bad signatures, repeated and weak keys."""
        t.verify_advert(self.enrolled[client], self.agreed, client, message)
        new = {message.mask_key, message.channel_key}
        if len(new) < 2 or new & self._seen:
            raise PeerError("a key that was advertised before")
        keys.check_public(message.mask_key)
        keys.check_public(message.channel_key)
        self._seen |= new
        self.adverts[client] = message.joined

    def close(self) -> Answers:
        """Draw the graph of those who are there."""
        settings, present = self.agreed.settings, len(self.adverts)
        self._at_least(present, max(settings.threshold, settings.min_clients), "advertised")
        if settings.threshold > self.agreed.degree(present) + 1:
            raise RunError(
                f"round {self.agreed.round}: each client has {self.agreed.degree(present)} neighbours, too few for the "
                f"threshold of {settings.threshold}; no sum is made"
            )
        transcript = t.transcript(self.agreed, self.adverts)
        graph = t.topology(self.agreed, self.adverts, transcript)
        phase = Sharing(self.agreed, self.enrolled, set(self.adverts), self.adverts, transcript, graph)
        return phase, dict.fromkeys(self.adverts, m.Roster(self.adverts))


@dataclass(slots=True, repr=False)
class Sharing(_Open):
    """Collects the sealed shares, which it can't read."""

    adverts: Mapping[int, bytes]
    transcript: bytes
    graph: Neighbours
    commitments: dict[int, bytes] = field(default_factory=dict)
    sealed: dict[int, Mapping[int, bytes]] = field(default_factory=dict)

    def accept(self, client: int, message: m.Shares) -> None:
        """One ciphertext for each neighbour; their lengths were checked on the way in."""
        if message.sealed.keys() != set(self.graph[client]):
            raise PeerError("shares must be for its neighbours, all of them and nobody else")
        self.commitments[client] = message.commitment
        self.sealed[client] = message.sealed

    def close(self) -> Answers:
        """Route the ciphertexts of those who shared."""
        settings, sharers = self.agreed.settings, frozenset(self.sealed)
        self._at_least(len(sharers), max(settings.threshold, settings.min_clients), "shared their keys")
        answers = {
            client: m.Routed(
                tuple(sharers), {peer: self.sealed[peer][client] for peer in self.graph[client] if peer in sharers}
            )
            for client in sharers
        }
        total = np.zeros(self.agreed.lanes.words, np.uint64)
        shared = _Shared(self.adverts, self.transcript, self.graph, self.commitments, sharers)
        return Masking(self.agreed, self.enrolled, set(sharers), shared, total), answers


@dataclass(frozen=True, slots=True, repr=False)
class _Shared:
    """What is settled once keys are shared."""

    adverts: Mapping[int, bytes]
    transcript: bytes
    graph: Neighbours
    commitments: Mapping[int, bytes]
    sharers: frozenset[int]


@dataclass(slots=True, repr=False)
class Masking(_Open):
    """Adds masked inputs into one sum as they come."""

    shared: _Shared
    total: NDArray[np.uint64]
    survivors: set[int] = field(default_factory=set)
    unopened: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def accept(self, client: int, message: m.MaskedInput) -> None:
        """Its length was checked on the way in."""
        if not set(message.unopened) <= self.shared.sharers.intersection(self.shared.graph[client]):
            raise PeerError("it names shares as unopened that it was not sent")
        np.add(self.total, message.words, out=self.total)  # uint64: modulo 2^64, as the masks need it
        self.survivors.add(client)
        self.unopened[client] = message.unopened

    def close(self) -> Answers:
        """Fix who survived: later inputs are refused, whoever asks."""
        survivors = frozenset(self.survivors)
        self._at_least(len(survivors), self.agreed.fewest_survivors, "sent a masked input")
        if not self.shared.graph.joins(survivors):
            raise RunError(
                f"round {self.agreed.round}: so many neighbours dropped that the survivors share no masks with one "
                "another; no sum is made"
            )
        listed = m.Survivors(tuple(survivors), tuple(self.shared.sharers - survivors))
        answers = dict.fromkeys(survivors, listed)
        masked = _Masked(self.shared, survivors, self.unopened, self.total)
        if not self.agreed.settings.consistency:
            return Unmasking(self.agreed, self.enrolled, set(survivors), masked), answers
        return Confirming(self.agreed, self.enrolled, set(survivors), masked), answers


@dataclass(frozen=True, slots=True, repr=False)
class _Masked:
    """What is settled once the inputs are in."""

    shared: _Shared
    survivors: frozenset[int]
    unopened: Mapping[int, tuple[int, ...]]
    total: NDArray[np.uint64]


@dataclass(slots=True, repr=False)
class Confirming(_Open):
    """Collects signatures under the list of survivors."""

    masked: _Masked
    signatures: dict[int, bytes] = field(default_factory=dict)

    def accept(self, client: int, message: m.Confirm) -> None:
        """Passed on as it is: each client counts those that it finds good, and no other is worth a verification."""
        self.signatures[client] = message.signature

    def close(self) -> Answers:
        """Show each who signed its neighbours' signatures."""
        self._at_least(len(self.signatures), self.agreed.settings.threshold, "signed the list of survivors")
        graph = self.masked.shared.graph
        answers = {
            client: m.Quorum({peer: self.signatures[peer] for peer in graph[client] if peer in self.signatures})
            for client in self.signatures
        }
        return Unmasking(self.agreed, self.enrolled, set(self.signatures), self.masked), answers


@dataclass(slots=True, repr=False)
class Unmasking(_Open):
    """Collects shares of one secret of each client, rebuilds them, and takes the masks off."""

    masked: _Masked
    answers: dict[int, m.Unmask] = field(default_factory=dict)
    _culprits: set[int] = field(default_factory=set)

    def culprits(self) -> frozenset[int]:
        """Whose shares did not fit."""
        return frozenset(self._culprits)

    def accept(self, client: int, message: m.Unmask) -> None:
        """The shares it holds and was asked for, no others."""
        held = {client, *self.masked.shared.graph[client]} - set(self.masked.unopened[client])
        sharers, survivors = self.masked.shared.sharers & held, self.masked.survivors
        if message.seeds.keys() != sharers & survivors or message.mask_keys.keys() != sharers - survivors:
            raise PeerError("it must give a seed share for each survivor, a mask key share for each that dropped")
        self.answers[client] = message

    def close(self) -> Answers:
        """Take off the survivors' own masks, and the masks that survivors share with those who dropped."""
        self._at_least(len(self.answers), self.agreed.settings.threshold, "gave their shares")
        shared, survivors = self.masked.shared, self.masked.survivors
        rebuilder = Rebuilder(self.agreed.settings.threshold, shared.graph, shared.transcript, self._culprits)
        add: list[bytes] = []
        subtract: list[bytes] = []
        for client in sorted(survivors):
            shares = {holder: answer.seeds[client] for holder, answer in self._holders(client)}
            subtract.append(rebuilder.seed(client, shares, shared.commitments[client]).reveal())
        for client in sorted(shared.sharers - survivors):
            peers = survivors.intersection(shared.graph[client])
            if not peers:
                continue  # nobody in the sum has a mask with it
            shares = {holder: answer.mask_keys[client] for holder, answer in self._holders(client)}
            pair = rebuilder.mask_key(client, shares, m.Advertise.split(shared.adverts[client]).mask_key)
            for peer in sorted(peers):
                key = pair.derive(m.Advertise.split(shared.adverts[peer]).mask_key, keys.MASK)
                # with the sign that the dropped one would have used, so that it cancels its peer's
                (add if client < peer else subtract).append(key.reveal())
        masks.apply_masks(self.masked.total, add=add, subtract=subtract, prg=self.agreed.settings.prg)
        return Ended(self.masked.total, survivors), {}

    def _holders(self, owner: int) -> Iterator[tuple[int, m.Unmask]]:
        """Those who answered and opened what the owner sent them, itself among them, with their answers."""
        for holder in (owner, *self.masked.shared.graph[owner]):
            answer = self.answers.get(holder)
            if answer is not None and owner not in self.masked.unopened[holder]:
                yield holder, answer


@dataclass(slots=True, repr=False)
class Ended:
    """Nothing is left but, until it is read, the sum."""

    words: NDArray[np.uint64] | None
    survivors: frozenset[int] = frozenset()
    waiting: set[int] = field(default_factory=set)

    def culprits(self) -> frozenset[int]:
        """Nobody."""
        return frozenset()

    def accept(self, client: int, message: m.Message) -> None:
        """The table lets nothing come here."""
        raise PeerError("the round is over")

    def close(self) -> Answers:
        """The table lets nothing come here."""
        raise RunError("the round is over")


Phase = Advertising | Sharing | Masking | Confirming | Unmasking | Ended
