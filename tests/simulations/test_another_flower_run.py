"""Runs whose server dies, and that go on as another Flower run: what clients keep on their own disks is theirs still.

No state of a client is in the server's checkpoints here, and none goes back when the server does: each has a
`state-path` of its own, and the second Flower run a new id and new client processes, as after the death of a SuperLink.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from edge_runtime.config import flatten
from server.app import make_app
from server.events import ClientAnswered, Event, RoundClosed
from server.run_store import RunStore
from simulations.grid import SERVER_NODE_ID, InProcessGrid
from simulations.scenario import load_scenario

CLIENTS, ROUNDS = 5, 4
# Nobody is asked who is not waited for: whether such a client trains is a matter of time.
TINY = (
    f"data.name=digits data.clients={CLIENTS} data.partition=dirichlet model.name=digits_cnn model.input=1x8x8 "
    f"train.epochs=2 train.optimizer.momentum=0.0 server.cohort=3 server.min_updates=1 server.rounds={ROUNDS} "
    "server.over_selection=1.0 deploy.formats= seed=4"
).split()
PERSONAL = ["personal.layers=out.*", "personal.fine_tune_epochs=1", "server.evaluate=clients"]
FEEDBACK = ["uplink.codec=topk,int8", "uplink.fraction=0.05", "uplink.error_feedback=true"]
DELTAS = ["downlink.delta=topk", "downlink.fraction=0.2"]
KEPT = {
    "layers of their own": [*PERSONAL, *DELTAS],
    "control variates": ["server.strategy=scaffold", "uplink.codec=int8"],
    "both": [*PERSONAL, "server.strategy=scaffold"],
}
FIRST, SECOND, THIRD = 2**64 - 5, 5, 6  # Flower's ids

Death = Callable[[Event], bool]


class DiedError(Exception):
    """The end of a server, here."""


def answered(number: int, count: int) -> Death:
    """Once so many clients have answered in that round."""
    seen: list[Event] = []

    def now(event: Event) -> bool:
        seen.extend([event] if isinstance(event, ClientAnswered) and event.round == number else [])
        return len(seen) == count

    return now


def closed(number: int) -> Death:
    return lambda event: isinstance(event, RoundClosed) and event.row.round == number


def never(_: Event) -> bool:
    return False


def play(folder: Path, settings: list[str], run_id: int, death: Death, *, resume: bool = False) -> dict[str, Any]:
    """One Flower run on the folder's run directory, with clients that keep their state beside it; `run.json`."""
    out = folder / "run"
    config = load_scenario("mnist", [*TINY, *settings, f"run.out={out}", f"run.resume={str(resume).lower()}"])

    def listen(event: Event) -> None:
        if death(event):
            raise DiedError

    with InProcessGrid(CLIENTS, 1, own_folders={"state-path": folder / "clients"}, run_id=run_id) as grid:
        app = make_app([listen], clock=grid.clock, pause=grid.pause)
        app(grid, Context(run_id, SERVER_NODE_ID, {}, RecordDict(), dict(flatten(config))))
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


def told(record: dict[str, Any]) -> tuple[Any, ...]:
    """What a run comes to, but for times and bytes: a model may be sent whole once more."""
    figures = dict(record["final"].get("personal", {}), downlink_bytes=None)
    rows = [(row["round"], row["accuracy"], row["train_loss"], row["clients"]) for row in record["rounds"]]
    return record["final"]["model_sha256"], figures, rows


@pytest.mark.parametrize("kept", [pytest.param(one, marks=pytest.mark.e2e) if one != "both" else one for one in KEPT])
def test_the_run_ends_like_one_whose_server_did_not_die(tmp_path: Path, kept: str) -> None:
    """It dies in the middle of a round, and again with that round all but closed; and once between two rounds."""
    settings = KEPT[kept]
    whole = play(tmp_path / "whole", settings, FIRST, never)
    for deaths in ([answered(3, 2), answered(3, 3)], [closed(2), answered(4, 1)]):
        folder = tmp_path / f"died {len(list(tmp_path.iterdir()))}"
        with pytest.raises(DiedError):
            play(folder, settings, FIRST, deaths[0])
        with pytest.raises(DiedError):
            play(folder, settings, SECOND, deaths[1], resume=True)
        assert told(play(folder, settings, THIRD, never, resume=True)) == told(whole)
        (state,) = {path.name for path in (folder / "clients").glob("*/*")}
        store = RunStore(folder / "run", resume=True)
        try:
            ((_, facts),) = store.events("run_facts")
        finally:
            store.close()
        assert state == f"run-{int(facts['key'], 16):016x}"


@pytest.mark.parametrize("kept", ["layers of their own", "control variates"])
def test_clients_that_lose_their_state_too_make_another_model(tmp_path: Path, kept: str) -> None:
    """And the run ends all the same: what they lack they are sent, or begin with zeros."""
    settings = KEPT[kept]
    whole = play(tmp_path / "whole", settings, FIRST, never)
    with pytest.raises(DiedError):
        play(tmp_path / "died", settings, FIRST, closed(2))
    shutil.rmtree(tmp_path / "died" / "clients")
    record = play(tmp_path / "died", settings, SECOND, never, resume=True)
    assert told(record) != told(whole)
    assert [(row["round"], row["clients"], row["dropped"]) for row in record["rounds"]] == [
        (number, 3, 0) for number in range(1, ROUNDS + 1)
    ]


@pytest.mark.e2e
def test_what_codecs_held_back_is_sent_later_and_never_twice(tmp_path: Path) -> None:
    """Between two rounds nothing is lost; in the middle of one what those had unsent who answered the lost attempt."""
    settings = [*FEEDBACK, *DELTAS]
    whole = play(tmp_path / "whole", settings, FIRST, never)
    with pytest.raises(DiedError):
        play(tmp_path / "between", settings, FIRST, closed(2))
    shutil.copytree(tmp_path / "between", tmp_path / "wiped")
    assert told(play(tmp_path / "between", settings, SECOND, never, resume=True)) == told(whole)
    shutil.rmtree(tmp_path / "wiped" / "clients")
    assert told(play(tmp_path / "wiped", settings, SECOND, never, resume=True)) != told(whole)
    with pytest.raises(DiedError):
        play(tmp_path / "within", settings, FIRST, answered(3, 2))
    within = play(tmp_path / "within", settings, SECOND, never, resume=True)
    assert told(within) != told(whole)
    assert told(within)[2][:2] == told(whole)[2][:2]
    assert [row["dropped"] for row in within["rounds"]] == [0] * ROUNDS


def test_a_secure_round_is_entered_again_in_the_next_flower_run(tmp_path: Path) -> None:
    settings = ["secure.enabled=true", *PERSONAL[:1], "server.evaluate=none", "server.cohort=4", "server.min_updates=3"]
    whole = play(tmp_path / "whole", settings, FIRST, never)
    with pytest.raises(DiedError):
        play(tmp_path / "died", settings, FIRST, answered(3, 2))
    again = play(tmp_path / "died", settings, SECOND, never, resume=True)
    assert [row["clients"] for row in again["rounds"]] == [row["clients"] for row in whole["rounds"]] == [4] * ROUNDS
