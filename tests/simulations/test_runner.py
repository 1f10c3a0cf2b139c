"""Whole runs in this process: what the client processes load, and every shipped scenario on the engine."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edge_runtime.errors import ConfigError, MissingPackageError
from server.events import Event, RoundClosed
from simulations.runner import simulate
from simulations.scenario import load_scenario, shipped

TINY = (
    "data.name=digits data.clients=6 data.partition=iid model.name=digits_cnn train.epochs=1 server.cohort=4 "
    "server.min_updates=1 server.rounds=2 server.workers=2 deploy.formats="
)


def run(out: Path, *overrides: str) -> dict[str, Any]:
    simulate(load_scenario("mnist", [*TINY.split(), f"run.out={out}", *overrides]))
    return read_run(out)


def read_run(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


@pytest.mark.parametrize(("trainer", "expected"), [("engine", False), ("torch", True)])
def test_client_processes_of_the_engine_never_map_pytorch(tmp_path: Path, trainer: str, expected: bool) -> None:
    """What a process has loaded, by its memory map, after it has trained."""
    before = {child.pid for child in psutil.Process().children()}
    maps: list[str] = []

    def look(event: Event) -> None:
        if isinstance(event, RoundClosed):
            workers = [child for child in psutil.Process().children() if child.pid not in before]
            maps.extend(Path(f"/proc/{worker.pid}/maps").read_text() for worker in workers)

    overrides = [*TINY.split(), f"train.trainer={trainer}", f"run.out={tmp_path / 'run'}"]
    simulate(load_scenario("mnist", overrides), [look])
    assert len(maps) == 4
    assert all("/libtorch" in text for text in maps) == any("/libtorch" in text for text in maps) == expected
    # Not in all: on a busy machine one process may do all the work before the other is ready.
    assert trainer == "torch" or any("libhedgerow_core" in text for text in maps)


def test_clients_may_measure_the_model_and_no_client_is_sent_what_the_trainer_does_not_need(tmp_path: Path) -> None:
    rows = {
        trainer: run(
            tmp_path / trainer, "server.evaluate=clients", "server.over_selection=1", f"train.trainer={trainer}"
        )["rounds"]
        for trainer in ("engine", "torch")
    }
    for ours, theirs in zip(rows["engine"], rows["torch"], strict=True):
        assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=0.01)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)
        # Down to those who train and to as many who measure; up from the former.
        assert theirs["downlink_bytes"] == 2 * theirs["uplink_bytes"] == 2 * ours["uplink_bytes"]
        assert ours["downlink_bytes"] > theirs["downlink_bytes"]


def test_a_schedule_over_rounds_reaches_the_clients(tmp_path: Path) -> None:
    """With a rate that is as good as zero from round 2 on, the model's loss stays where round 1 has brought it."""
    falling = ["train.schedule.name=step", "train.schedule.every=1", "train.schedule.gamma=1e-9"]
    first, second = run(tmp_path / "falling", *falling)["rounds"]
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-6)
    first, second = run(tmp_path / "steady")["rounds"]
    assert second["loss"] < 0.99 * first["loss"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.memory_budget=96 KiB"],
        ["train.trainable=auto", "train.memory_budget=60 KiB"],
        ["train.trainable=out.*"],
        ["train.micro_batch=5"],
        ["train.clip_norm=1.0", "train.loss=focal", "train.optimizer.name=adamw", "train.optimizer.lr=0.003"],
        ["server.strategy=fedprox", "server.proximal_mu=0.1"],
    ],
    ids=" ".join,
)
def test_what_the_engine_can_be_told_goes_through_a_whole_run(tmp_path: Path, overrides: list[str]) -> None:
    rows = run(tmp_path / "run", *overrides)["rounds"]
    assert [row["dropped"] for row in rows] == [0, 0]
    assert rows[1]["loss"] < rows[0]["loss"]


def write_fashion(folder: Path) -> None:
    """Fashion-MNIST's four files with noise inside: what is tested is that the scenario's parts fit together."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 600), ("t10k", 50)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.integers(0, 10, count, np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{name}-{kind}-ubyte").write_bytes(head + array.tobytes())


CLASSES = {"digits": 10, "mnist": 10, "shakespeare": 81, "watch": 7}


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_scenario_trains_on_the_engine(tmp_path: Path, name: str) -> None:
    small = ["server.rounds=2", "server.cohort=3", "server.min_updates=1", "server.eval_every=1", "deploy.formats="]
    private = name == "private"
    if name == "fashion" or private:
        write_fashion(tmp_path)
        small += [f"data.path={tmp_path}", "data.partition=iid"]
    if private:
        small += ["data.clients=3"]  # else the size of a cohort would be left to chance
    settings = load_scenario(name, [*small, f"run.out={tmp_path / 'run'}"])
    assert settings.train.trainer == "engine"
    try:
        simulate(settings)
    except MissingPackageError as error:
        pytest.skip(str(error))
    rows = read_run(tmp_path / "run")["rounds"]
    assert [(row["clients"], row["dropped"], row["applied"]) for row in rows] == [(3, 0, True)] * 2
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert all(row["train_loss"] is None if private else math.isfinite(row["train_loss"]) for row in rows)
    if name in CLASSES:  # each of the others has learned something of its held-out data after two rounds
        assert rows[1]["loss"] < math.log(CLASSES[name])


def test_a_schedule_that_cannot_be_is_refused_before_the_first_round(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gamma"):
        run(tmp_path / "run", "train.schedule.name=exponential", "train.schedule.gamma=5.0")
    assert not (tmp_path / "run").exists()
