r"""What passes between the two halves of a region: the node of the federation above, and the server of the one below.

Both run on one machine, as one user, and meet at a Unix socket that nobody else may open. A frame, little-endian:

    offset  bytes  field
    0       4      magic "HRG\x01", the last byte being the version
    4       4      length of the header, at most 4 MiB
    8       4      number of blobs, at most 2
    12      8 ea.  their lengths, each at most 8 GiB
    ...            the header: one JSON object; then the blobs

`Work` goes down, `Done` comes back, and the connection is closed. Nothing is allocated by a length that the other side
named: what has come is kept as it comes.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.config import Scalar
from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.updates import TensorLayout
from edge_runtime.updates.delta import FloatVector

MAGIC = b"HRG\x01"
MAX_HEADER, MAX_BLOBS, MAX_BLOB = 4 << 20, 2, 8 << 30
MAX_CLIENTS = 1_000_000
_START = struct.Struct("<4sII")
_PIECE = 1 << 20
KINDS = ("train", "evaluate")


@dataclass(frozen=True, slots=True)
class Work:
    """What the server above asks of this region: the task, the Program if the engine trains, and the model's values.

    `weights` has the shape (layout.size,); training moves the tensors named `moving`. The answer is awaited for
    `deadline_s` seconds.
    """

    kind: str
    task: Mapping[str, Scalar]
    program: bytes
    layout: TensorLayout
    moving: TensorLayout
    weights: FloatVector
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Done:
    """What the region makes of it: its devices' weighted mean, or why there is none, which is then `error`.

    `figures` has "num-examples", the weight of that mean, and what else was measured; `clients` answered well and
    `failed` did not. `delta` is empty for an evaluation.
    """

    figures: Mapping[str, float]
    delta: FloatVector
    clients: int = 0
    failed: int = 0
    error: str = ""


def send_work(connection: socket.socket, work: Work) -> None:
    header = {
        "kind": work.kind,
        "task": dict(work.task),
        "layout": _listed(work.layout),
        "moving": [name for name, _ in work.moving.shapes],
        "deadline_s": work.deadline_s,
    }
    _send(connection, header, [work.program, _bytes(work.weights)])


def receive_work(connection: socket.socket) -> Work:
    """PeerError for anything that `send_work` does not write."""
    header, blobs = _receive(connection)
    kind, task, deadline_s = header.get("kind"), header.get("task"), header.get("deadline_s")
    if kind not in KINDS or not isinstance(task, dict) or not isinstance(deadline_s, float) or not deadline_s > 0:
        raise PeerError("region: the work has no kind, task and deadline")
    if len(blobs) != 2:
        raise PeerError("region: the work brings no Program and weights")
    layout = _layout(header.get("layout"))
    moving = header.get("moving")
    if not isinstance(moving, list) or not set(map(str, moving)) <= {name for name, _ in layout.shapes}:
        raise PeerError("region: the work moves tensors that are none of the model's")
    weights = _floats(blobs[1], layout.size)
    return Work(kind, task, bytes(blobs[0]), layout, layout.subset(set(moving)), weights, deadline_s)


def send_done(connection: socket.socket, done: Done) -> None:
    header = {"figures": dict(done.figures), "clients": done.clients, "failed": done.failed, "error": done.error}
    _send(connection, header, [_bytes(done.delta)])


def receive_done(connection: socket.socket, size: int) -> Done:
    """The answer, whose delta has `size` values, or none; PeerError for anything that `send_done` does not write."""
    header, blobs = _receive(connection)
    figures, clients, failed = header.get("figures"), header.get("clients"), header.get("failed")
    if not isinstance(figures, dict) or not all(type(value) in (int, float) for value in figures.values()):
        raise PeerError("region: the answer has no figures")
    if not (
        type(clients) is int and type(failed) is int and 0 <= clients <= MAX_CLIENTS and 0 <= failed <= MAX_CLIENTS
    ):
        raise PeerError("region: the answer does not say how many clients it is of")
    if len(blobs) != 1:
        raise PeerError("region: the answer brings no delta")
    delta = _floats(blobs[0], size if blobs[0] else 0)
    return Done(figures, delta, int(str(clients)), int(str(failed)), str(header.get("error", "")))


def listen(path: Path) -> socket.socket:
    """A socket that this user alone may connect to. ConfigError if another process listens there, or none can be."""
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            if path.is_socket():  # one that a process which was killed has left behind
                _refuse_if_served(path)
                path.unlink()
            before = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            listener.listen(4)
        except OSError as error:
            raise ConfigError(f"region.socket = {str(path)!r}: cannot be listened at ({error})") from error
        undo.pop_all()
    return listener


def connect(path: Path, timeout_s: float) -> socket.socket:
    """PeerError if no server of the region listens there, or the socket is not this user's alone."""
    with contextlib.ExitStack() as undo:
        connection = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        connection.settimeout(timeout_s)
        try:
            found = path.stat()
            if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise PeerError(f"region: {path} is open to others than this user")
            connection.connect(str(path))
        except OSError as error:
            raise PeerError(f"region: no server listens at {path} ({error.strerror or error})") from error
        undo.pop_all()
    return connection


def is_own(connection: socket.socket) -> bool:
    """Whether the process at the other end belongs to this user."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(uid == os.getuid())


def _refuse_if_served(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise ConfigError(f"region.socket = {str(path)!r}: another process serves this region")


def _send(connection: socket.socket, header: Mapping[str, Any], blobs: Sequence[bytes | memoryview]) -> None:
    text = json.dumps(header, sort_keys=True, allow_nan=False).encode()
    if len(text) > MAX_HEADER:
        raise PeerError(f"region: a header of {len(text)} bytes is longer than {MAX_HEADER}")
    lengths = struct.pack(f"<{len(blobs)}Q", *map(len, blobs))
    for part in (_START.pack(MAGIC, len(text), len(blobs)), lengths, text, *blobs):
        connection.sendall(part)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[bytearray]]:
    magic, length, count = _START.unpack(_read(connection, _START.size))
    if magic != MAGIC or length > MAX_HEADER or count > MAX_BLOBS:
        raise PeerError("region: not a frame of this version")
    lengths = struct.unpack(f"<{count}Q", _read(connection, 8 * count))
    if any(nbytes > MAX_BLOB for nbytes in lengths):
        raise PeerError(f"region: a blob is longer than {MAX_BLOB} bytes")
    try:
        header = json.loads(_read(connection, length).decode())
    except (ValueError, RecursionError) as error:
        raise PeerError(f"region: the header is no JSON ({error})") from None
    if not isinstance(header, dict):
        raise PeerError("region: the header is no JSON object")
    return header, [_read(connection, nbytes) for nbytes in lengths]


def _read(connection: socket.socket, nbytes: int) -> bytearray:
    content = bytearray()
    while len(content) < nbytes:
        piece = connection.recv(min(_PIECE, nbytes - len(content)))
        if not piece:
            raise PeerError(f"region: the frame ends after {len(content)} of {nbytes} bytes")
        content += piece
    return content


def _listed(layout: TensorLayout) -> list[list[Any]]:
    return [[name, list(shape)] for name, shape in layout.shapes]


def _layout(listed: Any) -> TensorLayout:
    try:
        shapes = {str(name): tuple(int(axis) for axis in shape) for name, shape in listed}
    except (TypeError, ValueError):
        raise PeerError("region: the work has no tensors") from None
    if len(shapes) != len(listed) or any(axis < 0 for shape in shapes.values() for axis in shape):
        raise PeerError("region: the work's tensors are malformed")
    return TensorLayout(tuple(shapes.items()))


def _bytes(values: FloatVector) -> memoryview:
    return np.ascontiguousarray(values, "<f4").data.cast("B")


def _floats(content: bytearray, size: int) -> FloatVector:
    if len(content) != 4 * size:
        raise PeerError(f"region: {len(content)} bytes are not {size} float32 values")
    values: FloatVector = np.frombuffer(content, "<f4").astype(np.float32, copy=False)
    return values
