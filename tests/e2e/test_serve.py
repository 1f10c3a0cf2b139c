"""A whole server: `hedgerow serve` with TLS and device keys, two stock SuperNodes, and whatever may die, dying.

One story in several tests, in order, for a server takes a while to start.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from serving import free_port, wait_for

from edge_runtime.cli import FLOWER_ENV
from server.devices import make_key
from server.serve.processes import MARK, marked
from server.serve.progress import RunLog
from simulations.runner import simulate
from simulations.scenario import load_scenario

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

BIN = Path(sys.executable).parent
ROUNDS = 4
SETTINGS = {
    "data.clients": 2, "data.partition": "iid", "train.epochs": 1, "server.rounds": ROUNDS, "server.cohort": 2,
    "server.min_updates": 2, "server.deadline_s": 90.0, "deploy.formats": "",
}  # fmt: skip
# What devices keep from round to round: one in memory, the other in files.
KEPT = {
    "personal.layers": "out.*", "personal.fine_tune_epochs": 1, "server.evaluate": "clients",
    "server.strategy": "scaffold", "train.optimizer.momentum": 0.0,
}  # fmt: skip


@dataclass
class Server:
    """A state folder, and what is at work on it."""

    folder: Path
    port: int
    serving: psutil.Popen | None = None
    nodes: dict[str, psutil.Popen] = field(default_factory=dict)
    started: list[psutil.Popen] = field(default_factory=list)
    starts: int = 0

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def log(self) -> str:
        """Of the last start."""
        return (self.folder / f"serve-{self.starts}.log").read_text()

    def hedgerow(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(command(*words, self), env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == code, (words, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def start(self) -> None:
        self.starts += 1
        with (self.folder / f"serve-{self.starts}.log").open("w") as log:
            self.serving = psutil.Popen(
                command("serve", self), env=environment(), cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
            )
        self.started.append(self.serving)
        wait_for(lambda: "start a run with" in self.log or self.serving.poll() is not None, 180)
        assert "start a run with" in self.log, self.log

    def ready(self) -> None:
        """At work, and both devices there."""
        if self.serving is None:
            self.start()
        for partition, name in enumerate(("pi1", "pi2")):
            if name not in self.nodes:
                self.join(name, partition, warm=name == "pi1")
        wait_for(lambda: all(device["status"] == "online" for device in self.devices().values()), 120)

    def join(self, name: str, partition: int, key: str | None = None, *, warm: bool = False) -> psutil.Popen:
        """A stock SuperNode with a device's key; `warm`: `hedgerow join`."""
        home = self.folder / f"home-{name}"
        home.mkdir(exist_ok=True)
        address, ca, own = f"127.0.0.1:{self.port}", self.state / "certs" / "ca.crt", self.folder / f"{key or name}.key"
        if warm:
            words = [sys.executable, "-P", "-m", "edge_runtime", "join", "--superlink", address, "--ca", str(ca)]
            words += ["--key", str(own), "--state", str(home)]
            words += ["--set", f"partition-id={partition}", "--set", "num-partitions=2"]
        else:
            words = [str(BIN / "flower-supernode"), "--superlink", address, "--root-certificates", str(ca)]
            words += ["--auth-supernode-private-key", str(own), "--port", str(free_port())]
            kept = self.folder / f"state-{name}"
            words += ["--node-config", f'partition-id={partition} num-partitions=2 state-path="{kept}"']
        extra = {"FLWR_HOME": str(home), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
        with (self.folder / f"{name}.log").open("w") as log:
            node = psutil.Popen(words, env=environment(extra), stdout=log, stderr=subprocess.STDOUT)
        self.nodes[name] = node
        self.started.append(node)
        return node

    def devices(self) -> dict[str, dict[str, Any]]:
        listed = json.loads(self.hedgerow("devices", "list", "--format", "json"))
        return {device["name"]: device for device in listed["devices"]}

    def runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.hedgerow("run", "--list", "--format", "json"))["runs"]
        return found

    def children(self, word: str) -> list[psutil.Process]:
        """Those of ours with that word in their command line."""
        found = []
        for process in marked(self.state):
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and any(word in part for part in process.cmdline()):
                    found.append(process)
        return found

    def kill(self, word: str) -> None:
        wait_for(lambda: self.children(word))
        for process in self.children(word):
            process.kill()


def command(*words: Any) -> list[str]:
    """`hedgerow` with these words on that server."""
    *plain, server = words
    return [sys.executable, "-P", "-m", "edge_runtime", *plain, "--state", str(server.state)]


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, **FLOWER_ENV, "PATH": f"{BIN}:{os.environ['PATH']}", **(extra or {})}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("serve"), free_port())
    subprocess.run(
        [sys.executable, "-P", "-m", "edge_runtime", "certs", "new", made.state / "certs", "--host", "127.0.0.1"],
        check=True,
    )
    (made.state / "server.toml").write_text(
        f'host = "127.0.0.1"\nport = {made.port}\n[dashboard]\nport = {free_port()}\n'
    )
    for name in ("pi1", "pi2"):
        made.hedgerow("devices", "new", name, "--out", str(made.folder))
    try:
        yield made
    finally:
        for process in made.started:
            with contextlib.suppress(psutil.Error):
                for member in [*process.children(recursive=True), process]:
                    member.kill()
            process.wait(10)
        for left in marked(made.state):
            left.kill()


def test_a_run_outlives_its_server_app_its_superlink_and_the_server(server: Server, tmp_path: Path) -> None:
    server.ready()
    before = {name: device["node"] for name, device in server.devices().items()}

    overrides = [f"--set={key}={json.dumps(value)}" for key, value in (SETTINGS | KEPT).items()]
    with (tmp_path / "follow.log").open("w") as log:
        following = psutil.Popen(
            command("run", "digits", *overrides, "--name", "all", "--follow", server),
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    server.started.append(following)
    run = RunLog(server.state / "runs" / "all")
    wait_for(lambda: run.closed_rounds() >= 1, 300)
    server.kill("flwr-serverapp")  # in round 2
    wait_for(lambda: run.closed_rounds() >= 2, 300)
    server.kill("server.serve.superlink")  # in round 3
    wait_for(lambda: run.closed_rounds() >= 3, 300)
    assert server.serving is not None
    server.serving.kill()  # in round 4, all of it
    server.serving.wait(5)
    wait_for(lambda: not marked(server.state), 10)  # nobody swept: they do not outlive it
    server.start()

    assert following.wait(300) == 0, (tmp_path / "follow.log").read_text() + server.log
    told = (tmp_path / "follow.log").read_text()
    record = json.loads((server.state / "runs" / "all" / "run.json").read_text())
    assert [row["round"] for row in record["rounds"]] == [1, 2, 3, 4]
    assert all(row["applied"] and row["clients"] == 2 for row in record["rounds"]), record["rounds"]
    assert record["error"] is None
    undisturbed = simulated(tmp_path / "simulated")
    for name in ("model_sha256", "accuracy", "loss"):
        assert record["final"][name] == undisturbed["final"][name]
    # What was sent once more is no figure of the model's.
    assert {**record["final"]["personal"], "downlink_bytes": 0} == {
        **undisturbed["final"]["personal"],
        "downlink_bytes": 0,
    }
    for number in range(1, ROUNDS + 1):
        assert told.count(f"round {number}/{ROUNDS}  accuracy") == 1, told
    assert told.count("goes on after round") == 3, told
    (job,) = server.runs()
    assert (job["state"], job["starts"], job["closed_rounds"]) == ("done", 4, 4)
    assert {name: device["node"] for name, device in server.devices().items()} == before


def simulated(out: Path) -> dict[str, Any]:
    """The same run in a simulation, where nobody dies."""
    settings = [f"{key}={value}" for key, value in (SETTINGS | KEPT).items()]
    simulate(load_scenario("digits", [*settings, f"run.out={out}"]))
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


def test_there_is_one_server_to_a_state_folder(server: Server) -> None:
    server.ready()
    assert "another `hedgerow serve` is at work here" in server.hedgerow("serve", code=2)


def test_a_stranger_on_the_network_starts_no_run_and_is_no_device(server: Server, tmp_path: Path) -> None:
    """With Flower's own commands, which do all of this to a stock SuperLink."""
    server.ready()
    before = server.runs()
    make_key(tmp_path / "x.key", "x")
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "there"\n[superlink.there]\naddress = "127.0.0.1:{server.port}"\n'
        f'root-certificates = "{server.state / "certs" / "ca.crt"}"\n'
    )
    env = environment({"FLWR_HOME": str(home)})
    app = Path(__file__).parents[2]
    for words in (
        ["supernode", "register", str(tmp_path / "x.key.pub")],
        ["supernode", "list"],
        ["run", str(app)],
        ["list"],
    ):
        done = subprocess.run([BIN / "flwr", *words], env=env, capture_output=True, text=True, check=False)
        assert done.returncode != 0, done.stdout
        assert "404" in done.stdout + done.stderr, (words, done.stdout, done.stderr)
    assert server.runs() == before
    assert set(server.devices()) == {"pi1", "pi2"}


def test_a_device_that_is_not_enrolled_is_refused(server: Server, tmp_path: Path) -> None:
    make_key(server.folder / "stranger.key", "stranger")
    node = server.join("stranger", 0)
    node.wait(120)
    assert "ONLINE" not in (server.folder / "stranger.log").read_text()
    assert set(server.devices()) == {"pi1", "pi2"}


def test_a_revoked_device_is_out_at_once(server: Server) -> None:
    assert "revoked" in server.hedgerow("devices", "revoke", "pi2")
    assert server.devices()["pi2"]["status"] == "revoked"
    wait_for(lambda: server.nodes["pi2"].poll() is not None or "401" in (server.folder / "pi2.log").read_text(), 120)
    again = server.join("pi2-again", 1, key="pi2")
    wait_for(lambda: again.poll() is not None, 120)
    assert server.devices()["pi1"]["status"] == "online"


def test_a_clean_stop_leaves_nothing_behind(server: Server) -> None:
    """Even in the middle of a run, which waits for the next start; SIGTERM as systemd sends it."""
    assert server.serving is not None
    overrides = [f"--set={key}={json.dumps(value)}" for key, value in SETTINGS.items()]
    server.hedgerow("run", "digits", *overrides, "--name", "waits")
    wait_for(lambda: server.children("flwr-serverapp"), 120)
    family = [server.serving, *server.serving.children(recursive=True), *marked(server.state)]
    assert len(family) >= 4
    server.serving.send_signal(signal.SIGTERM)
    assert server.serving.wait(60) == 0
    wait_for(lambda: not any(process.is_running() for process in family), 2)
    assert marked(server.state) == []
    for port in (server.port,):
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", port)) != 0
    assert {run["name"]: run["state"] for run in server.runs()}["waits"] == "running"


def test_what_a_killed_server_left_behind_is_ended_and_nobody_else(server: Server) -> None:
    """A process that carries the mark in its environment is ours; one that only looks like ours is not."""
    sleep = [sys.executable, "-c", "import time; time.sleep(300)", "server.serve.superlink"]
    ours = psutil.Popen(sleep, env=environment({MARK: str(server.state)}))
    theirs = psutil.Popen(sleep, env=environment({MARK: f"{server.state}x"}))
    try:
        server.hedgerow("run", "--stop", "waits", "--now")
        server.start()
        assert ours.wait(5) is not None
        assert theirs.is_running()
        assert theirs.poll() is None
        assert "1 processes of a server that was killed are ended" in server.log
        wait_for(lambda: "run waits: stopped" in server.log, 60)
        assert server.serving is not None
        server.serving.send_signal(signal.SIGINT)
        assert server.serving.wait(60) == 0
    finally:
        for process in (ours, theirs):
            with contextlib.suppress(psutil.Error):
                process.kill()
            process.wait(10)
