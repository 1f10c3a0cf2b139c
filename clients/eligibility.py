"""`device_mod`: a device says how it is with its answers, and declines work when its owner's conditions are not met.

    app = ClientApp(mods=[device_mod, ...])

The conditions are the node config's keys of `edge_runtime/device/policy.py`. They are looked at when work comes, and
again when it is done: a device that training has made too hot says so with its update, and is left alone for a while.

What the device can't find out its owner may say: `device.metered = true`, or any other field of a `DeviceReport` after
`device.`, stands in place of what is found. `device-root` is the folder in which it looks, in place of "/"; a simulated
device has one of its own, or none (os.devnull), and `device.minute` for its clock, in minutes after midnight.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict

import edge_runtime
from clients.secure import is_setup, settle
from edge_runtime.config import parse_bytes
from edge_runtime.device.policy import DAY_MIN, RETRY_MEMORY_S, Policy
from edge_runtime.device.probe import Readings, probe
from edge_runtime.device.report import RECORD, DeviceReport, parse_report
from edge_runtime.errors import ConfigError, EdgeRuntimeError, MemoryLimitError, PeerError
from edge_runtime.kernels import native
from edge_runtime.secagg.transitions import RECORD as SECURE

_READINGS = {field.name for field in dataclasses.fields(Readings)}
_WORK = (MessageType.TRAIN, MessageType.EVALUATE)


def device_mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """A Flower client mod; see this module. Put it first."""
    shown = _as_it_is if _may_tell_use(message) else DeviceReport.without_use

    def declined(report: DeviceReport) -> Message:
        return Message(RecordDict({RECORD: ConfigRecord({**shown(report).record()})}), reply_to=message)

    if asks_for_work(message) and not (report := look(context.node_config)).eligible:
        if is_setup(message):
            settle(message, context)  # what an earlier secure round has left behind ends here in any case
        return declined(report)
    try:
        reply = call_next(message, context)
    except MemoryLimitError as error:
        report = look(context.node_config)
        return declined(dataclasses.replace(report, eligible=False, why_not=str(error), retry_s=RETRY_MEMORY_S))
    secret = SECURE in message.content and not asks_for_work(
        message
    )  # a report in each phase would cost a request each
    if not reply.has_error() and not secret:
        reply.content[RECORD] = ConfigRecord({**shown(look(context.node_config)).record()})
    return reply


def asks_for_work(message: Message) -> bool:
    """Whether the message is to be trained or evaluated on; the later phases of a secure round are not."""
    return message.metadata.message_type.split(".")[0] in _WORK and "task" in message.content


def look(node_config: Mapping[str, Any]) -> DeviceReport:
    """How this device is now.

    Raises:
        ConfigError: one of the node config's keys about it is of another type or out of range.

    """
    given = _given(node_config)
    root = Path(str(node_config.get("device-root", "/")))
    minute = given.pop("minute", None)
    now = dataclasses.replace(probe(root), **{name: given.pop(name) for name in _READINGS & given.keys()})
    verdict = Policy.from_mapping(node_config).judge(now, _minute() if minute is None else minute)
    own = _machine() if root == Path("/") else {}
    budget = parse_bytes(str(node_config.get("memory-budget", "")) or None)
    said: dict[str, Any] = {
        **own,
        "version": edge_runtime.__version__,
        "memory_budget": budget or None,
        **dataclasses.asdict(now),
        **dataclasses.asdict(verdict),
        **given,
    }
    if name := str(node_config.get("device-name", "")):
        said["name"] = name
    return DeviceReport(**said)


def _given(node_config: Mapping[str, Any]) -> dict[str, Any]:
    """What the keys `device.*` say."""
    values = {name.removeprefix("device."): value for name, value in node_config.items() if name.startswith("device.")}
    minute = values.pop("minute", None)
    if minute is not None and (type(minute) not in (int, float) or not 0 <= minute < DAY_MIN):
        raise ConfigError(f"node config: device.minute = {minute!r}: must be minutes after midnight, below {DAY_MIN}")
    if unknown := values.keys() - {field.name for field in dataclasses.fields(DeviceReport)}:
        raise ConfigError(f"node config: device.{min(unknown)}: no such key")
    values |= {name: float(values[name]) for name in ("temperature_c", "retry_s") if type(values.get(name)) is int}
    try:
        parse_report(values)
    except PeerError as error:
        raise ConfigError(f"node config: device.*: {str(error).removeprefix('device report: ')}") from error
    return values if minute is None else values | {"minute": minute}


def _may_tell_use(message: Message) -> bool:
    """Not where the server is to learn nothing of one client: what training takes grows with its examples."""
    task = message.content.get("task")
    noisy = isinstance(task, ConfigRecord) and bool(task.get("local.clip"))
    return not noisy and SECURE not in message.content


def _as_it_is(report: DeviceReport) -> DeviceReport:
    return report


def _minute() -> float:
    now = time.localtime()
    return now.tm_hour * 60 + now.tm_min + now.tm_sec / 60


@lru_cache(maxsize=1)
def _machine() -> Mapping[str, str]:
    """What does not change while a process lives."""
    try:
        isa = native.selected_isa()
    except EdgeRuntimeError:  # a node that trains by PyTorch needs no core
        isa = ""
    return {"name": platform.node(), "arch": platform.machine(), "isa": isa}
