"""One round of Hedgerow's secure aggregation; see `secagg_rounds.py`.

The real roles of `edge_runtime.secagg`, every message through its bytes: a client's time is all that its `receive`
takes, signatures and encoding included, and where it starts from floats, rounding them at random to whole numbers.
Signatures, of which Flower has none, are also counted by themselves: the functions that make and verify them are
wrapped in a clock.
"""

from __future__ import annotations

import sys
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from secagg_rounds import CLIP, Figures, Meter, Round, answer, floats

from edge_runtime.secagg import Client, Config, Contribution, Outcome, Server, keys
from edge_runtime.secagg.config import RoundConfig
from edge_runtime.secagg.messages import KINDS, Routed
from edge_runtime.secagg.server import Gone, Received, Send
from edge_runtime.secagg.simulate import enrol


class Input:
    """A client's input, and what became of it: the exact sum is that of `whole` over the survivors."""

    def __init__(self, client: int, asked: Round, agreed: RoundConfig) -> None:
        self._rng = np.random.default_rng(client)
        if asked.floats:
            self._floats = floats(client, asked.values)
            self.whole: NDArray[np.int64] | None = None
        else:
            self.whole = self._rng.integers(-agreed.max_abs, agreed.max_abs, asked.values, endpoint=True)

    def __call__(self, agreed: RoundConfig) -> Contribution:
        if self.whole is None:
            scaled = np.clip(self._floats, -CLIP, CLIP) * np.float64((agreed.max_abs - 1) / CLIP)
            scaled += self._rng.random(scaled.size, np.float32)
            self.whole = np.floor(scaled, out=scaled).astype(np.int64)
        return Contribution(self.whole)


def run(asked: Round) -> Figures:
    config = Config(bits=asked.bits, threshold=asked.threshold, neighbours=asked.neighbours, prg=asked.prg)
    agreed = config.for_round(run=1, round_number=1, clients=asked.clients, count=asked.values)
    devices = enrol(list(range(asked.clients)))
    inputs = {client: Input(client, asked, agreed) for client in devices}
    clients = {client: Client(device, inputs[client]) for client, device in devices.items()}
    server = Server(agreed, {client: device.key.public for client, device in devices.items()})
    meter = Meter()
    outcome = play(clients, server, asked.dropped, meter)
    if outcome.sum is None or outcome.survivors != clients.keys() - asked.dropped:
        raise SystemExit(f"the round failed: {outcome.aborted}, {len(outcome.survivors)} survivors")
    expected = np.zeros(asked.values, np.int64)
    for client in outcome.survivors:
        expected += inputs[client].whole
    if not np.array_equal(outcome.sum, expected):
        raise SystemExit("the sum is not the exact one")
    return meter.figures(asked.dropped)


def play(clients: dict[int, Client], server: Server, dropped: frozenset[int], meter: Meter) -> Outcome:
    verify, sign = meter.as_signature(keys.verify), meter.as_signature(keys.DeviceKey.sign)
    with patch.object(keys, "verify", verify), patch.object(keys.DeviceKey, "sign", sign):
        sends = meter.of_server("Setup", server.start)
        while server.outcome is None:
            sends = [later for send in sends for later in _deliver(send, clients, server, dropped, meter)]
    return server.outcome


def _deliver(
    send: Send, clients: dict[int, Client], server: Server, dropped: frozenset[int], meter: Meter
) -> list[Send]:
    """A message to a client, and its answer to the server."""
    kind, step = KINDS[send.data[1]], server.phase
    if kind is Routed and send.client in dropped:
        return meter.of_server(step, server.receive, Gone(send.client))
    meter.received[send.client] += len(send.data)
    later: list[Send] = []
    for data in meter.of_client(send.client, kind.__name__, clients[send.client].receive, send.data):
        meter.sent[send.client] += len(data)
        later += meter.of_server(step, server.receive, Received(send.client, data))
    return later


if __name__ == "__main__":
    answer(sys.argv[1], run)
