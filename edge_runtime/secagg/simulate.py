"""A whole round in one process: the real roles, every message through its bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.secagg import keys
from edge_runtime.secagg.client import Client
from edge_runtime.secagg.config import ANY_POLICY, NO_MODEL, Config, Policy, RoundConfig
from edge_runtime.secagg.device import Contribution, Device
from edge_runtime.secagg.messages import KINDS
from edge_runtime.secagg.server import DeadlinePassed, Gone, Outcome, Received, Send, Server
from edge_runtime.secagg.transitions import PHASES

# (from the server?, client, bytes) -> the bytes that arrive, or None for none: where a test or a fault sits
Link = Callable[[bool, int, bytes], bytes | None]
_PHASE_OF_KIND = {number: phase for phase, kind in PHASES.items() for number, k in KINDS.items() if k is kind}


@dataclass(slots=True)
class Fleet:
    """Enrolled devices and their clients of one round, and what they and the server refused."""

    agreed: RoundConfig
    devices: dict[int, Device]
    clients: dict[int, Client]
    server: Server
    refused: list[tuple[int, PeerError]] = field(default_factory=list)

    def run(self, link: Link = lambda _, __, data: data) -> Outcome:
        """Play the round to its end; a phase that nobody moves any more passes its deadline."""
        sends = self.server.start()
        while self.server.outcome is None:
            answers = [answer for send in sends for answer in self._deliver(send, link)]
            sends = [send for answer in answers for send in self._collect(*answer, link)]
            if not sends and self.server.outcome is None:
                sends = self.server.receive(DeadlinePassed())
        for send in sends:
            self._deliver(send, link)
        for client in self.clients.values():
            client.end()
        return self.server.outcome

    def _deliver(self, send: Send, link: Link) -> list[tuple[int, bytes]]:
        data = link(True, send.client, send.data)
        if data is None:
            return []
        try:
            return [(send.client, answer) for answer in self.clients[send.client].receive(data)]
        except PeerError as error:
            self.refused.append((send.client, error))
            return []

    def _collect(self, client: int, answer: bytes, link: Link) -> list[Send]:
        data = link(False, client, answer)
        if data is None:
            return self.server.receive(Gone(client))
        try:
            return self.server.receive(Received(client, data))
        except PeerError as error:
            self.refused.append((client, error))
            return []


def enrol(
    clients: list[int], policy: Policy = ANY_POLICY, random: Callable[[int], bytes] = os.urandom
) -> dict[int, Device]:
    """A device for each id, all of which trust each other."""
    device_keys = {client: keys.DeviceKey.generate(random) for client in clients}
    enrolled = {client: key.public for client, key in device_keys.items()}
    return {client: Device(client, key, enrolled, policy) for client, key in device_keys.items()}


def make_fleet(
    inputs: Mapping[int, Contribution],
    agreed: RoundConfig,
    devices: dict[int, Device],
    random: Callable[[int], bytes] = os.urandom,
) -> Fleet:
    """All roles of one round. Each client holds its own input only."""

    def update(client: int) -> Callable[[RoundConfig], Contribution]:
        return lambda _: inputs[client]

    clients = {client: Client(devices[client], update(client), agreed.model_hash, random) for client in inputs}
    enrolled = {client: device.key.public for client, device in devices.items() if client in inputs}
    return Fleet(agreed, devices, clients, Server(agreed, enrolled))


def drop_link(drops: Mapping[int, str]) -> Link:
    """A link on which each client of `drops` is gone from the message of its phase on."""
    gone: set[int] = set()

    def link(from_server: bool, client: int, data: bytes) -> bytes | None:
        if not from_server and drops.get(client) == _PHASE_OF_KIND.get(data[1], ""):
            gone.add(client)
        return None if client in gone else data

    return link


def simulate_round(
    inputs: Mapping[int, NDArray[np.int64]],
    config: Config,
    drops: Mapping[int, str] | None = None,
    *,
    weights: Mapping[int, int] | None = None,
    policy: Policy = ANY_POLICY,
    run: int = 0,
    round_number: int = 1,
    model_hash: bytes = NO_MODEL,
    random: Callable[[int], bytes] = os.urandom,
) -> Outcome:
    """The outcome of one round over these inputs, with every role and message of a real one.

    Args:
        inputs: int64 vectors of one shape (count,), by client id.
        config: bits, threshold and the rest.
        drops: client id -> the phase from whose message on it is gone: advertise, share_keys, masked_input,
            consistency or unmask. One that drops after its masked input is in the sum.
        weights: each client's number of examples, where config.max_weight is set.
        policy: the floor that all clients hold the round to.
        run: the run that the round is bound to.
        round_number: its number in the run.
        model_hash: the hash of the model that the inputs were made from.
        random: a secure source of bytes.

    Raises:
        ConfigError: inputs of different shapes or beyond max_abs, an unknown client or phase in `drops`, or settings
            under which a sum could wrap.

    >>> import numpy as np
    >>> inputs = {client: np.full(4, client) for client in range(5)}
    >>> outcome = simulate_round(inputs, Config(bits=16, threshold=3), drops={4: "masked_input"})
    >>> outcome.sum, sorted(outcome.survivors), outcome.aborted
    (array([6, 6, 6, 6]), [0, 1, 2, 3], None)

    """
    drops = drops or {}
    if unknown := drops.keys() - inputs.keys():
        raise ConfigError(f"drops: {min(unknown)} is no client of this round")
    if wrong := set(drops.values()) - PHASES.keys():
        raise ConfigError(f"drops: {min(wrong)!r} is no phase; phases are {', '.join(PHASES)}")
    if not inputs:
        raise ConfigError("inputs: a round needs at least two clients, got none")
    vectors = {client: np.asarray(vector) for client, vector in inputs.items()}
    count = next(iter(vectors.values())).size
    agreed = config.for_round(
        run=run, round_number=round_number, clients=len(vectors), count=count, model_hash=model_hash
    )
    contributions = {}
    for client, vector in vectors.items():
        contributions[client] = Contribution(vector, (weights or {}).get(client, 1))
        try:
            contributions[client].words(agreed)
        except ConfigError as error:
            raise ConfigError(f"inputs[{client}]: {error}") from None
    fleet = make_fleet(contributions, agreed, enrol(list(vectors), policy, random), random)
    return fleet.run(drop_link(drops))
