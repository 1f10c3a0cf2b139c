"""What is read from a run directory, whatever state it is in, and that reading leaves no trace."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server import run_lock
from server.run_reader import RunReader, find_runs, shown
from server.run_store import Checkpoint, LoggedEvent, RunStore, Sighting
from server.run_view import RunView


def row(number, **figures):
    return {"round": number, "uplink_bytes": 100, "downlink_bytes": 50, "accuracy": 0.5, "failures": [], **figures}


def close(store, number, model="m"):
    store.close_round(number, row(number), Checkpoint(number, "b", model))


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "run")
    store.append("run_started", {"server.rounds": 5, "model.name": "lenet"})
    yield store
    store.close()


def read(store):
    return RunReader("run", store.directory)


# What is written of rounds, in any order, kills and resumptions among it.
STEPS = st.lists(
    st.sampled_from(["plan", "update", "drop", "close", "resume", "fail", "pause", "go on", "spend"]), max_size=40
)


def played(steps):
    """Events as a server app that did these steps writes them."""
    events, closed = [("run_started", None, {"server.rounds": 99}), ("run_facts", None, {"parameters": 7})], 0
    for step in steps:
        number = closed + 1
        match step:
            case "plan":
                events.append(("round_planned", number, {"asked": ["a", "b"], "goal": 2, "mode": "sync"}))
            case "update":
                events.append(("update_received", number, {"client": "a", "bytes": 3}))
            case "drop":
                events.append(("client_dropped", number, {"client": "b", "reason": "r"}))
            case "close":
                events.append(("round_closed", number, row(number)))
                events.append(("checkpoint", number, {"blob": "b", "model": f"m{number}"}))
                closed = number
            case "resume":
                events.append(("run_resumed", None, {"round": closed}))
            case "fail":
                events.append(("run_failed", None, {"error": "e"}))
            case "pause":
                events.append(("run_paused", None, {"reason": "p"}))
            case "go on":
                events.append(("run_continued", None, {}))
            case "spend":
                events.append(("privacy_spent", number, {}))
    return [LoggedEvent(at, float(at), kind, number, data) for at, (kind, number, data) in enumerate(events, 1)]


@given(steps=STEPS, cuts=st.lists(st.integers(0, 90), max_size=4))
def test_events_may_come_in_any_portions(steps, cuts):
    events, whole, portions = played(steps), RunView(), RunView()
    whole.take(events)
    bounds = sorted({0, len(events), *(cut for cut in cuts if cut < len(events))})
    for start, end in pairwise(bounds):
        portions.take(events[start:end])
    assert portions == whole


@given(steps=STEPS)
def test_an_attempt_that_was_lost_counts_for_nothing(steps):
    """After a resumption the run reads as if all since the last closed round had not been."""
    events, view = played([*steps, "resume"]), RunView()
    view.take(events)
    kept = [event for event in events if not view.is_lost(event.id) and event.kind != "run_resumed"]
    clean = RunView()
    clean.take(kept)
    for name in ("config", "facts", "rounds", "models", "now", "final"):
        assert getattr(view, name) == getattr(clean, name), name
    lost = {event.kind for event in events if view.is_lost(event.id)}
    assert not lost & {"run_started", "run_facts", "round_closed", "checkpoint"}
    assert view.now is view.error is view.paused is None


def test_a_run_from_start_to_end(store):
    reader = read(store)
    assert reader.summary()["state"] == "running"
    store.append("round_planned", {"asked": ["1", "2", "3"], "goal": 2, "mode": "async", "deadline_s": 4.5}, 1)
    for kind in ("update_received", "update_received", "client_late", "client_dropped", "client_declined"):
        store.append(kind, {"client": "1"}, 1)
    details = reader.details()
    counts = {"asked": 3, "goal": 2, "received": 2, "late": 1, "dropped": 1, "declined": 1}
    assert details["now"] == {"round": 1, "deadline_s": 4.5, "mode": "async", **counts}
    store.append("clients_asked", {"asked": ["4", "5"]}, 1)
    assert reader.details()["now"]["asked"] == 5
    close(store, 1)
    details = reader.details()
    assert (details["now"], details["round"], details["uplink_bytes"]) == (None, 1, 100)
    store.append("run_paused", {"reason": "no devices"})
    assert (reader.summary()["state"], reader.summary()["error"]) == ("paused", "no devices")
    store.append("run_continued", {})
    assert reader.summary()["state"] == "running"
    store.append("run_finished", {"accuracy": 0.75, "seconds": 3.5})
    summary = reader.summary()
    assert (summary["state"], summary["accuracy"], summary["seconds"]) == ("finished", 0.75, 3.5)


def test_a_run_whose_process_is_gone_is_interrupted(store):
    reader = read(store)
    assert reader.summary()["state"] == "running"
    store.close()
    assert reader.summary()["state"] == "interrupted"
    again = RunStore(store.directory, resume=True)
    assert reader.summary()["state"] == "running"
    again.append("run_failed", {"error": "disk"})
    again.close()
    assert (reader.summary()["state"], reader.summary()["error"]) == ("failed", "disk")
    store.__init__(store.directory, resume=True)  # what the fixture closes
    store.append("run_resumed", {"round": 0})
    assert (reader.summary()["state"], reader.summary()["error"]) == ("running", "")


def test_to_ask_for_the_lock_never_takes_it(tmp_path):
    path = tmp_path / "lock"
    assert not run_lock.held(path)
    held = run_lock.take(path)
    assert run_lock.held(path)
    with pytest.raises(BlockingIOError):
        run_lock.take(path)
    assert run_lock.held(path)
    os.close(held)
    assert not run_lock.held(path)
    os.close(run_lock.take(path))


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import sys, time, pathlib; from server import run_lock; "
        "run_lock.take(pathlib.Path(sys.argv[1])); print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"1\n"
        assert run_lock.held(tmp_path / "lock")
        child.kill()
        child.wait()
        assert not run_lock.held(tmp_path / "lock")


def contents(directory):
    """All but the memory that SQLite's processes share while one of them writes."""
    return {
        path.name: path.read_bytes() for path in directory.iterdir() if path.is_file() and path.suffix != ".sqlite-shm"
    }


@pytest.mark.parametrize("ended", [True, False])
def test_reading_leaves_no_trace(store, ended):
    close(store, 1)
    store.seen([Sighting(1, 5.0, {"rounds": 1})])
    if ended:
        store.close()
    before = contents(store.directory)
    reader = read(store)
    assert reader.details()["round"] == 1
    assert reader.devices()["total"] == 1
    assert len(reader.events()) == 3
    reader.models(), reader.privacy(), reader.rounds()
    assert contents(store.directory) == before
    if ended:
        store.__init__(store.directory, resume=True)


def test_a_writer_never_waits_for_a_reader(store):
    with read(store)._opened() as held:
        held.execute("BEGIN")
        held.execute("SELECT * FROM events").fetchall()
        store._events.execute("PRAGMA busy_timeout=0")
        close(store, 1)
        store.append("run_finished", {})
    assert read(store).summary()["state"] == "finished"


def test_a_run_of_an_older_release(tmp_path):
    """No device table, no lock, no checkpoints, no write-ahead log."""
    directory = tmp_path / "old"
    directory.mkdir()
    with sqlite3.connect(directory / "events.sqlite") as events:
        events.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, unix_s REAL, kind TEXT, round INTEGER, data TEXT)")
        add = "INSERT INTO events (unix_s, kind, round, data) VALUES (?, ?, ?, ?)"
        events.execute(add, (1.0, "run_started", None, json.dumps({"server.rounds": 2})))
        events.execute(add, (2.0, "round_closed", 1, json.dumps(row(1))))
    events.close()
    reader = RunReader("old", directory)
    details = reader.details()
    assert (details["state"], details["round"], details["uplink_bytes"], details["mode"]) == (
        "interrupted",
        1,
        100,
        "sync",
    )
    assert reader.devices() == {
        "total": 0, "counts": {"online": 0, "eligible": 0, "running_versions": {}}, "devices": []
    }  # fmt: skip
    assert reader.models()["versions"] == []


def damaged(directory):
    """Ways in which a copy of a run goes wrong."""
    content = (directory / "events.sqlite").read_bytes()
    return {
        "empty": b"",
        "cut short": content[: len(content) // 2],
        "no database": b"not a database " * 400,
        "holes": content[:100] + bytes(len(content) - 100),
        "noise": content[:4096] + os.urandom(max(0, len(content) - 4096)),
    }


@pytest.mark.parametrize("damage", ["empty", "cut short", "no database", "holes", "noise"])
def test_a_damaged_run_is_shown_as_such(store, damage):
    close(store, 1)
    store.close()
    (store.directory / "events.sqlite").write_bytes(damaged(store.directory)[damage])
    reader = read(store)
    details = reader.details()
    assert details["state"] == "unreadable"
    assert details["error"]
    assert "\n" not in details["error"]
    store.directory.joinpath("events.sqlite").unlink()
    store.__init__(store.directory)


KEYS = [
    "round", "asked", "goal", "mode", "model", "error", "reason", "accuracy", "uplink_bytes", "report",
    "privacy", "deploy", "rollout", "warnings", "eligible", "rounds", "files", "formats", "seconds",
    "server.rounds", "privacy.epsilon", "dropped_in", "model_sha256",
]  # fmt: skip
KINDS = [
    "run_started", "run_facts", "round_planned", "round_closed", "checkpoint", "run_paused", "artefact",
    "run_failed", "run_finished", "run_resumed", "rollout_started", "rollout_stage", "rollout_finished",
]  # fmt: skip
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=50)
@given(data=st.dictionaries(st.sampled_from(KEYS), ODD), kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=6))
def test_no_event_however_odd_breaks_a_reader(tmp_path_factory, data, kinds):
    """And every answer can be sent: it is JSON, without NaN."""
    from server.dashboard import answers

    directory = tmp_path_factory.mktemp("odd")
    content = json.dumps(data)
    with sqlite3.connect(directory / "events.sqlite") as events:
        events.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, unix_s REAL, kind TEXT, round INTEGER, data TEXT)")
        events.execute("CREATE TABLE devices (node TEXT PRIMARY KEY, seen_s REAL NOT NULL, data TEXT NOT NULL)")
        events.executemany(
            "INSERT INTO events (unix_s, kind, round, data) VALUES (1, ?, 1, ?)", [(kind, content) for kind in kinds]
        )
        events.execute("INSERT INTO devices VALUES ('1', 1, ?)", (content,))
    events.close()
    reader = RunReader("odd", directory)
    found = {
        answers.Details: reader.details(),
        answers.Rounds: {"rounds": reader.rounds()},
        answers.Devices: reader.devices(),
        answers.Privacy: reader.privacy(),
        answers.Models: reader.models(),
        answers.Events: {"events": reader.events()},
    }
    for kind, answer in found.items():
        kind.model_validate(json.loads(json.dumps(answer, allow_nan=False)), strict=True)


@pytest.mark.parametrize(
    "data",
    ["", "[", "[]", "null", "7", "NaN", '{"round": NaN}', "{" * 9000, b"\xff\xfe", None, 3.5],
)
def test_data_that_is_no_json_object_reads_as_empty(store, data):
    with sqlite3.connect(store.directory / "events.sqlite") as events:
        events.execute("CREATE TABLE other AS SELECT * FROM events")
        events.execute("DROP TABLE events")
        events.execute("ALTER TABLE other RENAME TO events")
        events.execute("INSERT INTO events VALUES (2, 'x', 'round_closed', 'y', ?)", (data,))
        events.execute("INSERT INTO devices VALUES ('7', 1, ?)", ("x" if data is None else data,))
    events.close()
    reader = read(store)
    assert reader.details()["state"] == "running"
    assert reader.rounds() == []  # not even its number
    assert reader.events()[0]["data"] in ({}, {"round": None})
    assert reader.devices(sort="rounds")["total"] == 1


def test_a_protected_run_tells_nothing_of_one_client(tmp_path):
    """Even where an event or a device's row holds it."""
    told = {"client": "7", "bytes": 9, "loss": 0.123123, "examples": 440440440, "norm": 35.353535, "seconds": 82.5825}
    for name, config in {
        "open": {},
        "secure": {"secure.enabled": True},
        "private": {"privacy.noise_multiplier": 1.0},
    }.items():
        store = RunStore(tmp_path / name)
        store.append("run_started", config)
        store.append("update_received", told, 1)
        store.append("something_new", told, 1)
        store.seen([Sighting(7, 1.0, {"seconds": 82.5825, "rounds": 2, "loss": 0.123123})])
        reader = RunReader(name, tmp_path / name)
        events, device = reader.events()[:2], reader.devices()["devices"][0]
        view = reader.view()
        streamed = [shown(event, view) for event in reader.events_after(1, 9)]
        store.close()
        words = json.dumps([events, streamed, device])
        assert [figure in words for figure in ("0.123123", "440440440", "35.353535", "82.5825")] == 4 * [name == "open"]
        assert events[0]["data"]["bytes"] == 9
        assert device["rounds"] == 2
        assert "loss" not in device


def test_what_is_a_run_in_a_folder(tmp_path):
    for name in ("a", "b c", ".hidden", "x" * 200, "é"):
        RunStore(tmp_path / name).close()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert set(find_runs(tmp_path)) == {"a", "b c"}
    assert find_runs(tmp_path / "a") == {"a": tmp_path / "a"}
    assert set(find_runs(tmp_path / ".hidden")) == {"run"}
    assert find_runs(tmp_path / "nothing") == {}


WORD = st.sampled_from(["is:eligible", "is:ineligible", "pi", "a", "%", "'", "7"])
DEVICES = st.lists(
    st.fixed_dictionaries(
        {
            "seen_s": st.integers(0, 1000),
            "eligible": st.booleans(),
            "rounds": st.none() | st.integers(0, 5),
            "running": st.none() | st.integers(1, 3),
            "name": st.sampled_from(["pi-a", "pi-b", "PI-A", "%_", "", "'"]),
        }
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=40)
@given(
    devices=DEVICES,
    words=st.lists(st.sampled_from(["is:eligible", "is:ineligible", "pi", "a", "%", "'", "7"]), max_size=2),
)
def test_devices_are_filtered_sorted_and_counted(tmp_path_factory, devices, words):
    store = RunStore(tmp_path_factory.mktemp("devices") / "run")
    store.append("run_started", {})
    store.seen(
        Sighting(node, one["seen_s"], {**one, "report": {"name": one["name"]}}) for node, one in enumerate(devices)
    )
    reader = read(store)
    page = reader.devices(sort="rounds", words=" ".join(words), descending=True)
    store.close()

    def passes(node, one):
        wanted = {"is:eligible": one["eligible"], "is:ineligible": not one["eligible"]}
        return all(wanted.get(word, word.lower() in one["name"].lower() or word in str(node)) for word in words)

    chosen = [(str(node), one) for node, one in enumerate(devices) if passes(node, one)]
    chosen.sort(key=lambda pair: (pair[1]["rounds"] is None, -(pair[1]["rounds"] or 0), pair[0]))
    assert [device["node"] for device in page["devices"]] == [node for node, _ in chosen]
    assert page["total"] == len(chosen)
    running = [one["running"] for one in devices if one["running"] is not None]
    assert page["counts"]["running_versions"] == {str(version): running.count(version) for version in set(running)}


def test_pages_hold_every_device_once(store):
    store.seen(Sighting(node, 1.0, {"rounds": node % 3}) for node in range(250))
    reader = read(store)
    pages = [reader.devices(page, "rounds")["devices"] for page in range(4)]
    assert [len(page) for page in pages] == [100, 100, 50, 0]
    assert len({device["node"] for page in pages for device in page}) == 250


def test_paths_with_odd_characters_are_read(tmp_path):
    directory = tmp_path / "a ?#%20&mode=rwc"
    RunStore(directory).close()
    before = sorted(Path(tmp_path).rglob("*"))
    assert RunReader("x", directory).summary()["error"] == "no event is written yet"
    assert sorted(Path(tmp_path).rglob("*")) == before


@pytest.mark.parametrize("data", ['{"loss": 1e999, "final": [-1e999]}', '{"loss": 1' + "0" * 400 + "}"])
def test_a_number_too_large_for_json_is_shown_all_the_same(store, data):
    """In JSON 1e999 is a number, and no constant as NaN is."""
    for kind in ("run_started", "run_facts", "round_planned", "round_closed", "run_finished"):
        store._events.execute("INSERT INTO events (unix_s, kind, round, data) VALUES (1, ?, 1, ?)", (kind, data))
    reader = read(store)
    for answer in (reader.summary(), reader.details(), reader.rounds(), reader.events(), reader.models()):
        json.dumps(answer, allow_nan=False)
    assert reader.summary()["loss"] is None
