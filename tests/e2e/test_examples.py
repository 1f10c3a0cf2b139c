"""The examples run as they stand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_local_training():
    done = subprocess.run(
        [sys.executable, "-P", EXAMPLES / "local_training.py"], capture_output=True, text=True, check=True
    )
    assert "61,706 parameters" in done.stdout


@pytest.mark.e2e
def test_own_model(tmp_path):
    command = [Path(sys.executable).parent / "hedgerow", "simulate", "own_model.toml", "--out", tmp_path / "run"]
    subprocess.run(command, cwd=EXAMPLES, capture_output=True, check=True)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["final"]["accuracy"] > 0.6
    assert sum(row["dropped"] for row in run["rounds"]) > 0


def test_federated_distillation():
    line = [sys.executable, "-P", EXAMPLES / "federated_distillation.py"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    best_alone = float(re.search(r"clients alone [\d.]+ to ([\d.]+);", done.stdout)[1])
    assert float(re.search(r"server ([\d.]+)$", done.stdout.strip())[1]) > best_alone + 0.05
