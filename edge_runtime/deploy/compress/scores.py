"""How much each weight matters: what the pruning levers rank by. One array of scores per weight, of its shape, >= 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.graph.evaluate import places
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.engine.session import DTYPES, native_ops
from edge_runtime.errors import EdgeRuntimeError, NumericsError
from edge_runtime.ir.graph import Graph
from edge_runtime.kernels.native import NativeProgram, Status
from edge_runtime.losses import CrossEntropy, Loss, denominator, terms
from edge_runtime.optimizers import SGD
from edge_runtime.passes.training import Recipe, gradient_graph
from edge_runtime.program.packed import pack
from edge_runtime.train.batches import Batch, row_count

Scores = Mapping[str, NDArray[np.floating[Any]]]


def magnitude(model: FloatModel) -> Scores:
    """|w| of every weight (Han et al. 2015, "Learning both weights and connections for efficient neural networks")."""
    return {name: np.abs(w) for name, w in model.weights.items()}


def taylor(model: FloatModel, batches: Iterable[Batch], loss: Loss | None = None) -> Scores:
    """Mean over batches of (w dL/dw)^2: by how much, squared, the loss moves without the weight, to first order.

    Molchanov et al. 2019, "Importance estimation for neural network pruning", equation 8. Labels are read.

    Raises:
        NumericsError: a gradient is NaN or infinite.
        ValueError: there are no batches.

    """
    loss = loss or CrossEntropy()
    totals = {name: np.zeros(w.shape) for name, w in model.weights.items()}
    runs: dict[int, _Gradients] = {}
    count = 0
    for x, y in batches:
        rows = row_count(x)
        if rows not in runs:  # a pass has at most two sizes: that of its batches, and of its last one
            runs[rows] = _Gradients(model, loss, rows)
        for name, g in runs[rows](np.asarray(x), y if isinstance(y, tuple) else (y,)).items():
            totals[name] += (model.weights[name] * g.astype(np.float64)) ** 2
        count += 1
    if not count:
        raise ValueError("there are no batches to measure gradients on")
    if wrong := next((name for name, one in totals.items() if not np.isfinite(one).all()), None):
        raise NumericsError(f"the gradient of {wrong} is NaN or infinite")
    return {name: one / count for name, one in totals.items()}


class _Gradients:
    """The gradients of a model's mean loss over `rows` rows, on the native core, every value in a place of its own."""

    def __init__(self, model: FloatModel, loss: Loss, rows: int) -> None:
        self._loss, self._rows, self._names = loss, rows, tuple(model.weights)
        self._graph: Graph = gradient_graph(model.at(rows), Recipe(loss, SGD(), self._names), rows)
        offsets, work, nbytes = places(self._graph)
        ops = native_ops(pack(self._graph, offsets, work))
        block = np.zeros(nbytes + 64, np.uint8)
        start = -block.ctypes.data % 64
        self._arena = block[start : start + nbytes]
        self._native, self._count = NativeProgram(ops, nbytes), len(ops)
        self._views = {
            name: self._arena[at : at + value.nbytes].view(DTYPES[value.dtype]).reshape(value.shape)
            for name, at in offsets.items()
            if (value := self._graph.values[name]).dtype in DTYPES
        }
        for name, content in model.weights.items():
            if name in self._views:
                self._views[name][...] = content
        self._input = model.graph.inputs[0]

    def __call__(self, x: NDArray[np.generic], targets: tuple[NDArray[np.generic], ...]) -> dict[str, NDArray[Any]]:
        given: dict[str, Any] = {self._input: x, "rows": self._rows, "share": 1.0, "random": 0}
        for k, (term, target) in enumerate(zip(terms(self._loss), targets, strict=True)):
            total = denominator(term.loss, target)
            given |= {f"target.{k}": target, f"norm.{k}": 1 / total if total > 0 else 0.0}
        for name, content in given.items():
            if name in self._views:
                view = self._views[name]
                view[...] = np.reshape(content, view.shape) if np.ndim(content) else content
        status, op = self._native.run(self._arena, 0, self._count)
        if status == Status.OUT_OF_RANGE:
            raise ValueError("a token or class is outside its table")
        if status == Status.NOT_FINITE:
            raise NumericsError("the loss is NaN or infinite")
        if status != Status.OK:
            raise EdgeRuntimeError(f"the gradients stopped with status {status} at op {op}")
        return {name: self._views[g] for name, g in zip(self._names, self._graph.outputs[1:], strict=True)}
