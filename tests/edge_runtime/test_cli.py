"""The installed `hedgerow` script: exit codes, one-line errors, and tracebacks only with --debug.

Failing commands come from a real plugin: an installed-looking package on PYTHONPATH with its own entry points.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edge_runtime

HEDGEROW = Path(sys.executable).with_name("hedgerow")

PLUGIN = '''
import argparse
from edge_runtime import errors

ENDINGS = {
    "well": lambda: None,
    "with-7": lambda: 7,
    "config": lambda: fail(errors.ConfigError("lr = -1: must be > 0")),
    "package": lambda: fail(errors.MissingPackageError("pip install it")),
    "run": lambda: fail(errors.RunError("nobody came")),
    "peer": lambda: fail(errors.PeerError("two\\nlines")),
    "bug": lambda: fail(ZeroDivisionError("by zero")),
    "interrupt": lambda: fail(KeyboardInterrupt()),
    "flood": lambda: print("line\\n" * 1_000_000),
}


def fail(error):
    raise error


def command(parser):
    """End in a chosen way.

    This line is not part of the summary.
    """
    parser.add_argument("ending")
    parser.set_defaults(run=lambda options: ENDINGS[options.ending]())
'''

ENTRY_POINTS = """
[hedgerow.commands]
end = hedgerow_endings:command
broken = hedgerow_not_installed:command
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "hedgerow_endings.py").write_text(PLUGIN)
    metadata = folder / "hedgerow_endings-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: hedgerow-endings\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


def hedgerow(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run([HEDGEROW, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_no_command_is_a_usage_error() -> None:
    done = hedgerow()
    assert done.returncode == 2
    assert "COMMAND" in done.stderr


def test_an_unknown_command_is_a_usage_error_that_lists_the_known() -> None:
    done = hedgerow("harvest")
    assert done.returncode == 2
    assert "harvest" in done.stderr
    assert "simulate" in done.stderr


def test_version_is_the_packages() -> None:
    done = hedgerow("--version")
    assert done.returncode == 0
    assert done.stdout.strip() == f"hedgerow {importlib.metadata.version('hedgerow')}"
    assert edge_runtime.__version__ == importlib.metadata.version("hedgerow")


def test_help_lists_every_command_with_the_first_line_of_its_docstring() -> None:
    done = hedgerow("--help")
    assert done.returncode == 0
    for name in ("bench", "simulate"):
        assert name in done.stdout
    assert "Train a whole federation on this machine" in done.stdout


def test_a_wrong_scenario_is_one_line_and_exit_2() -> None:
    done = hedgerow("simulate", "no-such-scenario")
    assert done.returncode == 2
    assert done.stderr.startswith("hedgerow: scenario 'no-such-scenario'")
    assert done.stderr.count("\n") == 1


def test_a_wrong_setting_is_one_line_that_names_key_and_range() -> None:
    done = hedgerow("simulate", "digits", "--set", "train.optimizer.lr=-1")
    assert done.returncode == 2
    assert done.stderr.startswith("hedgerow: train.optimizer.lr = -1")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_debug_adds_a_traceback_to_the_line() -> None:
    done = hedgerow("simulate", "no-such-scenario", "--debug")
    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("hedgerow: scenario 'no-such-scenario'")


@pytest.mark.parametrize(("ending", "code"), [("well", 0), ("with-7", 7)])
def test_a_command_that_ends_without_error_is_silent(plugin: Path, ending: str, code: int) -> None:
    done = hedgerow("end", ending, path=plugin)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


ERRORS = [
    ("config", 2, "hedgerow: lr = -1: must be > 0"),
    ("package", 2, "hedgerow: pip install it"),
    ("run", 3, "hedgerow: nobody came"),
    ("peer", 3, "hedgerow: two lines"),
    ("bug", 3, "hedgerow: unexpected ZeroDivisionError: by zero (--debug shows where)"),
    ("interrupt", 130, "hedgerow: interrupted"),
]


@pytest.mark.parametrize(("ending", "code", "line"), ERRORS)
def test_an_error_is_one_line_and_its_exit_code(plugin: Path, ending: str, code: int, line: str) -> None:
    done = hedgerow("end", ending, path=plugin)
    assert (done.returncode, done.stderr) == (code, line + "\n")


@pytest.mark.parametrize(("ending", "code", "line"), ERRORS)
def test_debug_shows_where_and_keeps_the_exit_code(plugin: Path, ending: str, code: int, line: str) -> None:
    done = hedgerow("end", ending, "--debug", path=plugin)
    assert done.returncode == code
    assert "hedgerow_endings.py" in done.stderr
    assert done.stderr.splitlines()[-1] == line


def test_a_reader_that_goes_away_is_no_traceback(plugin: Path) -> None:
    with subprocess.Popen(
        [HEDGEROW, "end", "flood"],
        env=os.environ | {"PYTHONPATH": str(plugin)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 3


def test_a_plugin_that_cannot_be_loaded_is_one_line(plugin: Path) -> None:
    done = hedgerow("broken", path=plugin)
    assert done.returncode in (2, 3)
    assert "hedgerow_not_installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plugin_that_cannot_be_loaded_leaves_the_other_commands_alone(plugin: Path) -> None:
    assert hedgerow("end", "well", path=plugin).returncode == 0
    assert "Traceback" not in hedgerow("--version", path=plugin).stderr
