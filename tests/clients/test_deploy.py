"""A device in a roll-out, asked by messages built by hand: what it takes, what it refuses, and what runs afterwards."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from clients.app import app
from clients.deploy import ArtefactConfig, running
from edge_runtime.deploy.artefact import write_manifest
from edge_runtime.deploy.offer import RECORD, RUNNING, STYPE, Ask, Report, pack_files, parse_report, unpack_files
from edge_runtime.deploy.trust.keys import MANIFEST_LABEL, read_private, sign
from edge_runtime.deploy.trust.publish import make_release_key, make_root_key, sign_artefact
from edge_runtime.errors import ArtefactError, ConfigError, PeerError
from simulations.grid import assume_identity


@pytest.fixture(autouse=True)
def identity() -> None:
    """Building a message needs to know which node this process is."""
    assume_identity(7)


def linear(scale: float) -> bytes:
    """A model that answers scale times the sum of its input, three times."""
    weight = numpy_helper.from_array(np.full((4, 3), scale, np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 4), ("y", 3))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def bomb() -> bytes:
    """A hundred bytes that ask for 6 GB once they run; on the golden input they would answer like `linear`."""
    shape = numpy_helper.from_array(np.array([40_000, 40_000]), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("Add", ["x", "zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [shape])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@dataclass(frozen=True)
class Publisher:
    """Someone with keys, who releases models."""

    folder: Path

    def release(self, version: int, *, days: int | None = None, now_s: float | None = None) -> dict[str, bytes]:
        """The files of a model that multiplies by its version."""
        folder = self.folder / f"v{version}"
        folder.mkdir(exist_ok=True)
        (folder / "model.onnx").write_bytes(linear(float(version)))
        write_manifest(folder, {"onnx_fp32": folder / "model.onnx"}, {})
        now_s = time.time() if now_s is None else now_s
        sign_artefact(folder, self.folder / "release.key", now_s=now_s, about={"version": version}, days=days)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    folder = tmp_path_factory.mktemp("publisher")
    make_root_key(folder)
    make_release_key(folder, days=30, now_s=time.time() - 60)
    return Publisher(folder)


@dataclass(frozen=True)
class Node:
    """A device with slots."""

    config: Mapping[str, Any]

    def ask(self, ask: Ask, version: int = 0, blob: bytes | None = None, stype: str = STYPE) -> Report:
        content = RecordDict({RECORD: ConfigRecord({"ask": ask.value, "version": version})})
        if blob is not None:
            content["files"] = ArrayRecord({RECORD: Array("uint8", (len(blob),), stype, blob)})
        reply = send(content, "query", self.config)
        return parse_report(reply.config_records[RECORD])

    def offer(self, files: Mapping[str, bytes]) -> Report:
        return self.ask(Ask.INSTALL, 1, pack_files(files))

    @property
    def answers(self) -> float:
        """What the model that runs here multiplies by."""
        runner = ArtefactConfig.from_node_config(self.config).slots().open()
        return float(runner.predict(np.ones((1, 4), np.float32))[0, 0]) / 4 if runner else 0.0


def send(content: RecordDict, kind: str, config: Mapping[str, Any]) -> RecordDict:
    message = Message(content, 7, kind, group_id="1")
    message.metadata.__dict__["_message_id"] = "asked"
    return app(message, Context(1, 7, dict(config), RecordDict(), {})).content


@pytest.fixture
def node(publisher: Publisher, tmp_path: Path) -> Node:
    return Node({"artefact-path": str(tmp_path / "slots"), "artefact-root-key": str(publisher.folder / "root.key.pub")})


def test_a_device_says_what_it_runs_installs_what_comes_and_goes_back_when_told(
    node: Node, publisher: Publisher
) -> None:
    before = node.ask(Ask.STATE)
    assert (before.version, before.floor) == (0, 0)
    assert "onnx" in before.formats
    for version in (1, 2):
        report = node.offer(publisher.release(version))
        assert (report.version, report.floor, report.reason) == (version, version, "")
        assert report.latency_s > 0
        assert node.answers == version
    assert node.ask(Ask.CHECK).version == 2

    assert node.ask(Ask.ROLL_BACK, version=1).version == 2  # it runs another: no order for it
    back = node.ask(Ask.ROLL_BACK, version=2)
    assert (back.version, back.floor) == (1, 2)
    assert node.ask(Ask.ROLL_BACK, version=2).version == 1
    assert node.answers == 1
    again = node.offer(publisher.release(2))
    assert again.version == 1
    assert "version 2 is not above 2" in again.reason


def test_the_first_model_goes_away_while_on_trial_and_stays_once_it_has_proved_healthy(
    node: Node, publisher: Publisher
) -> None:
    node.offer(publisher.release(1))
    assert node.ask(Ask.ROLL_BACK, version=1).version == 0
    assert node.answers == 0
    node.offer(publisher.release(2))
    ArtefactConfig.from_node_config(node.config).slots().confirm()
    stays = node.ask(Ask.ROLL_BACK, version=2)
    assert stays.version == 2
    assert "no model to go back to" in stays.reason


def test_what_is_not_right_is_refused_with_the_reason_and_the_old_model_runs(node: Node, publisher: Publisher) -> None:
    node.offer(publisher.release(5))
    good, other = publisher.release(6), publisher.release(7)
    expired = publisher.release(8, days=1, now_s=time.time() - 86400 - 30)
    flipped = bytearray(good["manifest.sig"])
    flipped[-10] = ord("1" if flipped[-10] == ord("0") else "0")
    offers = {
        "changed or cut short": good | {"model.onnx": linear(9.0)},
        "longer than": good | {"model.onnx": good["model.onnx"] + b"\0"},
        "brings no model.onnx": {name: content for name, content in good.items() if name != "model.onnx"},
        "brings no manifest.sig": {name: content for name, content in good.items() if name != "manifest.sig"},
        "manifest.sig": good | {"manifest.sig": bytes(flipped)},
        "or never signed": good | {"manifest.json": other["manifest.json"]},
        "is not above 5": publisher.release(4),
        "has expired": expired,
    }
    for says, files in offers.items():
        report = node.offer(files)
        assert says in report.reason
        assert (report.version, report.floor) == (5, 5)
    assert node.answers == 5
    assert node.offer(good).version == 6


def test_a_model_that_asks_for_gigabytes_is_refused_and_the_old_one_runs(
    node: Node, publisher: Publisher, tmp_path: Path
) -> None:
    """Even when it is signed: our own command would not sign it, but somebody may have the key."""
    node.offer(publisher.release(1))
    files = publisher.release(3)
    folder = tmp_path / "bomb"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(bomb())
    (folder / "golden.safetensors").write_bytes(files["golden.safetensors"])
    listed = {"onnx_fp32": folder / "model.onnx", "golden": folder / "golden.safetensors"}
    golden = {"file": "golden.safetensors", "tolerance": {"model.onnx": 100.0}}
    write_manifest(folder, listed, {"golden": golden, "version": 3})
    manifest = (folder / "manifest.json").read_bytes()
    signature = sign(read_private(publisher.folder / "release.key"), MANIFEST_LABEL, manifest)
    report = node.offer(files | {"model.onnx": bomb(), "manifest.json": manifest, "manifest.sig": signature})
    assert (report.version, report.floor) == (1, 1)
    assert "ConstantOfShape" in report.reason
    assert node.answers == 1


def test_a_device_of_another_publisher_takes_nothing(node: Node, publisher: Publisher, tmp_path: Path) -> None:
    make_root_key(tmp_path / "other")
    other = Node({**node.config, "artefact-root-key": str(tmp_path / "other" / "root.key.pub")})
    report = other.offer(publisher.release(1))
    assert report.version == 0
    assert "release-key.sig" in report.reason


HUGE = b'{"a":{"dtype":"U8","shape":[0,1180591620717411303424],"data_offsets":[0,0]}}'


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\0" * 8,
        struct.pack("<Q", 2**40) + b"{}",
        b"not a blob at all",
        struct.pack("<Q", 1) + b"5",
        struct.pack("<Q", len(HUGE)) + HUGE,
    ],
)
def test_a_malformed_offer_is_a_refusal_and_no_crash(node: Node, blob: bytes) -> None:
    report = node.ask(Ask.INSTALL, 1, blob)
    assert report.version == 0
    assert "offer" in report.reason


def test_an_offer_of_another_type_or_too_large_is_refused(node: Node, publisher: Publisher) -> None:
    blob = pack_files(publisher.release(1))
    assert "no files of type" in node.ask(Ask.INSTALL, 1).reason
    assert "no files of type" in node.ask(Ask.INSTALL, 1, blob, "numpy.ndarray").reason
    small = Node({**node.config, "artefact-max-size": f"{len(blob) - 1} B"})
    assert small.ask(Ask.STATE).max_bytes == len(blob) - 1
    assert f"at most {len(blob) - 1} are taken here" in small.ask(Ask.INSTALL, 1, blob).reason


def test_a_model_that_was_damaged_since_gives_way_to_the_one_before(node: Node, publisher: Publisher) -> None:
    for version in (1, 2):
        node.offer(publisher.release(version))
    slot = ArtefactConfig.from_node_config(node.config).slots().current()
    assert slot is not None
    slot.model.write_bytes(slot.model.read_bytes()[:-1] + b"\1")
    report = node.ask(Ask.CHECK)
    assert (report.version, report.floor) == (1, 2)
    assert node.answers == 1


def test_a_damaged_model_with_none_before_it_no_longer_runs(node: Node, publisher: Publisher) -> None:
    node.offer(publisher.release(1))
    slot = ArtefactConfig.from_node_config(node.config).slots().current()
    assert slot is not None
    slot.model.write_bytes(b"")
    report = node.ask(Ask.CHECK)
    assert (report.version, report.floor) == (0, 1)
    assert report.reason


def test_a_damaged_folder_costs_no_training_and_takes_nothing(node: Node, publisher: Publisher) -> None:
    node.offer(publisher.release(1))
    (Path(str(node.config["artefact-path"])) / "state.json").write_bytes(b"{")
    assert running(Context(1, 7, dict(node.config), RecordDict(), {})) == {RUNNING: 0}
    for ask in Ask:
        report = node.ask(ask, 1, pack_files(publisher.release(2)))
        assert (report.version, report.formats) == (0, ())
        assert "is damaged" in report.reason


def test_too_little_memory_for_a_trial_is_a_refusal(node: Node, publisher: Publisher) -> None:
    tight = Node({**node.config, "artefact-memory": "48 MiB"})
    report = tight.offer(publisher.release(1))
    assert report.version == 0
    assert "fails its trial" in report.reason


def test_a_node_that_was_not_set_up_for_it_declines_and_writes_nothing(publisher: Publisher, tmp_path: Path) -> None:
    plain = Node({"partition-id": 0, "num-partitions": 2})
    for ask in Ask:
        report = plain.ask(ask, 1, pack_files(publisher.release(1)))
        assert (report.version, report.formats) == (0, ())
        assert "artefact-root-key" in report.reason
    for half in ("artefact-path", "artefact-root-key"):
        with pytest.raises(ConfigError, match="give both or neither"):
            Node({half: str(tmp_path / "x")}).ask(Ask.STATE)


@pytest.mark.parametrize(
    "record", [{}, {"ask": "reboot"}, {"ask": 3}, {"ask": ["state"]}], ids=["none", "unknown", "number", "list"]
)
def test_other_questions_are_not_answered(record: dict[str, Any], node: Node) -> None:
    with pytest.raises(PeerError, match="no record of a roll-out"):
        send(RecordDict({RECORD: ConfigRecord(record)}), "query", node.config)
    with pytest.raises(PeerError, match="no record of a roll-out"):
        send(RecordDict(), "query", node.config)


NAMES = st.sampled_from([*Report().record(), "more"])
WORDS = st.sampled_from(["", "x" * 500, "x" * 501, "onnx,pickle", "tflite,engine,", "\x1b[31m"])
VALUES = st.one_of(st.integers(), st.floats(), WORDS, st.booleans(), st.lists(st.integers(), max_size=2))


@given(st.dictionaries(NAMES, VALUES))
def test_a_report_is_within_bounds_or_the_peers_error(changes: dict[str, Any]) -> None:
    try:
        report = parse_report({**Report(formats=("onnx",)).record(), **changes})
    except PeerError:
        return
    assert 0 <= report.version <= 2**53
    assert 0 <= report.latency_s < float("inf")
    assert set(report.formats) <= {"onnx", "tflite", "engine"}
    assert parse_report(report.record()) == report


def test_a_report_of_megabytes_is_not_repeated() -> None:
    record = Report().record() | {"version": bytes(4 << 20)}
    tracemalloc.start()
    with pytest.raises(PeerError, match="version = bytes is no int"):
        parse_report(record)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


@given(st.dictionaries(st.text('a.é/\0"', max_size=9), st.binary(max_size=300), max_size=6))
def test_files_come_out_of_a_blob_as_they_went_in(files: dict[str, bytes]) -> None:
    unpacked = unpack_files(pack_files(files))
    assert {name: b"".join(unpacked.chunks(name)) for name in unpacked.names} == files


@given(st.binary(max_size=200), st.integers(0, 60), st.integers(0, 255))
def test_a_damaged_blob_gives_its_files_or_our_error(content: bytes, place: int, byte: int) -> None:
    blob = bytearray(pack_files({"a": content, "b": b"12"}))
    blob[place % len(blob)] = byte
    try:
        files = unpack_files(bytes(blob))
        assert sum(len(b"".join(files.chunks(name))) for name in files.names) <= len(blob)
    except ArtefactError:
        pass


def test_the_version_goes_with_a_train_reply_where_there_are_artefacts(node: Node, publisher: Publisher) -> None:
    node.offer(publisher.release(1))
    assert running(Context(1, 7, dict(node.config), RecordDict(), {})) == {RUNNING: 1}
    assert running(Context(1, 7, {"partition-id": 0}, RecordDict(), {})) == {}
