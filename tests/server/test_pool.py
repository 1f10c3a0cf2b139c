"""A pool of devices that runs dry pauses the run and then ends it; no wait is without end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import hypothesis
import pytest
from flwr.app import ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.device.report import DeviceReport
from edge_runtime.errors import RunError
from server.config import StrategyConfig
from server.events import Event, RunContinued, RunPaused
from server.fleet import Fleet
from server.link import Answer, Link
from server.pool import LAST_TRY_S, LEAST_S, SLICE_S, Pool
from server.rounds import Failure, RoundResult


class World:
    """Devices that are online at some times, and a clock that waits move; a Flower Grid as far as a pool needs one."""

    def __init__(self, online: Callable[[float], list[int]], *, moves: bool = True, **settings: Any) -> None:
        self.now_s, self.moves, self.slept = 0.0, moves, 0.0
        self.online = online
        self.log: list[tuple[str, Mapping[str, Any], int]] = []
        self.told: list[Event] = []
        self.order: Callable[[], str | None] = lambda: None
        settings = {"min_updates": 3, "cohort": 3, "deadline_s": 20.0, "patience_s": 600.0} | settings
        self.link = Link(self, lambda: self.now_s, self.pause)  # type: ignore[arg-type]
        self.fleet = Fleet(self.link.clock)
        self.pool = Pool(
            self.link,
            self.fleet,
            StrategyConfig(**settings),
            lambda kind, data, number: self.log.append((kind, data, number)),
            self.told.append,
            lambda: self.order(),
        )

    def get_node_ids(self) -> list[int]:
        return self.online(self.now_s)

    def pause(self, seconds: float) -> None:
        assert 0 < seconds <= SLICE_S
        assert self.now_s + seconds > self.now_s
        self.slept += seconds
        self.now_s += seconds if self.moves else 0.0

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.log]

    def round(self, good: int, reason: str = "TimeoutError: away") -> None:
        failures = () if good else (Failure("9", reason),)
        self.pool.settle(RoundResult(1, None, tuple(map(str, range(good))), failures, None, 0, None))


def test_with_enough_devices_nobody_waits() -> None:
    world = World(lambda now: [1, 2, 3])
    assert world.pool.enough(1) == [1, 2, 3]
    assert (world.slept, world.log, world.told) == (0.0, [], [])


def test_a_run_pauses_while_devices_are_away_and_goes_on_when_they_are_back() -> None:
    world = World(lambda now: [1, 2, 3, 4] if now >= 300 else [1])
    assert world.pool.enough(7) == [1, 2, 3, 4]
    assert 300 <= world.now_s <= 300 + LAST_TRY_S
    assert world.kinds() == ["run_paused", "run_continued"]
    _, data, number = world.log[0]
    assert number == 7
    assert data["reason"] == "1 devices can be asked, 3 are needed (server.min_updates): 1 online"
    assert isinstance(world.told[0], RunPaused)
    assert isinstance(world.told[1], RunContinued)


@pytest.mark.parametrize("moves", [True, False])
def test_at_the_end_of_its_patience_a_run_ends_and_says_why(moves: bool) -> None:
    """Also where the clock stands still; a wait for devices to come online takes at most the round's deadline."""
    world = World(lambda now: [] if moves else [1, 2], moves=moves, patience_s=100.0)
    with pytest.raises(
        RunError, match=r"round 4: for 100 s \(server\.patience_s\) \d devices can be asked, 3"
    ) as caught:
        world.pool.enough(4)
    assert world.slept <= 100 + 20 + 1e-9
    assert "run.resume = true" in str(caught.value)
    assert world.kinds() == ["run_paused"]


def test_who_has_declined_is_waited_for_until_the_time_it_named_and_no_longer() -> None:
    world = World(lambda now: [1, 2, 3])
    for node in (1, 2, 3):
        said = DeviceReport(eligible=False, why_not="too hot: 90 C, at most 70", retry_s=100.0)
        world.fleet.hear(Answer(node, RecordDict({"device": ConfigRecord({**said.record()})})))
    assert world.pool.enough(2) == [1, 2, 3]
    assert world.now_s == pytest.approx(100.0)
    assert world.log[0][1]["reason"].endswith("3 online, of which 3 too hot")


def test_devices_that_can_never_be_asked_are_not_waited_for_longer_than_patience_lasts() -> None:
    world = World(lambda now: [1, 2, 3], patience_s=200.0)
    for node in (1, 2):
        world.fleet.hear(Answer(node, RecordDict({"device": ConfigRecord({"memory_budget": 1000})})))
    with pytest.raises(RunError, match=r"3 online, of which 2 memory budget too small"):
        world.pool.enough(1, needs=2000)
    assert world.slept == pytest.approx(200.0)


def test_rounds_in_a_row_that_bring_nothing_are_played_ever_more_slowly_and_then_no_more() -> None:
    """Every device is there, is asked, and drops out at once."""
    world = World(lambda now: [1, 2, 3], patience_s=600.0)
    starts: list[float] = []

    def play() -> None:
        for number in range(1, 1000):
            world.pool.enough(number)
            starts.append(world.now_s)
            world.round(good=0)

    with pytest.raises(RunError, match=r"the last rounds brought too few updates; most often: TimeoutError: away"):
        play()
    waits = [after - before for before, after in itertools.pairwise(starts)]
    assert waits[0] == 0.0  # one bad round is no pause
    assert waits[1:4] == [10.0, 20.0, 40.0]
    assert all(wait <= LAST_TRY_S for wait in waits)
    assert world.now_s <= 600.0 + LAST_TRY_S


@hypothesis.settings(deadline=None)
@given(st.floats(0, 1e6), st.floats(100, 1e4), st.floats(1, 50))
def test_every_wait_moves_the_clock_and_patience_ends_by_any_clock(
    began_s: float, patience_s: float, round_s: float
) -> None:
    world = World(lambda now: [1], patience_s=patience_s)
    world.now_s = began_s
    world.round(good=0)
    world.now_s += round_s
    with pytest.raises(RunError, match="patience_s"):
        world.pool.enough(1)
    assert world.slept <= patience_s + 20 + LEAST_S


def test_a_good_round_gives_patience_back() -> None:
    world = World(lambda now: [1, 2, 3], patience_s=100.0)
    for number in range(1, 200):
        world.pool.enough(number)
        world.round(good=3 if number % 4 == 0 else 0)
    assert math.isclose(world.slept, 199 // 4 * (10 + 20) + 10 + 20, abs_tol=31)


@pytest.mark.parametrize("online", [[1], [1, 2, 3]])
def test_an_order_to_stop_is_heard_in_the_middle_of_a_wait(online: list[int]) -> None:
    world = World(lambda now: online)
    world.order = lambda: "stopped by ada" if world.now_s >= 50 else None
    for _ in range(2):
        world.round(good=0)  # whoever is there fails
    world.pool.enough(1)
    while world.now_s < 50:
        world.round(good=0)
        world.pool.enough(1)
    assert world.now_s <= 50 + SLICE_S
    assert world.kinds()[-1] == "run_paused"  # it does not go on


def test_at_first_a_whole_cohort_is_waited_for_and_later_what_a_round_needs() -> None:
    world = World(lambda now: [1, 2, 3, 4, 5] if now >= 12 else [1, 2, 3], cohort=5)
    assert world.pool.enough(1) == [1, 2, 3, 4, 5]
    assert 12 <= world.now_s < 13
    few = World(lambda now: [1, 2, 3], cohort=5)
    assert few.pool.enough(1) == [1, 2, 3]
    assert few.now_s == pytest.approx(20.0)  # the deadline
    assert few.pool.enough(2) == [1, 2, 3]
    assert few.now_s == pytest.approx(20.0)
    assert few.kinds() == []


def test_in_real_time_too_a_run_ends_with_its_patience() -> None:
    """By the link's own clock and sleep."""
    world = World(lambda now: [1], patience_s=0.8, deadline_s=0.3)
    world.link = Link(world)  # type: ignore[arg-type]
    pool = Pool(
        world.link,
        Fleet(),
        StrategyConfig(min_updates=3, cohort=5, deadline_s=0.3, patience_s=0.8),
        lambda kind, data, number: world.log.append((kind, data, number)),
        world.told.append,
        lambda: None,
    )
    with pytest.raises(RunError, match=r"for 0\.8 s \(server\.patience_s\) 1 devices can be asked"):
        pool.enough(1)
    assert world.kinds() == ["run_paused"]
