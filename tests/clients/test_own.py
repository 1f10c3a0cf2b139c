"""What a client keeps for itself: control variates over lost answers and lost state, and layers of its own."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from clients.agent import Agent
from clients.app import app
from clients.datasets import held_out
from clients.device import open_key
from clients.mods import update_codec_mod
from clients.records import SECURE, ContextStore
from clients.secure_config import SecureConfig
from clients.state import ClientState, FileStore
from edge_runtime.config import flatten, from_flat
from edge_runtime.errors import PeerError
from edge_runtime.train.batches import Examples
from edge_runtime.train.config import RoundTask
from edge_runtime.train.factory import example_of, make_module, make_program, pack_program
from edge_runtime.train.parts import Parts
from edge_runtime.updates import STYPE, TensorLayout, make_codec
from simulations.grid import assume_identity

LAYOUT = TensorLayout((("control/w", (3,)),))
ONE, TWO, THREE = (np.full(3, value, np.float32) for value in (1, 2, 3))


def test_a_control_variate_goes_on_from_the_round_that_counts(tmp_path: Path) -> None:
    state = ClientState(FileStore(tmp_path, 1))
    assert not state.control(LAYOUT, 0).any()
    state.keep_control(LAYOUT, 0, 4, ONE)
    assert not state.control(LAYOUT, 0).any()  # its answer was lost
    np.testing.assert_array_equal(ClientState(FileStore(tmp_path, 1)).control(LAYOUT, 4), ONE)
    state.keep_control(LAYOUT, 4, 6, TWO)
    state.keep_control(LAYOUT, 4, 7, THREE)  # that of round 6 was lost too
    np.testing.assert_array_equal(state.control(LAYOUT, 4), ONE)
    np.testing.assert_array_equal(state.control(LAYOUT, 7), THREE)


def test_a_lost_control_variate_is_zero_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    state = ClientState(ContextStore(RecordDict()))
    with caplog.at_level(logging.WARNING):
        assert not state.control(LAYOUT, 3).any()
    assert "control variate of round 3 is lost" in caplog.text


def test_layers_of_its_own_survive_a_restart_and_damage_is_seen(tmp_path: Path) -> None:
    state = ClientState(FileStore(tmp_path, 1))
    assert state.personal(LAYOUT, 2) is None
    state.keep_personal(LAYOUT, 2, TWO)
    again = ClientState(FileStore(tmp_path, 1))
    np.testing.assert_array_equal(again.personal(LAYOUT, 3), TWO)
    path = tmp_path / f"run-{1:016x}" / "personal-a"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    assert again.personal(LAYOUT, 3) is None


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=12),
    st.lists(st.integers(1, 3), max_size=2),
)
def test_layers_of_its_own_are_what_closed_rounds_made_of_them(rounds: list[tuple[int, int]], lost: list[int]) -> None:
    """Rounds this client is in (how many further on, attempts at each), each attempt adding its round's number."""
    state, number, expected = ClientState(ContextStore(RecordDict())), 1, np.zeros(3, np.float32)
    state.keep_personal(LAYOUT, 0, expected)
    for step, attempts in rounds:
        for _ in range(attempts):
            before = state.personal(LAYOUT, number)
            np.testing.assert_array_equal(before, expected)
            assert before is not None
            state.keep_personal(LAYOUT, number, before + number)
        expected = expected + np.float32(number)
        np.testing.assert_array_equal(state.personal(LAYOUT, number + 1), expected)
        number += step
    for back in lost:  # a server that lost more than a round: later values rather than none
        assert state.personal(LAYOUT, max(1, number - 3 - back)) is not None


def test_examples_held_out_are_a_share_of_each_class_and_apart() -> None:
    examples = Examples(np.arange(40, dtype=np.float32)[:, None], np.repeat([0, 1], [10, 30]))
    train, held = held_out(examples, 0.2, np.random.default_rng(0))
    assert np.bincount(held.y).tolist() == [2, 6]
    assert sorted([*train.x[:, 0], *held.x[:, 0]]) == list(range(40))
    assert len(held_out(examples, 0.0, np.random.default_rng(0))[1]) == 0
    alone, none = held_out(examples.rows(slice(1)), 0.2, np.random.default_rng(0))
    assert (len(alone), len(none)) == (1, 0)


# Messages to the app.

SETTINGS: dict[str, Any] = {
    "round": 2, "data.name": "digits", "data.clients": 5, "model.name": "digits_cnn", "model.input": "1x8x8",
    "train.epochs": 1, "train.optimizer.momentum": 0.0, "personal.layers": "out.*", "personal.holdout": 0.25,
}  # fmt: skip
MODULE = {
    name: tensor.numpy() for name, tensor in make_module(from_flat(RoundTask, SETTINGS).model, 1).state_dict().items()
}
START = np.full(Parts.of(MODULE, list(MODULE), [], personal=["out.*"]).personal.size, 0.01, np.float32)
both_trainers = pytest.mark.parametrize("trainer", ["engine", "torch"])


class Node:
    """A client with its state, asked message after message."""

    def __init__(self, trainer: str, **changes: Any) -> None:
        assume_identity(7)
        self.task = from_flat(RoundTask, {**SETTINGS, "train.trainer": trainer, **changes})
        self.parts = Parts.of(MODULE, list(MODULE), [], personal=self.task.personal.layers, control=self.task.control)
        self.context = Context(1, 7, {"partition-id": 2, "num-partitions": 5}, RecordDict(), {})

    @property
    def own(self) -> np.ndarray[Any, Any] | None:
        return ClientState(ContextStore(self.context.state)).personal(self.parts.personal, 99)

    def content(self, values: np.ndarray[Any, Any], **beside: Any) -> RecordDict:
        payload = make_codec("float32").encode_vector(values, self.parts.down, round_number=self.task.round)
        task = {**flatten(self.task), **beside}
        if self.task.train.trainer == "engine":
            asked = self.task
            task["program"] = pack_program(
                make_program(asked.model, asked.train, example_of(asked.model), correction=asked.control)
            )
        weights = Array("uint8", (len(payload),), STYPE, payload)
        return RecordDict({"model": ArrayRecord({"weights": weights}), "task": ConfigRecord(task)})

    def ask(self, kind: str = "train", *, values: np.ndarray[Any, Any] | None = None, **beside: Any) -> RecordDict:
        if values is None:
            values = np.concatenate((self.parts.shared.flatten(MODULE), np.zeros(self.parts.control.size, np.float32)))
        message = Message(self.content(values, **beside), 7, kind, group_id="2")
        message.metadata.__dict__["_message_id"] = "asked"
        return app(message, self.context).content


def delta_of(node: Node, reply: RecordDict) -> np.ndarray[Any, Any]:
    return make_codec("float32").decode_vector(reply.array_records["update"]["delta"].data, node.parts.up)


@both_trainers
def test_own_layers_are_trained_and_kept_and_neither_sent_nor_overwritten(trainer: str) -> None:
    node = Node(trainer)
    with pytest.raises(PeerError, match="holds no values of personal"):
        node.ask()
    first = node.ask(personal=START.tobytes())
    assert delta_of(node, first).size == node.parts.moving.size < node.parts.moving.size + START.size
    kept = node.own
    assert kept is not None
    assert np.abs(kept - START).max() > 1e-4
    # The server need not know that this node has its own.
    again = node.ask(personal=np.zeros_like(START).tobytes())
    np.testing.assert_array_equal(delta_of(node, first), delta_of(node, again))  # from what was before this round
    np.testing.assert_array_equal(node.own, kept)
    node.task = replace(node.task, round=3)
    second = node.ask()
    assert not np.array_equal(delta_of(node, first), delta_of(node, second))
    assert node.own is not None
    assert not np.array_equal(node.own, kept)


@both_trainers
def test_a_client_is_measured_with_its_own_layers_on_what_it_never_trains_on(trainer: str) -> None:
    node = Node(trainer, **{"train.epochs": 20, "train.optimizer.lr": 0.1})
    trained = node.ask(personal=START.tobytes()).metric_records["metrics"]["num-examples"]
    assert isinstance(trained, int)
    own = node.ask("evaluate").metric_records["metrics"]
    assert own["num-examples"] == pytest.approx(trained / 3, abs=10)
    stranger = Node(trainer).ask("evaluate", personal=START.tobytes()).metric_records["metrics"]
    assert own["loss"] != stranger["loss"]


@both_trainers
def test_fine_tuning_says_how_good_the_model_becomes_and_keeps_nothing(trainer: str) -> None:
    node = Node(trainer, **{"personal.tune": True, "train.epochs": 5, "train.optimizer.lr": 0.1})
    figures = node.ask("evaluate", personal=START.tobytes()).metric_records["metrics"]
    assert figures["tuned-loss"] < figures["loss"]  # type: ignore[operator]
    assert node.own is not None
    np.testing.assert_array_equal(node.own, START)
    assert dict(node.ask("evaluate").metric_records["metrics"]) == dict(figures)


@pytest.mark.parametrize("values", [START.tobytes()[:-4], np.full_like(START, np.nan).tobytes(), 7])
def test_malformed_values_of_own_layers_are_refused(values: Any) -> None:
    node = Node("engine")
    with pytest.raises(PeerError, match=r"personal\.layers"):
        node.ask(personal=values)
    assert node.own is None


@pytest.mark.parametrize("counted", [-1, 2**31, "3"])
def test_a_round_that_cannot_be_is_refused(counted: Any) -> None:
    node = Node("engine", **{"personal.layers": "", "control": True})
    with pytest.raises(PeerError, match="control-round"):
        node.ask(**{"control-round": counted})


@both_trainers
def test_a_control_variate_goes_up_behind_the_weights_and_back_into_the_steps(trainer: str) -> None:
    node = Node(trainer, **{"personal.layers": "", "control": True})
    parts = node.parts
    first = delta_of(node, node.ask())
    moved, control = first[: parts.moving.size], first[parts.moving.size :]
    np.testing.assert_array_equal(ClientState(ContextStore(node.context.state)).control(parts.control, 2), control)
    # c_i times the lr: what a step moved on average, the other way.
    steps = np.median(-moved[moved != 0] / control[moved != 0])
    assert steps == pytest.approx(round(float(steps)), abs=1e-3)
    # Not counted: the same round again, to the bit. Counted: c_i pulls it back.
    np.testing.assert_array_equal(delta_of(node, node.ask()), first)
    pulled = delta_of(node, node.ask(**{"control-round": 2}))[: parts.moving.size]
    assert np.linalg.norm(pulled) < 0.7 * np.linalg.norm(moved)


def test_a_warm_process_hands_on_what_it_keeps_to_the_flower_run_that_goes_on_with_the_run() -> None:
    """To that of the same key, and of what is a Flower run's own nothing."""
    node = Node("engine", run=77)
    agent = Agent(SimpleNamespace(node_id=7), app, node.context.node_config)  # type: ignore[arg-type]

    def ask(flower_run: int, key: int, number: int, **beside: Any) -> RecordDict:
        assume_identity(7, flower_run)
        node.task = replace(node.task, run=key, round=number)
        content = node.content(node.parts.shared.flatten(MODULE), **beside)
        message = Message(content, 7, "train", group_id=str(number))
        message.metadata.__dict__["_message_id"] = "asked"
        reply = agent._answer(message)
        node.context.state = agent._states[flower_run]
        assert reply.has_content() or "holds no values of personal" in reply.error.reason
        return reply.content if reply.has_content() else RecordDict()

    try:
        ask(1, 77, 2, personal=START.tobytes())
        open_key(SecureConfig(), node.context)
        kept = node.own
        assert kept is not None
        assert not ask(2, 78, 3)  # another run's: there is nothing for it
        assert node.own is None
        lost = delta_of(node, ask(1, 77, 3))
        again = delta_of(node, ask(3, 77, 3))  # which is played again, from where it was before that round
        np.testing.assert_array_equal(lost, again)
        assert SECURE not in node.context.state
        assert not ask(1, 77, 4)  # the Flower run that is over has nothing left
    finally:
        assume_identity(7)


def test_a_client_of_fednova_says_how_many_steps_it_made() -> None:
    node = Node("engine", **{"personal.layers": "", "normalise": True, "train.epochs": 3})
    plain = Node("engine", **{"personal.layers": "", "train.epochs": 3})
    reply, usual = node.ask(), plain.ask()
    metrics = reply.metric_records["metrics"]
    steps = metrics["local-steps"]
    assert steps == 3 * -(-metrics["num-examples"] // 32)  # type: ignore[operator]
    assert "local-steps" not in usual.metric_records["metrics"]
    np.testing.assert_allclose(delta_of(node, reply) * steps, delta_of(plain, usual), rtol=1e-5, atol=1e-7)


def test_a_mod_that_knows_none_of_it_refuses() -> None:
    node = Node("torch")
    mod = update_codec_mod(MODULE)
    message = Message(node.content(node.parts.shared.flatten(MODULE)), 7, "train")
    with pytest.raises(PeerError, match="need Hedgerow's own client app"):
        mod(message, node.context, lambda message, context: message)
