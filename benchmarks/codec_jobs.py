"""A coder in a process of its own: what `nncodec_rival.py` and `codec_child.py` are asked, and what they answer.

A job is one line of JSON with at least an `update` (the .npz of a recording) and `repeats`; the answer is one line with
the bytes of the whole payload, the NMSE of what is decoded from it, and CPU seconds, medians of the repeats.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from processes import HERE, ONE_THREAD


@dataclass(frozen=True, slots=True)
class Coded:
    """One update, coded and decoded: sum((x - decoded)^2) / sum(x^2), and MB of float32 input per second."""

    bits: float
    nmse: float
    encode_mb_s: float
    decode_mb_s: float


class Coder:
    """A child process, one thread; answers jobs until it is closed."""

    def __init__(self, python: Path | str, script: str) -> None:
        # Neither side may see the other's packages.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        own = {"PYTHONPATH": str(HERE.parent)} if str(python) == sys.executable else {}
        self._process = subprocess.Popen(
            [python, "-W", "ignore", HERE / script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**inherited, **own, **dict.fromkeys(ONE_THREAD, "1")},
        )  # fmt: skip

    def __enter__(self) -> Coder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        with self._process:  # closes its pipes, so that it ends, and waits
            pass

    def run(self, update: Path, repeats: int = 1, **job: Any) -> Coded:
        """The update, coded as the job says.

        Raises:
            RuntimeError: the process failed; the text is the last line of what it said.

        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"update": str(update), **job, "repeats": repeats}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            assert self._process.stderr is not None
            said = self._process.stderr.read().strip().splitlines() or ["it said nothing"]
            self._process.wait()
            raise RuntimeError(f"coding {update.name} as {job} failed: {said[-1]}")
        found = json.loads(line)
        megabytes = 4e-6 * found["parameters"]
        bits = 8 * found["bytes"] / found["parameters"]
        return Coded(bits, found["nmse"], megabytes / found["encode_s"], megabytes / found["decode_s"])


def size_and_rms(update: Path) -> tuple[int, float]:
    with np.load(update) as arrays:
        flat = np.concatenate([arrays[name].ravel() for name in arrays.files])
    return flat.size, math.sqrt(float(np.mean(np.square(flat, dtype=np.float64))))
