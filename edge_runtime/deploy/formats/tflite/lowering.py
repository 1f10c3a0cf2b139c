"""From the graph's nodes to TFLite operators, one row for each op (`rows_*.py`).

A value may lie in several tensors: float32 and int8, and in several orders of its dims. They are made when something
reads them, so that a model whose layers agree has no transposition in it. A value that has a `Quant` is rounded as soon
as it is made, and its readers see the integers, or these as float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.formats.tflite.file import TfliteFile
from edge_runtime.deploy.formats.tflite.layout import Order, moves_nothing, ordered, plain, steps
from edge_runtime.deploy.graph.blocks import blocks
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.quantised import Quant
from edge_runtime.engine.reference import FORWARD
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.graph import Graph, Node, Shape

Array = NDArray[Any]
FUSED = {"": 0, "relu": 1, "relu6": 3}
INPUT, OUTPUT = "input", "output"
FLOAT, INTEGER, TOKEN = "FLOAT32", "INT8", "INT64"
FIXED_BATCH = "write the file for a fixed batch"


@dataclass(frozen=True, slots=True)
class Row:
    """How one op is written; `integer` says whether it can be on the grids that its values have."""

    write: Callable[[Site], None]
    integer: Callable[[Site], bool]


ROWS: dict[str, Row] = {}


def row(
    *ops: str, integer: Callable[[Site], bool] = lambda site: False
) -> Callable[[Callable[[Site], None]], Callable[[Site], None]]:
    def register(function: Callable[[Site], None]) -> Callable[[Site], None]:
        ROWS.update(dict.fromkeys(ops, Row(function, integer)))
        return function

    return register


class Lowering:
    """`rows` of the batch in every shape; `any_batch`: the shapes are an example, and other batches must run too."""

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

    def write(self) -> bytes:
        name = self.graph.inputs[0]
        shape = self.shapes[name]
        kind = TOKEN if self.graph.values[name].dtype == "i64" else self.kind(name)
        order = plain(len(shape))
        first = self.file.tensor(shape, kind, self.quants.get(name), INPUT, self._signature(name, order))
        self.hold(name, kind, order, first)
        for block in blocks(self.graph, self.quants):
            self._node(Site(self, block.node, block.act, block.output))
        return self.file.finish([first], [self._last(first)])

    def kind(self, name: str) -> str:
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
        if moves_nothing(self.shapes[name], there, order):
            return self.reshaped(name, kind, order, tensor)
        moved = self.new(name, kind, order)
        by = self.file.constant(np.array(steps(there, order), np.int32))
        self.file.operator("TRANSPOSE", [tensor, by], [moved])
        return moved

    def reshaped(self, name: str, kind: str, order: Order, tensor: int) -> int:
        made = self.new(name, kind, order)
        shape = self.file.constant(np.array(self.free_shape(name, order), np.int32))
        self.file.operator("RESHAPE", [tensor, shape], [made])
        return made

    def new(self, name: str, kind: str, order: Order) -> int:
        quant = self.quants[name] if kind == INTEGER else None
        return self.file.tensor(ordered(self.shapes[name], order), kind, quant, "", self._signature(name, order))

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
        content = self.constants.get(name)
        if content is None:
            raise UnsupportedOpError(f"TFLite has no layer whose weight is computed ({name})")
        quant = self.quants.get(name)
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

    def whole_constant(self, name: str, order: Order | None) -> int:
        """With all its dims, float32."""
        content, quant = self.constants[name], self.quants.get(name)
        return self.file.constant((quant.round(content) if quant else content).transpose(order))

    def _node(self, site: Site) -> None:
        node = site.node
        if all(name in self.constants for name in node.inputs) and len(node.outputs) == 1:
            results = FORWARD[node.op](*(self.constants[name] for name in node.inputs), **node.attributes)
            self.constants[node.outputs[0]] = np.asarray(results, np.float32)
            if site.act:
                self.constants[site.output] = FORWARD[site.act](self.constants[node.outputs[0]])
            return
        if node.op not in ROWS:
            raise site.refuse(f"TFLite has no {node.op}")
        ROWS[node.op].write(site)
        site.finish()

    def _signature(self, name: str, order: Order) -> Shape:
        return self.free_shape(name, order) if self.any_batch else ()

    def _last(self, first: int) -> int:
        """The model's output, in its own order, with its name."""
        name = self.graph.outputs[0]
        kind = TOKEN if self.graph.values[name].dtype == "i64" else self.kind(name)
        order = plain(len(self.shapes[name]))
        tensor = self.read(name, kind, order)
        if tensor == first or name in self.constants:
            tensor = self.reshaped(name, kind, order, tensor)
        return self.file.rename(tensor, OUTPUT, self._signature(name, order))


class Site:
    """A node with the activation that ends it, as a row sees it."""

    def __init__(self, lowering: Lowering, node: Node, act: str, output: str) -> None:
        self._lowering, self.node, self.act, self.output = lowering, node, act, output
        self._unrounded: tuple[int, Order] | None = None  # made as float32, and not on its grid yet
        names = (*(n for n in node.inputs if lowering.graph.values[n].dtype == "f32"), output)
        read = names if node.op not in ("conv2d", "linear") else (node.inputs[0], node.inputs[1], output)
        gridded = all(name in lowering.quants for name in read)
        self.integer = gridded and node.op in ROWS and ROWS[node.op].integer(self)

    @property
    def a(self) -> Mapping[str, Any]:
        return self.node.attributes

    @property
    def kind(self) -> str:
        return INTEGER if self.integer else FLOAT

    @property
    def fused(self) -> int:
        return FUSED[self.act]

    @property
    def out_shape(self) -> Shape:
        return self._lowering.shapes[self.output]

    @property
    def any_batch(self) -> bool:
        return self._lowering.any_batch

    def quant(self, place: int) -> Quant:
        """Of an input; -1 for the output."""
        return self._lowering.quants[self.output if place < 0 else self.node.inputs[place]]

    def shape(self, place: int) -> Shape:
        return self._lowering.shapes[self.node.inputs[place]]

    def has(self, place: int) -> bool:
        return place < len(self.node.inputs)

    def constant_input(self, place: int) -> Array | None:
        return self._lowering.constants.get(self.node.inputs[place])

    def order(self, place: int) -> Order:
        return self._lowering.order(self.node.inputs[place])

    def take(self, place: int, order: Order | None = None, *, broadcast: bool = False) -> int:
        """The tensor of an input; in its own order unless another is asked for."""
        name = self.node.inputs[place]
        if name in self._lowering.constants and not broadcast:
            if self.any_batch and self._lowering.batch_dims(name):
                raise self.refuse(f"TFLite cannot repeat {name} for any batch", FIXED_BATCH)
            return self._lowering.whole_constant(name, order)
        kind = TOKEN if self._lowering.graph.values[name].dtype == "i64" else self.kind
        return self._lowering.read(name, kind, plain(len(self.shape(place))) if order is None else order)

    def take_rows(self, place: int) -> tuple[int, Shape, Order]:
        """An input (B, K) that is a flattened value (B, ...): that value's tensor, its shape and order, if it is one."""
        name = self.node.inputs[place]
        source = self._lowering.unviewed(name)
        shape = self._lowering.shapes[source]
        order = self._lowering.order(source)
        if source == name or shape[0] != self.shape(place)[0] or order[0] != 0 or len(self.shape(place)) != 2:
            return self.take(place), self.shape(place), plain(len(self.shape(place)))
        return self._lowering.read(source, self.kind, order), shape, order

    def weight(self, place: int, order: Order, columns: Callable[[Array], Array] = lambda w: w) -> int:
        return self._lowering.weight(self.node.inputs[place], order, columns, integer=self.integer)

    def weight_rows(self, place: int, rows: slice | Array) -> int:
        """Some rows of a weight of two dims, float32."""
        return self._lowering.weight(self.node.inputs[place], (0, 1), lambda w: w, integer=False, rows=rows)

    def bias(self, place: int) -> int:
        """Of a layer whose input 0 meets the weight 1; zeros where there is none, for a convolution must have one."""
        content = self.constant_input(place) if self.has(place) else np.zeros(self.shape(1)[0], np.float32)
        if content is None:
            raise self.refuse("TFLite has no layer whose bias is computed")
        if not self.integer:
            return self.const(content)
        scale = (self.quant(0).scale * self.quant(1).scale).astype(np.float32)
        quant = Quant(scale, np.zeros(scale.shape, np.int32), 32, 0, symmetric=True)
        return self._lowering.file.constant(quant.quantise(content), quant)

    def const(self, content: Any, quant: Quant | None = None) -> int:
        """A constant; whole numbers as int32 unless they are int8, others as float32."""
        array = np.asarray(content)
        if array.dtype != np.int8:
            array = array.astype(np.int32 if array.dtype.kind == "i" else np.float32)
        return self._lowering.file.constant(array, quant)

    def op(self, code: str, inputs: list[int], shape: Shape, quant: Quant | None = None, **options: Any) -> int:
        """An operator whose result stays inside the row: float32, or int8 on `quant`."""
        made = self._lowering.file.tensor(shape, INTEGER if quant else FLOAT, quant)
        self._lowering.file.operator(code, inputs, [made], **options)
        return made

    def inner(self, code: str, inputs: list[int], shape: Shape, **options: Any) -> int:
        """The same, on the output's grid where the row is on grids."""
        return self.op(code, inputs, shape, self.quant(-1) if self.integer else None, **options)

    def ops(self, code: str, inputs: list[int], shape: Shape, count: int, **options: Any) -> list[int]:
        """An operator with `count` results of one shape."""
        made = [self._lowering.file.tensor(shape) for _ in range(count)]
        self._lowering.file.operator(code, inputs, made, **options)
        return made

    def result(self, code: str, inputs: list[int], order: Order | None = None, **options: Any) -> None:
        """The operator that makes the node's output, in `order`."""
        order = plain(len(self.out_shape)) if order is None else order
        made = self._lowering.new(self.output, self.kind, order)
        self._lowering.file.operator(code, inputs, [made], **options)
        self.is_held(made, order)

    def is_held(self, tensor: int, order: Order) -> None:
        """The output lies in `tensor`."""
        if self.integer or self.output not in self._lowering.quants:
            kind = TOKEN if self._lowering.graph.values[self.output].dtype == "i64" else self.kind
            self._lowering.hold(self.output, kind, order, tensor)
        else:
            self._unrounded = (tensor, order)

    def other_output(self, place: int, tensor: int) -> None:
        """Another output of the node, float32, in its own order."""
        name = self.node.outputs[place]
        if name in self._lowering.quants:
            raise self.refuse(f"a grid on {name}")
        self._lowering.hold(name, FLOAT, plain(len(self._lowering.shapes[name])), tensor)

    def is_reshaped(self) -> None:
        """The output is input 0 in another shape."""
        if self.integer or not {self.output, self.node.inputs[0]} & self._lowering.quants.keys():
            self._lowering.view(self.output, self.node.inputs[0])
        else:
            self.result("RESHAPE", [self.take(0), self.const(self.free_shape())])

    def is_reshaped_from(self, tensor: int, shape: Shape, order: Order) -> None:
        """The output is a value of `shape`, held so, in another shape."""
        hidden = f"{self.output} before its reshape"
        self._lowering.shapes[hidden] = shape
        if self.integer:
            self._lowering.quants = {**self._lowering.quants, hidden: self.quant(-1)}
        self._lowering.hold(hidden, self.kind, order, tensor)
        self._lowering.view(self.output, hidden)

    def free_shape(self) -> Shape:
        return self._lowering.free_shape(self.output, plain(len(self.out_shape)))

    def finish(self) -> None:
        if self._unrounded:
            tensor, order = self._unrounded
            made = self._lowering.new(self.output, INTEGER, order)
            self._lowering.file.operator("QUANTIZE", [tensor], [made])
            self._lowering.hold(self.output, INTEGER, order, made)

    def refuse(self, what: str, instead: str = "") -> UnsupportedOpError:
        text = f"{what} ({self.node.op} at {self.node.source or 'an unknown line'})"
        return UnsupportedOpError(f"{text}; {instead}" if instead else text)

    def batch_dims(self, place: int) -> tuple[int, ...]:
        return self._lowering.batch_dims(self.node.inputs[place])

    def repeats(self, dim: int) -> bool:
        """Whether `dim` of the output is the batch, and any batch must run."""
        return self.any_batch and dim in self._lowering.batch_dims(self.output)


def always(_: Site) -> bool:
    return True


def same_grid(site: Site) -> bool:
    """For operators that only choose or move integers: all inputs are on the output's grid."""
    other = site.quant(-1)
    grids = [site.quant(place) for place in range(len(site.node.inputs))]
    return all((one.scale == other.scale).all() and (one.zero_point == other.zero_point).all() for one in grids)
