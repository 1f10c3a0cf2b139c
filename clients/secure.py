"""A client's half of a secure round over Flower: hello, then training and encoding, then the protocol's phases.

Each message may meet a new process, so the node's part of the round in progress, secrets included, is handed on in
Flower's `Context.state`: in the node's memory, for the round alone, never in a file. It is wiped when the node's part
ends, well or badly, and when the next round comes. Flower gives a node's messages the state one after another; a server
that sends one node two messages at once may find it at work on both. With `state-path` in the node config each step of
a round is claimed on the disk first and taken once all the same.

What is wrong with a round, or with this node, is answered with the protocol's Abort: it costs this client its part.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict

from clients.device import has_aes, open_device, open_key
from clients.exchange import round_seeds
from clients.records import client_number, open_claims, read_work
from clients.secure_config import SecureConfig
from edge_runtime.errors import PeerError
from edge_runtime.privacy.words import KEY_BYTES as NOISE_KEY_BYTES
from edge_runtime.secagg import Client, Contribution, Packed, RoundConfig
from edge_runtime.secagg import messages as m
from edge_runtime.secagg.config import MAX_CLIENTS
from edge_runtime.secagg.keys import KEY_BYTES, device_id, sign_hello
from edge_runtime.secagg.transitions import FIRST, HELLO, RECORD
from edge_runtime.sums import SumEncoder, agreed_encoder, work_hash
from edge_runtime.train.config import RoundTask
from edge_runtime.updates.delta import FloatVector
from edge_runtime.updates.versions import model_hash

_KEPT = "hedgerow.secagg"
_LOG = logging.getLogger(__name__)

# What training gives: the delta of the tensors that move, and the number of examples that made it.
Train = Callable[[], tuple[FloatVector, int]]


def settle(message: Message, context: Context) -> Message | None:
    """The reply to a message that asks for no training; None where the work is still to be done.

    Raises:
        PeerError: training or evaluation in the clear, on a node that does not allow it.

    """
    phase = _phase(message)
    if phase == HELLO:
        return _hello(message, context)
    if phase == FIRST:
        _Kept(context).wipe()  # of an earlier round, whatever becomes of this one
        return None
    if phase:
        return _reply(message, _step(_bytes(message, "message"), context))
    if SecureConfig.from_node_config(context.node_config).only:
        raise PeerError("this node answers under secure aggregation alone: its node config says secure-only")
    return None


def is_setup(message: Message) -> bool:
    """Whether the message asks for training whose result goes under masks: `begin` does it."""
    return _phase(message) == FIRST


def _phase(message: Message) -> str:
    """The phase of secure aggregation that a message is part of; empty for an ordinary one."""
    record = message.content.get(RECORD)
    phase = record.get("phase") if isinstance(record, ConfigRecord) else None
    return phase if isinstance(phase, str) and message.metadata.message_type == MessageType.TRAIN else ""


def begin(
    message: Message, context: Context, task: RoundTask, weights: FloatVector, size: int, train: Train
) -> Message:
    """Agree on the round, train, and keep the encoded update of `size` values for the phases to come."""
    data, devices, kept = _bytes(message, "message"), _bytes(message, "devices"), _Kept(context)
    work = work_hash(model_hash(weights), *read_work(message))
    try:
        joined = _Joined.of(data, devices, context, task, work, size)
    except PeerError as error:
        return _reply(message, _abort(str(error)))
    try:
        lanes = joined.encode(*train(), task, client_number(context))
    except Exception as error:  # whatever training raises costs this client alone, and its text may tell of the data
        _LOG.warning("round %s: this node abstains: %s: %s", task.round, type(error).__name__, error)
        return _reply(message, _abort(f"abstains: {type(error).__name__}"))
    kept.write(joined.client.save(), joined.devices, lanes.tobytes())
    return _reply(message, joined.answer)


@dataclass(frozen=True, slots=True, repr=False)
class _Joined:
    """A round that this node agreed to."""

    client: Client
    agreed: RoundConfig
    encoder: SumEncoder
    devices: bytes
    answer: bytes

    @classmethod
    def of(cls, data: bytes, devices: bytes, context: Context, task: RoundTask, work: bytes, size: int) -> _Joined:
        """Check everything that is asked, and enter the round; PeerError names what is below this node's floor."""
        config = SecureConfig.from_node_config(context.node_config)
        setup = m.decode(data, None)
        if not isinstance(setup, m.Setup):
            raise PeerError("a secure round starts with its settings")
        agreed = setup.config
        if (agreed.run, agreed.round) != (context.run_id % 2**64, task.round):
            raise PeerError("the settings are of another run or round than the task")
        encoder = agreed_encoder(agreed, size)
        config.check_noise(encoder, agreed)
        listed = _split(devices, agreed.clients)
        device = open_device(config, context, listed)
        if device.key.public not in listed:
            raise PeerError("the cohort's device keys are without this node's, which may be new")
        client = Client(device, _no_input, work)
        (answer,) = client.receive(data)
        if not open_claims(context).enter(agreed.round):
            client.end()
            raise PeerError(f"round {agreed.round}: this node took part in it before, or in a later one")
        return cls(client, agreed, encoder, devices, answer)

    def encode(self, delta: FloatVector, examples: int, task: RoundTask, client: int) -> m.Words:
        """The lanes of the update; a weight of the number of examples where the round has weights."""
        rounding = np.random.default_rng(round_seeds(task, client)[2])
        values = self.encoder.encode(delta, rounding, os.urandom(NOISE_KEY_BYTES) if self.encoder.noise else None)
        if self.agreed.settings.wrap:
            values = self.agreed.lanes.wrapped(values)  # noise can take a value out of its lane
        weight = examples if self.agreed.settings.max_weight else 1
        return Contribution(values, weight).words(self.agreed)


def _step(data: bytes, context: Context) -> bytes:
    """One more message of the round in progress, and the answer to it. Whatever goes wrong ends this node's part."""
    kept = _Kept(context)
    try:
        client = kept.restore()
        assert client.agreed is not None
        kind = m.kind_of(data)
        if not open_claims(context).once(client.agreed.round, kind.__name__ if kind else "unknown"):
            raise PeerError("this step of the round was taken before")
        answers = client.receive(data)
    except PeerError as error:
        kept.wipe()
        return _abort(str(error))
    except BaseException:
        kept.wipe()
        raise
    if client.phase == "Ended":
        kept.wipe()
    else:
        kept.replace(client)
    return answers[0] if answers else b""


class _Kept:
    """Its part of the round in progress: the client, the listed device keys, and its input until it is sent."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def write(self, client: bytes, devices: bytes, lanes: bytes) -> None:
        self._context.state[_KEPT] = ConfigRecord({"client": client, "devices": devices, "lanes": lanes})

    def replace(self, client: Client) -> None:
        """Go on with the client as it is now."""
        lanes = self._read("lanes") if client.phase in ("Advertised", "Shared") else b""
        self.write(client.save(), self._read("devices"), lanes)

    def restore(self) -> Client:
        """PeerError if no round is in progress."""
        if _KEPT not in self._context.state:
            raise PeerError("no secure round is in progress on this node")
        config = SecureConfig.from_node_config(self._context.node_config)
        devices = _split(self._read("devices"), MAX_CLIENTS)
        device = open_device(config, self._context, devices)
        return Client.restore(self._read("client"), device, lambda _: Packed(np.frombuffer(self._read("lanes"), "<u8")))

    def wipe(self) -> None:
        self._context.state.pop(_KEPT, None)

    def _read(self, name: str) -> bytes:
        record = self._context.state[_KEPT]
        assert isinstance(record, ConfigRecord)
        content = record[name]
        assert isinstance(content, bytes)
        return content


def _hello(message: Message, context: Context) -> Message:
    """Who this node is, and which ciphers its processor does fast."""
    key = open_key(SecureConfig.from_node_config(context.node_config), context)
    record = ConfigRecord(
        {
            "device": key.public,
            "proof": sign_hello(key, context.run_id % 2**64, context.node_id % 2**64),
            "prgs": ["chacha20", "aes-256-ctr"] if has_aes() else ["chacha20"],
        }
    )
    return Message(RecordDict({RECORD: record}), reply_to=message)


def _no_input(_: RoundConfig) -> Packed:
    raise AssertionError("an input is asked for once the client was restored with it")


def _split(devices: bytes, most: int) -> list[bytes]:
    """The listed public keys: as many as the cohort has clients at most, no id twice."""
    if len(devices) % KEY_BYTES or len(devices) > most * KEY_BYTES:
        raise PeerError(f"{len(devices)} bytes of device keys; the cohort has up to {most} of {KEY_BYTES}")
    listed = [devices[at : at + KEY_BYTES] for at in range(0, len(devices), KEY_BYTES)]
    if len({device_id(key) for key in listed}) < len(listed):
        raise PeerError("a device key is listed twice")
    return listed


def _bytes(message: Message, name: str) -> bytes:
    record = message.content.get(RECORD)
    content = record.get(name) if isinstance(record, ConfigRecord) else None
    if not isinstance(content, bytes):
        raise PeerError(f"message has no bytes {name!r} in its record {RECORD!r}")
    return content


def _abort(reason: str) -> bytes:
    return m.encode(m.Abort(reason), None)


def _reply(message: Message, data: bytes) -> Message:
    return Message(RecordDict({RECORD: ConfigRecord({"message": data})}), reply_to=message)
