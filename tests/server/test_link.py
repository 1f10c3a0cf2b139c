"""Words that come from a peer are one bounded, printable line before anything of ours shows or keeps them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.updates.versions import Parcel
from server.link import MAX_REASON, PULL_AT_ONCE, PULL_BYTES, Link, Question, peer_text
from simulations.grid import SERVER_NODE_ID, assume_identity


class Asking:
    """A grid that has no answers, and remembers for how many it was asked."""

    def __init__(self) -> None:
        self.asked: set[int] = set()

    def push_messages(self, messages):
        return [str(place) for place, _ in enumerate(messages)]

    def pull_messages(self, ids):
        self.asked.add(len(list(ids)))
        return []


@pytest.mark.parametrize(
    ("model_bytes", "at_once"),
    [(1000, PULL_AT_ONCE), (PULL_BYTES // 3, 3), (PULL_BYTES // 2 + 1, 1), (PULL_BYTES + 9, 1)],
)
def test_fewer_replies_are_pulled_at_once_where_they_are_large(model_bytes, at_once):
    assume_identity(SERVER_NODE_ID)
    now = [0.0]

    def pause(seconds: float) -> None:
        now[0] += seconds

    grid = Asking()
    link, question = Link(grid, lambda: now[0], pause), Question({"round": 1})
    contents = question.contents(dict.fromkeys(range(2 * PULL_AT_ONCE * 3), Parcel(bytes(model_bytes))))
    assert list(link.ask(contents, 1, 1.0)) == []
    assert grid.asked == {at_once}


@given(st.text(max_size=3000))
def test_any_text_becomes_one_short_printable_line(text):
    line = peer_text(text)
    assert len(line) <= MAX_REASON
    assert line.isprintable()


def test_ordinary_words_stay_as_they_are():
    assert peer_text("ValueError: x is 3, not 4") == "ValueError: x is 3, not 4"
    assert peer_text("a\nb\x1b[31mred") == "a b [31mred"
