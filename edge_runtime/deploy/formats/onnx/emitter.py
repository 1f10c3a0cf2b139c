"""What the rows of the table write to: nodes, initialisers, and the ONNX name of every value of our graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edge_runtime.deploy.graph.float_model import Weights
from edge_runtime.deploy.graph.quantised import Quant
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.graph import Graph, Shape


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight as the file holds it: float32 without a `quant`, else the integers of that grid."""

    content: NDArray[np.generic]
    quant: Quant | None = None

    @property
    def real(self) -> NDArray[np.float32]:
        """The numbers that it stands for."""
        return self.content.astype(np.float32) if self.quant is None else self.quant.dequantise(self.content)

    def rows(self, order: Sequence[int]) -> Stored:
        """In another order of the first dim."""
        quant = self.quant
        if quant and quant.axis == 0:
            order_of = list(order)
            quant = dataclasses.replace(quant, scale=quant.scale[order_of], zero_point=quant.zero_point[order_of])
        return Stored(self.content[list(order)], quant)

    def transposed(self) -> Stored:
        """The last two dims change places."""
        last = self.content.ndim - 1
        swapped = {last: last - 1, last - 1: last}
        return Stored(self.content.swapaxes(-1, -2), self._along(swapped))

    def under_one(self) -> Stored:
        """With a dim of 1 in front."""
        return Stored(self.content[None], self._along({i: i + 1 for i in range(self.content.ndim)}))

    def _along(self, axes: Mapping[int, int]) -> Quant | None:
        if self.quant is None or self.quant.axis is None:
            return self.quant
        return dataclasses.replace(self.quant, axis=axes.get(self.quant.axis, self.quant.axis))


class Emitter:
    """One file in the making. `graph` has the shapes; a dim that `has_batch` is symbolic."""

    def __init__(self, graph: Graph, weights: Weights, quants: Mapping[str, Quant], batch: int, opset: int) -> None:
        self.graph, self.quants, self.opset = graph, quants, opset
        self.source = ""  # the user's line whose node is being written
        self._weights, self._batch = weights, batch
        self._read = {name for node in graph.nodes for name in node.inputs} | set(graph.outputs)
        self._nodes: list[NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._constants: dict[tuple[str, Shape, bytes], str] = {}
        self._computed: dict[tuple[str, ...], str] = {}
        self._names: dict[str, str] = {}  # of each value of our graph, as its readers see it
        self._count = 0

    # What rows ask.

    def shape(self, name: str) -> Shape:
        return self.graph.values[name].shape

    def has_batch(self, size: int) -> bool:
        """Whether this dim is the symbolic batch, or a multiple of it."""
        return self._batch > 0 and size % self._batch == 0 and size > 0

    def read(self, name: str) -> str:
        """The ONNX name of a value, rounded if it has a grid."""
        if name not in self._names:
            self._names[name] = self.tensor(self.stored(name))
        return self._names[name]

    def stored(self, name: str) -> Stored:
        """A weight, for a row that wants it laid out in another way."""
        content, quant = self._weights[name], self.quants.get(name)
        return Stored(content if quant is None else quant.quantise(content), quant)

    def is_weight(self, name: str) -> bool:
        return name in self._weights

    def is_read(self, name: str) -> bool:
        return name in self._read

    def refuse(self, what: str) -> UnsupportedOpError:
        return UnsupportedOpError(f"{what} cannot be written as ONNX, at {self.source or 'an unknown line'}")

    # What rows write.

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its one output."""
        return self.nodes(op, inputs, [True], **attributes)[0]

    def nodes(self, op: str, inputs: Iterable[str], wanted: Iterable[bool], **attributes: Any) -> list[str]:
        """Add a node of several outputs; "" for those that are not wanted."""
        names = [self._fresh() if one else "" for one in wanted]
        last = max(i for i, name in enumerate(names) if name)
        self._nodes.append(helper.make_node(op, list(inputs), names[: last + 1], **attributes))
        return names

    def once(self, op: str, *inputs: str) -> str:
        """Add a node that others may want as well; later calls give the same one."""
        key = (op, *inputs)
        if key not in self._computed:
            self._computed[key] = self.node(op, *inputs)
        return self._computed[key]

    def give(self, name: str, made: str) -> None:
        """`made` is the value `name`; what has a grid is rounded to it here."""
        self._names[name] = self.rounded(name, made)

    def rounded(self, name: str, made: str) -> str:
        """`made` on the grid of the value `name`, if that has one."""
        quant = self.quants.get(name)
        if quant is None:
            return made
        grid = self._grid(quant, np.dtype(np.int8))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", made, *grid), *grid)

    def constant(self, content: NDArray[np.generic] | float | list[int]) -> str:
        """An initialiser; equal ones are stored once. A list is int64, a number float32."""
        array = np.asarray(content)
        if isinstance(content, list | float):
            array = array.astype(np.int64 if isinstance(content, list) else np.float32)
        array = np.ascontiguousarray(array).reshape(array.shape)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = name = self._fresh()
            self._initializers[name] = numpy_helper.from_array(array, name)
        return self._constants[key]

    def tensor(self, stored: Stored) -> str:
        """A weight's name, behind DequantizeLinear if it is integers."""
        if stored.quant is None:
            return self.constant(stored.content.astype(np.float32))
        quant = stored.quant
        dtype = {32: np.dtype(np.int32), 4: np.dtype(ml_dtypes.int4)}.get(quant.bits, np.dtype(np.int8))
        grid = self._grid(quant, dtype)
        axis = {} if quant.axis is None else {"axis": quant.axis}
        return self.node("DequantizeLinear", self.constant(stored.content.astype(dtype)), *grid, **axis)

    def target(self, shape: Shape) -> str:
        """`shape` as the second input of Reshape."""
        sizes = [-1 if self.has_batch(n) else n for n in shape]
        if sizes.count(-1) > 1:
            raise self.refuse(f"a shape {shape} with two dims that the batch is in")
        return self.constant(sizes)

    def sizes(self, shape: Shape) -> str:
        """`shape` as an int64 tensor in which the batch is the input's."""
        if not any(map(self.has_batch, shape)):
            return self.constant(list(shape))
        rows = self._computed.get(("rows",)) or self.node("Shape", self.read(self.graph.inputs[0]), end=1)
        self._computed["rows",] = rows
        parts = [
            self.once("Mul", rows, self.constant([n // self._batch])) if self.has_batch(n) else self.constant([n])
            for n in shape
        ]
        return self.node("Concat", *parts, axis=0)

    # The file.

    def start(self, name: str) -> None:
        """Call the graph's input `name` in the file."""
        self.give(self.graph.inputs[0], name)

    @property
    def initializers(self) -> Iterable[TensorProto]:
        return self._initializers.values()

    def finish(self, name: str) -> list[NodeProto]:
        """All nodes; the graph's output is called `name`."""
        last = self.read(self.graph.outputs[0])
        if last not in {made for node in self._nodes for made in node.output}:
            last = self.node("Identity", last)
        for node in self._nodes:
            for names in (node.input, node.output):
                names[:] = [name if one == last else one for one in names]
        return self._nodes

    def _grid(self, quant: Quant, dtype: np.dtype[Any]) -> list[str]:
        """Scale, and zero point where there is one to tell."""
        scale = quant.scale if quant.axis is not None else quant.scale.reshape(())
        zero = quant.zero_point if quant.axis is not None else quant.zero_point.reshape(())
        tells = zero.any() or (dtype == np.int8 and quant.axis is None)
        return [self.constant(scale), *([self.constant(zero.astype(dtype))] if tells else [])]

    def _fresh(self) -> str:
        self._count += 1
        return f"v{self._count}"
