"""Children that are kept alive, and do not outlive whoever started them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from serving import wait_for

from server.serve.launch import APP, write_script
from server.serve.processes import MARK, Child, end, environment, marked

SLEEP = "import time; time.sleep(300)"


def child(folder: Path, program: str = SLEEP) -> Child:
    return Child("child", [sys.executable, "-c", program], environment(folder, {"COLOUR": "red"}), folder / "child.log")


def test_it_is_marked_and_has_a_session_and_a_log_of_its_own(tmp_path: Path) -> None:
    one = child(tmp_path, f"import os; print(os.environ['COLOUR'], os.getsid(0) == os.getpid()); {SLEEP}")
    one.start(0.0)
    try:
        wait_for(lambda: one.last_line())
        assert one.last_line() == "red True"
        assert [process.pid for process in marked(tmp_path)] == [one.pid]
        assert marked(tmp_path / "other") == []
    finally:
        one.stop()
    assert not one.runs
    assert marked(tmp_path) == []


def test_a_death_is_told_once_and_the_wait_grows(tmp_path: Path) -> None:
    one = child(tmp_path, "print('because'); raise SystemExit(7)")
    waits = []
    now_s = 0.0
    for _ in range(9):
        one.start(now_s)
        wait_for(lambda: not one.runs)
        told = one.died(now_s)
        assert told is not None
        assert "exit code 7" in told
        assert "because" in told
        assert one.died(now_s) is None
        waits.append(next(wait for wait in (0.5, 1, 2, 4, 8, 16, 30) if one.due(now_s + wait)))
        now_s += 30.0
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    one.start(now_s)
    wait_for(lambda: not one.runs)
    one.died(now_s + 61.0)  # it lived for a minute, by the clock that we are given
    assert one.due(now_s + 61.5)


def test_a_signal_has_its_name(tmp_path: Path) -> None:
    one = child(tmp_path)
    one.start(0.0)
    psutil.Process(one.pid).kill()
    wait_for(lambda: not one.runs)
    assert one.died(0.0) == "SIGKILL"


def test_what_will_not_end_is_killed_with_what_it_started(tmp_path: Path) -> None:
    program = f"""
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"])
print("both", flush=True)
{SLEEP}
"""
    one = child(tmp_path, program)
    one.start(0.0)
    wait_for(lambda: one.last_line() == "both")
    family = marked(tmp_path)
    assert len(family) == 2
    one.stop(patience_s=0.5)
    assert not any(process.is_running() for process in family)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_whoever_started_it(tmp_path: Path, how: int) -> None:
    """Nor does what a child starts by the name of the server app."""
    write_script(tmp_path / "bin")
    script = tmp_path / "bin" / APP
    real = Path(sys.executable).parent / APP
    script.write_text(script.read_text().replace(f"{real}", f"{sys.executable} -c '{SLEEP}'"))
    keeper = f"""
import sys, time
from pathlib import Path
from server.serve.processes import Child, environment
folder = Path({str(tmp_path)!r})
inner = "import subprocess, time; subprocess.Popen(['{APP}']); time.sleep(300)"
one = Child("child", [sys.executable, "-c", inner], environment(folder, {{}}, folder / "bin"), folder / "child.log")
one.start(0.0)
time.sleep(300)
"""
    parent = subprocess.Popen([sys.executable, "-c", keeper])
    try:
        wait_for(
            lambda: (
                len(marked(tmp_path)) == 2
                and any(one.cmdline() == [sys.executable, "-c", SLEEP] for one in marked(tmp_path))
            )
        )
        parent.send_signal(how)
        parent.wait(10)
        wait_for(lambda: not marked(tmp_path), 10)
    finally:
        with contextlib.suppress(ProcessLookupError):
            parent.kill()
        parent.wait(10)
        end(marked(tmp_path))


def test_a_process_is_ours_by_its_environment_alone(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SLEEP, str(tmp_path), MARK]
    other = subprocess.Popen(words, env={MARK: f"{tmp_path}/x"})
    try:
        time.sleep(0.2)
        assert marked(tmp_path) == []
    finally:
        other.kill()
        other.wait(10)


def test_a_log_is_cut_while_its_child_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.serve.processes._MAX_LOG_BYTES", 1000)
    one = child(tmp_path, f"for n in range(200): print('line', n, flush=True)\nimport sys; sys.stdin.read()\n{SLEEP}")
    one.start(0.0)
    try:
        wait_for(lambda: "line 199" in one.last_line())
        one.shorten_log()
        assert one.log.stat().st_size == 0
        assert "line 199" in one.log.with_suffix(".1.log").read_text()
        one.shorten_log()  # nothing to do
        assert "line 0\n" in one.log.with_suffix(".1.log").read_text()
    finally:
        one.stop()
