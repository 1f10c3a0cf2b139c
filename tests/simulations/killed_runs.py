"""Plays a simulated run, kills it with SIGKILL at a given point, resumes it, and so on.

Jobs come in on stdin, a line of JSON each: runs with their settings and kills. For every run a line goes out.

Every attempt is a process of its own with a client process of its own, forked from this one, which has imported and
traced all that they need: so an attempt takes tenths of a second rather than ten. What is forked runs the product's
code and nothing else; only the point at which it dies is ours. What each attempt leaves is read from its directory.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clients.app  # noqa: F401 - the client process is forked, too
import edge_runtime.train.trainer  # noqa: F401
import server.model
import server.parts
import simulations.grid
import simulations.runner
import simulations.worker
from server.run_store import RunStore
from simulations.channel import Channel
from simulations.resume import SCENARIO, kept_scenario
from simulations.scenario import Scenario, load_scenario

WRITES = ("append", "_insert", "keep", "keep_model", "close_round", "forget", "write", "append_line")


class Forked:
    """What the grid needs of a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        with contextlib.suppress(ChildProcessError):
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return 0


def start_worker(grid: simulations.grid.InProcessGrid) -> simulations.grid._Worker:
    (down, ours_down), (ours_up, up) = os.pipe(), os.pipe()
    pid = fork(lambda: serve(down, up), keep=(down, up))
    os.close(down)
    os.close(up)
    channel = Channel(ours_up, ours_down, remembered=simulations.grid.REMEMBERED)
    channel.send(grid._setup)
    deadline_s = time.monotonic() + simulations.grid.START_TIMEOUT_S
    return simulations.grid._Worker(Forked(pid), channel, deadline_s=deadline_s)  # type: ignore[arg-type]


def serve(down: int, up: int) -> None:
    sys.argv = ["worker", str(down), str(up)]
    simulations.worker.main()


def fork(work: Callable[[], object], keep: tuple[int, ...] = ()) -> int:
    """The id of a process that does this work and ends: 0, or 1 with a traceback.

    Of what is open here it has `keep` alone: it must not hold on to a run directory's lock, or to a pipe's end.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        bounds = [2, *sorted(keep), os.sysconf("SC_OPEN_MAX")]
        for before, after in itertools.pairwise(bounds):
            os.closerange(before + 1, after)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def die_at_write(number: int, when: str, delay_s: float = 0.0, only: str = "") -> None:
    """Have this process killed right before or after its `number`-th write to the run directory, or some time later.

    With `only`, writes by that method, or events of that kind, are counted alone.
    """
    left, victim = number, os.getpid()

    def kill_later() -> None:
        time.sleep(delay_s)
        os.kill(victim, signal.SIGKILL)

    def deadly(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def write(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= not only or only in (method.__name__, *args[1:2])
            mine = left == 0
            if mine and when == "before":
                os.kill(victim, signal.SIGKILL)
            if mine and when == "later":
                fork(kill_later)
            result = method(*args, **kwargs)
            if mine and when == "after":
                os.kill(victim, signal.SIGKILL)
            return result

        return write

    for name in WRITES:
        setattr(RunStore, name, deadly(getattr(RunStore, name)))


def count_writes(path: Path) -> None:
    """At its end this process leaves the number of its writes in that file."""
    count = 0

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def write(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            path.write_text(str(count))
            return method(*args, **kwargs)

        return write

    for name in WRITES:
        setattr(RunStore, name, counted(getattr(RunStore, name)))


_make_program, _programs = server.model.make_program, dict[str, Any]()
_mechanisms = dict(server.parts.PRIVACY)


def traced(model: Any, train: Any, example: Any, **options: Any) -> Any:
    """`make_program`, of every model once: it looks at the shape and type of the example alone."""
    key = repr((model, train, example.shape, example.dtype, options))
    if key not in _programs:
        _programs[key] = _make_program(model, train, example, **options)
    return _programs[key]


class Counter:
    """Entropy that is the same in every attempt; `server.sampling.Entropy`."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, count: int) -> bytes:
        self._calls += 1
        return hashlib.shake_256(f"entropy {self._calls}".encode()).digest(count)


def attempt(directory: Path, settings: list[str], prepare: Callable[[], None]) -> int:
    """One process that begins or resumes the run; its exit code, -9 if it was killed."""

    def work() -> None:
        prepare()
        simulations.runner.simulate(scenario_of(directory, settings))

    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])


def scenario_of(directory: Path, settings: list[str]) -> Scenario:
    if (directory / SCENARIO).exists():
        return kept_scenario(directory)
    return load_scenario("mnist", settings, out=str(directory))


def look(directory: Path) -> dict[str, Any]:
    """What a run directory says of its run."""
    kinds = {"closed": "round_closed", "spent": "privacy_spent", "asked": "privacy_asked", "begun": "privacy_sum_begun"}
    left: dict[str, Any] = {name: [] for name in kinds}
    if (directory / "events.sqlite").exists():
        with contextlib.closing(sqlite3.connect(directory / "events.sqlite")) as events:
            for name, kind in kinds.items():
                try:
                    rows = events.execute("SELECT id, data FROM events WHERE kind = ? ORDER BY id", (kind,)).fetchall()
                except sqlite3.OperationalError:  # killed before there was a table
                    rows = []
                left[name] = [[number, json.loads(data)] for number, data in rows]
    if (ledger := directory / "privacy.ledger").exists():
        left["ledger"] = ledger.read_text()
    if (record := directory / "run.json").exists():
        left |= {"run": json.loads(record.read_text())}
    return left


def play(directory: Path, settings: list[str], kills: list[dict[str, Any]]) -> dict[str, Any]:
    """A run that meets these kills, one an attempt, until it has ended; what each attempt came to, and left."""
    stages = []
    for kill in [*kills, None]:
        prepare = (
            functools.partial(die_at_write, **kill)
            if kill
            else functools.partial(count_writes, directory.with_suffix(".writes"))
        )
        code = attempt(directory, settings, prepare)
        stages.append({"code": code, "left": look(directory)})
        if code != -signal.SIGKILL:
            break
    return {"stages": stages}


def warm(settings: list[str]) -> None:
    """Trace the model once, for all processes that are forked from here on, and have them fork theirs."""
    for module in (server.model, simulations.runner):
        module.make_program = traced  # type: ignore[attr-defined]
    simulations.grid.InProcessGrid._start_worker = start_worker  # type: ignore[method-assign]
    mechanisms = dict(_mechanisms)
    for name in ("central", "distributed", "ftrl"):
        make = _mechanisms[name]
        mechanisms[name] = lambda config, size, make=make: make(config, size, entropy=Counter())  # type: ignore[misc]
    server.parts.PRIVACY = mechanisms  # type: ignore[misc]
    scenario = load_scenario("mnist", settings)
    # What an accountant imports and tabulates is the same in all of them, too.
    privacy = server.parts.make_privacy(scenario, server.model.GlobalModel(scenario, None))
    privacy.why_stop()


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        warm(job[0]["settings"])
        for run in job:
            directory = Path(run["out"])
            told = play(directory, run["settings"], run["kills"])
            writes = directory.with_suffix(".writes")
            print(json.dumps(told | {"writes": int(writes.read_text()) if writes.exists() else 0}), flush=True)


if __name__ == "__main__":
    main()
