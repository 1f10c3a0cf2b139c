"""One round of secure aggregation as files: every kind of message that one client got or sent, and the sum.

`python tests/golden/secagg.py` writes them again; a test says when that is due, which for a protocol that has been
released means: never without a new version. Keys, seeds and shares follow from fixed bytes, so these secrets are none.
Six clients in a ring with four neighbours each, weights, one client that drops, one ciphertext that does not open.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_runtime.secagg import Client, Config, Contribution, Device, DeviceKey, Server
from edge_runtime.secagg import messages as m
from edge_runtime.secagg.config import ANY_POLICY, RoundConfig
from edge_runtime.secagg.simulate import Fleet

HERE = Path(__file__).parent / "secagg"
CLIENTS = (0, 7, 300, 2**40, 2**63, 2**64 - 1)
WITNESS, DROPPED = 300, 7
VALUES = 11
CONFIG = Config(
    bits=12, threshold=3, neighbours=4, min_clients=4, min_survivors=4, max_abs=40, max_weight=5, deadline_ms=30_000,
    clip="0.5", noise="none", encoding=b"\x01rotation",
)  # fmt: skip


def fixed(*label: object) -> Callable[[int], bytes]:
    """A source of bytes that gives the same ones every time."""
    calls = iter(range(1000))
    return lambda count: hashlib.shake_256(repr((*label, next(calls))).encode()).digest(count)


def agreed() -> RoundConfig:
    model = hashlib.sha256(b"a model").digest()
    return CONFIG.for_round(run=2**60 + 1, round_number=9, clients=len(CLIENTS), count=VALUES, model_hash=model)


def contribution(index: int) -> Contribution:
    return Contribution((np.arange(VALUES, dtype=np.int64) * 17 + index * 5) % 81 - 40, weight=index % 5 + 1)


def fleet() -> Fleet:
    this = agreed()
    device_keys = {client: DeviceKey.generate(fixed("device", client)) for client in CLIENTS}
    enrolled = {client: key.public for client, key in device_keys.items()}
    devices = {client: Device(client, key, enrolled, ANY_POLICY) for client, key in device_keys.items()}
    clients = {
        client: Client(devices[client], lambda _, i=i: contribution(i), this.model_hash, fixed("round", client))
        for i, client in enumerate(CLIENTS)
    }
    return Fleet(this, devices, clients, Server(this, enrolled))


def make() -> dict[str, bytes]:
    """The contents of each file, by name."""
    files: dict[str, bytes] = {}

    def link(from_server: bool, client: int, data: bytes) -> bytes | None:
        kind = m.KINDS[data[1]]
        if client == DROPPED and kind is m.MaskedInput:
            return None
        if client == WITNESS:
            files[f"{data[1]:02}_{kind.__name__}.bin"] = data
        if client == WITNESS and kind is m.Routed:
            return data[:-1] + bytes([data[-1] ^ 1])  # the last neighbour's shares do not open
        return data

    played = fleet()
    outcome = played.run(link)
    assert outcome.aborted is None, outcome.aborted
    files["11_Abort.bin"] = m.encode(m.Abort("abstains: NumericsError"), played.agreed)
    assert outcome.sum is not None
    files["sum.bin"] = np.append(outcome.sum, outcome.weight).astype("<i8").tobytes()
    return files


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for name, content in make().items():
        (HERE / name).write_bytes(content)
        print(f"{name}: {len(content)} bytes")
