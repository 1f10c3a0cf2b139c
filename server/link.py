"""The server's end of the Flower wire: the only module here that builds and reads Flower messages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from edge_runtime.config import Scalar
from edge_runtime.deploy import offer
from edge_runtime.device import report as device
from edge_runtime.errors import PeerError
from edge_runtime.secagg.transitions import HELLO, RECORD
from edge_runtime.updates import STYPE
from edge_runtime.updates.versions import CHAIN_STYPE, ID_BYTES, Parcel
from server.aggregate import MAX_EXAMPLES
from server.rounds import Update

POLL_S = 0.5  # polling faster loads the SuperLink more than it gains: 0.05 s makes rounds slower

# Flower hands over every reply that is asked for and ready: asking for few bounds the memory. An update is seldom
# larger than the model that it answers to, so it is fewer where that is large.
PULL_AT_ONCE, PULL_BYTES = 8, 64 << 20

MAX_REASON = 500

Content = RecordDict  # of a message, for those who only hand it on
MAX_PRGS = 16


@dataclass(frozen=True, slots=True)
class Question:
    """What every asked client gets, but for the model: the task as flat keys, the Program if the engine trains."""

    task: Mapping[str, Scalar]
    program: bytes = b""

    def content(self, parcel: Parcel) -> RecordDict:
        """The message to a client that is sent the model as this parcel."""
        # One Array for the whole model: Flower makes an HTTP request per object. For that reason, too, what goes with
        # the model stands in the task's record.
        stype = STYPE if parcel.whole else CHAIN_STYPE
        array = Array("uint8", (len(parcel.content),), stype, parcel.content)
        beside = {"program": self.program, "model-id": parcel.model_id, **parcel.beside}
        task = ConfigRecord({**self.task, **{name: value for name, value in beside.items() if value}})
        return RecordDict({"model": ArrayRecord({"weights": array}), "task": task})

    def nbytes(self, parcel: Parcel) -> int:
        """Payload bytes of `content`."""
        own = sum(len(value) for value in parcel.beside.values() if isinstance(value, bytes))
        return len(parcel.content) + len(self.program) + own

    def contents(self, parcels: Mapping[int, Parcel]) -> dict[int, RecordDict]:
        """The message to each node; nodes that are sent the same share one object: held, hashed and stored once."""
        distinct = {id(parcel): parcel for parcel in parcels.values()}
        made = {key: self.content(parcel) for key, parcel in distinct.items()}
        return {node: made[id(parcel)] for node, parcel in parcels.items()}

    @property
    def round(self) -> int:
        return int(self.task["round"])


@dataclass(frozen=True, slots=True)
class Hello:
    """A node's device key, its proof that the key is its own, and the mask PRGs that its processor does fast."""

    device: bytes
    proof: bytes
    prgs: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        return len(self.device) + len(self.proof) + sum(map(len, self.prgs))


@dataclass(frozen=True, slots=True)
class Answer:
    """One node's reply: its content, or why there is none."""

    node: int
    content: RecordDict | None
    error: str = ""


Outstanding = dict[str, int]  # messages that are out, by their ids, oldest first, and the nodes that they went to
ALL = 1 << 62


@runtime_checkable
class TimedGrid(Protocol):
    """A grid that keeps a time of its own, and what more can be asked of it."""

    def clock(self) -> float:
        """Its seconds."""

    def push_since(self, messages: Iterable[Message], since_s: float) -> Iterable[str]:
        """`push_messages`, as if that had been done at that time, which has gone by."""

    def next_reply(self, message_ids: Iterable[str], until_s: float, wanted: int) -> Message | None:
        """What comes next in reply to these, once it is there; None if nothing comes by then, when it is then.

        Of no more than `wanted` further replies is there any use, as far as is known.
        """

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Nobody will ask for the replies to these."""


class Link:
    """Sends questions to nodes and yields their answers as they come, until all have answered or a time has come."""

    def __init__(
        self,
        grid: Grid,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._grid, self.clock, self.pause = grid, clock, pause
        self._at_once = PULL_AT_ONCE
        self._timed = grid if isinstance(grid, TimedGrid) else None
        self._pulled: dict[str, Message] = {}  # replies that have come and were not yet yielded, by what they answer

    @property
    def replays(self) -> bool:
        """Whether `send` may say that a message was sent before: what a node was at can then be taken up again."""
        return self._timed is not None

    def nodes(self) -> list[int]:
        """Node ids online now."""
        return list(self._grid.get_node_ids())

    def wait_for_nodes(self, wanted: int, deadline_s: float, stop: Callable[[], object] = lambda: None) -> list[int]:
        """Node ids online once `wanted` are there; at the deadline, or if `stop` says so, however many those are."""
        began, waited_s = self.clock(), 0.0
        while len(nodes := self.nodes()) < wanted and not stop():
            # what was waited counts also by itself, for a clock that stands still
            if max(self.clock() - began, waited_s) >= deadline_s:
                break
            self.pause(POLL_S)
            waited_s += POLL_S
        return nodes

    @property
    def run_id(self) -> int:
        """The run's id, as nodes know it: 0 to 2^64 - 1."""
        return self._grid.run.run_id % 2**64

    def evaluate(self, question: Question, parcels: Mapping[int, Parcel], deadline_s: float) -> Iterator[Answer]:
        """Ask the nodes of `parcels`, each of which gets its own."""
        return self.ask(question.contents(parcels), question.round, deadline_s, MessageType.EVALUATE)

    def query(self, contents: Mapping[int, Content], number: int, deadline_s: float) -> Iterator[Answer]:
        """Ask what has to do with no round; `number` is the artefact's version."""
        return self.ask(contents, number, deadline_s, MessageType.QUERY)

    def ask(
        self, contents: Mapping[int, RecordDict], number: int, deadline_s: float, kind: str = MessageType.TRAIN
    ) -> Iterator[Answer]:
        """Send each node its own content, in round `number`; who does not answer by the deadline is left out."""
        end = self.clock() + deadline_s
        outstanding = self.send(contents, number, deadline_s, kind)
        del contents
        try:
            while (answer := self.next_answer(outstanding, end)) is not None:
                yield answer
        finally:
            self.cancel(outstanding)

    def send(
        self,
        contents: Mapping[int, RecordDict],
        number: int,
        valid_s: float,
        kind: str = MessageType.TRAIN,
        since_s: float | None = None,
    ) -> Outstanding:
        """Send each node its own content, in round `number`, to be answered within `valid_s`; does not wait."""
        if largest := max(map(array_bytes, contents.values()), default=0):
            self._at_once = max(1, min(PULL_AT_ONCE, PULL_BYTES // largest))
        messages = [
            Message(content, node, kind, ttl=valid_s, group_id=str(number)) for node, content in contents.items()
        ]
        if since_s is None:
            pushed = self._grid.push_messages(messages)
        else:
            assert self._timed is not None
            pushed = self._timed.push_since(messages, since_s)
        return dict(zip(pushed, contents, strict=True))

    def next_answer(self, outstanding: Outstanding, end: float, wanted: int = ALL) -> Answer | None:
        """The answer that comes next, which is then no more outstanding; None if none does by that time.

        `wanted`: how many more there is any use for, as far as is known.
        """
        while (found := self._pulled_before(outstanding)) is None:
            if not outstanding or self.clock() >= end:
                return None
            if self._timed is not None:
                self._keep([self._timed.next_reply(list(outstanding), end, wanted)], outstanding)
            elif not self._keep(self._pull(list(outstanding)), outstanding):
                self.pause(POLL_S)
        node, reply = found  # who was asked, whoever the reply says has sent it
        if not reply.has_error():
            return Answer(node, reply.content)
        return Answer(node, None, peer_text(reply.error.reason or f"Flower error code {reply.error.code}"))

    def cancel(self, outstanding: Outstanding) -> None:
        """Whoever still is to answer these need not: nobody will listen. A real node is not told, and works on."""
        if self._timed is not None:
            self._timed.cancel(list(outstanding))
        for message_id in outstanding:
            self._pulled.pop(message_id, None)
        outstanding.clear()

    def _pulled_before(self, outstanding: Outstanding) -> tuple[int, Message] | None:
        """A node and its reply to one of these that has come already; never more than a few are in memory."""
        for message_id in outstanding if self._pulled else ():
            if message_id in self._pulled:
                return outstanding.pop(message_id), self._pulled.pop(message_id)
        return None

    def _keep(self, replies: Iterable[Message | None], outstanding: Outstanding) -> bool:
        """Hold replies to these until they are asked for; of two to one message the first. Whether there were any."""
        came = [one for one in replies if one is not None and one.metadata.reply_to_message_id in outstanding]
        for reply in came:
            self._pulled.setdefault(reply.metadata.reply_to_message_id, reply)
        return bool(came)

    def _pull(self, message_ids: Sequence[str]) -> list[Message]:
        """The replies to the first few of these messages that have any."""
        for first in range(0, len(message_ids), self._at_once):
            if replies := list(self._grid.pull_messages(message_ids[first : first + self._at_once])):
                return replies
        return []


def array_bytes(content: Content) -> int:
    """Of what a message carries beside settings."""
    return sum(len(array.data) for arrays in content.array_records.values() for array in arrays.values())


def peer_text(text: str) -> str:
    """A peer's words as one bounded, printable line: they reach terminals, logs and `run.json`."""
    start = text[: 4 * MAX_REASON]
    return " ".join("".join(letter if letter.isprintable() else " " for letter in start).split())[:MAX_REASON]


def read_update(content: RecordDict) -> Update:
    """The update inside a train reply; ValueError says which part is missing or of the wrong type."""
    array = _record(content, "update", ArrayRecord).get("delta")
    metrics = _record(content, "metrics", MetricRecord)
    if not isinstance(array, Array) or array.stype != STYPE:
        raise ValueError(f"reply has no update of type {STYPE}")
    examples, loss, steps = metrics.get("num-examples"), metrics.get("loss"), metrics.get("local-steps", 0)
    if type(examples) is not int or not isinstance(loss, float):
        raise ValueError("reply does not say num-examples (whole number) and loss (number)")
    return Update(array.data, examples, loss, steps if type(steps) is int else 0)


def greeting() -> Content:
    """The question for a node's `Hello`."""
    return RecordDict({RECORD: ConfigRecord({"phase": HELLO})})


def secure_content(phase: str, message: bytes) -> Content:
    """A message of secure aggregation."""
    # Bytes in a record rather than an Array: a phase is then two objects for Flower, and not five.
    return RecordDict({RECORD: ConfigRecord({"phase": phase, "message": message})})


def secure_setup(phase: str, message: bytes, devices: bytes, question: Question, parcel: Parcel) -> Content:
    """The first message of a secure round: what is to be trained, the settings, the cohort's device keys, joined."""
    record = ConfigRecord({"phase": phase, "message": message, "devices": devices})
    return RecordDict({**question.content(parcel), RECORD: record})


def read_secure(content: RecordDict) -> bytes:
    """The message of secure aggregation inside a reply."""
    data = _record(content, RECORD, ConfigRecord).get("message")
    if not isinstance(data, bytes):
        raise ValueError("reply has no message of secure aggregation")
    return data


def read_hello(content: RecordDict) -> Hello:
    """The `Hello` inside a reply, of which nothing is checked but types."""
    record = _record(content, RECORD, ConfigRecord)
    device, proof, prgs = record.get("device"), record.get("proof"), record.get("prgs")
    if not (isinstance(device, bytes) and isinstance(proof, bytes) and isinstance(prgs, list)):
        raise ValueError("reply does not say its device key, proof and prgs")
    return Hello(device, proof, tuple(str(prg) for prg in prgs[:MAX_PRGS]))


def artefact_content(ask: offer.Ask, fields: Mapping[str, int | str], blob: bytes = b"") -> Content:
    """A message of a roll-out; the files of an offer go as one Array, whatever their number."""
    content = RecordDict({offer.RECORD: ConfigRecord({"ask": ask.value, **fields})})
    if blob:
        content["files"] = ArrayRecord({offer.RECORD: Array("uint8", (len(blob),), offer.STYPE, blob)})
    return content


def read_report(content: RecordDict) -> offer.Report:
    """The report of a device inside a reply; its reason is a printable line.

    Raises:
        ValueError, PeerError: there is none, or it is malformed.

    """
    report = offer.parse_report(_record(content, offer.RECORD, ConfigRecord))
    return replace(report, reason=peer_text(report.reason))


def read_running(content: RecordDict) -> int | None:
    """The version of the artefact that a device says it runs, in a train reply; None where it says nothing."""
    metrics = content.get("metrics")
    version = metrics.get(offer.RUNNING) if isinstance(metrics, MetricRecord) else None
    return version if type(version) is int and 0 <= version <= offer.MAX_VERSION else None


def read_device(content: RecordDict) -> device.DeviceReport | None:
    """What a device says of itself, in any reply; None where it says nothing.

    Raises:
        PeerError: it is malformed.

    """
    record = content.get(device.RECORD)
    return device.parse_report(record) if isinstance(record, ConfigRecord) else None


def why_declined(content: RecordDict) -> str | None:
    """Why a device does not do now what it was asked to; None if it does. A reply that declines holds nothing else."""
    if set(content) != {device.RECORD}:
        return None
    try:
        said = read_device(content)
    except PeerError:
        return None
    return None if said is None or said.eligible else said.why_not or "not eligible now"


def read_figures(content: RecordDict) -> tuple[int, float]:
    """Examples and loss inside a train reply; ValueError if they are missing or make no sense."""
    metrics = _record(content, "metrics", MetricRecord)
    examples, loss = metrics.get("num-examples"), metrics.get("loss")
    if type(examples) is not int or not 1 <= examples <= MAX_EXAMPLES or not isinstance(loss, float):
        raise ValueError("reply has no num-examples from 1 to 2^28 and loss")
    if not math.isfinite(loss):
        raise ValueError("reply reports a loss that is not finite")
    return examples, loss


def read_held(content: RecordDict) -> bytes:
    """The id of the model version that a node says it holds; empty where it says none."""
    record = content.get("holds")
    held = record.get("model-id") if isinstance(record, ConfigRecord) else None
    return held if isinstance(held, bytes) and len(held) == ID_BYTES else b""


def read_lasts(content: RecordDict) -> bool | None:
    """Whether a node finds what it keeps again in another Flower run; None where it does not say."""
    metrics = content.get("metrics")
    lasts = metrics.get("state-lasts") if isinstance(metrics, MetricRecord) else None
    return bool(lasts) if type(lasts) is int else None


def read_metrics(content: RecordDict) -> dict[str, float]:
    """The finite figures inside an evaluate reply, `num-examples` (1 to 2^28) among them."""
    metrics = _record(content, "metrics", MetricRecord)
    figures = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    if not 1 <= figures.get("num-examples", 0) <= MAX_EXAMPLES or not all(map(math.isfinite, figures.values())):
        raise ValueError("reply has no finite figures with num-examples from 1 to 2^28")
    return figures


def _record(content: RecordDict, name: str, kind: type) -> Mapping[str, object]:
    record = content.get(name)
    if not isinstance(record, kind):
        raise ValueError(f"reply has no {kind.__name__} {name!r}")
    return record  # type: ignore[return-value]  # isinstance through a variable does not narrow
