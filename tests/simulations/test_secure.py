"""Whole secure runs over real client processes: whoever fails in whichever phase costs its own update, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import load_file

from edge_runtime.errors import RunError
from edge_runtime.secagg import PHASES
from server.app import make_app
from server.rounds import choose_cohort
from simulations.grid import RUN_ID, SERVER_NODE_ID, InProcessGrid
from simulations.runner import simulate
from simulations.scenario import Scenario, load_scenario

TINY = (
    "data.name=digits data.clients=12 data.partition=iid model.name=digits_cnn model.input=1x8x8 train.epochs=1 "
    "server.cohort=10 server.over_selection=1 server.min_updates=1 server.rounds=2 server.deadline_s=5 "
    "server.workers=2 deploy.formats= secure.enabled=true secure.dropout=0.4 secure.corrupt=0"
)
IN_SUM = ("consistency", "unmask")
EXAMPLES = Path(__file__).parents[2] / "examples"


def scenario(out: Path, *overrides: str) -> Scenario:
    return load_scenario("mnist", [*TINY.split(), f"run.out={out}", *overrides])


def rounds(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((out / "run.json").read_text())["rounds"]
    return rows


def faulty(settings: Scenario, number: int) -> dict[str, str]:
    """The phase in which each client that a fault was drawn for meets it."""
    cohort = choose_cohort(range(settings.data.clients), settings.server.cohort, settings.seed, number)
    draw, phase = settings.faults.draw, settings.faults.draw_phase
    return {
        str(client): phase(settings.seed, number, client) for client in cohort if draw(settings.seed, number, client)
    }


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("error", "simulated error in training"),
        ("crash", "process died, exit code 1"),
        ("nan", "abstains: NumericsError"),
        ("wrong_shape", ""),
    ],
)
def test_a_fault_in_any_phase_costs_the_run_the_clients_it_was_drawn_for(
    tmp_path: Path, kind: str, reason: str
) -> None:
    settings = scenario(tmp_path / "run", f"faults.{kind}=0.25", "seed=44", "server.rounds=3")
    simulate(settings)
    met = set()
    for row in rounds(tmp_path / "run"):
        expected = faulty(settings, row["round"])
        met |= set(expected.values())
        assert {failure["client"] for failure in row["failures"]} == set(expected)
        assert row["dropped_in"] == {phase: list(expected.values()).count(phase) for phase in PHASES}
        assert all(f["reason"].startswith(f"{expected[f['client']]}: ") for f in row["failures"])
        assert all(reason in failure["reason"] for failure in row["failures"])
        assert row["applied"]
        assert row["clients"] == 10 - sum(phase not in IN_SUM for phase in expected.values())
    assert len(met) >= 3


@pytest.mark.parametrize("phase", ["advertise", "masked_input"])
def test_a_client_that_hangs_is_given_up_at_its_phases_deadline(tmp_path: Path, phase: str) -> None:
    faults = ("faults.hang=0.2", f"faults.phase={phase}", "seed=5", "server.rounds=1", "secure.phase_deadline_s=1.5")
    settings = scenario(tmp_path / "run", *faults, "server.deadline_s=2.5")
    simulate(settings)
    (row,) = rounds(tmp_path / "run")
    expected = faulty(settings, 1)
    assert 0 < len(expected) < 5
    assert row["dropped_in"] == {name: len(expected) * (name == phase) for name in PHASES}
    waited = "2.5" if phase == "advertise" else "1.5"
    assert all(failure["reason"] == f"{phase}: no reply within {waited} s" for failure in row["failures"])
    assert row["clients"] == 10 - len(expected) * (phase not in IN_SUM)
    assert row["applied"]


def test_too_many_lost_clients_leave_the_model_as_it_was(tmp_path: Path) -> None:
    settings = scenario(tmp_path / "run", "faults.dropout=0.9", "faults.phase=masked_input", "server.rounds=2")
    with pytest.raises(RunError, match="no round could be applied"):
        simulate(settings)
    for row in rounds(tmp_path / "run"):
        assert (row["applied"], row["clients"]) == (False, 0)
        assert "sent a masked input" in row["unchanged"]


def final(out: Path) -> dict[str, np.ndarray]:
    return load_file(out / "model.safetensors")


def test_a_secure_run_trains_as_a_plain_one_does_and_does_not_depend_on_the_processes(tmp_path: Path) -> None:
    """An equal split and a clip that cuts nobody: what is left between the two is the grid."""
    same = ("secure.value_bits=14", "privacy.clip=8", "data.clients=10", "server.rounds=3")
    for name, more in (("one", ["server.workers=1"]), ("two", []), ("plain", ["secure.enabled=false"])):
        simulate(scenario(tmp_path / name, *same, *more))
    one, two, plain = (final(tmp_path / name) for name in ("one", "two", "plain"))
    for name, value in plain.items():
        np.testing.assert_array_equal(one[name], two[name])
        np.testing.assert_allclose(two[name], value, atol=4e-3)
    rows = rounds(tmp_path / "two")
    plain_rows = rounds(tmp_path / "plain")
    assert all(row["train_loss"] is None for row in rows)
    assert all(ours["downlink_bytes"] > theirs["downlink_bytes"] for ours, theirs in zip(rows, plain_rows, strict=True))


def test_secure_rounds_follow_deltas_of_the_model_and_adapters(tmp_path: Path) -> None:
    """The model's hash is of what a client holds once it has decoded: also where that is not what the server has."""
    for name, more in {
        "deltas": ("downlink.codec=float16", "downlink.delta=uniform", "downlink.bits=6"),
        "half": ("downlink.codec=float16",),
        "adapters": ("train.lora_rank=2",),
    }.items():
        simulate(scenario(tmp_path / name, "server.rounds=3", "server.cohort=12", *more))
        assert all(row["applied"] and row["clients"] == 12 for row in rounds(tmp_path / name))


def test_groups_and_a_robust_mean_of_their_sums(tmp_path: Path) -> None:
    simulate(scenario(tmp_path / "run", "secure.groups=3", "robust.aggregator=median", "secure.dropout=0.2"))
    assert all(row["applied"] and row["clients"] == 10 for row in rounds(tmp_path / "run"))


def test_any_flower_app_takes_part_through_the_mod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    config = {
        "data.name": "digits", "data.clients": 6, "model.entry": "own_client:model", "train.epochs": 20,
        "server.rounds": 8, "server.cohort": 5, "server.over_selection": 1.0, "server.min_updates": 3,
        "deploy.formats": "",
        "secure.enabled": True, "run.out": str(tmp_path / "run"),
    }  # fmt: skip
    with InProcessGrid(6, 2, client_app="own_client:app") as grid:
        make_app(clock=grid.clock)(grid, Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), config))
    rows = rounds(tmp_path / "run")
    assert all(row["clients"] == 5 and row["applied"] for row in rows)
    assert rows[-1]["accuracy"] > 0.8
