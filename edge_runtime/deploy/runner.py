"""Runs a model file on this device: verified first, then one `predict`, whatever its format."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.artefact import verified_bytes
from edge_runtime.deploy.run.backend import Backend, Spec
from edge_runtime.errors import ConfigError, UnsupportedOpError

# File suffix -> module and class of the backend that runs it, loaded on first use.
BACKENDS: Mapping[str, tuple[str, str]] = {
    ".onnx": ("edge_runtime.deploy.run.onnx_runtime", "OnnxBackend"),
    ".tflite": ("edge_runtime.deploy.run.litert", "LiteRtBackend"),
    ".hedgerow": ("edge_runtime.deploy.run.engine", "EngineBackend"),
}
BOUNDED = (".hedgerow",)  # whose backends take `max_memory`
DTYPES: Mapping[str, type[Any]] = {"f32": np.float32, "i64": np.int64}


class Runner:
    """A model that is ready to run; `input` and `output` say what it takes and gives."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.input: Spec = backend.input
        self.output: Spec = backend.output

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        threads: int = 1,
        max_memory: int | None = None,
        root_key: bytes | str | Path | None = None,
    ) -> Runner:
        """Verify the file against the manifest in its folder, then load it.

        Args:
            path: the file.
            threads: that share an inference.
            max_memory: bytes that activations and constants may take together, for a `.hedgerow` file, which tells
                before it is loaded; None for any.
            root_key: a publisher's root key, or its `.pub` file: the manifest must be signed under it. None: the file
                has to be what the manifest says, whoever wrote it.

        Raises:
            ArtefactError: it does not match, or the runtime refuses it.
            BudgetError: it needs more than `max_memory`.
            UnsupportedOpError: a file of another format than those in `BACKENDS`.

        """
        path = Path(path)
        if path.suffix not in BACKENDS:
            raise UnsupportedOpError(f"{path.name}: there are runners for {', '.join(BACKENDS)}")
        return cls.of(verified_bytes(path, root_key), path.suffix, threads=threads, max_memory=max_memory)

    @classmethod
    def of(cls, model: bytes, suffix: str, *, threads: int = 1, max_memory: int | None = None) -> Runner:
        """A runner of bytes that the caller trusts; `suffix` as of a file."""
        module, name = BACKENDS[suffix]
        bound = {} if max_memory is None else {"max_memory": max_memory}
        if bound and suffix not in BOUNDED:
            raise ConfigError(f"max_memory: only {', '.join(BOUNDED)} tells what it needs before it is loaded")
        return cls(getattr(importlib.import_module(module), name)(model, threads=threads, **bound))

    def predict(self, x: NDArray[np.generic]) -> NDArray[np.float32]:
        """The model's output, float32 (B, ...), for inputs x (B, ...), B >= 1.

        Where the file has a fixed batch, x is cut into such batches and the last one is padded.

        Raises:
            ValueError: a shape other than the model's.

        """
        given = np.ascontiguousarray(x, DTYPES[self.input.dtype])
        if given.shape[1:] != self.input.shape[1:] or not len(given):
            raise ValueError(f"the model takes (batch, {', '.join(map(str, self.input.shape[1:]))}), got {x.shape}")
        rows = self.input.shape[0]
        if rows in (-1, len(given)):
            return self._backend.predict(given)
        parts = []
        for first in range(0, len(given), rows):
            chunk = given[first : first + rows]
            padded = chunk if len(chunk) == rows else np.concatenate([chunk, given[:1].repeat(rows - len(chunk), 0)])
            out = self._backend.predict(padded)
            parts.append(out[: len(out) // rows * len(chunk)])
        return np.concatenate(parts)

    def predict_all(self, x: NDArray[np.generic], rows: int = 64) -> NDArray[np.float32]:
        """`predict` of so many rows at a time, which bounds the memory that activations take."""
        return np.concatenate([self.predict(x[first : first + rows]) for first in range(0, len(x), rows)])

    def stream(self, inputs: Iterable[NDArray[np.generic]]) -> Iterator[NDArray[np.float32]]:
        """One output for each input (without its batch dim), as they come."""
        for one in inputs:
            yield self.predict(np.asarray(one)[None])[0]
