"""What a model file costs to run, measured in a process of its own that does nothing else.

Latency is processor time, so that what else the machine does at the moment is not in it; one row, one thread. Memory is
the largest the process ever was: Python, NumPy, the runtime, the model.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.trust.trial import peak_rss_bytes
from edge_runtime.errors import ArtefactError

WALL_S = 60.0
SAMPLES, SAMPLE_S = 25, 0.004  # a sample is as many runs as take that long
WARM_UP = 5
MODEL, INPUT = "model", "input.npy"


@dataclass(frozen=True, slots=True)
class Cost:
    """Median processor time of one row, and peak resident memory."""

    latency_us: float
    peak_rss_bytes: int


def cost_of(model: bytes, suffix: str, row: NDArray[np.generic], *, wall_s: float = WALL_S) -> Cost:
    """Run `model` again and again on one row, (1, ...).

    Raises:
        ArtefactError: it does not run, or not within `wall_s` seconds; then there is no figure.

    """
    import subprocess  # these two are the parent's alone: the child measures its own memory
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / f"{MODEL}{suffix}").write_bytes(model)
        np.save(folder / INPUT, row[:1])
        command = [sys.executable, "-I", "-B", "-m", "edge_runtime.deploy.latency", scratch, suffix]
        environment = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            done = subprocess.run(  # noqa: S603 - this Python, our own module, no shell
                command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=wall_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise ArtefactError(f"a {suffix} model was not measured: no answer within {wall_s:g} s") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        why = said[-1] if said else f"its process ended with {done.returncode}"
        raise ArtefactError(f"a {suffix} model was not measured: {why}")
    try:
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return Cost(float(report["latency_us"]), int(report["peak_rss_bytes"]))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ArtefactError(f"a {suffix} model was not measured: its process gave no figures") from error


def _measure(folder: Path, suffix: str) -> Cost:
    """What the child does."""
    from edge_runtime.deploy.runner import Runner

    row = np.load(folder / INPUT, allow_pickle=False)
    runner = Runner.of((folder / f"{MODEL}{suffix}").read_bytes(), suffix)
    latency_us = median_us(lambda: runner.predict(row))
    return Cost(latency_us, peak_rss_bytes())


def median_us(run: Callable[[], object]) -> float:
    """Processor time of `run`, in us: the median of several samples."""
    for _ in range(WARM_UP):
        run()
    once = max(_seconds(run, WARM_UP), 1e-7)
    runs = max(1, round(SAMPLE_S / once))
    return 1e6 * float(np.median([_seconds(run, runs) for _ in range(SAMPLES)]))


def _seconds(run: Callable[[], object], runs: int) -> float:
    """Of one of `runs`."""
    start = time.process_time()
    for _ in range(runs):
        run()
    return (time.process_time() - start) / runs


if __name__ == "__main__":
    cost = _measure(Path(sys.argv[1]), sys.argv[2])
    sys.stdout.write(json.dumps({"latency_us": cost.latency_us, "peak_rss_bytes": cost.peak_rss_bytes}))
