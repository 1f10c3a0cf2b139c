"""The forms of a model's values while it is lowered, and the ops that make one from another."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edge_runtime.deploy.formats.engine import layout
from edge_runtime.deploy.formats.engine.encode import floats, small
from edge_runtime.deploy.formats.engine.place import Step
from edge_runtime.deploy.graph.blocks import Block
from edge_runtime.deploy.graph.quantised import Quant, QuantisedModel
from edge_runtime.deploy.run.engine_file import Constant
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.graph import Graph, Shape
from edge_runtime.ir.ops import OPS
from edge_runtime.program.epilogues import ENDINGS
from edge_runtime.program.native_op import ABSENT
from edge_runtime.program.packed import RANK, ROWS, Site, merged

ACTS = {"relu": 1, "relu6": 2}
IMAGE_OPS = ("conv2d", "max_pool2d", "avg_pool2d", "mean")
ELEMENTWISE = ("add", "mul", "relu", "relu6", "clip", "scale", "sigmoid", "tanh", "gelu", "silu", "exp")


@dataclass
class Lowering:
    """The steps so far, and which form of each value lies in which buffer.

    Attributes:
        steps: ops on buffers by number, and constants by name.
        sizes: bytes of each buffer.

    """

    quantised: QuantisedModel
    rows: int
    steps: list[Step] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = self.quantised.model.at(self.rows)
        self.quants = self.quantised.quants
        self.state = set(self.graph.state)
        self._images = _images(self.graph)
        self._raw: dict[str, int] = {}
        self._f32: dict[str, int] = {}
        self._s8: dict[str, dict[int, int]] = {}  # by name, then by channels
        name = self.graph.inputs[0]
        self.input = self._raw[name] = self.buffer(self.graph.values[name].nbytes)

    # What a row asks for.

    def shape(self, name: str) -> Shape:
        return self.graph.values[name].shape

    def buffer(self, nbytes: int) -> int:
        self.sizes.append(nbytes)
        return len(self.sizes) - 1

    def emit(self, op: str, *buffers: int | str, ints: tuple[int, ...], floats: tuple[float, ...] = ()) -> None:
        self.steps.append(Step(op, buffers, tuple(map(int, ints)), tuple(map(float, floats))))

    def constant(self, one: Constant) -> str:
        before = self.constants.setdefault(one.name, one)
        if before != one:
            raise UnsupportedOpError(f"two tensors would be called {one.name}; rename a layer")
        return one.name

    def bytes_of(self, name: str, channels: int) -> int | str:
        """The value on its grid, in that order."""
        shape = self.shape(name)
        if name in self.state:
            content = layout.arranged(self.quants[name].quantise(self.quantised.model.weights[name]), channels)
            suffix = "" if channels == 1 else f"@{channels}"
            return self.constant(small(f"{name}.s8{suffix}", content))
        channels = layout.normal(channels, shape)
        held = self._s8.setdefault(name, {})
        if channels in held:
            return held[channels]
        if not held:
            return self.give_bytes(name, channels, self._quantised(name, channels))
        if channels != 1 and 1 not in held:
            self.bytes_of(name, 1)
        there = 1 if 1 in held else next(iter(held))
        return self.give_bytes(name, channels, self._moved(held[there], shape, there, channels))

    def held(self, name: str) -> int:
        """The order in which the value is there on its grid, or would best be made."""
        return next(iter(self._s8.get(name, ())), self.natural(name))

    def natural(self, name: str) -> int:
        """How its readers like it: channels last where an image op is among them."""
        shape = self.shape(name)
        return layout.normal(shape[1], shape) if name in self._images and len(shape) == 4 else 1

    def give_bytes(self, name: str, channels: int, buffer: int) -> int:
        self._s8.setdefault(name, {})[layout.normal(channels, self.shape(name))] = buffer
        return buffer

    def floats_of(self, name: str) -> int | str:
        """The value as a float op reads it; i64 values as they are."""
        if name in self.state:
            return self._weight(name)
        if name not in self.quants:
            return self._raw[name]
        if name not in self._f32:
            channels = self.held(name)
            source = self.bytes_of(name, channels)
            value, quant = self.graph.values[name], self.quants[name]
            self._f32[name] = y = self.buffer(value.nbytes)
            n, c, s = split(value.shape, channels)
            self.emit("dequantize_s8", source, y, ints=(n, c, s, zero_of(quant)), floats=(scale_of(quant),))
        return self._f32[name]

    # Float blocks.

    def float_block(self, block: Block) -> None:
        node = block.node
        if node.op in ("reshape", "detach"):
            source = node.inputs[0]
            buffer = self._raw[source] if source in self._raw and source not in self.quants else self.floats_of(source)
            if not isinstance(buffer, int):
                raise UnsupportedOpError(f"{node.op} of the weight {source}")
            self._raw[block.output] = buffer
            return
        if node.op not in ROWS:
            raise UnsupportedOpError(f"{node.op}: no op of the native core")
        read = {name: self.floats_of(name) for name in node.inputs}
        inputs = tuple(self.graph.values[name] for name in node.inputs)
        names = (block.output, *node.outputs[1:])
        outputs = tuple(self.graph.values[name] for name in names)
        made = {name: self.buffer(self.graph.values[name].nbytes) for name in names}
        self._raw.update(made)
        numbers = {**made, **{name: buffer for name, buffer in read.items() if isinstance(buffer, int)}}
        constants = sorted(name for name, buffer in read.items() if isinstance(buffer, str))
        numbers.update((name, -2 - place) for place, name in enumerate(constants))
        nbytes = OPS[node.op].work(inputs, node.attributes)
        site = Site(node, inputs, outputs, numbers, self.buffer(nbytes) if nbytes else ABSENT)
        native = ROWS[node.op](site)
        for place, op in enumerate(native):
            ints = op.ints
            if block.act and place == len(native) - 1:
                ints = (*ints, *[0] * (ENDINGS[op.name].act - len(ints)), ACTS[block.act])
            buffers = (read[constants[-2 - one]] if one < ABSENT else one for one in op.buffers)
            self.emit(op.name, *buffers, ints=ints, floats=op.floats)

    # Forms.

    def _quantised(self, name: str, channels: int) -> int:
        value, quant = self.graph.values[name], self.quants[name]
        y = self.buffer(value.size)
        n, c, s = split(value.shape, channels)
        self.emit("quantize_s8", self._raw[name], y, ints=(n, c, s, zero_of(quant)), floats=(scale_of(quant),))
        return y

    def _moved(self, x: int, shape: Shape, before: int, after: int) -> int:
        """The same bytes, from one order to another; one of the two is canonical."""
        n, c, s = split(shape, max(before, after))
        y = self.buffer(math.prod(shape))
        canonical, last = (c * s, s, 1), (c * s, 1, c)
        steps = (canonical, last) if before == 1 else (last, canonical)
        self.copy(x, y, (n, c, s), *steps)
        return y

    def copy(self, x: int | str, y: int, shape: Shape, xs: Shape, ys: Shape, x0: int = 0, y0: int = 0) -> None:
        """y[y0 + i.ys] = x[x0 + i.xs] for bytes."""
        sizes, (from_, to) = merged(shape, xs, ys)
        fill = (0,) * (RANK - len(sizes))
        self.emit("copy", x, y, ints=(1, len(sizes), *sizes, *fill, *from_, *fill, *to, *fill, x0, y0), floats=(1.0,))

    def _weight(self, name: str) -> str:
        content, quant = self.quantised.model.weights[name], self.quants.get(name)
        if quant is None:
            return self.constant(floats(name, content))
        if quant.bits > 8 or quant.zero_point.any() or quant.axis not in (None, 0):
            return self.constant(floats(f"{name}.f32", quant.round(content)))
        scale = self.constant(floats(f"{name}.scale", quant.scale))
        return self.constant(small(name, quant.quantise(content), quant.bits, scale))


def split(shape: Shape, channels: int) -> tuple[int, int, int]:
    """N, C and S of a value in that order; a canonical one is a single row of a single channel."""
    size = math.prod(shape)
    return (1, 1, size) if channels == 1 else (shape[0], channels, size // shape[0] // channels)


def zero_of(quant: Quant) -> int:
    return int(quant.zero_point[0])


def scale_of(quant: Quant) -> float:
    return float(quant.scale[0])


def _images(graph: Graph) -> set[str]:
    """Values that an image op reads, or an elementwise one on the way to it."""
    found: set[str] = set()
    for node in reversed(graph.nodes):
        elementwise = node.op in ELEMENTWISE and node.outputs[0] in found
        if node.op in IMAGE_OPS or elementwise:
            found.update(node.inputs)
    return found
