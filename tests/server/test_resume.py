"""A run that ends in the middle and is resumed: it goes on as if nothing had happened."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge_runtime.cli import main
from edge_runtime.errors import ConfigError, RunError
from server import commands
from server.events import Event, RoundClosed
from server.run_store import RunStore
from simulations.resume import kept_scenario
from simulations.runner import simulate
from simulations.scenario import load_scenario

TINY = (
    "data.name=digits data.clients=6 data.partition=iid model.name=digits_cnn train.epochs=1 server.cohort=3 "
    "server.min_updates=1 server.rounds=4 server.workers=1 deploy.formats= server.strategy=fedadam"
)


class PowerCutError(Exception):
    """What ends a run in the middle here."""


def run(out: Path, *overrides: str, cut_after: int = 0, send: commands.Name | None = None) -> dict[str, Any]:
    """Play it, up to some round if one is given; returns `run.json`."""

    def cut(event: Event) -> None:
        if isinstance(event, RoundClosed) and event.row.round == cut_after:
            if send is None:
                raise PowerCutError
            commands.send(out, send, "the test")

    simulate(load_scenario("mnist", [*TINY.split(), f"run.out={out}", *overrides]), [cut])
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


def kinds(out: Path) -> list[str]:
    store = RunStore(out, resume=True)
    try:
        return [kind for (kind,) in store.read("SELECT kind FROM events ORDER BY id")]
    finally:
        store.close()


def checkpoints(out: Path) -> list[str]:
    """The names of the blobs of all checkpoints that there were."""
    store = RunStore(out, resume=True)
    try:
        return [data["blob"] for _, data in store.events("checkpoint")]
    finally:
        store.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("whole") / "run")


def same(resumed: dict[str, Any], whole: dict[str, Any]) -> None:
    assert resumed["final"]["model_sha256"] == whole["final"]["model_sha256"]
    assert [row | {"seconds": 0} for row in resumed["rounds"]] == [row | {"seconds": 0} for row in whole["rounds"]]


@pytest.mark.parametrize("cut_after", [2, 4])
def test_a_resumed_run_ends_like_one_that_was_never_cut(tmp_path: Path, whole: dict[str, Any], cut_after: int) -> None:
    out = tmp_path / "run"
    with pytest.raises(PowerCutError):
        run(out, "run.keep_models=2", cut_after=cut_after)
    same(run(out, "run.resume=true"), whole)
    told = kinds(out)
    assert [told.count(kind) for kind in ("run_started", "run_facts", "run_resumed", "run_finished")] == [1, 1, 1, 1]
    assert told.count("round_planned") == told.count("round_closed") == told.count("checkpoint") == 4
    assert told.count("update_received") == 12
    assert len(list((out / "models").iterdir())) == 2
    blobs = [name in {path.name for path in (out / "blobs").iterdir()} for name in checkpoints(out)]
    assert blobs == [False, False, False, True]
    # Finished: resumed once more nothing happens, and its record is written again if it is lost.
    (out / "run.json").unlink()
    same(run(out, "run.resume=true"), whole)
    assert kinds(out) == told


@pytest.mark.parametrize("most_bytes", [1_000, 60_000])
def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_later(
    tmp_path: Path, whole: dict[str, Any], most_bytes: int
) -> None:
    """No file may grow beyond a size, from round 2 on: the log cannot, or the next checkpoint cannot."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(event: Event) -> None:
        if isinstance(event, RoundClosed) and event.row.round == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))

    try:
        with pytest.raises(RunError, match="cannot be written") as caught:
            simulate(load_scenario("mnist", [*TINY.split(), f"run.out={tmp_path / 'run'}"]), [fill])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    same(run(tmp_path / "run", "run.resume=true"), whole)


def test_a_run_that_is_told_to_stop_closes_its_round_and_ends(tmp_path: Path, whole: dict[str, Any]) -> None:
    stopped = run(tmp_path / "run", cut_after=2, send=commands.Name.STOP)
    assert [row["round"] for row in stopped["rounds"]] == [1, 2]
    assert stopped["rounds"][0]["accuracy"] == whole["rounds"][0]["accuracy"]
    assert stopped["final"]["stopped"] == "stopped by the test"
    assert stopped["final"]["model_sha256"]
    assert kinds(tmp_path / "run").count("command") == 1


def test_what_cannot_be_resumed_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run to resume"):
        run(tmp_path / "nothing", "run.resume=true")
    with pytest.raises(ConfigError, match="holds no simulated run"):
        kept_scenario(tmp_path)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.e2e
def test_a_command_line_that_is_killed_leaves_no_process_and_goes_on(
    tmp_path: Path, whole: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    settings = [word for setting in TINY.split() for word in ("--set", setting)]
    script = "import sys; from edge_runtime.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-P", "-c", script, "simulate", *settings, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not (out / "blobs").exists() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.01)
        clients = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    end = time.monotonic() + 20
    while alive(clients) and time.monotonic() < end:
        time.sleep(0.05)
    assert clients
    assert not alive(clients)
    assert main(["simulate", "--resume", str(out), "--set", "server.rounds=3"]) == 2
    assert "a resumed run keeps the settings it began with" in capsys.readouterr().err
    assert main(["simulate", "--resume", str(out), "--set", "server.workers=2"]) == 0
    same(json.loads((out / "run.json").read_text()), whole)
    assert main(["simulate", "--resume", str(out)]) == 0
    assert "the run is finished, there is nothing left to resume" in capsys.readouterr().out
    assert (out / "report.html").exists()
