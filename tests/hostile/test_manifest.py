"""Manifests from anywhere.

The invariant: whatever stands in `manifest.json`, `verified_bytes` returns exactly the file's bytes when size and
SHA-256 match its entry, and otherwise raises ArtefactError. It raises nothing else.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.deploy.artefact import MANIFEST, verified_bytes
from edge_runtime.errors import ArtefactError

NAME, CONTENT = "model.onnx", b"seven b"
RIGHT = {"bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


@pytest.fixture(scope="module")
def model() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        path.write_bytes(CONTENT)
        yield path


def accepted(model: Path, manifest: bytes | str) -> bool:
    """Whether the file was accepted under this manifest; anything that breaks the invariant fails the test."""
    raw = manifest.encode() if isinstance(manifest, str) else manifest
    model.with_name(MANIFEST).write_bytes(raw)
    try:
        content = verified_bytes(model)
    except ArtefactError:
        return False
    assert content == CONTENT
    return True


def manifest_with(entry: object) -> str:
    return json.dumps({"version": 1, "files": {NAME: entry}})


def test_the_right_entry_is_accepted(model: Path) -> None:
    assert accepted(model, manifest_with(RIGHT))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([NAME, "bytes", "sha256"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.sampled_from(["files", NAME]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(value=anything)
def test_any_json(model: Path, value: object) -> None:
    assert not accepted(model, json.dumps(value))


@given(files=anything)
def test_any_files_table(model: Path, files: object) -> None:
    assert not accepted(model, json.dumps({"files": files}))


@given(entry=anything)
def test_any_entry(model: Path, entry: object) -> None:
    assert not accepted(model, manifest_with(entry))


@given(size=anything)
@example(size=float(len(CONTENT)))
@example(size=str(len(CONTENT)))
@example(size=True)
@example(size=-1)
@example(size=2**70)
def test_any_size_with_the_right_hash(model: Path, size: object) -> None:
    assert accepted(model, manifest_with(RIGHT | {"bytes": size})) is (type(size) is int and size == len(CONTENT))


@given(digest=anything)
@example(digest=EMPTY_SHA256)
@example(digest=RIGHT["sha256"][:-1])
@example(digest="")
def test_any_hash_with_the_right_size(model: Path, digest: object) -> None:
    assert not accepted(model, manifest_with(RIGHT | {"sha256": digest}))


@pytest.mark.parametrize("size", [0, 6, 8])
def test_a_file_of_another_size_is_refused_even_under_the_hash_of_nothing(model: Path, size: int) -> None:
    assert not accepted(model, manifest_with({"bytes": size, "sha256": EMPTY_SHA256}))


@given(raw=st.binary(max_size=300))
@example(raw=b"")
@example(raw=b"\xff\xfe")
@example(raw=b"\xef\xbb\xbf{}")
@example(raw=b'{"files": NaN}')
def test_any_bytes(model: Path, raw: bytes) -> None:
    assert not accepted(model, raw)


@pytest.mark.parametrize("opening", ["[", '{"files":', '{"a":[{"b":'])
def test_deep_nesting(model: Path, opening: str) -> None:
    assert not accepted(model, opening * (500_000 // len(opening)))


def test_a_number_too_long_to_read(model: Path) -> None:
    assert not accepted(model, '{"files": {"model.onnx": {"bytes": ' + "7" * 10_000 + ', "sha256": ""}}}')


def test_a_huge_manifest_is_refused_by_its_size(model: Path) -> None:
    manifest = json.dumps({"files": {NAME: RIGHT}, "padding": "x" * (1 << 20)})
    assert not accepted(model, manifest)
    with pytest.raises(ArtefactError, match="larger than 1048576 bytes"):
        verified_bytes(model)


def test_a_folder_in_the_manifests_place(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(ArtefactError, match="no readable"):
        verified_bytes(tmp_path / NAME)


def test_a_folder_in_the_models_place(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    size = (tmp_path / NAME).stat().st_size
    (tmp_path / MANIFEST).write_text(manifest_with(RIGHT | {"bytes": size}))
    with pytest.raises(ArtefactError, match="cannot be read"):
        verified_bytes(tmp_path / NAME)


def test_an_entry_under_another_name_does_not_count(model: Path) -> None:
    assert not accepted(model, json.dumps({"files": {f"./{NAME}": RIGHT, NAME.upper(): RIGHT, "": RIGHT}}))
