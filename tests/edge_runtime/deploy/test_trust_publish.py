"""What a publisher does on the command line, what every exported file must pass, and what verifying costs a device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from edge_runtime import cli, deploy
from edge_runtime.deploy.exporter import FORMATS, Prepared, prepare
from edge_runtime.deploy.runner import Runner
from edge_runtime.deploy.trust import publish
from edge_runtime.deploy.trust.allow_list import Sizes, check_model
from edge_runtime.deploy.trust.manifest import canonical, parse_manifest
from edge_runtime.deploy.trust.onnx_model import read_onnx
from edge_runtime.deploy.trust.onnx_shapes import shapes_of
from edge_runtime.deploy.trust.slots import Slots
from edge_runtime.errors import ArtefactError, ConfigError
from simulations.models import char_gru, char_transformer, digits_cnn, mobilenet_v2_small

IMAGES = np.random.default_rng(0).normal(size=(4, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in all formats, and keys beside it."""
    folder = tmp_path_factory.mktemp("publisher")
    torch.manual_seed(0)
    deploy.export(digits_cnn(), calibration=[IMAGES], formats=tuple(FORMATS), out=folder / "model")
    np.save(folder / "rows.npy", IMAGES)
    assert cli.main(["artefact-keys", "new", str(folder / "keys"), "--days", "30"]) == 0
    return folder


@pytest.fixture(scope="module")
def signed(exported: Path) -> Path:
    arguments = ["sign", str(exported / "model"), "--key", str(exported / "keys" / "release.key")]
    assert cli.main([*arguments, "--name", "digits", "--version", "3", "--golden", str(exported / "rows.npy")]) == 0
    return exported


# The command line.


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(one) for one in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_verify_says_each_check(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "verify", signed / "model", "--root", signed / "keys" / "root.key.pub")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert all(line.startswith("ok   ") for line in lines)
    assert "signed by the root key" in lines[0]
    assert "digits version 3" in out
    models = [path.name for path in (signed / "model").iterdir() if path.suffix in {".onnx", ".tflite", ".hedgerow"}]
    assert len(models) >= 5
    for name in models:
        assert f"{name}: golden vectors within" in out
        assert f"{name}: known operators" in out


def test_verify_one_file_without_a_root_key(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "verify", signed / "model" / "model_int8.onnx", "--no-trial")
    assert code == 0
    assert out.startswith("skip signatures")
    assert "model_fp32" not in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["verify", "{f}/nowhere"], 3, "cannot be read"),
        (["verify", "{f}/model", "--root", "{f}/keys/nothing.pub"], 2, "a public key is needed"),
        (["verify", "{f}/model", "--root", "{f}/rows.npy"], 2, "is no public key"),
        (["verify", "{f}/model", "--root", "00" * 32], 3, "is by the key"),
        (["verify", "{f}/model/rows.npy"], 3, "is not listed"),
        (["sign", "{f}/model", "--key", "{f}/keys/root.key"], 2, "is not the key in release-key.json"),
        (["sign", "{f}/model", "--key", "{f}/keys/release.key.pub"], 2, "others may read it"),
        (["sign", "{f}/model", "--key", "{f}/keys/release.key", "--golden", "{f}/keys/root.key"], 2, "is no .npy file"),
        (["artefact-keys", "new", "{f}/keys"], 2, "there is a key already"),
        (["artefact-keys", "renew", "{f}/keys", "--days", "0"], 2, "must be at least 1"),
        (["artefact-keys", "renew", "{f}/nowhere"], 2, "cannot be read"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(
    signed: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    got, _, err = run(capsys, *[one.format(f=signed) for one in arguments])
    assert got == code
    assert said in err
    assert err.count("\n") == 1


def test_a_file_that_changed_is_not_signed(exported: Path, tmp_path: Path) -> None:
    model = tmp_path / "model_fp32.onnx"
    model.write_bytes((exported / "model" / model.name).read_bytes())
    deploy.artefact.write_manifest(tmp_path, {"onnx_fp32": model}, {})
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(ArtefactError, match="longer than"):
        publish.sign_artefact(tmp_path, exported / "keys" / "release.key", now_s=0)


def test_private_keys_are_for_their_owner_alone(exported: Path) -> None:
    for path in (exported / "keys").glob("*.key"):
        assert path.stat().st_mode & 0o077 == 0


def test_the_signatures_are_plain_ed25519_over_label_and_bytes(signed: Path) -> None:
    """Whoever has the documents can check them with any library."""
    model, key = signed / "model", bytes.fromhex((signed / "keys" / "root.key.pub").read_text())
    for text, label in (("release-key", b"hedgerow release key 1"), ("manifest", b"hedgerow artefact manifest 2")):
        content = (model / f"{text}.json").read_bytes()
        signature = bytes.fromhex(json.loads((model / f"{text}.sig").read_bytes())["signature"])
        Ed25519PublicKey.from_public_bytes(key).verify(signature, label + b"\0" + content)
        key = bytes.fromhex(json.loads(content)["key"]) if text == "release-key" else key


def test_a_device_takes_the_format_it_likes_best(signed: Path, tmp_path: Path) -> None:
    root = signed / "keys" / "root.key.pub"
    for suffix in FORMATS.values():
        slots = Slots(tmp_path / suffix.suffix, root, suffixes=(suffix.suffix,))
        slot = slots.install(signed / "model")
        assert slot.model.suffix == suffix.suffix
        assert slot.model.name == f"model_int8{suffix.suffix}"
        held = {path.name for path in slot.folder.iterdir()}
        assert held == {slot.model.name, "golden.safetensors", "manifest.json", "manifest.sig", "release-key.json",
                        "release-key.sig"}  # fmt: skip
    assert Slots(tmp_path / "any", root).install(signed / "model").model.suffix == ".hedgerow"


# What our writers write.

MODELS = {
    "conv": (digits_cnn, IMAGES),
    "depthwise": (mobilenet_v2_small, np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)),
    "gru": (char_gru, np.arange(16).reshape(2, 8) % 11),
    "attention": (char_transformer, np.arange(128).reshape(2, 64) % 11),
    "norms": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.LayerNorm(144)),
        IMAGES,
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def prepared(request: pytest.FixtureRequest) -> Prepared:
    make, x = MODELS[request.param]
    torch.manual_seed(0)
    return prepare(make().eval(), None, [x])


@pytest.mark.parametrize("batch", [None, 1])
@pytest.mark.parametrize("name", FORMATS)
def test_every_file_that_we_write_is_allowed(prepared: Prepared, name: str, batch: int | None) -> None:
    contents = prepared.contents(name, batch)
    assert contents.keys() == {"fp32", "int8"}
    for content in contents.values():
        check_model(content, FORMATS[name].suffix)


@pytest.mark.parametrize("batch", [0, 3])
def test_sizes_of_onnx_values_are_those_that_onnx_infers(prepared: Prepared, batch: int) -> None:
    for content in prepared.contents("onnx", batch).values():
        ours = shapes_of(read_onnx(content), Sizes().max_elements)
        inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(content), data_prop=True)
        compared = 0
        for value in inferred.graph.value_info:
            dims = value.type.tensor_type.shape.dim
            if all(dim.HasField("dim_value") or dim.dim_param == "batch" for dim in dims):
                assert ours[value.name] == tuple(dim.dim_value or 1 for dim in dims), value.name
                compared += 1
        assert compared


# Manifests.

ENTRY = {"format": "onnx_int8", "bytes": 7, "sha256": "0" * 64}
RIGHT = {"schema": 2, "name": "m", "version": 3, "created": 5, "files": {"m.onnx": ENTRY}}


def test_a_manifest_reads_as_it_was_written() -> None:
    ends = {"name": "x", "dtype": "float32", "shape": ["batch", 4], "low": -1.0}
    manifest = parse_manifest(canonical(RIGHT | {"input": ends, "metrics": {"accuracy": 0.5}, "note": [1, None]}))
    assert manifest.files["m.onnx"].nbytes == manifest.nbytes == 7
    assert manifest.input is not None
    assert (manifest.input.shape, manifest.input.low, manifest.input.high) == ((-1, 4), -1.0, None)
    assert manifest.fields["note"] == [1, None]


@pytest.mark.parametrize(
    "fields",
    [
        {"schema": 1}, {"schema": True}, {"schema": 2.0}, {"version": -1}, {"version": 2**60}, {"version": "3"},
        {"version": True}, {"created": None}, {"name": ""}, {"name": "a\nb"}, {"expires": 1.5}, {"files": {}},
        {"files": []}, {"files": {"../m": ENTRY}}, {"files": {"/m": ENTRY}}, {"files": {".m": ENTRY}},
        {"files": {"a/b": ENTRY}}, {"files": {"a\\b": ENTRY}}, {"files": {"m\n": ENTRY}}, {"files": {"": ENTRY}},
        {"files": {"manifest.json": ENTRY}}, {"files": {"release-key.sig": ENTRY}},
        {"files": {f"f{i}": ENTRY for i in range(33)}}, {"files": {"m": ENTRY | {"sha256": "0" * 63}}},
        {"files": {"m": ENTRY | {"sha256": "A" * 64}}}, {"files": {"m": ENTRY | {"bytes": 2.0}}},
        {"golden": {"file": "g", "tolerance": {}}}, {"golden": {"file": "m.onnx", "tolerance": {"n": 1}}},
        {"metrics": {"a": "b"}}, {"minimum": {"hedgerow": "newest"}}, {"minimum": {"hedgerow": 1}},
        {"input": {"name": "x", "dtype": "f32", "shape": [-2]}}, {"input": {"name": "x", "dtype": "f32", "shape": []}},
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_is_refused_by_name(fields: dict[str, object]) -> None:
    with pytest.raises(ArtefactError, match=next(iter(fields))):
        parse_manifest(canonical(RIGHT | fields))


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(RIGHT).encode(),
        canonical(RIGHT) + b"\n",
        canonical(RIGHT).replace(b'"version":3', b'"version":3,"version":4'),
        canonical(RIGHT).replace(b'"version":3', b'"version":3.0e0'),
        canonical(RIGHT).replace(b'"version":3', b'"version":NaN'),
        canonical(RIGHT).replace(b'"m"', b'"\\u006d"'),
        b"[" * 100_000,
    ],
    ids=["spaces", "newline", "a key twice", "another spelling", "NaN", "an escape", "deep"],
)
def test_another_text_of_the_same_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(ArtefactError):
        parse_manifest(content)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(name=st.sampled_from([*RIGHT, "expires", "input", "golden", "minimum", "metrics"]), value=anything)
@example(name="version", value=10**400)
@example(name="metrics", value={"accuracy": 10**400})
def test_any_value_in_any_field(name: str, value: object) -> None:
    """It is refused, or read; nothing else is raised."""
    try:
        content = canonical(RIGHT | {name: value})
    except ValueError:  # of Python, about numbers of more than 4300 digits
        return
    try:
        fields = parse_manifest(content).fields
    except ArtefactError:
        return
    assert fields == RIGHT | {name: value}


def test_a_manifest_that_no_reader_takes_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    for about in ({"metrics": {"loss": float("nan")}}, {"name": 3}):
        with pytest.raises(ArtefactError):
            deploy.artefact.write_manifest(tmp_path, {"onnx": tmp_path / "m.onnx"}, about)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("given_key", [b"", b"x" * 31, "zz" * 32, "ab" * 31])
def test_what_is_no_public_key(given_key: bytes | str) -> None:
    with pytest.raises(ConfigError):
        Slots("/nonexistent", given_key)


# What a device pays.

HEAVY = [
    "cryptography",
    "hashlib",
    "_hashlib",
    "torch",
    "onnx",
    "onnxruntime",
    "subprocess",
    "tempfile",
    "ssl",
    "json.tool",
]


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("from edge_runtime.deploy.runner import Runner; Runner.open({model!r})", set()),
        ("from edge_runtime.deploy.runner import Runner; Runner.open({model!r}, root_key={root!r})", {"cryptography"}),
        ("import edge_runtime.deploy.trust.verify, edge_runtime.deploy.trust.keys", set()),
    ],
)
def test_a_device_loads_what_it_asked_for_and_no_more(signed: Path, code: str, allowed: set[str]) -> None:
    paths = {"model": str(signed / "model" / "model_int8.hedgerow"), "root": str(signed / "keys" / "root.key.pub")}
    script = f"import sys; {code.format(**paths)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert set(HEAVY) & set(done.stdout.split()) <= allowed


def test_both_hashes_are_sha256() -> None:
    script = """
import sys
from edge_runtime.deploy.trust.digest import sha256_hex
own = sha256_hex(b"abc", b"def")
assert "_hashlib" not in sys.modules
import hashlib
assert own == sha256_hex(b"abcdef") == hashlib.sha256(b"abcdef").hexdigest()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_signed_model_answers_as_the_unsigned_one(signed: Path) -> None:
    root = signed / "keys" / "root.key.pub"
    for path in sorted((signed / "model").glob("model_*")):
        open_, checked = Runner.open(path), Runner.open(path, root_key=root)
        np.testing.assert_array_equal(open_.predict(IMAGES), checked.predict(IMAGES))
