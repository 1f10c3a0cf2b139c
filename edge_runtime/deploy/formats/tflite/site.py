"""What a row of the table sees of a node, and the table itself: one row for each op (`rows_*.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_runtime.deploy.formats.tflite.layout import Order, plain
from edge_runtime.deploy.formats.tflite.values import FLOAT, INTEGER, TOKEN, Array, Values
from edge_runtime.deploy.graph.quantised import Quant
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.graph import Node, Shape

FUSED = {"": 0, "relu": 1, "relu6": 3}
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


class Site:
    """A node with the activation that ends it, as a row sees it."""

    def __init__(self, values: Values, node: Node, act: str, output: str) -> None:
        self._values, self.node, self.act, self.output = values, node, act, output
        self._unrounded: tuple[int, Order] | None = None  # made as float32, and not on its grid yet
        names = (*(n for n in node.inputs if values.graph.values[n].dtype == "f32"), output)
        read = names if node.op not in ("conv2d", "linear") else (node.inputs[0], node.inputs[1], output)
        gridded = all(name in values.quants for name in read)
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
        return self._values.shapes[self.output]

    @property
    def any_batch(self) -> bool:
        return self._values.any_batch

    def quant(self, place: int) -> Quant:
        """Of an input; -1 for the output."""
        return self._values.quants[self.output if place < 0 else self.node.inputs[place]]

    def shape(self, place: int) -> Shape:
        return self._values.shapes[self.node.inputs[place]]

    def parameter(self, place: int) -> Array:
        """The content of an input that has to be known."""
        if (content := self.constant_input(place)) is None:
            raise self.refuse(f"TFLite takes no {self.node.inputs[place]} that is computed")
        return content

    def has(self, place: int) -> bool:
        return place < len(self.node.inputs)

    def constant_input(self, place: int) -> Array | None:
        return self._values.constants.get(self.node.inputs[place])

    def order(self, place: int) -> Order:
        return self._values.order(self.node.inputs[place])

    def take(self, place: int, order: Order | None = None, *, broadcast: bool = False) -> int:
        """The tensor of an input; in its own order unless another is asked for."""
        name = self.node.inputs[place]
        if name in self._values.constants and not broadcast:
            if self.any_batch and self._values.batch_dims(name):
                raise self.refuse(f"TFLite cannot repeat {name} for any batch", FIXED_BATCH)
            return self._values.whole_constant(name, self.kind, order)
        kind = TOKEN if self._values.graph.values[name].dtype == "i64" else self.kind
        return self._values.read(name, kind, plain(len(self.shape(place))) if order is None else order)

    def take_rows(self, place: int) -> tuple[int, Shape, Order]:
        """An input (B, K); if it is a flattened value (B, ...), that value's tensor, shape and order."""
        name = self.node.inputs[place]
        source = self._values.unviewed(name)
        shape = self._values.shapes[source]
        order = self._values.order(source)
        if source == name or shape[0] != self.shape(place)[0] or order[0] != 0 or len(self.shape(place)) != 2:
            return self.take(place), self.shape(place), plain(len(self.shape(place)))
        return self._values.read(source, self.kind, order), shape, order

    def weight(self, place: int, order: Order, columns: Callable[[Array], Array] = lambda w: w) -> int:
        self.parameter(place)
        return self._values.weight(self.node.inputs[place], order, columns, integer=self.integer)

    def weight_rows(self, place: int, rows: slice | Array) -> int:
        """Some rows of a weight of two dims, float32."""
        self.parameter(place)
        return self._values.weight(self.node.inputs[place], (0, 1), lambda w: w, integer=False, rows=rows)

    def bias(self, place: int) -> int:
        """Of a layer whose input 0 meets the weight 1; zeros where there is none, for a convolution must have one."""
        content = self.parameter(place) if self.has(place) else np.zeros(self.shape(1)[0], np.float32)
        if not self.integer:
            return self.const(content)
        scale = (self.quant(0).scale * self.quant(1).scale).astype(np.float32)
        quant = Quant(scale, np.zeros(scale.shape, np.int32), 32, 0, symmetric=True)
        return self._values.file.constant(quant.quantise(content), quant)

    def const(self, content: Any, quant: Quant | None = None) -> int:
        """A constant; whole numbers as int32 unless they are int8, others as float32."""
        array = np.asarray(content)
        if array.dtype != np.int8:
            array = array.astype(np.int32 if array.dtype.kind == "i" else np.float32)
        return self._values.file.constant(array, quant)

    def op(self, code: str, inputs: list[int], shape: Shape, quant: Quant | None = None, **options: Any) -> int:
        """An operator whose result stays inside the row: float32, or int8 on `quant`."""
        made = self._values.file.tensor(shape, INTEGER if quant else FLOAT, quant)
        self._values.file.operator(code, inputs, [made], **options)
        return made

    def inner(self, code: str, inputs: list[int], shape: Shape, **options: Any) -> int:
        """The same, on the output's grid where the row is on grids."""
        return self.op(code, inputs, shape, self.quant(-1) if self.integer else None, **options)

    def ops(self, code: str, inputs: list[int], shape: Shape, count: int, **options: Any) -> list[int]:
        """An operator with `count` results of one shape."""
        made = [self._values.file.tensor(shape) for _ in range(count)]
        self._values.file.operator(code, inputs, made, **options)
        return made

    def result(self, code: str, inputs: list[int], order: Order | None = None, **options: Any) -> None:
        """The operator that makes the node's output, in `order`."""
        order = plain(len(self.out_shape)) if order is None else order
        made = self._values.new(self.output, self.kind, order)
        self._values.file.operator(code, inputs, [made], **options)
        self.is_held(made, order)

    def is_held(self, tensor: int, order: Order) -> None:
        """The output lies in `tensor`."""
        if self.integer or self.output not in self._values.quants:
            kind = TOKEN if self._values.graph.values[self.output].dtype == "i64" else self.kind
            self._values.hold(self.output, kind, order, tensor)
        else:
            self._unrounded = (tensor, order)

    def other_output(self, place: int, tensor: int) -> None:
        """Another output of the node, made as float32 in its own order; rounded where it has a grid."""
        name = self.node.outputs[place]
        kind, order = self._values.kind(name), plain(len(self._values.shapes[name]))
        if kind == INTEGER:
            source, tensor = tensor, self._values.new(name, kind, order)
            self._values.file.operator("QUANTIZE", [source], [tensor])
        self._values.hold(name, kind, order, tensor)

    def is_reshaped(self) -> None:
        """The output is input 0 in another shape."""
        if self.integer or not {self.output, self.node.inputs[0]} & self._values.quants.keys():
            self._values.view(self.output, self.node.inputs[0])
        else:
            self.result("RESHAPE", [self.take(0), self.const(self.free_shape())])

    def is_reshaped_from(self, tensor: int, shape: Shape, order: Order) -> None:
        """The output is a value of `shape`, held so, in another shape."""
        hidden = f"{self.output} before its reshape"
        if not self.integer and self.output in self._values.quants:
            self.result("RESHAPE", [tensor, self.const(self.free_shape())])
            return
        self._values.shapes[hidden] = shape
        if self.integer:
            self._values.quants = {**self._values.quants, hidden: self.quant(-1)}
        self._values.hold(hidden, self.kind, order, tensor)
        self._values.view(self.output, hidden)

    def free_shape(self) -> Shape:
        return self._values.free_shape(self.output, plain(len(self.out_shape)))

    def finish(self) -> None:
        if self._unrounded:
            tensor, order = self._unrounded
            made = self._values.new(self.output, INTEGER, order)
            self._values.file.operator("QUANTIZE", [tensor], [made])
            self._values.hold(self.output, INTEGER, order, made)

    def refuse(self, what: str, instead: str = "") -> UnsupportedOpError:
        text = f"{what} ({self.node.op} at {self.node.source or 'an unknown line'})"
        return UnsupportedOpError(f"{text}; {instead}" if instead else text)

    def batch_dims(self, place: int) -> tuple[int, ...]:
        return self._values.batch_dims(self.node.inputs[place])

    def repeats(self, dim: int) -> bool:
        """Whether `dim` of the output is the batch, and any batch must run."""
        return self.any_batch and dim in self._values.batch_dims(self.output)


def always(_: Site) -> bool:
    return True


def same_grid(site: Site) -> bool:
    """For operators that only choose or move integers: all inputs are on the output's grid."""
    other = site.quant(-1)
    grids = [site.quant(place) for place in range(len(site.node.inputs))]
    return all((one.scale == other.scale).all() and (one.zero_point == other.zero_point).all() for one in grids)
