"""What a client keeps from one message to the next: the model version it holds, and what its codec has not yet sent.

And the layers that are its own, and its control variate (`ClientState`); and which secure rounds it was in (`Claims`),
of which itself nothing is kept here (see `secure.py`).

With `state-path` in the node config it is a few files a run, which only their owner may read, and survives a restart of
the process; else it is in Flower's `Context.state` (`records.ContextStore`), which lives as long as the node's process.
What cannot be read back, or belongs to a model of other tensors, is no state: the server then sends the whole model,
and the residual starts from zero.

A run has two names. A `ClientState` goes by the key that its tasks bring, which outlives the server: a run whose
server died goes on under another Flower run, and finds here what its clients kept. `Claims` go by Flower's own id: a
round that is played again after that may be entered again, and within one Flower run never.

The attempt at a round that was lost with the server counts for nothing, and the round is played again:

    personal layers   go on from what they were before the round
    control variate   goes on from the last round that the server counts
    residual          of who had answered the lost attempt is dropped: nothing is sent twice, something may be lost
    anchor            is of some version; the server sends the whole model, or is told that its deltas do not fit

Whoever knows a run's key can have a node go on with that run's state from another run of theirs: see the leftovers of
its updates in an update, have its personal layers trained on, and overwrite all of it. None of it says more than that
run's own messages did or could have. So a key is drawn at random and told to the run's own clients alone; a Flower run
has one key (`records.open_state`), so that nobody can push out others' states by making up keys; and `KEPT_RUNS` bounds
what the disk holds.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Sequence
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
_LOG = logging.getLogger(__name__)
_FLOAT32 = make_codec("float32")
_CONTROL = ("control-a", "control-b")
_PERSONAL = ("personal-a", "personal-b")
_Slots = dict[int, tuple[str, FloatVector]]  # name and values, by their rounds


class Store(Protocol):
    """Named byte strings of one node in one run."""

    @property
    def lasts(self) -> bool:
        """Whether it is found again by a run that goes on under another Flower run."""

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

    @property
    def lasts(self) -> bool:
        """Whether it is found again by a run that goes on under another Flower run."""
        return self._store.lasts

    def personal(self, layout: TensorLayout, round_number: int) -> FloatVector | None:
        """The values of this node's own layers before this round, of shape (layout.size,); None before it has any.

        Two are kept: a round that was lost with its server is played again, from what they were before it. Older ones
        are gone; where only later ones are left, those of the earlier round are given.
        """
        found = self._slots(_PERSONAL, layout)
        at = _before(found, round_number)
        return None if at is None else found[at][1]

    def keep_personal(self, layout: TensorLayout, round_number: int, values: FloatVector) -> None:
        """Keep them as this round leaves them, beside those of before it."""
        found = self._slots(_PERSONAL, layout)
        self._write_beside(_PERSONAL, found, _before(found, round_number), layout, round_number, values)

    def control(self, layout: TensorLayout, counted: int) -> FloatVector:
        """SCAFFOLD's c_i, of shape (layout.size,), as after `counted`: the last round of this node's that counts.

        Two are kept: whether an answer counts is not known before the next message. Zeros if none counts, or if the
        one that does is lost.
        """
        found = self._slots(_CONTROL, layout).get(counted)
        if found is None and counted:
            _LOG.warning("this node's control variate of round %s is lost, it goes on from zero", counted)
        return np.zeros(layout.size, np.float32) if found is None or not counted else found[1]

    def keep_control(self, layout: TensorLayout, counted: int, round_number: int, values: FloatVector) -> None:
        """Keep c_i as this round leaves it, beside that of `counted`."""
        self._write_beside(_CONTROL, self._slots(_CONTROL, layout), counted, layout, round_number, values)

    def _slots(self, names: Sequence[str], layout: TensorLayout) -> _Slots:
        """What stands under these names."""
        found = {name: self._read(name, layout) for name in names}
        return {one[1]: (name, one[2]) for name, one in found.items() if one is not None}

    def _write_beside(
        self,
        names: Sequence[str],
        found: _Slots,
        spared: int | None,
        layout: TensorLayout,
        round_number: int,
        values: FloatVector,
    ) -> None:
        """Write under one of these names, but not over what is of the round `spared`."""
        held = found.get(spared) if spared is not None else None
        name = next(one for one in names if held is None or one != held[0])
        self._write(name, layout, bytes(ID_BYTES), round_number, values)

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


class Claims:
    """Which secure rounds, and which steps of them, this node has answered in one Flower run."""

    def __init__(self, store: Store) -> None:
        self._store = store

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


class FileStore:
    """A folder of this run in the node's `state-path`, which must be that node's alone.

    `kind` is what it is for; of each kind the newest few stay.
    """

    lasts = True

    def __init__(self, state_path: Path, run: int, kind: str = "run") -> None:
        self._kind, self._folder = kind, state_path / f"{kind}-{run % 2**64:016x}"

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
        of_kind = re.compile(rf"{self._kind}-[0-9a-f]{{16}}")
        runs = [path for path in self._folder.parent.iterdir() if of_kind.fullmatch(path.name)]
        for old in sorted(runs, key=lambda path: path.stat().st_mtime)[:-KEPT_RUNS]:
            shutil.rmtree(old)


def _before(found: _Slots, round_number: int) -> int | None:
    """Of the rounds there are, the last one before this; the first if there is none before."""
    return max((one for one in found if one < round_number), default=min(found, default=None))


def _checksum(body: bytes | memoryview) -> bytes:
    return hashlib.sha256(body).digest()[:CHECKSUM_BYTES]
