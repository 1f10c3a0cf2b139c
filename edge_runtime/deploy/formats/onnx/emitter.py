"""What the rows of the table write to: nodes, initialisers, and the ONNX name of every value of our graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edge_runtime.deploy.formats.onnx.stored import Stored, encoding, packed, packed_bits, unpacking_table
from edge_runtime.deploy.graph.float_model import Weights
from edge_runtime.deploy.graph.quantise import is_integer
from edge_runtime.deploy.graph.quantised import Quant
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.graph import Graph, Shape


class Emitter:
    """One file in the making. `graph` has the shapes; a dim that `has_batch` is symbolic."""

    def __init__(self, graph: Graph, weights: Weights, quants: Mapping[str, Quant], batch: int, opset: int) -> None:
        self.graph, self.quants, self.opset = graph, quants, opset
        self.source = ""  # the user's line whose node is being written
        self._weights, self._batch = weights, batch
        self._read = {name for node in graph.nodes for name in node.inputs} | set(graph.outputs)
        integer = [node for node in graph.nodes if is_integer(node, graph, quants)]
        self._integers = {name for node in integer for name in node.inputs}
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
            self._names[name] = self.tensor(self.stored(name), integer=self.integer(name))
        return self._names[name]

    def stored(self, name: str) -> Stored:
        """A weight, for a row that wants it laid out in another way."""
        content, quant = self._weights[name], self.quants.get(name)
        return Stored(content if quant is None else quant.quantise(content), quant)

    def is_weight(self, name: str) -> bool:
        return name in self._weights

    def integer(self, name: str) -> bool:
        """Whether a layer that computes in integers reads this weight; otherwise integers are its storage alone."""
        return name in self._integers

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
        # Named, because ONNX Runtime names what it makes of nodes after them, and trips over two of one name.
        self._nodes.append(
            helper.make_node(op, list(inputs), names[: last + 1], next(filter(None, names)), **attributes)
        )
        return names

    def once(self, op: str, *inputs: str, **attributes: int) -> str:
        """Add a node that others may want as well; later calls give the same one."""
        key = (op, *inputs, *map(str, attributes.items()))
        if key not in self._computed:
            self._computed[key] = self.node(op, *inputs, **attributes)
        return self._computed[key]

    def give(self, name: str, made: str) -> None:
        """`made` is the value `name`; what has a grid is rounded to it here."""
        self._names[name] = self.rounded(name, made)

    def rounded(self, name: str, made: str) -> str:
        """`made` on the grid of the value `name`, if that has one."""
        quant = self.quants.get(name)
        if quant is None:
            return made
        if quant.bits != 8 or quant.axis is not None or quant.symmetric:
            raise self.refuse("an activation on another grid than an asymmetric one of 8 bits")
        grid = self._grid(quant)
        return self.node("DequantizeLinear", self.node("QuantizeLinear", made, *grid), *grid)

    def constant(self, content: NDArray[np.generic] | float | list[int], *, alone: bool = False) -> str:
        """An initialiser; equal ones are stored once unless `alone`. A list is int64, a number float32."""
        array = np.asarray(content)
        if isinstance(content, list | float):
            array = array.astype(np.int64 if isinstance(content, list) else np.float32)
        array = np.ascontiguousarray(array).reshape(array.shape)
        key = (str(array.dtype), array.shape, array.tobytes() + (b"%d" % self._count if alone else b""))
        if key not in self._constants:
            self._constants[key] = name = self._fresh()
            self._initializers[name] = numpy_helper.from_array(array, name)
        return self._constants[key]

    def tensor(self, stored: Stored, *, integer: bool = False) -> str:
        """A weight's name in float32.

        Where integers are its storage alone it is Cast and Mul, which ONNX Runtime computes when it loads the model; a
        DequantizeLinear it would keep, and run each time.
        """
        quant = stored.quant
        if quant is None:
            return self.constant(stored.content.astype(np.float32))
        integers = self.integers(stored)
        if not integer and quant.symmetric:
            scale = quant.scale.reshape([-1 if dim == quant.axis else 1 for dim in range(stored.content.ndim)])
            return self.node("Mul", self.node("Cast", integers, to=TensorProto.FLOAT), self.constant(scale))
        axis = {} if quant.axis is None else {"axis": quant.axis}
        return self.node("DequantizeLinear", integers, *self._grid(quant), **axis)

    def integers(self, stored: Stored) -> str:
        """The name of a weight's integers; those that share bytes are looked up when the model is loaded."""
        assert stored.quant is not None
        offset, dtype = encoding(stored.quant)
        width = packed_bits(stored.quant, stored.content.size)
        if width >= 8:
            return self.constant((stored.content + offset).astype(dtype), alone=True)
        places = self.node("Cast", self.constant(packed(stored.content, width), alone=True), to=TensorProto.INT32)
        return self.node(
            "Reshape",
            self.node("Gather", self.constant(unpacking_table(width)), places),
            self.constant(list(stored.content.shape)),
        )

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
        rows = self.once("Shape", self.read(self.graph.inputs[0]), end=1)
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

    def _grid(self, quant: Quant) -> list[str]:
        """Scale and zero point; a bias has none, the others tell theirs even if it is 0.

        Where it is absent, ONNX Runtime puts in a scalar, which its own DequantizeLinear then refuses beside a scale
        per channel. And where two layers share their zeros, x64quantprecision cannot make those unsigned a second time.
        """
        shape = () if quant.axis is None else quant.scale.shape
        scale = self.constant(quant.scale.reshape(shape))
        if quant.bits == 32:
            return [scale]
        offset, dtype = encoding(quant)
        zero = (quant.zero_point + offset).astype(dtype).reshape(shape)
        return [scale, self.constant(zero, alone=quant.axis is not None)]

    def _fresh(self) -> str:
        self._count += 1
        return f"v{self._count}"
