"""What stands where in the Flower messages between server and clients, as a client reads and writes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from clients.state import Claims, ClientState, FileStore
from edge_runtime.config import from_flat
from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.train.config import RoundTask
from edge_runtime.updates import STYPE
from edge_runtime.updates.versions import CHAIN_STYPE, Parcel

Figure = int | float | list[int] | list[float]  # what Flower lets a MetricRecord hold
STATE = "hedgerow.state"  # in Flower's state of a node in a run: what the run's key stands for
SECURE = "hedgerow.secure"  # and what is of this Flower run alone
RUN = "hedgerow.run"  # the key that this Flower run goes by
BESIDE = ("program", "model-id", "personal", "control-round")  # stand in the task's record and are no settings
MAX_ROUND = 2**31 - 1


def read_task(message: Message) -> RoundTask:
    """What the message asks for, checked: nothing is believed before it stands inside a config's bounds."""
    settings = _task_record(message)
    try:
        # The types are a part of what is cached: 1, 1.0 and True are equal. A list has no hash, and fits no key.
        items = [(k, type(v), tuple(v) if isinstance(v, list) else v) for k, v in settings.items() if k not in BESIDE]
        return _task(tuple(items))
    except ConfigError as error:
        raise PeerError(f"message's task: {error}") from error


# A simulation's process is sent the same task for every client of a round.
@lru_cache(maxsize=1)
def _task(settings: tuple[tuple[str, type, Any], ...]) -> RoundTask:
    return from_flat(RoundTask, {name: kind(value) for name, kind, value in settings})


def read_program(message: Message) -> bytes:
    """The packed Program; empty if there is none."""
    program = _task_record(message).get("program", b"")
    return program if isinstance(program, bytes) else b""


def read_work(message: Message) -> tuple[dict[str, Any], bytes]:
    """The task's settings as they came, and the packed Program: what all clients of a secure round are to get alike."""
    settings = {name: value for name, value in _task_record(message).items() if name not in BESIDE}
    return settings, read_program(message)


def read_model(message: Message) -> Parcel:
    """The model as it was sent, not yet decoded."""
    arrays = message.content.get("model")
    array = arrays.get("weights") if isinstance(arrays, ArrayRecord) else None
    if array is None or array.stype not in (STYPE, CHAIN_STYPE):
        raise PeerError(f"message has no weights of type {STYPE} or {CHAIN_STYPE}")
    version = _task_record(message).get("model-id", b"")
    return Parcel(array.data, array.stype == STYPE, version if isinstance(version, bytes) else b"")


def read_personal(message: Message) -> bytes:
    """The values that this client's own layers start from; empty where the message does not bring them."""
    values = _task_record(message).get("personal", b"")
    return values if isinstance(values, bytes) else b""


def read_control_round(message: Message) -> int:
    """The last round of this client's whose update the server has counted; 0 for none."""
    counted = _task_record(message).get("control-round", 0)
    if type(counted) is not int or not 0 <= counted <= MAX_ROUND:
        raise PeerError("message's control-round is no round")
    return counted


def _task_record(message: Message) -> ConfigRecord:
    settings = message.content.get("task")
    if not isinstance(settings, ConfigRecord) or not isinstance(message.content.get("model"), ArrayRecord):
        raise PeerError("message has no task and model records")
    return settings


def answer(message: Message, figures: Mapping[str, Figure], held: bytes = b"", update: bytes | None = None) -> Message:
    """The reply: figures, the version that the node holds where versions are told apart, and an update, if any."""
    content = RecordDict({"metrics": MetricRecord(dict(figures))})
    if update is not None:
        content["update"] = ArrayRecord({"delta": Array("uint8", (len(update),), STYPE, update)})
    return holding(Message(content, reply_to=message), held)


def holding(reply: Message, held: bytes) -> Message:
    """The reply, with the version that the node holds where versions are told apart."""
    if held:
        reply.content["holds"] = ConfigRecord({"model-id": held})
    return reply


def client_number(context: Context) -> int:
    """What distinguishes this client's random numbers from another's; stable over rounds."""
    partition = context.node_config.get("partition-id", -1)
    return partition if type(partition) is int and partition >= 0 else context.node_id % 2**63


def read_run(message: Message) -> int:
    """The key that the message's task brings; 0 for none."""
    settings = message.content.get("task") if message.has_content() else None
    run = settings.get("run", 0) if isinstance(settings, ConfigRecord) else 0
    return run if type(run) is int and 0 <= run < 2**63 else 0


class ContextStore:
    """A `Store` in Flower's own state of a node in a run."""

    def __init__(self, state: RecordDict, record: str = STATE) -> None:
        self._state, self._record = state, record

    @property
    def lasts(self) -> bool:
        return RUN in self._state  # whoever serves this node has written it there, and hands the state on: `adopt`

    def read(self, name: str, most: int) -> bytes | None:
        record = self._state.get(self._record)
        array = record.get(name) if isinstance(record, ArrayRecord) else None
        return array.data if isinstance(array, Array) else None

    def write(self, name: str, content: bytes) -> None:
        record = self._state.setdefault(self._record, ArrayRecord())
        assert isinstance(record, ArrayRecord)
        record[name] = Array("uint8", (len(content),), "hedgerow.state.v1", content)

    def claim(self, round_number: int, step: str) -> bool:
        return True  # messages get the state one after another, with what the last one left


def open_state(context: Context, task: RoundTask) -> ClientState:
    """What the node of `context` keeps for the task's run; nothing is made or read before it is used.

    Raises:
        PeerError: this Flower run goes by another key.

    """
    path = _state_path(context)
    if path is None:
        return ClientState(ContextStore(context.state))
    run = task.run or context.run_id % 2**64
    if _bound(context.state, run) != run:
        raise PeerError("the task's run is another than that of this Flower run's first task")
    return ClientState(FileStore(path, run))


def open_claims(context: Context) -> Claims:
    """Which secure rounds the node was in during the Flower run of `context`."""
    path = _state_path(context)
    return Claims(ContextStore(context.state, SECURE) if path is None else FileStore(path, context.run_id, "secure"))


def adopt(state: RecordDict, run: int, others: Iterable[RecordDict]) -> None:
    """Let the state of a new Flower run go on from that of an older one of the same run, which then has none."""
    if RUN in state:
        return
    _bound(state, run)
    for other in others:
        if other is not state and RUN in other and _bound(other, run) == run and STATE in other:
            state[STATE] = other.pop(STATE)
            return


def _bound(state: RecordDict, run: int) -> int:
    """The key that the Flower run of this state goes by: this one, if it is the first."""
    record = state.setdefault(RUN, ConfigRecord({"run": str(run)}))  # as text, for Flower's numbers end at 2^63
    assert isinstance(record, ConfigRecord)
    return int(str(record["run"]))


def _state_path(context: Context) -> Path | None:
    path = str(context.node_config.get("state-path", ""))
    return Path(path) if path else None
