"""Writing what must still be there after the power went, with errors that say which file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TypeVar

from edge_runtime.errors import ArtefactError

T = TypeVar("T")


def remove(folder: Path) -> None:
    """A folder, if it is there; what cannot be removed now is tried again with the next install."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def write_file(path: Path, chunks: Iterable[bytes]) -> None:
    """Write and force to the disk. What fails is told apart: the source's errors come through, the disk's are ours."""
    with attempt("made", path, lambda: path.open("xb", buffering=0)) as file:
        for chunk in chunks:
            attempt("written", path, partial(_write_all, file, chunk))
        attempt("written", path, lambda: os.fsync(file.fileno()))


def _write_all(file: FileIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk: without it a rename may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def attempt(what: str, path: Path, step: Callable[[], T]) -> T:
    """Take a step on the disk.

    Raises:
        ArtefactError: it failed; says what could not be done to `path`.

    """
    try:
        return step()
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be {what} ({error.strerror})") from error
