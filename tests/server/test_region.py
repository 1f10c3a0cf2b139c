"""Regions: a federation of federations is the flat one over all devices, and what it can't promise it refuses.

Real client apps answer real Flower messages in this process; between a region's two halves is its real socket.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import socket
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import clients.app
from edge_runtime import region
from edge_runtime.config import from_flat
from edge_runtime.errors import ConfigError, PeerError, RunError
from edge_runtime.updates import TensorLayout
from server.config import ServerConfig
from server.federation import federate
from server.link import Link
from server.region.serve import serve_region
from simulations.grid import RUN_ID, SERVER_NODE_ID, assume_identity

DEVICES = 6
SETTINGS: dict[str, Any] = {
    "data.name": "digits", "data.clients": DEVICES, "data.partition": "dirichlet", "data.alpha": 0.5,
    "model.name": "digits_cnn", "train.epochs": 1, "deploy.formats": "", "server.rounds": 2, "server.deadline_s": 60.0,
}  # fmt: skip
App = Callable[[Message, Context], Message]


class Nodes:
    """As much of a Flower grid as `Link` asks for: nodes that answer in this process, one after another."""

    def __init__(self, configs: dict[int, dict[str, Any]], app: App = clients.app.app) -> None:
        self.contexts = {node: Context(RUN_ID, node, config, RecordDict(), {}) for node, config in configs.items()}
        self.app, self.run = app, Run.create_empty(RUN_ID)
        self._replies: dict[str, Message] = {}
        self._numbers = itertools.count()

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._serve(message) for message in messages]

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(one) for one in list(ids) if one in self._replies]

    def _serve(self, message: Message) -> str:
        message = copy.deepcopy(message)
        message.metadata.__dict__["_message_id"] = name = f"{id(self)}-{next(self._numbers)}"
        node, before = message.metadata.dst_node_id, TaskIdentity.node_id
        assume_identity(node)
        try:
            self._replies[name] = self.app(message, self.contexts[node])
        except Exception as error:
            self._replies[name] = Message(Error(1, f"{type(error).__name__}: {error}"), reply_to=message)
        assume_identity(before or SERVER_NODE_ID)
        return name


def devices(partitions: Iterable[int], **config: Any) -> Nodes:
    return Nodes({100 + k: {"partition-id": k, "num-partitions": DEVICES, "threads": 1, **config} for k in partitions})


def config(**settings: Any) -> ServerConfig:
    return from_flat(ServerConfig, {**SETTINGS, **{key.replace("__", "."): value for key, value in settings.items()}})


@contextmanager
def served(folder: Path, nodes: Nodes, **settings: Any) -> Iterator[Path]:
    """A region's server at work in a thread; gives its socket."""
    path, stop = folder / "s", threading.Event()
    own = config(region__socket=str(path), run__out=str(folder / "run"), **settings)
    thread = threading.Thread(target=serve_region, args=(Link(nodes), own, stop.is_set))  # type: ignore[arg-type]
    thread.start()
    try:
        while not path.exists():
            assert thread.is_alive()
            stop.wait(0.01)
        yield path
    finally:
        stop.set()
        thread.join()
    assert not path.exists()


def play(nodes: Nodes, out: Path, **settings: Any) -> dict[str, Any]:
    assume_identity(SERVER_NODE_ID)
    federate(Link(nodes), config(run__out=str(out), **settings))  # type: ignore[arg-type]
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


def rounds_of(run: Path) -> list[dict[str, Any]]:
    with sqlite3.connect(run / "events.sqlite") as events:
        rows = events.execute("SELECT data FROM events WHERE kind = 'round_closed' ORDER BY id").fetchall()
    events.close()
    return [json.loads(data) for (data,) in rows]


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("flat") / "run"
    play(devices(range(DEVICES)), out, server__cohort=DEVICES, server__min_updates=DEVICES)
    return out


def test_two_regions_train_the_model_of_all_their_devices(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    with (
        served(tmp_path / "a", devices([0, 1]), server__cohort=2, server__min_updates=2) as a,
        served(tmp_path / "b", devices([2, 3, 4, 5]), server__cohort=4, server__min_updates=4) as b,
    ):
        upper = Nodes({1: {"region-socket": str(a)}, 2: {"region-socket": str(b)}})
        record = play(upper, tmp_path / "run", server__cohort=2, server__min_updates=2)
    one, other = load_file(flat / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=0, atol=2e-6, err_msg=name)
    # The same payload goes up from a device and from a region: 2 of them above, 2 and 4 of them below.
    plain = json.loads((flat / "run.json").read_text())["rounds"]
    for number, row in enumerate(record["rounds"]):
        payload = plain[number]["uplink_bytes"] / DEVICES
        below = [rounds_of(tmp_path / name / "run")[number] for name in "ab"]
        assert [row["uplink_bytes"], *(one["uplink_bytes"] for one in below)] == [2 * payload, 2 * payload, 4 * payload]
        assert sum(one["downlink_bytes"] for one in below) == plain[number]["downlink_bytes"]
        assert row["train_loss"] == pytest.approx(plain[number]["train_loss"], rel=1e-6)


def test_what_codecs_keep_between_rounds_works_on_both_floors(tmp_path: Path) -> None:
    small = {
        "uplink.codec": "topk,float16", "uplink.fraction": 0.3, "uplink.error_feedback": True,
        "downlink.codec": "float16", "downlink.delta": "uniform", "downlink.bits": 4.0,
    }  # fmt: skip
    with served(tmp_path, devices([0, 1, 2]), server__cohort=3, server__min_updates=3) as path:
        record = play(
            Nodes({1: {"region-socket": str(path)}}), tmp_path / "above", server__cohort=1, server__min_updates=1,
            server__rounds=3, **small,
        )  # fmt: skip
    below = rounds_of(tmp_path / "run")
    assert [row["clients"] for row in below] == [3, 3, 3]
    for rows in (record["rounds"], below):
        assert rows[2]["downlink_bytes"] < 0.8 * rows[0]["downlink_bytes"]  # a delta and the Program
    assert all(row["applied"] for row in record["rounds"])


def test_a_dead_region_is_one_drop_out_above_and_a_dead_device_one_below(tmp_path: Path) -> None:
    nodes = devices([0, 1, 2])
    nodes.contexts[102].node_config["partition-id"] = 99
    with served(tmp_path, nodes, server__cohort=3, server__min_updates=2) as path:
        upper = Nodes({1: {"region-socket": str(path)}, 2: {"region-socket": str(tmp_path / "nobody")}})
        record = play(upper, tmp_path / "above", server__cohort=2, server__min_updates=1, server__rounds=1)
    (row,), (below,) = record["rounds"], rounds_of(tmp_path / "run")
    assert (row["clients"], row["dropped"], row["applied"]) == (1, 1, True)
    assert "no server listens at" in row["failures"][0]["reason"]
    assert (below["clients"], below["dropped"]) == (2, 1)


def test_too_few_devices_are_the_regions_failure(tmp_path: Path) -> None:
    nodes = devices([0, 1, 2])
    for context in nodes.contexts.values():
        context.node_config["partition-id"] = 99
    with served(tmp_path, nodes, server__cohort=3, server__min_updates=2) as path:
        upper = Nodes({1: {"region-socket": str(path)}})
        with pytest.raises(RunError, match=r"fewer than 2 good updates \(0 devices answered, 3 failed\)"):
            play(upper, tmp_path / "above", server__cohort=1, server__min_updates=1, server__rounds=1)


def test_devices_judge_the_model_through_their_region(flat: Path, tmp_path: Path) -> None:
    judged = {"server__evaluate": "clients", "server__rounds": 1}
    plain = play(devices([0, 1, 2]), tmp_path / "flat", server__cohort=3, server__min_updates=3, **judged)
    with served(tmp_path, devices([0, 1, 2]), server__cohort=3, server__min_updates=3) as path:
        upper = Nodes({1: {"region-socket": str(path)}})
        record = play(upper, tmp_path / "above", server__cohort=1, server__min_updates=1, **judged)
    for figure in ("accuracy", "loss"):
        assert record["rounds"][0][figure] == pytest.approx(plain["rounds"][0][figure], rel=1e-5)


def test_a_regions_server_may_see_its_sum_alone(tmp_path: Path) -> None:
    """Secure aggregation below, as it is: the mean of equals, but for the grid that values are rounded to."""
    logging.getLogger("clients.device").setLevel(logging.ERROR)
    secure = {"secure__enabled": True, "secure__value_bits": 16, "secure__min_clients": 3, "privacy__clip": 100.0}
    with served(tmp_path, devices([0, 1, 2]), server__cohort=3, server__min_updates=3, **secure) as path:
        upper = Nodes({1: {"region-socket": str(path)}})
        play(upper, tmp_path / "above", server__cohort=1, server__min_updates=1, server__rounds=1)
    plain = {**secure, "server__cohort": 3, "server__min_updates": 3, "server__rounds": 1}
    play(devices([0, 1, 2]), tmp_path / "flat", **plain)
    one, other = load_file(tmp_path / "flat" / "model.safetensors"), load_file(tmp_path / "above" / "model.safetensors")
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=0, atol=0.02, err_msg=name)
    (below,) = rounds_of(tmp_path / "run")
    assert (below["clients"], below["train_loss"]) == (3, None)
    assert sum(below["dropped_in"].values()) == 0


@pytest.mark.parametrize(
    "private",
    [
        {"privacy.mechanism": "central", "privacy.noise_multiplier": 1.0, "privacy.clip": 1.0, "privacy.population": 1},
        {"privacy.mechanism": "local", "privacy.noise_multiplier": 1.0, "privacy.clip": 1.0},
    ],
)
def test_what_is_promised_to_single_clients_is_refused_by_a_region(private: dict[str, Any], tmp_path: Path) -> None:
    with served(tmp_path, devices([0, 1, 2]), server__cohort=3, server__min_updates=3) as path:
        upper = Nodes({1: {"region-socket": str(path)}})
        with pytest.raises(RunError):
            play(upper, tmp_path / "above", server__cohort=1, server__min_updates=1, server__rounds=1, **private)
    (row,) = json.loads((tmp_path / "above" / "run.json").read_text())["rounds"]
    assert "a region takes no part in what is promised" in row["failures"][0]["reason"]
    assert rounds_of(tmp_path / "run") == []


def test_a_region_adds_no_noise_of_its_own(tmp_path: Path) -> None:
    private = config(
        region__socket=str(tmp_path / "s"), privacy__mechanism="central", privacy__noise_multiplier=1.0,
        privacy__clip=1.0, privacy__population=10,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="adds no noise"):
        serve_region(Link(devices([0])), private)  # type: ignore[arg-type]


# ---- frames

layouts = st.dictionaries(st.text(max_size=5), st.lists(st.integers(0, 4), max_size=3).map(tuple), max_size=4).map(
    TensorLayout.of
)


@st.composite
def works(draw: st.DrawFn) -> region.Work:
    layout = draw(layouts)
    moving = layout.subset({name for name, _ in layout.shapes if draw(st.booleans())})
    scalars = (
        st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    )
    task = draw(st.dictionaries(st.text(max_size=5), scalars, max_size=4))
    weights = np.array(draw(st.lists(st.floats(width=32), min_size=layout.size, max_size=layout.size)), np.float32)
    return region.Work(draw(st.sampled_from(region.KINDS)), task, draw(st.binary()), layout, moving, weights, 1.5)


def through(send: Callable[[socket.socket], None]) -> bytes:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        content = bytearray()

        def drain() -> None:
            while piece := theirs.recv(1 << 16):
                content.extend(piece)

        reader = threading.Thread(target=drain)
        reader.start()
        send(ours)
        ours.shutdown(socket.SHUT_WR)
        reader.join()
    return bytes(content)


def read_back(content: bytes) -> region.Work:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(content)
        ours.shutdown(socket.SHUT_WR)
        return region.receive_work(theirs)


@given(works())
@settings(deadline=None)
def test_work_arrives_as_it_was_sent(work: region.Work) -> None:
    back = read_back(through(lambda connection: region.send_work(connection, work)))
    assert (back.kind, back.task, back.program, back.deadline_s) == (work.kind, work.task, work.program, 1.5)
    assert (back.layout, back.moving) == (work.layout, work.moving)
    assert back.weights.tobytes() == work.weights.tobytes()


@given(works(), st.data())
@settings(deadline=None)
def test_a_damaged_frame_is_refused_or_still_one(work: region.Work, data: st.DataObject) -> None:
    content = bytearray(through(lambda connection: region.send_work(connection, work)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        back = read_back(bytes(content[:cut]))
    except PeerError:
        return
    assert back.weights.shape == (back.layout.size,)


def test_a_length_that_is_named_takes_no_memory() -> None:
    huge = region._START.pack(region.MAGIC, 2, 1) + (region.MAX_BLOB).to_bytes(8, "little") + b"{}" + bytes(100)
    with pytest.raises(PeerError, match="ends after 100"):
        read_back(huge)


def test_the_socket_is_this_users_alone_and_serves_once(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with region.listen(path) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(ConfigError, match="another process"):
            region.listen(path)
        with region.connect(path, 1.0):
            connection, _ = listener.accept()
            with connection:
                assert region.is_own(connection)
        path.chmod(0o666)
        with pytest.raises(PeerError, match="open to others"):
            region.connect(path, 1.0)
    with region.listen(path):  # what a killed process has left is taken over
        pass
