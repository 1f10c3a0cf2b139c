"""The ONNX operators a device runs, each with the rule that says how large its output is before it is run.

A rule takes the node's input shapes and gives its output shapes. Where a size is itself computed (Shape, Concat, Mul of
int64), the numbers are followed too; a size that cannot be told beforehand is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from edge_runtime.deploy.trust.onnx_model import MAX_KNOWN, MAX_RANK, OnnxModel, OnnxNode, Shape
from edge_runtime.errors import ArtefactError

Ints = tuple[int, ...]


@dataclass
class Values:
    """What is known of each value: its shape, and its numbers where it is a short int64 tensor."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    ints: dict[str, Ints] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """One node with what is known of its inputs."""

    node: OnnxNode
    values: Values

    def shape(self, index: int = 0) -> Shape:
        """Of the input of that index."""
        return self.values.shapes[self.node.inputs[index]]

    def given(self, index: int) -> bool:
        """Whether an optional input is there."""
        return index < len(self.node.inputs) and self.node.inputs[index] != ""

    def ints(self, index: int) -> Ints:
        """The numbers of an input.

        Raises:
            ValueError: they are computed from what the model is given.

        """
        found = self.values.ints.get(self.node.inputs[index])
        if found is None:
            raise ValueError("its size depends on what it is given")
        return found

    def attribute(self, name: str, default: Ints) -> Ints:
        """An attribute's numbers."""
        found = self.node.attributes.get(name)
        return found.ints if found is not None else default

    def axis(self, default: int, rank: int) -> int:
        """The attribute `axis`, from 0 to `rank` - 1."""
        return _axis(self.attribute("axis", (default,))[0], rank)

    def axes(self, index: int, rank: int) -> Ints:
        """Axes from an input, or from the attribute of older opsets; all where there are none."""
        numbers = self.ints(index) if self.given(index) else self.attribute("axes", tuple(range(rank)))
        return tuple(_axis(number, rank) for number in numbers)


Rule = Callable[[Call], list[Shape]]


def shapes_of(model: OnnxModel, max_elements: int) -> Mapping[str, Shape]:
    """The shape of every value, none of more than `max_elements`.

    Raises:
        ArtefactError: an operator that is not allowed, a value of a size that can't be told or is too large, a value
            that is read before it is made or made twice.

    """
    values = Values()
    for name, shape in model.inputs.items():
        _add(values, name, shape, max_elements, "an input")
    for constant in model.constants:
        _add(values, constant.name, constant.shape, max_elements, "a constant")
        if constant.ints is not None:
            values.ints[constant.name] = constant.ints
    for node in model.nodes:
        for name, shape in zip(node.outputs, _outputs(node, values), strict=False):
            if name:
                _add(values, name, shape, max_elements, node.op)
        with _fitting(node):
            _follow(node, values)
    if missing := [name for name in model.outputs if name not in values.shapes] or not model.outputs:
        raise ArtefactError(f"ONNX: nothing makes the output {missing}")
    return values.shapes


def _add(values: Values, name: str, shape: Shape, most: int, what: str) -> None:
    if name in values.shapes or not name:
        raise ArtefactError(f"ONNX: the value {name[:80]!r} is made twice, or has no name")
    if len(shape) > MAX_RANK or any(not 0 <= size <= most for size in shape) or math.prod(shape) > most:
        raise ArtefactError(f"ONNX: {what} gives {shape}; a device takes {most} elements at most")
    values.shapes[name] = shape


def _outputs(node: OnnxNode, values: Values) -> list[Shape]:
    rule = RULES.get(node.op)
    if rule is None:
        raise ArtefactError(f"ONNX: the operator {node.op[:80]!r} is not allowed")
    if missing := [name for name in node.inputs if name and name not in values.shapes]:
        raise ArtefactError(f"ONNX: {node.op} reads {missing[0][:80]!r} before it is made")
    with _fitting(node):
        made = rule(Call(node, values))
    if len(node.outputs) > len(made):
        raise ArtefactError(f"ONNX: {node.op} has more outputs than is allowed")
    return made


@contextmanager
def _fitting(node: OnnxNode) -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError, ArithmeticError) as error:
        raise ArtefactError(f"ONNX: {node.op} does not fit its inputs: {error}") from error


# Rules.


def _axis(number: int, rank: int) -> int:
    if not -rank <= number < max(rank, 1):
        raise ValueError(f"axis {number} of {rank}")
    return number % max(rank, 1)


def _same(call: Call) -> list[Shape]:
    return [call.shape()]


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """NumPy's rule.

    Raises:
        ValueError: the shapes do not go together.

    """
    rank = max(map(len, shapes))
    sizes = []
    for column in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        wide = {size for size in column if size != 1}
        if len(wide) > 1:
            raise ValueError(f"{shapes} do not go together")
        sizes.append(wide.pop() if wide else 1)
    return tuple(sizes)


def _broadcast(call: Call) -> list[Shape]:
    return [broadcast([call.shape(index) for index in range(len(call.node.inputs))])]


def _matmul(call: Call) -> list[Shape]:
    a, b = call.shape(0), call.shape(1)
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise ValueError(f"{a} @ {b}")
    return [(*broadcast([a[:-2], b[:-2]]), a[-2], b[-1])]


def _gemm(call: Call) -> list[Shape]:
    a, b = call.shape(0), call.shape(1)
    if call.attribute("transA", (0,))[0]:
        a = a[::-1]
    if call.attribute("transB", (0,))[0]:
        b = b[::-1]
    if len(a) != 2 or len(b) != 2 or a[1] != b[0]:
        raise ValueError(f"{a} @ {b}")
    return [(a[0], b[1])]


def _window(call: Call, kernel: Ints) -> Ints:
    """The output's sizes where a window of `kernel` moves over the dims after batch and channels."""
    spatial = call.shape()[2:]
    many, up = len(spatial), call.attribute("ceil_mode", (0,))[0]
    strides, dilations = (call.attribute(name, (1,) * many) for name in ("strides", "dilations"))
    pads = call.attribute("pads", (0,) * (2 * many))
    if call.node.attributes.get("auto_pad") is not None and call.node.attributes["auto_pad"].text not in ("", "NOTSET"):
        raise ValueError("auto_pad is not allowed")
    if not len(kernel) == len(strides) == len(dilations) == len(pads) // 2 == many or min(strides, default=1) < 1:
        raise ValueError("its window has other dims than its input")
    sizes = []
    for i, size in enumerate(spatial):
        room = size + pads[i] + pads[i + many] - dilations[i] * (kernel[i] - 1) - 1
        sizes.append((-(-room // strides[i]) if up else room // strides[i]) + 1)
    return tuple(sizes)


def _conv(call: Call) -> list[Shape]:
    weight = call.shape(1)
    return [(call.shape()[0], weight[0], *_window(call, weight[2:]))]


def _pool(call: Call) -> list[Shape]:
    return [(*call.shape()[:2], *_window(call, call.attribute("kernel_shape", ())))]


def _global_pool(call: Call) -> list[Shape]:
    return [(*call.shape()[:2], *[1] * (len(call.shape()) - 2))]


def _reduce(call: Call) -> list[Shape]:
    shape = call.shape()
    axes, keep = call.axes(1, len(shape)), call.attribute("keepdims", (1,))[0]
    return [tuple(1 if i in axes else n for i, n in enumerate(shape) if keep or i not in axes)]


def _reshape(call: Call) -> list[Shape]:
    shape, wanted = call.shape(), call.ints(1)
    zero = call.attribute("allowzero", (0,))[0]
    sizes = [shape[i] if n == 0 and not zero else n for i, n in enumerate(wanted)]
    if sizes.count(-1) == 1:
        known = -math.prod(sizes)
        sizes[sizes.index(-1)] = math.prod(shape) // known if known else 0
    if math.prod(sizes) != math.prod(shape) or any(n < 0 for n in sizes):
        raise ValueError(f"{shape} to {wanted}")
    return [tuple(sizes)]


def _flatten(call: Call) -> list[Shape]:
    shape = call.shape()
    axis = call.attribute("axis", (1,))[0] % (len(shape) + 1)
    return [(math.prod(shape[:axis]), math.prod(shape[axis:]))]


def _transpose(call: Call) -> list[Shape]:
    shape = call.shape()
    order = call.attribute("perm", tuple(reversed(range(len(shape)))))
    if sorted(order) != list(range(len(shape))):
        raise ValueError(f"order {order} of {shape}")
    return [tuple(shape[i] for i in order)]


def _slice(call: Call) -> list[Shape]:
    shape = list(call.shape())
    starts, stops = call.ints(1), call.ints(2)
    axes = call.axes(3, len(shape)) if call.given(3) else tuple(range(len(starts)))
    steps = call.ints(4) if call.given(4) else (1,) * len(starts)
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        shape[axis] = len(range(*slice(start, stop, step).indices(shape[axis])))
    return [tuple(shape)]


def _pad(call: Call) -> list[Shape]:
    shape, pads = call.shape(), call.ints(1)
    if len(pads) != 2 * len(shape) or call.given(3):
        raise ValueError("needs two paddings for each dim")
    return [tuple(n + pads[i] + pads[i + len(shape)] for i, n in enumerate(shape))]


def _concat(call: Call) -> list[Shape]:
    shapes = [call.shape(index) for index in range(len(call.node.inputs))]
    axis = call.axis(0, len(shapes[0]))
    if len({shape[:axis] + shape[axis + 1 :] for shape in shapes}) != 1:
        raise ValueError(f"{shapes} do not go together")
    return [(*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])]


def _split(call: Call) -> list[Shape]:
    shape = call.shape()
    axis = call.axis(0, len(shape))
    many = len(call.node.outputs)
    sizes = call.ints(1) if call.given(1) else call.attribute("split", (-(-shape[axis] // many),) * many)
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def _expand(call: Call) -> list[Shape]:
    return [broadcast([call.shape(), call.ints(1)])]


def _tile(call: Call) -> list[Shape]:
    return [tuple(size * times for size, times in zip(call.shape(), call.ints(1), strict=True))]


def _filled(call: Call) -> list[Shape]:
    return [call.ints(0)]


def _gather(call: Call) -> list[Shape]:
    shape = call.shape()
    axis = call.axis(0, len(shape))
    return [(*shape[:axis], *call.shape(1), *shape[axis + 1 :])]


def _squeeze(call: Call) -> list[Shape]:
    shape = call.shape()
    if not call.given(1) and "axes" not in call.node.attributes:
        return [tuple(n for n in shape if n != 1)]
    axes = call.axes(1, len(shape))
    return [tuple(n for i, n in enumerate(shape) if i not in axes)]


def _unsqueeze(call: Call) -> list[Shape]:
    shape = list(call.shape())
    numbers = call.ints(1) if call.given(1) else call.attribute("axes", ())
    if len(shape) + len(numbers) > MAX_RANK:
        raise ValueError(f"it gives more than {MAX_RANK} dims")
    for axis in sorted(_axis(number, len(shape) + len(numbers)) for number in numbers):
        shape.insert(axis, 1)
    return [tuple(shape)]


def _shape(call: Call) -> list[Shape]:
    return [(len(_told(call)),)]


def _told(call: Call) -> Ints:
    end = call.attribute("end", (len(call.shape()),))[0]
    return call.shape()[call.attribute("start", (0,))[0] : end]


def _constant(call: Call) -> list[Shape]:
    attributes = call.node.attributes
    if (value := attributes.get("value")) is not None and value.tensor is not None:
        return [value.tensor.shape]
    if (ints := attributes.get("value_ints")) is not None:
        return [(len(ints.ints),)]
    if attributes.keys() & {"value_int", "value_float"}:
        return [()]
    raise ValueError("of another kind than a tensor or numbers")


def _recurrent(call: Call) -> list[Shape]:
    """Y (steps, 1, batch, hidden), and the last states."""
    steps, batch, _ = call.shape()
    (hidden,) = call.attribute("hidden_size", ())
    # The recurrent weights hold that size too, and they are in the file.
    if call.shape(2)[-1] != hidden or call.shape(1)[0] != 1:
        raise ValueError("hidden_size is not that of its weights, or there are two directions")
    return [(steps, 1, batch, hidden), (1, batch, hidden), (1, batch, hidden)]


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        (
            "BatchNormalization", "Cast", "Clip", "DequantizeLinear", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid",
            "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax",
            "Neg", "QuantizeLinear", "Reciprocal", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt", "Tanh",
        ),
        _same,
    ),
    **dict.fromkeys(
        ("Add", "Div", "Equal", "Greater", "Less", "Max", "Min", "Mul", "Pow", "Sub", "Sum", "Where"), _broadcast
    ),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), _reduce),
    **dict.fromkeys(("GRU", "LSTM"), _recurrent),
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Conv": _conv,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}  # fmt: skip


# Numbers that become sizes.


def _follow(node: OnnxNode, values: Values) -> None:
    """Note the output's numbers, where the inputs' are known and the operator is one that sizes are made with."""
    known = [values.ints.get(name) for name in node.inputs]
    call = Call(node, values)
    found: Ints | None = None
    if node.op == "Shape":
        found = _told(call)
    elif node.op == "Constant":
        attributes = node.attributes
        tensor = attributes["value"].tensor if "value" in attributes else None
        found = tensor.ints if tensor else attributes["value_ints"].ints if "value_ints" in attributes else None
    elif node.op in ("Concat", "Mul", "Identity", "Squeeze", "Unsqueeze") and known and known[0] is not None:
        found = _computed(node.op, known)
    if found is not None and len(found) <= MAX_KNOWN:
        # A chain of squares would soon be numbers of gigabytes.
        if any(not -(1 << 63) <= number < 1 << 63 for number in found):
            raise ValueError("it gives a number of more than 64 bits")
        values.ints[node.outputs[0]] = found


def _computed(op: str, known: Sequence[Ints | None]) -> Ints | None:
    first = known[0] or ()
    if op in ("Identity", "Squeeze", "Unsqueeze"):
        return first
    rest = [one for one in known[1:] if one is not None]
    if len(rest) != len(known) - 1:
        return None
    if op == "Concat":
        return tuple(number for one in (first, *rest) for number in one)
    (second,) = rest
    many = max(len(first), len(second))
    if {len(first), len(second)} - {1, many}:
        return None
    return tuple(a * b for a, b in zip(first * (many // len(first)), second * (many // len(second)), strict=True))
