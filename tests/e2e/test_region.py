"""A region over two real SuperLinks: what it and a device beside it train is what three devices in one place train."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federations import BIN, ROOT, started, wait_until, words
from safetensors.numpy import load_file

from simulations.runner import simulate
from simulations.scenario import load_scenario

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SETTINGS: dict[str, Any] = {
    "data.name": "digits", "data.clients": 3, "model.name": "digits_cnn", "train.epochs": 1, "deploy.formats": "",
    "server.rounds": 2, "server.cohort": 2, "server.min_updates": 2, "server.deadline_s": 90.0,
}  # fmt: skip


def test_a_region_and_a_device_train_the_model_of_three_devices(tmp_path: Path) -> None:
    socket, parts = tmp_path / "region.sock", [{"partition-id": n, "num-partitions": 3} for n in range(3)]
    below = {
        "region.socket": str(socket), "server.cohort": 2, "server.min_updates": 2, "server.deadline_s": 60.0,
        "run.out": str(tmp_path / "region-run"),
    }  # fmt: skip
    with (
        started(tmp_path / "below", 2, warm=2, settings=parts[:2]) as region,
        started(tmp_path / "above", 2, warm=2, settings=[{"region-socket": str(socket)}, parts[2]]) as top,
    ):
        command = [BIN / "flwr", "run", str(ROOT), "test", "-c", " ".join(words(below))]
        subprocess.run(command, env=region.environment, check=True, capture_output=True, timeout=120)
        wait_until(socket.exists, 120)
        run = top.run_whole(tmp_path / "run", SETTINGS)
    simulate(load_scenario("mnist", words({**SETTINGS, "server.cohort": 3, "run.out": str(tmp_path / "flat")})))

    flat, tree = (load_file(folder / "model.safetensors") for folder in (tmp_path / "flat", tmp_path / "run"))
    for name, value in flat.items():
        np.testing.assert_allclose(tree[name], value, rtol=0, atol=1e-5, err_msg=name)
    one_floor = json.loads((tmp_path / "flat" / "run.json").read_text())["final"]
    assert 3 * run.payload_up == 2 * one_floor["uplink_bytes"]  # two updates a round come up where three did
