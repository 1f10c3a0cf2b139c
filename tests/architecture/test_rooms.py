"""The rooms keep their doors shut: import contracts hold, and a Flower bundle carries server and clients alone."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from edge_runtime.config import flatten, flatten_tree
from simulations.scenario import load_scenario

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_import_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = len(PYPROJECT["tool"]["importlinter"]["contracts"])
    assert f"{kept} kept, 0 broken" in done.stdout


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The bundle that Flower's own builder makes of this checkout; nothing is written into the checkout."""
    scratch = tmp_path_factory.mktemp("flower")
    # In a process of its own: Flower's imports warn, and warnings are errors here.
    program = """
import sys
from pathlib import Path
from flwr.cli.build import build_fab_from_disk
Path(sys.argv[2]).write_bytes(build_fab_from_disk(Path(sys.argv[1])))
"""
    quiet = {"FLWR_HOME": str(scratch), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    subprocess.run(
        [sys.executable, "-c", program, ROOT, scratch / "app.fab"], env=os.environ | quiet, cwd=scratch, check=True
    )
    return zipfile.ZipFile(io.BytesIO((scratch / "app.fab").read_bytes()))


def test_the_bundle_holds_the_apps_and_nothing_else(bundle: zipfile.ZipFile) -> None:
    """Not what serves and shows runs: every node is sent the bundle."""
    sources = {
        path.relative_to(ROOT).as_posix()
        for room in ("server", "clients")
        for path in (ROOT / room).rglob("*.py")
        if not path.is_relative_to(ROOT / "server/serve") and not path.is_relative_to(ROOT / "server/dashboard")
    }
    assert "server/app.py" in sources
    assert "clients/app.py" in sources
    assert set(bundle.namelist()) == sources | {"pyproject.toml", ".info/CONTENT"}


def test_the_bundle_names_apps_that_it_carries(bundle: zipfile.ZipFile) -> None:
    app = tomllib.loads(bundle.read("pyproject.toml").decode())["tool"]["flwr"]["app"]
    for component in app["components"].values():
        module, _, attribute = component.partition(":")
        source = bundle.read(module.replace(".", "/") + ".py").decode()
        assert f"\n{attribute} = " in source


def typed(flat: dict[str, object]) -> dict[str, tuple[type, object]]:
    """1, 1.0 and True are equal in Python, and different settings to Flower."""
    return {name: (type(value), value) for name, value in flat.items()}


def test_flowers_default_settings_are_the_shipped_mnist_scenario() -> None:
    ours = typed(flatten_tree(PYPROJECT["tool"]["flwr"]["app"]["config"]))
    assert ours == typed(flatten(load_scenario("mnist")))
