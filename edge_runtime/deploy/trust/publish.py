"""The publisher's half: keys, golden vectors, and the signature that makes a folder of models a release."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.artefact import write_manifest
from edge_runtime.deploy.runner import BACKENDS, DTYPES, Runner
from edge_runtime.deploy.trust.allow_list import check_model
from edge_runtime.deploy.trust.golden import write_golden
from edge_runtime.deploy.trust.keys import (
    MANIFEST_LABEL,
    RELEASE,
    RELEASE_LABEL,
    RELEASE_SIGNATURE,
    SIGNATURE,
    ReleaseKey,
    new_key,
    parse_release_key,
    read_private,
    sign,
)
from edge_runtime.deploy.trust.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, load_canonical, parse_manifest
from edge_runtime.deploy.trust.verify import directory_source, exact_chunks, read_bounded
from edge_runtime.errors import ConfigError
from edge_runtime.files import write_atomically

ROOT_KEY, RELEASE_KEY = "root.key", "release.key"
DAY_S = 86400
GOLDEN_ROWS = 4


def make_root_key(folder: Path) -> bytes:
    """Write `root.key` and `root.key.pub` into `folder`; returns the public half.

    Raises:
        ConfigError: there is a root key already.

    """
    return new_key(folder / ROOT_KEY)


def make_release_key(folder: Path, *, days: int, now_s: float) -> tuple[Path, ReleaseKey]:
    """Write the next release key into `folder`, with the word of the root key there; the path of its private half.

    Raises:
        ConfigError: there is no root key.

    """
    if days < 1:
        raise ConfigError(f"days = {days}: must be at least 1")
    root = read_private(folder / ROOT_KEY)
    old = folder / RELEASE
    serial = parse_release_key(old.read_bytes()).serial + 1 if old.exists() else 1
    path = folder / (RELEASE_KEY if serial == 1 else f"release-{serial}.key")
    release = ReleaseKey(new_key(path), serial, int(now_s), int(now_s) + days * DAY_S)
    # The signature last: a statement without it is refused, never believed.
    write_atomically(folder / RELEASE, [release.statement()])
    write_atomically(folder / RELEASE_SIGNATURE, [sign(root, RELEASE_LABEL, release.statement())])
    return path, release


def sign_artefact(
    folder: Path,
    key: Path,
    *,
    now_s: float,
    about: Mapping[str, Any] | None = None,
    days: int | None = None,
    golden: NDArray[np.generic] | None = None,
) -> Manifest:
    """Sign the manifest in `folder` with a release key; `about` overrides its fields (version, name, previous, ...).

    Its statement must stand beside the key; both go into the folder with the signature. Where the artefact has no
    golden vectors, or `golden` (B, ...) gives inputs for them, they are made first.

    Raises:
        ConfigError: not the key of the statement beside it.
        ArtefactError: a file in the folder is not what the manifest says, or no device would take it.

    """
    private = read_private(key)
    _check_statement(key, private.public_key().public_bytes_raw())
    fields = _checked_fields(folder) | {"created": int(now_s)} | dict(about or {})
    if days is not None:
        fields["expires"] = int(now_s) + days * DAY_S
    files = {entry["format"]: folder / name for name, entry in fields["files"].items()}
    models = [path for path in files.values() if path.suffix in BACKENDS]
    for path in models:
        check_model(path.read_bytes(), path.suffix)
    if golden is not None or "golden" not in fields:
        inputs = _inputs(models) if golden is None else golden
        files["golden"], fields["golden"] = write_golden(folder, models, inputs)
    write_manifest(folder, files, fields)
    for name in (RELEASE, RELEASE_SIGNATURE):
        shutil.copyfile(key.with_name(name), folder / name)
    content = (folder / MANIFEST).read_bytes()
    write_atomically(folder / SIGNATURE, [sign(private, MANIFEST_LABEL, content)])
    return parse_manifest(content)


def _check_statement(key: Path, public: bytes) -> None:
    beside = key.with_name(RELEASE)
    try:
        release = parse_release_key(beside.read_bytes())
    except OSError as error:
        raise ConfigError(f"{beside}: cannot be read ({error.strerror})") from error
    if release.public != public:
        raise ConfigError(f"{key}: is not the key in {RELEASE} beside it; use the newest, or make another")


def _checked_fields(folder: Path) -> dict[str, Any]:
    """The manifest's fields, after its files were found to be what it says: a signature is not for what was changed."""
    source = directory_source(folder)
    content = read_bounded(source, MANIFEST, MAX_MANIFEST_BYTES)
    manifest = parse_manifest(content, str(folder / MANIFEST))
    for name, entry in manifest.files.items():
        for _ in exact_chunks(source, name, entry):
            pass
    return load_canonical(content, str(folder / MANIFEST))


def _inputs(models: list[Path]) -> NDArray[np.generic]:
    if not models:
        raise ConfigError("the artefact has no model file that can be run here; golden vectors need one")
    spec = Runner.open(models[0]).input
    # Zeros and ones are tokens of any vocabulary, and inputs of any float model.
    drawn = np.random.default_rng(0).integers(0, 2, (GOLDEN_ROWS, *spec.shape[1:]))
    return drawn.astype(DTYPES[spec.dtype])
