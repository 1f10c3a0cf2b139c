"""Whole runs whose devices stay away, decline or drop out, one and all: they pause, end or go on, and never hang."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from edge_runtime.config import flatten
from edge_runtime.errors import RunError
from server import commands
from server.app import make_app
from server.events import Event, Listener, RoundClosed, RunContinued, RunPaused, RunStarted
from server.run_store import RunStore
from simulations.grid import RUN_ID, SERVER_NODE_ID, InProcessGrid
from simulations.resume import kept_scenario
from simulations.runner import make_traces, simulate
from simulations.scenario import Scenario, load_scenario

TINY = (
    "data.name=digits data.clients=8 data.partition=iid model.name=digits_cnn model.input=1x8x8 train.epochs=1 "
    "server.cohort=4 server.min_updates=3 server.rounds=6 server.workers=2 deploy.formats= server.evaluate=none"
)


def scenario(out: Path, *overrides: str) -> Scenario:
    return load_scenario("mnist", [*TINY.split(), f"run.out={out}", *overrides])


def with_devices(settings: Scenario, **device: Any) -> list[Event]:
    """Run it with devices whose owners have these keys in their node config."""
    config = {name.replace("_", "-", 1).replace("device-", "device."): value for name, value in device.items()}
    told: list[Event] = []
    with InProcessGrid(settings.data.clients, 2, node_config=config) as grid:
        app = make_app([told.append], clock=grid.clock, pause=grid.pause)
        app(grid, Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), dict(flatten(settings))))
    return told


def events(out: Path, kind: str) -> list[Mapping[str, Any]]:
    store = RunStore(out, resume=True)
    try:
        return [data for _, data in store.events(kind)]
    finally:
        store.close()


def devices(out: Path) -> dict[str, Any]:
    store = RunStore(out, resume=True)
    try:
        return {node: json.loads(data) for node, data in store.read("SELECT node, data FROM devices")}
    finally:
        store.close()


def test_when_all_decline_the_run_ends_and_goes_on_when_they_no_longer_do(tmp_path: Path) -> None:
    """Nobody who has declined is asked again before the time that it named; and a decline is no failure."""
    declining = {"device_eligible": False, "device_why_not": "on battery", "device_retry_s": 120.0}
    out = tmp_path / "run"
    settings = scenario(out, "server.patience_s=600")
    with pytest.raises(RunError, match=r"round 1: for 600 s \(server.patience_s\) .*on battery"):
        with_devices(settings, **declining)
    asked = events(out, "round_planned")
    assert len(asked) <= 2 * 600 / 120 + 2
    assert len(events(out, "client_declined")) == sum(len(data["asked"]) for data in asked) > 0
    assert events(out, "client_dropped") == []
    assert any(data["reason"].endswith("on battery") for data in events(out, "run_paused"))
    known = devices(out)
    assert len(known) == 8
    assert all(row["report"]["why_not"] == "on battery" and not row["dropped"] for row in known.values())
    assert min(row["declined"] for row in known.values()) > 0
    assert json.loads((out / "run.json").read_text())["error"].startswith("RunError: round 1: ")

    with_devices(scenario(out, "run.resume=true"))
    final = json.loads((out / "run.json").read_text())["final"]
    assert final["rounds_applied"] == 6
    assert all(row["eligible"] for row in devices(out).values() if row["rounds"])


class Sparse(InProcessGrid):
    """Before and after some times one device is there."""

    since_s, until_s = 0.0, math.inf

    def get_node_ids(self) -> Iterable[int]:
        return super().get_node_ids() if self.since_s <= self.clock() < self.until_s else [0]


def with_sparse(
    settings: Scenario, since_s: float = 0.0, until_s: float = math.inf, listeners: Sequence[Listener] = ()
) -> list[Event]:
    told: list[Event] = []
    with Sparse(settings.data.clients, 2, traces=make_traces(settings)) as grid:
        grid.since_s, grid.until_s = since_s, until_s
        app = make_app([told.append, *listeners], clock=grid.clock, pause=grid.pause)
        app(grid, Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), dict(flatten(settings))))
    return told


def test_a_run_that_begins_before_its_devices_pauses_and_then_goes_on_or_ends(tmp_path: Path) -> None:
    told = with_sparse(scenario(tmp_path / "run", "server.rounds=2"), since_s=500.0)
    assert [type(event) for event in told[:3]] == [RunStarted, RunPaused, RunContinued]
    assert json.loads((tmp_path / "run/run.json").read_text())["final"]["rounds_applied"] == 2
    with pytest.raises(RunError, match=r"round 1: for 200 s .*1 devices can be asked, 3 are needed .*: 1 online"):
        with_sparse(scenario(tmp_path / "other", "server.patience_s=200"), since_s=500.0)
    assert [data["reason"] for data in events(tmp_path / "other", "run_paused")]
    assert not events(tmp_path / "other", "round_planned")


@pytest.mark.parametrize("cut_after", [1, 3])
def test_a_resumed_run_waits_for_devices_just_as_the_whole_one_did(tmp_path: Path, cut_after: int) -> None:
    """Whom it finds depends on the time: so neither may it wait anew for a cohort, nor forget a pause."""
    away = ("fleet.online=0.4", "fleet.swing=3", "fleet.day_s=200", "fleet.latency_s=7", "faults.dropout=0.5")
    settings = ("seed=4", "server.min_updates=2", "server.over_selection=1", *away)

    def cut(event: Event) -> None:
        if isinstance(event, RoundClosed) and event.row.round == cut_after:
            raise KeyboardInterrupt

    told = {}
    for name, listeners in {"whole": [], "cut": [cut]}.items():
        with nullcontext() if name == "whole" else pytest.raises(KeyboardInterrupt):
            simulate(scenario(tmp_path / name, *settings), listeners)
        if name == "cut":
            simulate(kept_scenario(tmp_path / name))
        told[name] = json.loads((tmp_path / name / "run.json").read_text())
    assert events(tmp_path / "whole", "run_paused")
    rows = [[row | {"seconds": 0} for row in one["rounds"]] for one in told.values()]
    assert rows[0] == rows[1]
    assert told["whole"]["final"]["model_sha256"] == told["cut"]["final"]["model_sha256"]


@pytest.mark.parametrize("rounds_before", [0, 1])
def test_a_run_that_is_told_to_stop_while_it_is_paused_ends_at_once(tmp_path: Path, rounds_before: int) -> None:
    out = tmp_path / "run"

    def stop(event: Event) -> None:
        if isinstance(event, RunPaused):
            commands.send(out, commands.Name.STOP, "ada")

    settings = scenario(
        out, "fleet.latency_s=100", "server.deadline_s=150", "server.evaluate=central", "server.eval_every=5"
    )
    if not rounds_before:
        with pytest.raises(RunError, match="stopped by ada"):
            with_sparse(settings, until_s=0.0, listeners=[stop])
        return
    told = with_sparse(settings, until_s=100.0 * rounds_before, listeners=[stop])
    record = json.loads((out / "run.json").read_text())
    assert [row["round"] for row in record["rounds"]] == [1]
    assert record["rounds"][0]["accuracy"] is None
    assert record["final"]["stopped"] == "stopped by ada"
    assert 0.1 < record["final"]["accuracy"] < 1  # of the model as it is
    assert not any(isinstance(event, RunContinued) for event in told)
    assert events(out, "run_continued") == []


def test_when_all_drop_out_in_every_round_the_run_ends(tmp_path: Path) -> None:
    settings = scenario(tmp_path / "run", "faults.dropout=1", "server.rounds=1000000", "server.patience_s=900")
    with pytest.raises(RunError, match="the last rounds brought too few updates; most often: SimulatedFaultError"):
        simulate(settings)
    rows = json.loads((tmp_path / "run/run.json").read_text())["rounds"]
    assert 3 <= len(rows) <= 40
    assert not any(row["applied"] for row in rows)


def test_a_run_sleeps_through_the_night_and_wakes_up(tmp_path: Path) -> None:
    """At noon all devices are there, at midnight none; a round takes a 20th of a day."""
    fleet = ("fleet.online=0.5", "fleet.swing=100", "fleet.day_s=2000", "fleet.latency_s=100", "server.deadline_s=150")
    told: list[Event] = []
    settings = scenario(tmp_path / "run", *fleet, "server.rounds=12", "server.patience_s=5000")
    simulate(settings, [told.append])
    paused, continued = (sum(isinstance(event, kind) for event in told) for kind in (RunPaused, RunContinued))
    assert paused == continued >= 1
    reasons = [data["reason"] for data in events(tmp_path / "run", "run_paused")]
    assert any("are needed (server.min_updates)" in reason for reason in reasons)
    assert json.loads((tmp_path / "run/run.json").read_text())["final"]["rounds_applied"] >= 8

    impatient = scenario(tmp_path / "other", *fleet, "server.rounds=12", "server.patience_s=300")
    with pytest.raises(RunError, match=r"for 300 s \(server.patience_s\)"):
        simulate(impatient)


def test_devices_too_small_for_the_program_are_asked_once(tmp_path: Path) -> None:
    """They decline, and say how much memory they have; from then on they are left alone."""
    settings = scenario(tmp_path / "run", "fleet.memory=1 KiB,8 MiB", "server.min_updates=1", "server.rounds=8")
    simulate(settings)
    rows = devices(tmp_path / "run")
    small = [row for row in rows.values() if row["report"].get("memory_budget") == 1024]
    assert 0 < len(small) < len(rows)
    for row in small:
        assert row["rounds"] == 0
        assert not row["eligible"]
        assert "memory budget 1.0 KiB, training takes" in row["why_not"]
        assert row["dropped"] == 0
        assert row["declined"] <= 1
    big = [row for row in rows.values() if row["report"].get("memory_budget") == 8 << 20]
    assert sum(row["rounds"] for row in big) >= 8
