"""What a model file may hold before any runtime opens it: known operators, bounded sizes, nothing outside the file.

A signature says who made a file, not that it is sound; and the parsers behind it are large and written in C++. What
passes here has a structure that this device can run in a memory it can name. The file is read by our own bounded
readers, and nothing in it is executed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge_runtime.errors import ArtefactError


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bounds of one model; a row of one input at a time."""

    max_elements: int = 64 << 20  # of one value
    max_total_elements: int = 1 << 30  # of all values, which are never alive at once


def check_model(content: bytes, suffix: str, sizes: Sizes | None = None) -> None:
    """Return if the file's structure is one that a device takes.

    Raises:
        ArtefactError: it is not; the text says what was found.

    """
    if suffix not in _CHECKS:
        raise ArtefactError(f"there is no list of what a {suffix} file may hold; there are {', '.join(_CHECKS)}")
    _CHECKS[suffix](content, sizes or Sizes())


def _onnx(content: bytes, sizes: Sizes) -> None:
    from edge_runtime.deploy.trust.onnx_model import read_onnx
    from edge_runtime.deploy.trust.onnx_shapes import shapes_of

    shapes = shapes_of(read_onnx(content), sizes.max_elements)
    _check_total(sum(map(math.prod, shapes.values())), "ONNX", sizes)


def _tflite(content: bytes, sizes: Sizes) -> None:
    from edge_runtime.deploy.trust.tflite_model import read_tflite
    from edge_runtime.deploy.trust.tflite_shapes import check_shapes

    model = read_tflite(content, sizes.max_elements)
    check_shapes(model)
    _check_total(sum(math.prod(tensor.shape) for tensor in model.tensors), "TFLite", sizes)


def _engine(content: bytes, sizes: Sizes) -> None:
    """The engine's own reader bounds everything by the file's length, but for the activations that are planned."""
    from edge_runtime.deploy.run.engine_file import decode

    nbytes = decode(content).activation_bytes
    if nbytes > 4 * sizes.max_elements:
        raise ArtefactError(f"its activations take {nbytes} bytes; {4 * sizes.max_elements} are allowed")


def _check_total(elements: int, what: str, sizes: Sizes) -> None:
    if elements > sizes.max_total_elements:
        raise ArtefactError(f"{what}: its values have {elements} elements; {sizes.max_total_elements} are allowed")


_CHECKS: Mapping[str, Callable[[bytes, Sizes], None]] = {".hedgerow": _engine, ".onnx": _onnx, ".tflite": _tflite}
