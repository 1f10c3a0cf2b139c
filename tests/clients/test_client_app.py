"""The Flower client app on messages built by hand: what a good one earns, and how each bad one is refused."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from clients.app import app
from edge_runtime.config import flatten, from_flat
from edge_runtime.errors import ConfigError, EdgeRuntimeError, PeerError
from edge_runtime.optimizers import SGD
from edge_runtime.train.batches import Examples
from edge_runtime.train.config import ModelConfig, RoundTask, TrainConfig
from edge_runtime.train.factory import example_of, make_module, make_program, make_trainer, pack_program
from edge_runtime.train.torch_trainer import TorchTrainer
from edge_runtime.updates import STYPE, TensorLayout, make_codec
from edge_runtime.updates.versions import CHAIN_STYPE, Chain, model_id
from simulations.datasets import DIGITS
from simulations.grid import assume_identity

NODE = {"partition-id": 2, "num-partitions": 5}
SETTINGS: dict[str, Any] = {
    "round": 2, "data.name": "digits", "data.clients": 5, "model.name": "digits_cnn", "model.input": "1x8x8",
    "train.batch_size": 1000, "train.epochs": 4, "train.optimizer.lr": 0.1, "train.optimizer.momentum": 0.5,
}  # fmt: skip
both_trainers = pytest.mark.parametrize("trainer", ["engine", "torch"])


@pytest.fixture(autouse=True)
def identity() -> None:
    """Building a message needs to know which node this process is."""
    assume_identity(7)


@cache
def initial_state(name: str = "digits_cnn") -> dict[str, Any]:
    return make_trainer(ModelConfig(name=name), TrainConfig(trainer="torch"), seed=31).state_dict()


@cache
def program(proximal_mu: float = 0.0) -> bytes:
    asked = from_flat(RoundTask, SETTINGS)
    return pack_program(make_program(asked.model, asked.train, example_of(asked.model), proximal_mu=proximal_mu))


def weights(name: str = "digits_cnn", *, round_number: int = 2, stype: str = STYPE) -> ArrayRecord:
    state = initial_state(name)
    layout = TensorLayout.of(state)
    payload = make_codec("float32").encode_vector(layout.flatten(state), layout, round_number=round_number)
    return ArrayRecord({"weights": Array("uint8", (len(payload),), stype, payload)})


def task(trainer: str = "engine", **changes: Any) -> ConfigRecord:
    brings = {"program": program(changes.get("proximal_mu", 0.0))} if trainer == "engine" else {}
    return ConfigRecord({**flatten(from_flat(RoundTask, SETTINGS)), "train.trainer": trainer, **brings, **changes})


def ask(content: Mapping[str, Any], node: Mapping[str, Any] = NODE, kind: str = "train") -> RecordDict:
    message = Message(RecordDict(dict(content)), 7, kind, group_id="2")
    message.metadata.__dict__["_message_id"] = "asked"
    reply = app(message, Context(1, 7, dict(node), RecordDict(), {}))
    assert reply.metadata.reply_to_message_id == "asked"
    return reply.content


def good(trainer: str = "engine", **changes: Any) -> dict[str, Any]:
    return {"model": weights(), "task": task(trainer, **changes)}


def delta_of(reply: RecordDict) -> np.ndarray[Any, Any]:
    array = reply.array_records["update"]["delta"]
    assert array.stype == STYPE
    return make_codec("float32").decode_vector(array.data, TensorLayout.of(initial_state()), round_number=2)


@pytest.fixture
def own_data(tmp_path: Path) -> tuple[dict[str, Any], Examples]:
    """A node config that names a local file, and the 40 examples in it."""
    rng = np.random.default_rng(3)
    examples = Examples(rng.normal(size=(40, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, 40))
    np.savez(tmp_path / "own.npz", x=examples.x, y=examples.y)
    return {"data-path": str(tmp_path / "own.npz")}, examples


@both_trainers
def test_an_update_is_local_minus_global_weights(own_data: tuple[dict[str, Any], Examples], trainer: str) -> None:
    """Whole-set batches, so that an independent run needs no shuffling to be the same."""
    node, examples = own_data
    reply = ask(good(trainer), node)
    module = make_module(ModelConfig(name="digits_cnn"), seed=0)
    plain = TorchTrainer(module, optimizer=SGD(lr=0.1, momentum=0.5))
    plain.load_state_dict(initial_state())
    history = plain.fit([(examples.x, examples.y)], epochs=4)
    layout = TensorLayout.of(initial_state())
    expected = layout.flatten(plain.state_dict()) - layout.flatten(initial_state())
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(delta_of(reply), expected, rtol=1e-3, atol=1e-6)
    metrics = reply.metric_records["metrics"]
    assert metrics["num-examples"] == 40
    assert metrics["loss"] == pytest.approx(history.mean_loss, rel=1e-4)


@both_trainers
def test_a_replayed_message_gets_the_same_update(trainer: str) -> None:
    first = delta_of(ask(good(trainer)))
    ask(good(trainer, seed=8), {"partition-id": 1, "num-partitions": 5})
    np.testing.assert_array_equal(delta_of(ask(good(trainer))), first)


@both_trainers
def test_a_proximal_term_holds_the_client_closer(trainer: str) -> None:
    free, held = (np.linalg.norm(delta_of(ask(good(trainer, proximal_mu=mu)))) for mu in (0.0, 5.0))
    assert 0 < held < 0.9 * free


def test_a_node_with_a_partition_trains_on_its_part() -> None:
    data = from_flat(RoundTask, SETTINGS).data
    sizes = [len(DIGITS.client_split(data, 1, client)) for client in range(5)]
    counts = []
    for client in range(5):
        reply = ask(good(), {"partition-id": client, "num-partitions": 5})
        counts.append(reply.metric_records["metrics"]["num-examples"])
    assert counts == sizes
    assert len(set(sizes)) > 1


@both_trainers
def test_evaluation_returns_the_global_models_figures(own_data: tuple[dict[str, Any], Examples], trainer: str) -> None:
    node, examples = own_data
    reply = ask(good(trainer), node, "evaluate")
    plain = TorchTrainer(make_module(ModelConfig(name="digits_cnn"), seed=0))
    plain.load_state_dict(initial_state())
    expected = plain.evaluate([(examples.x, examples.y)])
    assert dict(reply.metric_records["metrics"]) == pytest.approx({"num-examples": 40, **expected}, rel=1e-5)
    assert not reply.array_records


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("names", [(), ("model",), ("task",)])
def test_a_message_without_task_or_model_is_refused(kind: str, names: tuple[str, ...]) -> None:
    with pytest.raises(PeerError, match="no task and model records"):
        ask({name: record for name, record in good().items() if name in names}, kind=kind)


def test_records_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(PeerError, match="no task and model records"):
        ask({"model": task(), "task": weights()})


def test_weights_of_another_type_or_name_are_refused() -> None:
    with pytest.raises(PeerError, match=f"no weights of type {STYPE}"):
        ask({"model": weights(stype="numpy.ndarray"), "task": task()})
    with pytest.raises(PeerError, match=f"no weights of type {STYPE}"):
        ask({"model": ArrayRecord({"other": weights()["weights"]}), "task": task()})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train.epochs": 0}, r"train\.epochs = 0: must be a whole number >= 1"),
        ({"train.batch_size": "many"}, r"train\.batch_size = 'many'"),
        ({"train.optimizer.lr": float("nan")}, r"train\.optimizer\.lr = nan"),
        ({"train.optimizer.lr": -1.0}, r"train\.optimizer\.lr = -1\.0"),
        ({"data.name": "/etc/passwd"}, r"data\.name = '/etc/passwd'"),
        ({"model.name": "os:getcwd"}, r"model\.name = 'os:getcwd'"),
        ({"uplink.codec": "pickle"}, r"uplink\.codec = .*pickle.*: must be"),
        ({"round": 0}, r"round = 0"),
        ({"seed": 2**31}, r"seed = 2147483648"),
        ({"train.run_this": "rm"}, r"train\.run_this = 'rm': no such key"),
        ({"train.epochs": [1, 2]}, r"train\.epochs = \[1, 2\]"),
    ],
)
def test_a_setting_out_of_bounds_is_the_peers_error(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PeerError, match=says):
        ask(good(**changes))


def test_a_model_entry_runs_only_where_the_node_allows_it() -> None:
    entry = "simulations.models:digits_cnn"
    for allowed in ({}, {"model-entry": ""}, {"model-entry": "simulations.models:lenet"}):
        with pytest.raises(PeerError, match="this node's model-entry does not allow it"):
            ask(good("torch", **{"model.entry": entry}), {**NODE, **allowed})
    assert "update" in ask(good("torch", **{"model.entry": entry}), {**NODE, "model-entry": entry})


def test_the_engine_needs_no_leave_for_a_model_entry_because_it_runs_none() -> None:
    """The entry's module does not exist here: the Program is all that a client needs of the model."""
    assert "update" in ask(good(**{"model.entry": "only_on_the_server:make"}))


def test_a_message_brings_a_program_if_and_only_if_the_engine_trains() -> None:
    without = {name: value for name, value in task().items() if name != "program"}
    refused = [ConfigRecord(without), task(program=b""), task(program="text"), task("torch", program=program())]
    for settings in refused:
        with pytest.raises(PeerError, match="does not bring what that one needs"):
            ask({"model": weights(), "task": settings})


def rewritten(**changes: Any) -> bytes:
    """The Program with other values in its header, and a checksum that holds."""
    raw = zlib.decompress(program())
    length = int.from_bytes(raw[8:16], "little")
    text = json.dumps({**json.loads(raw[64 : 64 + length]), **changes}, sort_keys=True, separators=(",", ":")).encode()
    body = text + bytes(-len(text) % 64)
    prelude = raw[:8] + len(text).to_bytes(8, "little") + zlib.crc32(body).to_bytes(4, "little") + bytes(44)
    return zlib.compress(prelude + body)


def other_model() -> bytes:
    """A sound Program, for a model that takes the same examples and has other tensors."""
    model = ModelConfig(name="lenet", input="1x28x28")
    return pack_program(make_program(model, TrainConfig(batch_size=1000), example_of(model)))


BAD_PROGRAMS: dict[str, tuple[Callable[[], bytes], str]] = {
    "no zlib": (lambda: b"program", "the message's Program: Error -3"),
    "cut off": (lambda: program()[:-1], "cut off"),
    "more behind it": (lambda: program() + b"more", "cut off"),
    "no Program inside": (lambda: zlib.compress(b"x" * 100), "not a Hedgerow Program"),
    "damaged inside": (lambda: zlib.compress(zlib.decompress(program())[:-1] + b"\1"), "its checksum does not hold"),
    "of another version": (lambda: rewritten(version=999), "not a Program of version"),
    "without its tensors": (lambda: rewritten(state=[]), "state_dict_order"),
    "with an unknown loss": (lambda: rewritten(loss={"name": "os.system"}), "loss"),
    "with an arena too small for its ops": (lambda: rewritten(arena_bytes=64), "whole number from 0 to 64"),
    "for another model": (other_model, "are not the model's"),
}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(("make", "says"), BAD_PROGRAMS.values(), ids=BAD_PROGRAMS.keys())
def test_a_bad_program_is_refused_in_one_line(make: Callable[[], bytes], says: str, kind: str) -> None:
    with pytest.raises(PeerError, match=says) as refused:
        ask(good(program=make()), kind=kind)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400
    assert "metrics" in ask(good(), kind=kind), "and the next message is answered"


def test_an_op_that_reaches_outside_the_arena_is_refused() -> None:
    """The native core sees it, when the Program is about to run."""
    raw = zlib.decompress(program())
    phases = json.loads(raw[64 : 64 + int.from_bytes(raw[8:16], "little")])["phases"]
    phases[0]["ops"][0][2][0] = 1 << 39
    with pytest.raises(PeerError, match="the message's Program: phase step: op 0"):
        ask(good(program=rewritten(phases=phases)))


def test_a_model_of_another_round_or_shape_is_refused() -> None:
    with pytest.raises(PeerError, match="belongs to round 9, this is round 2"):
        ask({"model": weights(round_number=9), "task": task()})
    with pytest.raises(PeerError, match="are not the model's"):
        ask({"model": weights("mlp"), "task": task()})


def test_a_node_without_data_is_its_owners_error() -> None:
    with pytest.raises(ConfigError, match="node config: give data-path, or partition-id"):
        ask(good(), {})


def test_a_node_whose_file_is_gone_is_its_owners_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.npz': no such file"):
        ask(good(), {"data-path": str(tmp_path / "gone.npz")})


def test_a_partition_beyond_the_servers_clients_is_refused_by_name() -> None:
    with pytest.raises(EdgeRuntimeError, match="partition"):
        ask(good(), {"partition-id": 7, "num-partitions": 10})


def test_a_node_with_a_state_path_goes_on_where_it_was(tmp_path: Path) -> None:
    """Every message here finds a fresh Context, as in a process that was started anew."""
    values = TensorLayout.of(initial_state()).flatten(initial_state())
    settings = {"downlink.delta": "int8", "uplink.codec": "topk", "uplink.error_feedback": True}
    version = {"model-id": model_id(values)}
    first = {"model": weights(), "task": task(**settings, **version)}
    chain = Chain(model_id(values), ()).pack()
    array = Array("uint8", (len(chain),), CHAIN_STYPE, chain)
    later = {"model": ArrayRecord({"weights": array}), "task": task(round=3, **settings, **version)}

    node = {**NODE, "state-path": str(tmp_path)}
    for content in (first, later):
        reply = ask(content, node)
        assert reply.config_records["holds"]["model-id"] == model_id(values)
    ask(first)
    with pytest.raises(PeerError, match="this node holds none: it needs the whole model"):
        ask(later)

    fresh = {"model": weights(round_number=3), "task": task(round=3, **settings, **version)}
    with_residual, without = (one.array_records["update"]["delta"].data for one in (reply, ask(fresh)))
    assert with_residual != without
