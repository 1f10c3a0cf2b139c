"""A user's own files and model: what fits trains, what does not is said in one line before the first round."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

pytestmark = pytest.mark.e2e
HEDGEROW = str(Path(sys.executable).parent / "hedgerow")
MODELS = """
import time, torch
from torch import nn
def linear(): return nn.Linear(8, 1)
def classes(): return nn.Linear(8, 3)
class Stuck(nn.Module):
    def __init__(self): super().__init__(); self.w = nn.Linear(8, 1)
    def forward(self, x):
        while self.training: time.sleep(0.1)
        return self.w(x)
def stuck(): return Stuck()
"""
BASE = """
[data]
name = "npz"
path = "{path}"
clients = 6
partition = "iid"
[model]
entry = "{entry}"
[train]
loss = "{loss}"
batch_size = 16
[train.optimizer]
lr = 0.02
[server]
rounds = 8
cohort = 4
min_updates = 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 8)).astype(np.float32)
    y = x @ rng.normal(size=8).astype(np.float32)
    np.savez(tmp_path / "line.npz", x=x, y=y.astype(np.float32))
    np.savez(tmp_path / "sign.npz", x=x, y=(y > 0).astype(np.float32))
    (tmp_path / "own_models.py").write_text(MODELS)
    return tmp_path


def command(folder: Path, data: str, entry: str, loss: str, *more: str) -> list[str]:
    text = BASE.format(path=folder / data, entry=f"own_models:{entry}", loss=loss)
    (folder / "own.toml").write_text(text)
    return [HEDGEROW, "simulate", str(folder / "own.toml"), "--out", str(folder / "run"), *more]


@pytest.mark.parametrize(("data", "loss", "below"), [("line.npz", "mse", 0.5), ("sign.npz", "bce_with_logits", 0.6)])
def test_flat_targets_of_ones_own_data_are_learned(folder, data, loss, below):
    # From another folder: the entry is found beside the scenario file.
    done = subprocess.run(command(folder, data, "linear", loss), cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    final = json.loads((folder / "run" / "run.json").read_text())["final"]
    assert final["loss"] < below
    assert final["accuracy"] is None


@pytest.mark.parametrize(("entry", "loss"), [("classes", "mse"), ("classes", "cross_entropy")])
def test_what_does_not_fit_is_said_before_the_first_round(folder, entry, loss):
    done = subprocess.run(command(folder, "line.npz", entry, loss), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "does not fit data npz" in done.stderr
    assert not (folder / "run").exists()


def test_clients_that_never_return_end_with_a_killed_simulation(folder):
    # Only PyTorch clients run a model's own code, which may never return.
    stuck = command(folder, "line.npz", "stuck", "mse", "--set", "train.trainer=torch")
    running = psutil.Popen(stuck, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while time.monotonic() < end and not (folder / "run" / "events.sqlite").exists():
        time.sleep(0.1)
    assert (folder / "run" / "events.sqlite").exists(), "the run did not start"
    time.sleep(1)
    workers = running.children()
    assert workers
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
