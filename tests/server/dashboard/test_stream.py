"""Server-sent events, from a real server over a run that this process writes."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager

import httpx
import pytest
from dashboards import serving

from server.dashboard.auth import Tokens
from server.dashboard.stream import Feeds, FullError
from server.run_reader import RunReader
from server.run_store import Checkpoint, RunStore


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "going")
    store.append("run_started", {"server.rounds": 30, "data.name": "digits"})
    yield store
    store.close()


def play(store, number):
    """A round as a server app writes it."""
    store.append("round_planned", {"asked": ["1", "2"], "goal": 2, "mode": "sync", "deadline_s": 9.0}, number)
    store.append("update_received", {"client": "1", "bytes": 10}, number)
    row = {"round": number, "accuracy": number / 100, "uplink_bytes": 10, "downlink_bytes": 5, "failures": []}
    store.close_round(number, row, Checkpoint(number, "b", "m"))


def messages(lines):
    """(id, event, data) of each message; comments are left out."""
    fields = {}
    for line in lines:
        if not line and "event" in fields:
            yield int(fields["id"]), fields["event"], json.loads(fields["data"])
            fields = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


@contextmanager
def listening(address, last_id=None, **headers):
    if last_id is not None:
        headers["Last-Event-ID"] = str(last_id)
    with httpx.stream("GET", f"{address}/api/stream", params={"run": "going"}, headers=headers, timeout=10) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield messages(answer.iter_lines())


def log_of(stream, last_id):
    """Ids of events and numbers of rounds, until the summary that follows event `last_id`."""
    ids, rounds = [], []
    for number, kind, data in stream:
        if kind == "event":
            assert number == data["id"]
            ids.append(number)
        elif kind == "round":
            rounds.append(data["round"])
        elif kind == "summary" and number >= last_id:
            return ids, rounds, data
    raise AssertionError("the stream ended")


def test_every_event_comes_once_and_in_order(tmp_path, store):
    with serving(tmp_path) as address, listening(address) as stream:
        number, kind, data = next(stream)
        assert (number, kind, data["state"], data["round"]) == (1, "summary", "running", 0)
        play(store, 1)
        ids, rounds, summary = log_of(stream, 5)
        assert (ids, rounds) == ([2, 3, 4, 5], [1])
        assert (summary["round"], summary["accuracy"], summary["now"]) == (1, 0.01, None)
        store.append("round_planned", {"asked": ["1", "2", "3"], "goal": 2, "mode": "sync", "deadline_s": 9.0}, 2)
        store.append("client_dropped", {"client": "3", "reason": "gone"}, 2)
        now = log_of(stream, 7)[2]["now"]
        assert (now["round"], now["asked"], now["goal"], now["dropped"], now["received"]) == (2, 3, 2, 1, 0)


def test_a_listener_that_comes_back_gets_what_it_missed(tmp_path, store):
    for number in range(1, 4):
        play(store, number)
    with serving(tmp_path) as address, listening(address, last_id=6) as stream:
        ids, rounds, _ = log_of(stream, 13)
        assert (ids, rounds) == (list(range(7, 14)), [2, 3])


def test_listeners_who_come_at_any_time_see_the_same_log(tmp_path, store):
    """Whatever the moment at which one joins, nothing is missing and nothing comes twice."""
    writer = threading.Thread(target=lambda: [play(store, number) for number in range(1, 31)])
    with serving(tmp_path) as address:
        writer.start()
        for last_id in (0, 1, 17, 40):
            with listening(address, last_id) as stream:
                assert log_of(stream, 121)[0] == list(range(last_id + 1, 122))
        writer.join()


@pytest.mark.parametrize("last_id", [10**6, 10**14])
def test_one_from_the_future_is_told_to_begin_anew(tmp_path, store, last_id):
    with serving(tmp_path) as address, listening(address, last_id) as stream:
        assert [next(stream)[1], next(stream)[1]] == ["reset", "summary"]


def test_one_that_missed_too_much_is_told_to_begin_anew(tmp_path, store):
    with store._writing():
        for _ in range(5001):
            store._insert("update_received", {"client": "1", "bytes": 1}, 1)
    with serving(tmp_path) as address, listening(address, 0) as stream:
        assert next(stream)[1] == "reset"


@pytest.mark.parametrize("last_id", ["-1", "x", "1e3", 400 * "9"])
def test_an_id_that_is_none_of_ours_starts_from_now(tmp_path, store, last_id):
    with serving(tmp_path) as address, listening(address, last_id) as stream:
        assert next(stream)[:2] == (1, "summary")


def test_a_logout_ends_the_stream(tmp_path, store):
    with serving(tmp_path, Tokens.of(viewer="look")) as address, httpx.Client(base_url=address) as client:
        csrf = client.post("/api/session", json={"token": "look"}).json()["csrf"]
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        with listening(address, Cookie=cookie) as stream:
            assert next(stream)[1] == "summary"
            client.delete("/api/session", headers={"X-CSRF-Token": csrf})
            store.append("run_paused", {"reason": "nobody there"})
            assert len(list(stream)) <= 2  # what was under way


def test_an_unknown_run_has_no_stream(address):
    assert httpx.get(f"{address}/api/stream", params={"run": "nobody"}).status_code == 404
    assert httpx.get(f"{address}/api/stream").status_code == 422


def test_listeners_share_a_poller_and_leave_none_behind(tmp_path, store):
    async def watch():
        feeds, reader = Feeds(period_s=0.01, most_listeners=3), RunReader("going", store.directory)
        streams = [feeds.listen(reader, None, lambda: True) for _ in range(3)]
        for stream in streams:
            assert b"event: summary" in await anext(stream)
        assert (feeds.listeners, feeds.pollers) == (3, 1)
        with pytest.raises(FullError):
            feeds.refuse_if_full()
        assert [part async for part in feeds.listen(reader, None, lambda: True)] == []
        for stream in streams:
            await stream.aclose()
        assert (feeds.listeners, feeds.pollers) == (0, 0)

    asyncio.run(watch())


def test_one_that_does_not_keep_up_is_cut_off_and_the_others_are_not(tmp_path, store):
    async def watch():
        feeds, reader = Feeds(period_s=0.001), RunReader("going", store.directory)
        slow, quick = (feeds.listen(reader, None, lambda: True) for _ in range(2))
        await anext(slow)
        await anext(quick)
        for number in range(100):
            store.append("command", {"id": number})
            await anext(quick)
        parts = [part async for part in slow]
        assert len(parts) <= 64
        assert feeds.listeners == 1
        last = int(parts[-1].rpartition(b"id: ")[2].split()[0]) if parts else 1
        back = feeds.listen(reader, last, lambda: True)
        missed = await anext(back)
        assert missed.count(b"event: event") == 101 - last
        for stream in (back, quick):
            await stream.aclose()

    asyncio.run(watch())


def test_silence_is_filled_with_signs_of_life(tmp_path, store):
    async def watch():
        feeds = Feeds(period_s=0.01, alive_s=0.02)
        stream = feeds.listen(RunReader("going", store.directory), None, lambda: True)
        await anext(stream)
        assert (await anext(stream)).startswith(b":")
        await stream.aclose()

    asyncio.run(watch())
