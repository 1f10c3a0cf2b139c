"""The exported artefact as a signed release: one model file, its golden vectors, a manifest and its signatures."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.deploy.artefact import MANIFEST, write_manifest
from edge_runtime.deploy.offer import SUFFIXES, manifest_digest
from edge_runtime.deploy.trust.keys import RELEASE, RELEASE_SIGNATURE, SIGNATURE, parse_release_key, read_private
from edge_runtime.deploy.trust.manifest import MAX_MANIFEST_BYTES, load_canonical
from edge_runtime.deploy.trust.publish import sign_artefact
from edge_runtime.deploy.trust.verify import directory_source, read_bounded
from edge_runtime.errors import ArtefactError, ConfigError
from server.rollout_config import RolloutConfig

FOLDER = "release"  # in the run directory
_KEPT = ("input", "output", "minimum")  # of what the export's manifest says
_TEXTS = (MANIFEST, SIGNATURE, RELEASE, RELEASE_SIGNATURE)


@dataclass(frozen=True, slots=True)
class Release:
    """What devices are offered: the files by name, as they are signed."""

    version: int
    model: str
    files: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """Of its manifest."""
        return manifest_digest(self.files[MANIFEST])


def check_key(config: RolloutConfig) -> None:
    """Look at the release key before a run starts rather than after it.

    Raises:
        ConfigError: there is none, it can't be read, or its statement is missing or has expired.

    """
    if not config.enabled:
        return
    if not config.key:
        raise ConfigError("rollout.key is missing; make keys with `hedgerow artefact-keys new FOLDER`")
    path = Path(config.key)
    public = read_private(path).public_key().public_bytes_raw()
    try:
        release = parse_release_key(path.with_name(RELEASE).read_bytes())
    except (OSError, ArtefactError) as error:
        raise ConfigError(f"rollout.key = {config.key!r}: no {RELEASE} can be read beside it ({error})") from error
    if release.public != public or release.expires <= time.time():
        raise ConfigError(f"rollout.key = {config.key!r}: {RELEASE} beside it is of another key, or has expired")


def make_release(config: RolloutConfig, model_name: str, directory: Path) -> Release:
    """Sign the smallest exported file of the format, in a folder of its own in the run directory.

    Raises:
        ArtefactError: no such file was released.

    """
    exported = _exported(directory)
    suffix = SUFFIXES[config.format]
    files = {path: entry for path, entry in exported["files"].items() if path.endswith(suffix)}
    if not files:
        raise ArtefactError(f"{directory / MANIFEST}: no {config.format} file was released")
    model = min(files, key=lambda path: (files[path]["bytes"], path))
    folder = directory / FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # of a server that was killed before it had offered it to anybody
    folder.mkdir()
    shutil.copyfile(directory / model, folder / model)
    kind = files[model]["format"]
    kept: dict[str, Any] = {name: exported[name] for name in _KEPT if name in exported}
    metrics = exported.get("metrics", {})
    kept["metrics"] = {name: value for name, value in metrics.items() if name.startswith(f"{kind}.")}
    write_manifest(folder, {kind: folder / model}, kept)
    now_s = time.time()
    version = config.version or int(now_s)
    signed = sign_artefact(folder, Path(config.key), now_s=now_s, about={"name": model_name, "version": version})
    return Release(version, model, {one: (folder / one).read_bytes() for one in sorted((*_TEXTS, *signed.files))})


def open_release(version: int, model: str, digest: str, directory: Path) -> Release:
    """The release that `make_release` has left in that run directory.

    Raises:
        ArtefactError: it is gone, or another one.

    """
    folder = directory / FOLDER
    try:
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    except OSError as error:
        raise ArtefactError(f"{folder}: cannot be read ({error.strerror or error})") from error
    release = Release(version, model, files)
    if MANIFEST not in files or release.digest != digest:
        raise ArtefactError(f"{folder}: is not the release of version {version} that was begun")
    return release


def _exported(directory: Path) -> dict[str, Any]:
    return load_canonical(read_bounded(directory_source(directory), MANIFEST, MAX_MANIFEST_BYTES), MANIFEST)
