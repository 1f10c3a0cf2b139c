"""What a client keeps from one message to the next: the model version it holds, and what its codec has not yet sent.

And the layers that are its own, its control variate, and which secure rounds it was in; of such a round itself nothing
is kept here (see `secure.py`).

With `state-path` in the node config it is a few files a run, which only their owner may read, and survives a restart of
the process; else it is in Flower's `Context.state` (`records.ContextStore`), which lives as long as the node's process.
What cannot be read back, or belongs to a model of other tensors, is no state: the server then sends the whole model,
and the residual starts from zero.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Protocol

import numpy as np

from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.files import write_atomically
from edge_runtime.updates import TensorLayout, make_codec, wire
from edge_runtime.updates.delta import FloatVector
from edge_runtime.updates.versions import ID_BYTES

KEPT_RUNS = 4  # folders of runs that stay, the newest among them; the oldest goes when a new run comes
CHECKSUM_BYTES = 16
MAX_HEAD_BYTES = 128  # more than checksum, id and a payload's header take
_ROUND_BYTES = 4
_RUN_FOLDER = re.compile(r"run-[0-9a-f]{16}")
_LOG = logging.getLogger(__name__)
_FLOAT32 = make_codec("float32")
_SLOTS = ("control-a", "control-b")


class Store(Protocol):
    """Named byte strings of one node in one run."""

    def read(self, name: str, most: int) -> bytes | None:
        """What was written last, None if nothing was; at most `most` + 1 bytes of it."""

    def write(self, name: str, content: bytes) -> None: ...

    def claim(self, round_number: int, step: str) -> bool:
        """Whether this step of the round is not yet claimed, nor any of a later round.

        Of two that ask at once one is told so, if any. Earlier rounds are forgotten. A store that only one message at a
        time can reach need not remember any.
        """


class ClientState:
    """Checked access to a `Store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def anchor(self, layout: TensorLayout) -> tuple[bytes, FloatVector] | None:
        """Id and values of the model version that this node holds."""
        found = self._read("anchor", layout)
        return None if found is None else (found[0], found[2])

    def keep_anchor(self, layout: TensorLayout, model_id: bytes, values: FloatVector) -> None:
        self._write("anchor", layout, model_id, 0, values)

    def residual(self, layout: TensorLayout, round_number: int) -> FloatVector | None:
        """What updates before this round have left unsent, of shape (layout.size,).

        None if an update of this round, or of a later one, was made before.
        """
        found = self._read("residual", layout)
        if found is None:
            return np.zeros(layout.size, np.float32)
        return found[2] if found[1] < round_number else None

    def keep_residual(self, layout: TensorLayout, round_number: int, values: FloatVector) -> None:
        self._write("residual", layout, bytes(ID_BYTES), round_number, values)

    def personal(self, layout: TensorLayout) -> FloatVector | None:
        """The values of this node's own layers, of shape (layout.size,); None before it has any."""
        found = self._read("personal", layout)
        return None if found is None else found[2]

    def keep_personal(self, layout: TensorLayout, round_number: int, values: FloatVector) -> None:
        self._write("personal", layout, bytes(ID_BYTES), round_number, values)

    def control(self, layout: TensorLayout, counted: int) -> FloatVector:
        """SCAFFOLD's c_i, of shape (layout.size,), as after `counted`: the last round of this node's that counts.

        Two are kept: whether an answer counts is not known before the next message. Zeros if none counts, or if the
        one that does is lost.
        """
        found = self._slots(layout).get(counted)
        if found is None and counted:
            _LOG.warning("this node's control variate of round %s is lost, it goes on from zero", counted)
        return np.zeros(layout.size, np.float32) if found is None or not counted else found[1]

    def keep_control(self, layout: TensorLayout, counted: int, round_number: int, values: FloatVector) -> None:
        """Keep c_i as this round leaves it, beside that of `counted`."""
        held = self._slots(layout).get(counted)
        name = next(one for one in _SLOTS if held is None or one != held[0])
        self._write(name, layout, bytes(ID_BYTES), round_number, values)

    def _slots(self, layout: TensorLayout) -> dict[int, tuple[str, FloatVector]]:
        """Name and values of the control variates that are here, by their rounds."""
        found = {name: self._read(name, layout) for name in _SLOTS}
        return {one[1]: (name, one[2]) for name, one in found.items() if one is not None}

    def enter(self, round_number: int) -> bool:
        """Whether neither this secure round nor a later one was entered before; from now on it was."""
        last = self._store.read("secure-round", _ROUND_BYTES)
        if last is not None and (len(last) != _ROUND_BYTES or round_number <= int.from_bytes(last, "little")):
            return False
        if not self.once(round_number, "enter"):
            return False
        self._store.write("secure-round", round_number.to_bytes(_ROUND_BYTES, "little"))
        return True

    def once(self, round_number: int, step: str) -> bool:
        """Whether this step of a secure round is not yet taken; from now on it is."""
        return self._store.claim(round_number, step)

    def _write(self, name: str, layout: TensorLayout, key: bytes, round_number: int, values: FloatVector) -> None:
        body = key + _FLOAT32.encode_vector(values, layout, round_number=round_number)
        self._store.write(name, _checksum(body) + body)

    def _read(self, name: str, layout: TensorLayout) -> tuple[bytes, int, FloatVector] | None:
        """Key, round and values; None if there is nothing that can be used, with a line in the log if that is odd."""
        most = MAX_HEAD_BYTES + 4 * layout.size
        try:
            content = self._store.read(name, most)
            if content is None:
                return None
            head, body = content[:CHECKSUM_BYTES], memoryview(content)[CHECKSUM_BYTES:]
            if len(content) > most or head != _checksum(body):
                raise PeerError("it is damaged, or of a larger model")
            key, payload = bytes(body[:ID_BYTES]), body[ID_BYTES:]
            return key, wire.unpack(payload).round, _FLOAT32.decode_vector(payload, layout)
        except (OSError, PeerError) as error:
            _LOG.warning("this node's %s cannot be used, it goes on without: %s", name, error)
            return None


class FileStore:
    """A folder of this run in the node's `state-path`, which must be that node's alone."""

    def __init__(self, state_path: Path, run_id: int) -> None:
        self._folder = state_path / f"run-{run_id % 2**64:016x}"

    def read(self, name: str, most: int) -> bytes | None:
        try:
            descriptor = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            return file.read(most + 1)

    def write(self, name: str, content: bytes) -> None:
        try:
            if not self._folder.is_dir():
                self._start()
            for left in self._folder.glob(f".{name}.*.part"):
                left.unlink()  # of a process that was killed while it wrote
            write_atomically(self._folder / name, [content], mode=0o600)
        except OSError as error:
            raise ConfigError(f"node config: state-path: {self._folder / name}: cannot be written ({error})") from error

    def claim(self, round_number: int, step: str) -> bool:
        try:
            if not self._folder.is_dir():
                self._start()
            claimed = self._folder / f"round-{round_number}.{step}"
            os.close(os.open(claimed, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            rounds = {path: int(path.stem.removeprefix("round-")) for path in self._folder.glob("round-*.*")}
            for old in (path for path, number in rounds.items() if number < round_number):
                old.unlink(missing_ok=True)
            # looked at last: whoever forgot what was claimed of this round had claimed a later one before
            return max(rounds.values(), default=-1) == round_number
        except FileExistsError:
            return False
        except OSError as error:
            raise ConfigError(f"node config: state-path: {self._folder}: cannot be written ({error})") from error

    def _start(self) -> None:
        """Make this run's folder in place of the oldest one."""
        self._folder.mkdir(mode=0o700, parents=True)
        runs = [path for path in self._folder.parent.iterdir() if _RUN_FOLDER.fullmatch(path.name)]
        for old in sorted(runs, key=lambda path: path.stat().st_mtime)[:-KEPT_RUNS]:
            shutil.rmtree(old)


def _checksum(body: bytes | memoryview) -> bytes:
    return hashlib.sha256(body).digest()[:CHECKSUM_BYTES]
