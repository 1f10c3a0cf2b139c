"""SHA-256 by the interpreter's own modules: `hashlib` maps OpenSSL into the process, 4 MB that a device never uses."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Protocol, cast


class Hash(Protocol):
    """What is used of a hash object."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """The digest so far, in lower-case hex."""


def new_sha256() -> Hash:
    """An empty one; OpenSSL's (eight times as fast) where the process has loaded that already."""
    # _sha2 since Python 3.12, _sha256 before it; some distributions build neither.
    names = ("hashlib",) if "_hashlib" in sys.modules else ("_sha2", "_sha256", "hashlib")
    for name in names:
        try:
            return cast(Hash, importlib.import_module(name).sha256())
        except ImportError:
            continue
    raise ImportError("this Python has no SHA-256")


def sha256_hex(*chunks: bytes | memoryview) -> str:
    """The digest of the chunks, one after another."""
    return sha256_of(chunks)


def sha256_of(chunks: Iterable[bytes | memoryview]) -> str:
    """The digest of the chunks, one after another."""
    digest = new_sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
