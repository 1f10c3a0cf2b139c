"""An ONNX model in ONNX Runtime."""

from __future__ import annotations

import platform

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.run.backend import Spec
from edge_runtime.errors import ArtefactError, MissingPackageError

_DTYPES = {"tensor(float)": "f32", "tensor(int64)": "i64"}


class OnnxBackend:
    """Float32 (or int64 tokens) in, float32 out; quantisation is inside the file."""

    def __init__(self, model: bytes, *, threads: int = 1) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise MissingPackageError("running .onnx needs onnxruntime: pip install 'hedgerow[onnx]'") from error
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if platform.machine() == "x86_64":
            # Without VNNI, ONNX Runtime's x86 kernels saturate int16 sums and INT8 answers come out wrong.
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises bare RuntimeError subclasses of its own
            raise ArtefactError(f"ONNX Runtime refuses the model: {str(error).splitlines()[0]}") from error
        self.input, self.output = (
            Spec(one.name, _DTYPES.get(one.type, one.type), tuple(n if isinstance(n, int) else -1 for n in one.shape))
            for one in (self._session.get_inputs()[0], self._session.get_outputs()[0])
        )

    def predict(self, x: NDArray[np.generic]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = self._session.run(None, {self.input.name: x})[0]
        return output
