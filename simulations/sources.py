"""Finding the files that data packages ship, without importing those packages."""

from __future__ import annotations

import gzip
import importlib.util
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError, MissingPackageError


def package_file(package: str, inside: str, install: str) -> Path:
    """A file or folder inside an installed package; if it is not there, MissingPackageError says how to install it."""
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(root) / inside).exists():
            return path
    raise MissingPackageError(f"this data set is in the package {package}, which is not installed: {install}")


def read_csv_gz(path: Path) -> NDArray[np.uint8]:
    """Numbers from 0 to 255 separated by commas, gzipped."""
    with gzip.open(path) as lines:
        return np.loadtxt(lines, delimiter=",", dtype=np.uint8)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of bytes, gzipped or not: 0, 0, type 8, number of dimensions, each as big-endian uint32, data."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    if raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ConfigError(f"{path}: is not an IDX file of bytes")
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3]))
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape))
    if data.size != math.prod(shape):
        raise ConfigError(f"{path}: says shape {shape} but holds {data.size} bytes")
    return data.reshape(shape)
