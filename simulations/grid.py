"""A Flower Grid without a network: messages go to client processes on this machine, over pipes.

Every message is settled: with the client's reply, or with a Flower error when the client raised, died, or took longer
than the message's time to live (the process is then killed and replaced). Replies come back in the order in which the
messages were pushed, so that a sum over them does not depend on how many processes there were.
"""

from __future__ import annotations

import itertools
import os
import selectors
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
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

RUN_ID, SERVER_NODE_ID = 1, 1 << 62
REMEMBERED = 2  # blobs that a client process keeps: a round's model and Program go to all its clients alike
LOOKAHEAD = 2  # replies held back per worker while an earlier one is still out: bounds memory
START_TIMEOUT_S = 120.0
WORKER_ENV = {
    # Clients run side by side; each one's arithmetic stays on one core, and so the same in every run.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # A training step frees and takes the same megabytes: glibc is to keep them rather than fault them in again.
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}


def assume_identity(node_id: int) -> None:
    """Tell Flower who this process is; outside a SuperLink's run, building a Message needs it."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, node_id, 0


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a client process is told first."""

    sys_path: list[str]
    faults: FaultConfig
    trainer: str  # the module in edge_runtime.train to load before the first message
    client_app: str


@dataclass(slots=True)
class _Worker:
    """One client process, its pipes, and the message it is working on."""

    process: subprocess.Popen[bytes]
    channel: Channel
    ready: bool = False
    message: Message | None = None
    deadline_s: float = field(default=float("inf"))


class InProcessGrid(Grid):
    """Clients 0 .. clients-1, served by `workers` processes. Use as a context manager: leaving it ends them.

    All get `node_config`; of `own_folders` each gets, under the same key, a folder of its own inside.
    """

    def __init__(
        self,
        clients: int,
        workers: int,
        *,
        node_config: Mapping[str, str | int | float | bool] | None = None,
        own_folders: Mapping[str, Path] | None = None,
        faults: FaultConfig | None = None,
        trainer: str = "trainer",
        client_app: str = "clients.app:app",
    ) -> None:
        assume_identity(SERVER_NODE_ID)
        self._clients = clients
        self._node_config = dict(node_config or {})
        self._own_folders = dict(own_folders or {})
        self._setup = WorkerSetup([path for path in sys.path if path], faults or FaultConfig(), trainer, client_app)
        self._states: dict[int, RecordDict] = {}  # Context.state of the clients that keep any
        self._changed: set[int] = set()  # whose state is not as it was when `changed_states` was asked last
        self._order: deque[str] = deque()  # pushed and not yet handed out, oldest first
        self._waiting: deque[Message] = deque()  # pushed and not yet given to a process
        self._settled: dict[str, Message] = {}
        self._run = Run.create_empty(RUN_ID)
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
        return 0.0

    def pause(self, seconds: float) -> None:
        """Simulated seconds go by, and nothing of this machine's time."""

    def changed_states(self) -> dict[int, bytes]:
        """The states of the clients that have answered since this was asked last, for `restore_states`."""
        changed, self._changed = sorted(self._changed), set()
        return {node: recorddict_to_proto(self._states[node]).SerializeToString() for node in changed}

    def restore_states(self, states: Mapping[int, bytes]) -> None:
        """Go on with these; clients that are not named have none."""
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
        return range(self._clients)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, status="online") for node in range(self._clients)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; returns their ids in the same order."""
        pushed = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message_id = uuid.uuid4().hex
            self._order.append(message_id)
            self._waiting.append(message)
            pushed.append(message_id)
        self._dispatch()
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to those messages, oldest message first; waits until the oldest one is settled."""
        return self._pull(set(message_ids), float("inf"))

    def _pull(self, wanted: set[str], until_s: float) -> list[Message]:
        """The settled replies at the head of what is wanted, once there is one or the (monotonic) time has come."""
        replies: list[Message] = []
        while not replies and (out := [message_id for message_id in self._order if message_id in wanted]):
            for message_id in itertools.takewhile(self._settled.__contains__, out):
                self._order.remove(message_id)
                replies.append(self._settled.pop(message_id))
            if time.monotonic() >= until_s:
                break
            self._dispatch()
            if not replies:
                self._wait_for_one(until_s)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        outstanding = set(self.push_messages(messages))
        until_s = float("inf") if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while outstanding and (settled := self._pull(outstanding, until_s)):
            replies += settled
            outstanding -= {reply.metadata.reply_to_message_id for reply in settled}
        return replies

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

    def _dispatch(self) -> None:
        """Give waiting messages to idle processes, as far as the look-ahead allows; one at least is always at work."""
        for worker in self._workers:
            busy = sum(other.message is not None for other in self._workers)
            full = len(self._settled) + busy >= LOOKAHEAD * len(self._workers)
            if not self._waiting or (full and busy):
                return
            if worker.ready and worker.message is None:
                self._give(worker, self._waiting.popleft())

    def _give(self, worker: _Worker, message: Message) -> None:
        node = message.metadata.dst_node_id
        # The client's time runs from here, not from when the message was queued.
        message.metadata.__dict__["_created_at"] = time.time()
        # One thread: the processes share the machine among themselves.
        own = {name: str(folder / str(node)) for name, folder in self._own_folders.items()}
        config = {"threads": 1, **self._node_config, **own, "partition-id": node, "num-partitions": self._clients}
        context = Context(RUN_ID, node, config, self._states.get(node, RecordDict()), {})
        worker.message, worker.deadline_s = message, time.monotonic() + message.metadata.ttl
        try:
            worker.channel.send((message, context))
        except OSError:
            self._replace(worker, ErrorCode.CLIENT_APP_CRASHED, "the client's process ended before it was asked")

    def _wait_for_one(self, until_s: float) -> None:
        """Block until something happens to one message (a reply, a death, its deadline), or until the time has come."""
        busy = [worker for worker in self._workers if worker.message is not None or not worker.ready]
        if not busy:
            raise RunError("the simulation has no client process left to answer")
        next_s = min([until_s, *(worker.deadline_s for worker in busy)])
        timeout = None if next_s == float("inf") else max(0.0, next_s - time.monotonic())
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.channel, selectors.EVENT_READ, worker)
            ready = {key.fd for key, _ in selector.select(timeout)}
        for worker in busy:
            if worker.channel.fileno() in ready:
                self._read(worker)
            elif time.monotonic() >= worker.deadline_s:
                if worker.message is None:
                    raise RunError(f"a client process was not ready after {START_TIMEOUT_S:g} s")
                reason = f"no reply within {worker.message.metadata.ttl:g} s"
                self._replace(worker, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, reason)

    def _read(self, worker: _Worker) -> None:
        try:
            reply, state = worker.channel.receive()
        except (EOFError, OSError):
            if worker.message is None:
                code = worker.process.wait()
                raise RunError(
                    f"a client process ended while starting, exit code {code}; what it printed stands above"
                ) from None
            code = worker.process.wait()
            self._replace(worker, ErrorCode.CLIENT_APP_CRASHED, f"the client's process died, exit code {code}")
            return
        if worker.message is None:
            worker.ready = True
            return
        node = worker.message.metadata.dst_node_id
        self._states[node] = state
        self._changed.add(node)
        self._settle(worker, reply)

    def _replace(self, worker: _Worker, code: int, reason: str) -> None:
        """Kill a process that cannot be used any more and start another in its place."""
        assert worker.message is not None
        error = Message(Error(code, reason), reply_to=worker.message)
        self._settle(worker, error)
        _stop(worker)
        self._workers[self._workers.index(worker)] = self._start_worker()

    def _settle(self, worker: _Worker, reply: Message) -> None:
        assert worker.message is not None
        self._settled[worker.message.metadata.message_id] = reply
        worker.message, worker.deadline_s = None, float("inf")


def _stop(worker: _Worker) -> None:
    worker.channel.close()
    worker.process.kill()
    worker.process.wait()
