"""An ONNX model in ONNX Runtime."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.run.backend import Spec
from edge_runtime.deploy.run.onnx_wire import external_tensors
from edge_runtime.errors import ArtefactError, MissingPackageError

ROWS = 32  # that a model for any batch takes at once: its memory is that of so many rows, and it keeps what it once had
_DTYPES = {"tensor(float)": "f32", "tensor(int64)": "i64"}


class OnnxBackend:
    """Float32 (or int64 tokens) in, float32 out; quantisation is inside the file."""

    def __init__(self, model: bytes, *, threads: int = 1) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise MissingPackageError("running .onnx needs onnxruntime: pip install 'hedgerow[onnx]'") from error
        if outside := external_tensors(model):
            raise ArtefactError(f"tensor {outside[0]!r} is in another file; a model must hold all its tensors")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what is wrong is in the error
        options.enable_mem_pattern = False  # one would be kept for each batch size seen
        for key, value in session_settings(platform.machine(), cpu_flags()).items():
            options.add_session_config_entry(key, value)
        try:
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises bare RuntimeError subclasses of its own
            raise ArtefactError(f"ONNX Runtime refuses the model: {_line(error)}") from error
        if (count := (len(session.get_inputs()), len(session.get_outputs()))) != (1, 1):
            raise ArtefactError(f"the model has {count[0]} inputs and {count[1]} outputs; one of each is taken")
        self.input, self.output = (
            Spec(one.name, _DTYPES.get(one.type, one.type), tuple(n if isinstance(n, int) else -1 for n in one.shape))
            for one in (session.get_inputs()[0], session.get_outputs()[0])
        )
        self._run, self._outputs, self.options = session.run, [self.output.name], options

    def predict(self, x: NDArray[np.generic]) -> NDArray[np.float32]:
        if len(x) <= ROWS or self.input.shape[0] != -1:
            return self._predict(x)
        return np.concatenate([self._predict(x[first : first + ROWS]) for first in range(0, len(x), ROWS)])

    def _predict(self, x: NDArray[np.generic]) -> NDArray[np.float32]:
        try:
            output: NDArray[np.float32] = self._run(self._outputs, {self.input.name: x})[0]
        except Exception as error:  # as above
            raise ValueError(f"ONNX Runtime cannot run this input: {_line(error)}") from error
        return output


def session_settings(machine: str, flags: frozenset[str]) -> Mapping[str, str]:
    """Options of the session for a kind of machine.

    An x86 core without VNNI adds two products of 8 bits in 16 bits, which saturate: INT8 answers come out wrong. With
    x64quantprecision ONNX Runtime uses slower kernels that do not.
    """
    exact = machine not in ("x86_64", "AMD64") or flags.intersection(("avx512_vnni", "avx_vnni"))
    return {} if exact else {"session.x64quantprecision": "1"}


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets that Linux names for the first core; none where it does not tell."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
