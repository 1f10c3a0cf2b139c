"""A client's own files: what good ones are read as, and the one line that each kind of bad one gets."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from clients.config import NodeConfig
from clients.datasets import load_examples, read_examples
from edge_runtime.errors import ConfigError
from edge_runtime.train.config import DataConfig
from simulations.datasets import DIGITS

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
IN_TMP_PATH = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "own.npz", **arrays)
    return folder / "own.npz"


def csv(folder: Path, text: str) -> Path:
    (folder / "own.csv").write_text(text)
    return folder / "own.csv"


def png(folder: Path, name: str, pixels: NDArray[Any]) -> Path:
    path = folder / "pictures" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return folder / "pictures"


@IN_TMP_PATH
@given(x=arrays(np.float32, (4, 2, 3), elements=FINITE), y=arrays(np.int64, 4, elements=st.integers(0, 9)))
def test_npz_is_read_as_written(tmp_path: Path, x: NDArray[np.float32], y: NDArray[np.int64]) -> None:
    examples = read_examples(npz(tmp_path, x=x, y=y))
    np.testing.assert_array_equal(examples.x, x)
    np.testing.assert_array_equal(examples.y, y)


@pytest.mark.parametrize(
    ("dtype", "expected"), [(np.float64, np.float32), (np.float16, np.float32), (np.uint8, np.int64)]
)
def test_npz_inputs_become_float32_or_stay_whole(tmp_path: Path, dtype: type, expected: type) -> None:
    assert read_examples(npz(tmp_path, x=np.ones((2, 3), dtype), y=[0, 1])).x.dtype == expected


@pytest.mark.parametrize(
    ("targets", "expected"), [([0, 1], np.int64), ([0.0, 1.0], np.int64), ([0.5, 1.0], np.float32)]
)
def test_whole_targets_are_classes_and_others_are_numbers(tmp_path: Path, targets: list[float], expected: type) -> None:
    examples = read_examples(npz(tmp_path, x=np.ones((2, 3)), y=targets))
    assert examples.y.dtype == expected
    assert examples.y.tolist() == targets


X = np.ones((2, 3))
BAD_NPZ: dict[str, dict[str, Any]] = {
    "no y": {"x": X},
    "no x": {"y": [0, 1]},
    "fewer targets": {"x": X, "y": [0]},
    "empty": {"x": np.ones((0, 3)), "y": np.ones(0, int)},
    "NaN input": {"x": np.array([[1.0], [np.nan]]), "y": [0, 1]},
    "infinite input": {"x": np.array([[1.0], [np.inf]]), "y": [0, 1]},
    "NaN target": {"x": X, "y": [0, np.nan]},
    "objects": {"x": np.array([[1], "a"], object), "y": [0, 1]},
    "text input": {"x": np.array(["a", "b"]), "y": [0, 1]},
    "text target": {"x": X, "y": ["a", "b"]},
    "complex input": {"x": X + 1j, "y": [0, 1]},
    "complex target": {"x": X, "y": [0, 1j]},
    "no dimension": {"x": 3.0, "y": 1},
    "input beyond float32": {"x": X * 1e39, "y": [0, 1]},
    "target beyond float32": {"x": X, "y": [0, 1e39]},
}


@pytest.mark.parametrize("content", BAD_NPZ.values(), ids=BAD_NPZ.keys())
def test_a_bad_npz_is_named(tmp_path: Path, content: dict[str, Any]) -> None:
    path = npz(tmp_path, **content)
    with pytest.raises(ConfigError, match=r"own\.npz"):
        read_examples(path)


def plain_array() -> bytes:
    out = io.BytesIO()
    np.save(out, np.arange(3))
    return out.getvalue()


NOT_NPZ = {"empty": b"", "text": b"hello", "a .npy in disguise": plain_array(), "only a zip's start": b"PK\x03\x04"}


@pytest.mark.parametrize("content", NOT_NPZ.values(), ids=NOT_NPZ.keys())
def test_what_is_no_npz_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"own\.npz"):
        read_examples(tmp_path / "own.npz")


def test_a_damaged_npz_is_read_or_refused_with_its_name(tmp_path: Path) -> None:
    """One byte flipped anywhere in a compressed file: whatever breaks inside, it is our error that comes out."""
    np.savez_compressed(tmp_path / "own.npz", x=np.arange(60.0).reshape(20, 3), y=np.arange(20))
    good = (tmp_path / "own.npz").read_bytes()
    others = []
    for at in range(len(good)):
        (tmp_path / "own.npz").write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
        try:
            read_examples(tmp_path / "own.npz")
        except Exception as error:
            if not isinstance(error, ConfigError) or "own.npz" not in str(error):
                others.append(f"byte {at}: {error!r}")
    assert others == []


@IN_TMP_PATH
@given(x=arrays(np.float32, (5, 3), elements=FINITE), y=arrays(np.int64, 5, elements=st.integers(0, 9)))
def test_csv_is_read_as_written(tmp_path: Path, x: NDArray[np.float32], y: NDArray[np.int64]) -> None:
    rows = [",".join([*(repr(float(value)) for value in row), str(label)]) for row, label in zip(x, y, strict=True)]
    examples = read_examples(csv(tmp_path, "\n".join(rows)))
    assert (examples.x.dtype, examples.y.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(examples.x, x)
    np.testing.assert_array_equal(examples.y, y)


@pytest.mark.parametrize(
    "text",
    [
        "1,2,0\n3,4,1\n",
        "width,height,class\n1,2,0\n3,4,1\n",
        "1, 2, 0\r\n3, 4, 1\r\n",
        "\n1,2,0\n\n3,4,1",
        "\ufeff1,2,0\n3,4,1\n",
    ],
    ids=["plain", "header", "spaces and CRLF", "blank lines", "byte order mark"],
)
def test_csv_forms_that_mean_the_same(tmp_path: Path, text: str) -> None:
    examples = read_examples(csv(tmp_path, text))
    assert examples.x.tolist() == [[1, 2], [3, 4]]
    assert examples.y.tolist() == [0, 1]


BAD_ROWS = {
    "text": ("1,2,0\n1,two,0\n", 2),
    "text after a header": ("a,b,class\n1,2,0\n1,two,0\n", 3),
    "a second header": ("a,b\nc,d\n1,2\n", 2),
    "too short": ("1,2,0\n1,2,0\n1,0\n", 3),
    "too long": ("1,2,0\n\n1,2,3,0\n", 3),
    "NaN": ("1,2,0\n1,nan,0\n", 2),
    "infinite": ("1,2,0\n1,2,inf\n", 2),
    "a gap": ("1,2,0\n1,,0\n", 2),
    "beyond float32": ("1,2,0\n1,1e39,0\n", 2),
}


@pytest.mark.parametrize(("text", "line"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_csv_row_is_named_by_its_line(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(ConfigError, match=rf"own\.csv, line {line}: must be .* finite numbers"):
        read_examples(csv(tmp_path, text))


@pytest.mark.parametrize("text", ["", "\n\n", "a,b,class\n", "1\n2\n"], ids=["empty", "blank", "header", "one column"])
def test_a_csv_without_examples_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"own\.csv.*at least 2 numbers"):
        read_examples(csv(tmp_path, text))


def test_a_csv_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_bytes(b"\xff\xfe1\x00,\x002\x00")
    with pytest.raises(ConfigError, match=r"own\.csv"):
        read_examples(tmp_path / "own.csv")


def test_grey_images_by_folder(tmp_path: Path) -> None:
    pixels = np.arange(20, dtype=np.uint8).reshape(4, 5) * 13
    png(tmp_path, "cat/1.png", pixels)
    png(tmp_path, "dog/2.PNG", 255 - pixels)
    folder = png(tmp_path, "dog/3.png", pixels.T.copy().reshape(4, 5))
    (folder / "dog/notes.txt").write_text("not an image")
    (folder / "readme.txt").write_text("not a class")
    examples = read_examples(folder)
    assert (examples.x.shape, examples.x.dtype) == ((3, 1, 4, 5), np.float32)
    assert examples.y.tolist() == [0, 1, 1]
    np.testing.assert_allclose(examples.x[0, 0], pixels / 255, atol=1e-6)
    np.testing.assert_allclose(examples.x[1, 0], 1 - pixels / 255, atol=1e-6)


def test_colour_images_are_channels_first(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    examples = read_examples(png(tmp_path, "a/1.png", pixels))
    np.testing.assert_allclose(examples.x, pixels.transpose(2, 0, 1)[None] / 255, atol=1e-6)


def test_sixteen_bit_images_keep_their_greys(tmp_path: Path) -> None:
    pixels = np.array([[0, 16_384], [32_768, 65_535]], np.uint16)
    examples = read_examples(png(tmp_path, "a/1.png", pixels))
    np.testing.assert_allclose(examples.x[0, 0], pixels / 65_535, atol=0.01)


def test_images_of_different_size_are_named(tmp_path: Path) -> None:
    png(tmp_path, "a/1.png", np.zeros((4, 4), np.uint8))
    folder = png(tmp_path, "b/2.png", np.zeros((4, 5), np.uint8))
    with pytest.raises(ConfigError, match=r"2\.png: has shape \(1, 4, 5\), the first image \(1, 4, 4\)"):
        read_examples(folder)


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_broken_image_is_named(tmp_path: Path, keep: int) -> None:
    folder = png(tmp_path, "a/1.png", np.random.default_rng(0).integers(0, 256, (12, 12), np.uint8))
    whole = (folder / "a/1.png").read_bytes()
    (folder / "a/2.png").write_bytes(whole[:keep])
    with pytest.raises(ConfigError, match=r"2\.png: cannot be read as an image"):
        read_examples(folder)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match=r"has no images; expected one sub-folder per class with .*\.png"):
        read_examples(tmp_path)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.csv': no such file or folder"):
        read_examples(tmp_path / "nothing.csv")


@pytest.mark.parametrize("name", ["own.txt", "own.npy", "own"])
def test_another_kind_of_file_is_refused_with_the_kinds_there_are(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("1,2\n")
    with pytest.raises(ConfigError, match=r"must be \.npz, \.csv or a folder"):
        read_examples(tmp_path / name)


def test_a_node_with_its_own_data_reads_that_whatever_the_server_names(tmp_path: Path) -> None:
    node = NodeConfig(data_path=str(csv(tmp_path, "1,0\n2,1\n")))
    examples = load_examples(node, DataConfig(name="npz", path="/nowhere"), 1)
    assert examples.x.tolist() == [[1], [2]]


def test_a_node_with_a_partition_reads_its_part_of_the_named_set() -> None:
    data = DataConfig(name="digits", clients=5)
    examples = load_examples(NodeConfig(partition=3, partitions=5), data, 1)
    expected = DIGITS.client_split(data, 1, 3)
    np.testing.assert_array_equal(examples.x, expected.x)
    np.testing.assert_array_equal(examples.y, expected.y)
    assert len(examples) > 0


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"partition-id": 2},
        {"num-partitions": 5},
        {"partition-id": 5, "num-partitions": 5},
        {"partition-id": -1, "num-partitions": 5},
        {"partition-id": "2", "num-partitions": 5},
        {"partition-id": True, "num-partitions": 5},
        {"partition-id": 2.0, "num-partitions": 5},
        {"data-path": "", "partition-id": 7, "num-partitions": 5},
    ],
)
def test_a_node_config_that_names_no_data_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="node config"):
        NodeConfig.from_node_config(values)


def test_a_node_config_is_read_by_flowers_names() -> None:
    values = {"data-path": "a.csv", "partition-id": 1, "num-partitions": 4, "model-entry": "m:f", "other": "ignored"}
    assert NodeConfig.from_node_config(values) == NodeConfig("a.csv", 1, 4, "m:f")
