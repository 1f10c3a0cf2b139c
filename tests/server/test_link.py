"""Words that come from a peer are one bounded, printable line before anything of ours shows or keeps them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.link import MAX_REASON, peer_text


@given(st.text(max_size=3000))
def test_any_text_becomes_one_short_printable_line(text):
    line = peer_text(text)
    assert len(line) <= MAX_REASON
    assert line.isprintable()


def test_ordinary_words_stay_as_they_are():
    assert peer_text("ValueError: x is 3, not 4") == "ValueError: x is 3, not 4"
    assert peer_text("a\nb\x1b[31mred") == "a b [31mred"
