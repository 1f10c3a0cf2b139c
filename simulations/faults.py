"""Clients that misbehave, at rates the scenario sets. Which client does what, and when, follows from the seed alone."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ConfigRecord, Context, Message

from edge_runtime.config import key
from edge_runtime.errors import ConfigError, EdgeRuntimeError
from edge_runtime.secagg import PHASES
from edge_runtime.secagg.messages import Abort, encode
from edge_runtime.secagg.transitions import RECORD
from edge_runtime.updates import wire

POISONS = ("sign_flip", "noise")

App = Callable[[Message, Context], Message]
HANG_S = 3600.0
_DUE = "simulations.fault"  # in a client's state: the fault it is yet to meet in this round


class SimulatedFaultError(EdgeRuntimeError):
    """A failure that the scenario asked for."""


@dataclass(frozen=True, slots=True)
class FaultConfig:
    """Share of clients per round that drop out, raise, hang, die, or send back NaN, wrong shapes or too few tensors.

    `poison` is the share of all clients that are hostile, the same ones for the whole run. They train, and send
    something else: their update times -`poison_scale` ("sign_flip"), or Gaussian noise with `poison_scale` times its
    norm ("noise").

    Under secure aggregation a client meets its fault in `phase`, or if that is empty in one drawn for it.

    In a roll-out a share `unfit` of all devices has too little memory for any model, and on a share `relapse` what was
    installed proves unhealthy; see artefact_faults.py.
    """

    dropout: float = key(0.0, low=0, high=1)
    error: float = key(0.0, low=0, high=1)
    hang: float = key(0.0, low=0, high=1)
    crash: float = key(0.0, low=0, high=1)
    nan: float = key(0.0, low=0, high=1)
    wrong_shape: float = key(0.0, low=0, high=1)
    missing_tensor: float = key(0.0, low=0, high=1)
    poison: float = key(0.0, low=0, high=1)
    poison_kind: str = key("sign_flip", choices=POISONS)
    poison_scale: float = key(10.0, above=0, high=1e6)
    phase: str = key("", choices=("", *PHASES))
    unfit: float = key(0.0, low=0, high=1)
    relapse: float = key(0.0, low=0, high=1)

    def __post_init__(self) -> None:
        if (total := math.fsum(self.rates.values())) > 1:
            raise ConfigError(f"faults: the rates add up to {total:g}; must be <= 1")

    @property
    def rates(self) -> dict[str, float]:
        """Of each fault that is drawn anew in every round."""
        drawn = dataclasses.asdict(self).items()
        return {name: rate for name, rate in drawn if not name.startswith(("phase", "poison", "unfit", "relapse"))}

    def poisoners(self, seed: int, clients: int) -> frozenset[int]:
        """Who of clients 0 .. clients-1 is hostile: a share of `poison`, rounded."""
        order = np.random.default_rng([seed, clients, 0xBAD]).permutation(clients)
        return frozenset(order[: round(self.poison * clients)].tolist())

    def draw(self, seed: int, round_number: int, client: int) -> str:
        """The fault of one client in one round, by name; empty for none."""
        u = np.random.default_rng([seed, round_number, client, 0xFA17]).random()
        for name, rate in self.rates.items():
            u -= rate
            if u < 0:
                return name
        return ""

    def draw_phase(self, seed: int, round_number: int, client: int) -> str:
        """The phase of secure aggregation in which that client meets its fault."""
        drawn = np.random.default_rng([seed, round_number, client, 0xFA5E]).integers(len(PHASES))
        return self.phase or list(PHASES)[drawn]


def with_faults(app: App, faults: FaultConfig) -> App:
    """The client app, but train messages meet the faults drawn for them."""
    if not faults.poison and not any(faults.rates.values()):
        return app

    def faulty(message: Message, context: Context) -> Message:
        match _fault_of(message, context, faults):
            case "":
                reply = app(message, context)
                if faults.poison and message.metadata.message_type.startswith("train"):
                    _poison_if_hostile(reply, message, context, faults)
                return reply
            case "dropout":
                raise SimulatedFaultError("simulated drop-out: the device went away")
            case "error":
                raise SimulatedFaultError("simulated error in training")
            case "hang":
                _hang()
            case "crash":
                os._exit(1)
            case damage:
                return _damage(app(message, context), damage)
        raise AssertionError("a hanging client is killed, it does not return")

    return faulty


def _fault_of(message: Message, context: Context, faults: FaultConfig) -> str:
    """What this message meets. Which round it is of stands in the task, which only a round's first message has."""
    phase = _secure_phase(message)
    task = message.content.config_records.get("task")
    if task is not None:
        context.state.pop(_DUE, None)
    if not message.metadata.message_type.startswith("train"):
        return ""
    if task is not None:
        seed, round_number = _seed_and_round(task)
        fault = faults.draw(seed, round_number, context.node_id)
        due = faults.draw_phase(seed, round_number, context.node_id) if phase else ""
        if not fault or due == phase:
            return fault
        context.state[_DUE] = ConfigRecord({"fault": fault, "phase": due})
    kept = context.state.get(_DUE)
    if not isinstance(kept, ConfigRecord) or kept["phase"] != phase:
        return ""
    return str(kept["fault"])


def _seed_and_round(task: ConfigRecord) -> tuple[int, int]:
    seed, round_number = task["seed"], task["round"]
    assert isinstance(seed, int)
    assert isinstance(round_number, int)
    return seed, round_number


def _secure_phase(message: Message) -> str:
    """The phase of secure aggregation that a message is part of; empty for an ordinary one."""
    record = message.content.config_records.get(RECORD)
    return str(record["phase"]) if record is not None else ""


def _hang() -> None:
    """Sleep well past any deadline, but not past the life of the simulation."""
    parent, end = os.getppid(), time.monotonic() + HANG_S
    while os.getppid() == parent and time.monotonic() < end:
        time.sleep(0.2)
    os._exit(1)


def _poison_if_hostile(reply: Message, message: Message, context: Context, faults: FaultConfig) -> None:
    seed, round_number = _seed_and_round(message.content.config_records["task"])
    if context.node_id in faults.poisoners(seed, int(context.node_config["num-partitions"])):
        _poison(reply, faults, np.random.default_rng([seed, round_number, context.node_id, 0xBAD]))


def _poison(reply: Message, faults: FaultConfig, rng: np.random.Generator) -> None:
    """Put something well-formed and wrong in place of the update, which is of codec float32."""
    record = reply.content.array_records["update"]
    envelope = wire.unpack(record["delta"].data)
    update = np.frombuffer(envelope.body, "<f4").astype(np.float64)
    if faults.poison_kind == "sign_flip":
        wrong = -faults.poison_scale * update
    else:
        noise = rng.standard_normal(update.size)
        wrong = noise * (faults.poison_scale * np.linalg.norm(update) / np.linalg.norm(noise))
    payload = wire.pack(envelope.codecs, envelope.layout, envelope.round, wrong.astype("<f4").tobytes())
    record["delta"] = Array("uint8", (len(payload),), record["delta"].stype, payload)


def _damage(reply: Message, how: str) -> Message:
    """Spoil the update inside a reply, the way a broken or hostile client would.

    Under masks NaN can't travel: the client that finds it in its own update abstains. The rest is a message cut short.
    """
    if (secret := reply.content.config_records.get(RECORD)) is not None:
        message = secret["message"]
        assert isinstance(message, bytes)
        abstained = encode(Abort("abstains: NumericsError"), None)
        secret["message"] = abstained if how == "nan" else message[:-4] if how == "wrong_shape" else message[:16]
        return reply
    record = reply.content.array_records["update"]
    envelope = wire.unpack(record["delta"].data)
    body, layout = bytes(envelope.body), envelope.layout
    if how == "nan":
        body = np.float32(np.nan).tobytes() + body[4:]
    elif how == "wrong_shape":
        body = body[:-4]
    else:
        layout, body = bytes(wire.DIGEST_BYTES), body[: len(body) // 8 * 4]
    payload = wire.pack(envelope.codecs, layout, envelope.round, body)
    record["delta"] = Array("uint8", (len(payload),), record["delta"].stype, payload)
    return reply
