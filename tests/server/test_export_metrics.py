"""A run's figures, read back from what other tools were given."""

from __future__ import annotations

import importlib.util
import struct

import pytest

from edge_runtime.cli import main
from server.run_store import Checkpoint, RunStore


@pytest.fixture
def run(tmp_path):
    """A run directory as a server app leaves it, with figures that differ from round to round."""
    directory = tmp_path / "a run"
    store = RunStore(directory)
    store.append("run_started", {"seed": 3, "model.name": "lenet"})
    for number in (1, 2, 3):
        figures = {"accuracy": number / 8, "loss": None if number == 2 else 1 / number, "uplink_bytes": 1000 * number}
        row = {"round": number, **figures, "applied": True, "failures": [], "dropped_in": {"unmask": number}}
        store.close_round(number, row, Checkpoint(number, "b", "m"))
    store.append("run_finished", {"accuracy": 0.375, "int8_accuracy": {"onnx": 0.25}, "model_sha256": "ab"})
    store.close()
    return directory


EXPECTED = {
    "round/accuracy": {1: 0.125, 2: 0.25, 3: 0.375},
    "round/loss": {1: 1.0, 3: 1 / 3},
    "round/uplink_bytes": {1: 1000, 2: 2000, 3: 3000},
    "round/dropped_in/unmask": {1: 1, 2: 2, 3: 3},
    "final/accuracy": {3: 0.375},
    "final/int8_accuracy/onnx": {3: 0.25},
}


def scalars(path):
    """Value by tag and step, from a file of length-prefixed Event protocol buffers (TFRecord)."""
    from tensorboardX.proto.event_pb2 import Event

    content, found, texts = path.read_bytes(), {}, []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, {})[event.step] = (value.simple_value, event.wall_time)
            else:
                texts += value.tensor.string_val
    return found, texts


def test_tensorboard_reads_every_figure_of_every_round(run, tmp_path, capsys):
    assert main(["export-metrics", str(run), "--to", "tensorboard", str(tmp_path / "logs")]) == 0
    assert "3 rounds" in capsys.readouterr().out
    [path] = (tmp_path / "logs" / "a run").iterdir()
    found, texts = scalars(path)
    assert found.keys() == EXPECTED.keys()
    for tag, values in EXPECTED.items():
        assert {step: value for step, (value, _) in found[tag].items()} == pytest.approx(values)
    assert b'model.name = "lenet"' in b"".join(texts)
    closed = run_events(run)
    assert [found["round/accuracy"][step][1] for step in (1, 2, 3)] == pytest.approx(closed)


def run_events(run):
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(run / "events.sqlite")) as events:
        return [at for (at,) in events.execute("SELECT unix_s FROM events WHERE kind = 'round_closed' ORDER BY id")]


def test_mlflow_reads_them_where_it_is_installed(run, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    place = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert main(["export-metrics", str(run), "--to", "mlflow", place]) == 0
    client = mlflow.MlflowClient(place)
    [found] = client.search_runs([client.get_experiment_by_name("hedgerow").experiment_id])
    history = client.get_metric_history(found.info.run_id, "round/accuracy")
    assert {one.step: one.value for one in history} == EXPECTED["round/accuracy"]
    assert found.data.params["model.name"] == "lenet"


@pytest.mark.parametrize("tool", ["mlflow", "wandb"])
def test_a_tool_that_is_not_there_is_one_line(run, tmp_path, tool, capsys):
    if importlib.util.find_spec(tool):
        pytest.skip(f"{tool} is installed")
    assert main(["export-metrics", str(run), "--to", tool, str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert f"pip install {tool}" in error
    assert error.count("\n") == 1


def test_only_a_run_directory_can_be_exported(run, tmp_path, capsys):
    assert main(["export-metrics", str(tmp_path), "--to", "tensorboard", str(tmp_path / "x")]) == 2
    assert main(["export-metrics", str(run / "nothing"), "--to", "tensorboard", str(tmp_path / "x")]) == 2
    (run / "events.sqlite").write_bytes(b"no database" * 100)
    assert main(["export-metrics", str(run), "--to", "tensorboard", str(tmp_path / "x")]) == 3
    assert all("\n" not in line for line in capsys.readouterr().err.splitlines())
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_written_is_one_line(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["export-metrics", str(run), "--to", "tensorboard", str(tmp_path / "file")]) == 3
    assert capsys.readouterr().err.count("\n") == 1
