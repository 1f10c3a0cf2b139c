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
from edge_runtime.errors import UnsupportedOpError

# File suffix -> module and class of the backend that runs it, loaded on first use.
BACKENDS: Mapping[str, tuple[str, str]] = {
    ".onnx": ("edge_runtime.deploy.run.onnx_runtime", "OnnxBackend"),
}
DTYPES: Mapping[str, type[Any]] = {"f32": np.float32, "i64": np.int64}


class Runner:
    """A model that is ready to run; `input` and `output` say what it takes and gives."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.input: Spec = backend.input
        self.output: Spec = backend.output

    @classmethod
    def open(cls, path: str | Path, *, threads: int = 1, root_key: bytes | str | Path | None = None) -> Runner:
        """Verify the file against the manifest in its folder, then load it.

        With a publisher's root key (its `.pub` file), the manifest must be signed under it.

        Raises:
            ArtefactError: it does not match, or the runtime refuses it.
            UnsupportedOpError: a file of another format than those in `BACKENDS`.

        """
        path = Path(path)
        if path.suffix not in BACKENDS:
            raise UnsupportedOpError(f"{path.name}: there are runners for {', '.join(BACKENDS)}")
        return cls.of(verified_bytes(path, root_key), path.suffix, threads=threads)

    @classmethod
    def of(cls, model: bytes, suffix: str, *, threads: int = 1) -> Runner:
        """A runner of bytes that the caller trusts; `suffix` as of a file."""
        module, name = BACKENDS[suffix]
        return cls(getattr(importlib.import_module(module), name)(model, threads=threads))

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

    def stream(self, inputs: Iterable[NDArray[np.generic]]) -> Iterator[NDArray[np.float32]]:
        """One output for each input (without its batch dim), as they come."""
        for one in inputs:
            yield self.predict(np.asarray(one)[None])[0]
