"""Synchronous rounds with spares: who is in, who is late, who has failed, and what nobody waits for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Error
from scripted_grid import CODEC, LAYOUT, Script, ScriptedGrid, TimedScriptedGrid, asked, declined, update

from server.aggregate import WeightedSum
from server.gather import PlainGather
from server.link import Link
from server.rounds import RoundResult

DEADLINE_S = 10.0
GRIDS = pytest.mark.parametrize("grid_type", [ScriptedGrid, TimedScriptedGrid])


def play(
    grid_type: type[ScriptedGrid], script: Script, goal: int, answer: Any = update, nodes: int = 5
) -> tuple[RoundResult, ScriptedGrid, list[tuple[str, str]]]:
    grid = grid_type(range(nodes), script, lambda node, number: answer(float(node), number))
    link = Link(grid, grid.clock, grid.pause)
    gather = PlainGather(link, CODEC, LAYOUT, lambda: WeightedSum(LAYOUT.size), min_updates=1, deadline_s=DEADLINE_S)
    events: list[tuple[str, str]] = []
    return gather.gather(asked(3, range(nodes), goal, events=events)), grid, events


@GRIDS
def test_a_round_ends_with_the_last_update_that_it_wants(grid_type: type[ScriptedGrid]) -> None:
    result, grid, events = play(grid_type, lambda node, _: 5.0 - node, goal=3)
    assert sorted(result.clients) == ["2", "3", "4"]  # the fastest
    assert result.late == ("0", "1")
    assert result.failures == ()
    np.testing.assert_allclose(result.delta, 3.0)
    assert 3.0 <= grid.now < 4.0
    assert result.downlink_bytes == 5 * len(b"model")  # all were sent it
    assert {client for kind, client in events if kind == "client_late"} == {"0", "1"}
    assert {client for kind, client in events if kind == "update_received"} == {"2", "3", "4"}


@GRIDS
def test_whoever_fails_or_declines_is_no_part_of_the_goal(grid_type: type[ScriptedGrid]) -> None:
    def answer(value: float, number: int) -> Any:
        return {0.0: Error(1, "it broke"), 1.0: declined("on battery")}.get(value) or update(value, number)

    result, _, events = play(grid_type, lambda node, _: 1.0 + node, goal=2, answer=answer)
    assert result.clients == ("2", "3")
    assert result.late == ("4",)
    assert [(failure.client, failure.reason) for failure in result.failures] == [("0", "it broke")]
    assert [(failure.client, failure.reason) for failure in result.declined] == [("1", "on battery")]
    assert ("client_declined", "1") in events
    assert ("client_dropped", "0") in events


@GRIDS
def test_at_the_deadline_the_silent_have_failed(grid_type: type[ScriptedGrid]) -> None:
    result, grid, _ = play(grid_type, lambda node, _: None if node == 4 else 1.0, goal=5)
    assert result.clients == ("0", "1", "2", "3")
    assert [(failure.client, failure.reason) for failure in result.failures] == [("4", "no reply within 10 s")]
    assert result.late == ()
    assert DEADLINE_S <= grid.now < DEADLINE_S + 1


def test_a_grid_that_can_drop_messages_holds_none_after_the_round() -> None:
    _, grid, _ = play(TimedScriptedGrid, lambda node, _: None if node > 2 else 1.0, goal=2)
    assert grid.out == {}


def test_answers_to_other_questions_are_not_taken_for_answers_to_this() -> None:
    grid = ScriptedGrid(range(12), lambda node, number: 1.0, lambda node, number: update(float(node), number))
    link = Link(grid, grid.clock, grid.pause)
    first = link.send(asked(1, range(9), 9).question.contents(dict(asked(1, range(9), 9).parcels)), 1, 10.0)
    answer = link.next_answer(first, 10.0)
    assert answer is not None  # and more were pulled with it
    second = link.send(asked(2, [9, 10, 11], 3).question.contents(dict(asked(2, [9, 10, 11], 3).parcels)), 2, 10.0)
    nodes = []
    while (answer := link.next_answer(second, 10.0)) is not None:
        nodes.append(answer.node)
    assert sorted(nodes) == [9, 10, 11]
    while (answer := link.next_answer(first, 10.0)) is not None:
        nodes.append(answer.node)
    assert sorted(nodes) == sorted([*range(1, 9), 9, 10, 11])
