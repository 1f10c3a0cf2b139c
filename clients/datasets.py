"""A client's own examples: from a local file or folder, or its part of a simulated split.

Formats: `.npz` with arrays `x` and `y`; `.csv` with one example per row, numbers only, the class in the last column;
a folder with one sub-folder of images per class. Bad files give one line that says which row or file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clients.config import NodeConfig
from edge_runtime import plugins
from edge_runtime.errors import ConfigError, MissingPackageError
from edge_runtime.train.batches import Examples
from edge_runtime.train.config import DATASETS, DataConfig
from edge_runtime.train.sources import DataSource
from edge_runtime.train.splits import hold_out

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png"})


def load_examples(node: NodeConfig, data: DataConfig, seed: int) -> Examples:
    """The examples this node trains on.

    Only a node that was given a partition reads a data set the server names, and never from a path the server names.
    """
    if node.data_path:
        return read_examples(Path(node.data_path))
    source: DataSource = plugins.load(DATASETS, data.name)
    return source.client_split(dataclasses.replace(data, path=node.dataset_path), seed, node.partition)


def held_out(examples: Examples, share: float, rng: np.random.Generator) -> tuple[Examples, Examples]:
    """(training examples, held-out ones): a share of each class; of a single example, or at a share of 0, none."""
    if not share or len(examples) < 2:
        return examples, examples.rows(slice(0))
    classes = examples.y.ndim == 1 and np.issubdtype(examples.y.dtype, np.integer)
    train, held = hold_out(len(examples), share, rng, examples.y.astype(np.int64) if classes else None)
    return examples.rows(np.sort(train)), examples.rows(np.sort(held))


def read_examples(path: Path) -> Examples:
    """Read a `.npz`, a `.csv` or a folder of images.

    Returns:
        x float32 (or integer, from .npz) of shape (N, ...), y int64 or float32 of shape (N, ...).

    Raises:
        ConfigError: the path is not there, not one of these formats, or holds bad rows.

    """
    if path.is_dir():
        return _read_images(path)
    if not path.is_file():
        raise ConfigError(f"data path {str(path)!r}: no such file or folder")
    match path.suffix:
        case ".npz":
            return _read_npz(path)
        case ".csv":
            return _read_csv(path)
        case _:
            raise ConfigError(f"data path {str(path)!r}: must be .npz, .csv or a folder with a sub-folder per class")


def _read_npz(path: Path) -> Examples:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    except Exception as error:  # a damaged archive fails in zipfile, zlib, tokenize and NumPy, each in its own way
        raise ConfigError(f"{path}: must be an .npz with plain arrays x and y ({error})") from error
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or not len(x):
        raise ConfigError(
            f"{path}: x has shape {x.shape} and y {y.shape}; both need the same number of rows, at least 1"
        )
    return Examples(_as_input(x, path), _as_target(y, path))


def _read_csv(path: Path) -> Examples:
    try:
        text = path.read_text("utf-8-sig")  # spreadsheets put a byte order mark first
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error})") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if lines and not _numbers(lines[0][1]):
        lines = lines[1:]  # a header
    rows: list[list[float]] = []
    for number, line in lines:
        row = _numbers(line)
        if not row or (rows and len(row) != len(rows[0])) or not _fits_float32(np.array(row)):
            wanted = len(rows[0]) if rows else "at least 2"
            raise ConfigError(f"{path}, line {number}: must be {wanted} finite numbers that fit float32")
        rows.append(row)
    table = np.array(rows, np.float64)
    if table.ndim != 2 or table.shape[1] < 2:
        raise ConfigError(f"{path}: must have rows of at least 2 numbers, the class in the last column")
    return Examples(table[:, :-1].astype(np.float32), _as_target(table[:, -1], path))


def _numbers(line: str) -> list[float]:
    """The row's numbers; empty if a field is not a number."""
    try:
        return [float(text) for text in line.split(",")]
    except ValueError:
        return []


def _read_images(folder: Path) -> Examples:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingPackageError("reading image folders needs Pillow: pip install pillow") from error
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    files = [
        (label, file)
        for label, name in enumerate(classes)
        for file in sorted((folder / name).iterdir())
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise ConfigError(
            f"{folder}: has no images; expected one sub-folder per class with {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    images = []
    for _, file in files:
        try:
            with Image.open(file) as image:
                pixels = _pixels(image)
        except (OSError, UnidentifiedImageError) as error:
            raise ConfigError(f"{file}: cannot be read as an image ({error})") from error
        images.append(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
        if images[-1].shape != images[0].shape:
            raise ConfigError(
                f"{file}: has shape {images[-1].shape}, the first image {images[0].shape}; make them equal"
            )
    labels = np.array([label for label, _ in files], np.int64)
    return Examples(np.stack(images), labels)


def _pixels(image: Image.Image) -> NDArray[np.float32]:
    """Grey (H, W) or colour (H, W, 3) in 0..1."""
    if image.mode.startswith("I;16"):
        return (np.asarray(image) / 65535).astype(np.float32)
    pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    return (pixels / 255).astype(np.float32)


def _as_input(x: NDArray[Any], path: Path) -> NDArray[np.generic]:
    if np.issubdtype(x.dtype, np.integer):
        return x.astype(np.int64)
    if not np.issubdtype(x.dtype, np.floating) or not _fits_float32(x):
        raise ConfigError(f"{path}: x must hold finite numbers that fit float32, found dtype {x.dtype} or such a value")
    return x.astype(np.float32)


def _as_target(y: NDArray[Any], path: Path) -> NDArray[np.generic]:
    """Whole numbers become int64 classes, other finite numbers float32 targets."""
    real = np.issubdtype(y.dtype, np.integer) or np.issubdtype(y.dtype, np.floating)
    if not real or not _fits_float32(y):
        raise ConfigError(
            f"{path}: targets must be finite numbers that fit float32, found dtype {y.dtype} or such a value"
        )
    whole = np.issubdtype(y.dtype, np.integer) or ((np.abs(y) < 2**53).all() and (y == np.rint(y)).all())
    return y.astype(np.int64 if whole else np.float32)


def _fits_float32(values: NDArray[Any]) -> bool:
    """Neither NaN nor beyond float32's range."""
    return bool((np.abs(values) <= np.finfo(np.float32).max).all())
