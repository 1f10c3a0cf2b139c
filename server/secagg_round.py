"""One round of secure aggregation in progress: phases as batches of messages, and what becomes of every node.

Each phase goes to all clients that the protocol waits for, and ends when they have answered or at its deadline. What
goes wrong with a client costs the round that client, no more. All groups' protocols run side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_runtime.errors import PeerError
from edge_runtime.secagg import PHASES, RoundConfig, Server
from edge_runtime.secagg import messages as m
from edge_runtime.secagg.server import DeadlinePassed, Gone, Received, Send
from edge_runtime.secagg.transitions import FIRST, LAST
from server.gather import Asked, content_of
from server.link import Answer, Content, Link, peer_text, read_secure, secure_content, secure_setup, why_declined
from server.sum_plan import SumPlan

FAREWELL = "abort"
# What the server sends -> the phase that its answer belongs to.
_PHASE_OF: Mapping[type, str] = {
    m.Setup: FIRST,
    m.Roster: "share_keys",
    m.Routed: "masked_input",
    m.Survivors: "consistency",
    m.Quorum: LAST,
    m.Abort: FAREWELL,
}


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that clients have for the first phase, in which they train, and for each other one."""

    training_s: float
    phase_s: float


@dataclass(slots=True)
class Book:
    """What becomes of each node in one round, and what its protocol costs."""

    failures: dict[int, str] = field(default_factory=dict)
    declined: dict[int, str] = field(default_factory=dict)  # said at the start that they can't take part now
    dropped_in: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(PHASES, 0)))
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    inputs: int = 0  # masked inputs that came
    input_bytes: int = 0
    told: Callable[[str, Mapping[str, Any]], None] = lambda kind, data: None  # events for the run's log

    def decline(self, node: int, reason: str) -> None:
        self.declined[node] = reason
        self.told("client_declined", {"client": str(node), "reason": reason})

    def lose(self, node: int, phase: str, reason: str) -> None:
        """The first reason stands; what a client is told goodbye with costs nobody anything."""
        if phase != FAREWELL and node not in self.failures:
            self.failures[node] = f"{phase}: {reason}"
            self.dropped_in[phase] += 1
            self.told("client_dropped", {"client": str(node), "reason": reason, "phase": phase})


@dataclass(slots=True)
class Group:
    """One sum in progress: its plan, the protocol's server, and its clients by their ids there."""

    plan: SumPlan
    agreed: RoundConfig
    server: Server
    nodes: Mapping[int, int]
    devices: bytes

    def phase_of(self, data: bytes) -> str:
        kind = m.kind_of(data)
        assert kind is not None
        phase = _PHASE_OF[kind]
        return LAST if phase == "consistency" and not self.agreed.settings.consistency else phase


@dataclass(frozen=True, slots=True)
class _Letter:
    """One message that is due."""

    group: Group
    client: int
    data: bytes = field(repr=False)

    @property
    def phase(self) -> str:
        return self.group.phase_of(self.data)


def play(link: Link, times: Deadlines, asked: Asked, groups: Iterable[Group], book: Book) -> None:
    """Run the groups' protocols to their ends; each group's `server.outcome` is then set."""
    letters = [_Letter(group, send.client, send.data) for group in groups for send in group.server.start()]
    while letters:
        letters = _phase(link, times, asked, letters, book)


def _phase(link: Link, times: Deadlines, asked: Asked, letters: Iterable[_Letter], book: Book) -> list[_Letter]:
    """Deliver a batch and feed what comes back; returns the letters that are due next."""
    due = {letter.group.nodes[letter.client]: letter for letter in letters}
    due = {node: letter for node, letter in due.items() if node not in book.failures | book.declined}
    contents = _contents(asked, due, book)
    training = any(letter.phase == FIRST for letter in due.values())
    deadline_s = times.training_s if training else times.phase_s
    replies: list[_Letter] = []
    answered = set()
    for answer in link.ask(contents, asked.number, deadline_s):
        if answer.node not in due or answer.node in answered:
            continue  # nobody asked; or a second answer: the first one stands
        letter = due[answer.node]
        answered.add(answer.node)
        replies += _feed(letter, answer, book)
        if letter.phase == FIRST:
            asked.hear(answer)
    for node, letter in due.items():
        if node not in answered:
            book.lose(node, letter.phase, f"no reply within {deadline_s:g} s")
    moved = {id(letter.group) for letter in replies}
    for group in {id(letter.group): letter.group for letter in due.values()}.values():
        if id(group) not in moved and group.server.outcome is None:
            replies += _letters(group, group.server.receive(DeadlinePassed()))
    return replies


def _contents(asked: Asked, due: Mapping[int, _Letter], book: Book) -> dict[int, Content]:
    """What each node is sent; nodes that are sent the same share one object."""
    shared: dict[tuple[int, int], Content] = {}
    contents = {}
    for node, letter in due.items():
        book.downlink_bytes += len(letter.data)
        if letter.phase == FIRST:
            parcel, devices = asked.parcels[node], letter.group.devices
            book.downlink_bytes += asked.question.nbytes(parcel) + len(devices)
            key = (id(letter.data), id(parcel))
            if key not in shared:
                shared[key] = secure_setup(FIRST, letter.data, devices, asked.question, parcel)
        else:
            key = (id(letter.data), 0)
            if key not in shared:
                shared[key] = secure_content(letter.phase, letter.data)
        contents[node] = shared[key]
    return contents


def _feed(letter: _Letter, answer: Answer, book: Book) -> list[_Letter]:
    """Give the protocol a client's answer, or tell it that none will come."""
    group, client, node, phase = letter.group, letter.client, answer.node, letter.phase
    if group.server.outcome is not None:
        return []  # a farewell's answer
    if phase == FIRST and answer.content is not None and (reason := why_declined(answer.content)) is not None:
        book.decline(node, reason)
        return _letters(group, group.server.receive(Gone(client)))
    try:
        data = read_secure(content_of(answer))
        book.uplink_bytes += len(data)
        if m.kind_of(data) is m.Abort:
            abort = m.decode(data, group.agreed)
            assert isinstance(abort, m.Abort)
            raise PeerError(peer_text(abort.reason))
        sends = group.server.receive(Received(client, data))
        if phase == "masked_input":
            book.inputs += 1
            book.input_bytes += len(data)
            book.told("update_received", {"client": str(node), "bytes": len(data)})
    except (ValueError, PeerError) as error:
        book.lose(node, phase, str(error))
        sends = group.server.receive(Gone(client))
    return _letters(group, sends)


def _letters(group: Group, sends: Iterable[Send]) -> list[_Letter]:
    return [_Letter(group, send.client, send.data) for send in sends]
