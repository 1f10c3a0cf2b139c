"""What nodes are sent: whoever answers holds the server's version bit for bit, whatever it missed before.

The nodes here are the client's own half (`clients.exchange`) over a dictionary for a state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.exchange import Tensors, receive_model
from clients.state import ClientState
from edge_runtime.config import from_flat
from edge_runtime.errors import PeerError
from edge_runtime.train.config import RoundTask
from edge_runtime.updates import TensorLayout
from edge_runtime.updates.delta import FloatVector
from edge_runtime.updates.versions import Versions, model_id
from server.publish import DeltaModels, WholeModels

LAYOUT = TensorLayout.of({"conv": (3, 2, 5), "frozen": (7,), "out": (4, 6), "scale": ()})
TENSORS = Tensors(LAYOUT, LAYOUT.subset(["conv", "out", "scale"]))
WHOLE = ["float32", "float16", "bfloat16", "int8"]
DELTAS: list[dict[str, Any]] = [
    {"delta": "uniform", "bits": 4},
    {"delta": "topk,float16", "fraction": 0.2},
    {"delta": "stc", "fraction": 0.1},
    {"delta": "context", "bits": 1.0},
    {"delta": "int8"},
    {"delta": "float32"},
]


class MemoryStore(dict[str, bytes]):
    """A client's store that lives as long as it is not cleared."""

    def read(self, name: str, most: int) -> bytes | None:
        return self.get(name)

    def write(self, name: str, content: bytes) -> None:
        self[name] = content


class Node:
    def __init__(self) -> None:
        self.store = MemoryStore()

    def receive(self, publisher: DeltaModels, task: RoundTask) -> FloatVector:
        return receive_model(task, publisher.parcel(id(self)), TENSORS, ClientState(self.store))


def task_of(codec: str, delta: dict[str, Any], number: int = 1) -> RoundTask:
    return from_flat(
        RoundTask, {"round": number, "downlink.codec": codec, **{f"downlink.{k}": v for k, v in delta.items()}}
    )


def publisher_of(task: RoundTask) -> DeltaModels:
    delta = task.downlink.build_delta()
    assert delta is not None
    return DeltaModels(Versions(LAYOUT, TENSORS.moving, task.downlink.build(), delta), seed=3)


def start(seed: int = 0) -> FloatVector:
    values: FloatVector = np.random.default_rng(seed).normal(size=LAYOUT.size).astype(np.float32)
    return values


def moved(weights: FloatVector, rng: np.random.Generator, size: float = 0.1) -> FloatVector:
    """The weights after a round: all that may move has moved."""
    after = weights.copy()
    for name, view in LAYOUT.views(after).items():
        if name != "frozen":
            view += rng.normal(scale=size, size=view.shape).astype(np.float32)
    return after


# What becomes of one node in one round: it answers; it trains and its answer is lost; the message does not reach it;
# it answers with an error of its own; it loses its state, and is then asked; it loses its state unasked.
FATES = ["answers", "answer lost", "not reached", "fails", "wiped, asked", "wiped"]


@settings(deadline=None, max_examples=60)
@given(
    codec=st.sampled_from(WHOLE),
    delta=st.sampled_from(DELTAS),
    rounds=st.lists(st.tuples(*[st.sampled_from(FATES)] * 3, st.booleans()), min_size=1, max_size=14),
)
def test_every_node_that_answers_holds_the_servers_version(codec, delta, rounds):
    publisher = publisher_of(task_of(codec, delta))
    nodes, rng, weights = [Node() for _ in range(3)], np.random.default_rng(1), start()
    for number, (*fates, applied) in enumerate(rounds, 1):
        task = task_of(codec, delta, number)
        publisher.publish(weights, number)
        for node, fate in zip(nodes, fates, strict=True):
            if fate.startswith("wiped"):
                node.store.clear()
            if fate in ("not reached", "wiped"):
                continue
            if not node.store and not publisher.parcel(id(node)).whole:
                # Only a node that has lost its state cannot use what it is sent, and only once.
                with pytest.raises(PeerError, match="it needs the whole model"):
                    node.receive(publisher, task)
                publisher.learn(id(node), b"")
            values = node.receive(publisher, task)
            np.testing.assert_array_equal(values, publisher.values)
            assert model_id(values) == publisher.model_id
            if fate != "answer lost":
                publisher.learn(id(node), b"" if fate == "fails" else publisher.model_id)
        if applied:
            weights = moved(weights, rng)


@settings(deadline=None, max_examples=30)
@given(codec=st.sampled_from(WHOLE), delta=st.sampled_from(DELTAS), absent=st.integers(1, 60))
def test_a_chain_is_never_larger_than_the_whole_model(codec, delta, absent):
    task, node, rng, weights = task_of(codec, delta), Node(), np.random.default_rng(2), start()
    publisher = publisher_of(task)
    publisher.publish(weights, 1)
    whole = publisher.parcel(id(node))
    assert whole.whole
    publisher.learn(id(node), publisher.model_id)
    for number in range(2, 2 + absent):
        weights = moved(weights, rng)
        publisher.publish(weights, number)
        parcel = publisher.parcel(id(node))
        assert len(parcel.content) < len(whole.content) or parcel.whole


def test_a_delta_costs_what_the_codec_says_and_one_object_serves_all_that_are_up_to_date():
    task = task_of("float32", {"delta": "uniform", "bits": 2})
    publisher, nodes = publisher_of(task), [Node() for _ in range(5)]
    publisher.publish(start(), 1)
    first = [publisher.parcel(id(node)) for node in nodes]
    assert all(parcel is first[0] for parcel in first)
    for node in nodes[:4]:
        publisher.learn(id(node), publisher.model_id)
    publisher.publish(moved(start(), np.random.default_rng(1)), 2)
    parcels = [publisher.parcel(id(node)) for node in nodes]
    assert all(parcel is parcels[0] for parcel in parcels[:4])
    assert not parcels[0].whole
    assert parcels[4].whole
    assert len(parcels[0].content) < len(parcels[4].content) / 3


def test_what_a_delta_loses_is_in_the_next_one():
    """A codec that keeps the largest fifth: after five versions of the same weights nothing is missing."""
    publisher = publisher_of(task_of("float32", {"delta": "topk", "fraction": 0.2}))
    publisher.publish(start(), 1)
    weights, missing = moved(start(), np.random.default_rng(4)), []
    for number in range(2, 8):
        publisher.publish(weights.copy(), number)
        missing.append(float(np.abs(weights - publisher.values).max()))
    assert missing[0] > missing[2] > 0.0
    np.testing.assert_allclose(publisher.values, weights, rtol=0, atol=1e-7)


def test_weights_that_stayed_are_no_new_version():
    publisher, weights = publisher_of(task_of("float16", {"delta": "int8"})), start()
    publisher.publish(weights, 1)
    first = publisher.model_id
    publisher.publish(weights, 2)
    assert publisher.model_id == first
    node = Node()
    publisher.learn(id(node), first)
    assert len(publisher.parcel(id(node)).content) == len(first)


@pytest.mark.parametrize("codec", WHOLE)
def test_frozen_tensors_are_on_the_grid_from_the_first_version_on(codec):
    publisher, weights, rng = publisher_of(task_of(codec, {"delta": "int8"})), start(), np.random.default_rng(5)
    publisher.publish(weights, 1)
    first = LAYOUT.views(publisher.values)["frozen"].copy()
    for number in range(2, 6):
        weights = moved(weights, rng, size=1.0)
        publisher.publish(weights, number)
    np.testing.assert_array_equal(LAYOUT.views(publisher.values)["frozen"], first)


def test_an_unknown_version_is_sent_the_whole_model():
    publisher, node = publisher_of(task_of("float32", {"delta": "int8"})), Node()
    publisher.publish(start(), 1)
    publisher.learn(id(node), b"8 bytes!")
    assert publisher.parcel(id(node)).whole


def test_without_deltas_all_are_sent_the_whole_model_of_this_round():
    task = task_of("int8", {})
    publisher = WholeModels(LAYOUT, task.downlink.build())
    publisher.publish(start(), 1)
    publisher.learn(7, b"8 bytes!")
    parcel = publisher.parcel(7)
    assert (parcel.whole, parcel.model_id) == (True, b"")
    assert parcel is publisher.parcel(8)
    store = MemoryStore()
    receive_model(task, parcel, TENSORS, ClientState(store))
    assert not store, "nothing is kept where nothing is asked for"
