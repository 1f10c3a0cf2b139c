"""Virtual devices: how long they take follows from the settings, and who is online from the hour of the day."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError
from simulations.traces import Errand, FleetConfig, Traces

CLIENTS = 400


def traces(seed: int = 1, clients: int = CLIENTS, examples: int = 10, **fleet: object) -> Traces:
    return Traces(FleetConfig(**fleet), seed, clients, lambda node: examples)  # type: ignore[arg-type]


def work_s(of: Traces, number: int = 1) -> np.ndarray:
    return np.array([of.work_s(Errand(node, number, 2.0, 0)) for node in range(CLIENTS)])


def test_by_default_nothing_takes_any_time_and_nobody_is_away() -> None:
    still = traces()
    assert not still.moves
    assert set(work_s(still)) == {0.0}
    assert still.upload_s(Errand(3, 1, 1.0, 10**9), 10**9) == 0.0
    assert still.online(1e6) == list(range(CLIENTS))
    assert still.leaves_s(3, 0.0) == math.inf
    assert still.memory(3) == ""


def test_time_is_examples_times_passes_bytes_over_the_network_and_latency() -> None:
    of = traces(seconds_per_example=0.5, latency_s=2.0, downlink_kbps=100.0, uplink_kbps=50.0)
    errand = Errand(0, 1, 3.0, 1000)
    assert of.work_s(errand) == pytest.approx(2 + 8 * 1000 / 100_000 + 10 * 3 * 0.5)
    assert of.upload_s(errand, 2000) == pytest.approx(8 * 2000 / 50_000)


def test_speeds_have_the_deviation_that_was_asked_for_and_stay_with_their_devices() -> None:
    of = traces(speed="lognormal", speed_sigma=1.2, seconds_per_example=1.0)
    logs = np.log(work_s(of))
    assert logs.std() == pytest.approx(1.2, abs=5 * 1.2 / math.sqrt(2 * CLIENTS))
    assert logs.mean() == pytest.approx(math.log(20), abs=5 * 1.2 / math.sqrt(CLIENTS))
    np.testing.assert_array_equal(work_s(of, 1), work_s(of, 2))
    jittery = traces(seconds_per_example=1.0, jitter=0.5)
    ratio = np.log(work_s(jittery, 1) / work_s(jittery, 2))
    assert ratio.std() == pytest.approx(0.5 * math.sqrt(2), rel=0.2)
    np.testing.assert_array_equal(work_s(jittery), work_s(traces(seconds_per_example=1.0, jitter=0.5)))


def test_four_times_as_many_are_online_at_the_best_hour_as_at_the_worst() -> None:
    counts = {0.0: [], 0.5: []}
    of = traces(clients=5000, online=0.5, swing=4.0, day_s=100.0)
    for day in range(10):
        for hour, found in counts.items():
            found.append(len(of.online(100.0 * (day + hour))))
    assert np.mean(counts[0.0]) / np.mean(counts[0.5]) == pytest.approx(4.0, rel=0.05)
    assert np.mean([*counts[0.0], *counts[0.5]]) / 5000 == pytest.approx(0.5, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1000), st.floats(0.1, 0.6), st.floats(1, 5), st.integers(0, 99))
def test_a_device_stays_until_it_is_said_to_leave(now_s: float, online: float, swing: float, seed: int) -> None:
    swing = min(swing, 0.999 * online / max(1e-9, 2 * online - 1)) if online > 0.5 else swing
    of = traces(seed, 20, online=online, swing=max(1.0, swing), day_s=100.0)
    for node in of.online(now_s)[:5]:
        leaves = of.leaves_s(node, now_s)
        assert leaves >= now_s
        for moment in np.linspace(now_s, min(leaves - 1e-3, now_s + 500), 40):
            if now_s <= moment < leaves - 1e-4:
                assert node in of.online(moment)
        if leaves < now_s + 500:
            assert node not in of.online(leaves + 1e-3)


def test_more_than_all_cannot_be_online() -> None:
    with pytest.raises(ConfigError, match=r"fleet\.online = 0\.8: must be <= 0\.625 with fleet\.swing = 4"):
        FleetConfig(online=0.8, swing=4.0)


def test_memory_is_drawn_from_the_list_for_good() -> None:
    of = traces(memory=("64 KiB", "8 MiB"))
    drawn = [of.memory(node) for node in range(CLIENTS)]
    assert drawn == [of.memory(node) for node in range(CLIENTS)]
    assert 0.35 < drawn.count("8 MiB") / CLIENTS < 0.65
    with pytest.raises(ConfigError, match=r"fleet\.memory"):
        FleetConfig(memory=("lots",))
