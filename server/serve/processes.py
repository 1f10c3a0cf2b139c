"""Child processes that do not outlive us.

Each runs in a session of its own, so that a Ctrl-C is ours to handle; carries MARK in its environment, which its own
children inherit; and is killed by the kernel should we die in whichever way (prctl(2), PR_SET_PDEATHSIG). What slips
through is found by its mark, at our end and at the next start, and ended by its id.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MARK = "HEDGEROW_SERVED_FROM"
_PR_SET_PDEATHSIG = 1
_MAX_LOG_BYTES = 20 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)
# How long a child must have lived for its death to be the first one again.
_SETTLED_S = 60.0
_MAX_WAIT_S = 30.0


@dataclass
class Child:
    """A process to be kept alive. `log` gets what it prints; `passed` are descriptors that it inherits."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    passed: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    deaths: int = field(default=0, init=False)  # in a row
    _started_s: float = field(default=0.0, init=False)
    _again_s: float = field(default=0.0, init=False)

    def start(self, now_s: float) -> None:
        _shorten(self.log)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603  # a command of ours
                list(self.command),
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=self.passed,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
                cwd="/",
            )
        self._started_s = now_s

    def shorten_log(self) -> None:
        """Keep its log within bounds while it runs; what was in it is the older log then."""
        with contextlib.suppress(OSError):
            if self.log.stat().st_size > _MAX_LOG_BYTES:
                shutil.copyfile(self.log, self.log.with_suffix(".1.log"))
                os.truncate(self.log, 0)  # the child appends, so it goes on at the new end

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def died(self, now_s: float) -> str | None:
        """How it ended, told once; from then on `due` says when to start it again."""
        if self.process is None or self.process.poll() is None:
            return None
        code = self.process.returncode
        self.process = None
        self.deaths = 1 if now_s - self._started_s > _SETTLED_S else self.deaths + 1
        self._again_s = now_s + min(0.5 * 2 ** (self.deaths - 1), _MAX_WAIT_S)
        return signal.Signals(-code).name if code < 0 else f"exit code {code}; {self.log}: {self.last_line()}"

    def due(self, now_s: float) -> bool:
        return self.process is None and now_s >= self._again_s

    def stop(self, patience_s: float = 10.0) -> None:
        """End it and what it started, by id, and wait until they are gone."""
        if self.process is None:
            return
        end(family(self.process.pid), patience_s)
        # Ours to reap, and psutil may have done so already.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        self.process = None

    def last_line(self) -> str:
        """The end of its log, for an error that says why."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 4096))
                lines = file.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def environment(state: Path, extra: Mapping[str, str], *first: Path) -> dict[str, str]:
    """Ours, with the mark, the programs in `first` and those of our own Python first in PATH, and `extra` on top."""
    folders = [*map(str, first), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return {
        **os.environ,
        "PATH": os.pathsep.join(folders),
        "PYTHONUNBUFFERED": "1",
        **extra,
        MARK: str(state),
    }


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started and that still runs; empty if it is gone."""
    try:
        root = psutil.Process(pid)
        return [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return []


def marked(state: Path) -> list[psutil.Process]:
    """Processes of ours that carry the mark of this state folder, this one excepted."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error):
            if process.uids().real == os.getuid() and process.environ().get(MARK) == str(state):
                found.append(process)
    return found


def end(processes: Sequence[psutil.Process], patience_s: float = 10.0) -> None:
    """Ask them to end, wait, and kill what is left. A process is known by its id and start, so no other is met."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=patience_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5.0)


def die_with_parent() -> None:
    """From here on the kernel kills this process when its parent ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _die_with(parent: int) -> Callable[[], None]:
    def prepare() -> None:
        die_with_parent()
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return prepare


def _shorten(log: Path) -> None:
    """One older log is kept beside the one being written."""
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > _MAX_LOG_BYTES:
            log.replace(log.with_suffix(".1.log"))
