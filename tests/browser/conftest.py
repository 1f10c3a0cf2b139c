"""A headless Chromium, and dashboards for it to look at: real processes on loopback over real run directories.

Chromium resolves no name but its own machine's. Every page that a test opens is watched: a request to anywhere but its
dashboard, an error in its console or an exception that nobody caught fails the test.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from server.dashboard import charts

HEDGEROW = Path(sys.executable).with_name("hedgerow")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = ("--no-sandbox", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
WAIT_MS = 15_000
START_S = 60.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of a module, not of the session: while it is there, asyncio.run() fails in this thread."""
    found = os.environ.get("HEDGEROW_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip("no Chromium found: apt-get install chromium, or set HEDGEROW_CHROMIUM")
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(SWITCHES))
        yield browser
        browser.close()


@dataclass
class Watch:
    """What a test's pages did. `allowed`: parts of console lines that the test expects."""

    base: str
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)

    def see(self, page: Page) -> None:
        page.on("console", lambda line: self._problem(line.type, line.text))
        page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        page.on("request", lambda request: self.requests.append(request.url))

    def check(self) -> None:
        assert not [line for line in self.problems if not any(part in line for part in self.allowed)]
        assert not [url for url in self.requests if not url.startswith(self.base)]
        assert self.requests, "the page asked for nothing: was it opened?"

    def _problem(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.problems.append(f"{kind}: {text}")


@dataclass
class Opened:
    """A page on a dashboard."""

    page: Page
    watch: Watch

    def go(self, place: str) -> Page:
        """Open an address below the dashboard's."""
        self.page.goto(self.watch.base + place)
        return self.page


OpenPage = Callable[..., Opened]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """`open_page(base)`: a page of its own, at a width and a colour scheme."""
    contexts: list[BrowserContext] = []
    watches: list[Watch] = []

    def make(base: str, *, width: int = 1280, height: int = 900, scheme: str = "light") -> Opened:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        watches.append(Watch(base))
        context.on("page", watches[-1].see)
        return Opened(context.new_page(), watches[-1])

    yield make
    for context in contexts:
        context.close()
    for watch in watches:
        watch.check()


@dataclass
class Dashboard:
    """`hedgerow dashboard` over a folder, as a process of its own."""

    runs: Path
    arguments: tuple[str, ...] = ()
    port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """On the port that it had before, if it had one. Returns when it answers."""
        self.port = self.port or free_port()
        command = [HEDGEROW, "dashboard", self.runs, "--port", str(self.port)]
        log = (self.runs.parent / f"{self.runs.name}.log").open("ab")
        with log:
            self._process = subprocess.Popen([*command, *self.arguments], stdout=log, stderr=log)
        until = time.monotonic() + START_S
        while not self._answers():
            told = (self.runs.parent / f"{self.runs.name}.log").read_text()
            assert self._process.poll() is None, told
            assert time.monotonic() < until, f"no answer after {START_S} s: {told}"
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.base}healthz", timeout=2):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False


Serve = Callable[..., Dashboard]


@pytest.fixture(scope="session")
def hedgerow() -> Path:
    """The installed command."""
    return HEDGEROW


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """`serve(folder, *arguments)` starts a dashboard that ends with the module."""
    started: list[Dashboard] = []

    def start(runs: Path, *arguments: str) -> Dashboard:
        started.append(Dashboard(runs, arguments))
        started[-1].start()
        return started[-1]

    yield start
    for dashboard in started:
        dashboard.stop()


@pytest.fixture
def plots() -> None:
    """Asked for by tests that look at plots."""
    if not charts.have():
        pytest.skip(f"{charts.PACKAGE} was not fetched, so there are no plots to look at: make charts")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
