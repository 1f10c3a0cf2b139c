"""Fresh processes of `steps.py`, and the environment of the rivals that cannot live in the product's own.

onnxruntime-training is the same module as onnxruntime, so the two exclude each other; `make rivals` installs it with
ExecuTorch in an environment of its own, .venv-rivals of the checkout or the folder that HEDGEROW_RIVALS names.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# What a framework is called in tables, and the module that has to be there in the rivals' environment.
NAMES = {"ours": "ours", "torch": "torch eager", "ort": "onnxruntime-training", "executorch": "executorch"}
RIVAL_MODULES = {"ort": "onnxruntime.training", "executorch": "executorch"}


class StepError(Exception):
    """A process of `steps.py` failed; the text is the last line of what it said."""


def rivals_python() -> Path:
    folder = os.environ.get("HEDGEROW_RIVALS")
    return (Path(folder) if folder else HERE.parent / ".venv-rivals") / "bin" / "python"


@cache
def why_missing(framework: str) -> str:
    """Why a framework cannot run here, as one line for the reader; "" where it can."""
    if (module := RIVAL_MODULES.get(framework)) is None:
        return ""
    look = f"import sys; from importlib.util import find_spec; sys.exit(find_spec({module.split('.')[0]!r}) is None)"
    python = rivals_python()
    there = python.is_file() and subprocess.run([python, "-c", look], check=False).returncode == 0
    return "" if there else f"skipped: {NAMES[framework]} (make rivals installs it)"


def run_steps(command: str, framework: str, folder: Path, *arguments: object, threads: int = 1) -> dict[str, Any]:
    """What `steps.py` prints, run in the framework's environment; its numbers of threads are limited to `threads`.

    Raises:
        StepError: it failed.

    """
    python = rivals_python() if framework in RIVAL_MODULES else sys.executable
    line = [python, "-W", "ignore", HERE / "steps.py", command, framework, folder, *map(str, arguments)]
    limits = {name: str(threads) for name in ONE_THREAD}
    environment = {**os.environ, **limits, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(line, check=False, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        said = [one for one in done.stderr.splitlines() if one.strip()]
        raise StepError(said[-1].strip() if said else f"ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def machine() -> str:
    """The processor in general terms: architecture, cores that this process may use, vector instructions."""
    flags: set[str] = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            flags.update(line.split(":", 1)[1].split())
    interesting = ("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "asimd", "asimddp", "i8mm", "sve")
    found = ", ".join(flag for flag in interesting if flag in flags) or "no vector instructions known"
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {found}"


def save(path: Path, about: dict[str, Any], rows: list[dict[str, Any]], bars: list[str]) -> None:
    """A JSON file of `about`, this machine, the bars and the rows, one row a line."""
    head = json.dumps({**about, "machine": machine(), "bars": bars}, indent=1).removesuffix("\n}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head},\n "rows": [\n  ' + ",\n  ".join(json.dumps(row) for row in rows) + "\n ]\n}\n")
