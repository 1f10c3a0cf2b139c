"""The page's modules by themselves, in the browser that runs them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

MESSAGES = [
    {"kind": "round", "id": "7", "data": '{"round": 1}'},
    {"kind": "message", "id": "7", "data": "two\nlines"},
    {"kind": "event", "id": "9", "data": "ümlaut: colon"},
]
STREAM = (
    "retry: 2000\n\n: a comment\n\nid: 7\nevent: round\ndata: {\"round\": 1}\n\n"
    "data: two\ndata:lines\n\nevent: nothing told\n\nid: 9\nevent: event\ndata: ümlaut: colon\n\n: on\n\ndata: cut off"
)  # fmt: skip

FIGURES = {
    "count(1234567)": "1,234,567", "count(null)": "\u2013", "percent(0.9753)": "97.5 %", "figure(1e-5)": "1e-5",
    "figure(0)": "0", "figure(0.15508)": "0.1551", "figure(NaN)": "\u2013", "bytes(999)": "999 B",
    "bytes(1000)": "1.00 kB", "bytes(74055600)": "74.1 MB", "memory(268435456)": "256 MiB", "duration(0)": "0 s",
    "duration(0.00002)": "20 µs", "duration(0.093)": "93 ms", "duration(5.46)": "5.5 s", "duration(59.9)": "1 min 0 s",
    "duration(3599.9)": "1 h 0 min", "duration(86399)": "1 d 0 h", "duration(90000)": "1 d 1 h",
    "ago(100, 103)": "just now", "ago(100, 90)": "just now", "ago(0, 7200)": "2 h ago",
    "trimmed('80.0 %')": "80 %", "trimmed('7.50 MB')": "7.5 MB", "trimmed('100')": "100",
    "plural(1, 'run')": "1 run", "plural(0, 'run')": "0 runs", "plain('')": "\u2013", "plain(false)": "false",
}  # fmt: skip


@pytest.fixture
def page(base: str, open_page: Any) -> Page:
    page: Page = open_page(base).go("")
    return page


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_stream_means_the_same_however_it_is_cut(page: Page, end: str) -> None:
    text, random_ = STREAM.replace("\n", end), random.Random(3)
    cuts = [sorted(random_.choices(range(len(text)), k=n)) for n in (0, 1, 2, 5, 20, 200)] + [list(range(len(text)))]
    for cut in cuts:
        pieces = [text[start:stop] for start, stop in zip([0, *cut], [*cut, len(text)], strict=True)]
        heard = page.evaluate(
            """async (pieces) => {
              const { parser } = await import("/static/stream.js");
              const heard = [];
              const take = parser((message) => heard.push(message));
              pieces.forEach(take);
              return heard;
            }""",
            pieces,
        )
        assert heard == MESSAGES, cut


def test_figures_are_written_as_people_read_them(page: Page) -> None:
    names = sorted({call.partition("(")[0] for call in FIGURES})
    calls = ", ".join(FIGURES)
    told = page.evaluate(f"import('/static/format.js').then(({{ {', '.join(names)} }}) => [{calls}])")
    assert dict(zip(FIGURES, told, strict=True)) == FIGURES
