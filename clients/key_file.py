"""A device's private key in a file that only its owner may read, made when it is first asked for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from edge_runtime.errors import ConfigError

MAX_KEY_BYTES = 8192


def read_key_file(path: Path, name: str, make: Callable[[Path], None]) -> bytes:
    """What is in the file; empty if that is too long for a key. `name` is the setting that errors name.

    Raises:
        ConfigError: others may read it, or it can't be read or made.

    """
    try:
        if not path.exists():
            make(path)
        descriptor = os.open(path, os.O_RDONLY)
        with os.fdopen(descriptor, "rb") as file:
            mode, content = os.fstat(descriptor).st_mode, file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror or error}") from error
    if mode & 0o077:
        raise ConfigError(f"{name}: others may read it; chmod 600 it")
    return content if len(content) <= MAX_KEY_BYTES else b""


def write_key_file(path: Path, content: bytes) -> bool:
    """Write it, for its owner alone, and say whether it was: of two processes that do so at once, one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile(dir=path.parent) as file:  # 0600
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(file.name, path)
        except FileExistsError:
            return False
    return True
