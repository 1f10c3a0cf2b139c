"""The run directory: whole files, an event log that outlives a crash, and no run over another."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from edge_runtime.errors import ConfigError, RunError
from server.checkpoint import pack, unpack
from server.journal import Journal
from server.run_store import RunStore, model_bytes


def test_a_directory_with_a_run_is_refused(tmp_path):
    RunStore(tmp_path).write_json("run.json", {})
    with pytest.raises(ConfigError, match="already holds a run"):
        RunStore(tmp_path)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        RunStore(tmp_path / "file" / "run")


def test_events_survive_a_process_that_dies_without_closing(tmp_path):
    code = (
        "import os, pathlib, sys; from server.run_store import RunStore; "
        "store = RunStore(pathlib.Path(sys.argv[1])); store.append('round_closed', {'a': 1}, 7); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    rows = sqlite3.connect(tmp_path / "events.sqlite").execute("SELECT kind, round, data FROM events").fetchall()
    assert [(kind, number, json.loads(data)) for kind, number, data in rows] == [("round_closed", 7, {"a": 1})]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    store.write("model", b"old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(RunError, match="disk gone"):
        store.write("model", b"new")
    assert (tmp_path / "model").read_bytes() == b"old"


def test_equal_models_are_equal_bytes_in_any_order():
    a, b = np.ones((2, 3), np.float32), np.arange(4, dtype=np.float32)
    assert model_bytes({"a": a, "b": b}) == model_bytes({"b": b, "a": a.copy(order="F")})
    np.testing.assert_array_equal(load(model_bytes({"a": a}))["a"], a)


def test_nan_never_reaches_the_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        RunStore(tmp_path).write_json("run.json", {"loss": float("nan")})
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("data", ["", "[1]", "{" * 9000, '{"a": 1', "7"])
def test_an_event_that_is_damaged_is_said_to_be(tmp_path, data):
    store = RunStore(tmp_path)
    store._events.execute("INSERT INTO events (unix_s, kind, data) VALUES (1, 'checkpoint', ?)", (data,))
    for read in (store.last_checkpoint, lambda: store.events("checkpoint"), lambda: store.last_event("checkpoint")):
        with pytest.raises(RunError, match="is damaged"):
            read()


@pytest.mark.parametrize("name", ["", "..", "../../../../dev/zero", "/etc/passwd", "A" * 64])
def test_no_name_leads_out_of_the_directory(tmp_path, name):
    store = RunStore(tmp_path)
    for read in (store.blob, store.model):
        with pytest.raises(RunError, match="no file's name"):
            read(name)


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"model": {}},
        {"model": {}, "run_id": 7},
        {"model": {"values": [1]}, "run_id": "7"},
        {"model": 3, "run_id": ""},
    ],
)
def test_a_checkpoint_of_something_else_is_refused_in_one_line(tmp_path, tree):
    class Model:
        def state(self):
            return {}

        def restore(self, state):
            self.values = state["values"].astype("f4")

    store = RunStore(tmp_path)
    store.append("checkpoint", {"blob": store.keep(pack(tree)), "model": "m"}, 1)
    with pytest.raises(RunError, match="checkpoint of round 1"):
        Journal(store, {"model": Model()}, 1, 1).resume()


@pytest.mark.parametrize("inner", ['{"a":' * 3000 + "1" + "}" * 3000, "[" * 5000 + "]" * 5000])
def test_a_checkpoint_that_is_too_deep_is_refused(inner):
    metadata = {"hedgerow": '{"version": 1, "tree": ' + inner + "}"}
    header = json.dumps({"__metadata__": metadata}).encode()
    header += b" " * (-len(header) % 8)
    with pytest.raises(RunError, match="cannot be read"):
        unpack(len(header).to_bytes(8, "little") + header)
