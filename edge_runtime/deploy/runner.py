"""Runs an exported model on this device: verified first, then one `predict`."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.artefact import verified_bytes
from edge_runtime.errors import ArtefactError, MissingPackageError, UnsupportedOpError


class Runner:
    """An ONNX model in ONNX Runtime, on one thread."""

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
        self._input = self._session.get_inputs()[0].name

    @classmethod
    def open(cls, path: str | Path, *, threads: int = 1) -> Runner:
        """Verify the file against the manifest in its folder, then load it.

        Raises:
            ArtefactError: it does not match, or the runtime refuses it.
            UnsupportedOpError: not an .onnx file.

        """
        path = Path(path)
        if path.suffix != ".onnx":
            raise UnsupportedOpError(f"{path.name}: this version runs .onnx files")
        return cls(verified_bytes(path), threads=threads)

    def predict(self, x: NDArray[np.generic]) -> NDArray[np.float32]:
        """The model's output, float32 (B, ...), for inputs x (B, ...) of the dtype it was exported with."""
        output: NDArray[np.float32] = self._session.run(None, {self._input: x})[0]
        return output
