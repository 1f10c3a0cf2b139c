"""Artefacts from anywhere.

The invariant: whatever a source sends, `Slots.install` takes exactly what the pinned root key vouches for, that is
newer than anything seen, and that this device runs as its maker's does. It refuses everything else with ArtefactError,
and the model before goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.deploy.artefact import write_manifest
from edge_runtime.deploy.runner import Runner
from edge_runtime.deploy.trust import publish
from edge_runtime.deploy.trust.golden import GOLDEN, output_name
from edge_runtime.deploy.trust.keys import (
    MANIFEST_LABEL,
    RELEASE,
    RELEASE_LABEL,
    RELEASE_SIGNATURE,
    SIGNATURE,
    ReleaseKey,
    read_private,
    sign,
)
from edge_runtime.deploy.trust.manifest import MANIFEST, canonical
from edge_runtime.deploy.trust.sandbox import Limits
from edge_runtime.deploy.trust.slots import Slots
from edge_runtime.deploy.trust.tensors import write_tensors
from edge_runtime.errors import ArtefactError

NOW, DAY = 1_790_000_000, 86_400
MODEL = "model_fp32.onnx"


def onnx_file(nodes: list[object], constants: dict[str, np.ndarray], rows: int | str = "n") -> bytes:
    """A model from x (n, 4) to y (n, 4)."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, 4]) for name in "xy"]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


def scaled(by: float) -> bytes:
    return onnx_file([helper.make_node("Mul", ["x", "k"], ["y"])], {"k": np.array(by, np.float32)})


@dataclass(frozen=True)
class Publisher:
    folder: Path

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def root(self) -> Path:
        return self.keys / "root.key.pub"

    def release(self, version: int, model: bytes, **about: object) -> Path:
        folder = self.folder / f"v{version}"
        folder.mkdir()
        (folder / MODEL).write_bytes(model)
        write_manifest(folder, {"onnx_fp32": folder / MODEL}, {})
        key = self.keys / "release.key"
        publish.sign_artefact(folder, key, now_s=NOW, about={"name": "m", "version": version, **about})
        return folder


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    made = Publisher(tmp_path_factory.mktemp("publisher"))
    publish.make_root_key(made.keys)
    publish.make_release_key(made.keys, days=365, now_s=NOW)
    made.release(5, scaled(5))
    made.release(4, scaled(4))
    made.release(6, scaled(6), expires=NOW + 30 * DAY)
    other = Publisher(made.folder / "other")
    publish.make_root_key(other.keys)
    publish.make_release_key(other.keys, days=365, now_s=NOW)
    other.release(6, scaled(6))
    return made


@pytest.fixture(scope="module")
def device(publisher: Publisher, tmp_path_factory: pytest.TempPathFactory) -> Slots:
    """Runs version 5. Tests that must be refused share it, for a refusal changes nothing."""
    slots = Slots(tmp_path_factory.mktemp("device"), publisher.root, clock=lambda: NOW + DAY)
    slots.install(publisher.folder / "v5")
    slots.confirm()
    return slots


def runs_as_before(device: Slots) -> bool:
    runner = device.open()
    assert runner is not None
    answer = runner.predict(np.ones((1, 4), np.float32))
    return bool((answer == 5).all()) and device.state.floor == 5 and not (device.folder / "incoming").exists()


def test_what_the_attacks_start_from_is_taken(publisher: Publisher, tmp_path: Path) -> None:
    slots = Slots(tmp_path, publisher.root, clock=lambda: NOW + DAY)
    assert slots.install(publisher.folder / "v6").version == 6


# Files that are not those which were signed.

Attack = Callable[[Path, Publisher], object]


def change(name: str, edit: Callable[[bytes], bytes]) -> Attack:
    return lambda folder, _: (folder / name).write_bytes(edit((folder / name).read_bytes()))


def edited(**fields: object) -> Attack:
    return change(MANIFEST, lambda text: canonical(json.loads(text) | fields))


def flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


def take(*names: str) -> Attack:
    def replace(folder: Path, publisher: Publisher) -> None:
        for name in names:
            shutil.copyfile(publisher.folder / "other" / "v6" / name, folder / name)

    return replace


def link(name: str, target: str) -> Attack:
    def replace(folder: Path, publisher: Publisher) -> None:
        place = folder / name
        (folder.parent / "elsewhere").write_bytes(place.read_bytes())
        place.unlink()
        place.symlink_to(target.format(parent=folder.parent))

    return replace


def pipe(folder: Path, _: Publisher) -> None:
    (folder / MODEL).unlink()
    os.mkfifo(folder / MODEL)


def statement_as_manifest(folder: Path, publisher: Publisher) -> None:
    """The root's signature over the statement, given as the release key's over the manifest."""
    shutil.copyfile(folder / RELEASE, folder / MANIFEST)
    shutil.copyfile(folder / RELEASE_SIGNATURE, folder / SIGNATURE)


def signed_with_the_wrong_label(folder: Path, publisher: Publisher) -> None:
    key = read_private(publisher.keys / "release.key")
    (folder / SIGNATURE).write_bytes(sign(key, RELEASE_LABEL, (folder / MANIFEST).read_bytes()))


def signed_by_the_root_itself(folder: Path, publisher: Publisher) -> None:
    key = read_private(publisher.keys / "root.key")
    (folder / SIGNATURE).write_bytes(sign(key, MANIFEST_LABEL, (folder / MANIFEST).read_bytes()))


def a_release_key_that_vouches_for_itself(folder: Path, publisher: Publisher) -> None:
    other = read_private(publisher.folder / "other" / "keys" / "release.key")
    statement = ReleaseKey(other.public_key().public_bytes_raw(), 9, NOW, NOW + 999 * DAY).statement()
    (folder / RELEASE).write_bytes(statement)
    (folder / RELEASE_SIGNATURE).write_bytes(sign(other, RELEASE_LABEL, statement))
    (folder / SIGNATURE).write_bytes(sign(other, MANIFEST_LABEL, (folder / MANIFEST).read_bytes()))


ATTACKS: dict[str, tuple[Attack, str]] = {
    "model changed": (change(MODEL, flipped), "its bytes are not those"),
    "model cut short": (change(MODEL, lambda content: content[:-1]), "its bytes are not those"),
    "model longer": (change(MODEL, lambda content: content + b"\0"), "longer than the"),
    "model empty": (change(MODEL, lambda content: b""), "its bytes are not those"),
    "model missing": (lambda folder, _: (folder / MODEL).unlink(), "No such file"),
    "model a link": (link(MODEL, "../elsewhere"), "cannot be read"),
    "model an absolute link": (link(MODEL, "{parent}/elsewhere"), "cannot be read"),
    "model a pipe": (pipe, "is not a plain file"),
    "golden changed": (change(GOLDEN, flipped), "its bytes are not those"),
    "manifest of a higher version": (edited(version=7), "does not fit what it stands beside"),
    "manifest without expiry": (edited(expires=NOW + 900 * DAY), "does not fit what it stands beside"),
    "manifest with a space": (change(MANIFEST, lambda text: text + b" "), "does not fit what it stands beside"),
    "manifest huge": (change(MANIFEST, lambda text: text + b" " * (1 << 20)), "larger than"),
    "manifest missing": (lambda folder, _: (folder / MANIFEST).unlink(), "No such file"),
    "signature missing": (lambda folder, _: (folder / SIGNATURE).unlink(), "No such file"),
    "signature empty": (change(SIGNATURE, lambda text: b""), "manifest.sig"),
    "signature of zeros": (
        change(SIGNATURE, lambda text: canonical(json.loads(text) | {"signature": "00" * 64})),
        "does not fit what it stands beside",
    ),
    "signature cut short": (change(SIGNATURE, lambda text: text[:-1]), "manifest.sig"),
    "signature huge": (change(SIGNATURE, lambda text: text * 100), "larger than"),
    "another publisher's signature": (take(MANIFEST, SIGNATURE), "is by the key"),
    "another publisher's whole artefact": (
        take(MANIFEST, SIGNATURE, RELEASE, RELEASE_SIGNATURE, GOLDEN, MODEL),
        "release-key.sig: is by the key",
    ),
    "another release key": (take(RELEASE), "release-key.sig: does not fit"),
    "a release key that vouches for itself": (a_release_key_that_vouches_for_itself, "release-key.sig: is by the key"),
    "a release key for longer": (
        change(RELEASE, lambda text: canonical(json.loads(text) | {"expires": NOW + 9999 * DAY})),
        "release-key.sig: does not fit",
    ),
    "the statement as manifest": (statement_as_manifest, "manifest.sig"),
    "the wrong label": (signed_with_the_wrong_label, "does not fit what it stands beside"),
    "signed by the root itself": (signed_by_the_root_itself, "is by the key"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_was_not_signed_is_refused(name: str, device: Slots, publisher: Publisher, tmp_path: Path) -> None:
    attack, said = ATTACKS[name]
    folder = shutil.copytree(publisher.folder / "v6", tmp_path / "sent")
    attack(folder, publisher)
    with pytest.raises(ArtefactError, match=said) as caught:
        device.install(folder)
    assert "\n" not in str(caught.value)
    assert runs_as_before(device)


def test_a_stream_without_an_end_is_cut_off(device: Slots, publisher: Publisher) -> None:
    sent = dict.fromkeys((MANIFEST, SIGNATURE, RELEASE, RELEASE_SIGNATURE, GOLDEN, MODEL), 0)

    def endless(name: str) -> Iterator[bytes]:
        if name != MODEL:
            yield (publisher.folder / "v6" / name).read_bytes()
            return
        while True:
            sent[name] += 4096
            yield bytes(4096)

    with pytest.raises(ArtefactError, match="longer than the"):
        device.install(endless)
    assert sent[MODEL] == 4096
    assert runs_as_before(device)


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE, RELEASE, RELEASE_SIGNATURE])
def test_an_endless_manifest_or_signature_is_cut_off(device: Slots, publisher: Publisher, name: str) -> None:
    def source(asked: str) -> Iterator[bytes]:
        yield (publisher.folder / "v6" / asked).read_bytes()
        while asked == name:
            yield bytes(4096)

    with pytest.raises(ArtefactError, match="larger than"):
        device.install(source)
    assert runs_as_before(device)


# Signed, but not now.


def test_an_older_version_is_not_taken_again(device: Slots, publisher: Publisher) -> None:
    with pytest.raises(ArtefactError, match="version 4 is not above 5"):
        device.install(publisher.folder / "v4")
    assert runs_as_before(device)


@pytest.mark.parametrize(("days", "said"), [(31, "version 6 has expired"), (366, "release-key.json: has expired")])
def test_nothing_that_has_expired(device: Slots, publisher: Publisher, days: int, said: str) -> None:
    late = Slots(device.folder, publisher.root, clock=lambda: NOW + days * DAY)
    with pytest.raises(ArtefactError, match=said):
        late.install(publisher.folder / "v6")
    assert runs_as_before(device)


def test_a_clock_that_was_set_back_does_not_bring_the_past_back(publisher: Publisher, tmp_path: Path) -> None:
    """The device has seen a manifest that was signed after another one expired."""
    later = Publisher(tmp_path / "later")
    shutil.copytree(publisher.keys, later.keys)
    folder = later.release(5, scaled(5), created=NOW + 60 * DAY)
    slots = Slots(tmp_path / "device", publisher.root, clock=lambda: 0.0)
    slots.install(folder)
    with pytest.raises(ArtefactError, match="version 6 has expired"):
        slots.install(publisher.folder / "v6")


def test_a_time_that_no_key_reaches_does_not_close_the_device_for_good(publisher: Publisher, tmp_path: Path) -> None:
    """Were it believed, every later release would count as expired."""
    later = Publisher(tmp_path / "later")
    shutil.copytree(publisher.keys, later.keys)
    folder = later.release(5, scaled(5), created=2**53)
    slots = Slots(tmp_path / "device", publisher.root, clock=lambda: NOW)
    with pytest.raises(ArtefactError, match="the signer's clock"):
        slots.install(folder)
    assert slots.install(publisher.folder / "v6").version == 6


def test_a_release_key_that_was_replaced_signs_no_more(publisher: Publisher, tmp_path: Path) -> None:
    newer = Publisher(tmp_path / "newer")
    shutil.copytree(publisher.keys, newer.keys)
    path, release = publish.make_release_key(newer.keys, days=30, now_s=NOW)
    assert release.serial == 2
    folder = shutil.copytree(publisher.folder / "v5", tmp_path / "v5")
    publish.sign_artefact(folder, path, now_s=NOW)
    slots = Slots(tmp_path / "device", publisher.root, clock=lambda: NOW + DAY)
    slots.install(folder)
    with pytest.raises(ArtefactError, match="serial 1 was replaced by 2"):
        slots.install(publisher.folder / "v6")


# Signed, and still not to be run.


def sent_by_a_careless_publisher(publisher: Publisher, folder: Path, model: bytes, expected: np.ndarray) -> Path:
    """All hashes and signatures right; nothing was looked at."""
    folder.mkdir()
    (folder / MODEL).write_bytes(model)
    vectors = {"input": np.ones((2, 4), np.float32), output_name(MODEL): expected.astype(np.float32)}
    (folder / GOLDEN).write_bytes(write_tensors(vectors))
    about = {"name": "m", "version": 9, "created": NOW, "golden": {"file": GOLDEN, "tolerance": {MODEL: 0.01}}}
    write_manifest(folder, {"onnx_fp32": folder / MODEL, "golden": folder / GOLDEN}, about)
    content = (folder / MANIFEST).read_bytes()
    key = read_private(publisher.keys / "release.key")
    (folder / SIGNATURE).write_bytes(sign(key, MANIFEST_LABEL, content))
    for name in (RELEASE, RELEASE_SIGNATURE):
        shutil.copyfile(publisher.keys / name, folder / name)
    return folder


def constant_of_shape() -> bytes:
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["z"]),
        helper.make_node("ReduceSum", ["z"], ["total"], keepdims=0),
        helper.make_node("Add", ["x", "total"], ["y"]),
    ]
    return onnx_file(nodes, {"s": np.array([40_000, 40_000])})


def with_external_data(location: str) -> bytes:
    tensor = TensorProto(name="k", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "k"], ["y"])], "g", ends[:1], ends[1:], [tensor])
    return helper.make_model(graph, ir_version=8).SerializeToString()


ONES = np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    ("model", "expected", "said"),
    [
        (constant_of_shape(), ONES, "40000, 40000"),
        (with_external_data("../elsewhere"), ONES, "lie outside the file"),
        (with_external_data("/etc/passwd"), ONES, "lie outside the file"),
        (b"not a model", ONES, "ONNX"),
        (scaled(9), ONES, "differ from the golden ones by 8"),
        (scaled(9), np.ones((2, 5)), "is golden"),
        (scaled(float("nan")), ONES, "finite: False"),
    ],
    ids=["bomb", "parent folder", "absolute path", "no model", "other answers", "other shape", "NaN"],
)
def test_a_signed_model_that_must_not_run(
    model: bytes, expected: np.ndarray, said: str, device: Slots, publisher: Publisher, tmp_path: Path
) -> None:
    folder = sent_by_a_careless_publisher(publisher, tmp_path / "sent", model, expected)
    with pytest.raises(ArtefactError, match=said):
        device.install(folder)
    assert runs_as_before(device)


def repeated(times: int, size: int) -> bytes:
    """Squares a (size, size) matrix again and again, and adds none of it."""
    nodes = [helper.make_node("Expand", ["one", "s"], ["m0"])]
    nodes += [helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(times)]
    nodes += [
        helper.make_node("ReduceMin", [f"m{times}"], ["least"], keepdims=0),
        helper.make_node("Clip", ["least", "zero", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    constants = {"one": np.zeros((1, 1), np.float32), "zero": np.array(0, np.float32), "s": np.array([size, size])}
    return onnx_file(nodes, constants)


@pytest.mark.parametrize(
    ("model", "limits", "said"),
    [
        (repeated(200, 2000), Limits(cpu_s=2), "2 s of processor time"),
        (repeated(200, 2000), Limits(wall_s=1.0), "no answer within 1 s"),
        (repeated(1, 8000), Limits(memory_bytes=300 << 20), "fails its trial"),
        (scaled(1), Limits(memory_bytes=40 << 20), "fails its trial"),
    ],
    ids=["processor time", "hangs", "memory", "no room for Python itself"],
)
def test_a_model_that_takes_too_much(
    model: bytes, limits: Limits, said: str, publisher: Publisher, tmp_path: Path
) -> None:
    folder = sent_by_a_careless_publisher(publisher, tmp_path / "sent", model, ONES)
    slots = Slots(tmp_path / "device", publisher.root, clock=lambda: NOW + DAY, limits=limits)
    with pytest.raises(ArtefactError, match=said):
        slots.install(folder)
    assert slots.current() is None


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"minimum": {"hedgerow": "99.0"}}, "needs hedgerow 99.0; here is"),
        ({"minimum": {"onnx": "99.0"}}, "needs onnx 99.0; here is onnxruntime"),
    ],
)
def test_a_model_for_a_newer_runtime(about: dict[str, object], said: str, publisher: Publisher, tmp_path: Path) -> None:
    other = Publisher(tmp_path / "newer")
    shutil.copytree(publisher.keys, other.keys)
    folder = other.release(7, scaled(7), **about)
    with pytest.raises(ArtefactError, match=said):
        Slots(tmp_path / "device", publisher.root, clock=lambda: NOW).install(folder)


# Any byte.


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_is_refused_or_changes_no_answer(
    publisher: Publisher, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """`Runner.open` with a root key reads no file of an artefact but those that its signatures cover."""
    source = publisher.folder / "v6"
    name = data.draw(st.sampled_from([MODEL, MANIFEST, SIGNATURE, RELEASE, RELEASE_SIGNATURE]))
    content = bytearray((source / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    folder = shutil.copytree(source, tmp_path_factory.mktemp("flipped") / "sent")
    (folder / name).write_bytes(content)
    with pytest.raises(ArtefactError):
        Runner.open(folder / MODEL, root_key=publisher.root)


def test_a_model_beside_an_unsigned_manifest_is_refused_under_a_root_key(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(scaled(1))
    write_manifest(tmp_path, {"onnx_fp32": tmp_path / MODEL}, {})
    assert Runner.open(tmp_path / MODEL).predict(ONES).shape == (2, 4)
    with pytest.raises(ArtefactError, match=r"release-key\.json: cannot be read"):
        Runner.open(tmp_path / MODEL, root_key=publisher.root)


def test_safetensors_promise_nothing_that_is_not_there(publisher: Publisher, device: Slots, tmp_path: Path) -> None:
    """A golden file whose header promises terabytes."""
    header = json.dumps({"input": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    folder = sent_by_a_careless_publisher(publisher, tmp_path / "sent", scaled(1), ONES)
    (folder / GOLDEN).write_bytes(struct.pack("<Q", len(header)) + header)
    about = {"name": "m", "version": 9, "created": NOW, "golden": {"file": GOLDEN, "tolerance": {MODEL: 0.01}}}
    write_manifest(folder, {"onnx_fp32": folder / MODEL, "golden": folder / GOLDEN}, about)
    key = read_private(publisher.keys / "release.key")
    (folder / SIGNATURE).write_bytes(sign(key, MANIFEST_LABEL, (folder / MANIFEST).read_bytes()))
    with pytest.raises(ArtefactError, match="is no safetensors file"):
        device.install(folder)
    assert runs_as_before(device)
