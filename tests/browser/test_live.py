"""The page follows a run as it goes on, says when it cannot, and catches up."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from recorded import Recorded

from edge_runtime.cli import FLOWER_ENV

pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(240)]

ROUNDS = 120
TINY = {
    "data.name": "digits", "data.clients": 8, "data.partition": "iid", "model.name": "digits_cnn", "train.epochs": 4,
    "server.cohort": 6, "server.min_updates": 2, "server.rounds": ROUNDS, "deploy.formats": "", "faults.dropout": 0.2,
}  # fmt: skip


@pytest.fixture
def simulation(tmp_path: Path, watched: Any, hedgerow: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`hedgerow simulate`, in a process of its own; its run joins those that the dashboard shows."""
    settings = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    command = [hedgerow, "simulate", "--out", watched.runs / "alive", *settings]
    environment = {**os.environ, **FLOWER_ENV, "FLWR_HOME": str(tmp_path / "flwr")}
    with (tmp_path / "simulate.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    yield process
    process.kill()
    process.wait()


def test_a_real_run_is_seen_from_its_first_round_to_its_last(
    tmp_path: Path, simulation: subprocess.Popen[bytes], base: str, open_page: Any
) -> None:
    page = open_page(base).go("")
    link = page.get_by_role("link", name="alive")
    while not link.count():
        assert simulation.poll() in (None, 0), (tmp_path / "simulate.log").read_text()
        page.wait_for_timeout(200)
    link.click()
    reached = page.locator(".run-head dd").first
    expect(page.locator("#link")).to_have_text("Live")
    loaded = page.evaluate("performance.timeOrigin")
    seen = set()
    while "Finished" not in page.get_by_role("heading", level=1).inner_text():
        seen.add(reached.inner_text())
        assert simulation.poll() in (None, 0), (tmp_path / "simulate.log").read_text()
        page.wait_for_timeout(100)
    expect(reached).to_contain_text(f"{ROUNDS} / {ROUNDS}")
    expect(page.get_by_role("img", name=re.compile(f"^Accuracy, {ROUNDS} points"))).to_be_attached()
    assert len(seen) > 3, "the rounds went by unseen"
    assert page.evaluate("performance.timeOrigin") == loaded, "the page was loaded again"
    # The stream left no gap: the log that was followed is the log as it is.
    page.get_by_role("link", name="Events").click()
    expect(page.locator(".log li").first).to_contain_text("Run finished")


def test_an_outage_is_told_and_what_was_missed_is_caught_up(tmp_path: Path, serve: Any, open_page: Any) -> None:
    opened = None
    with Recorded(tmp_path / "runs" / "one") as run:
        run.close_round()
        dashboard = serve(tmp_path / "runs")
        opened = open_page(dashboard.base)
        opened.watch.allowed += ["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET"]
        page = opened.go("#/runs/one/events")
        reached = page.locator(".run-head dd").first
        lines = page.locator(".log li", has_text="Round closed")
        expect(reached).to_contain_text("1 / 20")
        run.close_round()
        expect(reached).to_contain_text("2 / 20")
        expect(lines).to_have_count(2)

        dashboard.stop()
        expect(page.locator("#link")).to_have_text("Reconnecting…")
        expect(page.get_by_role("alert").filter(has_text="Not connected")).to_be_visible()
        run.close_round()
        run.close_round()
        dashboard.start()
        page.get_by_role("button", name="Try now").click()
        expect(reached).to_contain_text("4 / 20")
        expect(page.locator("#link")).to_have_text("Live")
        expect(page.get_by_role("alert").filter(has_text="Not connected")).to_have_count(0)
        expect(lines).to_have_count(4)  # each once
        run.finish()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Finished")
    expect(page.get_by_role("status").filter(has_text="Run one: Finished")).to_be_attached()
