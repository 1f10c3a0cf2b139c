"""A team of threads changes no bit, survives forks and strangers, and is as large as the machine allows."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edge_runtime as er
from edge_runtime.engine.cores import allowed_cores
from edge_runtime.engine.session import Session
from edge_runtime.errors import ConfigError
from edge_runtime.kernels.native import MAX_THREADS, Team
from simulations import models

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")  # torch.export's own

Array = np.ndarray[Any, Any]
IMAGES = {"lenet": (models.LeNet, (1, 28, 28)), "resnet8": (models.ResNet8, (3, 32, 32))}
IMAGES["mbv2"] = (models.MobileNetV2Small, (3, 32, 32))
TOKENS = {"gru": lambda: models.CharGRU(80, 64, 64), "tfm": lambda: models.CharTransformer(80)}
NAMES = [*IMAGES, *TOKENS]


def batch(name: str, rows: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(rows)
    if name in TOKENS:
        return rng.integers(0, 80, (rows, 64)), rng.integers(0, 80, (rows, 64))
    return rng.standard_normal((rows, *IMAGES[name][1])).astype(np.float32), rng.integers(0, 10, rows)


def built(name: str, rows: int, **settings: Any) -> er.Program:
    torch.manual_seed(0)
    module = TOKENS[name]() if name in TOKENS else IMAGES[name][0]()
    return er.build(module, batch(name, 1)[0], batch_size=rows, optimizer=er.Adam(lr=0.01), **settings)


def trained(program: er.Program, name: str, rows: int, threads: int) -> list[bytes]:
    trainer = er.Trainer(program, threads=threads)
    losses = [trainer.step(*batch(name, rows)) for _ in range(2)]
    return [np.float64(losses).tobytes(), *(one.tobytes() for one in trainer.state_dict().values())]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 3, 32])
def test_any_number_of_threads_gives_the_same_bits(name: str, rows: int) -> None:
    program = built(name, rows)
    alone = trained(program, name, rows, 1)
    for threads in (2, 3, 8):
        assert trained(program, name, rows, threads) == alone


def test_sessions_run_side_by_side_in_one_process() -> None:
    program = built("lenet", 8)
    alone = trained(program, "lenet", 8, 1)
    found: list[list[bytes]] = []
    runs = [threading.Thread(target=lambda: found.append(trained(program, "lenet", 8, 2))) for _ in range(6)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert found == [alone] * 6


def test_a_step_runs_without_the_gil() -> None:
    program = built("mbv2", 32)
    trainer = er.Trainer(program, threads=1)
    x, y = batch("mbv2", 32)
    counted, stop = 0, threading.Event()

    def count() -> None:
        nonlocal counted
        while not stop.is_set():
            counted += 1

    other = threading.Thread(target=count)
    other.start()
    trainer.step(x, y)
    during, _ = counted, stop.set()
    other.join()
    # While a step held the GIL, the other thread would have counted only between its calls.
    assert during > 1000


def test_a_team_left_behind_by_a_fork_is_not_waited_for() -> None:
    program = built("lenet", 32)
    trainer = er.Trainer(program, threads=3)
    x, y = batch("lenet", 32)
    before = trainer.snapshot()
    loss = trainer.step(x, y)
    trainer.restore(before)
    child = os.fork()
    if child == 0:
        same = trainer.step(x, y) == loss
        del trainer
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert trainer.step(x, y) == loss


@pytest.mark.parametrize("threads", [0, -1, MAX_THREADS + 1])
def test_a_number_of_threads_that_cannot_be_is_refused(threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        Team(threads)
    program = built("lenet", 1)
    with pytest.raises(ConfigError, match="threads"):
        er.Trainer(program, threads=threads)


def test_a_trainer_takes_all_cores_that_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("edge_runtime.train.trainer.allowed_cores", lambda: 3)
    monkeypatch.setattr(
        "edge_runtime.train.trainer.Session",
        lambda program, threads: asked.append(threads) or Session(program, threads=threads),
    )
    er.Trainer(built("lenet", 1))
    assert asked == [3]


# What /proc and /sys say, and how many of 8 cores that leaves.
V2 = {"proc/self/cgroup": "0::/a.slice/b.service\n"}
V1 = {"proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/job\n"}
TREES: dict[str, tuple[dict[str, str], int]] = {
    "no groups": ({}, 8),
    "no limit": ({**V2, "sys/fs/cgroup/a.slice/b.service/cpu.max": "max 100000\n"}, 8),
    "two and a half": ({**V2, "sys/fs/cgroup/a.slice/b.service/cpu.max": "250000 100000\n"}, 2),
    "less than one": ({**V2, "sys/fs/cgroup/a.slice/b.service/cpu.max": "50000 100000\n"}, 1),
    "a parent's": ({**V2, "sys/fs/cgroup/a.slice/cpu.max": "300000 100000\n"}, 3),
    "a container's": ({**V2, "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
    "version 1": (
        {**V1, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "200000", "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "50000"},
        4,
    ),
    "version 1, no limit": (
        {**V1, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000"},
        8,
    ),
    "unreadable": ({**V2, "sys/fs/cgroup/a.slice/b.service/cpu.max": "what 0 is this\n"}, 8),
    "outside": ({"proc/self/cgroup": "0::/../../etc\nrubbish\n"}, 8),
}


@pytest.mark.parametrize(("tree", "cores"), TREES.values(), ids=TREES.keys())
def test_quotas_of_control_groups_count(
    tree: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name, text in tree.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="ascii")
    assert allowed_cores(tmp_path) == cores


def test_affinity_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert allowed_cores(tmp_path) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(500)))
    assert allowed_cores(tmp_path) == MAX_THREADS
