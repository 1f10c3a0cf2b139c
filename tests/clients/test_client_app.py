"""The Flower client app on messages built by hand: what a good one earns, and how each bad one is refused."""

from __future__ import annotations

from collections.abc import Mapping
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
from edge_runtime.train.factory import make_module, make_trainer
from edge_runtime.train.torch_trainer import TorchTrainer
from edge_runtime.updates import STYPE, TensorLayout, make_codec
from simulations.datasets import DIGITS
from simulations.grid import assume_identity

NODE = {"partition-id": 2, "num-partitions": 5}
SETTINGS: dict[str, Any] = {
    "round": 2, "data.name": "digits", "data.clients": 5, "model.name": "digits_cnn", "train.batch_size": 1000,
    "train.epochs": 4, "train.optimizer.lr": 0.1, "train.optimizer.momentum": 0.5,
}  # fmt: skip


@pytest.fixture(autouse=True)
def identity() -> None:
    """Building a message needs to know which node this process is."""
    assume_identity(7)


def initial_state(name: str = "digits_cnn") -> dict[str, Any]:
    return make_trainer(ModelConfig(name=name), TrainConfig(), seed=31).state_dict()


def weights(name: str = "digits_cnn", *, round_number: int = 2, stype: str = STYPE) -> ArrayRecord:
    state = initial_state(name)
    layout = TensorLayout.of(state)
    payload = make_codec("float32").encode_vector(layout.flatten(state), layout, round_number=round_number)
    return ArrayRecord({"weights": Array("uint8", (len(payload),), stype, payload)})


def task(**changes: Any) -> ConfigRecord:
    return ConfigRecord({**flatten(from_flat(RoundTask, SETTINGS)), **changes})


def ask(content: Mapping[str, Any], node: Mapping[str, Any] = NODE, kind: str = "train") -> RecordDict:
    message = Message(RecordDict(dict(content)), 7, kind, group_id="2")
    message.metadata.__dict__["_message_id"] = "asked"
    reply = app(message, Context(1, 7, dict(node), RecordDict(), {}))
    assert reply.metadata.reply_to_message_id == "asked"
    return reply.content


def good(**changes: Any) -> dict[str, Any]:
    return {"model": weights(), "task": task(**changes)}


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


def test_an_update_is_local_minus_global_weights(own_data: tuple[dict[str, Any], Examples]) -> None:
    """Whole-set batches, so that an independent run needs no shuffling to be the same."""
    node, examples = own_data
    reply = ask(good(), node)
    module = make_module(ModelConfig(name="digits_cnn"), seed=0)
    trainer = TorchTrainer(module, optimizer=SGD(lr=0.1, momentum=0.5))
    trainer.load_state_dict(initial_state())
    history = trainer.fit([(examples.x, examples.y)], epochs=4)
    layout = TensorLayout.of(initial_state())
    expected = layout.flatten(trainer.state_dict()) - layout.flatten(initial_state())
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(delta_of(reply), expected, rtol=1e-3, atol=1e-6)
    metrics = reply.metric_records["metrics"]
    assert metrics["num-examples"] == 40
    assert metrics["loss"] == pytest.approx(history.mean_loss, rel=1e-4)


def test_a_replayed_message_gets_the_same_update() -> None:
    first = delta_of(ask(good()))
    ask(good(seed=8), {"partition-id": 1, "num-partitions": 5})
    np.testing.assert_array_equal(delta_of(ask(good())), first)


def test_a_proximal_term_holds_the_client_closer() -> None:
    free, held = (np.linalg.norm(delta_of(ask(good(proximal_mu=mu)))) for mu in (0.0, 5.0))
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


def test_evaluation_returns_the_global_models_figures(own_data: tuple[dict[str, Any], Examples]) -> None:
    node, examples = own_data
    reply = ask(good(), node, "evaluate")
    trainer = TorchTrainer(make_module(ModelConfig(name="digits_cnn"), seed=0))
    trainer.load_state_dict(initial_state())
    expected = trainer.evaluate([(examples.x, examples.y)])
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
        ({"uplink.codec": "pickle"}, r"uplink\.codec = 'pickle'"),
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
            ask(good(**{"model.entry": entry}), {**NODE, **allowed})
    assert "update" in ask(good(**{"model.entry": entry}), {**NODE, "model-entry": entry})


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
