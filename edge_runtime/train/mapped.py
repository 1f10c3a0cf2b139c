"""Examples that stay in .npy files: any rows can be read, and only the batch at hand is in memory."""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edge_runtime.errors import ConfigError
from edge_runtime.train.batches import Array, Batch, Index

MAX_DIMENSIONS = 32


class MappedExamples:
    """The rows of `x.npy` with those of one or more target files; `Rows` for `Batches`, and never in memory whole.

    A .npz archive cannot be mapped: its members have to be unpacked into .npy files once.

    Raises:
        ConfigError: a file that is no .npy file of plain numbers in C order, is cut short, or has another row count.

    """

    def __init__(self, x_path: str | os.PathLike[str], *y_paths: str | os.PathLike[str]) -> None:
        if not y_paths:
            raise ConfigError(f"{os.fspath(x_path)}: a file of targets is needed beside it")
        self._columns = [_Column.open(Path(path)) for path in (x_path, *y_paths)]
        for path, column in zip(y_paths, self._columns[1:], strict=True):
            if len(column.rows) != len(self):
                raise ConfigError(f"{os.fspath(path)} has {len(column.rows)} rows, the inputs have {len(self)}")

    def __len__(self) -> int:
        return len(self._columns[0].rows)

    def take(self, index: Index) -> Batch:
        x, *y = [column.take(index) for column in self._columns]
        return x, (y[0] if len(y) == 1 else tuple(y))


@dataclass(frozen=True, slots=True)
class _Column:
    """One mapped file; `rows` reads it in place."""

    pages: mmap.mmap | None
    rows: Array

    @staticmethod
    def open(path: Path) -> _Column:
        if path.suffix == ".npz":
            raise ConfigError(f"{path}: an .npz archive cannot be mapped; save each of its arrays as a .npy file")
        with path.open("rb") as file:
            try:
                shape, fortran, dtype = _header(file)
            except (ValueError, EOFError, SyntaxError) as error:
                raise ConfigError(f"{path} is no .npy file: {str(error).splitlines()[0]}") from None
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
            if fortran or dtype.hasobject or not 0 < len(shape) <= MAX_DIMENSIONS or min(shape) < 0:
                raise ConfigError(
                    f"{path}: only arrays of numbers with rows, in C order, can be mapped; save it as one"
                )
            if offset + math.prod(shape) * dtype.itemsize > size:
                raise ConfigError(f"{path} is cut short: {size} bytes, its header promises {shape} of {dtype}")
            if not math.prod(shape):
                return _Column(None, np.empty(shape, dtype))
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        flat = np.frombuffer(pages, dtype, math.prod(shape), offset)
        return _Column(pages, flat.reshape(shape))

    def take(self, index: Index) -> Array:
        taken = np.array(self.rows[index], self.rows.dtype.newbyteorder("="), copy=isinstance(index, slice) or None)
        # Pages that were read stay mapped, and count as this process's, until the kernel is short of memory; a device
        # with a memory limit has to give them back itself.
        if self.pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.pages.madvise(mmap.MADV_DONTNEED)
        return taken


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Shape, order and dtype of a .npy file, which is left at its first value."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"version {version} is not of plain numbers")
