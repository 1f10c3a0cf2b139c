"""Whole runs in virtual time: each mode repeats bit for bit, whatever happens to the processes that play it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.errors import ConfigError
from edge_runtime.privacy import Ledger
from server.events import Event, RoundClosed
from server.run_store import RunStore
from simulations.resume import kept_scenario
from simulations.runner import simulate
from simulations.scenario import load_scenario

pytestmark = pytest.mark.e2e
ROUNDS = 6
BASE = (
    "data.name=digits data.clients=16 data.partition=iid model.name=digits_cnn model.input=1x8x8 train.epochs=1 "
    f"server.cohort=4 server.min_updates=1 server.rounds={ROUNDS} server.deadline_s=300 server.workers=1 "
    "deploy.formats= fleet.speed=lognormal fleet.speed_sigma=1.5 fleet.seconds_per_example=0.05 fleet.jitter=0.3 "
    "fleet.uplink_kbps=200 fleet.downlink_kbps=1000 fleet.network_sigma=0.5 fleet.latency_s=0.1"
)
# Each with state at the clients: a message that was run and is then cancelled must leave no trace there.
CARRIES = "uplink.codec=topk uplink.fraction=0.2 uplink.error_feedback=true downlink.delta=topk downlink.fraction=0.3"
MODES = {
    "sync": "faults.dropout=0.2",
    "semi_sync": "server.mode=semi_sync server.period_s=4",
    "async": "server.mode=async buffer.concurrency=8 faults.dropout=0.1",
}


class KilledError(Exception):
    """The run ends here."""


def run(out: Path, *overrides: str, die_after: int = 0) -> dict[str, Any]:
    def watch(event: Event) -> None:
        if isinstance(event, RoundClosed) and event.row.round == die_after:
            raise KilledError

    settings = [*BASE.split(), *(word for text in overrides for word in text.split()), f"run.out={out}"]
    simulate(load_scenario("mnist", settings), [watch])
    return read(out)


def read(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


def told(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What may not differ between two runs that are one."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in record["rounds"]]


def everybody_asked_ended_once(out: Path) -> None:
    """Who was asked, and what became of them, stands in the events; of some asked last nothing is heard any more."""
    store = RunStore(out, resume=True)
    log = store.log("round_planned", "clients_asked", "update_received", "client_dropped", "client_late")
    store.close()
    out_there: set[str] = set()
    for event in log:
        if "asked" in event.data:
            assert not out_there & set(event.data["asked"])
            out_there |= set(event.data["asked"])
        else:
            out_there.remove(event.data["client"])
    assert len(out_there) <= 8


@pytest.mark.parametrize("mode", MODES)
def test_a_run_does_not_depend_on_its_processes_and_a_resumed_one_not_on_its_break(tmp_path: Path, mode: str) -> None:
    settings = [CARRIES, MODES[mode]]
    whole = run(tmp_path / "whole", *settings)
    everybody_asked_ended_once(tmp_path / "whole")
    with pytest.raises(KilledError):
        run(tmp_path / "broken", *settings, die_after=ROUNDS // 2)
    simulate(kept_scenario(tmp_path / "broken", ["server.workers=2"]))
    broken = read(tmp_path / "broken")
    assert told(broken) == told(whole)
    assert broken["final"]["model_sha256"] == whole["final"]["model_sha256"]


def test_spares_shorten_rounds_and_buffers_shorten_them_further(tmp_path: Path) -> None:
    times = {}
    for name, settings in {"alone": "server.over_selection=1", "spares": "", **MODES}.items():
        rows = run(tmp_path / name, settings, "faults.dropout=0")["rounds"]
        times[name] = rows[-1]["ended_s"]
        assert [row["ended_s"] for row in rows] == sorted(row["ended_s"] for row in rows)
        late = {"alone": 0, "semi_sync": 0, "async": 0}.get(name, 2)  # 1.3 x 4 asked, rounded up
        assert {row["late"] for row in rows} == {late}
        assert all(row["clients"] == 4 for row in rows) or name == "semi_sync"
    assert times["async"] < times["spares"] < times["alone"]
    assert times["semi_sync"] <= ROUNDS * 4


def test_spares_take_the_places_of_those_who_drop_out(tmp_path: Path) -> None:
    still = "fleet.seconds_per_example=0 fleet.latency_s=0 fleet.uplink_kbps=0 fleet.downlink_kbps=0"
    hashes = set()
    for over in (1, 1.3):
        record = run(tmp_path / str(over), still, f"server.over_selection={over}")
        hashes.add(record["final"]["model_sha256"])
        assert {row["ended_s"] for row in record["rounds"]} == {0.0}
    assert len(hashes) == 1  # where nobody fails and time stands still, nobody needs them
    rows = run(tmp_path / "faults", still, "faults.error=0.2", "server.over_selection=2")["rounds"]
    assert sum(row["dropped"] for row in rows) > 0
    assert {row["clients"] for row in rows} == {4}


def test_central_privacy_books_every_buffer_at_rate_one(tmp_path: Path) -> None:
    record = run(tmp_path / "run", MODES["async"], "privacy.noise_multiplier=2", "privacy.mechanism=central")
    events = Ledger.from_json((tmp_path / "run" / "privacy.ledger").read_text()).events
    assert len(events) == sum(row["applied"] for row in record["rounds"]) == ROUNDS
    assert {event.sampling_rate for event in events} == {1.0}
    assert max(row["staleness"] for row in record["rounds"]) > 0
    private = record["final"]["privacy"]
    assert 0 < private["epsilon_without_sampling"] <= private["epsilon"]
    assert {event.noise_multiplier for event in events} == {2.0}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("secure.enabled=true", "masks cancel only between clients"),
        ("privacy.epsilon=8 privacy.mechanism=central privacy.population=16", "no random sample may be claimed"),
        ("server.strategy=scaffold", "weighs the updates of one model against each other"),
        ("server.strategy=fednova", "weighs the updates of one model against each other"),
    ],
)
@pytest.mark.parametrize("mode", ["semi_sync", "async"])
def test_what_cannot_be_accounted_for_is_refused(mode: str, settings: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_scenario("mnist", [*BASE.split(), *settings.split(), f"server.mode={mode}"])


def test_devices_come_and_go_and_the_run_ends_all_the_same(tmp_path: Path) -> None:
    away = "fleet.online=0.5 fleet.swing=3 fleet.day_s=200"
    rows = run(tmp_path / "run", MODES["async"], away, "fleet.seconds_per_example=0.2 server.deadline_s=20")["rounds"]
    assert any("went offline" in failure["reason"] for row in rows for failure in row["failures"])
    assert sum(row["applied"] for row in rows) >= ROUNDS - 1
