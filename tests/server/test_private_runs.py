"""Whole simulated runs under each mechanism: what they promise, write down, keep to themselves, and when they end."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.errors import ConfigError
from edge_runtime.privacy import DistributedSum, Ledger, MatrixMechanism, SampledGaussian, epsilon
from server.budget import LEDGER, read_ledger
from server.events import Event, RoundClosed, RunFinished, RunStarted
from simulations.console import Console
from simulations.report import write_report
from simulations.runner import simulate
from simulations.scenario import load_scenario

pytestmark = pytest.mark.e2e
TINY = (
    "data.clients=6 data.partition=iid train.epochs=1 server.cohort=4 server.min_updates=1 server.rounds=3 "
    "server.workers=1 server.eval_every=100 deploy.formats= privacy.clip=1.0"
)


def run(out: Path, *overrides: str, events: list[Event] | None = None) -> dict[str, Any]:
    listeners = [events.append] if events is not None else []
    simulate(load_scenario("digits", [*TINY.split(), *overrides, f'run.out="{out}"']), listeners)
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


def rows_that_told(record: dict[str, Any]) -> int:
    return sum(row["unchanged"] is None for row in record["rounds"])


EVENT = {"central": SampledGaussian, "local": SampledGaussian, "ftrl": MatrixMechanism, "distributed": DistributedSum}


@pytest.mark.parametrize("mechanism", EVENT)
def test_what_every_mechanism_leaves_behind(tmp_path, mechanism):
    # Everyone is asked, for a small sample may play no round.
    settings = ["privacy.noise_multiplier=1.5", f"privacy.mechanism={mechanism}", "server.cohort=6"]
    record = run(tmp_path / "run", *settings, f"secure.enabled={str(mechanism == 'distributed').lower()}")
    final, ledger = record["final"], read_ledger(tmp_path / "run")
    assert all(isinstance(event, EVENT[mechanism]) for event in ledger.events)
    assert len(ledger.events) == (1 if mechanism == "ftrl" else 3)
    assert record["config"]["privacy.population"] == 6
    assert final["epsilon"] == final["privacy"]["epsilon"] == pytest.approx(epsilon(ledger, 1e-5), rel=1e-5)
    assert final["delta"] == 1e-5
    assert final["privacy"]["mechanism"] == mechanism
    assert final["privacy"]["ledger_digest"] == ledger.digest
    assert final["stopped"] is None
    spent = [row["epsilon"] for row in record["rounds"]]
    assert spent == sorted(spent)
    assert spent[-1] == final["epsilon"]
    assert [row["clip"] for row in record["rounds"]] == [1.0] * 3
    assert [row["train_loss"] for row in record["rounds"]] == [None] * 3
    assert [row["clients"] for row in record["rounds"]] == [6] * 3
    page = write_report(tmp_path / "run").read_text()
    assert page.count("<svg") == 4
    assert final["privacy"]["ledger_digest"] in page


def test_sixteen_rounds_of_noise_four_and_no_sampling_are_the_closed_forms_epsilon(tmp_path):
    """Phi(1/2 - epsilon) - e^epsilon Phi(-1/2 - epsilon) = 10^-5 at epsilon = 4.3772; in two runs with one ledger."""
    settings = ["privacy.noise_multiplier=4", "server.cohort=6", "server.rounds=8"]
    first = run(tmp_path / "first", *settings)
    assert [row["applied"] for row in first["rounds"]] == [True] * 8
    second = run(tmp_path / "second", *settings, f'privacy.ledger="{tmp_path / "first"}"')
    assert second["final"]["epsilon"] == pytest.approx(4.3772, abs=1e-4)
    text = (tmp_path / "second" / LEDGER).read_text()
    assert text.startswith((tmp_path / "first" / LEDGER).read_text())
    assert read_ledger(tmp_path / "second") == Ledger((read_ledger(tmp_path / "first").events[0],) * 16)


def test_a_run_ends_before_its_budget_is_passed(tmp_path, capsys):
    events: list[Event] = []
    settings = ["privacy.noise_multiplier=4", "privacy.epsilon=2.2", "server.cohort=6", "server.rounds=16"]
    record = run(tmp_path / "run", *settings, events=events)
    (event,) = set(read_ledger(tmp_path / "run").events)
    rounds = len(record["rounds"])
    assert 1 < rounds < 16
    assert epsilon(Ledger((event,) * rounds), 1e-5) <= 2.2 < epsilon(Ledger((event,) * (rounds + 1)), 1e-5)
    assert "the privacy budget is spent" in record["final"]["stopped"]
    assert record["error"] is None
    assert record["final"]["rounds_applied"] == rounds
    finished = next(event for event in events if isinstance(event, RunFinished))
    Console().summary(finished, tmp_path / "report.html")
    told = capsys.readouterr().out
    assert "stopped: the privacy budget is spent" in told
    assert f"privacy: central, epsilon {record['final']['epsilon']:.4g} at delta 1e-05" in told
    assert [row["accuracy"] is None for row in record["rounds"]] == [True] * (rounds - 1) + [False]
    with pytest.raises(ConfigError, match="is spent already"):
        run(tmp_path / "next", "privacy.epsilon=1", f'privacy.ledger="{tmp_path / "run"}"')
    assert not (tmp_path / "next" / "run.json").exists()


def test_the_books_are_written_before_a_round_is_closed(tmp_path):
    """What the ledger on the disk says whenever a round's model is there to be seen."""
    lines: list[int] = []

    class Watch(list[Event]):
        def append(self, event: Event) -> None:
            if isinstance(event, RoundClosed):
                lines.append(len((tmp_path / "run" / LEDGER).read_text().splitlines()))

    run(tmp_path / "run", "privacy.noise_multiplier=3", "server.cohort=6", events=Watch())
    assert lines == [1, 2, 3]


def test_a_sample_that_is_too_small_plays_no_round_and_spends_nothing(tmp_path):
    settings = ["server.cohort=2", "server.min_updates=2", "server.rounds=12", "privacy.noise_multiplier=1"]
    record = run(tmp_path / "run", *settings)
    told = rows_that_told(record)
    assert len(read_ledger(tmp_path / "run").events) == told
    # A binomial of 6 at 1/3 is below 2 in a third of the rounds: in none of 12, or in all, once in 150 or 10^5 runs.
    for row in record["rounds"]:
        assert row["applied"] == (row["clients"] >= 2)
        assert row["applied"] or row["unchanged"].endswith("server.min_updates = 2")
    sizes = {row["clients"] for row in record["rounds"]}
    assert len(sizes) > 1


def test_a_client_that_fails_costs_its_update_alone(tmp_path):
    settings = ["server.cohort=6", "privacy.noise_multiplier=1", "faults.nan=0.4", "server.rounds=4"]
    record = run(tmp_path / "run", *settings)
    failures = [failure["reason"] for row in record["rounds"] for failure in row["failures"]]
    assert any("NaN" in reason for reason in failures)
    assert rows_that_told(record) >= 1


def test_local_clients_tell_nothing_but_noised_updates(tmp_path):
    """The server's view: no count of examples, no loss; and with noise of 300 clips, updates that are noise."""
    settings = ["privacy.mechanism=local", "privacy.noise_multiplier=100", "server.rounds=2"]
    record = run(tmp_path / "run", *settings, "privacy.population=6")
    assert record["final"]["privacy"]["participations"] == 2  # of 2 rounds of 4 among 6: as even as can be
    assert [row["train_loss"] for row in record["rounds"]] == [None] * 2
    assert len(read_ledger(tmp_path / "run").events) == 2


def test_a_local_client_is_not_asked_more_often_than_planned(tmp_path):
    """With a population that is far too large, each client's one participation is soon used up."""
    settings = ["privacy.mechanism=local", "privacy.epsilon=4", "privacy.population=1000", "server.rounds=4"]
    record = run(tmp_path / "run", *settings)
    assert [row["clients"] for row in record["rounds"]] == [4, 2, 0, 0]
    assert record["final"]["epsilon"] <= 4
    assert len(read_ledger(tmp_path / "run").events) == 1


def test_noise_that_swamps_the_model_is_announced(tmp_path, capsys):
    events: list[Event] = []
    run(tmp_path / "run", "privacy.noise_multiplier=1", events=events)
    started = next(event for event in events if isinstance(event, RunStarted))
    (warning,) = started.warnings
    # sqrt(5928) / 4 clips of noise a round
    assert "19.2 times as long as the longest update" in warning
    assert "server.cohort" in warning
    with Console() as console:
        console.on_event(started)
    assert warning in capsys.readouterr().out


def test_events_sqlite_has_what_was_spent(tmp_path):
    record = run(tmp_path / "run", "privacy.noise_multiplier=2", "server.cohort=6")
    rows = sqlite3.connect(tmp_path / "run" / "events.sqlite").execute(
        "SELECT round, data FROM events WHERE kind = 'privacy_spent' ORDER BY id"
    )
    spent = {number: json.loads(data)["epsilon"] for number, data in rows}
    assert spent == {row["round"]: row["epsilon"] for row in record["rounds"]}
