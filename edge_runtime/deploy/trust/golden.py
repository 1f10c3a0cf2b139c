"""Golden vectors: inputs, and what each model file answered where it was made. A device repeats them before it trusts.

The file is safetensors: `input`, and `output/NAME` for each model file NAME. Runtimes and processors differ by a step
or two of an INT8 grid, so answers are compared within a tolerance, which stands in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.runner import Runner
from edge_runtime.deploy.trust.tensors import write_tensors
from edge_runtime.errors import ArtefactError
from edge_runtime.files import write_atomically

GOLDEN = "golden.safetensors"
INPUT = "input"
# Of the spread of the answers: about 13 steps of an 8-bit grid over it.
RELATIVE_TOLERANCE = 0.05


def output_name(model: str) -> str:
    """The tensor that holds the answers of the model file of this name."""
    return f"output/{model}"


def write_golden(
    folder: Path, models: Iterable[Path], x: NDArray[np.generic], *, relative_tolerance: float = RELATIVE_TOLERANCE
) -> tuple[Path, dict[str, Any]]:
    """Run each model on `x` (B, ...) and write `golden.safetensors` into `folder`.

    Returns the path, to be listed under the format "golden", and the manifest's field `golden`.

    Raises:
        ArtefactError: a model answers with NaN or infinity.

    """
    arrays: dict[str, NDArray[np.generic]] = {INPUT: np.ascontiguousarray(x)}
    tolerance = {}
    for model in models:
        y = Runner.of(model.read_bytes(), model.suffix).predict(x)
        if not np.isfinite(y).all():
            raise ArtefactError(f"{model}: answers a golden input with NaN or infinity")
        arrays[output_name(model.name)] = y
        tolerance[model.name] = relative_tolerance * max(float(y.max() - y.min()), 1e-6)
    path = folder / GOLDEN
    write_atomically(path, [write_tensors(arrays)])
    return path, {"file": GOLDEN, "tolerance": tolerance}
