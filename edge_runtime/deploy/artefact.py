"""Model files with a manifest beside them that says what they are and what their bytes must hash to."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.deploy.trust.digest import sha256_hex
from edge_runtime.deploy.trust.manifest import MANIFEST, MAX_MANIFEST_BYTES, SCHEMA, canonical, parse_manifest
from edge_runtime.errors import ArtefactError
from edge_runtime.files import write_atomically

__all__ = ["MANIFEST", "Artefact", "verified_bytes", "write_manifest"]


@dataclass(frozen=True, slots=True)
class Artefact:
    """Exported files by format, and the manifest that was written beside them."""

    paths: Mapping[str, Path]
    manifest: Mapping[str, Any]


def write_manifest(directory: Path, files: Mapping[str, Path], about: Mapping[str, Any]) -> Artefact:
    """Write `manifest.json` in `directory` for files that already stand there, by their formats.

    `about` holds any other field of `trust.manifest`, and overrides the defaults: name "model", version 1, created now.

    Raises:
        ArtefactError: a field that no reader would take.

    """
    fields = {
        "schema": SCHEMA,
        "name": "model",
        "version": 1,
        "created": int(time.time()),
        **about,
        "files": {
            path.name: {"format": name, "bytes": path.stat().st_size, "sha256": sha256_hex(path.read_bytes())}
            for name, path in files.items()
        },
    }
    try:
        content = canonical(fields)
    except ValueError as error:
        raise ArtefactError(f"{MANIFEST}: {error}") from error
    parse_manifest(content, str(directory / MANIFEST))
    write_atomically(directory / MANIFEST, [content])
    return Artefact(dict(files), json.loads(content))


def verified_bytes(path: Path, root_key: bytes | str | Path | None = None) -> bytes:
    """The content of a model file, after it was compared with the manifest in its folder.

    The bytes are returned, not the path, so that what was checked is what gets parsed. With a root key (32 bytes, or
    its `.pub` file) the manifest must be signed under it. Expiry and versions are checked when a model is installed,
    not here: a device that is offline goes on with what it has.

    Raises:
        ArtefactError: no manifest, or one that is not signed as it must be; the file is not listed in it; or size or
            SHA-256 differ.

    """
    nbytes, sha256 = _promised(path) if root_key is None else _signed(path, root_key)
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            # The size first: nothing larger than promised is read.
            right = stat.S_ISREG(status.st_mode) and status.st_size == nbytes
            content = file.read(nbytes + 1) if right else b""
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror})") from error
    if not right or len(content) != nbytes or sha256_hex(content) != sha256:
        raise ArtefactError(
            f"{path}: its bytes are not those in {MANIFEST}; it was changed or cut short, fetch it again"
        )
    return content


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # of a pipe too, that would wait for a writer


def _signed(path: Path, root_key: bytes | str | Path) -> tuple[int, str]:
    from edge_runtime.deploy.trust.keys import public_key
    from edge_runtime.deploy.trust.verify import directory_source, signed_manifest

    entry = signed_manifest(directory_source(path.parent), public_key(root_key)).manifest.files.get(path.name)
    if entry is None:
        raise ArtefactError(f"{path.with_name(MANIFEST)}: has no valid entry for {path.name}")
    return entry.nbytes, entry.sha256


def _promised(path: Path) -> tuple[int, str]:
    """What an unsigned manifest says of the file. Only its entry is read: older manifests had other fields."""
    manifest = path.with_name(MANIFEST)
    try:
        oversized = manifest.stat().st_size > MAX_MANIFEST_BYTES
        text = "" if oversized else manifest.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path}: no readable {MANIFEST} beside it ({error})") from error
    if oversized:
        raise ArtefactError(f"{manifest}: larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        entry = json.loads(text)["files"][path.name]
        nbytes, sha256 = entry["bytes"], entry["sha256"]
        if type(nbytes) is not int or nbytes < 0 or type(sha256) is not str:
            raise TypeError("bytes and sha256 have the wrong type")
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ArtefactError(f"{manifest}: has no valid entry for {path.name}") from error
    return nbytes, sha256
