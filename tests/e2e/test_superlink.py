"""A federation over a real SuperLink and two real SuperNodes on loopback, against the same one in process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from edge_runtime.cli import FLOWER_ENV
from simulations.runner import simulate
from simulations.scenario import load_scenario

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SETTINGS = [
    "data.name='digits'", "data.clients=2", "data.partition='iid'", "model.name='digits_cnn'", "train.epochs=1",
    "server.rounds=2", "server.cohort=2", "server.min_updates=2", "server.deadline_s=90.0",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, **FLOWER_ENV, "FLWR_HOME": str(tmp_path / "flwr"), "PATH": f"{BIN}:{os.environ['PATH']}"}


@pytest.fixture
def superlink(tmp_path: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of a SuperLink with two SuperNodes; all their processes are ended by id afterwards."""
    address = f"127.0.0.1:{free_port()}"
    home = tmp_path / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "{address}"\ninsecure = true\n'
    )
    log = (tmp_path / "flower.log").open("w")

    def start(program: str, *arguments: str) -> psutil.Popen:
        command = [str(BIN / program), "--insecure", *arguments]
        return psutil.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)

    port = address.rpartition(":")[2]
    roots = [start("flower-superlink", "--host", "127.0.0.1", "--port", port, "--database", str(tmp_path / "state.db"))]
    try:
        wait_until_listening(address)
        for node in range(2):
            config = f"partition-id={node} num-partitions=2"
            link = ["--superlink", address, "--port", str(free_port()), "--node-config", config]
            roots.append(start("flower-supernode", *link))
        yield address
    finally:
        end(roots)
        log.close()


def wait_until_listening(address: str) -> None:
    host, _, port = address.rpartition(":")
    for _ in range(300):
        with socket.socket() as sock:
            if sock.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on {address}")


def end(roots: list[psutil.Popen]) -> None:
    """End the processes and everything that they started; nothing may be left."""
    family = [member for root in roots for member in [root, *root.children(recursive=True)]]
    for process in family:
        if process.is_running():
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=15)
    for process in alive:
        process.kill()
    _, alive = psutil.wait_procs(alive, timeout=5)
    assert not alive


def test_two_supernodes_train_the_same_model_as_the_simulation(superlink, environment, tmp_path):
    deployed, simulated = tmp_path / "deployed", tmp_path / "simulated"
    overrides = " ".join([*SETTINGS, f"run.out='{deployed}'"])
    command = [str(BIN / "flwr"), "run", str(ROOT), "test", "--stream", "-c", overrides]
    streamed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    log = streamed.stdout + streamed.stderr + (tmp_path / "flower.log").read_text()
    assert (deployed / "run.json").exists(), log[-3000:]

    run = json.loads((deployed / "run.json").read_text())
    assert run["error"] is None
    assert [(row["clients"], row["dropped"]) for row in run["rounds"]] == [(2, 0), (2, 0)]
    assert run["final"]["int8_accuracy"]["onnx"] > 0.5
    assert "round 2/2" in log

    simulate(load_scenario("mnist", [*SETTINGS, f"run.out='{simulated}'", "deploy.formats=''"]))
    ours, theirs = load_file(simulated / "model.safetensors"), load_file(deployed / "model.safetensors")
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=0, atol=1e-6, err_msg=name)
    again = json.loads((simulated / "run.json").read_text())
    for column in ("uplink_bytes", "downlink_bytes"):
        assert [row[column] for row in run["rounds"]] == [row[column] for row in again["rounds"]]
