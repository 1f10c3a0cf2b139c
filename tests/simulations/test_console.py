"""What a run is and what its clients say, as it is printed; on a terminal too, where brackets are no markup."""

from __future__ import annotations

from pathlib import Path

from server.events import RoundClosed, RunContinued, RunPaused, RunStarted
from server.results import RoundRow
from server.rounds import Failure
from simulations.console import Console
from simulations.scenario import load_scenario

REASON = "ValueError: [/bold] and [red]index[0]"


def test_brackets_in_a_reason_do_not_end_the_run(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then treats the output as a terminal
    row = RoundRow(1, 0.5, 0.9, 3, 1, (Failure("7", REASON),), True, None, 0.4, 10, 0.5, 10, None, 0.1)
    with Console() as console:
        console.on_event(RunStarted(load_scenario("digits"), Path("run"), 10))
        console.on_event(RoundClosed(row, rounds=2))
    assert f"client 7: {REASON}" in capsys.readouterr().out


def test_the_first_line_says_how_the_clients_data_are_kept(capsys):
    open_run, kept = load_scenario("digits"), load_scenario("digits", ["secure.enabled=true", "privacy.epsilon=8"])
    with Console() as console:
        for scenario in (open_run, kept):
            console.on_event(RunStarted(scenario, Path("run"), 10))
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("10 parameters")
    assert second == first + "; secure aggregation, distributed differential privacy"


def test_a_round_is_one_line_that_says_who_is_missing_and_not_who_was_not_needed(capsys):
    row = RoundRow(4, None, None, 3, 1, (), False, "too few", None, 10, 0.5, 10, None, 0.1, late=7, declined=2)
    with Console() as console:
        console.on_event(RunStarted(load_scenario("digits"), Path("run"), 10, closed=3))
        console.on_event(RoundClosed(row, rounds=9))
    _, again, line = capsys.readouterr().out.splitlines()
    assert again == "goes on after round 3"
    assert line == "round 4/9  clients 3  dropped 1  declined 2  model unchanged: too few  0.1 s"


def test_a_pause_is_shown_and_its_end(capsys):
    with Console() as console:
        console.on_event(RunPaused(4, "1 devices can be asked, 3 are needed (server.min_updates): [1] online", 600.0))
        console.on_event(RunContinued(4))
    paused, continued = capsys.readouterr().out.splitlines()
    assert paused.startswith("paused before round 4, for at most 600 s: 1 devices")
    assert paused.endswith("[1] online")
    assert continued == "goes on with round 4"
