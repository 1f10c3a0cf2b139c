"""Pickled objects between two processes over a pair of pipes, their large `bytes` beside the pickle and uncopied."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pickle
import struct
from collections import OrderedDict
from typing import Any

LARGE = 16 << 10  # bytes objects from this size on travel beside the pickle
# What a sender can leave in a pipe without waiting for the reader; as much as an ordinary process may ask for.
PIPE_BYTES = 1 << 20
HEADER = struct.Struct("<QQ")  # bytes of the pickle, number of blobs


class Channel:
    """One end of a pair of pipes. Both ends trust each other: what is received is unpickled.

    Args:
        read_fd: a pipe's reading end, owned from here on.
        write_fd: another pipe's writing end, likewise.
        remembered: how many of the blobs sent last the other end keeps, which has been told the same number as its
            `remembers`: the same object (by identity) is not sent twice.
        remembers: as the other end's `remembered`.

    """

    def __init__(self, read_fd: int, write_fd: int, *, remembered: int = 0, remembers: int = 0) -> None:
        self._read, self._write = read_fd, write_fd
        self._sent = _Recent(remembered)
        self._received = _Recent(remembers)
        # Not Linux, or the user's pipes hold much already: a small pipe is only slower.
        with contextlib.suppress(AttributeError, OSError):
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def fileno(self) -> int:
        """What to wait on for something to receive."""
        return self._read

    def close(self) -> None:
        for fd in (self._read, self._write):
            if fd >= 0:
                os.close(fd)
        self._read = self._write = -1

    def send(self, message: object) -> None:
        """Raises OSError if the other end is gone."""
        buffer = io.BytesIO()
        blobs: list[bytes] = []
        pickler = _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.blobs, pickler.sent = blobs, self._sent
        pickler.dump(message)
        head = buffer.getbuffer()
        self._write_all(HEADER.pack(len(head), len(blobs)))
        self._write_all(head)
        for blob in blobs:
            self._write_all(struct.pack("<Q", len(blob)))
            self._write_all(blob)

    def receive(self) -> Any:
        """Raises EOFError if the other end is gone."""
        nbytes, count = HEADER.unpack(self._read_all(HEADER.size))
        head = io.BytesIO(self._read_all(nbytes))
        blobs = [self._read_all(struct.unpack("<Q", self._read_all(8))[0]) for _ in range(count)]
        unpickler = _Unpickler(head)
        unpickler.blobs, unpickler.received = iter(blobs), self._received
        return unpickler.load()

    def _write_all(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._write, rest) :]

    def _read_all(self, nbytes: int) -> bytes:
        data = os.read(self._read, nbytes) if nbytes else b""
        if len(data) == nbytes:
            return data  # the usual case: all of it was in the pipe, and is copied once
        parts = [data]
        while nbytes := nbytes - len(parts[-1]):
            if not parts[-1]:
                raise EOFError("the other end has closed its pipe")
            parts.append(os.read(self._read, nbytes))
        return b"".join(parts)


class _Recent:
    """The blobs that were used last, by the number they were first sent under; both ends drop the same ones."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._next = 0
        self._blobs: OrderedDict[int, bytes] = OrderedDict()

    def number_of(self, blob: bytes) -> int | None:
        return next((number for number, known in self._blobs.items() if known is blob), None)

    def add(self, blob: bytes) -> None:
        self._blobs[self._next] = blob
        self._next += 1
        while len(self._blobs) > self.most:
            self._blobs.popitem(last=False)

    def use(self, number: int) -> bytes:
        self._blobs.move_to_end(number)
        return self._blobs[number]


class _Pickler(pickle.Pickler):
    blobs: list[bytes]
    sent: _Recent

    def persistent_id(self, obj: Any) -> int | str | None:
        if type(obj) is not bytes or len(obj) < LARGE:
            return None
        number = self.sent.number_of(obj)
        if number is not None:
            self.sent.use(number)
            return number
        self.blobs.append(obj)
        self.sent.add(obj)
        return "new"


class _Unpickler(pickle.Unpickler):
    blobs: Any
    received: _Recent

    def persistent_load(self, pid: Any) -> bytes:
        if pid != "new":
            return self.received.use(pid)
        blob: bytes = next(self.blobs)
        self.received.add(blob)
        return blob
