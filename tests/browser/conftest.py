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
from recorded import Recorded

from server.dashboard import charts

HEDGEROW = Path(sys.executable).with_name("hedgerow")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = ("--no-sandbox", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
WAIT_MS = 15_000
HOSTILE = '<script>window.pwned = 1</script><img src="/pwned" onerror="window.pwned = 2">'
LONG = "a" * 100
STAGE = {"percent": 10, "offered": 10, "installed": 7, "refused": 1, "silent": 2, "rolled_back": 0, "good": True}
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


@pytest.fixture(scope="session")
def serve() -> Iterator[Serve]:
    """`serve(folder, *arguments)` starts a dashboard that ends with the tests, or before."""
    started: list[Dashboard] = []

    def start(runs: Path, *arguments: str) -> Dashboard:
        started.append(Dashboard(runs, arguments))
        started[-1].start()
        return started[-1]

    yield start
    for dashboard in started:
        dashboard.stop()


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory, serve: Serve) -> Iterator[Dashboard]:
    """For tests that change nothing: a run that goes on, one that is over, one that kept to a budget, a hostile one."""
    runs = tmp_path_factory.mktemp("watched") / "runs"
    with Recorded(runs / "fleet", warnings=["a warning to read"]) as fleet:
        for _ in range(12):
            fleet.close_round()
        fleet.devices(250)
        fleet.plan([str(n) for n in range(13)], goal=10)
        for n in range(6):
            fleet.tell("update_received", client=str(n), bytes=40_000)
        fleet.tell("client_late", client="6", reason="the goal was reached")
        fleet.tell("client_dropped", client="7", reason="no reply within 60 s")
        fleet.store.append("rollout_started", {"version": 4, "format": "engine", "nbytes": 70_100})
        fleet.store.append("rollout_stage", STAGE)
        with Recorded(runs / "over", {"train.optimizer.lr": 0.5}) as over:
            for _ in range(5):
                over.close_round()
            over.finish()
        with Recorded(
            runs / "private", {"privacy.epsilon": 8.0, "privacy.delta": 1e-5, "secure.enabled": True}
        ) as private:
            for n in range(6):
                private.close_round(epsilon=2.0 + n, train_loss=None, clip=0.3)
        hostile(runs)
        yield serve(runs)


@pytest.fixture(scope="session")
def base(watched: Dashboard) -> str:
    """Its address."""
    return watched.base


def hostile(runs: Path) -> None:
    """Every text that a client can bring in is markup."""
    settings = {"model.name": HOSTILE, "data.name": HOSTILE, HOSTILE: HOSTILE}
    with Recorded(runs / "hostile", settings, warnings=[HOSTILE]) as run:
        run.plan([HOSTILE])
        run.tell("client_dropped", client=HOSTILE, reason=HOSTILE, phase=HOSTILE)
        run.tell(HOSTILE, **{HOSTILE: HOSTILE})
        run.close_round(unchanged=HOSTILE, applied=False)
        report = {"name": HOSTILE, "version": HOSTILE, "arch": HOSTILE, "power": HOSTILE, "memory_budget": LONG}
        run.devices(3, report=report, eligible=False, why_not=HOSTILE, last_reason=HOSTILE, dropped_in={HOSTILE: 1})
        run.store.append("rollout_started", {"version": 4, "format": HOSTILE, "nbytes": HOSTILE})
        run.store.append("rollout_halted", {"reason": HOSTILE})
        run.store.append("run_failed", {"error": HOSTILE})


@pytest.fixture
def plots() -> None:
    """Asked for by tests that look at plots."""
    if not charts.have():
        pytest.skip(f"{charts.PACKAGE} was not fetched, so there are no plots to look at: make charts")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
