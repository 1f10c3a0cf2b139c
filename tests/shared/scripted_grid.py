"""A fleet that answers by the script of a test: who takes how long, and what comes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.run import Run

from edge_runtime.updates import STYPE, TensorLayout, make_codec
from edge_runtime.updates.versions import Parcel
from server.gather import Asked
from server.link import Question
from simulations.grid import RUN_ID, SERVER_NODE_ID, assume_identity

LAYOUT = TensorLayout((("w", (3, 2)), ("b", (2,))))
CODEC = make_codec("float32")
Script = Callable[[int, int], float | None]  # (node, round) -> seconds until it answers; None: never

_GRIDS = itertools.count()


class ScriptedGrid:
    """As a Flower grid: replies are there once their time has come, and time goes on while the server waits."""

    def __init__(self, nodes: Sequence[int], script: Script, answer: Callable[[int, int], RecordDict | Error]) -> None:
        assume_identity(SERVER_NODE_ID)
        self.nodes, self.script, self.answer = list(nodes), script, answer
        self.now = 0.0
        self.run = Run.create_empty(RUN_ID)
        self.asked: list[tuple[int, int]] = []  # (node, round) of every message
        self.out: dict[str, tuple[float, Message]] = {}
        self._ids = itertools.count()
        self._mark = next(_GRIDS)  # no two grids know a message by the same id

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def get_node_ids(self) -> list[int]:
        return self.nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._post(message, self.now) for message in messages]

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        due = [one for one in ids if one in self.out and self.out[one][0] <= self.now]
        return [self._reply(one) for one in due]

    def _post(self, message: Message, since_s: float) -> str:
        message.metadata.__dict__["_message_id"] = message_id = f"{self._mark}.{next(self._ids)}"
        node, number = message.metadata.dst_node_id, int(message.metadata.group_id)
        self.asked.append((node, number))
        seconds = self.script(node, number)
        self.out[message_id] = (float("inf") if seconds is None else since_s + seconds, message)
        return message_id

    def _reply(self, message_id: str) -> Message:
        message = self.out.pop(message_id)[1]
        node = message.metadata.dst_node_id
        said = self.answer(node, int(message.metadata.group_id))
        assume_identity(node)
        reply = Message(said, reply_to=message)
        assume_identity(SERVER_NODE_ID)
        return reply


class TimedScriptedGrid(ScriptedGrid):
    """The same, as a grid with a time of its own."""

    def push_since(self, messages: Iterable[Message], since_s: float) -> list[str]:
        return [self._post(message, since_s) for message in messages]

    def next_reply(self, ids: Iterable[str], until_s: float, wanted: int) -> Message | None:
        first = min((one for one in ids if one in self.out), key=lambda one: self.out[one][0], default=None)
        if first is None or self.out[first][0] > until_s:
            self.now = max(self.now, until_s)
            return None
        self.now = max(self.now, self.out[first][0])
        return self._reply(first)

    def cancel(self, ids: Iterable[str]) -> None:
        for one in ids:
            self.out.pop(one, None)


def update(value: float, number: int, examples: int = 1) -> RecordDict:
    """A train reply whose update has this value everywhere."""
    payload = CODEC.encode_vector(np.full(LAYOUT.size, value, np.float32), LAYOUT, round_number=number)
    arrays = ArrayRecord({"delta": Array("uint8", (len(payload),), STYPE, payload)})
    return RecordDict({"update": arrays, "metrics": MetricRecord({"num-examples": examples, "loss": 0.5})})


def declined(reason: str) -> RecordDict:
    return RecordDict({"device": ConfigRecord({"eligible": False, "why_not": reason})})


def asked(
    number: int,
    nodes: Sequence[int],
    goal: int,
    more: Callable[[int], Sequence[int]] = lambda count: (),
    events: list[tuple[str, str]] | None = None,
) -> Asked:
    """A round for these nodes; (kind, client) of what is told of it go into `events`."""
    log = [] if events is None else events

    def parcels(those: Sequence[int]) -> dict[int, Parcel]:
        return dict.fromkeys(those, Parcel(b"model"))

    return Asked(
        number,
        Question({"round": number}),
        parcels(nodes),
        lambda answer: None,
        lambda: b"",
        goal,
        lambda count: parcels(more(count)),
        lambda kind, data: log.append((kind, data["client"])),
    )
