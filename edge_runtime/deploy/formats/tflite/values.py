"""Where the values of a graph lie: in which tensors of the file.

A value may lie in several: float32 and int8, and in several orders of its dims. They are made when something reads
them, so that a model whose layers agree has no transposition in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.formats.tflite.file import TfliteFile
from edge_runtime.deploy.formats.tflite.layout import Order, moves_nothing, ordered, plain, steps
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.quantised import Quant
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.graph import Graph, Shape

Array = NDArray[Any]
FLOAT, INTEGER, TOKEN = "FLOAT32", "INT8", "INT64"


class Values:
    """Of a graph for `rows` rows; with `any_batch` its shapes are an example, and other batches must run too."""

    def __init__(self, model: FloatModel, quants: Mapping[str, Quant], rows: int, *, any_batch: bool) -> None:
        self.model, self.quants, self.any_batch = model, quants, any_batch
        self.graph: Graph = model.at(rows)
        self.file = TfliteFile()
        self.shapes: dict[str, Shape] = {name: value.shape for name, value in self.graph.values.items()}
        self.constants: dict[str, Array] = dict(model.weights)
        self._held: dict[str, dict[tuple[str, Order], int]] = {}
        self._views: dict[str, str] = {}  # reshaped values that no operator has made yet, and what they are views of
        self._ones: dict[int, int] = {}  # tensors of weights that were stored as integers, as float32
        wrong = [name for name, one in quants.items() if one.bits != 8 and name not in model.weights]
        if wrong:
            raise UnsupportedOpError(f"TFLite has no activations of {quants[wrong[0]].bits} bits ({wrong[0]}); use 8")

    def kind(self, name: str) -> str:
        """Of the value as it comes into the model, or leaves it."""
        if self.graph.values[name].dtype == "i64":
            return TOKEN
        return INTEGER if name in self.quants else FLOAT

    def hold(self, name: str, kind: str, order: Order, tensor: int) -> None:
        self._held.setdefault(name, {}).setdefault((kind, order), tensor)

    def view(self, name: str, source: str) -> None:
        """`name` is `source` in another shape; it gets a tensor when one is asked for."""
        self._views[name] = source

    def unviewed(self, name: str) -> str:
        """What `name` is a view of in the end."""
        while name in self._views:
            name = self._views[name]
        return name

    def order(self, name: str) -> Order:
        """The order in which it was made."""
        for _, order in self._held.get(name, {}):
            return order
        return plain(len(self.shapes[name]))

    def read(self, name: str, kind: str, order: Order) -> int:
        """A tensor that holds the value so; made if there is none. Constants may lack dims of 1 in front."""
        if name in self.constants:
            return self._constant(name, kind, order)
        held = self._held.setdefault(name, {})
        if (kind, order) not in held:
            held[kind, order] = self._made(name, kind, order)
        return held[kind, order]

    def _made(self, name: str, kind: str, order: Order) -> int:
        held, shape = self._held[name], self.shapes[name]
        if not held:  # a view
            if name not in self._views:
                raise UnsupportedOpError(f"TFLite has no operator that gives {name}")
            source = self._views[name]
            tensor = self.read(source, kind, plain(len(self.shapes[source])))
            return self.move(name, kind, order, self.reshaped(name, kind, plain(len(shape)), tensor), plain(len(shape)))
        same_kind = [one for one in held if one[0] == kind]
        if same_kind:
            return self.move(name, kind, order, held[same_kind[0]], same_kind[0][1])
        other, there = next(iter(held))
        tensor = self.new(name, kind, there)
        self.file.operator("QUANTIZE" if kind == INTEGER else "DEQUANTIZE", [held[other, there]], [tensor])
        self.hold(name, kind, there, tensor)
        return self.read(name, kind, order)

    def move(self, name: str, kind: str, order: Order, tensor: int, there: Order) -> int:
        """From one order to another."""
        if order == there:
            return tensor
        if moves_nothing(self._sizes(name), there, order):
            return self.reshaped(name, kind, order, tensor)
        moved = self.new(name, kind, order)
        by = self.file.constant(np.array(steps(there, order), np.int32))
        self.file.operator("TRANSPOSE", [tensor, by], [moved])
        return moved

    def _sizes(self, name: str) -> Shape:
        """The shape, in which the batch is not 1 where it may be another when the file runs."""
        batch = self.batch_dims(name) if self.any_batch else ()
        return tuple(max(n, 2) if dim in batch else n for dim, n in enumerate(self.shapes[name]))

    def reshaped(self, name: str, kind: str, order: Order, tensor: int) -> int:
        made = self.new(name, kind, order)
        shape = self.file.constant(np.array(self.free_shape(name, order), np.int32))
        self.file.operator("RESHAPE", [tensor, shape], [made])
        return made

    def new(self, name: str, kind: str, order: Order) -> int:
        quant = self.quants[name] if kind == INTEGER else None
        return self.file.tensor(ordered(self.shapes[name], order), kind, quant, "", self.signature(name, order))

    def free_shape(self, name: str, order: Order) -> Shape:
        """For a RESHAPE: with -1 where the batch is, if it may be any."""
        return tuple(-1 if self.any_batch and dim in self.batch_dims(name) else self.shapes[name][dim] for dim in order)

    def batch_dims(self, name: str) -> tuple[int, ...]:
        """The dims that are multiples of the batch."""
        value = self.model.graph.values.get(name)
        if value is None or name in self.graph.state:
            return (0,) if value is None else ()
        return tuple(dim for dim, n in enumerate(value.shape) if n % self.model.batch == 0)

    def weight(
        self,
        name: str,
        order: Order,
        columns: Callable[[Array], Array],
        *,
        integer: bool,
        rows: slice | Array = slice(None),
    ) -> int:
        """These rows of a layer's weight, in `order` after `columns`; stored as integers where it has a grid."""
        content, quant = self.constants[name], self.quants.get(name)
        if quant is None:
            return self.file.constant(columns(content)[rows].transpose(order))
        if quant.axis == 0:
            quant = replace(quant, scale=quant.scale[rows], zero_point=quant.zero_point[rows], axis=order.index(0))
        stored = columns(self.quants[name].quantise(content))[rows].transpose(order)
        tensor = self.file.constant(stored.astype(np.int8), quant)
        return tensor if integer else self._as_float(tensor)

    def _as_float(self, tensor: int) -> int:
        if tensor not in self._ones:
            self._ones[tensor] = self.file.tensor(self.file.tensors[tensor].shape)
            self.file.operator("DEQUANTIZE", [tensor], [self._ones[tensor]])
        return self._ones[tensor]

    def _constant(self, name: str, kind: str, order: Order) -> int:
        """Dims of 1 that stand in front are left out: they are implied where it is broadcast."""
        content, quant = self.constants[name], self.quants.get(name)
        if quant:
            content = quant.quantise(content).astype(np.int8) if kind == INTEGER else quant.round(content)
        content = content.reshape((1,) * (len(order) - content.ndim) + content.shape).transpose(order)
        first = next((dim for dim, n in enumerate(content.shape) if n > 1), content.ndim - 1)
        return self.file.constant(content.reshape(content.shape[first:]), quant if kind == INTEGER else None)

    def whole_constant(self, name: str, kind: str, order: Order | None) -> int:
        """With all its dims."""
        content, quant = self.constants[name], self.quants.get(name)
        if quant and kind == INTEGER:
            return self.file.constant(quant.quantise(content).astype(np.int8).transpose(order), quant)
        return self.file.constant((quant.round(content) if quant else content).transpose(order))

    def signature(self, name: str, order: Order) -> Shape:
        return self.free_shape(name, order) if self.any_batch else ()
