"""The Flower ClientApp: reads a message, trains or evaluates, answers. All Flower records are handled here."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.config import NodeConfig
from clients.datasets import load_examples
from clients.round import Workbench
from edge_runtime.config import from_flat
from edge_runtime.engine.cores import allowed_cores
from edge_runtime.errors import ConfigError, PeerError, ProgramError
from edge_runtime.train.batches import Examples
from edge_runtime.train.config import DataConfig, ModelConfig, RoundTask, TrainConfig
from edge_runtime.train.factory import make_trainer, unpack_program
from edge_runtime.updates import STYPE

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this node's examples; the reply holds the encoded delta."""
    node, task, model, program = _read(message, context)
    examples = _examples(node, task.data, task.seed)
    update = _workbench(task, program, node).train(task, model, examples, _client_number(node, context))
    payload = Array("uint8", (len(update.payload),), STYPE, update.payload)
    content = RecordDict(
        {
            "update": ArrayRecord({"delta": payload}),
            "metrics": MetricRecord({"num-examples": update.examples, "loss": update.loss}),
        }
    )
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the global model on this node's examples."""
    node, task, model, program = _read(message, context)
    examples = _examples(node, task.data, task.seed)
    figures = _workbench(task, program, node).evaluate(task, model, examples)
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": len(examples), **figures})}), reply_to=message)


def _read(message: Message, context: Context) -> tuple[NodeConfig, RoundTask, bytes, bytes]:
    """What the message asks, checked: nothing of it is believed before it stands inside a config's bounds."""
    node = NodeConfig.from_node_config(context.node_config)
    settings, arrays = message.content.get("task"), message.content.get("model")
    if not isinstance(settings, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise PeerError("message has no task and model records")
    program = settings.get("program", b"")
    try:
        # The types are a part of what is cached: 1, 1.0 and True are equal. A list has no hash, and fits no key.
        items = [(k, type(v), tuple(v) if isinstance(v, list) else v) for k, v in settings.items() if k != "program"]
        task = _task(tuple(items))
    except ConfigError as error:
        raise PeerError(f"message's task: {error}") from error
    if not node.data_path and task.data.clients != node.partitions:
        raise PeerError(
            f"the task splits data among {task.data.clients} clients, this node is a partition of {node.partitions}"
        )
    if not isinstance(program, bytes) or (task.train.trainer == "engine") != bool(program):
        raise PeerError(f"the task's trainer is {task.train.trainer}, and it does not bring what that one needs")
    # The engine runs no code of the server's choice.
    if task.train.trainer == "torch" and task.model.entry != "" and task.model.entry != node.model_entry:
        raise PeerError(
            f"the server asks for model entry {task.model.entry!r}; this node's model-entry does not allow it"
        )
    array = arrays.get("weights")
    if array is None or array.stype != STYPE:
        raise PeerError(f"message has no weights of type {STYPE}")
    return node, task, array.data, program


# A simulation's process is sent the same task for every client of a round.
@lru_cache(maxsize=1)
def _task(settings: tuple[tuple[str, type, Any], ...]) -> RoundTask:
    return from_flat(RoundTask, {name: kind(value) for name, kind, value in settings})


def _client_number(node: NodeConfig, context: Context) -> int:
    """What distinguishes this client's random numbers from another's; stable over rounds."""
    return node.partition if node.partition >= 0 else context.node_id % 2**63


def _workbench(task: RoundTask, program: bytes, node: NodeConfig) -> Workbench:
    threads = node.threads or allowed_cores()
    return _cached_workbench(task.model, task.train, task.proximal_mu, task.seed, program, node.memory_budget, threads)


# A process serves many rounds (and, in a simulation, many clients) of one task: build the model once.
@lru_cache(maxsize=1)
def _cached_workbench(
    model: ModelConfig,
    settings: TrainConfig,
    proximal_mu: float,
    seed: int,
    packed: bytes,
    memory_budget: int,
    threads: int,
) -> Workbench:
    program = unpack_program(packed, memory_budget or None) if packed else None
    if program and program.batch_size < settings.batch_size:
        raise PeerError(f"the task asks for batches of {settings.batch_size}, its Program is for {program.batch_size}")
    try:
        return Workbench(
            make_trainer(model, settings, program=program, proximal_mu=proximal_mu, seed=seed, threads=threads)
        )
    except ProgramError as error:  # what only the native core sees, such as an op that reaches outside the arena
        raise PeerError(f"the message's Program: {error}") from error


@lru_cache(maxsize=64)
def _examples(node: NodeConfig, data: DataConfig, seed: int) -> Examples:
    return load_examples(node, data, seed)
