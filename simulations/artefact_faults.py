"""Devices on which a roll-out fails: some have too little memory for the model, on some it proves unhealthy later.

Both are met by the real parts: the trial's memory limit, and the health window of the slots.
"""

from __future__ import annotations

import numpy as np
from flwr.app import Context, Message

from clients.deploy import ArtefactConfig
from edge_runtime.deploy.offer import RECORD, Ask
from edge_runtime.deploy.trust.health import Health
from simulations.faults import App, FaultConfig

TOO_LITTLE = "48 MiB"  # of address space: a runtime does not even load
UNFIT, RELAPSE = 0xF17, 0x1A95


def drawn(share: float, purpose: int, version: int, clients: int) -> frozenset[int]:
    """A share of the clients 0 .. clients-1, rounded, that follows from the version alone."""
    order = np.random.default_rng([version, clients, purpose]).permutation(clients)
    return frozenset(order[: round(share * clients)].tolist())


def with_artefact_faults(app: App, faults: FaultConfig) -> App:
    """The client app, but a roll-out's messages meet the faults drawn for their devices."""
    if not faults.unfit and not faults.relapse:
        return app

    def faulty(message: Message, context: Context) -> Message:
        record = message.content.config_records.get(RECORD)
        if record is None:
            return app(message, context)
        version, clients = int(str(record["version"])), int(context.node_config["num-partitions"])
        if record["ask"] == Ask.INSTALL.value and context.node_id in drawn(faults.unfit, UNFIT, version, clients):
            context.node_config["artefact-memory"] = TOO_LITTLE
        if record["ask"] == Ask.CHECK.value and context.node_id in drawn(faults.relapse, RELAPSE, version, clients):
            _judge_unhealthy(context)
        return app(message, context)

    return faulty


def _judge_unhealthy(context: Context) -> None:
    """What the device's service does after a window of inputs of which most got no answer."""
    health = Health()
    for _ in range(health.expected.window):
        health.failed()
    ArtefactConfig.from_node_config(context.node_config).slots().judge(health)
