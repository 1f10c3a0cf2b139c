"""A dashboard that is slow, or is killed, costs the run nothing: the model is the same to the bit."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import threading
import time

import httpx
import pytest
from dashboards import HEDGEROW, free_port, until_it_answers

from server.run_store import EVENTS

SETTINGS = ["data.clients=4", "server.rounds=12", "server.cohort=3", "server.min_updates=2", "deploy.formats="]


def simulating(out):
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [*HEDGEROW, "simulate", "digits", *sets, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def ended(child, out):
    _, errors = child.communicate(timeout=240)
    assert child.returncode == 0, errors
    return json.loads((out / "run.json").read_text())


def wait_for(path):
    while not path.exists():
        time.sleep(0.02)


@pytest.mark.e2e
def test_the_model_is_the_same_whatever_dashboards_do(tmp_path):
    alone = ended(simulating(tmp_path / "alone"), tmp_path / "alone")
    out = tmp_path / "watched"
    child = simulating(out)
    killed, stop = 0, threading.Event()

    def hold():
        """Read transactions that stay open for as long as there is a run."""
        wait_for(out / EVENTS)
        with sqlite3.connect(f"file:{out / EVENTS}?mode=ro", uri=True, isolation_level=None) as held:
            while not stop.is_set():
                try:
                    held.execute("BEGIN")
                    held.execute("SELECT * FROM events").fetchall()
                    break
                except sqlite3.Error:
                    time.sleep(0.02)
            stop.wait()
        held.close()

    holder = threading.Thread(target=hold)
    holder.start()
    while child.poll() is None:
        port = free_port()
        command = [*HEDGEROW, "dashboard", str(tmp_path), "--port", str(port)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as one:
            until_it_answers(f"http://127.0.0.1:{port}/api/runs")
            with httpx.stream("GET", f"http://127.0.0.1:{port}/api/stream?run=watched") as stream:
                next(stream.iter_raw())
                one.kill()
        killed += 1
    stop.set()
    holder.join()
    watched = ended(child, out)
    assert killed
    assert watched["final"]["model_sha256"] == alone["final"]["model_sha256"]
    for mine, theirs in zip(watched["rounds"], alone["rounds"], strict=True):
        assert mine | {"seconds": 0} == theirs | {"seconds": 0}
