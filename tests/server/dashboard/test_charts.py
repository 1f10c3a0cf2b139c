"""How the plot library gets into a build: only the pinned package, and never at the cost of the build."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from server.dashboard import charts


def package(**files: bytes) -> bytes:
    """An npm package with these files."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


PACKAGE = package(**{name: name.encode() for name in charts.FILES}, **{"../../escaped": b"", "package/other": b""})


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package above is the pinned one, and npm is not there."""
    files = {name: (to, hashlib.sha256(name.encode()).hexdigest()) for name, (to, _) in charts.FILES.items()}
    monkeypatch.setattr(charts, "FILES", files)
    monkeypatch.setattr(charts, "SHA512", hashlib.sha512(PACKAGE).hexdigest())
    monkeypatch.setattr(charts.shutil, "which", lambda _: None)


@pytest.mark.usefixtures("pinned")
def test_the_wanted_files_are_taken_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "uplot.tgz").write_bytes(PACKAGE)
    monkeypatch.setattr(charts, "URL", (tmp_path / "uplot.tgz").as_uri())
    vendor = tmp_path / "vendor"
    charts.fetch(vendor)
    assert {path.name for path in vendor.iterdir()} == {to for to, _ in charts.FILES.values()}
    assert charts.have(vendor)
    (vendor / "uPlot.esm.js").write_bytes(b"changed")
    assert not charts.have(vendor)
    charts.fetch(vendor)
    assert charts.have(vendor)


@pytest.mark.usefixtures("pinned")
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda _: b""])
def test_another_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: object) -> None:
    assert callable(change)
    (tmp_path / "uplot.tgz").write_bytes(change(PACKAGE))
    monkeypatch.setattr(charts, "URL", (tmp_path / "uplot.tgz").as_uri())
    with pytest.raises(charts.FetchError, match="not the one that was pinned"):
        charts.fetch(tmp_path / "vendor")
    assert not (tmp_path / "vendor").exists()


def test_a_build_without_a_network_goes_on_and_says_what_is_missing(tmp_path: Path) -> None:
    """The script is all there is of the checkout, and neither npm nor a proxy answers."""
    script = tmp_path / "dashboard" / "charts.py"
    script.parent.mkdir()
    script.write_bytes(Path(charts.__file__).read_bytes())
    offline = {
        "PATH": str(tmp_path),
        "https_proxy": "http://127.0.0.1:9",
        "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
    }

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, script, *arguments]
        return subprocess.run(command, env=offline | more, capture_output=True, text=True, check=False)

    tried = run("--try")
    assert (tried.returncode, tried.stderr) == (0, "")
    assert "make charts" in tried.stdout
    assert run().returncode == 1
    told = run("--try", HEDGEROW_FETCH="0")
    assert (told.returncode, told.stdout) == (0, "")
