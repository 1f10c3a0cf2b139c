"""A TFLite model in LiteRT, or in tflite-runtime where that is what the device has."""

from __future__ import annotations

import base64
import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.run.backend import Spec
from edge_runtime.errors import ArtefactError, EdgeRuntimeError, MissingPackageError

# The smallest model: one number, and no operator. tflite-runtime can be imported beside NumPy 2, and only fails to run.
PROBE = base64.b64decode(
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAUAAAAGAAAAAMAAAABAAAAYAAAAAEAAAAUAAAAAAAAAAwAFAAQAAwACAAE"
    "AAwAAAAYAAAADAAAAAgAAAAQAAAAAQAAAAAAAAAAAAAAAQAAAAwAAAAAAAYACAAEAAYAAAAEAAAAAQAAAAEAAAAEAAQABAAAAA=="
)
_HELP = "running .tflite needs ai-edge-litert: pip install 'hedgerow[litert]'"


@dataclass(frozen=True, slots=True)
class _Grid:
    """real = scale (q - zero_point), low <= q <= high."""

    scale: np.float32
    zero_point: np.float32
    low: np.float32
    high: np.float32

    @classmethod
    def of(cls, details: dict[str, Any]) -> _Grid | None:
        scale, zero_point = details["quantization"]
        if not scale:
            return None
        bounds = np.iinfo(details["dtype"])
        return cls(np.float32(scale), np.float32(zero_point), np.float32(bounds.min), np.float32(bounds.max))


class LiteRtBackend:
    """Float32 (or int64 tokens) in, float32 out, whatever grids the file's input and output have."""

    def __init__(self, model: bytes, *, threads: int = 1) -> None:
        interpreter = _interpreter()
        try:
            with _without_notices():
                self._model = interpreter(model_content=model, num_threads=threads)
                self._model.allocate_tensors()
            source, result = self._model.get_input_details()[0], self._model.get_output_details()[0]
        except Exception as error:  # LiteRT raises ValueError, RuntimeError and IndexError for what it cannot run
            raise ArtefactError(f"LiteRT refuses the model: {str(error).splitlines()[0]}") from error
        self._source, self._result = source["index"], result["index"]
        self._dtype = source["dtype"]
        self._from, self._to = _Grid.of(source), _Grid.of(result)
        self._shape = tuple(map(int, source["shape"]))
        self._steps = np.empty(self._shape, np.float32)  # the input in steps of its grid
        self.input, self.output = _spec(source), _spec(result)

    def predict(self, x: NDArray[np.generic]) -> NDArray[np.float32]:
        if x.shape != self._shape:
            self._model.resize_tensor_input(self._source, x.shape)
            self._model.allocate_tensors()
            self._shape = x.shape
            self._steps = np.empty(self._shape, np.float32)
        self._model.set_tensor(self._source, self._quantised(x))
        try:
            self._model.invoke()
        except RuntimeError as error:  # a token outside its table, say
            raise EdgeRuntimeError(f"LiteRT stopped: {str(error).splitlines()[0]}") from error
        output: NDArray[Any] = self._model.get_tensor(self._result)
        if self._to is None:
            return output
        real = output.astype(np.float32)
        real -= self._to.zero_point
        real *= self._to.scale
        return real

    def _quantised(self, x: NDArray[Any]) -> NDArray[Any]:
        grid, steps = self._from, self._steps
        if grid is None:
            return x if x.dtype == self._dtype else x.astype(self._dtype)
        np.divide(x, grid.scale, out=steps)
        np.rint(steps, out=steps)
        np.add(steps, grid.zero_point, out=steps)
        np.maximum(steps, grid.low, out=steps)
        np.minimum(steps, grid.high, out=steps)
        return steps.astype(self._dtype)


def _spec(details: dict[str, Any]) -> Spec:
    signature = details["shape_signature"]
    shape = tuple(map(int, signature if len(signature) else details["shape"]))
    whole = details["dtype"] in (np.int64, np.int32)
    return Spec(details["name"], "i64" if whole else "f32", shape)


@contextlib.contextmanager
def _without_notices() -> Iterator[None]:
    """LiteRT writes to file descriptor 2 that it has made a delegate, and has no switch for it."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@functools.cache
def _interpreter() -> Any:
    """The class of the runtime that is installed, and runs."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError as error:
            raise MissingPackageError(_HELP) from error
    try:
        Interpreter(model_content=PROBE).allocate_tensors()
    except Exception as error:  # AttributeError, SystemError or ImportError, by how NumPy and the runtime disagree
        raise MissingPackageError(
            f"{Interpreter.__module__.split('.')[0]} is installed but cannot run here ({error}); "
            "tflite-runtime needs Python 3.11 and numpy<2, ai-edge-litert has no such limits"
        ) from error
    return Interpreter
