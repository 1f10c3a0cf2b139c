"""Runs a `FloatModel` on the native core, with every value in a place of its own: for calibration and comparison."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.engine.session import DTYPES, native_ops
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.ir.graph import Graph
from edge_runtime.ir.ops import OPS
from edge_runtime.kernels.native import NativeProgram, Status
from edge_runtime.planner.arena import aligned
from edge_runtime.program.packed import pack

ROWS = 32


class Evaluator:
    """A model that is ready to run on up to `rows` rows at once; shorter batches are padded."""

    def __init__(self, model: FloatModel, rows: int = ROWS) -> None:
        self.model, self.rows = model, rows
        self._graph = graph = model.at(rows)
        offsets, work, nbytes = places(graph)
        packed = pack(graph, offsets, work)
        self._nodes = np.array([op.node for op in packed])  # of each op, the node it belongs to
        block = np.zeros(nbytes + 64, np.uint8)
        start = -block.ctypes.data % 64
        self._arena = block[start : start + nbytes]
        self._native, self._count = NativeProgram(native_ops(packed), nbytes), len(packed)
        self._views = {
            name: self._arena[at : at + value.nbytes].view(DTYPES[value.dtype]).reshape(value.shape)
            for name, at in offsets.items()
            if (value := graph.values[name]).dtype in DTYPES
        }
        for name, content in model.weights.items():
            self._views[name][...] = content

    def values(self, x: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
        """All that have the batch in front, for inputs x (n, ...), n <= rows; the next call changes them."""
        self._run(x)
        names = [name for node in self._graph.nodes for name in node.outputs if name in self._views]
        by_row = [name for name in (*self._graph.inputs, *names) if self._views[name].shape[:1] == (self.rows,)]
        return {name: self._views[name][: len(x)] for name in by_row}

    def predict(self, x: NDArray[np.generic]) -> NDArray[np.float32]:
        """The output for inputs x (n, ...), any n; float32."""
        parts = [self._output(chunk) for chunk in chunks(x, self.rows)]
        return np.concatenate(parts)

    def _output(self, x: NDArray[np.generic]) -> NDArray[np.float32]:
        self._run(x)
        whole = self._views[self._graph.outputs[0]]
        return whole[: len(whole) // self.rows * len(x)].astype(np.float32)

    def _run(self, x: NDArray[np.generic]) -> None:
        self._fill(x)
        self._run_ops(0, self._count)

    def _fill(self, x: NDArray[np.generic]) -> None:
        view = self._views[self._graph.inputs[0]]
        view[: len(x)] = x
        view[len(x) :] = x[-1:]

    def _run_node(self, place: int) -> None:
        """The ops of one node alone."""
        first = int(np.searchsorted(self._nodes, place))
        self._run_ops(first, int(np.searchsorted(self._nodes, place + 1)) - first)

    def _run_ops(self, first: int, count: int) -> None:
        status, op = self._native.run(self._arena, first, count)
        if status == Status.OUT_OF_RANGE:
            raise ValueError("a token is outside its table")
        if status != Status.OK:
            raise EdgeRuntimeError(f"the model stopped with status {status} at op {op}")


def chunks(x: NDArray[np.generic], rows: int) -> Iterator[NDArray[np.generic]]:
    for first in range(0, len(x), rows):
        yield x[first : first + rows]


def predict(model: FloatModel, x: NDArray[np.generic]) -> NDArray[np.float32]:
    """The model's output for inputs x (n, ...)."""
    return Evaluator(model, max(1, min(ROWS, len(x)))).predict(x)


def all_inputs(batches: Iterable[NDArray[np.generic]], rows: int = ROWS) -> Iterator[NDArray[np.generic]]:
    """The same inputs in batches of at most `rows`."""
    for batch in batches:
        yield from chunks(batch, rows)


def places(graph: Graph) -> tuple[dict[str, int], dict[int, int], int]:
    """Offsets of values, which share none but with their views; of scratch spaces; and the bytes of it all."""
    offsets: dict[str, int] = {}
    end = 0
    for name in (*graph.inputs, *graph.state):
        offsets[name] = end
        end += aligned(graph.values[name].nbytes)
    work: dict[int, int] = {}
    for place, node in enumerate(graph.nodes):
        for name in node.outputs:
            if OPS[node.op].view:
                offsets[name] = offsets[node.inputs[0]]
                continue
            offsets[name] = end
            end += aligned(graph.values[name].nbytes)
        if nbytes := OPS[node.op].work([graph.values[name] for name in node.inputs], node.attributes):
            work[place] = end
            end += aligned(nbytes)
    return offsets, work, end
