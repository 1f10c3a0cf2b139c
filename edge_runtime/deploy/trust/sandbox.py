"""Opens a model that is not yet trusted, in a process of its own that may take so much memory and time and no more.

The child is this Python, isolated (-I), with no shell, no inherited environment and no standard input. It sets its own
limits before it loads a runtime: address space, processor time, open files, bytes it may write. The parent holds the
wall clock. What it reports comes back through an unlinked file, which the limit on written bytes bounds.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_runtime.errors import ArtefactError

MAX_REPORT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Limits:
    """What one trial may take. Address space is several times what is resident: runtimes map libraries and pools."""

    memory_bytes: int = 1 << 30
    cpu_s: int = 60
    wall_s: float = 120.0
    open_files: int = 64


@dataclass(frozen=True, slots=True)
class Trial:
    """How a model did: the largest difference from its golden outputs, one row's latency, the process's peak memory."""

    difference: float
    latency_s: float
    peak_rss_bytes: int
    output_sha256: str


def try_model(
    model: Path, golden: Path, *, sha256: tuple[str, str], tolerance: float, limits: Limits | None = None
) -> Trial:
    """Run the golden vectors; `sha256` is of the model and of the golden file, so that what was checked is what is run.

    Raises:
        ArtefactError: it crashes, hangs, takes too much, is refused by its runtime, or answers something else.

    """
    limits = limits or Limits()
    request = {"model": str(model), "golden": str(golden), "sha256": list(sha256), "limits": asdict(limits)}
    report = _report_of(model.name, request, limits)
    if "error" in report:
        raise ArtefactError(f"{model.name}: fails its trial: {report['error']}")
    difference = float(report["difference"])
    if not math.isfinite(difference) or difference > tolerance:
        raise ArtefactError(
            f"{model.name}: its answers differ from the golden ones by {difference:.3g}, {tolerance:.3g} is allowed; "
            "this device's runtime does not run it as its maker's does"
        )
    return Trial(difference, float(report["latency_s"]), int(report["peak_rss_bytes"]), str(report["output_sha256"]))


def _report_of(name: str, request: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    command = [sys.executable, "-I", "-B", "-m", "edge_runtime.deploy.trust.trial", json.dumps(request)]
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(  # noqa: S603 - this Python, our own module, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath, "LANG": "C", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            code = child.wait(limits.wall_s)
        except subprocess.TimeoutExpired:
            raise ArtefactError(f"{name}: fails its trial: no answer within {limits.wall_s:g} s") from None
        finally:
            _end(child)
        out.seek(0)
        content = out.read(MAX_REPORT_BYTES)
    if code < 0:
        raise ArtefactError(f"{name}: fails its trial: {_death(-code, limits)}")
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError):
        raise ArtefactError(f"{name}: fails its trial: it ended with exit code {code} and no report") from None


def _end(child: subprocess.Popen[bytes]) -> None:
    """The child and whatever it started; it leads a process group of its own."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _death(number: int, limits: Limits) -> str:
    if number == signal.SIGXCPU:
        return f"it took more than {limits.cpu_s} s of processor time"
    return f"it died of signal {signal.Signals(number).name}"
