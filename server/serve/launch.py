"""Run a program that is killed when its parent dies: `python -m server.serve.launch PARENT PROGRAM ARGUMENT...`.

The SuperExec starts the server app by its name, `flwr-serverapp`. A script of that name, first in the SuperExec's
PATH, comes by here, so that the server app does not outlive it; what prctl(2) sets stays over the exec.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from server.serve.processes import die_with_parent

APP = "flwr-serverapp"


def write_script(folder: Path) -> None:
    """The script, in a folder that goes first in PATH."""
    folder.mkdir(exist_ok=True, mode=0o700)
    real = Path(sys.executable).parent / APP
    launch = [sys.executable, "-P", "-m", "server.serve.launch"]
    script = folder / APP
    script.write_text(f'#!/bin/sh\nexec {shlex.join(launch)} $PPID {shlex.quote(str(real))} "$@"\n')
    script.chmod(0o700)


if __name__ == "__main__":
    die_with_parent()
    if os.getppid() != int(sys.argv[1]):  # it died before the call
        sys.exit(1)
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606  # the program that the script names
