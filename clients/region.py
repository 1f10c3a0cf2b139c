"""The half of a region that is a node of the federation above: it hands on what it is asked, and answers for all below.

To the server above a region is one client with many examples: its update is the weighted mean of its devices' updates,
its weight their examples. So FedAvg over regions is FedAvg over all devices. What counts clients one by one, as
differential privacy and secure aggregation do, would count a region for one: such tasks are refused here.
"""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import Context, Message

from clients.exchange import Tensors, encode_update, receive_model
from clients.records import answer, client_number, open_state, read_model, read_program, read_task
from edge_runtime.config import flatten
from edge_runtime.errors import PeerError
from edge_runtime.region import Done, Work, connect, receive_done, send_work
from edge_runtime.secagg.transitions import RECORD

SOCKET = "region-socket"  # in the node config: where the region's own server listens
MARGIN = 0.1  # of the time that the server above waits, kept for the way back


def region_socket(context: Context) -> Path | None:
    """Where the server of the region is that this node stands for; None for a device."""
    path = str(context.node_config.get(SOCKET, ""))
    return Path(path) if path else None


def train_region(message: Message, context: Context, tensors: Tensors, socket: Path) -> Message:
    """Have the devices below train, and answer as one client."""
    task = read_task(message)
    state = open_state(context, task)
    done, held = _hand_on("train", message, context, tensors, socket)
    payload = encode_update(task, done.delta, tensors, state, client_number(context))
    figures = {"num-examples": int(done.figures["num-examples"]), "loss": float(done.figures["loss"])}
    return answer(message, {**figures, "clients": done.clients, "failed": done.failed}, held, payload)


def evaluate_region(message: Message, context: Context, tensors: Tensors, socket: Path) -> Message:
    """The weighted mean of what the devices below measure."""
    done, held = _hand_on("evaluate", message, context, tensors, socket)
    return answer(message, {**done.figures, "num-examples": int(done.figures["num-examples"])}, held)


def refuse_what_counts_clients(message: Message) -> None:
    """PeerError for a task whose promise is about single clients, which a region is not."""
    if RECORD in message.content:
        raise PeerError(
            "a region takes no part in secure aggregation: its sum would be clipped and counted as one client; switch "
            "secure.enabled on in the region's own server instead"
        )
    task = read_task(message)
    if task.per_client or task.local.clip:
        raise PeerError(
            "a region takes no part in what is promised or counted for every single client (differential privacy, "
            "secure aggregation, SCAFFOLD, FedNova, personal layers): a bound on the mean of its devices bounds none "
            "of them; let the devices join the server itself"
        )


def _hand_on(kind: str, message: Message, context: Context, tensors: Tensors, socket: Path) -> tuple[Done, bytes]:
    """What the region's server makes of the message, and the version of the model that this node now holds."""
    task, sent = read_task(message), read_model(message)
    left_s = message.metadata.created_at + message.metadata.ttl - time.time()
    deadline_s = max(1.0, (1 - MARGIN) * min(left_s, message.metadata.ttl))
    weights = receive_model(task, sent, tensors, open_state(context, task))
    work = Work(kind, flatten(task), read_program(message), tensors.layout, tensors.moving, weights, deadline_s)
    with connect(socket, deadline_s + 5) as connection:
        try:
            send_work(connection, work)
            done = receive_done(connection, tensors.moving.size)
        except OSError as error:
            raise PeerError(f"region: its server at {socket} went away ({error.strerror or error})") from error
    if done.error:
        raise PeerError(f"region: {done.error} ({done.clients} devices answered, {done.failed} failed)")
    return done, sent.model_id
