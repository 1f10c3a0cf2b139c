"""Federations over a real SuperLink and two real SuperNodes on loopback: the model, and the bytes on the wire.

The SuperNodes reach the SuperLink through a proxy that counts what passes; the ServerApp does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from edge_runtime.cli import FLOWER_ENV
from edge_runtime.deploy.trust.publish import make_release_key, make_root_key
from edge_runtime.deploy.trust.slots import Slots
from edge_runtime.privacy import Ledger, epsilon
from simulations.runner import simulate
from simulations.scenario import load_scenario

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SETTINGS: dict[str, Any] = {
    "data.name": "digits", "data.clients": 2, "data.partition": "iid", "model.name": "digits_cnn", "train.epochs": 1,
    "server.rounds": 2, "server.cohort": 2, "server.min_updates": 2, "server.deadline_s": 90.0,
}  # fmt: skip
# 61,706 parameters: payloads are most of what passes.
LARGER = {**SETTINGS, "data.name": "mnist", "model.name": "lenet", "server.rounds": 3, "deploy.formats": ""}
SMALL = {
    "uplink.codec": "topk,float16", "uplink.fraction": 0.05, "uplink.error_feedback": True,
    "downlink.codec": "float16", "downlink.delta": "uniform", "downlink.bits": 4.0,
}  # fmt: skip

# What Flower adds, both nodes together: a run's bundle of some 130 kB to each, per message some ten requests with their
# headers, records and object trees, and polls and heartbeats all the time.
BUNDLE_BYTES, MESSAGE_BYTES, IDLE_BYTES_PER_S = 460_000, 15_000, 3_000


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class CountingProxy:
    """Passes TCP connections on to `target` and counts the bytes of each direction; runs until the process ends."""

    target: tuple[str, int]
    up: int = 0
    down: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        # Closing alone would not wake the thread that waits on it.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        """Until either side ends the connection, or the SuperLink is not there."""
        with client, contextlib.suppress(OSError), socket.create_connection(self.target) as server:
            sinks = {client: server, server: client}
            while True:
                for source in select.select([client, server], [], [])[0]:
                    if not (data := source.recv(1 << 16)):
                        return
                    with self._lock:
                        self.up += len(data) if source is client else 0
                        self.down += len(data) if source is server else 0
                    sinks[source].sendall(data)


@dataclass(frozen=True)
class Federation:
    """A SuperLink with SuperNodes behind a proxy."""

    home: Path
    environment: dict[str, str]
    proxy: CountingProxy
    nodes: tuple[psutil.Popen, ...]

    def run(self, out: Path, settings: dict[str, Any]) -> Run:
        overrides = " ".join(words({**settings, "run.out": str(out)}))
        command = [str(BIN / "flwr"), "run", str(ROOT), "test", "--stream", "-c", overrides]
        up, down, started_s = self.proxy.up, self.proxy.down, time.monotonic()
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=280, check=False)
        passed = self.proxy.up - up, self.proxy.down - down
        log = done.stdout + done.stderr + (self.home / "flower.log").read_text()
        assert (out / "run.json").exists(), log[-3000:]
        record = json.loads((out / "run.json").read_text())
        assert record["error"] is None, record["error"]
        return Run(record, log, *passed, time.monotonic() - started_s)

    def run_whole(self, out: Path, settings: dict[str, Any]) -> Run:
        """A run of which no client may be missing."""
        run = self.run(out, settings)
        record = run.record
        assert all((row["clients"], row["dropped"]) == (2, 0) for row in record["rounds"]), record["rounds"]
        return run


@dataclass(frozen=True)
class Run:
    """What a run left, and what passed the proxy while it went on."""

    record: dict[str, Any]
    log: str
    up: int
    down: int
    seconds: float

    @property
    def payload_up(self) -> int:
        return int(self.record["final"]["uplink_bytes"])

    @property
    def payload_down(self) -> int:
        return int(self.record["final"]["downlink_bytes"])

    @property
    def flowers_share(self) -> float:
        """The most that Flower may add in one direction."""
        messages = 2 * len(self.record["rounds"])
        return BUNDLE_BYTES + messages * MESSAGE_BYTES + self.seconds * IDLE_BYTES_PER_S


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with started(tmp_path_factory.mktemp("federation"), 2) as running:
        yield running


@contextlib.contextmanager
def started(
    folder: Path, nodes: int, *, keep_state: bool = False, root_key: Path | None = None
) -> Iterator[Federation]:
    """That many SuperNodes, each with a state path if it is to keep state, and with slots where there is a root key.

    All processes are ended by id afterwards.
    """
    home = folder / "flwr"
    home.mkdir(parents=True)
    environment = {**os.environ, **FLOWER_ENV, "FLWR_HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}
    address = f"127.0.0.1:{free_port()}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "{address}"\ninsecure = true\n'
    )
    log = (folder / "flower.log").open("w")

    def start(program: str, *arguments: str) -> psutil.Popen:
        command = [str(BIN / program), "--insecure", *arguments]
        return psutil.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)

    host, _, port = address.rpartition(":")
    roots = [start("flower-superlink", "--host", host, "--port", port, "--database", str(folder / "state.db"))]
    proxy = CountingProxy((host, int(port)))
    try:
        wait_until_listening(host, int(port))
        for node in range(nodes):
            config = f"partition-id={node} num-partitions={nodes}"
            if keep_state:
                config += f' state-path="{folder / str(node)}"'
            if root_key:
                config += f' artefact-root-key="{root_key}" artefact-path="{root_key.parent / "slots" / str(node)}"'
            link = ["--superlink", proxy.address, "--port", str(free_port()), "--node-config", config]
            roots.append(start("flower-supernode", *link))
        yield Federation(folder, environment, proxy, tuple(roots[1:]))
    finally:
        end(roots)
        proxy.close()
        log.close()


def words(settings: dict[str, Any]) -> list[str]:
    """As TOML, which both command lines read."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def wait_until_listening(host: str, port: int) -> None:
    for _ in range(300):
        with socket.socket() as sock:
            if sock.connect_ex((host, port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on {host}:{port}")


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


def test_two_supernodes_train_the_same_model_as_the_simulation(federation: Federation, tmp_path: Path) -> None:
    deployed, simulated = tmp_path / "deployed", tmp_path / "simulated"
    run = federation.run_whole(deployed, SETTINGS)
    assert run.record["final"]["int8_accuracy"]["onnx"] > 0.5
    assert "round 2/2" in run.log

    simulate(load_scenario("mnist", words({**SETTINGS, "deploy.formats": "", "run.out": str(simulated)})))
    assert_same_run(simulated, deployed)


def test_the_bytes_of_a_run_are_the_bytes_on_the_wire(federation: Federation, tmp_path: Path) -> None:
    """More than run.json says passes by what Flower adds; a smaller payload takes as much from the one as the other."""
    plain = federation.run_whole(tmp_path / "plain", LARGER)
    small = federation.run_whole(tmp_path / "small", {**LARGER, **SMALL})
    for run in (plain, small):
        assert 0 < run.up - run.payload_up < run.flowers_share
        assert 0 < run.down - run.payload_down < run.flowers_share
    assert small.payload_up < plain.payload_up / 10
    assert small.payload_down < plain.payload_down / 2
    # The bundle and the messages are the same in both; what is left are polls, by how long each run took.
    tolerance = 0.05 * plain.payload_up + abs(plain.seconds - small.seconds) * IDLE_BYTES_PER_S
    assert plain.up - small.up == pytest.approx(plain.payload_up - small.payload_up, abs=tolerance)
    assert plain.down - small.down == pytest.approx(plain.payload_down - small.payload_down, abs=tolerance)

    # What clients keep between messages is in Flower's hands there, in the grid's here.
    simulate(load_scenario("mnist", words({**LARGER, **SMALL, "run.out": str(tmp_path / "simulated")})))
    assert_same_run(tmp_path / "simulated", tmp_path / "small")


def test_a_node_killed_in_the_middle_of_a_secure_round_costs_its_update_alone(tmp_path: Path) -> None:
    """Cases 4 and 29: it has shared its keys, perhaps, and not sent its input; the masks that it left are taken off."""
    settings = {
        **SETTINGS, "data.clients": 4, "server.rounds": 1, "server.cohort": 4, "server.min_updates": 3,
        "secure.enabled": True, "secure.dropout": 0.25, "secure.phase_deadline_s": 20.0, "deploy.formats": "",
        "privacy.noise_multiplier": 0.2, "privacy.clip": 1.0, "secure.bits": 32,
    }  # fmt: skip
    with started(tmp_path / "federation", 4, keep_state=True) as running:
        killer = threading.Thread(target=kill_when_sharing, args=(running.nodes[3], running.home / "3"), daemon=True)
        killer.start()
        run = running.run(tmp_path / "run", settings)
        killer.join(timeout=1)
    (row,) = run.record["rounds"]
    assert (row["applied"], row["clients"], row["dropped"]) == (True, 3, 1), row
    assert row["dropped_in"]["share_keys"] + row["dropped_in"]["masked_input"] == 1
    assert row["failures"][0]["reason"].endswith("no reply within 20 s")
    assert row["loss"] < 10  # under a mask that stayed, weights would be in the thousands
    # Three shares of noise are in the sum, as planned for a drop-out, and all of the budget that they cost is booked.
    ledger = Ledger.from_json((tmp_path / "run" / "privacy.ledger").read_text())
    assert [event.shares for event in ledger.events] == [3]
    assert row["epsilon"] == pytest.approx(epsilon(ledger, 1e-5), rel=1e-6)


@pytest.mark.timeout(600)  # two federations are started
def test_devices_take_a_signed_artefact_and_keep_it_over_a_restart(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    make_root_key(keys)
    key, _ = make_release_key(keys, days=1, now_s=time.time())
    root = keys / "root.key.pub"
    settings = {**SETTINGS, "server.rounds": 1}
    first = {
        "rollout.enabled": True, "rollout.key": str(key), "rollout.version": 7, "rollout.stages": "100",
        "deploy.formats": "onnx", "rollout.format": "onnx", "rollout.health_s": 0.0, "rollout.deadline_s": 90.0,
    }  # fmt: skip
    with started(tmp_path / "before", 2, root_key=root) as running:
        run = running.run_whole(tmp_path / "first", {**settings, **first})
    rollout = run.record["final"]["rollout"]
    assert rollout["halted"] is None, rollout
    assert rollout["versions"] == {"7": 2}
    assert sum(stage["installed"] for stage in rollout["stages"]) == 2
    assert "version 7 in the fleet: 2 run 7" in run.log

    # Other processes, another SuperLink, other node ids: the slots are what stays.
    with started(tmp_path / "after", 2, root_key=root) as running:
        run = running.run_whole(tmp_path / "second", {**settings, "deploy.formats": ""})
    assert run.record["final"]["artefact_versions"] == {"7": 2}
    model = (tmp_path / "first" / "model_int8.onnx").read_bytes()
    for node in ("0", "1"):
        slot = Slots(keys / "slots" / node, root).current()
        assert slot is not None
        assert slot.model.read_bytes() == model


def kill_when_sharing(node: psutil.Popen, state: Path) -> None:
    """End a SuperNode, and all that it started, as soon as it works on the phase in which keys are shared."""
    while not list(state.glob("run-*/round-1.Roster")):
        time.sleep(0.02)
    for process in [*node.children(recursive=True), node]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def assert_same_run(simulated: Path, deployed: Path) -> None:
    """Equal bytes in every round, and one model, but for the order of a sum: that in which updates arrived."""
    ours, theirs = load_file(simulated / "model.safetensors"), load_file(deployed / "model.safetensors")
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=0, atol=1e-6, err_msg=name)
    rows = [json.loads((folder / "run.json").read_text())["rounds"] for folder in (simulated, deployed)]
    for column in ("uplink_bytes", "downlink_bytes"):
        assert [row[column] for row in rows[0]] == [row[column] for row in rows[1]]
