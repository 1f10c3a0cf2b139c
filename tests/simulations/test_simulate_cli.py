"""`hedgerow simulate` as a user runs it: the files it leaves, its plain lines, its exit codes and one-line errors."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_runtime.config import from_flat
from edge_runtime.train.factory import make_program, pack_program
from simulations.scenario import Scenario

HEDGEROW = Path(sys.executable).with_name("hedgerow")
TINY = (
    "data.name=digits model.name=digits_cnn data.clients=6 data.partition=iid train.epochs=2 train.optimizer.lr=0.1 "
    "server.cohort=4 server.min_updates=2 server.rounds=2"
)
ROW_KEYS = {"round", "loss", "accuracy", "clients", "dropped", "failures", "uplink_bytes", "downlink_bytes", "epsilon"}
FILES = {"run.json", "model.safetensors", "manifest.json", "model_int8.onnx", "events.sqlite", "report.html"}


def hedgerow(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in `folder`, with pipes where a terminal would be."""
    environment = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    return subprocess.run(
        [HEDGEROW, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def simulate(folder: Path, *overrides: str, out: str = "run") -> subprocess.CompletedProcess[str]:
    return hedgerow(folder, "simulate", "--out", out, *settings([*TINY.split(), *overrides]))


def settings(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


@dataclass(frozen=True)
class Finished:
    process: subprocess.CompletedProcess[str]
    folder: Path
    run: dict[str, Any]

    @property
    def directory(self) -> Path:
        return self.folder / "run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("cli")
    process = simulate(folder)
    assert process.returncode == 0, process.stderr
    return Finished(process, folder, json.loads((folder / "run/run.json").read_text()))


def test_a_run_leaves_its_files(finished: Finished) -> None:
    assert {path.name for path in finished.directory.iterdir()} >= FILES
    assert not [path for path in finished.directory.iterdir() if path.name.endswith(".part")]


def test_run_json_names_the_settings(finished: Finished) -> None:
    config = finished.run["config"]
    assert (config["data.name"], config["data.clients"], config["server.rounds"]) == ("digits", 6, 2)
    assert config["train.batch_size"] == 16


def test_run_json_has_a_row_a_round(finished: Finished) -> None:
    assert [row["round"] for row in finished.run["rounds"]] == [1, 2]
    for row in finished.run["rounds"]:
        assert row.keys() >= ROW_KEYS | {"seconds"}
        assert (row["clients"], row["dropped"], row["failures"], row["epsilon"]) == (4, 0, [], None)
        assert 0 <= row["accuracy"] <= 1
        assert row["loss"] > 0
        assert row["seconds"] >= 0


def test_every_byte_of_every_model_is_counted(finished: Finished) -> None:
    """Down goes a Program with each model, to spares as well: what it weighs can be had by building it again."""
    values = sum(tensor.size for tensor in load_file(finished.directory / "model.safetensors").values())
    settings = from_flat(Scenario, finished.run["config"])
    program = pack_program(make_program(settings.model, settings.train, np.zeros((1, 1, 8, 8), np.float32)))
    for row in finished.run["rounds"]:
        assert (row["clients"], row["late"]) == (4, 2)
        assert 4 * 4 * values < row["uplink_bytes"] < 4 * (4 * values + 200)
        assert row["downlink_bytes"] == 6 * (row["uplink_bytes"] // 4 + len(program))


def test_the_final_figures_are_those_of_the_files(finished: Finished) -> None:
    final, last = finished.run["final"], finished.run["rounds"][-1]
    assert (final["accuracy"], final["loss"]) == (last["accuracy"], last["loss"])
    assert abs(final["int8_accuracy"]["onnx"] - final["accuracy"]) < 0.1
    content = (finished.directory / "model.safetensors").read_bytes()
    assert final["model_sha256"] == hashlib.sha256(content).hexdigest()
    for name, size in final["files"].items():
        assert (finished.directory / name).stat().st_size == size
    assert final["files"].keys() >= {"model.safetensors", "model_int8.onnx"}


def test_the_manifest_holds_the_hash_of_every_exported_file(finished: Finished) -> None:
    manifest = json.loads((finished.directory / "manifest.json").read_text())
    assert "model_int8.onnx" in manifest["files"]
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == hashlib.sha256((finished.directory / name).read_bytes()).hexdigest()


def test_the_event_log_tells_the_run_in_order(finished: Finished) -> None:
    connection = sqlite3.connect(finished.directory / "events.sqlite")
    try:
        events = connection.execute("SELECT kind, round FROM events ORDER BY id").fetchall()
    finally:
        connection.close()
    of_run = [kind for kind, number in events if number is None]
    assert (of_run[0], of_run[1], of_run[-1]) == ("run_started", "run_facts", "run_finished")
    for number in (1, 2):
        kinds = [kind for kind, at in events if at == number]
        updates = kinds.count("update_received")
        spares = ["client_late"] * kinds.count("client_late")
        assert kinds == ["round_planned", *["update_received"] * updates, *spares, "round_closed", "checkpoint"]
        assert updates == finished.run["rounds"][number - 1]["clients"]
    assert [number for _, number in events if number is not None] == sorted(n for _, n in events if n is not None)


def test_output_is_plain_lines_where_there_is_no_terminal(finished: Finished) -> None:
    lines = finished.process.stdout.splitlines()
    assert "\x1b" not in finished.process.stdout + finished.process.stderr
    assert "\r" not in finished.process.stdout
    for row in finished.run["rounds"]:
        starts = f"round {row['round']}/2  accuracy {row['accuracy']:.3f}"
        assert sum(line.startswith(starts) for line in lines) == 1
    assert any("report.html" in line for line in lines)


def test_the_same_seed_gives_the_same_model_to_the_bit(finished: Finished, tmp_path: Path) -> None:
    assert simulate(tmp_path, "deploy.formats=").returncode == 0
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["final"]["model_sha256"] == finished.run["final"]["model_sha256"]
    assert [row["loss"] for row in run["rounds"]] == [row["loss"] for row in finished.run["rounds"]]


def assert_one_line(process: subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    assert process.returncode == code
    assert process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith("hedgerow: ")
    assert all(text in process.stderr for text in says), process.stderr


def test_a_directory_that_holds_a_run_is_refused(finished: Finished) -> None:
    before = (finished.directory / "run.json").read_bytes()
    assert_one_line(simulate(finished.folder), 2, "already holds a run", "choose another directory")
    assert (finished.directory / "run.json").read_bytes() == before


@pytest.mark.parametrize("name", ["a b", "it's", 'a"b', r"runs\new"])
def test_out_is_the_directory_it_says(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "run.json").touch()
    assert_one_line(simulate(tmp_path, "deploy.formats=", out=name), 2, "already holds a run")


BAD_ARGUMENTS = {
    "unknown key": (["--set", "server.ronds=3"], "did you mean server.rounds?"),
    "malformed override": (["--set", "server.rounds"], "key=value"),
    "out of range": (["--set", "server.rounds=-1"], "server.rounds = -1"),
    "unknown scenario": (["no-such-scenario"], "mnist"),
    "no such file": (["nowhere.toml"], "no such file"),
    "too many clients": ([*settings(TINY.split()), "--set", "data.clients=1000"], "data.clients = 1000"),
    "no users": ([*settings(TINY.split()), "--set", "data.partition=natural"], "digits has no users"),
    "no data file": ([*settings(TINY.split()), "--set", "data.name=npz", "--set", "data.path=no.npz"], "no.npz"),
    "no such budget": ([*settings(TINY.split()), "--set", "train.memory_budget=lots"], "memory_budget = 'lots'"),
    "no such model entry": ([*settings(TINY.split()), "--set", "model.entry=no_such_module:make"], "no_such_module"),
}


@pytest.mark.parametrize(("arguments", "says"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_a_bad_setting_is_one_line_and_exit_code_two(tmp_path: Path, arguments: list[str], says: str) -> None:
    assert_one_line(hedgerow(tmp_path, "simulate", *arguments), 2, says)
    assert not list(tmp_path.rglob("run.json"))


def test_a_model_that_does_not_take_the_examples_is_one_line(tmp_path: Path) -> None:
    process = simulate(tmp_path, "model.input=1x28x28")
    assert process.returncode == 2
    assert_one_line(process, 2, "model digits_cnn with loss cross_entropy does not fit data digits")


def test_an_unknown_option_is_exit_code_two_without_a_traceback(tmp_path: Path) -> None:
    process = hedgerow(tmp_path, "simulate", "--no-such-option")
    assert process.returncode == 2
    assert "--no-such-option" in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr


def test_debug_shows_a_traceback(tmp_path: Path) -> None:
    process = hedgerow(tmp_path, "simulate", "--debug", "--set", "server.rounds=-1")
    assert process.returncode == 2
    assert process.stderr.startswith("Traceback")
    assert process.stderr.splitlines()[-1].startswith("hedgerow: server.rounds = -1")


def test_a_budget_that_nothing_fits_ends_the_run_before_it_starts(tmp_path: Path) -> None:
    """The line says what the smallest plan needs; with as much the run goes through."""
    process = simulate(tmp_path, "train.memory_budget=20 KiB", "deploy.formats=")
    assert_one_line(process, 3, "budget", "20.0 KiB", "trainable")
    assert not (tmp_path / "run").exists()
    needed = re.search(r"needs ([\d.]+ [KM]iB)", process.stderr)
    assert needed, process.stderr
    amount, unit = needed[1].split()
    enough = f"train.memory_budget={float(amount) + 0.1:.1f} {unit}"
    assert simulate(tmp_path, enough, "deploy.formats=").returncode == 0


def test_a_run_without_any_good_update_is_exit_code_three(tmp_path: Path) -> None:
    assert_one_line(
        simulate(tmp_path, "faults.error=1"), 3, "no round could be applied; 12 times the reason was", "run.json"
    )
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert [row["dropped"] for row in run["rounds"]] == [6, 6]  # spares too
    assert all("simulated error" in failure["reason"] for row in run["rounds"] for failure in row["failures"])
    assert run["final"] is None


def test_a_model_of_ones_own_is_trained_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "own_model.py").write_text(
        "import torch\n\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    assert simulate(tmp_path, "model.entry=own_model:make", "deploy.formats=").returncode == 0
    tensors = load_file(tmp_path / "run/model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"1.weight": (10, 64), "1.bias": (10,)}
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())


def test_help_names_the_default_scenario(tmp_path: Path) -> None:
    process = hedgerow(tmp_path, "simulate", "--help")
    assert process.returncode == 0
    assert "default: mnist" in " ".join(process.stdout.split())
