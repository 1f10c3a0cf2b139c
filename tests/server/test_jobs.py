"""Jobs: the queue, the bundle that they are played from, and when one has failed.

The player faces a real SuperLink to which no SuperExec comes, so that no server app ever starts; the clock is ours, and
what a server app would have written stands in a real run directory.
"""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.control_pb2 import ListRunsRequest
from serving import SuperLink, bundle, running_superlink

from edge_runtime.config import flatten, flatten_tree
from edge_runtime.errors import ConfigError
from server import commands
from server.cli import follow
from server.config import ServerConfig
from server.results import as_json, round_row
from server.rounds import RoundResult
from server.run_store import Checkpoint, RunStore
from server.serve.config import ServeConfig, load
from server.serve.notify import notify
from server.serve.player import Player
from server.serve.progress import RunLog
from server.serve.state import JobState, Lock, State, Stop, is_served

CONFIG = flatten(ServerConfig())


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State(tmp_path / "state", create=True)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    with running_superlink(tmp_path_factory.mktemp("superlink")) as running:
        yield running


def play(state: State, superlink: SuperLink, attempts: int = 3) -> tuple[Player, list[str]]:
    told: list[str] = []
    return Player(state, superlink.control, bundle(), attempts, list, told.append), told


def store(state: State, name: str, *, resume: bool = False) -> RunStore:
    """As the server app opens it."""
    return RunStore(state.run_directory(name), resume=resume)


def close_round(run: RunStore, number: int) -> None:
    row = round_row(RoundResult(number, None, ("1", "2"), (), None, 0, None), None, {}, 0, None, 1.0)
    run.close_round(number, as_json(row), Checkpoint(number, "blob", "model"))


def last_run(superlink: SuperLink) -> Any:
    runs = superlink.control._client.ListRuns(ListRunsRequest()).run_dict.values()
    return max(runs, key=lambda run: run.pending_at)


def test_jobs_are_played_in_the_order_in_which_they_came(state: State) -> None:
    for name in ("b", "a"):
        state.submit(name, CONFIG)
    first = state.next_job()
    assert first is not None
    assert (first.name, first.state, dict(first.config)) == ("b", JobState.QUEUED, CONFIG)
    state.job_started("b")
    state.job_ended("b", JobState.DONE, "")
    assert [job.name for job in state.jobs()] == ["b", "a"]
    second = state.next_job()
    assert second is not None
    assert second.name == "a"


def test_one_name_one_run(state: State) -> None:
    state.submit("a", CONFIG)
    with pytest.raises(ConfigError, match="of that name already"):
        state.submit("a", CONFIG)
    state.run_directory("old").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is there already"):
        state.submit("old", CONFIG)
    for name in ("", "..", "../x", "/etc", "a/b", ".hidden"):
        with pytest.raises(ConfigError, match="run name"):
            state.submit(name, CONFIG)
    with pytest.raises(ConfigError, match="no such run"):
        state.ask_to_stop("none", Stop.NOW)
    state.job_ended("a", JobState.DONE, "")
    with pytest.raises(ConfigError, match="has ended already"):
        state.ask_to_stop("a", Stop.NOW)


def test_a_job_that_failed_goes_back_into_the_queue(state: State) -> None:
    state.submit("a", CONFIG)
    with pytest.raises(ConfigError, match="a: is queued; only a run that failed or was stopped can go on"):
        state.again("a")
    state.job_started("a")
    state.job_ended("a", JobState.FAILED, "too few devices")
    assert state.next_job() is None
    state.again("a")
    job = state.next_job()
    assert job is not None
    assert (job.name, job.stop, job.reason, job.ended_s, job.starts) == ("a", Stop.NO, "", None, 1)

    state.job_ended("a", JobState.STOPPED, "by an operator")
    state.run_directory("a").mkdir(parents=True)
    commands.send(state.run_directory("a"), commands.Name.STOP, "an operator")
    with pytest.raises(ConfigError, match="would hear that again"):
        state.again("a")
    state.job_ended("a", JobState.DONE, "")
    with pytest.raises(ConfigError, match="is done"):
        state.again("a")


def test_the_bundle_is_the_installed_apps_with_every_setting(tmp_path: Path) -> None:
    """The same bytes from any folder: devices can know it by its hash."""
    content = zipfile.ZipFile(io.BytesIO(bundle()))
    names = set(content.namelist())
    assert {"server/app.py", "server/region/serve.py", "clients/app.py", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith(("server/serve/", "server/dashboard/"))]
    assert {name.partition("/")[0] for name in names} == {"server", "clients", "pyproject.toml", ".info"}
    app = tomllib.loads(content.read("pyproject.toml").decode())["tool"]["flwr"]["app"]
    assert flatten_tree(app["config"]) == CONFIG
    program = "import hashlib; from server.serve.bundle import build; print(hashlib.sha256(build()).hexdigest())"
    elsewhere = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    here = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert elsewhere.stdout == here.stdout


def test_a_job_that_closes_no_round_fails_after_so_many_starts(superlink: SuperLink, state: State) -> None:
    state.submit("a", CONFIG)
    player, told = play(state, superlink, attempts=3)
    now_s = 0.0
    for _ in range(40):
        player.step(now_s)
        now_s += 20.0
    job = state.job("a")
    assert job.state is JobState.FAILED
    assert job.starts == 3
    assert "3 starts in a row closed no round" in job.reason
    assert "not started" in job.reason
    run = last_run(superlink)
    assert run.status.sub_status == "stopped"  # devices are not left waiting for it
    assert [line for line in told if line.startswith("run a: begins")] == ["run a: begins"] * 3


def test_closed_rounds_buy_more_starts(superlink: SuperLink, state: State) -> None:
    state.submit("a", CONFIG)
    player, _ = play(state, superlink, attempts=2)
    now_s = 0.0
    player.step(now_s)
    run = store(state, "a")
    run.append("run_started", CONFIG)
    for number in range(1, 6):
        close_round(run, number)
        now_s += 100.0
        player.step(now_s)  # lost
        now_s += 100.0
        player.step(now_s)  # and begun again
        assert player.playing == "a"
    run.close()
    settings = {name: value.string or value.bool for name, value in last_run(superlink).override_config.items()}
    assert settings == {"run.out": str(state.run_directory("a")), "run.resume": True}
    for _ in range(20):
        now_s += 30.0
        player.step(now_s)
    assert state.job("a").state is JobState.FAILED


def test_a_run_that_had_finished_when_its_server_died_is_done(superlink: SuperLink, state: State) -> None:
    state.submit("a", CONFIG)
    state.job_started("a")
    run = store(state, "a")
    run.append("run_started", CONFIG)
    run.append("run_finished", {"stopped": "stopped by hedgerow run --stop"})
    run.close()
    player, _ = play(state, superlink)
    player.step(0.0)
    job = state.job("a")
    assert (job.state, job.reason, job.starts) == (JobState.DONE, "stopped by hedgerow run --stop", 1)


def test_a_superlink_that_dies_takes_one_start(superlink: SuperLink, state: State) -> None:
    state.submit("a", CONFIG)
    player, told = play(state, superlink)
    player.interrupted("nothing is played", 0.0)
    player.step(0.0)
    player.interrupted("the SuperLink died", 1.0)
    assert player.playing is None
    player.step(2.0)
    assert player.playing == "a"
    assert state.job("a").starts == 2
    assert "run a: the SuperLink died; 0 rounds are closed" in told


def test_stopped_before_and_after_it_began(superlink: SuperLink, state: State) -> None:
    player, _ = play(state, superlink)
    for name in ("never", "now", "round"):
        state.submit(name, CONFIG)
    state.ask_to_stop("never", Stop.AFTER_ROUND)
    player.step(0.0)
    assert (state.job("never").state, state.job("never").starts) == (JobState.STOPPED, 0)

    player.step(1.0)
    assert player.playing == "now"
    state.ask_to_stop("now", Stop.NOW)
    player.step(2.0)
    assert state.job("now").state is JobState.STOPPED
    assert last_run(superlink).status.sub_status == "stopped"

    player.step(3.0)
    run = store(state, "round")
    state.ask_to_stop("round", Stop.AFTER_ROUND)
    player.step(4.0)
    player.step(5.0)
    assert [command.name for command in commands.read(run.directory)] == [commands.Name.STOP]
    run.close()
    assert state.job("round").state is JobState.RUNNING
    state.ask_to_stop("round", Stop.NOW)
    player.step(6.0)


def test_a_run_directory_that_is_damaged_fails_its_job_and_not_the_server(superlink: SuperLink, state: State) -> None:
    player, _ = play(state, superlink)
    state.submit("broken", CONFIG)
    state.submit("next", CONFIG)
    directory = state.run_directory("broken")
    directory.mkdir(parents=True)
    (directory / "events.sqlite").write_bytes(os.urandom(5000))
    player.step(0.0)
    assert state.job("broken").state is JobState.FAILED
    assert "events.sqlite: cannot be read" in state.job("broken").reason
    player.step(1.0)
    assert player.playing == "next"
    state.ask_to_stop("next", Stop.NOW)
    player.step(2.0)


def test_followed_to_its_end(state: State, capsys: pytest.CaptureFixture[str]) -> None:
    state.submit("a", CONFIG)
    run = store(state, "a")
    run.append("run_started", CONFIG)
    close_round(run, 1)
    run.append("client_dropped", {"client": "7", "reason": "no reply"}, 2)
    run.append("run_finished", {"accuracy": 0.5, "model_sha256": "ab"})
    run.close()
    state.job_ended("a", JobState.DONE, "")
    assert follow(state, "a") == 0
    out = capsys.readouterr().out
    for text in ("round  1/30  clients 2", "round 2: client 7 dropped: no reply", "accuracy 0.500", "run a: done"):
        assert text in out
    state.submit("b", CONFIG)
    state.job_ended("b", JobState.FAILED, "too few devices")
    assert follow(state, "b") == 3
    assert "run b: failed (too few devices)" in capsys.readouterr().out


def test_a_log_that_is_not_there_yet_holds_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "none")
    assert (log.entries(), log.begun(), log.closed_rounds(), log.finished(), log.error(0)) == ([], False, 0, None, "")


def test_one_server_to_a_state_folder(state: State) -> None:
    assert not is_served(state.folder)
    lock = Lock(state.folder)
    assert is_served(state.folder)
    with pytest.raises(ConfigError, match="another `hedgerow serve`"):
        Lock(state.folder)
    lock.release()
    assert not is_served(state.folder)


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notify("READY=1")  # nobody asked
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert systemd.recv(100) == b"READY=1"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0hedgerow-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@hedgerow-{os.getpid()}")
        notify("STOPPING=1")
        assert systemd.recv(100) == b"STOPPING=1"
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("port = 0", "port = 0"),
        ("ports = 8443", "did you mean port"),
        ("insecure = true", "insecure = true with host"),
        ('[dashboard]\nhost = "0.0.0.0"', "dashboard.token_file"),
        ('[certs]\ncertificate = "x"', "certs.key"),
        ('[superlink]\nenvironment = ["X"]', "NAME=VALUE"),
        ("[limits]\nattempts = 0", "limits.attempts"),
        ("x", "cannot be read as TOML"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "server.toml").write_text(text)
    with pytest.raises(ConfigError, match=match):
        load(None, tmp_path)


def test_paths_in_the_settings_are_relative_to_them(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text('[certs]\nfolder = "tls"\n[dashboard]\ntoken_file = "/etc/tokens"\n')
    config = load(tmp_path / "server.toml", tmp_path / "elsewhere")
    assert config.certs.folder == str(tmp_path / "tls")
    assert config.dashboard.token_file == "/etc/tokens"
    with pytest.raises(ConfigError, match="hedgerow certs new"):
        config.certificate_and_key(tmp_path)
    assert load(None, tmp_path / "elsewhere") == ServeConfig()
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.toml", tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_a_state_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    """Its owner could put jobs there, which would run as whoever serves."""
    folder = tmp_path / "state"
    State(folder, create=True).close()
    os.chown(folder, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to another user"):
        State(folder)
    with pytest.raises(ConfigError, match="belongs to another user"):
        State(folder, create=True)
