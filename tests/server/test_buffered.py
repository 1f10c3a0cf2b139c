"""Rounds that take in late answers: each update once, discounted by its age, and never two of one node in a round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_grid import CODEC, LAYOUT, Script, ScriptedGrid, TimedScriptedGrid, asked, update

from edge_runtime.config import from_flat
from server.aggregate import WeightedSum
from server.buffer_config import BufferConfig
from server.buffered import BufferedGather
from server.checkpoint import pack, unpack
from server.config import ServerConfig
from server.ftrl import Ftrl
from server.link import Link
from server.rounds import RoundResult

DEADLINE_S = 100.0


class Fleet:
    """A server that plays rounds one after another with scripted nodes, whose updates are all ones."""

    def __init__(
        self,
        nodes: int,
        script: Script,
        *,
        goal: int,
        concurrency: int = 0,
        period_s: float = DEADLINE_S,
        timed: bool = True,
        min_updates: int = 1,
        **rules: Any,
    ) -> None:
        kind = TimedScriptedGrid if timed else ScriptedGrid
        self.grid = kind(range(nodes), script, lambda node, number: update(1.0, number, examples=1 + node))
        self.goal, self.number = goal, 0
        self.choose: Callable[[Sequence[int], int], Sequence[int]] = lambda nodes, count: nodes[:count]
        self.gather = BufferedGather(
            Link(self.grid, self.grid.clock, self.grid.pause),
            CODEC,
            LAYOUT,
            lambda: WeightedSum(LAYOUT.size),
            BufferConfig(**rules),
            min_updates=min_updates,
            deadline_s=DEADLINE_S,
            period_s=period_s,
            concurrency=concurrency,
        )

    def idle(self, count: int) -> Sequence[int]:
        return self.choose([node for node in self.grid.nodes if node not in self.gather.busy], count)

    def play(self) -> RoundResult:
        self.number += 1
        wants = self.goal if self.gather.wants is None else self.gather.wants
        return self.gather.gather(asked(self.number, self.idle(wants), self.goal, self.idle))


@pytest.mark.parametrize("timed", [True, False])
def test_a_buffer_is_full_when_enough_have_come_and_the_slow_go_on(timed: bool) -> None:
    fleet = Fleet(8, lambda node, _: 35.0 if node == 0 else 10.0, goal=2, concurrency=3, timed=timed)
    first = fleet.play()
    assert first.clients == ("1", "2")
    assert first.staleness == 0
    assert 0 in fleet.gather.busy
    results = [fleet.play() for _ in range(5)]
    late = next(result for result in results if "0" in result.clients)
    assert late.staleness
    assert late.delta is not None
    assert 0 < late.delta[0] < 1  # all updates are ones: what is stale counts for less
    assert sum("0" in result.clients for result in results) == 1


def test_a_stale_update_is_multiplied_and_not_made_up_for() -> None:
    fleet = Fleet(4, lambda node, _: 25.0 if node == 3 else 10.0, goal=1, concurrency=2, exponent=1.0)
    results = [fleet.play() for _ in range(12)]
    for result in results:
        assert result.delta is not None
        assert result.staleness is not None
        np.testing.assert_allclose(result.delta, 1 / (1 + result.staleness), rtol=1e-6)  # one update a round
    assert {result.staleness for result in results} >= {0.0, 1.0}


def test_what_is_too_stale_is_given_up_with_its_reason_and_its_node_is_asked_anew() -> None:
    slow = {(0, 1): 90.0}
    fleet = Fleet(4, lambda node, number: slow.get((node, number), 5.0), goal=1, concurrency=2, max_staleness=2)
    results = [fleet.play() for _ in range(6)]
    failures = [failure for result in results for failure in result.failures]
    assert [(failure.client, failure.reason) for failure in failures] == [
        ("0", "made for round 1, and buffer.max_staleness = 2")
    ]
    assert [number for node, number in fleet.grid.asked if node == 0] != [1]
    assert all("0" not in result.clients for result in results[:4])


def test_a_node_that_stays_silent_is_given_up_at_its_deadline() -> None:
    fleet = Fleet(3, lambda node, _: None if node == 0 else 40.0, goal=1, concurrency=3)
    reasons = {failure.reason: failure.client for _ in range(6) for failure in fleet.play().failures}
    assert reasons == {"no reply within 100 s": "0"}


@pytest.mark.parametrize(("least", "lasts_s"), [(2, 1.0), (3, DEADLINE_S)])
def test_a_pool_that_runs_dry_ends_the_round(least: int, lasts_s: float) -> None:
    """With the last answer that can come; at its deadline, if those are too few."""
    fleet = Fleet(2, lambda node, _: 1.0, goal=5, concurrency=5, min_updates=least)
    result = fleet.play()
    assert result.clients == ("0", "1")  # each once
    assert lasts_s <= fleet.grid.now < lasts_s + 1


def test_a_semi_synchronous_round_ends_with_its_period_or_its_goal() -> None:
    fleet = Fleet(12, lambda node, number: 3.0 if node % 2 else 14.0, goal=4, period_s=10.0)
    first, second = fleet.play(), fleet.play()
    assert sorted(first.clients) == ["1", "3"]
    assert fleet.grid.now <= 20.0
    assert "0" in second.clients  # late, and in the round in which it came
    assert len(second.clients) == 4
    assert second.staleness
    assert first.failures == second.failures == ()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.lists(st.sampled_from([1.0, 4.0, 30.0, None]), min_size=11, max_size=11))
def test_rounds_of_one_client_stay_as_far_apart_as_dp_ftrl_books(separation: int, times: list[float | None]) -> None:
    """The noise rests on it, and an update counts in the round in which it comes."""
    settings = {"privacy.mechanism": "ftrl", "privacy.noise_multiplier": 1.0, "privacy.clip": 1.0}
    config = from_flat(
        ServerConfig,
        settings | {"privacy.separation": separation, "server.rounds": 12, "server.cohort": 2, "server.mode": "async"},
    )
    privacy = Ftrl(config, LAYOUT.size)
    fleet = Fleet(9, lambda node, number: times[(3 * node + number) % 11], goal=2, concurrency=4)
    fleet.choose = lambda nodes, count: privacy.further(nodes, count, fleet.number)
    taken: dict[str, int] = {}
    for number in range(1, 13):
        result = fleet.play()
        privacy.settle(number, result)
        for client in result.clients:
            assert number - taken.get(client, -separation) >= separation
            taken[client] = number


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_update_counts_twice_and_no_node_twice_in_a_round(data: st.DataObject) -> None:
    nodes, goal = data.draw(st.integers(3, 8)), data.draw(st.integers(1, 4))
    concurrency = data.draw(st.sampled_from([0, 2, 5]))
    times = data.draw(st.lists(st.sampled_from([1.0, 3.0, 17.0, 60.0, None]), min_size=16, max_size=16))
    most = data.draw(st.integers(0, 3))

    def script(node: int, number: int) -> float | None:
        return times[(5 * node + number) % len(times)]

    fleet = Fleet(nodes, script, goal=goal, concurrency=concurrency, period_s=20.0, max_staleness=most)
    taken: Counter[str] = Counter()
    for _ in range(8):
        result = fleet.play()
        ended = [*result.clients, *(failure.client for failure in result.failures)]
        assert len(ended) == len(set(ended))
        assert len(result.clients) <= goal
        assert result.staleness is None or result.staleness <= most
        taken.update(ended)
    assert len(fleet.grid.asked) == len(set(fleet.grid.asked))  # nobody twice for one version of the model
    asked_of = Counter(str(node) for node, _ in fleet.grid.asked)
    for client, ends in taken.items():
        assert ends <= asked_of[client]


@pytest.mark.parametrize("concurrency", [0, 6])
def test_a_restored_buffer_goes_on_as_the_first_would_have(concurrency: int) -> None:
    def script(node: int, number: int) -> float:
        return float(1 + (7 * node + 3 * number) % 23)

    options = {"goal": 3, "concurrency": concurrency, "period_s": 8.0}
    whole = Fleet(10, script, **options)
    for _ in range(4):
        whole.play()
    resumed = Fleet(10, script, **options)
    resumed.number, resumed.grid.now = whole.number, whole.grid.now
    resumed.gather.restore(unpack(pack(whole.gather.state())))
    assert set(resumed.gather.busy) == set(whole.gather.busy)
    for _ in range(5):
        ours, theirs = resumed.play(), whole.play()
        assert (ours.clients, ours.failures, ours.staleness) == (theirs.clients, theirs.failures, theirs.staleness)
        np.testing.assert_array_equal(ours.delta, theirs.delta)
        assert resumed.grid.now == whole.grid.now


def test_on_a_real_link_a_restored_buffer_waits_for_what_was_asked_for() -> None:
    fleet = Fleet(4, lambda node, _: 30.0 if node == 0 else 5.0, goal=2, concurrency=3, timed=False)
    fleet.play()
    other = Fleet(4, lambda node, _: 5.0, goal=2, concurrency=3, timed=False)
    other.gather.restore(unpack(pack(fleet.gather.state())))
    assert 0 in other.gather.busy
    other.gather.forget_nodes()
    assert not other.gather.busy


@pytest.mark.parametrize("now", [0.0, 1e6])
def test_whoever_was_at_work_has_as_long_as_it_had_left_by_whichever_clock(now: float) -> None:
    """A machine that was started anew counts its seconds from 0."""
    fleet = Fleet(2, lambda node, _: None if node == 0 else 30.0, goal=1, concurrency=2, timed=False)
    fleet.grid.now = 5000.0
    fleet.play()
    other = Fleet(2, lambda node, _: None, goal=1, concurrency=2, timed=False)
    other.grid.now, other.number = now, fleet.number
    other.gather.restore(unpack(pack(fleet.gather.state())))
    result = other.play()
    assert ("0", "no reply within 100 s") in [(failure.client, failure.reason) for failure in result.failures]
    assert other.grid.now - now <= DEADLINE_S + 1
