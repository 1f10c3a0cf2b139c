"""A run that ends in the middle and is resumed: it goes on as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server import commands
from server.events import Event, RoundClosed
from server.run_store import RunStore
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


@pytest.mark.parametrize("cut_after", [1, 3, 4])
def test_a_resumed_run_ends_like_one_that_was_never_cut(tmp_path, cut_after):
    whole = run(tmp_path / "whole")
    with pytest.raises(PowerCutError):
        run(tmp_path / "cut", cut_after=cut_after)
    resumed = run(tmp_path / "cut", "run.resume=true")
    assert resumed["final"]["model_sha256"] == whole["final"]["model_sha256"]
    assert [row | {"seconds": 0} for row in resumed["rounds"]] == [row | {"seconds": 0} for row in whole["rounds"]]
    assert kinds(tmp_path / "cut").count("run_resumed") == 1
    assert kinds(tmp_path / "cut").count("round_planned") == 4
    assert kinds(tmp_path / "cut").count("update_received") == 12
