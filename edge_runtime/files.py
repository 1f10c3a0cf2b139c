"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], chunks: Iterable[bytes | memoryview], *, mode: int = 0o666) -> None:
    """Write a file beside `path`, force it to the disk, and put it in the place of `path` in one move.

    `mode` is the new file's, less what the process's umask takes away.
    """
    path = Path(path)
    # One writer a process; another process's half-written file is not ours to overwrite.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.unlink(missing_ok=True)
        # In a folder where others may write, a file or link that waits under this name would be theirs to read.
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # without it the move itself may be lost with the power
    finally:
        os.close(folder)
