"""What `manifest.json` says about an artefact, and the one way to write it down.

    {"schema": 2, "name": "digits", "version": 7, "created": 1790000000, "expires": 1800000000, "previous": 6,
     "files": {"model_int8.onnx": {"format": "onnx_int8", "bytes": 8123, "sha256": "..."}, "golden.safetensors": ...},
     "input": {"name": "input", "dtype": "f32", "shape": [-1, 1, 8, 8], "low": 0.0, "high": 1.0}, "output": {...},
     "golden": {"file": "golden.safetensors", "tolerance": {"model_int8.onnx": 0.4}},
     "minimum": {"hedgerow": "0.1.0", "onnx": "1.20"}, "metrics": {"accuracy": 0.97}}

Canonical JSON: sorted keys, no spaces, ASCII, no NaN, no key twice. Equal manifests are equal bytes, and a signature is
over those bytes. Other keys may stand beside these; they are kept, signed and not interpreted.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from edge_runtime.errors import ArtefactError

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 32
SCHEMA = 2
# A plain name: it can lead out of no folder, and hides nothing.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_VERSION = re.compile(r"\d{1,6}(\.\d{1,6}){0,3}\Z")
_LARGEST = 2**53  # what every JSON reader holds exactly

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One listed file. `format` is "onnx_int8", "tflite_fp32", "golden", ...; `sha256` is lower-case hex."""

    format: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Contract:
    """An input or output. -1 stands for a batch of any size; the ends of the range where they are known."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Golden:
    """Which file holds the golden vectors, and by how much each model's answers may differ from them."""

    file: str
    tolerance: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest whose every field was checked. Times are seconds since 1970; `fields` is all of it, as it stands."""

    name: str
    version: int
    created: int
    files: Mapping[str, FileEntry]
    expires: int | None
    previous: int | None
    input: Contract | None
    output: Contract | None
    golden: Golden | None
    minimum: Mapping[str, str]
    metrics: Mapping[str, float]
    fields: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        """The listed files together."""
        return sum(entry.nbytes for entry in self.files.values())

    def models(self, suffix: str) -> list[str]:
        """The files of that suffix that have golden vectors."""
        tolerance = self.golden.tolerance if self.golden else {}
        return [name for name in self.files if name.endswith(suffix) and name in tolerance]


def canonical(value: Any) -> bytes:
    """The one text of a JSON value.

    Raises:
        ValueError: it holds NaN or infinity, or is nested too deep.

    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(f"cannot be written as JSON: {error}") from error


def load_canonical(content: bytes, what: str) -> dict[str, Any]:
    """The JSON object that `content` is the canonical text of.

    Raises:
        ArtefactError: it is not; `what` names it in the message.

    """
    try:
        value = json.loads(content.decode("ascii"), parse_constant=_refuse)
        if type(value) is not dict:
            raise ValueError("is not a JSON object")
        if canonical(value) != content:
            raise ValueError("is not canonical JSON (sorted keys, no spaces, no key twice)")
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{what}: {str(error) or 'nested too deep'}") from error
    return dict(value)


def parse_manifest(content: bytes, what: str = MANIFEST) -> Manifest:
    """Read a manifest of schema 2.

    Raises:
        ArtefactError: one of its fields is missing, of the wrong type or out of range; the text names it.

    """
    if len(content) > MAX_MANIFEST_BYTES:
        raise ArtefactError(f"{what}: larger than {MAX_MANIFEST_BYTES} bytes")
    fields = load_canonical(content, what)
    if type(schema := fields.get("schema")) is not int or schema != SCHEMA:
        raise ArtefactError(f"{what}: its schema is {schema!r}; this version reads schema {SCHEMA}")
    read: dict[str, Any] = {}
    for name, (reader, needed) in _FIELDS.items():
        try:
            if name not in fields and needed:
                raise ValueError("is missing")
            read[name] = reader(fields[name]) if name in fields else None
        except (ValueError, OverflowError) as error:
            raise ArtefactError(f"{what}: {name} {error}") from error
    golden: Golden | None = read["golden"]
    if golden and not {golden.file, *golden.tolerance} <= read["files"].keys():
        raise ArtefactError(f"{what}: golden names a file that is not in files")
    return Manifest(**(read | {name: read[name] or {} for name in ("minimum", "metrics")}), fields=fields)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"holds {constant}")


def _object(value: object) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError("must be an object")
    return value


def _text(value: object) -> str:
    if type(value) is not str or not 1 <= len(value) <= 200 or not value.isprintable():
        raise ValueError("must be a printable text of 1 to 200 characters")
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise ValueError("must be a whole number from 0 to 2^53")
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]  # of those two types
        raise ValueError("must be a finite number")
    return float(value)  # type: ignore[arg-type]


def _table(reader: Callable[[object], T]) -> Callable[[object], dict[str, T]]:
    def read(value: object) -> dict[str, T]:
        return {_text(key): reader(one) for key, one in _object(value).items()}

    return read


def _files(value: object) -> dict[str, FileEntry]:
    entries = _object(value)
    if not 1 <= len(entries) <= MAX_FILES:
        raise ValueError(f"must list 1 to {MAX_FILES} files")
    return {_file_name(name): _entry(entry) for name, entry in entries.items()}


def _file_name(name: object) -> str:
    if type(name) is not str or not _FILE_NAME.match(name) or name.startswith((MANIFEST, "manifest.", "release-key.")):
        raise ValueError(f"holds the name {name!r}; a plain file name is needed")
    return name


def _entry(value: object) -> FileEntry:
    entry = _object(value)
    sha256 = entry.get("sha256")
    if type(sha256) is not str or not _SHA256.match(sha256):
        raise ValueError("needs a sha256 of 64 hex digits for each file")
    return FileEntry(_text(entry.get("format")), _count(entry.get("bytes")), sha256)


def _contract(value: object) -> Contract:
    fields = _object(value)
    shape = fields.get("shape")
    if type(shape) is not list or not 1 <= len(shape) <= 8:
        raise ValueError("needs a shape of 1 to 8 dims")
    dims = tuple(-1 if dim in ("batch", -1) else _count(dim) for dim in shape)
    ends = (None if fields.get(end) is None else _number(fields[end]) for end in ("low", "high"))
    return Contract(_text(fields.get("name")), _text(fields.get("dtype")), dims, *ends)


def _golden(value: object) -> Golden:
    fields = _object(value)
    return Golden(_file_name(fields.get("file")), _table(_number)(fields.get("tolerance")))


def _version_text(value: object) -> str:
    if type(value) is not str or not _VERSION.match(value):
        raise ValueError("must hold versions such as 1.20")
    return value


# Field -> how it is read, and whether it must be there.
_FIELDS: Mapping[str, tuple[Callable[[object], object], bool]] = {
    "name": (_text, True),
    "version": (_count, True),
    "created": (_count, True),
    "files": (_files, True),
    "expires": (_count, False),
    "previous": (_count, False),
    "input": (_contract, False),
    "output": (_contract, False),
    "golden": (_golden, False),
    "minimum": (_table(_version_text), False),
    "metrics": (_table(_number), False),
}
