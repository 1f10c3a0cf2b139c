"""Who writes in a run directory: the holder of a lock that others can ask about without ever taking it.

An open file description lock (fcntl(2), F_OFD_SETLK). It belongs to the open file, as flock(2)'s does, and ends with
its process in whichever way; unlike that one it can be asked about. A reader that had to take the lock to see whether
it is free could, for that moment, keep a run from being resumed.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

# struct flock of Linux, with 64-bit offsets: type, whence, start, length (0: all of the file), process.
_FLOCK = "hhqqi4x"


def take(path: Path) -> int:
    """An open descriptor that holds the lock until it is closed.

    Raises:
        BlockingIOError: another has it.
        OSError: the file can't be made.

    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, PermissionError):  # POSIX lets a system say it either way
            raise BlockingIOError(error.errno, error.strerror) from None
        raise
    return descriptor


def held(path: Path) -> bool:
    """Whether a process has it now; False too where the file can't be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        asked = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        answer = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return bool(answer[0] != fcntl.F_UNLCK)
