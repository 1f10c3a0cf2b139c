"""A Flower Grid without a network: messages go to client processes on this machine, over pipes.

Every message is settled: with the client's reply, or with a Flower error when the client raised, died, or took longer
than the message's time to live (the process is then killed and replaced).

The grid has a time of its own. A reply is due when the simulated device would have sent it (`traces.py`), and replies
come in that order, those due at once in the order in which the messages were pushed: what a server sees does not depend
on how many processes there were, nor on how fast they are. Time goes on when a reply is handed out, or when the server
waits. A client's state moves on when its reply is handed out; what is cancelled before never happened.
"""

from __future__ import annotations

import math
import os
import selectors
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from edge_runtime.errors import RunError
from simulations.channel import Channel
from simulations.faults import FaultConfig
from simulations.traces import EVALUATION_PASSES, Errand, FleetConfig, Traces

RUN_ID, SERVER_NODE_ID = 1, 1 << 62
REMEMBERED = 2  # blobs that a client process keeps: a round's model and Program go to all its clients alike
LOOKAHEAD = 2  # per worker, messages that are worked on or held back while an earlier one is out: bounds memory
START_TIMEOUT_S = 120.0
LEAST_TIMEOUT_S = 120.0  # of this machine's time for one message where its time to live is that of virtual devices
WORKER_ENV = {
    # Clients run side by side; each one's arithmetic stays on one core, and so the same in every run.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # A training step frees and takes the same megabytes: glibc is to keep them rather than fault them in again.
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}


def assume_identity(node_id: int, run_id: int = RUN_ID) -> None:
    """Tell Flower who this process is; outside a SuperLink's run, building a Message needs it."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, 0


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a client process is told first."""

    sys_path: list[str]
    faults: FaultConfig
    trainer: str  # the module in edge_runtime.train to load before the first message
    client_app: str


@dataclass(slots=True, eq=False)
class _Letter:
    """A message that was pushed and whose reply was not yet handed out."""

    message: Message
    turn: int  # in the order in which messages were pushed
    errand: Errand
    since_s: float
    due_s: float  # when the reply is there; until it is known, the earliest that it can be
    reply: Message | None = None
    state: RecordDict | None = None  # of the client, after the reply
    given: bool = False  # to a process

    @property
    def id(self) -> str:
        return self.message.metadata.message_id

    @property
    def node(self) -> int:
        return self.errand.node

    @property
    def expires_s(self) -> float:
        return self.since_s + self.message.metadata.ttl

    @property
    def key(self) -> tuple[float, int]:
        return self.due_s, self.turn


@dataclass(slots=True)
class _Worker:
    """One client process, its pipes, and the message it is working on."""

    process: subprocess.Popen[bytes]
    channel: Channel
    ready: bool = False
    letter: _Letter | None = None
    deadline_s: float = field(default=math.inf)


class InProcessGrid(Grid):
    """Clients 0 .. clients-1, served by `workers` processes. Use as a context manager: leaving it ends them.

    All get `node_config`; of `own_folders` each gets, under the same key, a folder of its own inside. Without `traces`
    nothing takes any time.
    """

    def __init__(
        self,
        clients: int,
        workers: int,
        *,
        node_config: Mapping[str, str | int | float | bool] | None = None,
        own_folders: Mapping[str, Path] | None = None,
        faults: FaultConfig | None = None,
        traces: Traces | None = None,
        trainer: str = "trainer",
        client_app: str = "clients.app:app",
        run_id: int = RUN_ID,
    ) -> None:
        assume_identity(SERVER_NODE_ID, run_id)
        self._clients = clients
        self._node_config = dict(node_config or {})
        self._own_folders = dict(own_folders or {})
        self._traces = traces or Traces(FleetConfig(), 0, clients, lambda node: 0)
        self._setup = WorkerSetup([path for path in sys.path if path], faults or FaultConfig(), trainer, client_app)
        self._states: dict[int, RecordDict] = {}  # Context.state of the clients that keep any
        self._state_turns: dict[int, int] = {}  # the turn of the letter that it is of
        self._changed: set[int] = set()  # whose state is not as it was when `changed_states` was asked last
        self._letters: dict[str, _Letter] = {}
        self._turn = 0
        self._now_s = 0.0
        self._run = Run.create_empty(run_id)
        self._workers = [self._start_worker() for _ in range(workers)]

    def __enter__(self) -> InProcessGrid:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all client processes; messages that are still out are lost."""
        for worker in self._workers:
            _stop(worker)
        self._workers = []

    def clock(self) -> float:
        """Simulated seconds: each client has a device of its own, so waiting for this machine's cores takes no time."""
        return self._now_s

    def pause(self, seconds: float) -> None:
        """Simulated seconds go by, and nothing of this machine's time."""
        self._now_s += seconds

    def changed_states(self) -> dict[int, bytes]:
        """The states of the clients that have answered since this was asked last, for `restore_states`."""
        changed, self._changed = sorted(self._changed), set()
        return {node: recorddict_to_proto(self._states[node]).SerializeToString() for node in changed}

    def restore_states(self, states: Mapping[int, bytes], now_s: float) -> None:
        """Go on with these, at that simulated time; clients that are not named have none."""
        self._now_s = now_s
        self._states = {node: recorddict_from_proto(ProtoRecordDict.FromString(one)) for node, one in states.items()}
        self._changed = set()

    @property
    def run(self) -> Run:
        return self._run

    def set_run(self, run: Run) -> None:
        self._run = run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return self._traces.online(self._now_s)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, status="online") for node in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; returns their ids in the same order."""
        return self.push_since(messages, self._now_s)

    def push_since(self, messages: Iterable[Message], since_s: float) -> Iterable[str]:
        """`push_messages`, as if that had been done at that time."""
        return [self._post(message, since_s).id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The reply to one of those messages, the one that is due first; waits for it."""
        reply = self.next_reply(message_ids, math.inf, len(self._letters))
        return [] if reply is None else [reply]

    def next_reply(self, message_ids: Iterable[str], until_s: float, wanted: int) -> Message | None:
        """The reply that is due next, and time goes on until then; None if none is due by `until_s`, when it is then.

        Processes work on as many as are `wanted`, and on others only where these might be due sooner.
        """
        letters = [self._letters[one] for one in message_ids if one in self._letters]
        while letters:
            letters.sort(key=lambda letter: letter.key)
            first = letters[0]
            if first.due_s > until_s:
                break
            if first.reply is not None:
                self._dispatch(letters[1:], wanted - 1)  # to be worked on while the server reads this one
                return self._hand_out(first)
            self._dispatch(letters, max(1, wanted))
            self._wait_for_one()
        if math.isfinite(until_s):
            self._now_s = max(self._now_s, until_s)
        return None

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Drop messages: those that no process works on are never run, of the others nothing is seen."""
        for one in message_ids:
            self._letters.pop(one, None)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        outstanding = set(self.push_messages(messages))
        until_s = math.inf if timeout is None else self._now_s + timeout
        replies: list[Message] = []
        while (reply := self.next_reply(outstanding, until_s, len(outstanding))) is not None:
            replies.append(reply)
            outstanding.discard(reply.metadata.reply_to_message_id)
        return replies

    def _post(self, message: Message, since_s: float) -> _Letter:
        message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
        errand = _errand(message)
        self._turn += 1
        letter = _Letter(message, self._turn, errand, since_s, since_s + self._traces.work_s(errand))
        self._letters[letter.id] = letter
        self._lose_if_late(letter)
        return letter

    def _lose_if_late(self, letter: _Letter) -> None:
        """A reply that is due once its device is offline, or its message no more valid, never comes."""
        gone = letter.due_s > self._traces.leaves_s(letter.node, letter.since_s)
        if not gone and letter.due_s <= letter.expires_s:
            return
        reason = "the device went offline" if gone else f"no reply within {letter.message.metadata.ttl:g} s"
        letter.due_s = letter.expires_s
        letter.reply = Message(Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason), reply_to=letter.message)
        letter.state = None

    def _hand_out(self, letter: _Letter) -> Message:
        assert letter.reply is not None
        del self._letters[letter.id]
        self._now_s = max(self._now_s, letter.due_s)
        if letter.state is not None and letter.turn > self._state_turns.get(letter.node, 0):
            self._states[letter.node], self._state_turns[letter.node] = letter.state, letter.turn
            self._changed.add(letter.node)
        return letter.reply

    def _start_worker(self) -> _Worker:
        (down, ours_down), (ours_up, up) = os.pipe(), os.pipe()
        try:
            # -P keeps the current folder off the child's path: a checkout there would hide the installed package.
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-P", "-m", "simulations.worker", str(down), str(up)],
                pass_fds=[down, up],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process to handle
                env={**os.environ, **WORKER_ENV},
            )
        finally:
            os.close(down)
            os.close(up)
        channel = Channel(ours_up, ours_down, remembered=REMEMBERED)
        worker = _Worker(process, channel, deadline_s=time.monotonic() + START_TIMEOUT_S)
        channel.send(self._setup)
        return worker

    def _dispatch(self, letters: Sequence[_Letter], wanted: int) -> None:
        """Give the first of these, as many as are wanted and may be held back, to idle processes."""
        if wanted < 1 or not letters:
            return
        idle = [worker for worker in self._workers if worker.ready and worker.letter is None]
        for letter in letters[: min(wanted, LOOKAHEAD * len(self._workers))]:
            if not idle:
                return
            if not letter.given and letter.reply is None and (waiting := self._first_before(letter)) is not None:
                self._give(idle.pop(), waiting)

    def _first_before(self, letter: _Letter) -> _Letter | None:
        """What its node has to answer first, this letter at the latest; None while the node works on that.

        A client answers one message after another, in the order of their pushing: its state goes from one to the next.
        """
        ahead = [one for one in self._letters.values() if one.node == letter.node and one.turn <= letter.turn]
        first = min((one for one in ahead if one.reply is None), key=lambda one: one.turn)
        return None if first.given else first

    def _give(self, worker: _Worker, letter: _Letter) -> None:
        node, message = letter.node, letter.message
        # The client's time runs from here, not from when the message was queued.
        message.metadata.__dict__["_created_at"] = time.time()
        # One thread: the processes share the machine among themselves.
        own = {name: str(folder / str(node)) for name, folder in self._own_folders.items()}
        if memory := self._traces.memory(node):
            own["memory-budget"] = memory
        config = {"threads": 1, **self._node_config, **own, "partition-id": node, "num-partitions": self._clients}
        context = Context(self._run.run_id, node, config, self._state_before(letter), {})
        limit_s = message.metadata.ttl
        if self._traces.moves:
            limit_s = max(limit_s, LEAST_TIMEOUT_S)
        worker.letter, worker.deadline_s = letter, time.monotonic() + limit_s
        letter.given = True
        try:
            worker.channel.send((message, context))
        except OSError:
            self._replace(worker, ErrorCode.CLIENT_APP_CRASHED, "the client's process ended before it was asked")

    def _state_before(self, letter: _Letter) -> RecordDict:
        """The client's state after all that it was asked before."""
        newest, state = self._state_turns.get(letter.node, 0), self._states.get(letter.node, RecordDict())
        for one in self._letters.values():
            if one.node == letter.node and newest < one.turn < letter.turn and one.state is not None:
                newest, state = one.turn, one.state
        return state

    def _wait_for_one(self) -> None:
        """Block until something happens to one message: a reply, a death, its deadline."""
        busy = [worker for worker in self._workers if worker.letter is not None or not worker.ready]
        if not busy:
            raise RunError("the simulation has no client process left to answer")
        timeout = max(0.0, min(worker.deadline_s for worker in busy) - time.monotonic())
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.channel, selectors.EVENT_READ, worker)
            ready = {key.fd for key, _ in selector.select(timeout)}
        for worker in busy:
            if worker.channel.fileno() in ready:
                self._read(worker)
            elif time.monotonic() >= worker.deadline_s:
                if worker.letter is None:
                    raise RunError(f"a client process was not ready after {START_TIMEOUT_S:g} s")
                reason = f"no reply within {worker.letter.message.metadata.ttl:g} s"
                self._replace(worker, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason)

    def _read(self, worker: _Worker) -> None:
        try:
            reply, state = worker.channel.receive()
        except (EOFError, OSError):
            if worker.letter is None:
                code = worker.process.wait()
                raise RunError(
                    f"a client process ended while starting, exit code {code}; what it printed stands above"
                ) from None
            code = worker.process.wait()
            self._replace(worker, ErrorCode.CLIENT_APP_CRASHED, f"the client's process died, exit code {code}")
            return
        if worker.letter is None:
            worker.ready = True
            return
        self._settle(worker, reply, state)

    def _replace(self, worker: _Worker, code: int, reason: str) -> None:
        """Kill a process that cannot be used any more and start another in its place."""
        assert worker.letter is not None
        self._settle(worker, Message(Error(code, reason), reply_to=worker.letter.message), None)
        _stop(worker)
        self._workers[self._workers.index(worker)] = self._start_worker()

    def _settle(self, worker: _Worker, reply: Message, state: RecordDict | None) -> None:
        letter, worker.letter, worker.deadline_s = worker.letter, None, math.inf
        assert letter is not None
        letter.reply, letter.state = reply, state
        if reply.has_error():
            silent = reply.error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
            letter.due_s = letter.expires_s if silent and self._traces.moves else letter.due_s
        else:
            letter.due_s += self._traces.upload_s(letter.errand, content_bytes(reply.content))
        self._lose_if_late(letter)


def _errand(message: Message) -> Errand:
    """What a message has its device do."""
    task = message.content.config_records.get("task")
    epochs = task.get("train.epochs", 0) if task is not None else 0
    passes = float(epochs) if isinstance(epochs, int | float) else 0.0
    if passes and message.metadata.message_type.startswith(MessageType.EVALUATE):
        passes = EVALUATION_PASSES
    number = message.metadata.group_id
    return Errand(
        message.metadata.dst_node_id, int(number) if number.isdigit() else 0, passes, content_bytes(message.content)
    )


def content_bytes(content: RecordDict) -> int:
    """Bytes of the arrays and byte strings in a message: what it weighs, but for names and small numbers."""
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    return arrays + sum(
        len(value)
        for record in content.config_records.values()
        for value in record.values()
        if isinstance(value, bytes)
    )


def _stop(worker: _Worker) -> None:
    worker.channel.close()
    worker.process.kill()
    worker.process.wait()
