"""Model files with a manifest beside them that says what they are and what their bytes must hash to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.errors import ArtefactError

MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Artefact:
    """Exported files by format, and the manifest that was written beside them."""

    paths: Mapping[str, Path]
    manifest: Mapping[str, Any]


def write_manifest(directory: Path, files: Mapping[str, Path], about: Mapping[str, Any]) -> Artefact:
    """Write `manifest.json` in `directory` for model files that already stand there."""
    manifest = {
        "version": 1,
        **about,
        "files": {
            path.name: {"format": name, "bytes": path.stat().st_size, "sha256": _sha256(path)}
            for name, path in files.items()
        },
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return Artefact(dict(files), manifest)


def verified_bytes(path: Path) -> bytes:
    """The content of a model file, after it was compared with the manifest in its folder.

    The bytes are returned, not the path, so that what was checked is what gets parsed.

    Raises:
        ArtefactError: no manifest, the file is not listed in it, or size or SHA-256 differ.

    """
    entry = _entry(path)
    try:
        # The size first: nothing larger than promised is read.
        content = path.read_bytes() if path.stat().st_size == entry["bytes"] else None
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror})") from error
    if content is None or hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise ArtefactError(
            f"{path}: its bytes are not those in {MANIFEST}; it was changed or cut short, fetch it again"
        )
    return content


def _entry(path: Path) -> dict[str, Any]:
    manifest = path.with_name(MANIFEST)
    try:
        oversized = manifest.stat().st_size > _MAX_MANIFEST_BYTES
        text = "" if oversized else manifest.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path}: no readable {MANIFEST} beside it ({error})") from error
    if oversized:
        raise ArtefactError(f"{manifest}: larger than {_MAX_MANIFEST_BYTES} bytes")
    try:
        entry = json.loads(text)["files"][path.name]
        if type(entry["bytes"]) is not int or type(entry["sha256"]) is not str:
            raise TypeError("bytes and sha256 have the wrong type")
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ArtefactError(f"{manifest}: has no valid entry for {path.name}") from error
    return dict(entry)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
