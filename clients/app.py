"""The Flower ClientApp: reads a message, trains, evaluates or takes an artefact, answers."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.config import NodeConfig
from clients.datasets import held_out, load_examples
from clients.deploy import answer_artefact, running
from clients.eligibility import device_mod
from clients.exchange import Tensors, encode_update, receive_model, sent_control
from clients.local_privacy import randomised
from clients.records import (
    answer,
    client_number,
    holding,
    open_state,
    read_control_round,
    read_model,
    read_personal,
    read_program,
    read_task,
)
from clients.region import evaluate_region, refuse_what_counts_clients, region_socket, train_region
from clients.round import LocalUpdate, Own, Workbench, own_layers
from clients.secure import begin, is_setup, settle
from clients.state import ClientState
from edge_runtime.engine.cores import allowed_cores
from edge_runtime.errors import PeerError, ProgramError
from edge_runtime.train.batches import Examples
from edge_runtime.train.config import DataConfig, ModelConfig, RoundTask, TrainConfig
from edge_runtime.train.factory import make_trainer, unpack_program
from edge_runtime.updates.delta import FloatVector

app = ClientApp(mods=[device_mod])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this node's examples; the reply holds the encoded delta, or this node's part of a secure round."""
    if socket := region_socket(context):
        return train_region(message, context, _region_tensors(message), socket)
    if (settled := settle(message, context)) is not None:
        return settled
    node, task, bench = _read(message, context)
    sent, state, client = read_model(message), open_state(context, task), client_number(context)
    examples, _ = _examples(node, task, client)
    weights = receive_model(task, sent, bench.tensors, state)
    own, counted = _own(message, task, bench, state, task.round), read_control_round(message)
    if task.control:
        own = replace(own, control=state.control(bench.parts.control, counted))

    def work() -> LocalUpdate:
        update = bench.train(task, weights, examples, client, own)
        if task.personal.layers:
            state.keep_personal(bench.parts.personal, task.round, update.personal)
        return update

    if is_setup(message):

        def train() -> tuple[FloatVector, int]:
            update = work()
            return update.delta, update.examples

        return holding(begin(message, context, task, weights, bench.tensors.moving.size, train), sent.model_id)
    update = work()
    if task.local.clip:
        update = randomised(update, task.local)
    payload = encode_update(task, update.delta, bench.tensors, state, client)
    if task.control:
        control = own.control + sent_control(task, payload, bench.tensors)
        state.keep_control(bench.parts.control, counted, task.round, control)
    figures = {"num-examples": update.examples, "loss": update.loss, **running(context)}
    if task.control:
        figures["state-lasts"] = int(state.lasts)
    if task.normalise:
        figures["local-steps"] = update.steps
    return answer(message, figures, sent.model_id, payload)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the global model on this node's examples: on those held out, where it keeps some for that.

    A task that says `personal.tune` asks what the model comes to when this node trains it for itself.
    """
    if socket := region_socket(context):
        return evaluate_region(message, context, _region_tensors(message), socket)
    settle(message, context)
    node, task, bench = _read(message, context)
    sent, state, client = read_model(message), open_state(context, task), client_number(context)
    train, held = _examples(node, task, client)
    if task.personal.holdout and not len(held):
        raise PeerError("this node has one example, none to hold out and be measured on")
    weights = receive_model(task, sent, bench.tensors, state)
    own = _own(message, task, bench, state, task.round + 1)
    examples = held if task.personal.holdout else train
    before = bench.evaluate(weights, examples, own)
    if not task.personal.tune:
        return answer(message, {"num-examples": len(examples), **before}, sent.model_id)
    after = bench.tune(task, weights, train, examples, client, own)
    figures = {**before, **{f"tuned-{name}": value for name, value in after.items()}}
    return answer(message, {"num-examples": len(examples), **figures}, sent.model_id)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say which artefact this node runs, or take the one that is offered."""
    if region_socket(context):
        raise PeerError("a region runs no artefact of its own: roll it out to its devices from the region's server")
    return answer_artefact(message, context)


def _own(message: Message, task: RoundTask, bench: Workbench, state: ClientState, before: int) -> Own:
    """Values of this node's own layers before that round, which are kept from here on, whatever becomes of it."""
    if not task.personal.layers:
        return Own()
    kept = state.personal(bench.parts.personal, before)
    values = own_layers(bench, kept, read_personal(message))
    if kept is None:
        state.keep_personal(bench.parts.personal, task.round - 1, values)
    return Own(values)


def _read(message: Message, context: Context) -> tuple[NodeConfig, RoundTask, Workbench]:
    """Who this node is, what the message asks of it, and what it takes to do it."""
    node = NodeConfig.from_node_config(context.node_config)
    task, program = read_task(message), read_program(message)
    if not node.data_path and task.data.clients != node.partitions:
        raise PeerError(
            f"the task splits data among {task.data.clients} clients, this node is a partition of {node.partitions}"
        )
    if (task.train.trainer == "engine") != bool(program):
        raise PeerError(f"the task's trainer is {task.train.trainer}, and it does not bring what that one needs")
    # The engine runs no code of the server's choice.
    if task.train.trainer == "torch" and task.model.entry != "" and task.model.entry != node.model_entry:
        raise PeerError(
            f"the server asks for model entry {task.model.entry!r}; this node's model-entry does not allow it"
        )
    return node, task, _workbench(task, program, node)


def _region_tensors(message: Message) -> Tensors:
    """The model's tensors, for a node that trains none of them itself."""
    refuse_what_counts_clients(message)
    task, program = read_task(message), read_program(message)
    if (task.train.trainer == "engine") != bool(program) or (not program and task.model.entry):
        raise PeerError("a region learns a model's tensors from its Program, or from a model that is registered here")
    rules = task.proximal_mu, task.control, task.personal.layers
    return _cached_workbench(task.model, task.train, rules, task.seed, program, 0, 1).tensors


def _workbench(task: RoundTask, program: bytes, node: NodeConfig) -> Workbench:
    threads = node.threads or allowed_cores()
    rules = task.proximal_mu, task.control, task.personal.layers
    return _cached_workbench(task.model, task.train, rules, task.seed, program, node.memory_budget, threads)


# A process serves many rounds (and, in a simulation, many clients) of one task: build the model once.
@lru_cache(maxsize=1)
def _cached_workbench(
    model: ModelConfig,
    settings: TrainConfig,
    rules: tuple[float, bool, tuple[str, ...]],
    seed: int,
    packed: bytes,
    memory_budget: int,
    threads: int,
) -> Workbench:
    proximal_mu, control, personal = rules
    program = unpack_program(packed, memory_budget or None) if packed else None
    if program and program.batch_size < settings.batch_size:
        raise PeerError(f"the task asks for batches of {settings.batch_size}, its Program is for {program.batch_size}")
    try:
        trainer = make_trainer(
            model,
            settings,
            program=program,
            proximal_mu=proximal_mu,
            correction=control,
            seed=seed,
            threads=threads,
        )
        return Workbench(trainer, personal=personal, control=control)
    except ProgramError as error:  # what only the native core sees, such as an op that reaches outside the arena
        raise PeerError(f"the message's Program: {error}") from error


def _examples(node: NodeConfig, task: RoundTask, client: int) -> tuple[Examples, Examples]:
    """The examples that this node trains on, and those that it holds out."""
    return _split(node, task.data, task.seed, task.personal.holdout, client)


@lru_cache(maxsize=64)
def _split(node: NodeConfig, data: DataConfig, seed: int, holdout: float, client: int) -> tuple[Examples, Examples]:
    return held_out(load_examples(node, data, seed), holdout, np.random.default_rng([seed, client]))
