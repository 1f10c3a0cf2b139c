"""A dashboard that is slow, or is killed, costs the run nothing: the model is the same to the bit."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import threading
import time
from contextlib import closing

import httpx
import pytest
from dashboards import HEDGEROW, free_port, until_it_answers

from server.run_store import EVENTS

SETTINGS = ["data.clients=4", "server.rounds=20", "server.cohort=3", "server.min_updates=2", "deploy.formats="]


def simulating(out):
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [*HEDGEROW, "simulate", "digits", *sets, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def ended(child, out):
    _, errors = child.communicate(timeout=240)
    assert child.returncode == 0, errors
    return json.loads((out / "run.json").read_text())


def opened(directory):
    """The run's events, as soon as there are any."""
    while True:
        with contextlib.suppress(sqlite3.Error):
            events = sqlite3.connect(f"file:{directory / EVENTS}?mode=ro", uri=True, isolation_level=None)
            if events.execute("SELECT count(*) FROM events").fetchone()[0]:
                return events
            events.close()
        time.sleep(0.02)


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_the_model_is_the_same_whatever_dashboards_do(tmp_path):
    alone = ended(simulating(tmp_path / "alone"), tmp_path / "alone")
    out = tmp_path / "watched"
    killed, stop, child = 0, threading.Event(), None

    def hold():
        """A read transaction that stays open for as long as there is a run."""
        with closing(opened(out)) as held:
            held.execute("BEGIN")
            held.execute("SELECT * FROM events").fetchall()
            stop.wait()

    holder = threading.Thread(target=hold)
    while child is None or child.poll() is None:
        port = free_port()
        command = [*HEDGEROW, "dashboard", str(tmp_path), "--port", str(port)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as one:
            address = f"http://127.0.0.1:{port}"
            until_it_answers(f"{address}/api/runs")
            if child is None:  # begins while somebody watches
                child = simulating(out)
                holder.start()
            while child.poll() is None and httpx.get(f"{address}/api/runs/watched").status_code != 200:
                time.sleep(0.02)
            with httpx.stream("GET", f"{address}/api/stream?run=watched") as stream:
                next(stream.iter_raw())
                one.kill()
                killed += child.poll() is None
    stop.set()
    holder.join()
    watched = ended(child, out)
    assert killed
    assert watched["final"]["model_sha256"] == alone["final"]["model_sha256"]
    for mine, theirs in zip(watched["rounds"], alone["rounds"], strict=True):
        assert mine | {"seconds": 0} == theirs | {"seconds": 0}
