"""The TFLite operators a device runs, each with the rule that says how large its output is.

The file declares every shape, but a runtime computes them anew. So do we; a file whose shapes are not those is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge_runtime.deploy.trust.onnx_shapes import broadcast
from edge_runtime.deploy.trust.tflite_model import Shape, TfliteModel, TfliteOperator, TfliteTensor
from edge_runtime.errors import ArtefactError

_SAME = 0  # Padding


@dataclass(frozen=True, slots=True)
class Call:
    """One operator with its tensors."""

    operator: TfliteOperator
    tensors: tuple[TfliteTensor, ...]

    def shape(self, index: int = 0) -> Shape:
        """Of the input of that index."""
        return self.tensors[self._input(index)].shape

    def ints(self, index: int) -> tuple[int, ...]:
        """The numbers of an input.

        Raises:
            ValueError: they are no short integer constant.

        """
        found = self.tensors[self._input(index)].ints
        if found is None:
            raise ValueError("its size depends on what it is given")
        return found

    def option(self, number: int, code: str = "i", default: int = 0) -> int:
        """A number of the builtin options."""
        options = self.operator.options
        return default if options is None else options.number(number, code, default)

    def _input(self, index: int) -> int:
        place = self.operator.inputs[index]
        if place < 0:
            raise ValueError(f"its input {index} is left out")
        return place


Rule = Callable[[Call], list[Shape]]


def check_shapes(model: TfliteModel) -> None:
    """Return if every tensor is made once, before it is read, with the shape that its operator gives.

    Raises:
        ArtefactError: not so, or an operator that is not allowed.

    """
    made = {place for place, tensor in enumerate(model.tensors) if tensor.constant}
    for place in model.inputs:
        _make(place, model, made)
    for operator in model.operators:
        rule = RULES.get(operator.code)
        if rule is None:
            raise ArtefactError(f"TFLite: the builtin operator {operator.code} is not allowed")
        if any(place != -1 and place not in made for place in operator.inputs) or not operator.inputs:
            raise ArtefactError(f"TFLite: operator {operator.code} reads a tensor before it is made")
        for place, shape in zip(operator.outputs, _outputs(operator, rule, model), strict=True):
            _make(place, model, made)
            if model.tensors[place].shape != shape:
                raise ArtefactError(
                    f"TFLite: operator {operator.code} gives {shape}, its tensor is {model.tensors[place].shape}"
                )
    if not model.outputs or not made.issuperset(model.outputs):
        raise ArtefactError("TFLite: nothing makes the output")


def _make(place: int, model: TfliteModel, made: set[int]) -> None:
    if not 0 <= place < len(model.tensors) or place in made:
        raise ArtefactError(f"TFLite: tensor {place} is made twice, or is not there")
    made.add(place)


def _outputs(operator: TfliteOperator, rule: Rule, model: TfliteModel) -> list[Shape]:
    try:
        shapes = rule(Call(operator, model.tensors))
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise ArtefactError(f"TFLite: operator {operator.code} does not fit its inputs: {error}") from error
    if len(shapes) != len(operator.outputs):
        raise ArtefactError(f"TFLite: operator {operator.code} has {len(operator.outputs)} outputs")
    return shapes


# Rules.


def _same(call: Call) -> list[Shape]:
    return [call.shape()]


def _broadcast(call: Call) -> list[Shape]:
    return [broadcast([call.shape(0), call.shape(1)])]


def _slid(call: Call, sizes: Shape, kernel: Shape, strides: Shape, dilations: Shape) -> Shape:
    if min(*strides, *dilations) < 1:
        raise ValueError("a stride or dilation below 1")
    same = call.option(0, "b") == _SAME
    left = [
        size if same else size - (width - 1) * step for size, width, step in zip(sizes, kernel, dilations, strict=True)
    ]
    return tuple(-(-size // stride) for size, stride in zip(left, strides, strict=True))


def _conv(call: Call) -> list[Shape]:
    (rows, *sizes, _), (out, *kernel, _) = call.shape(0), call.shape(1)
    strides, dilations = (call.option(2), call.option(1)), (call.option(5, default=1), call.option(4, default=1))
    return [(rows, *_slid(call, tuple(sizes), tuple(kernel), strides, dilations), out)]


def _depthwise(call: Call) -> list[Shape]:
    (rows, *sizes, _), (_, *kernel, out) = call.shape(0), call.shape(1)
    strides, dilations = (call.option(2), call.option(1)), (call.option(6, default=1), call.option(5, default=1))
    return [(rows, *_slid(call, tuple(sizes), tuple(kernel), strides, dilations), out)]


def _pool(call: Call) -> list[Shape]:
    rows, *sizes, channels = call.shape()
    kernel, strides = (call.option(4), call.option(3)), (call.option(2), call.option(1))
    return [(rows, *_slid(call, tuple(sizes), kernel, strides, (1, 1)), channels)]


def _linear(call: Call) -> list[Shape]:
    x, (outputs, inputs) = call.shape(0), call.shape(1)
    if math.prod(x) % inputs:
        raise ValueError(f"{x} for {inputs} inputs")
    if call.option(2, "b"):
        return [(*x[:-1], outputs)]
    return [(math.prod(x) // inputs, outputs)]


def _matmul(call: Call) -> list[Shape]:
    a, b = call.shape(0), call.shape(1)
    a = (*a[:-2], a[-1], a[-2]) if call.option(0, "b") else a
    b = (*b[:-2], b[-1], b[-2]) if call.option(1, "b") else b
    if a[-1] != b[-2]:
        raise ValueError(f"{a} @ {b}")
    return [(*broadcast([a[:-2], b[:-2]]), a[-2], b[-1])]


def _axis(number: int, rank: int) -> int:
    if not -rank <= number < rank:
        raise ValueError(f"axis {number} of {rank}")
    return number % rank


def _reduce(call: Call) -> list[Shape]:
    shape, keep = call.shape(), call.option(0, "b")
    axes = {_axis(number, len(shape)) for number in call.ints(1)}
    return [tuple(1 if i in axes else n for i, n in enumerate(shape) if keep or i not in axes)]


def _reshape(call: Call) -> list[Shape]:
    shape, sizes = call.shape(), list(call.ints(1))
    if sizes.count(-1) == 1:
        known = -math.prod(sizes)
        sizes[sizes.index(-1)] = math.prod(shape) // known if known else 0
    if math.prod(sizes) != math.prod(shape) or any(n < 0 for n in sizes):
        raise ValueError(f"{shape} to {sizes}")
    return [tuple(sizes)]


def _transpose(call: Call) -> list[Shape]:
    shape, order = call.shape(), call.ints(1)
    if sorted(order) != list(range(len(shape))):
        raise ValueError(f"order {order} of {shape}")
    return [tuple(shape[i] for i in order)]


def _slice(call: Call) -> list[Shape]:
    shape = call.shape()
    sizes = [
        n - begin if size == -1 else size for n, begin, size in zip(shape, call.ints(1), call.ints(2), strict=True)
    ]
    if any(begin < 0 or not 0 <= size <= n - begin for n, begin, size in zip(shape, call.ints(1), sizes, strict=True)):
        raise ValueError(f"a part outside {shape}")
    return [tuple(sizes)]


def _pad(call: Call) -> list[Shape]:
    shape, pads = call.shape(), call.ints(1)
    if len(pads) != 2 * len(shape) or min(pads, default=0) < 0:
        raise ValueError("needs two paddings for each dim")
    return [tuple(n + pads[2 * i] + pads[2 * i + 1] for i, n in enumerate(shape))]


def _concat(call: Call) -> list[Shape]:
    shapes = [call.shape(index) for index in range(len(call.operator.inputs))]
    axis = _axis(call.option(0), len(shapes[0]))
    if len({(*shape[:axis], -1, *shape[axis + 1 :]) for shape in shapes}) != 1:
        raise ValueError(f"{shapes[:4]} do not go together")
    return [(*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])]


def _pack(call: Call) -> list[Shape]:
    shapes = {call.shape(index) for index in range(len(call.operator.inputs))}
    (shape,) = shapes
    axis = _axis(call.option(1), len(shape) + 1)
    return [(*shape[:axis], len(call.operator.inputs), *shape[axis:])]


def _unpack(call: Call) -> list[Shape]:
    shape = call.shape()
    axis, many = _axis(call.option(1), len(shape)), len(call.operator.outputs)
    if shape[axis] != many:
        raise ValueError(f"{shape} into {many}")
    return [(*shape[:axis], *shape[axis + 1 :])] * many


def _split(call: Call) -> list[Shape]:
    (number,), shape, many = call.ints(0), call.shape(1), len(call.operator.outputs)
    axis = _axis(number, len(shape))
    if shape[axis] % many:
        raise ValueError(f"{shape} into {many}")
    return [(*shape[:axis], shape[axis] // many, *shape[axis + 1 :])] * many


def _gather(call: Call) -> list[Shape]:
    shape = call.shape()
    axis = _axis(call.option(0), len(shape))
    if call.option(1):
        raise ValueError("batch_dims is not allowed")
    return [(*shape[:axis], *call.shape(1), *shape[axis + 1 :])]


# BuiltinOperator -> rule.
RULES: Mapping[int, Rule] = {
    # DEQUANTIZE LOGISTIC RELU RELU_N1_TO_1 RELU6 SOFTMAX TANH EXP NEG LOG SQRT RSQRT SQUARE ABS QUANTIZE HARD_SWISH
    # GELU RELU_0_TO_1
    **dict.fromkeys((6, 14, 19, 20, 21, 25, 28, 47, 59, 73, 75, 76, 92, 101, 114, 117, 150, 152), _same),
    # ADD MUL SUB DIV MAXIMUM MINIMUM SQUARED_DIFFERENCE
    **dict.fromkeys((0, 18, 41, 42, 55, 57, 99), _broadcast),
    **dict.fromkeys((1, 17), _pool),  # AVERAGE_POOL_2D MAX_POOL_2D
    **dict.fromkeys((40, 74, 82, 89), _reduce),  # MEAN SUM REDUCE_MAX REDUCE_MIN
    **dict.fromkeys((34, 60), _pad),  # PAD PADV2
    2: _concat,
    3: _conv,
    4: _depthwise,
    9: _linear,
    22: _reshape,
    36: _gather,
    39: _transpose,
    49: _split,
    65: _slice,
    83: _pack,
    88: _unpack,
    126: _matmul,
}
