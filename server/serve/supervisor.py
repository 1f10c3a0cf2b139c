"""The loop of `hedgerow serve`: children are kept alive, devices kept in step, jobs played, until a signal comes."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from edge_runtime.errors import RunError
from edge_runtime.files import write_atomically
from server.serve.bundle import build
from server.serve.children import dashboard, flower, listening
from server.serve.config import ServeConfig
from server.serve.control import Control, ControlError
from server.serve.fleet import reconcile
from server.serve.launch import write_script
from server.serve.notify import notify
from server.serve.player import Player
from server.serve.processes import end, family, marked
from server.serve.state import Lock, State

_TICK_S = 0.2
_FLEET_S = 5.0  # between looks at devices that nobody has changed
_FIRST_START_S = 60.0
_MAX_EARLY_DEATHS = 3
Tell = Callable[[str], None]


def serve(config: ServeConfig, folder: Path, tell: Tell) -> int:
    """Until SIGTERM or SIGINT; leaves no process behind. The exit code.

    Raises:
        ConfigError: another one serves here, a port is taken, a certificate is missing.
        RunError: the SuperLink cannot be started.

    """
    os.umask(0o077)  # the SuperLink's database and the logs hold what lets one speak for a run
    state = State(folder, create=True)
    with _signals() as stopped, contextlib.closing(state):
        lock = Lock(state.folder)
        try:
            if left := marked(state.folder):
                tell(f"{len(left)} processes of a server that was killed are ended")
                end(left)
            supervisor = Supervisor(config, state, tell)
            try:
                supervisor.start(stopped)
                while not stopped():
                    supervisor.step(time.monotonic())
                    time.sleep(_TICK_S)
            finally:
                notify("STOPPING=1")
                tell("stopping")
                supervisor.stop()
        finally:
            lock.release()
    tell("stopped; nothing is left running")
    return 0


class Supervisor:
    """Children, and what is done with them."""

    def __init__(self, config: ServeConfig, state: State, tell: Tell) -> None:
        self._config, self._state, self._tell = config, state, tell
        files = config.certificate_and_key(state.folder)
        self._public = listening(config.host, config.port)
        self._inner = listening("127.0.0.1", 0)
        address = f"127.0.0.1:{self._inner.getsockname()[1]}"
        token = secrets.token_urlsafe(32)
        secret = state.folder / "superexec.secret"
        write_atomically(secret, [secrets.token_bytes(32)], mode=0o600)
        self._superlink, self._superexec = flower(
            config, state.folder, address, token, secret, files, self._public, self._inner
        )
        self._dashboard = dashboard(config, state.folder)
        self._control = Control(address, token)
        self._player = Player(state, self._control, build(), config.limits.attempts, self._apps, tell)
        self._up = False
        self._fleet_s = 0.0
        self._version = -1  # of the tables, when the SuperLink was last told
        self._silence = ""

    def start(self, stopped: Callable[[], bool]) -> None:
        """Return when devices can come; RunError if the SuperLink will not start."""
        for folder in ("runs", "logs", "flower"):
            (self._state.folder / folder).mkdir(exist_ok=True, mode=0o700)
        write_script(self._state.folder / "bin")
        begun_s = time.monotonic()
        while not self._up and not stopped():
            self.step(time.monotonic())
            if self._superlink.deaths >= _MAX_EARLY_DEATHS or time.monotonic() - begun_s > _FIRST_START_S:
                raise RunError(
                    f"the SuperLink does not start; {self._superlink.log} ends with: {self._superlink.last_line()}"
                )
            time.sleep(_TICK_S / 2)
        if self._up:
            scheme = "http, without device keys" if self._config.insecure else "https, device keys required"
            self._tell(f"devices come to {self._config.host}:{self._public.getsockname()[1]} ({scheme})")
            if self._dashboard:
                self._tell(f"dashboard at http://{self._config.dashboard.host}:{self._config.dashboard.port}")
            self._tell(f"state in {self._state.folder}; start a run with: hedgerow run SCENARIO")
            notify(f"READY=1\nMAINPID={os.getpid()}")

    def step(self, now_s: float) -> None:
        self._keep_flower(now_s)
        self._keep_dashboard(now_s)
        for child in (self._superlink, self._superexec, self._dashboard):
            if child is not None:
                child.shorten_log()
        if not self._up:
            return
        try:
            self._keep_fleet(now_s)
            self._player.step(now_s)
            self._silence = ""
        except ControlError as error:
            if not self._superlink.runs:
                return  # the next step sees to it
            if self._silence != str(error):  # told once, not with every step
                self._tell(str(error))
            self._silence = str(error)

    def stop(self) -> None:
        """End every child and what they started, by id; the server app first, which may be closing a round."""
        for child in (self._superexec, self._superlink, self._dashboard):
            if child is not None:
                child.stop()
        end(marked(self._state.folder))
        self._control.close()
        self._public.close()
        self._inner.close()

    def _keep_flower(self, now_s: float) -> None:
        """The SuperLink, then its SuperExec; one life of both is one life of a Flower run."""
        if how := self._superlink.died(now_s):
            self._up = False
            self._tell(f"SuperLink died ({how})")
            self._player.interrupted("the SuperLink died", now_s)
            self._superexec.stop(patience_s=2.0)
        if self._superlink.due(now_s):
            self._superlink.start(now_s)
        if self._superlink.runs and not self._up and self._control.healthy():
            self._up = True
            try:
                self._control.stop_all_runs()
            except ControlError as error:
                self._tell(str(error))
            self._version = -1
        if how := self._superexec.died(now_s):
            self._tell(f"SuperExec died ({how})")
        if self._up and self._superexec.due(now_s):
            self._superexec.start(now_s)

    def _keep_dashboard(self, now_s: float) -> None:
        if self._dashboard is None:
            return
        if how := self._dashboard.died(now_s):
            self._tell(f"dashboard died ({how}), runs go on")
        if self._dashboard.due(now_s):
            self._dashboard.start(now_s)

    def _keep_fleet(self, now_s: float) -> None:
        """Without device keys there is nobody to enrol."""
        if self._config.insecure:
            return
        version = self._state.version()
        if version != self._version or now_s - self._fleet_s >= _FLEET_S:
            reconcile(self._state, self._control, self._tell)
            self._version, self._fleet_s = version, now_s

    def _apps(self) -> Sequence[psutil.Process]:
        """The server app's processes, the dead that nobody has buried excepted."""
        if not self._superexec.runs:
            return []
        found = []
        for process in family(self._superexec.pid)[:-1]:
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and any(
                    "flwr-serverapp" in word for word in process.cmdline()
                ):
                    found.append(process)
        return found


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """SIGTERM and SIGINT are noted, and answered between two steps."""
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        noted.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
