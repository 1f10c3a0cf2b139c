"""A device's half of a roll-out: says which artefact it runs, installs what is offered, goes back when told to.

The owner decides, in Flower's node config: `artefact-root-key` (the `.pub` file of the publisher whose models are taken
here) and `artefact-path` (a folder of this node's own). Without them every offer is declined. `artefact-memory` and
`artefact-max-size`, texts such as "512 MiB", bound what a model may take in its trial, and the size of an offer.

What a message brings is believed as far as the publisher's signature reaches: see `edge_runtime/deploy/trust/slots.py`.
An order to go back needs no signature, for it leads only to the model that ran here before; to none at all only while
the first one is still on trial.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from edge_runtime.config import parse_bytes
from edge_runtime.deploy.offer import RECORD, RUNNING, STYPE, SUFFIXES, Ask, Report, manifest_digest, unpack_files
from edge_runtime.deploy.trust.manifest import MANIFEST
from edge_runtime.deploy.trust.runtimes import has_runtime
from edge_runtime.deploy.trust.sandbox import Limits
from edge_runtime.deploy.trust.slots import MAX_ARTEFACT_BYTES, Slots
from edge_runtime.deploy.trust.slots import SUFFIXES as PREFERRED
from edge_runtime.deploy.trust.state import Trust
from edge_runtime.errors import ArtefactError, ConfigError, PeerError

_LOG = logging.getLogger(__name__)
DECLINED = "no roll-outs are taken here: the node config has no artefact-root-key and artefact-path"


@dataclass(frozen=True, slots=True)
class ArtefactConfig:
    """The node config's keys `artefact-*`. Sizes are in bytes; `memory` is 0 for the trial's own limit."""

    root_key: str = ""
    path: str = ""
    memory: int = 0
    max_size: int = MAX_ARTEFACT_BYTES

    @classmethod
    def from_node_config(cls, values: Mapping[str, Any]) -> ArtefactConfig:
        """ConfigError if only one of path and root key is given, or a size is none."""
        root_key, path = (str(values.get(f"artefact-{name}", "")) for name in ("root-key", "path"))
        if bool(root_key) != bool(path):
            raise ConfigError("node config: artefact-root-key and artefact-path go together; give both or neither")
        memory, size = (parse_bytes(str(values.get(f"artefact-{name}", "")) or None) for name in ("memory", "max-size"))
        return cls(root_key, path, memory, size or MAX_ARTEFACT_BYTES)

    def slots(self, first: str = "") -> Slots:
        """The node's slots; a model file of suffix `first` is preferred."""
        suffixes = sorted(PREFERRED, key=lambda suffix: suffix != first)
        limits = Limits(memory_bytes=self.memory) if self.memory else None
        return Slots(self.path, Path(self.root_key), suffixes=suffixes, limits=limits, max_bytes=self.max_size)


def running(context: Context) -> dict[str, int]:
    """The version that this node runs, as a figure for its replies; nothing on a node that takes no artefacts."""
    if not context.node_config.get("artefact-path"):
        return {}
    slots = ArtefactConfig.from_node_config(context.node_config).slots()
    try:
        slot = slots.current()
    except ArtefactError as error:  # no reason to train no more
        _LOG.warning("the artefact of this node cannot be told: %s", error)
        slot = None
    return {RUNNING: slot.version if slot else 0}


def answer_artefact(message: Message, context: Context) -> Message:
    """The reply to a message of a roll-out.

    Raises:
        PeerError: it is none.

    """
    record = message.content.get(RECORD)
    asked = record.get("ask") if isinstance(record, ConfigRecord) else None
    if not isinstance(record, ConfigRecord) or asked not in [ask.value for ask in Ask]:
        raise PeerError("message has no record of a roll-out, and other questions are not answered here")
    config = ArtefactConfig.from_node_config(context.node_config)
    report = _answer(Ask(asked), config, message, record) if config.path else Report(reason=DECLINED)
    return Message(RecordDict({RECORD: ConfigRecord(report.record())}), reply_to=message)


def _answer(asked: Ask, config: ArtefactConfig, message: Message, record: ConfigRecord) -> Report:
    """Whatever is wrong with what is asked, the model before it goes on running, and the report says why."""
    try:
        return _ANSWERS[asked](config, message, record)
    except ArtefactError as error:
        return _report(config, str(error))


def _state(config: ArtefactConfig, message: Message, record: ConfigRecord) -> Report:
    return _report(config)


def _install(config: ArtefactConfig, message: Message, record: ConfigRecord) -> Report:
    arrays = message.content.get("files")
    array = arrays.get(RECORD) if isinstance(arrays, ArrayRecord) else None
    if array is None or array.stype != STYPE:
        raise ArtefactError(f"the offer brings no files of type {STYPE}")
    if len(array.data) > config.max_size:
        raise ArtefactError(f"the offer is of {len(array.data)} bytes; at most {config.max_size} are taken here")
    files = unpack_files(array.data)
    suffix = next((suffix for suffix in PREFERRED if any(name.endswith(suffix) for name in files.names)), "")
    slots = config.slots(suffix)
    version = slots.install(files.chunks).version
    trial = next((event for event in reversed(slots.events()) if event.get("event") == "tried"), {"version": 0})
    return _report(config, trial=trial if trial.get("version") == version else {})


def _check(config: ArtefactConfig, message: Message, record: ConfigRecord) -> Report:
    """Open what runs here as its service would: a model that was damaged since gives way to the one before it."""
    try:
        config.slots().open()
    except ArtefactError as error:
        return replace(_report(config, str(error)), version=0, digest="")  # what stands there runs no more
    return _report(config)


def _roll_back(config: ArtefactConfig, message: Message, record: ConfigRecord) -> Report:
    slots = config.slots()
    slot, state = slots.current(), slots.state
    if slot is None or slot.version != record.get("version"):
        return _report(config)
    if state.previous is None and state.trust is Trust.CONFIRMED:
        raise ArtefactError("there is no model to go back to, and this one has proved healthy here")
    slots.fall_back(slot, "the roll-out was halted")
    return _report(config)


_ANSWERS: Mapping[Ask, Callable[[ArtefactConfig, Message, ConfigRecord], Report]] = {
    Ask.STATE: _state,
    Ask.INSTALL: _install,
    Ask.CHECK: _check,
    Ask.ROLL_BACK: _roll_back,
}


def _report(config: ArtefactConfig, reason: str = "", trial: Mapping[str, Any] | None = None) -> Report:
    """What runs here and what is taken, as it stands now, and how a trial went."""
    slots = config.slots()
    try:
        slot, floor = slots.current(), slots.state.floor
        manifest = (slot.folder / MANIFEST).read_bytes() if slot else b""
    except (ArtefactError, OSError) as error:  # somebody has been in the folder: nothing is taken until that is mended
        return Report(reason=reason or str(error))
    figures = {name: float(trial[name]) for name in ("difference", "latency_s") if trial and name in trial}
    return Report(
        version=slot.version if slot else 0,
        digest=manifest_digest(manifest) if slot else "",
        floor=floor,
        formats=tuple(name for name, suffix in SUFFIXES.items() if has_runtime(suffix)),
        max_bytes=config.max_size,
        reason=reason,
        **figures,
    )
