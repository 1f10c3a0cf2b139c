"""The simulation of load against what queueing theory says of the same queue."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("bench_scale_model")


@pytest.mark.parametrize("busy", [0.3, 0.6])
def test_requests_wait_as_in_a_queue_with_even_service(model: ModuleType, busy: float) -> None:
    """Many devices at random phases are close to Poisson arrivals: mean wait = busy * service / (2 (1 - busy)).

    Pollaczek and Khinchine, for M/D/1; each device's own regularity makes it a little less.
    """
    pull_s, devices = 0.01, 20_000
    load = model.Load(devices, 1, poll_s=devices * pull_s / busy, heartbeat_s=1e9)
    queue = model._SuperLink(devices, 0, load, model.Service(pull_s), load.poll_s / 2, np.random.default_rng(1))
    queue.run()
    assert queue.busy_s / queue.end_s == pytest.approx(busy, rel=0.05)
    assert np.mean(queue.waits) == pytest.approx(busy * pull_s / (2 * (1 - busy)), rel=0.25)


def test_every_asked_device_answers_once_and_not_before_it_has_trained(model: ModuleType) -> None:
    load = model.Load(500, 50, poll_s=10.0, train_s=5.0, spread=0.0)
    link = model._SuperLink(500, 50, load, model.Service(), 30.0, np.random.default_rng(0))
    link.run()
    assert len(link.replies) == 50
    assert min(link.replies) > 30.0 + 5.0


def test_a_round_is_no_shorter_than_its_parts(model: ModuleType) -> None:
    slow = model.Load(100, 100, poll_s=1.0, train_s=1.0, line_bytes_s=1e6)
    assert model.simulate(slow, model.Service(), 1).round_s >= 100 * (slow.down_bytes + slow.up_bytes) / 1e6
    assert model.simulate(slow, model.Service(take_s=9.0), 1).round_s >= 900


def test_superlinks_are_planned_for_polls_and_heartbeats(model: ModuleType) -> None:
    service = model.Service(pull_s=0.01, heartbeat_s=0.0)
    assert model.needed(model.Load(7_000, poll_s=10.0), service) == 10
    assert model.needed(model.Load(7_001, poll_s=10.0), service) == 11
