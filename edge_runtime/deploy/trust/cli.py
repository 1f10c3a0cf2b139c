"""`hedgerow artefact-keys`, `sign` and `verify`: who may publish models, and whether an artefact is theirs."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.deploy.runner import BACKENDS
from edge_runtime.deploy.trust.allow_list import check_model
from edge_runtime.deploy.trust.keys import key_id, public_key
from edge_runtime.deploy.trust.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, parse_manifest
from edge_runtime.deploy.trust.verify import (
    check_fresh,
    directory_source,
    exact_chunks,
    read_bounded,
    signed_manifest,
)
from edge_runtime.errors import ArtefactError, ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def keys_command(parser: argparse.ArgumentParser) -> None:
    """Make the keys that sign models: a root key to keep offline, and a release key that it vouches for."""
    parser.add_argument("action", choices=("new", "renew"), help="renew: another release key, by the same root key")
    parser.add_argument("folder", type=Path, help="a folder for the keys; devices get its root.key.pub")
    parser.add_argument("--days", type=int, default=365, help="how long the release key may sign (default: 365)")
    parser.set_defaults(run=_keys)


def sign_command(parser: argparse.ArgumentParser) -> None:
    """Sign the manifest of an artefact with a release key; golden vectors are made if it has none."""
    parser.add_argument("folder", type=Path, help="the artefact: manifest.json and the files it lists")
    parser.add_argument("--key", type=Path, required=True, help="the release key; release-key.json stands beside it")
    parser.add_argument("--name", help="of the model (default: the manifest's)")
    parser.add_argument("--version", type=int, help="must rise with each release (default: the manifest's)")
    parser.add_argument("--previous", type=int, help="the version that this one follows")
    parser.add_argument("--days", type=int, help="how long it may be installed (default: as long as its key may sign)")
    parser.add_argument("--golden", type=Path, metavar="FILE.npy", help="inputs for the golden vectors (B, ...)")
    parser.set_defaults(run=_sign)


def verify_command(parser: argparse.ArgumentParser) -> None:
    """Check an artefact as a device does before it runs it: one line for each check."""
    parser.add_argument("path", type=Path, help="the artefact's folder, or one model file in it")
    parser.add_argument("--root", metavar="KEY", help="the publisher's root key: .pub file or hex digits")
    parser.add_argument("--no-trial", action="store_true", help="do not run the golden vectors")
    parser.set_defaults(run=_verify)


def _keys(options: argparse.Namespace) -> int:
    from edge_runtime.deploy.trust import publish

    folder: Path = options.folder
    if options.action == "new":
        root = publish.make_root_key(folder)
        _say(f"{folder / publish.ROOT_KEY}: root key {key_id(root)}; keep it offline, give devices its .pub file")
    path, release = publish.make_release_key(folder, days=options.days, now_s=time.time())
    _say(f"{path}: release key {key_id(release.public)}, serial {release.serial}, for {options.days} days")
    return 0


def _sign(options: argparse.Namespace) -> int:
    from edge_runtime.deploy.trust.publish import sign_artefact

    given = {"name": options.name, "version": options.version, "previous": options.previous}
    manifest = sign_artefact(
        options.folder,
        options.key,
        now_s=time.time(),
        about={name: value for name, value in given.items() if value is not None},
        days=options.days,
        golden=None if options.golden is None else _array(options.golden),
    )
    _say(f"{options.folder}: {manifest.name} {manifest.version}, {len(manifest.files)} files, signed")
    return 0


def _array(path: Path) -> NDArray[np.generic]:
    import numpy as np

    try:
        array: NDArray[np.generic] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--golden {path}: is no .npy file ({error})") from error
    return array


def _verify(options: argparse.Namespace) -> int:
    path: Path = options.path
    folder, only = (path, None) if path.is_dir() else (path.parent, path.name)
    manifest = _manifest(folder, options.root)
    _say(f"ok   {MANIFEST}: {manifest.name} version {manifest.version}, {len(manifest.files)} files")
    if only is not None and only not in manifest.files:
        raise ArtefactError(f"{path}: is not listed in {MANIFEST}")
    for name in [only] if only else sorted(manifest.files):
        _verify_file(folder, name, manifest, trial=not options.no_trial)
    return 0


def _manifest(folder: Path, root: str | None) -> Manifest:
    source = directory_source(folder)
    if root is None:
        _say(f"skip signatures: without --root, {MANIFEST} is believed as it stands")
        return parse_manifest(read_bounded(source, MANIFEST, MAX_MANIFEST_BYTES), str(folder / MANIFEST))
    import cryptography  # noqa: F401 - checks the signatures, once it is loaded

    signed = signed_manifest(source, public_key(root))
    release = signed.release
    _say(f"ok   release key {key_id(release.public)}, serial {release.serial}: signed by the root key")
    _say(f"ok   {MANIFEST}: signed by the release key")
    check_fresh(signed, time.time(), floor=-1)
    _say("ok   neither has expired")
    return signed.manifest


def _verify_file(folder: Path, name: str, manifest: Manifest, *, trial: bool) -> None:
    entry, golden = manifest.files[name], manifest.golden
    for _ in exact_chunks(directory_source(folder), name, entry):
        pass
    _say(f"ok   {name}: {entry.nbytes} bytes, SHA-256 {entry.sha256[:16]}...")
    path = folder / name
    if path.suffix in BACKENDS:
        check_model(path.read_bytes(), path.suffix)
        _say(f"ok   {name}: known operators, bounded sizes, nothing outside the file")
    if golden is None or name not in golden.tolerance or not trial:
        return
    from edge_runtime.deploy.trust.sandbox import try_model

    tolerance = golden.tolerance[name]
    hashes = (entry.sha256, manifest.files[golden.file].sha256)
    done = try_model(path, folder / golden.file, sha256=hashes, tolerance=tolerance)
    _say(
        f"ok   {name}: golden vectors within {done.difference:.3g} (of {tolerance:.3g}), "
        f"{done.latency_s * 1e3:.3g} ms a row, {done.peak_rss_bytes / 1e6:.0f} MB"
    )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
