"""What a roll-out says on the wire: the questions a device is asked, its report, and the files of an offer as one blob.

A blob is safetensors with one array of bytes for each file. It is believed in nothing but its form: what the files are
worth, their signatures say (`trust`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.trust.digest import sha256_hex
from edge_runtime.deploy.trust.tensors import read_tensors, write_tensors
from edge_runtime.deploy.trust.verify import CHUNK_BYTES
from edge_runtime.errors import ArtefactError, PeerError

RECORD = "artefact"  # the name of both records, and of the array of an offer
RUNNING = "artefact-version"  # in the figures of a train reply: the version that the device runs
STYPE = "hedgerow.artefact.v1"
SUFFIXES: Mapping[str, str] = {"onnx": ".onnx", "tflite": ".tflite", "engine": ".hedgerow"}  # format -> of its files
MAX_VERSION = 2**53
MAX_REASON = 500


class Ask(Enum):
    """What a message asks of a device, in its field `ask`."""

    STATE = "state"  # what do you run, and what would you take?
    INSTALL = "install"  # take these files
    CHECK = "check"  # is what you run still whole?
    ROLL_BACK = "roll back"  # if you run `version`, run the one before it


@dataclass(frozen=True, slots=True)
class Report:
    """A device's answer to any of them.

    `version` is the one that it runs (0 for none), `digest` of that one's manifest, `floor` the highest that it ever
    switched to. `formats` are those that it has a runtime for; none where it takes no roll-outs. `reason` says why
    something was not done. Of an install also how far its answers were from the golden ones, and one row's latency.
    """

    version: int = 0
    digest: str = ""
    floor: int = 0
    formats: tuple[str, ...] = ()
    max_bytes: int = 0
    reason: str = ""
    difference: float = 0.0
    latency_s: float = 0.0

    def record(self) -> dict[str, Any]:
        """As fields of a Flower ConfigRecord."""
        return asdict(self) | {"formats": ",".join(self.formats), "reason": self.reason[:MAX_REASON]}


def parse_report(record: Mapping[str, object]) -> Report:
    """Read `Report.record`'s fields.

    Raises:
        PeerError: one is missing, of another type, or out of range.

    """
    read: dict[str, Any] = {}
    for field in fields(Report):
        value = record.get(field.name)
        if not _READ[str(field.type)](value):
            said = str(value if isinstance(value, int | float) else type(value).__name__)  # not a text of its megabytes
            raise PeerError(f"report: {field.name} = {said[:80]} is no {field.type}")
        read[field.name] = value
    names = tuple(name for name in read["formats"].split(",") if name in SUFFIXES)
    return Report(**read | {"formats": names})


# By a field's type. A count is a version, or bytes; a figure is seconds, or a difference of outputs.
_READ = {
    "int": lambda value: type(value) is int and 0 <= value <= MAX_VERSION,
    "float": lambda value: type(value) is float and math.isfinite(value) and value >= 0,
    "str": lambda value: type(value) is str and len(value) <= MAX_REASON,
    "tuple[str, ...]": lambda value: type(value) is str and len(value) <= 100,
}


def manifest_digest(manifest: bytes) -> str:
    """What tells two releases of one version apart."""
    return sha256_hex(manifest)[:32]


def pack_files(files: Mapping[str, bytes]) -> bytes:
    """The blob of these files, by name."""
    return write_tensors({name: np.frombuffer(content, np.uint8) for name, content in files.items()})


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a blob. `chunks` is what `Slots.install` takes."""

    arrays: Mapping[str, NDArray[np.generic]]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that it brings."""
        return tuple(self.arrays)

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's content; ArtefactError if there is none of that name."""
        array = self.arrays.get(name)
        if array is None or array.dtype != np.uint8 or array.ndim != 1:
            raise ArtefactError(f"the offer brings no {name}")
        for first in range(0, array.size, CHUNK_BYTES):
            yield array[first : first + CHUNK_BYTES].tobytes()


def unpack_files(blob: bytes) -> Files:
    """The files of a blob.

    Raises:
        ArtefactError: it is malformed.

    """
    return Files(read_tensors(blob, "the offer"))
