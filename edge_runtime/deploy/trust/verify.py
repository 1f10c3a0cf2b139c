"""The checks of a signed manifest, in the order that believes nothing unsigned.

Sizes and hashes of files stand in the manifest, so its signature is checked before any of them is acted on: root key ->
release key statement -> manifest -> version and expiry. Only then is a file read, and no further than the signed size.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.deploy.trust.digest import new_sha256
from edge_runtime.deploy.trust.keys import (
    MANIFEST_LABEL,
    MAX_SIGNATURE_BYTES,
    RELEASE,
    RELEASE_LABEL,
    RELEASE_SIGNATURE,
    SIGNATURE,
    ReleaseKey,
    check_signature,
    parse_release_key,
)
from edge_runtime.deploy.trust.manifest import MANIFEST, MAX_MANIFEST_BYTES, FileEntry, Manifest, parse_manifest
from edge_runtime.errors import ArtefactError

CHUNK_BYTES = 1 << 16
# A file of an artefact by its name, as chunks. Whoever takes them counts them: they may never end.
Source = Callable[[str], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest that the root key vouches for, the release key between them, and the four files as they were."""

    manifest: Manifest
    release: ReleaseKey
    texts: dict[str, bytes]


def signed_manifest(source: Source, root_key: bytes) -> SignedManifest:
    """Read and check the manifest of an artefact; time and version are for `check_fresh`.

    Raises:
        ArtefactError: it is not signed by a release key that the root key vouches for.

    """
    names = {RELEASE: 1, RELEASE_SIGNATURE: 1, SIGNATURE: 1, MANIFEST: MAX_MANIFEST_BYTES // MAX_SIGNATURE_BYTES}
    texts = {name: read_bounded(source, name, MAX_SIGNATURE_BYTES * times) for name, times in names.items()}
    check_signature(root_key, RELEASE_LABEL, texts[RELEASE], texts[RELEASE_SIGNATURE], RELEASE_SIGNATURE)
    release = parse_release_key(texts[RELEASE])
    check_signature(release.public, MANIFEST_LABEL, texts[MANIFEST], texts[SIGNATURE], SIGNATURE)
    return SignedManifest(parse_manifest(texts[MANIFEST]), release, texts)


def check_fresh(signed: SignedManifest, now_s: float, *, floor: int = 0, serial: int = 0) -> None:
    """Refuse what has expired, and what is older than the device has seen: `floor` a version, `serial` a release key's.

    Raises:
        ArtefactError: it is either.

    """
    manifest, release = signed.manifest, signed.release
    if release.serial < serial:
        raise ArtefactError(f"{RELEASE}: serial {release.serial} was replaced by {serial}; sign with the newer key")
    # A device takes `created` for a time that has come: one beyond all keys would make every later release expired.
    if manifest.created >= release.expires:
        raise ArtefactError(f"{MANIFEST}: is of a time when its release key has expired; set the signer's clock")
    if now_s >= release.expires:
        raise ArtefactError(f"{RELEASE}: has expired; the root key must sign a new one")
    if manifest.expires is not None and now_s >= manifest.expires:
        raise ArtefactError(f"{MANIFEST}: version {manifest.version} has expired; sign it anew")
    if manifest.version <= floor:
        raise ArtefactError(
            f"{MANIFEST}: version {manifest.version} is not above {floor}, which this device has seen; "
            "to go back, sign the older model with a higher version"
        )


def read_bounded(source: Source, name: str, limit: int) -> bytes:
    """The whole file, at most `limit` bytes.

    Raises:
        ArtefactError: it is longer.

    """
    content = bytearray()
    for chunk in source(name):
        content += chunk
        if len(content) > limit:
            raise ArtefactError(f"{name}: larger than {limit} bytes")
    return bytes(content)


def exact_chunks(source: Source, name: str, entry: FileEntry) -> Iterator[bytes]:
    """The chunks of a file; the last one comes only after size and hash were found right.

    Raises:
        ArtefactError: they are not the manifest's. No more than its size was passed on.

    """
    digest, left, held = new_sha256(), entry.nbytes, b""
    for chunk in source(name):
        left -= len(chunk)
        if left < 0:
            raise ArtefactError(f"{name}: longer than the {entry.nbytes} bytes in {MANIFEST}")
        digest.update(chunk)
        if held:
            yield held
        held = chunk
    if left or digest.hexdigest() != entry.sha256:
        raise ArtefactError(f"{name}: its bytes are not those in {MANIFEST}; it was changed or cut short")
    yield held


def directory_source(folder: str | Path) -> Source:
    """The files of a folder. A link, a pipe or a device in a file's place is refused."""
    folder = Path(folder)

    def chunks(name: str) -> Iterator[bytes]:
        try:
            # A pipe would wait for a writer for ever without O_NONBLOCK.
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise ArtefactError(f"{folder / name}: cannot be read ({error.strerror})") from error
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ArtefactError(f"{folder / name}: is not a plain file")
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    return chunks
