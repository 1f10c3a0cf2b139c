"""Runs that are killed, with SIGKILL, at any moment: resumed, they end exactly like one that nothing happened to.

The kills are real, see killed_runs.py: of some the time is drawn, others strike right before or after a chosen write.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.privacy import Ledger

ROUNDS = 10
TINY = (
    "data.name=digits data.clients=6 data.partition=iid model.name=digits_cnn model.input=1x8x8 train.epochs=1 "
    f"server.cohort=3 server.min_updates=1 server.rounds={ROUNDS} server.workers=1 deploy.formats="
).split()
# Each with what it carries from round to round.
VARIANTS = {
    "Adam's moments, residuals and versions": [
        "server.strategy=fedadam",
        "uplink.codec=topk",
        "uplink.fraction=0.2",
        "uplink.error_feedback=true",
        "downlink.delta=topk",
        "downlink.fraction=0.3",
    ],
    "a clip that moves, under masks": ["secure.enabled=true", "server.strategy=fedyogi", "downlink.delta=int8"],
    "pruned weights, and clients that drop out": [
        "server.strategy=fedavgm",
        "compress.lever=importance",
        "faults.dropout=0.3",
        "faults.nan=0.1",
        "server.eval_every=3",
    ],
    "control variates, and layers that clients keep": [
        "server.strategy=scaffold",
        "train.optimizer.momentum=0.0",
        "uplink.codec=int8",
        "personal.layers=out.*",
        "personal.fine_tune_epochs=1",
        "server.evaluate=clients",
    ],
}
KILLS = {
    "Adam's moments, residuals and versions": 20,
    "a clip that moves, under masks": 12,
    "control variates, and layers that clients keep": 6,
}
OTHERS = 12
assert sum(KILLS.values()) + OTHERS == 50


# Settings and kills of each run in; what its attempts left out.
Play = Callable[[list[tuple[list[str], list[dict[str, Any]]]]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """In memory where there is such: a process that is killed loses nothing there that a disk would keep."""
    shared = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else None))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def play(folder: Path) -> Iterator[Play]:
    """By one process, for what all attempts import and trace takes longer than most of them."""
    player = subprocess.Popen(
        [sys.executable, "-P", Path(__file__).with_name("killed_runs.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert player.stdin is not None
    assert player.stdout is not None
    into, out = player.stdin, player.stdout

    def play(runs: list[tuple[list[str], list[dict[str, Any]]]]) -> list[dict[str, Any]]:
        inside = Path(tempfile.mkdtemp(dir=folder))
        job = [
            {"out": str(inside / str(number)), "settings": settings, "kills": kills}
            for number, (settings, kills) in enumerate(runs)
        ]
        into.write(json.dumps(job) + "\n")
        into.flush()
        return [json.loads(out.readline()) for _ in runs]

    with player:
        yield play
        into.close()
    assert player.returncode == 0


def draw_kill(rng: np.random.Generator, writes: int) -> dict[str, Any]:
    kill = {"number": int(rng.integers(1, writes + 1)), "when": rng.choice(["before", "after", "later"]).item()}
    return kill | ({"delay_s": rng.uniform(0.0, 0.05)} if kill["when"] == "later" else {})


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"seconds": None} for row in rows]


@pytest.mark.e2e
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_run_ends_like_one_that_was_not(play: Play, variant: str) -> None:
    settings = TINY + VARIANTS[variant]
    (whole,) = play([(settings, [])])
    expected = whole["stages"][-1]["left"]["run"]
    assert whole["writes"] > 5 * ROUNDS
    rng = np.random.default_rng(sum(variant.encode()))
    # Every third one is killed a second time, while it goes on.
    kills = [
        [draw_kill(rng, whole["writes"]) for _ in range(2 if number % 3 == 0 else 1)]
        for number in range(KILLS.get(variant, OTHERS))
    ]
    killed = 0
    for run in play([(settings, one) for one in kills]):
        *before, (last, end) = [(stage["code"], stage["left"]) for stage in run["stages"]]
        killed += bool(before)
        assert last == 0
        assert {code for code, _ in before} <= {-signal.SIGKILL}
        for _, left in before:
            # No closed round is lost, or becomes another.
            assert end["closed"][: len(left["closed"])] == left["closed"]
        assert [row["round"] for _, row in end["closed"]] == list(range(1, ROUNDS + 1))
        assert end["run"]["final"]["model_sha256"] == expected["final"]["model_sha256"]
        assert end["run"]["final"]["uplink_bytes"] == expected["final"]["uplink_bytes"]
        assert without_times(end["run"]["rounds"]) == without_times(expected["rounds"])
    assert killed >= 0.9 * len(kills)  # a late kill may find the run at its end


PRIVATE = {
    "central": ["privacy.noise_multiplier=1.0"],
    "ftrl": ["privacy.noise_multiplier=1.0"],
    "local": ["privacy.mechanism=local", "privacy.noise_multiplier=1.0", "privacy.clip=1.0"],
    "distributed": ["secure.enabled=true", "privacy.noise_multiplier=1.0", "secure.dropout=0.3"],
}
SPENDS = [("append_line", "before"), ("append_line", "after"), ("privacy_spent", "after")]
AT = {
    "central": SPENDS,
    "ftrl": [("append_line", "after"), ("close_round", "before")],
    "local": [*SPENDS, ("privacy_asked", "after"), ("round_planned", "after")],
    "distributed": [("privacy_sum_begun", "after"), ("privacy_spent", "after")],
}


@pytest.mark.e2e
@pytest.mark.parametrize("mechanism", PRIVATE)
def test_what_was_told_stays_on_the_books(play: Play, mechanism: str) -> None:
    """Killed around the writes that have to do with the budget, and once more while it goes on."""
    settings = [*TINY, "server.rounds=3", f"privacy.mechanism={mechanism}", "data.clients=8", "server.cohort=5"]
    settings += PRIVATE[mechanism]
    number = 1 if mechanism == "ftrl" else 2
    kills = [
        [{"number": number, "when": when, "only": at}, {"number": 1, "when": "before", "only": "close_round"}]
        for at, when in AT[mechanism]
    ]
    whole, *killed = play([(settings, one) for one in [[], *kills]])
    expected = whole["stages"][-1]["left"]["run"]["final"]
    lost_something = 0
    for run in killed:
        *before, (code, end) = [(stage["code"], stage["left"]) for stage in run["stages"]]
        final = end["run"]["final"]
        assert code == 0
        ledger = Ledger.from_json(end["ledger"], final["privacy"]["ledger_digest"])
        assert len(ledger.events) == len(end["spent"])
        if mechanism != "local":  # whose cohorts, of those who were asked least, are then others
            assert final["epsilon"] >= expected["epsilon"] - 1e-9
        for _, left in before:
            whole_lines = left["ledger"][: left["ledger"].rfind("\n") + 1]
            assert end["ledger"].startswith(whole_lines)
            assert final["epsilon"] >= max((told["epsilon"] for _, told in left["spent"]), default=0.0)
        epsilons = [told["epsilon"] for _, told in end["spent"]]
        assert epsilons == sorted(epsilons)
        assert final["epsilon"] == epsilons[-1]
        assert [row["round"] for _, row in end["closed"]] == [1, 2, 3]
        lost_something += len(ledger.events) > 3
        if mechanism == "ftrl":
            assert len(ledger.events) == 1
        if mechanism == "local":
            # Nobody was asked more often than the books say, whatever became of the rounds.
            asked = Counter(client for _, one in end["asked"] for client in one["clients"])
            assert max(asked.values()) <= len(ledger.events)
        if mechanism == "distributed":
            assert len(ledger.events) >= len(end["begun"])
    assert lost_something or mechanism not in ("central", "distributed")
