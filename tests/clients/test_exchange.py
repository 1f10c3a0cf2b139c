"""A client's half of the exchange: malformed models are refused, and error feedback sends everything, once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.exchange import Tensors, encode_update, receive_model
from clients.state import ClientState, FileStore
from edge_runtime.config import from_flat
from edge_runtime.errors import NumericsError, PeerError
from edge_runtime.train.config import RoundTask
from edge_runtime.updates import TensorLayout, make_codec
from edge_runtime.updates.delta import FloatVector
from edge_runtime.updates.versions import Chain, Delta, Parcel, model_id

LAYOUT = TensorLayout.of({"w": (8, 5), "b": (5,), "frozen": (3,)})
TENSORS = Tensors(LAYOUT, LAYOUT.subset(["w", "b"]))
FLOAT32 = make_codec("float32")


class MemoryStore(dict[str, bytes]):
    def read(self, name: str, most: int) -> bytes | None:
        return self.get(name)

    def write(self, name: str, content: bytes) -> None:
        self[name] = content


def task(number: int = 3, **settings: Any) -> RoundTask:
    return from_flat(RoundTask, {"round": number, "seed": 5, **settings})


def model(number: int = 3, layout: TensorLayout = LAYOUT) -> bytes:
    return FLOAT32.encode_vector(np.arange(layout.size, dtype=np.float32), layout, round_number=number)


def receive(sent: Parcel, asked: RoundTask | None = None, store: MemoryStore | None = None) -> FloatVector:
    return receive_model(asked or task(), sent, TENSORS, ClientState(MemoryStore() if store is None else store))


# The model.


def test_a_whole_model_is_read_as_it_was_written() -> None:
    np.testing.assert_array_equal(receive(Parcel(model())), np.arange(LAYOUT.size))


@pytest.mark.parametrize("number", [2, 4])
def test_a_model_of_another_round_is_refused(number: int) -> None:
    with pytest.raises(PeerError, match=f"belongs to round {number}, this is round 3"):
        receive(Parcel(model(number)))


def test_a_model_with_other_tensors_is_refused() -> None:
    with pytest.raises(PeerError, match="are not the model's"):
        receive(Parcel(model(layout=TENSORS.moving)))


@settings(deadline=None)
@given(raw=st.binary(max_size=200), whole=st.booleans(), delta=st.sampled_from(["", "topk", "uniform", "stc"]))
def test_bytes_that_are_no_model_are_refused(raw: bytes, whole: bool, delta: str) -> None:
    store, asked = MemoryStore(), task(**{"downlink.delta": delta})
    with pytest.raises(PeerError):
        receive(Parcel(raw, whole, bytes(8)), asked, store)
    assert not store


@settings(deadline=None)
@given(data=st.data())
def test_a_model_cut_short_or_with_a_damaged_head_is_refused(data: st.DataObject) -> None:
    good = model()
    head = len(good) - 4 * LAYOUT.size
    cut = data.draw(st.integers(0, len(good) - 1))
    at, flip = data.draw(st.integers(0, head - 1)), data.draw(st.integers(1, 255))
    for bad in (good[:cut], good + b"\0", good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :]):
        with pytest.raises(PeerError):
            receive(Parcel(bad))


def test_a_model_that_is_not_the_version_it_says_is_refused_and_not_kept() -> None:
    store, asked = MemoryStore(), task(**{"downlink.delta": "int8"})
    with pytest.raises(PeerError, match="is not 0000000000000000, as it says"):
        receive(Parcel(model(), True, bytes(8)), asked, store)
    assert not store
    with pytest.raises(PeerError, match="is not , as it says"):
        receive(Parcel(model()), asked, store)


def test_deltas_from_a_version_that_is_not_held_are_refused_by_name() -> None:
    asked = task(**{"downlink.delta": "int8"})
    values = np.arange(LAYOUT.size, dtype=np.float32)
    store = MemoryStore()
    sent = Parcel(Chain(b"\1" * 8, ()).pack(), False, b"\1" * 8)
    with pytest.raises(PeerError, match="start from model 0101010101010101, this node holds none"):
        receive(sent, asked, store)
    receive(Parcel(model(), True, model_id(values)), asked, store)
    with pytest.raises(PeerError, match=f"this node holds {model_id(values).hex()}: it needs the whole model"):
        receive(sent, asked, store)


def test_a_damaged_delta_leaves_the_node_with_what_it_held() -> None:
    asked, store = task(**{"downlink.delta": "float32"}), MemoryStore()
    values = np.arange(LAYOUT.size, dtype=np.float32)
    held = model_id(values)
    receive(Parcel(model(), True, held), asked, store)
    step = FLOAT32.encode_vector(np.ones(TENSORS.moving.size, np.float32), TENSORS.moving)
    chain = Chain(held, (Delta(b"\2" * 8, step), Delta(b"\3" * 8, step[:-1])))
    with pytest.raises(PeerError):
        receive(Parcel(chain.pack(), False, b"\3" * 8), asked, store)
    np.testing.assert_array_equal(receive(Parcel(Chain(held, ()).pack(), False, held), asked, store), values)


def test_deltas_that_the_task_knows_nothing_of_are_refused() -> None:
    with pytest.raises(PeerError, match="names no codec for them"):
        receive(Parcel(Chain(bytes(8), ()).pack(), False, bytes(8)))


# The update, and what error feedback keeps of it.

LOSSY: list[dict[str, Any]] = [
    {"uplink.codec": "topk", "uplink.fraction": 0.1},
    {"uplink.codec": "topk,int8", "uplink.fraction": 0.2},
    {"uplink.codec": "signsgd"},
    {"uplink.codec": "hadamard", "uplink.bits": 1},
    {"uplink.codec": "context", "uplink.bits": 2.0},
    {"uplink.codec": "float16"},
]
STOCHASTIC = ("uniform", "hadamard")  # the same values, another payload: by the client's seed


def delta_of(number: int) -> FloatVector:
    values: FloatVector = np.random.default_rng(number).normal(size=TENSORS.moving.size).astype(np.float32)
    return values


def feedback(**settings: Any) -> dict[str, Any]:
    return {**settings, "uplink.error_feedback": True}


def encoded(settings: dict[str, Any], number: int, state: ClientState, client: int = 2) -> bytes:
    return encode_update(task(number, **settings), delta_of(number), TENSORS, state, client)


def decoded(settings: dict[str, Any], payload: bytes, number: int) -> FloatVector:
    return task(**settings).uplink.build().decode_vector(payload, TENSORS.moving, round_number=number)


@given(settings=st.sampled_from(LOSSY), rounds=st.lists(st.integers(1, 40), min_size=1, max_size=8, unique=True))
def test_what_was_sent_and_what_is_kept_is_all_there_was(settings, rounds):
    """Over any rounds in which the client takes part: decoded updates and residual add up to the deltas."""
    settings, state = feedback(**settings), ClientState(MemoryStore())
    sent = sum(decoded(settings, encoded(settings, k, state), k).astype(np.float64) for k in sorted(rounds))
    there = sum(delta_of(k).astype(np.float64) for k in rounds)
    left = state.residual(TENSORS.moving, 99)
    assert left is not None
    np.testing.assert_allclose(sent + left, there, atol=1e-4)


@given(st.lists(st.sampled_from(["arrives", "lost", "first of two", "second of two"]), min_size=1, max_size=12))
def test_nothing_is_counted_twice_whatever_is_lost_or_asked_again(fates):
    """Deltas above zero and a codec that sends values as they are: a sum above theirs would hold one of them twice."""
    settings, state = feedback(**LOSSY[0]), ClientState(MemoryStore())
    counted, there = np.zeros(TENSORS.moving.size), np.zeros(TENSORS.moving.size)
    for number, fate in enumerate(fates, 1):
        delta = np.abs(delta_of(number))
        answers = [
            encode_update(task(number, **settings), delta, TENSORS, state, 2)
            for _ in range(2 if fate.endswith("of two") else 1)
        ]
        there += delta
        if fate != "lost":
            counted += decoded(settings, answers[-1 if fate.startswith("second") else 0], number)
    left = state.residual(TENSORS.moving, 99)
    assert left is not None
    assert (counted + left <= there + 1e-5).all()
    if set(fates) == {"arrives"}:
        np.testing.assert_allclose(counted + left, there, atol=1e-5)


def test_feedback_sends_in_time_what_a_codec_would_leave_out_for_ever():
    steady: FloatVector = np.linspace(1, 0.1, TENSORS.moving.size, dtype=np.float32)
    total = {}
    for on in (False, True):
        settings, state = {**LOSSY[0], "uplink.error_feedback": on}, ClientState(MemoryStore())
        payloads = [encode_update(task(k, **settings), steady, TENSORS, state, 2) for k in range(1, 61)]
        total[on] = sum(decoded(settings, payload, k) for k, payload in enumerate(payloads, 1))
    assert np.count_nonzero(total[False]) == 4
    np.testing.assert_allclose(total[True], 60 * steady, atol=8)


@pytest.mark.parametrize("settings", [*LOSSY, {"uplink.codec": "uniform", "uplink.bits": 2}])
def test_without_feedback_nothing_is_kept_and_the_bytes_follow_from_task_and_client(settings):
    store = MemoryStore()
    first, again, other = (encoded(settings, 3, ClientState(store), client) for client in (2, 2, 3))
    assert first == again
    assert (first != other) == (settings["uplink.codec"] in STOCHASTIC)
    assert not store


def test_a_diverged_update_names_its_tensor_and_leaves_the_residual():
    settings, store = feedback(**LOSSY[0]), MemoryStore()
    encoded(settings, 1, ClientState(store))
    before = dict(store)
    bad = delta_of(2)
    bad[-1] = np.nan
    with pytest.raises(NumericsError, match="tensor b holds NaN"):
        encode_update(task(2, **settings), bad, TENSORS, ClientState(store), 2)
    assert store == before


RESTARTED = """
import json, sys
from pathlib import Path
import numpy as np
from clients.exchange import Tensors, encode_update
from clients.state import ClientState, FileStore
from edge_runtime.config import from_flat
from edge_runtime.train.config import RoundTask
from edge_runtime.updates import TensorLayout
folder, number, settings = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
layout = TensorLayout.of({"w": (8, 5), "b": (5,), "frozen": (3,)})
tensors = Tensors(layout, layout.subset(["w", "b"]))
delta = np.random.default_rng(number).normal(size=tensors.moving.size).astype(np.float32)
task = from_flat(RoundTask, {"round": number, "seed": 5, **settings})
print(encode_update(task, delta, tensors, ClientState(FileStore(folder, 1)), 2).hex())
"""


def test_feedback_goes_on_after_a_restart_of_the_clients_process(tmp_path: Path) -> None:
    settings, here = feedback(**LOSSY[1]), ClientState(MemoryStore())
    for number in (1, 2, 5):
        command = [sys.executable, "-c", RESTARTED, str(tmp_path), str(number), json.dumps(settings)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert bytes.fromhex(done.stdout.strip()) == encoded(settings, number, here)
    kept, expected = (state.residual(TENSORS.moving, 9) for state in (ClientState(FileStore(tmp_path, 1)), here))
    np.testing.assert_array_equal(kept, expected)
    assert np.abs(expected).max() > 0
