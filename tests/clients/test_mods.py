"""A plain Flower ClientApp with `update_codec_mod` against our server, over real client processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from safetensors.numpy import load_file

from clients.mods import update_codec_mod
from edge_runtime.config import flatten, from_flat
from edge_runtime.train.config import RoundTask
from edge_runtime.updates import STYPE, TensorLayout, make_codec
from edge_runtime.updates.versions import Chain, model_id
from server.app import make_app
from simulations.grid import RUN_ID, SERVER_NODE_ID, InProcessGrid, assume_identity

EXAMPLES = Path(__file__).parents[2] / "examples"
SETTINGS: dict[str, Any] = {
    "data.name": "digits", "data.clients": 4, "model.entry": "own_client:model", "train.epochs": 20,
    "server.rounds": 6, "server.cohort": 3, "server.min_updates": 3, "deploy.formats": "",
}  # fmt: skip
SMALL = {
    "uplink.codec": "topk,float16", "uplink.fraction": 0.2, "uplink.error_feedback": True,
    "downlink.codec": "float16", "downlink.delta": "uniform", "downlink.bits": 8,
}  # fmt: skip


def run(out: Path, **settings: Any) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    with InProcessGrid(4, 2, client_app="own_client:app") as grid:
        config = {**SETTINGS, **settings, "run.out": str(out)}
        make_app(clock=grid.clock)(grid, Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), config))
    return json.loads((out / "run.json").read_text()), load_file(out / "model.safetensors")


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example is importable here and in client processes; building a message needs an identity."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    assume_identity(7)


def test_an_app_of_arrays_in_and_out_trains_through_small_codecs(tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "plain")
    small, _ = run(tmp_path / "small", **SMALL)
    for record in (plain, small):
        assert [(row["clients"], row["dropped"]) for row in record["rounds"]] == [(3, 0)] * 6
    assert plain["final"]["accuracy"] > 0.85
    assert small["final"]["accuracy"] > plain["final"]["accuracy"] - 0.03
    assert small["final"]["uplink_bytes"] < plain["final"]["uplink_bytes"] / 5
    payload = [row["downlink_bytes"] for row in small["rounds"]]
    assert payload[-1] < payload[0]


def test_the_app_may_measure_the_model_on_the_clients(tmp_path: Path) -> None:
    record, _ = run(tmp_path / "run", **{**SMALL, "server.evaluate": "clients"})
    assert record["final"]["accuracy"] > 0.8
    assert record["final"]["evaluated_on"] == "clients' own training data"


LIKE = {"a": (2, 3), "b": (4,)}
LAYOUT = TensorLayout.of(LIKE)


def message(kind: str = "train", *, number: int = 2, settings: dict[str, Any] | None = None) -> Message:
    values = np.arange(LAYOUT.size, dtype=np.float32)
    payload = make_codec("float32").encode_vector(values, LAYOUT, round_number=number)
    task = flatten(from_flat(RoundTask, {"round": number, **(settings or {})}))
    content = RecordDict(
        {"model": ArrayRecord({"weights": Array("uint8", (len(payload),), STYPE, payload)}), "task": ConfigRecord(task)}
    )
    if (settings or {}).get("downlink.delta"):
        content.config_records["task"]["model-id"] = model_id(values)
    asked = Message(content, 7, kind)
    asked.metadata.__dict__["_message_id"] = "asked"
    return asked


def plus_one(asked: Message, _: Context) -> Message:
    arrays = asked.content.array_records["arrays"]
    assert {name: array.numpy().shape for name, array in arrays.items()} == LIKE
    assert asked.content.config_records["config"]["round"] == 2
    trained = ArrayRecord({name: Array(array.numpy() + 1) for name, array in arrays.items()})
    figures = MetricRecord({"num-examples": 3, "loss": 0.5})
    return Message(RecordDict({"arrays": trained, "metrics": figures}), reply_to=asked)


def context() -> Context:
    return Context(1, 7, {}, RecordDict(), {})


def test_the_update_is_what_came_back_less_what_was_given_of_the_tensors_that_move() -> None:
    reply = update_codec_mod(LIKE, moving=["b"])(message(), context(), plus_one)
    part = LAYOUT.subset(["b"])
    payload = reply.content.array_records["update"]["delta"].data
    np.testing.assert_array_equal(make_codec("float32").decode_vector(payload, part, round_number=2), np.ones(4))
    assert dict(reply.content.metric_records["metrics"]) == {"num-examples": 3, "loss": 0.5}
    assert "holds" not in reply.content


def test_versions_and_residuals_are_kept_where_they_are_asked_for() -> None:
    settings = {"downlink.delta": "int8", "uplink.codec": "topk", "uplink.error_feedback": True}
    node, mod = context(), update_codec_mod(LIKE)
    reply = mod(message(settings=settings), node, plus_one)
    held = reply.content.config_records["holds"]["model-id"]
    assert held == model_id(np.arange(LAYOUT.size, dtype=np.float32))
    assert node.state
    again = message("evaluate", settings=settings)
    chain = Chain(bytes(held), ()).pack()
    again.content.array_records["model"]["weights"] = Array("uint8", (len(chain),), "hedgerow.deltas.v1", chain)
    assert mod(again, node, plus_one).content.config_records["holds"]["model-id"] == held
    untouched = context()
    mod(message(), untouched, plus_one)
    assert not untouched.state


def test_an_update_under_local_privacy_leaves_with_its_noise_and_without_figures() -> None:
    local = {"local.clip": 1.0, "local.scale": 1024.0, "local.noise": "1048576"}  # noise of 1024 on updates of up to 1
    reply = update_codec_mod(LIKE)(message(settings=local), context(), plus_one)
    payload = reply.content.array_records["update"]["delta"].data
    sent = make_codec("float32").decode_vector(payload, LAYOUT, round_number=2)
    assert np.linalg.norm(sent) > 100
    assert dict(reply.content.metric_records["metrics"]) == {"num-examples": 1, "loss": 0.0}


def test_errors_and_other_messages_pass_through() -> None:
    mod = update_codec_mod(LIKE)
    failed = mod(message(), context(), lambda asked, _: Message(Error(1, "no"), reply_to=asked))
    assert failed.error.reason == "no"
    query = message("query")
    assert mod(query, context(), lambda asked, _: asked) is query
    assert "model" in query.content
