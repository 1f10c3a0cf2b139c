"""`hedgerow artefact-keys`, `sign` and `verify`: who may publish models, and whether an artefact is theirs."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from edge_runtime.deploy.trust.keys import (
    MANIFEST_LABEL,
    RELEASE,
    RELEASE_LABEL,
    RELEASE_SIGNATURE,
    SIGNATURE,
    ReleaseKey,
    key_id,
    new_key,
    parse_release_key,
    public_key,
    read_private,
    sign,
)
from edge_runtime.deploy.trust.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, load_canonical, parse_manifest
from edge_runtime.deploy.trust.verify import (
    check_fresh,
    directory_source,
    exact_chunks,
    read_bounded,
    signed_manifest,
)
from edge_runtime.errors import ArtefactError, ConfigError
from edge_runtime.files import write_atomically

ROOT_KEY, RELEASE_KEY = "root.key", "release.key"
DAY_S = 86400


def keys_command(parser: argparse.ArgumentParser) -> None:
    """Make the keys that sign models: a root key to keep offline, and a release key that it vouches for."""
    parser.add_argument("action", choices=("new", "renew"), help="renew: another release key, by the same root key")
    parser.add_argument("folder", type=Path, help="a folder for the keys; devices get its root.key.pub")
    parser.add_argument("--days", type=int, default=365, help="how long the release key may sign (default: 365)")
    parser.set_defaults(run=_keys)


def sign_command(parser: argparse.ArgumentParser) -> None:
    """Sign the manifest of an artefact with a release key; golden vectors are made if it has none."""
    parser.add_argument("folder", type=Path, help="the artefact: manifest.json and the files it lists")
    parser.add_argument("--key", type=Path, required=True, help=f"the release key; {RELEASE} stands beside it")
    parser.add_argument("--name", help="of the model (default: the manifest's)")
    parser.add_argument("--version", type=int, help="must rise with each release (default: the manifest's)")
    parser.add_argument("--previous", type=int, help="the version that this one follows")
    parser.add_argument("--days", type=int, help="how long it may be installed (default: as long as its key may sign)")
    parser.add_argument("--golden", type=Path, metavar="FILE.npy", help="inputs for the golden vectors (B, ...)")
    parser.set_defaults(run=_sign)


def verify_command(parser: argparse.ArgumentParser) -> None:
    """Check an artefact as a device does before it runs it: one line for each check."""
    parser.add_argument("path", type=Path, help="the artefact's folder, or one model file in it")
    parser.add_argument("--root", type=Path, metavar="KEY", help="the publisher's root key: .pub file or hex digits")
    parser.add_argument("--no-trial", action="store_true", help="do not run the golden vectors")
    parser.set_defaults(run=_verify)


def _keys(options: argparse.Namespace) -> int:
    folder: Path = options.folder
    if options.days < 1:
        raise ConfigError(f"--days {options.days}: must be at least 1")
    serial = 1
    if options.action == "new":
        public = new_key(folder / ROOT_KEY)
        _say(f"{folder / ROOT_KEY}: root key {key_id(public)}; keep it offline, give devices {ROOT_KEY}.pub")
    elif (old := folder / RELEASE).exists():
        serial = parse_release_key(old.read_bytes()).serial + 1
    root = read_private(folder / ROOT_KEY)
    name = RELEASE_KEY if serial == 1 else f"release-{serial}.key"
    public, now = new_key(folder / name), int(time.time())
    statement = ReleaseKey(public, serial, now, now + options.days * DAY_S).statement()
    # The signature last: a statement without it is refused, never believed.
    write_atomically(folder / RELEASE, [statement])
    write_atomically(folder / RELEASE_SIGNATURE, [sign(root, RELEASE_LABEL, statement)])
    _say(f"{folder / name}: release key {key_id(public)}, serial {serial}, for {options.days} days")
    return 0


def _sign(options: argparse.Namespace) -> int:
    folder: Path = options.folder
    private = read_private(options.key)
    release = _release_beside(options.key, private.public_key().public_bytes_raw())
    fields = _fields(folder)
    now = int(time.time())
    given = {"name": options.name, "version": options.version, "previous": options.previous}
    fields |= {name: value for name, value in given.items() if value is not None} | {"created": now}
    if options.days is not None:
        fields["expires"] = now + options.days * DAY_S
    manifest = _written(folder, fields, options.golden)
    (folder / SIGNATURE).unlink(missing_ok=True)
    for name in (RELEASE, RELEASE_SIGNATURE):
        shutil.copyfile(options.key.with_name(name), folder / name)
    content = (folder / MANIFEST).read_bytes()
    write_atomically(folder / SIGNATURE, [sign(private, MANIFEST_LABEL, content)])
    _say(f"{folder}: {manifest.name} {manifest.version} signed by {key_id(release.public)}")
    return 0


def _release_beside(key: Path, public: bytes) -> ReleaseKey:
    try:
        release = parse_release_key(key.with_name(RELEASE).read_bytes())
    except OSError as error:
        raise ConfigError(f"{key.with_name(RELEASE)}: cannot be read ({error.strerror})") from error
    if release.public != public:
        raise ConfigError(f"{key}: is not the key in {RELEASE}; `hedgerow artefact-keys renew` makes one that is")
    return release


def _fields(folder: Path) -> dict[str, Any]:
    """The manifest's fields, after its files were found to be what it says."""
    source = directory_source(folder)
    content = read_bounded(source, MANIFEST, MAX_MANIFEST_BYTES)
    manifest = parse_manifest(content, str(folder / MANIFEST))
    for name, entry in manifest.files.items():
        for _ in exact_chunks(source, name, entry):
            pass
    return load_canonical(content, str(folder / MANIFEST))


def _written(folder: Path, fields: dict[str, Any], golden: Path | None) -> Manifest:
    """Write the manifest again with these fields, and golden vectors where asked for or where there are none."""
    from edge_runtime.deploy.artefact import write_manifest
    from edge_runtime.deploy.runner import BACKENDS
    from edge_runtime.deploy.trust.golden import write_golden

    files = {entry["format"]: folder / name for name, entry in fields["files"].items()}
    if golden is not None or "golden" not in fields:
        models = [path for path in files.values() if path.suffix in BACKENDS]
        path, fields["golden"] = write_golden(folder, models, _golden_inputs(models, golden))
        files["golden"] = path
    write_manifest(folder, files, fields)
    return parse_manifest((folder / MANIFEST).read_bytes())


def _golden_inputs(models: list[Path], golden: Path | None) -> Any:
    import numpy as np

    from edge_runtime.deploy.runner import DTYPES, Runner

    if not models:
        raise ConfigError("the artefact has no model file that can be run here; golden vectors need one")
    if golden is not None:
        try:
            return np.load(golden, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--golden {golden}: is no .npy file: {error}") from error
    spec = Runner.open(models[0]).input
    shape = (4, *spec.shape[1:])
    # Small whole numbers are tokens of any vocabulary, and inputs of any float model.
    return np.random.default_rng(0).integers(0, 2, shape).astype(DTYPES[spec.dtype])


def _verify(options: argparse.Namespace) -> int:
    path: Path = options.path
    folder, only = (path, None) if path.is_dir() else (path.parent, path.name)
    source = directory_source(folder)
    if options.root is None:
        content = read_bounded(source, MANIFEST, MAX_MANIFEST_BYTES)
        manifest = parse_manifest(content, str(folder / MANIFEST))
        _say(f"skip signature: no --root key given; {MANIFEST} is believed as it stands")
    else:
        signed = signed_manifest(source, public_key(options.root))
        manifest = signed.manifest
        release = signed.release
        _say(f"ok   release key {key_id(release.public)}, serial {release.serial}: signed by the root key")
        _say(f"ok   {MANIFEST}: signed by the release key")
        check_fresh(signed, time.time(), floor=-1)
        _say("ok   release key and manifest have not expired")
    _say(f"ok   {MANIFEST}: {manifest.name} version {manifest.version}, {len(manifest.files)} files")
    if only is not None and only not in manifest.files:
        raise ArtefactError(f"{path}: is not listed in {MANIFEST}")
    for name in [only] if only else sorted(manifest.files):
        _verify_file(folder, name, manifest, trial=not options.no_trial)
    return 0


def _verify_file(folder: Path, name: str, manifest: Manifest, *, trial: bool) -> None:
    entry = manifest.files[name]
    for _ in exact_chunks(directory_source(folder), name, entry):
        pass
    _say(f"ok   {name}: {entry.nbytes} bytes, SHA-256 {entry.sha256[:16]}...")
    golden = manifest.golden
    if golden is None or name not in golden.tolerance or not trial:
        return
    from edge_runtime.deploy.trust.sandbox import try_model

    tolerance = golden.tolerance[name]
    hashes = (entry.sha256, manifest.files[golden.file].sha256)
    done = try_model(folder / name, folder / golden.file, sha256=hashes, tolerance=tolerance)
    _say(
        f"ok   {name}: golden vectors within {done.difference:.3g} (of {tolerance:.3g}), "
        f"{done.latency_s * 1e3:.3g} ms a row, {done.peak_rss_bytes / 1e6:.0f} MB"
    )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
