"""The ledger of a run: on disk before it counts, never shortened, and continued by the next run."""

from __future__ import annotations

import json
import math
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.errors import ConfigError, RunError
from edge_runtime.privacy import DistributedSum, Ledger, SampledGaussian, epsilon
from server.budget import LEDGER, Budget, read_ledger
from server.protection_config import PrivacyConfig
from server.run_store import RunStore

EVENT = SampledGaussian(4.0, 1.0)
SUM = DistributedSum("skellam", "1e5", 9, 450.0, 35000.0, 6144, sampling_rate=0.4)


def opened(directory: Path, budget: Budget) -> Budget:
    store = RunStore(directory)
    budget.open(store)
    return budget


def test_every_event_is_a_line_before_it_counts(tmp_path):
    budget = opened(tmp_path / "run", Budget(0.0, 1e-5))
    for number in (1, 2, 3):
        budget.spend(EVENT, number)
        on_disk = Ledger.from_json((tmp_path / "run" / LEDGER).read_text(), budget.ledger.digest)
        assert on_disk == budget.ledger
        assert len(on_disk.events) == number
        assert budget.epsilon == pytest.approx(epsilon(on_disk, 1e-5), rel=1e-6)


def test_events_sqlite_says_the_same(tmp_path):
    budget = opened(tmp_path / "run", Budget(0.0, 1e-5))
    budget.spend(EVENT, 1)
    budget.spend(SUM, 2)
    rows = sqlite3.connect(tmp_path / "run" / "events.sqlite").execute(
        "SELECT round, data FROM events WHERE kind = 'privacy_spent' ORDER BY id"
    )
    told = [(number, json.loads(data)) for number, data in rows]
    assert [number for number, _ in told] == [1, 2]
    assert told[1][1]["digest"] == budget.ledger.digest
    assert told[1][1]["epsilon"] == budget.epsilon


def test_a_killed_process_leaves_all_it_has_spent(tmp_path):
    script = f"""
import os, signal
from pathlib import Path
from edge_runtime.privacy import DistributedSum
from server.budget import Budget
from server.run_store import RunStore
budget = Budget(0.0, 1e-5)
budget.open(RunStore(Path({str(tmp_path / "run")!r})))
for _ in range(3):
    budget.spend({SUM!r})
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert read_ledger(tmp_path / "run").events == (SUM,) * 3


def test_a_torn_last_line_is_left_out_and_a_torn_middle_is_refused(tmp_path):
    text = Ledger((EVENT, SUM, EVENT)).to_json()
    path = tmp_path / LEDGER
    for cut in range(1, len(text.splitlines()[-1]) + 1):
        path.write_text(text[:-cut])
        kept = 3 if cut == 1 else 2  # without its line feed alone, a line is whole
        assert read_ledger(path).events == (EVENT, SUM, EVENT)[:kept]
    lines = text.splitlines(keepends=True)
    for bad in (lines[0] + lines[2], lines[0] + lines[1][:40] + "\n" + lines[2], text.replace("450", "45")):
        path.write_text(bad)
        with pytest.raises(ConfigError, match=r"privacy\.ledger = .*line 2"):
            read_ledger(path)


def test_lines_cut_off_the_end_are_missed_where_run_json_knows_better(tmp_path):
    whole = Ledger((EVENT, EVENT))
    (tmp_path / "run.json").write_text(json.dumps({"final": {"privacy": {"ledger_digest": whole.digest}}}))
    (tmp_path / LEDGER).write_text(whole.to_json())
    assert read_ledger(tmp_path) == whole
    (tmp_path / LEDGER).write_text(Ledger((EVENT,)).to_json())
    with pytest.raises(ConfigError, match="lines are missing"):
        read_ledger(tmp_path)


@pytest.mark.parametrize("record", ["", "[", "{}", '{"final": null}', '{"final": {"privacy": null}}'])
def test_other_run_json_files(tmp_path, record):
    (tmp_path / LEDGER).write_text(Ledger((EVENT,)).to_json())
    (tmp_path / "run.json").write_text(record)
    if record in ("", "["):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_ledger(tmp_path)
    else:
        assert read_ledger(tmp_path).events == (EVENT,)


def test_no_such_ledger(tmp_path):
    with pytest.raises(ConfigError, match=r"privacy\.ledger = .*none': cannot be read \(No such file or directory\)$"):
        Budget.of(PrivacyConfig(noise_multiplier=1.0, ledger=str(tmp_path / "none")))


def test_the_next_run_starts_with_the_lines_of_the_last(tmp_path):
    first = opened(tmp_path / "first", Budget(0.0, 1e-5))
    first.spend(EVENT)
    settings = PrivacyConfig(noise_multiplier=4.0, delta=1e-5, ledger=str(tmp_path / "first" / LEDGER))
    second = opened(tmp_path / "second", Budget.of(settings))
    assert second.epsilon == pytest.approx(first.epsilon)
    second.spend(EVENT)
    text = (tmp_path / "second" / LEDGER).read_text()
    assert text.startswith((tmp_path / "first" / LEDGER).read_text())
    assert read_ledger(tmp_path / "second") == Ledger((EVENT, EVENT))
    assert second.epsilon == pytest.approx(epsilon(Ledger((EVENT, EVENT)), 1e-5), rel=1e-6)


def test_an_event_that_would_pass_the_limit_is_named_and_not_entered():
    budget = Budget(2.0, 1e-5)
    spent = 0
    while budget.why_not(EVENT) is None:
        budget.spend(EVENT)
        spent += 1
    assert epsilon(Ledger((EVENT,) * spent), 1e-5) <= 2.0 < epsilon(Ledger((EVENT,) * (spent + 1)), 1e-5)
    assert "the privacy budget is spent" in str(budget.why_not(EVENT))
    assert budget.epsilon <= 2.0
    assert Budget(0.0, 1e-5).why_not(EVENT) is None


def test_the_noise_that_is_found_lets_all_rounds_through_one_by_one():
    budget = Budget(3.0, 1e-5, Ledger((SampledGaussian(8.0, 0.1),)))
    z = budget.noise_for(lambda z: SampledGaussian(z, 0.2, rounds=12))
    event = SampledGaussian(z, 0.2)
    for _ in range(12):
        assert budget.why_not(event) is None
        budget.spend(event)
    assert 0.999 * 3.0 < budget.epsilon <= 3.0
    assert budget.why_not(event)


def test_nothing_is_left_to_plan_with():
    spent = Ledger((SampledGaussian(0.5, 1.0),))
    with pytest.raises(ConfigError, match="is spent already"):
        Budget(1.0, 1e-5, spent).noise_for(lambda z: SampledGaussian(z, 1.0))


def test_a_budget_that_no_noise_meets_is_named_as_it_was_asked_for():
    with pytest.raises(ConfigError, match=r"^\[privacy\] epsilon = 1e-05: no noise up to 10 reaches it"):
        Budget(1e-5, 1e-5).noise_for(lambda z: SampledGaussian(z, 1.0), high=10.0)


def test_a_ledger_that_cannot_be_written_stops_what_it_was_to_pay_for(tmp_path):
    budget = opened(tmp_path / "run", Budget(0.0, 1e-5))
    (tmp_path / "run" / LEDGER).unlink()
    (tmp_path / "run" / LEDGER).mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        budget.spend(EVENT)
    assert budget.ledger == Ledger()
    assert list((tmp_path / "run" / LEDGER).iterdir()) == []


def test_infinite_epsilon_is_told_as_none():
    budget = Budget(0.0, 1e-5)
    budget.spend(SampledGaussian(1.0, 1.0, dimension=10, sample_variation=0.5))
    assert math.isinf(budget.epsilon)
    assert budget.figures()["epsilon"] is None
