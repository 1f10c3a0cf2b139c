"""Who is let in, and what only an admin can do: with a dashboard that knows one token of each kind."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from recorded import Recorded

from server import commands

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]


@dataclass
class Guarded:
    base: str
    run: Path
    viewer: str
    admin: str


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, serve: Any, hedgerow: Path) -> Iterator[Guarded]:
    """A run that goes on, behind a login, with a roll-out that waits for approval."""
    folder = tmp_path_factory.mktemp("access")
    runs, file = folder / "runs", folder / "tokens"
    tokens = {}
    for role in ("viewer", "admin"):
        command = [hedgerow, "dashboard", "--new-token", role, "--token-file", file]
        tokens[role] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    with Recorded(runs / "secret", {"rollout.enabled": True}) as run:
        run.close_round()
        run.plan()
        run.store.append("rollout_started", {"version": 4, "format": "engine", "nbytes": 70_100})
        run.store.append("rollout_waiting", {})
        yield Guarded(serve(runs, "--token-file", str(file)).base, runs / "secret", **tokens)


def sign_in(page: Page, token: str) -> None:
    page.get_by_label("Access token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def asked(guarded: Guarded) -> list[str]:
    return [command.name.value for command in commands.read(guarded.run)]


def test_nothing_is_shown_without_a_token_or_with_a_wrong_one(guarded: Guarded, open_page: Any) -> None:
    opened = open_page(guarded.base)
    opened.watch.allowed.append("401")
    page = opened.go("#/runs/secret")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    expect(page.get_by_label("Access token")).to_be_focused()
    sign_in(page, "wrong")
    expect(page.get_by_role("alert").filter(has_text="not one this dashboard knows")).to_be_visible()
    expect(page.get_by_label("Access token")).to_be_focused()
    assert "secret" not in page.locator("main").inner_text()
    asked_for = {url.removeprefix(guarded.base) for url in opened.watch.requests}
    assert {url for url in asked_for if url.startswith("api/")} == {"api/session"}


def test_a_viewer_sees_the_run_and_cannot_stop_it(guarded: Guarded, open_page: Any) -> None:
    opened = open_page(guarded.base)
    opened.watch.allowed.append("403")
    page = opened.go("#/runs/secret")
    sign_in(page, guarded.viewer)
    expect(page.get_by_role("heading", name=re.compile("^secret"))).to_be_visible()
    expect(page.locator("#who")).to_have_text("viewer")
    expect(page.get_by_role("button", name="Stop run")).to_have_count(0)
    # Nor if someone writes the button for themselves.
    refusal = page.evaluate(
        "import('/static/api.js').then((api) => api.command('secret', 'stop')).catch((error) => error.message)"
    )
    assert "admin" in refusal
    assert asked(guarded) == []
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_an_admin_stops_the_run_and_steers_its_roll_out_after_a_question(guarded: Guarded, open_page: Any) -> None:
    page = open_page(guarded.base).go("#/runs/secret")
    sign_in(page, guarded.admin)
    stop = page.get_by_role("button", name="Stop run")
    stop.focus()
    page.keyboard.press("Enter")
    question = page.get_by_role("dialog", name="Stop secret?")
    expect(question.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Escape")
    expect(question).to_have_count(0)
    expect(stop).to_be_focused()
    assert asked(guarded) == []
    stop.click()
    with page.expect_response(re.compile("/commands$")) as answer:
        question.get_by_role("button", name="Stop run").click()
    assert answer.value.status == 202
    assert asked(guarded) == ["stop"]
    expect(page.get_by_text("it ends when the round in progress is closed")).to_be_visible()

    page.get_by_role("link", name="Models").click()
    page.get_by_role("button", name="Approve next stage").click()
    page.get_by_role("dialog").get_by_role("button", name="Approve").click()
    expect(page.get_by_text("Approved; the next stage begins shortly.")).to_be_visible()
    page.get_by_role("button", name="Halt roll-out").click()
    page.get_by_role("dialog").get_by_role("button", name="Halt", exact=True).click()
    expect(page.get_by_text("Asked to halt.")).to_be_visible()
    assert asked(guarded) == ["stop", "rollout_approve", "rollout_halt"]


def test_a_session_that_ended_leads_back_to_the_login(guarded: Guarded, open_page: Any) -> None:
    opened = open_page(guarded.base)
    opened.watch.allowed.append("401")
    page = opened.go("#/runs/secret")
    sign_in(page, guarded.viewer)
    expect(page.get_by_role("heading", name=re.compile("^secret"))).to_be_visible()
    page.context.clear_cookies()
    opened.go("#/runs/secret/events")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
