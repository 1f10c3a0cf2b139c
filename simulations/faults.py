"""Clients that misbehave, at rates the scenario sets. Which client does what, and when, follows from the seed alone."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, Context, Message

from edge_runtime.config import key
from edge_runtime.errors import ConfigError, EdgeRuntimeError
from edge_runtime.updates import wire

POISONS = ("sign_flip", "noise")

App = Callable[[Message, Context], Message]
HANG_S = 3600.0


class SimulatedFaultError(EdgeRuntimeError):
    """A failure that the scenario asked for."""


@dataclass(frozen=True, slots=True)
class FaultConfig:
    """Share of clients per round that drop out, raise, hang, die, or send back NaN, wrong shapes or too few tensors.

    `poison` is the share of all clients that are hostile, the same ones for the whole run. They train, and send
    something else: their update times -`poison_scale` ("sign_flip"), or Gaussian noise with `poison_scale` times its
    norm ("noise").
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

    def __post_init__(self) -> None:
        if (total := math.fsum(self.rates.values())) > 1:
            raise ConfigError(f"faults: the rates add up to {total:g}; must be <= 1")

    @property
    def rates(self) -> dict[str, float]:
        """Of each fault that is drawn anew in every round."""
        return {name: rate for name, rate in dataclasses.asdict(self).items() if not name.startswith("poison")}

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
                return str(name)
        return ""


def with_faults(app: App, faults: FaultConfig) -> App:
    """The client app, but train messages meet the faults drawn for them."""
    if faults == FaultConfig():
        return app

    def faulty(message: Message, context: Context) -> Message:
        if not message.metadata.message_type.startswith("train"):
            return app(message, context)
        task = message.content.config_records["task"]
        seed, round_number = task["seed"], task["round"]
        assert isinstance(seed, int)
        assert isinstance(round_number, int)
        clients = int(context.node_config["num-partitions"])
        match faults.draw(seed, round_number, context.node_id):
            case "":
                reply = app(message, context)
                if context.node_id in faults.poisoners(seed, clients):
                    _poison(reply, faults, np.random.default_rng([seed, round_number, context.node_id, 0xBAD]))
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


def _hang() -> None:
    """Sleep well past any deadline, but not past the life of the simulation."""
    parent, end = os.getppid(), time.monotonic() + HANG_S
    while os.getppid() == parent and time.monotonic() < end:
        time.sleep(0.2)
    os._exit(1)


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
    """Spoil the update inside a reply, the way a broken or hostile client would."""
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
