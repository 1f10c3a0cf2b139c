"""Every native op on every ISA against float64: PyTorch's where it has the op, plain NumPy otherwise.

The arena is NaN before the inputs are written, so a result that was read too early or never written shows; between
buffers stand guards that no op may touch, and what is not an output must come back as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  PyTorch's own name for it
from scipy import special

from edge_runtime.deploy.graph.quantise import activation_quant, weight_quant
from edge_runtime.errors import ProgramError
from edge_runtime.kernels import native
from edge_runtime.kernels.native import OP_DTYPE, NativeProgram, Status

Array = np.ndarray[Any, Any]
GUARD_BYTES = 64
EMPTY = 0x7FC0BEEF  # a NaN that no kernel computes

pytestmark = pytest.mark.parametrize("isa", native.isas())


@pytest.fixture(autouse=True)
def _use_isa(isa: str) -> Iterator[None]:
    before = native.selected_isa()
    native.select_isa(isa)
    yield
    native.select_isa(before)


@dataclass(frozen=True)
class Out:
    """A buffer that the op writes; `start` is what it updates, `place_of` the slot whose memory it shares."""

    shape: tuple[int, ...]
    dtype: type = np.float32
    start: Array | None = None
    place_of: int | None = None


@dataclass(frozen=True)
class Work:
    elements: int


def update(start: Array) -> Out:
    return Out(start.shape, start.dtype.type, start)


def record(name: str, offsets: Sequence[int], ints: Sequence[int], floats: Sequence[float]) -> Array:
    op = np.zeros(1, OP_DTYPE)
    op["code"] = native.op_code(name)
    op["buffers"] = -1
    op["buffers"][0, : len(offsets)] = offsets
    op["ints"][0, : len(ints)] = ints
    op["floats"][0, : len(floats)] = floats
    return op


def aligned(words: int) -> Array:
    raw = np.empty(words * 4 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + words * 4]


def run(
    name: str,
    buffers: Sequence[Array | Out | Work | None],
    ints: Sequence[int] = (),
    floats: Sequence[float] = (),
    status: Status = Status.OK,
) -> list[Array]:
    """Run one op on a fresh arena; its outputs, in the order of `buffers`."""
    offsets, end = [], GUARD_BYTES
    for buffer in buffers:
        match buffer:
            case None:
                offsets.append(-1)
                continue
            case Out(place_of=int(slot)):
                offsets.append(offsets[slot])
                continue
            case Out(shape, dtype):
                nbytes = math.prod(shape) * np.dtype(dtype).itemsize
            case Work(elements):
                nbytes = 4 * elements
            case _:
                buffer = np.asarray(buffer)
                nbytes = buffer.nbytes
        # Items of 8 bytes start on 8; the rest just off it, for 4 is all that a program promises.
        items_of_8 = isinstance(buffer, np.ndarray | Out) and np.dtype(buffer.dtype).itemsize == 8
        end = (end + 7) // 8 * 8 + (0 if items_of_8 else 4)
        offsets.append(end)
        end += nbytes + GUARD_BYTES
    arena = aligned(end // 4 + 1)
    arena.view(np.uint32)[:] = EMPTY

    def view(slot: int, like: Array | Out) -> Array:
        nbytes = math.prod(like.shape) * np.dtype(like.dtype).itemsize
        return arena[offsets[slot] : offsets[slot] + nbytes].view(like.dtype).reshape(like.shape)

    for slot, buffer in enumerate(buffers):
        if isinstance(buffer, np.ndarray):
            view(slot, buffer)[...] = buffer
        elif isinstance(buffer, Out) and buffer.start is not None:
            view(slot, buffer)[...] = buffer.start
    before = arena.copy()
    program = NativeProgram(record(name, offsets, ints, floats), len(arena))
    assert program.run(arena, 0, 1) == (status, -1 if status is Status.OK else 0)

    writable = np.zeros(len(arena), bool)
    for slot, buffer in enumerate(buffers):
        if isinstance(buffer, Out):
            nbytes = math.prod(buffer.shape) * np.dtype(buffer.dtype).itemsize
            writable[offsets[slot] : offsets[slot] + nbytes] = True
        elif isinstance(buffer, Work):
            writable[offsets[slot] : offsets[slot] + 4 * buffer.elements] = True
    assert np.array_equal(arena[~writable], before[~writable]), "an input or a guard has changed"
    return [view(slot, buffer).copy() for slot, buffer in enumerate(buffers) if isinstance(buffer, Out)]


def run_with_activations(
    name: str, buffers: Sequence[Array | Out | Work | None], ints: Sequence[int], floats: Sequence[float] = ()
) -> list[Array]:
    """`run`, once more with each `act`: the op's first output must be the activation of what it is without."""
    plain = run(name, buffers, ints, floats)
    for act, high in ((1, np.inf), (2, 6.0)):
        y = run(name, buffers, [*ints, act], floats)[0]
        assert bits(y) == bits(np.where(plain[0] < 0, np.float32(0), np.minimum(plain[0], np.float32(high))))
    return plain


def close(actual: Array, expected: Any, tolerance: float = 2e-6, at_least: float = 1e-30) -> None:
    """Within `tolerance` of the tensor's largest value, or of `at_least` where the terms cancel to less than that."""
    if isinstance(expected, torch.Tensor):
        expected = expected.detach().numpy()
    expected = np.asarray(expected, np.float64).reshape(actual.shape)
    scale = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(scale, at_least))


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


def f32(*values: float) -> Array:
    return np.array(values, np.float32)


def double(x: Array, *, grad: bool = True) -> torch.Tensor:
    return torch.tensor(x.astype(np.float64), requires_grad=grad)


def bits(x: Array) -> bytes:
    return x.tobytes()


# Elementwise


def test_fill() -> None:
    (y,) = run("fill", [Out((37,))], [37], [1.5])
    assert (y == 1.5).all()


@pytest.mark.parametrize(
    ("shape", "x_strides", "y_strides", "x_start", "y_start", "x_size", "y_size"),
    [
        ((), (), (), 3, 2, 5, 4),
        ((7,), (1,), (1,), 0, 0, 7, 7),
        ((3, 5), (1, 3), (5, 1), 0, 0, 15, 15),
        ((2, 3, 4), (12, 4, 1), (24, 8, 2), 0, 1, 24, 48),
        ((2, 1, 3, 2, 1, 4), (8, 0, 0, 4, 0, 1), (24, 24, 8, 4, 4, 1), 5, 0, 21, 48),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_copy(
    shape: tuple[int, ...],
    x_strides: tuple[int, ...],
    y_strides: tuple[int, ...],
    x_start: int,
    y_start: int,
    x_size: int,
    y_size: int,
    dtype: type,
) -> None:
    x, scale = np.arange(1, x_size + 1).astype(dtype), 0.5 if dtype is np.float32 else 1
    start = np.full(y_size, -1, dtype)
    pad = [0] * (6 - len(shape))
    ints = [np.dtype(dtype).itemsize, len(shape), *shape, *pad, *x_strides, *pad, *y_strides, *pad, x_start, y_start]
    (y,) = run("copy", [x, update(start)], ints, [0.5])
    expected = start.copy()
    for index in np.ndindex(shape):
        at = y_start + sum(i * stride for i, stride in zip(index, y_strides, strict=True))
        expected[at] = x[x_start + sum(i * stride for i, stride in zip(index, x_strides, strict=True))] * scale
    assert np.array_equal(y, expected)


@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ((), ()),
        ((9,), ()),
        ((3000,), ()),
        ((5, 7), (0,)),
        ((5, 7), (1,)),
        ((70, 33), (1,)),
        ((5, 7), (0, 1)),
        ((2, 3, 4, 5), (1,)),
        ((2, 3, 4, 5), (0, 2)),
        ((2, 3, 4, 5), (1, 3)),
        ((3, 1, 2, 1, 2, 2), (0, 4)),
        ((1, 1), (0,)),
    ],
)
def test_reduce(shape: tuple[int, ...], kept: tuple[int, ...]) -> None:
    x, strides, size = normal(*shape), [0] * 6, 1
    for dim in reversed(kept):
        strides[dim], size = size, size * shape[dim]
    (y,) = run("reduce", [x, Out((size,))], [len(shape), *shape, *[0] * (6 - len(shape)), *strides], [0.25])
    summed = tuple(dim for dim in range(len(shape)) if dim not in kept)
    close(y, 0.25 * x.astype(np.float64).sum(summed))


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize(
    ("shape", "a_shape", "b_shape"),
    [
        ((), (), ()),
        ((13,), (13,), (13,)),
        ((4, 9), (4, 9), (1, 9)),
        ((4, 9), (4, 1), (4, 9)),
        ((4, 9), (1, 1), (4, 9)),
        ((4, 9), (4, 1), (1, 9)),
        ((2, 3, 4, 5), (2, 1, 4, 5), (1, 3, 1, 5)),
        ((2, 1, 3, 1, 2, 3), (2, 1, 3, 1, 1, 3), (1, 1, 3, 1, 2, 1)),
    ],
)
def test_binary(kind: int, shape: tuple[int, ...], a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> None:
    def strides(own: tuple[int, ...]) -> list[int]:
        steps = np.array(np.empty(own, np.uint8).strides) if own else np.zeros(0, int)
        return [*np.where(np.array(own) == 1, 0, steps).astype(int), *[0] * (6 - len(own))]

    a, b = normal(*a_shape), normal(*b_shape, seed=1)
    ints = [kind, len(shape), *shape, *[0] * (6 - len(shape)), *strides(a_shape), *strides(b_shape)]
    (y,) = run_with_activations("binary", [a, b, Out(shape)], ints)
    assert np.array_equal(y, a * b if kind else a + b)
    for slot, operand in enumerate((a, b)):
        if operand.shape == shape and math.prod(shape) > 0:
            operands = [Out(a.shape, np.float32, a) if slot == 0 else a, Out(b.shape, np.float32, b) if slot else b]
            assert bits(run("binary", [*operands, Out(shape, place_of=slot)], ints)[-1]) == bits(y)


UNARY: list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = [
    ("relu", F.relu),
    ("relu6", F.relu6),
    ("gelu", F.gelu),
    ("sigmoid", torch.sigmoid),
    ("silu", F.silu),
    ("tanh", torch.tanh),
    ("exp", torch.exp),
    ("affine", lambda x: 1.5 * x - 0.25),
    ("clip", lambda x: torch.clamp(x, 1.5, 2.0)),
]
FROM_INPUT = ("gelu", "silu")


@pytest.mark.parametrize("n", [1, 3, 8, 9, 100])
@pytest.mark.parametrize("kind", range(len(UNARY)), ids=[name for name, _ in UNARY])
def test_unary_and_its_gradient(kind: int, n: int) -> None:
    x, g = 3 * normal(n), normal(n, seed=1)
    floats = {7: [1.5, -0.25], 8: [1.5, 2.0]}.get(kind, [0.0, 0.0])
    name, function = UNARY[kind]
    x64 = double(x)
    y64 = function(x64)
    (y,) = run("unary", [x, Out((n,))], [kind, n], floats)
    close(y, y64)
    assert bits(run("unary", [update(x), Out((n,), place_of=0)], [kind, n], floats)[1]) == bits(y)
    if kind >= 7:
        return
    y64.backward(double(g, grad=False))
    t = x if name in FROM_INPUT else y
    (dx,) = run("unary_grad", [g, t, Out((n,))], [kind, n])
    close(dx, x64.grad)
    for slot in (0, 1):
        operands = [update(b) if i == slot else b for i, b in enumerate((g, t))]
        assert bits(run("unary_grad", [*operands, Out((n,), place_of=slot)], [kind, n])[-1]) == bits(dx)


def every_float(step: int) -> Array:
    """Each `step`-th float32 of the whole line, both signs, subnormals and infinities too."""
    return np.arange(0, 2**32, step, np.uint64).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize(
    ("kind", "exact", "ulps", "tiny"),
    [
        (6, np.exp, 1.5, 2e-45),
        (5, np.tanh, 2, 0),
        (3, special.expit, 3, 1e-37),
    ],
    ids=["exp", "tanh", "sigmoid"],
)
def test_elementary_functions_to_the_last_places(
    kind: int, exact: Callable[[Array], Array], ulps: float, tiny: float
) -> None:
    x = np.concatenate([every_float(9973), np.linspace(-110, 110, 200_001).astype(np.float32)])
    x = x[~np.isnan(x)]
    (y,) = run("unary", [x, Out(x.shape)], [kind, len(x)], [0, 0])
    with np.errstate(over="ignore"):
        expected = exact(x.astype(np.float64))
        nearest = expected.astype(np.float32)
    assert np.array_equal(y[np.isinf(nearest)], nearest[np.isinf(nearest)])
    finite = ~np.isinf(nearest)
    error = np.abs(y[finite] - expected[finite])
    assert (error <= np.maximum(ulps * np.spacing(np.abs(nearest[finite])), tiny)).all(), (
        x[finite][np.argmax(error / np.spacing(np.abs(nearest[finite])))],
        np.max(error / np.spacing(np.abs(nearest[finite]))),
    )


def test_gelu_is_near_the_exact_one_everywhere() -> None:
    x = np.linspace(-20, 20, 400_001).astype(np.float32)
    (y,) = run("unary", [x, Out(x.shape)], [2, len(x)], [0, 0])
    x64 = x.astype(np.float64)
    exact = x64 * special.ndtr(x64)
    assert (np.abs(y - exact) <= 2.5e-7 * np.abs(x64)).all()
    # The left tail is small, not lost.
    assert (np.abs(y - exact) <= np.maximum(1e-5 * np.abs(exact), 1e-36)).all()
    (dx,) = run("unary_grad", [np.ones_like(x), x, Out(x.shape)], [2, len(x)])
    slope = special.ndtr(x64) + x64 * np.exp(-(x64**2) / 2) / math.sqrt(2 * math.pi)
    assert (np.abs(dx - slope) <= 3e-7).all()


@pytest.mark.parametrize("kind", range(7), ids=[name for name, _ in UNARY[:7]])
def test_extremes_give_limits_and_nan_gives_nan(kind: int) -> None:
    x = f32(np.inf, 1e4, -1e4, 0.0, np.nan)
    (y,) = run("unary", [x, Out(x.shape)], [kind, len(x)], [0, 0])
    limits = UNARY[kind][1](double(x, grad=False)).numpy().astype(np.float32)
    np.testing.assert_array_equal(y, limits)
    t = x if UNARY[kind][0] in FROM_INPUT else y
    (dx,) = run("unary_grad", [np.ones_like(x), t, Out(x.shape)], [kind, len(x)])
    if UNARY[kind][0] != "exp":
        assert np.isfinite(dx[:4]).all()


# Rounding to integers and back: the bits of a deployed model's own grids


@pytest.mark.parametrize("width", [2, 3, 4, 8])
@pytest.mark.parametrize(("n", "batch", "rows"), [(1, 1, 1), (7, 1, 1), (60, 6, 4), (60, 6, 0), (4099, 1, 9)])
@pytest.mark.parametrize("plus", [0, 3, -3])
def test_fake_quant(n: int, batch: int, rows: int, width: int, plus: float) -> None:
    x = normal(n) + np.float32(plus)
    real = x[: n // batch * min(rows, batch)]
    grid = activation_quant(float(real.min(initial=0)), float(real.max(initial=0)), width)
    for y in (Out(x.shape), Out(x.shape, start=x, place_of=0)):
        assert bits(run("fake_quant", [x, i64(rows), y], [n, batch, width])[0]) == bits(grid.round(x) + np.float32(0))


@pytest.mark.parametrize("width", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 16), (2, 1030)])
def test_fake_quant_weight(shape: tuple[int, int], width: int) -> None:
    w = normal(*shape)
    w[-1] *= 1e-3
    (y,) = run("fake_quant_weight", [w, Out(shape)], [*shape, width])
    assert np.array_equal(y, weight_quant(w, width).round(w))


@pytest.mark.parametrize("width", [2, 8])
def test_fake_quant_of_extremes(width: int) -> None:
    for x in (f32(0, 0, -0.0), np.full(9, 1e-41, np.float32), np.full(9, -1e-38, np.float32)):
        for name, ints, rows in (
            ("fake_quant", [len(x), 1, width], [i64(1)]),
            ("fake_quant_weight", [1, len(x), width], []),
        ):
            assert not run(name, [x, *rows, Out(x.shape)], ints)[0].any()
    (y,) = run("fake_quant", [f32(-1e38, 1, 1.5e38), i64(1), Out((3,))], [3, 1, width])
    assert np.isfinite(y).all()
    (y,) = run("fake_quant", [f32(1, np.nan, 2), i64(1), Out((3,))], [3, 1, width])
    assert np.isnan(y).tolist() == [False, True, False]
    (y,) = run("fake_quant_weight", [f32(1, np.nan, 2, 2), Out((4,))], [2, 2, width])
    assert np.isnan(y).tolist() == [False, True, False, False]
    for bad in (np.inf, -np.inf):
        assert np.isnan(run("fake_quant", [f32(1, bad, 2), i64(1), Out((3,))], [3, 1, width])[0]).all()
        assert np.isnan(run("fake_quant_weight", [f32(1, bad), Out((2,))], [1, 2, width])[0]).any()


@pytest.mark.parametrize(
    ("name", "ints"), [("fake_quant", [4, 1, 1]), ("fake_quant", [4, 1, 9]), ("fake_quant", [4, 3, 8])]
)
def test_fake_quant_of_other_widths_and_rows_is_refused(name: str, ints: list[int]) -> None:
    with pytest.raises(ProgramError):
        NativeProgram(record(name, [0, 64, 128], ints, []), 256)


# Products of matrices

GEMM_SHAPES = [
    (1, 1, 1),
    (1, 10, 84),
    (2, 3, 5),
    (3, 1, 300),
    (5, 17, 16),
    (6, 16, 8),
    (7, 33, 257),
    (16, 120, 400),
    (13, 15, 600),
    (65, 70, 66),
    (100, 5, 1),
    (1, 700, 600),
    (33, 40, 9),
    (130, 300, 40),
    (520, 90, 300),
]


@pytest.mark.parametrize(("m", "n", "k"), GEMM_SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_its_gradients(m: int, n: int, k: int, bias: bool) -> None:
    x, w, b, g = normal(m, k), normal(n, k, seed=1), normal(n), normal(m, n, seed=2)
    x64, w64 = x.astype(np.float64), w.astype(np.float64)
    (y,) = run_with_activations("linear", [x, w, b if bias else None, Out((m, n))], [m, n, k])
    close(y, x64 @ w64.T + (b if bias else 0))
    (dx,) = run("linear_dx", [g, w, Out((m, k))], [m, n, k])
    close(dx, g.astype(np.float64) @ w64)
    (dw,) = run("linear_dw", [g, x, Out((n, k))], [m, n, k])
    close(dw, g.astype(np.float64).T @ x64)


# N C H W O kh kw sh sw ph pw groups
CONVOLUTIONS = {
    "lenet": (2, 1, 28, 28, 6, 5, 5, 1, 1, 2, 2, 1),
    "one": (1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1),
    "pointwise": (3, 5, 4, 7, 6, 1, 1, 1, 1, 0, 0, 1),
    "pointwise groups": (2, 6, 3, 5, 4, 1, 1, 1, 1, 0, 0, 2),
    "pointwise stride": (2, 3, 5, 6, 4, 1, 1, 2, 2, 0, 0, 1),
    "pointwise padded": (2, 3, 3, 4, 4, 1, 1, 1, 1, 1, 0, 1),
    "uneven": (2, 3, 7, 9, 4, 3, 2, 2, 1, 1, 0, 1),
    "uneven other": (1, 4, 8, 5, 6, 2, 3, 1, 3, 0, 2, 2),
    "padding past the kernel": (2, 2, 3, 2, 3, 2, 2, 1, 1, 3, 4, 1),
    "kernel is the image": (2, 4, 5, 5, 7, 5, 5, 1, 1, 0, 0, 1),
    "kernel past the image": (1, 1, 2, 3, 2, 5, 5, 1, 1, 2, 1, 1),
    "line": (3, 6, 1, 40, 8, 1, 5, 1, 2, 0, 2, 1),
    "long line": (2, 2, 1, 700, 3, 1, 9, 1, 1, 0, 4, 1),
    "last rows unused": (1, 2, 8, 8, 2, 3, 3, 3, 4, 0, 0, 1),
    "joined images": (5, 17, 8, 8, 33, 3, 3, 1, 1, 1, 1, 1),
    "joined pointwise images": (40, 20, 4, 4, 24, 1, 1, 1, 1, 0, 0, 1),
    "pointwise, places no vectors": (2, 9, 7, 7, 10, 1, 1, 1, 1, 0, 0, 1),
    "pointwise, many places": (2, 3, 20, 20, 5, 1, 1, 1, 1, 0, 0, 1),
    "pointwise, deep": (1, 300, 4, 4, 9, 1, 1, 1, 1, 0, 0, 1),
    "wide rows in bands": (1, 16, 40, 32, 18, 3, 3, 1, 1, 1, 1, 1),
    "many outputs": (1, 5, 8, 16, 70, 3, 3, 1, 1, 1, 1, 1),
    "deep": (1, 60, 6, 16, 5, 3, 3, 1, 1, 1, 1, 1),
    "stride": (2, 5, 16, 16, 7, 3, 3, 2, 2, 1, 1, 1),
    "stride, deep": (1, 6, 8, 8, 70, 3, 3, 2, 2, 1, 1, 1),
    "stride, odd": (2, 3, 15, 17, 5, 3, 3, 2, 2, 1, 1, 1),
    "stride, wide": (1, 2, 70, 90, 3, 3, 3, 2, 2, 1, 1, 1),
    "stride 3": (1, 2, 17, 17, 3, 3, 3, 3, 3, 1, 1, 1),
    "stride past the kernel": (1, 2, 11, 12, 3, 1, 2, 3, 4, 0, 1, 1),
    "stride past the image": (1, 2, 3, 3, 2, 1, 1, 5, 5, 0, 0, 1),
    "kernel of many places": (2, 2, 18, 18, 3, 17, 17, 1, 1, 8, 8, 1),
    "very wide": (1, 1, 2, 13000, 2, 1, 3, 1, 1, 0, 1, 1),
    "groups": (3, 8, 9, 16, 12, 3, 3, 2, 1, 1, 1, 4),
    "depth multiplier": (2, 3, 6, 5, 6, 3, 3, 1, 1, 1, 1, 3),
    "depthwise": (2, 5, 8, 8, 5, 3, 3, 1, 1, 1, 1, 5),
    "depthwise wide": (1, 2, 9, 70, 2, 3, 3, 1, 1, 1, 1, 2),
    "depthwise large": (1, 2, 150, 130, 2, 3, 3, 1, 1, 1, 1, 2),
    "depthwise large stride": (1, 2, 150, 131, 2, 3, 3, 2, 2, 1, 1, 2),
    "depthwise stride": (2, 4, 9, 10, 4, 3, 3, 2, 2, 1, 1, 4),
    "depthwise stride even": (2, 4, 8, 8, 4, 3, 3, 2, 2, 1, 1, 4),
    "stride of many channels": (2, 32, 16, 16, 64, 3, 3, 2, 2, 1, 1, 1),
    "depthwise tiny": (2, 3, 2, 2, 3, 3, 3, 1, 1, 1, 1, 3),
    "depthwise tiny stride": (2, 3, 1, 1, 3, 3, 3, 2, 2, 1, 1, 3),
    "depthwise 5x5": (1, 3, 7, 11, 3, 5, 5, 1, 1, 2, 2, 3),
    "depthwise uneven": (2, 2, 7, 12, 2, 2, 4, 3, 1, 0, 3, 2),
    "depthwise line": (2, 3, 1, 33, 3, 1, 5, 1, 2, 0, 2, 3),
    "depthwise very wide": (1, 1, 2, 9000, 1, 1, 3, 1, 1, 0, 1, 1),
    "depthwise sparse": (1, 2, 40, 40, 2, 3, 3, 17, 19, 1, 1, 2),
    "depthwise pointwise": (2, 3, 4, 5, 3, 1, 1, 1, 1, 0, 0, 3),
}


# Depthwise: every plane size from less than a vector to a few of them, channels that do not fill a vector, and others.
CONVOLUTIONS |= {
    f"depthwise {c}x{h}x{w} k{k} s{stride}": (n, c, h, w, c, k, k, stride, stride, k // 2, k // 2, c)
    for k, stride, sizes in (
        (3, 1, [(2, 9, n, n) for n in range(1, 10)]),
        (3, 2, [(2, 9, n, n) for n in (1, 2, 3, 4, 7, 8, 9)]),
        (3, 1, [(1, 3, 4, 16), (3, 17, 3, 17), (1, 1, 4, 33), (1, 8, 16, 16), (1, 2, 140, 9)]),
        (3, 2, [(1, 3, 5, 16), (3, 17, 4, 17), (1, 1, 4, 33), (1, 1, 5, 37), (1, 8, 16, 16), (1, 2, 270, 17)]),
        (5, 1, [(2, 9, 1, 1), (2, 9, 6, 5), (1, 8, 16, 16)]),
        (5, 2, [(2, 9, 2, 1), (2, 9, 7, 8)]),
    )
    for n, c, h, w in sizes
} | {
    "depthwise no padding": (2, 9, 6, 7, 9, 3, 3, 1, 1, 0, 0, 9),
    "depthwise much padding": (2, 9, 4, 3, 9, 3, 3, 1, 2, 3, 4, 9),
    "depthwise stride past the kernel": (2, 9, 11, 10, 9, 2, 2, 3, 4, 1, 0, 9),
    "depthwise last rows unused": (1, 8, 10, 9, 8, 3, 2, 3, 2, 0, 0, 8),
}


@pytest.mark.parametrize("shape", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
@pytest.mark.parametrize("bias", [True, False])
def test_conv2d_and_its_gradients(shape: tuple[int, ...], bias: bool) -> None:
    n, c, h, w, o, kh, kw, sh, sw, ph, pw, groups = shape
    x, weights, b = normal(n, c, h, w), normal(o, c // groups, kh, kw, seed=1), normal(o)
    x64, w64 = double(x), double(weights)
    y64 = F.conv2d(x64, w64, double(b) if bias else None, (sh, sw), (ph, pw), 1, groups)
    g = normal(*y64.shape, seed=2)
    y64.backward(double(g, grad=False))
    (y,) = run_with_activations("conv2d", [x, weights, b if bias else None, Out(g.shape)], shape)
    close(y, y64)
    (dx,) = run("conv2d_dx", [g, weights, Out(x.shape)], shape)
    close(dx, x64.grad)
    (dw,) = run("conv2d_dw", [g, x, Out(weights.shape)], shape)
    close(dw, w64.grad)


# P H W kh kw sh sw ph pw
MAX_POOLS = [
    (3, 8, 8, 2, 2, 2, 2, 0, 0),
    (1, 1, 1, 1, 1, 1, 1, 0, 0),
    (2, 7, 9, 3, 3, 2, 2, 1, 1),
    (2, 5, 6, 3, 2, 1, 3, 1, 1),
    (4, 1, 11, 1, 3, 1, 1, 0, 1),
    (1, 3, 3, 2, 2, 5, 5, 0, 0),
    (1, 15, 17, 15, 17, 1, 1, 7, 8),
    (2, 28, 28, 2, 2, 2, 2, 0, 0),
    (2, 9, 11, 2, 2, 2, 2, 0, 0),
    *((3, 4, width, 2, 2, 2, 2, 0, 0) for width in (2, 4, 6, 10, 14, 16, 18, 34)),
]


@pytest.mark.parametrize("shape", MAX_POOLS)
def test_max_pool2d_and_its_gradient(shape: tuple[int, ...]) -> None:
    planes, h, w, kh, kw, sh, sw, ph, pw = shape
    x = np.round(normal(planes, h, w), 1)  # some equal values: the first counts
    x64 = double(x)
    y64 = F.max_pool2d(x64, (kh, kw), (sh, sw), (ph, pw))
    g = normal(*y64.shape, seed=1)
    y64.backward(double(g, grad=False))
    y, index = run("max_pool2d", [x, Out(g.shape), Out(g.shape, np.uint8)], shape)
    assert np.array_equal(y, y64.detach().numpy().astype(np.float32))
    (dx,) = run("max_pool2d_grad", [g, index, Out(x.shape)], shape)
    close(dx, x64.grad)


def test_a_nan_wins_its_window() -> None:
    x = f32(1, np.nan, 3, 4, 5, np.nan, np.nan, 8).reshape(1, 2, 4)
    y, index = run("max_pool2d", [x, Out((1, 1, 2)), Out((1, 1, 2), np.uint8)], (1, 2, 4, 2, 2, 2, 2, 0, 0))
    assert np.isnan(y).all()
    assert index.ravel().tolist() == [1, 2]
    # In every place of a vector, first and later than numbers.
    wide = np.tile(x, (1, 1, 5))
    y, index = run("max_pool2d", [wide, Out((1, 1, 10)), Out((1, 1, 10), np.uint8)], (1, 2, 20, 2, 2, 2, 2, 0, 0))
    assert np.isnan(y).all()
    assert index.ravel().tolist() == [1, 2] * 5


@pytest.mark.parametrize("x", [-np.inf, -3e38], ids=["-inf", "lowest"])
def test_padding_never_wins(x: float) -> None:
    shape = (1, 3, 3, 2, 2, 1, 1, 1, 1)
    y, index = run(
        "max_pool2d",
        [np.full((1, 3, 3), x, np.float32), Out((1, 4, 4)), Out((1, 4, 4), np.uint8)],
        shape,
    )
    assert (y == np.float32(x)).all()
    assert index[0, 0].tolist() == [3, 2, 2, 2]


def test_an_index_outside_the_image_adds_nothing() -> None:
    g, index = np.ones((1, 2, 2), np.float32), np.array([255, 0, 3, 254], np.uint8).reshape(1, 2, 2)
    (dx,) = run("max_pool2d_grad", [g, index, Out((1, 3, 3))], (1, 3, 3, 2, 2, 2, 2, 1, 1))
    assert dx.sum() == 1


@pytest.mark.parametrize(
    "shape",
    [(3, 8, 8, 2, 2, 2, 2), (1, 1, 1, 1, 1, 1, 1), (2, 7, 9, 3, 2, 2, 1), (5, 7, 7, 7, 7, 1, 1), (2, 5, 5, 2, 2, 4, 3)],
)
def test_avg_pool2d_and_its_gradient(shape: tuple[int, ...]) -> None:
    planes, h, w, kh, kw, sh, sw = shape
    x = normal(planes, h, w)
    x64 = double(x)
    y64 = F.avg_pool2d(x64, (kh, kw), (sh, sw))
    g = normal(*y64.shape, seed=1)
    y64.backward(double(g, grad=False))
    close(run("avg_pool2d", [x, Out(g.shape)], shape)[0], y64)
    close(run("avg_pool2d_grad", [g, Out(x.shape)], shape)[0], x64.grad)


# Norms

# N C S B rows
BATCH_NORMS = [
    (4, 3, 5, 4, 4),
    (4, 3, 1, 4, 3),
    (6, 2, 9, 3, 2),
    (1, 2, 7, 1, 1),
    (16, 20, 64, 16, 11),
    (8, 9, 1, 4, 4),
]


@pytest.mark.parametrize(("n", "c", "s", "b", "rows"), BATCH_NORMS)
@pytest.mark.parametrize("offset", [0, 30])
def test_batch_norm_and_its_gradients(n: int, c: int, s: int, b: int, rows: int, offset: int) -> None:
    eps, real = 1e-5, rows * n // b
    x, weight, bias, g = normal(n, c, s) + np.float32(offset), normal(c), normal(c, seed=1), normal(n, c, s, seed=2)
    x64, w64, b64 = double(x), double(weight), double(bias)
    y64 = F.batch_norm(x64[:real], None, None, w64, b64, True, 0.1, eps)
    y64.backward(double(g[:real], grad=False))
    stats = [Out((c,)), Out((c,))]
    buffers = [x, weight, bias, i64(rows), Out(x.shape), *stats]
    y, mean, var = run_with_activations("batch_norm", buffers, [n, c, s, b], [eps])
    # With an offset of 30 standard deviations float32 inputs themselves are coarser.
    tolerance = 2e-6 if offset == 0 else 2e-5
    close(y[:real], y64, tolerance)
    close(mean, x64[:real].mean((0, 2)))
    close(var, x64[:real].var((0, 2), correction=0), tolerance)
    normalised = (x.astype(np.float64) - mean[:, None]) / np.sqrt(var + eps)[:, None]
    close(y, normalised * weight[:, None] + bias[:, None], tolerance)
    again = run_with_activations("batch_norm_apply", [x, weight, bias, mean, var, Out(x.shape)], [n, c, s], [eps])
    assert bits(again[0]) == bits(y)
    in_place = run(
        "batch_norm", [update(x), weight, bias, i64(rows), Out(x.shape, place_of=0), *stats], [n, c, s, b], [eps]
    )
    assert bits(in_place[1]) == bits(y)

    grads = [Out(x.shape), Out((c,)), Out((c,))]
    inputs = [x, weight, mean, var, i64(rows)]
    dx, dw, db = run("batch_norm_grad", [g, *inputs, *grads], [n, c, s, b, 1], [eps])
    assert x64.grad is not None
    close(dx, x64.grad, 5e-6 if offset == 0 else 5e-5)
    assert not dx[real:].any()
    close(dw, w64.grad, tolerance)
    close(db, b64.grad)
    in_place = run(
        "batch_norm_grad", [update(g), *inputs, Out(x.shape, place_of=0), *grads[1:]], [n, c, s, b, 1], [eps]
    )
    assert bits(in_place[1]) == bits(dx)


@pytest.mark.parametrize(("n", "c", "s", "b", "rows"), BATCH_NORMS)
def test_batch_norm_gradients_with_given_statistics(n: int, c: int, s: int, b: int, rows: int) -> None:
    x, g, weight, mean, var = normal(n, c, s), normal(n, c, s, seed=1), normal(c), normal(c, seed=3), normal(c) ** 2
    x64, w64, b64 = double(x), double(weight), double(np.zeros(c))
    y64 = F.batch_norm(x64, double(mean, grad=False), double(var, grad=False), w64, b64, False, 0.1, 1e-3)
    y64.backward(double(g, grad=False))
    dx, dw, db = run(
        "batch_norm_grad",
        [g, x, weight, mean, var, i64(rows), Out(x.shape), Out((c,)), Out((c,))],
        [n, c, s, b, 0],
        [1e-3],
    )
    close(dx, x64.grad)
    close(dw, w64.grad)
    close(db, b64.grad)


@pytest.mark.parametrize("rows", [0, 1])
def test_batch_norm_over_one_value_is_refused(rows: int) -> None:
    buffers = [normal(2, 3, 1), normal(3), normal(3), i64(rows), Out((2, 3, 1)), Out((3,)), Out((3,))]
    run("batch_norm", buffers, [2, 3, 1, 2], [1e-5], Status.ONE_VALUE)


def test_running_stats() -> None:
    x = normal(6, 3, 4)
    running = [normal(3, seed=1), normal(3, seed=2) ** 2]
    expected = [torch.tensor(r.astype(np.float64)) for r in running]
    F.batch_norm(double(x[:4]), *expected, None, None, True, 0.2)
    mean, var = x[:4].mean((0, 2)), x[:4].var((0, 2))
    found = run("running_stats", [mean, var, i64(2), *map(update, running)], [6, 3, 4, 3], [0.2])
    close(found[0], expected[0])
    close(found[1], expected[1])


@pytest.mark.parametrize(("n", "c", "s", "groups"), [(2, 4, 6, 2), (3, 6, 1, 3), (1, 5, 9, 1), (2, 3, 7, 3)])
def test_group_norm_and_its_gradients(n: int, c: int, s: int, groups: int) -> None:
    x, weight, bias, g = normal(n, c, s), normal(c), normal(c, seed=1), normal(n, c, s, seed=2)
    x64, w64, b64 = double(x), double(weight), double(bias)
    y64 = F.group_norm(x64, groups, w64, b64, 1e-5)
    y64.backward(double(g, grad=False))
    stats, ints = [Out((n, groups)), Out((n, groups))], [n, c, s, groups]
    y, mean, rstd = run("group_norm", [x, weight, bias, Out(x.shape), *stats], ints, [1e-5])
    close(y, y64)
    flat = x.reshape(n, groups, -1).astype(np.float64)
    close(mean, flat.mean(2))
    close(rstd, 1 / np.sqrt(flat.var(2) + 1e-5))
    grads = [Out((c,)), Out((c,))]
    dx, dw, db = run("group_norm_grad", [g, x, weight, mean, rstd, Out(x.shape), *grads], ints)
    close(dx, x64.grad, at_least=1)
    close(dw, w64.grad)
    close(db, b64.grad)
    in_place = [update(g), x, weight, mean, rstd, Out(x.shape, place_of=0), *grads]
    assert bits(run("group_norm_grad", in_place, ints)[1]) == bits(dx)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (40, 64), (5, 300)])
@pytest.mark.parametrize("affine", [(True, True), (True, False), (False, False)])
def test_layer_norm_and_its_gradients(rows: int, width: int, affine: tuple[bool, bool]) -> None:
    x, g = normal(rows, width), normal(rows, width, seed=2)
    weight, bias = (normal(width, seed=s) if used else None for s, used in enumerate(affine))
    x64 = double(x)
    w64, b64 = (None if p is None else double(p) for p in (weight, bias))
    y64 = F.layer_norm(x64, (width,), w64, b64, 1e-5)
    y64.backward(double(g, grad=False))
    y, mean, rstd = run(
        "layer_norm", [x, weight, bias, Out(x.shape), Out((rows,)), Out((rows,))], [rows, width], [1e-5]
    )
    close(y, y64)
    grads = [None if p is None else Out((width,)) for p in (weight, bias)]
    dx, *dp = run("layer_norm_grad", [g, x, weight, mean, rstd, Out(x.shape), *grads], [rows, width])
    # A row of one value has no gradient: two terms rstd g w, with an rstd of 316 and one of them fused, leave rounding.
    close(dx, x64.grad, 5e-6, at_least=1)
    for actual, expected in zip(dp, (p for p in (w64, b64) if p is not None), strict=True):
        close(actual, expected.grad, at_least=1)
    in_place = [update(g), x, weight, mean, rstd, Out(x.shape, place_of=0), *grads]
    assert bits(run("layer_norm_grad", in_place, [rows, width])[1]) == bits(dx)


# Lookup


def test_embedding_and_its_gradient() -> None:
    table, ids, g = normal(5, 11), i64(4, 0, 0, 3, 4, 4), normal(6, 11, seed=1)
    assert np.array_equal(run("embedding", [table, ids, Out((6, 11))], [5, 11, 6])[0], table[ids])
    expected = np.zeros((5, 11))
    np.add.at(expected, ids, g)
    close(run("embedding_grad", [g, ids, Out((5, 11))], [5, 11, 6])[0], expected)


@pytest.mark.parametrize("bad", [-1, 5, 2**62, -(2**63)])
def test_an_id_outside_the_table_stops_the_run(bad: int) -> None:
    run("embedding", [normal(5, 3), i64(1, bad), Out((2, 3))], [5, 3, 2], status=Status.OUT_OF_RANGE)
    run("embedding_grad", [normal(2, 3), i64(1, bad), Out((5, 3))], [5, 3, 2], status=Status.OUT_OF_RANGE)


# Attention

# P Tq Tk D Dv
ATTENTIONS = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 4, 6),
    (2, 5, 3, 9, 8),
    (3, 17, 17, 8, 8),
    (1, 40, 70, 16, 5),
    (2, 80, 80, 24, 24),
    (1, 33, 300, 4, 7),
    (1, 290, 260, 5, 3),
]


@pytest.mark.parametrize(("p", "tq", "tk", "d", "dv"), ATTENTIONS)
@pytest.mark.parametrize("causal", [0, 1])
def test_attention_and_its_gradients(p: int, tq: int, tk: int, d: int, dv: int, causal: int) -> None:
    q, k, v, g = (
        2 * normal(p, tq, d),
        2 * normal(p, tk, d, seed=1),
        normal(p, tk, dv, seed=2),
        normal(p, tq, dv, seed=3),
    )
    q64, k64, v64 = double(q), double(k), double(v)
    scores = 0.3 * q64 @ k64.mT
    if causal:
        scores = scores.masked_fill(torch.ones(tq, tk).tril() == 0, -torch.inf)
    y64 = torch.softmax(scores, -1) @ v64
    y64.backward(double(g, grad=False))
    ints = [p, tq, tk, d, dv, causal]
    y, lse = run("attention", [q, k, v, Out((p, tq, dv)), Out((p, tq))], ints, [0.3])
    close(y, y64)
    close(lse, torch.logsumexp(scores, -1))
    outs = [Out(q.shape), Out(k.shape), Out(v.shape)]
    dq, dk, dv_ = run("attention_grad", [g, q, k, v, y, lse, *outs], ints, [0.3])
    for actual, expected in ((dq, q64), (dk, k64), (dv_, v64)):
        assert expected.grad is not None
        # Where a row sees one column its scores have no gradient; what is left is rounding.
        close(actual, expected.grad, 5e-6, at_least=1)


@pytest.mark.parametrize(
    ("outer", "n", "inner"), [(1, 1, 1), (3, 10, 1), (2, 300, 1), (2, 5, 7), (1, 9, 20), (4, 1, 3)]
)
def test_softmax_and_its_gradient(outer: int, n: int, inner: int) -> None:
    x, g = 4 * normal(outer, n, inner), normal(outer, n, inner, seed=1)
    x64 = double(x)
    y64 = torch.softmax(x64, 1)
    y64.backward(double(g, grad=False))
    shape = [outer, n, inner]
    (y,) = run("softmax", [x, Out(x.shape)], shape)
    close(y, y64)
    assert bits(run("softmax", [update(x), Out(x.shape, place_of=0)], shape)[1]) == bits(y)
    (dx,) = run("softmax_grad", [g, y, Out(x.shape)], shape)
    close(dx, x64.grad, at_least=1)
    assert bits(run("softmax_grad", [update(g), y, Out(x.shape, place_of=0)], shape)[1]) == bits(dx)


@pytest.mark.parametrize("inner", [1, 3])
def test_softmax_of_large_numbers(inner: int) -> None:
    x = np.repeat(f32(1e4, -1e4, 9999, 0), inner).reshape(1, 4, inner)
    (y,) = run("softmax", [x, Out(x.shape)], x.shape)
    close(y, special.softmax(x.astype(np.float64), axis=1))


# Recurrent

# B T I H
RECURRENT = [(1, 1, 1, 1), (3, 1, 4, 5), (2, 6, 3, 8), (4, 5, 9, 17), (16, 3, 2, 33)]


def recurrent_inputs(gates: int, b: int, t: int, i: int, h: int) -> list[Array]:
    shapes = [(b, t, i), (b, h), (gates * h, i), (gates * h, h), (gates * h,), (gates * h,)]
    return [(0.5 if n > 1 else 1) * normal(*shape, seed=n) for n, shape in enumerate(shapes)]


@pytest.mark.parametrize(("b", "t", "i", "h"), RECURRENT)
@pytest.mark.parametrize("bias", [True, False])
def test_gru_and_its_gradients(b: int, t: int, i: int, h: int, bias: bool) -> None:
    x, h0, *weights = (0.5 * a.astype(np.float32) for a in recurrent_inputs(3, b, t, i, h))
    weights = weights if bias else weights[:2]
    x64, h64, *w64 = map(double, (x, h0, *weights))
    y64, hn64 = torch.gru(x64, h64[None], w64, bias, 1, 0.0, False, False, True)
    gy, ghn = normal(b, t, h, seed=8), normal(b, h, seed=9)
    torch.autograd.backward((y64, hn64), (double(gy, grad=False), double(ghn[None], grad=False)))
    ints, inputs = [b, t, i, h], [x, h0, *weights, *([] if bias else [None, None])]
    y, hn, gates = run("gru", [*inputs, Out((b, t, h)), Out((b, h)), Out((b, t, 4 * h)), Work(3 * b * h)], ints)
    close(y, y64)
    close(hn, hn64)
    again = run("gru_gates", [*inputs, y, Out(gates.shape), Work(3 * b * h)], ints)
    assert bits(again[0]) == bits(gates)
    outs = [Out(a.shape) for a in inputs[:4]] + [Out((3 * h,)), Out((3 * h,))]
    arguments = [gy, ghn, *inputs[:4], y]
    *grads, _ = results = run("gru_grad", [*arguments, gates, *outs, Out(gates.shape), Work(b * h)], ints)
    for actual, expected in zip(grads, (x64, h64, *w64), strict=bias):
        close(actual, expected.grad, 5e-6)
    in_place = run("gru_grad", [*arguments, update(gates), *outs, Out(gates.shape, place_of=7), Work(b * h)], ints)
    assert list(map(bits, in_place[1:])) == list(map(bits, results))


@pytest.mark.parametrize(("b", "t", "i", "h"), RECURRENT)
@pytest.mark.parametrize("bias", [True, False])
def test_lstm_and_its_gradients(b: int, t: int, i: int, h: int, bias: bool) -> None:
    x, h0, *weights = recurrent_inputs(4, b, t, i, h)
    c0 = normal(b, h, seed=7)
    weights = weights if bias else weights[:2]
    x64, h64, c64, *w64 = map(double, (x, h0, c0, *weights))
    y64, hn64, cn64 = torch.lstm(x64, (h64[None], c64[None]), w64, bias, 1, 0.0, False, False, True)
    gy, ghn, gcn = normal(b, t, h, seed=8), normal(b, h, seed=9), normal(b, h, seed=10)
    torch.autograd.backward((y64, hn64, cn64), [double(g, grad=False) for g in (gy, ghn[None], gcn[None])])
    ints, inputs = [b, t, i, h], [x, h0, c0, *weights, *([] if bias else [None, None])]
    state, wide = (b, t, h), (b, t, 4 * h)
    y, hn, cn, gates, cells = run(
        "lstm", [*inputs, Out(state), Out((b, h)), Out((b, h)), Out(wide), Out(state), Work(4 * b * h)], ints
    )
    close(y, y64)
    close(hn, hn64)
    close(cn, cn64)
    again = run("lstm_gates", [*inputs, y, Out(wide), Out(state), Work(4 * b * h)], ints)
    assert list(map(bits, again)) == [bits(gates), bits(cells)]
    outs = [Out(a.shape) for a in inputs[:5]] + [Out((4 * h,)), Out((4 * h,))]
    arguments = [gy, ghn, gcn, *inputs[:5], y]
    *grads, _ = results = run("lstm_grad", [*arguments, gates, cells, *outs, Out(wide), Work(2 * b * h)], ints)
    for actual, expected in zip(grads, (x64, h64, c64, *w64), strict=bias):
        close(actual, expected.grad, 5e-6)
    in_place = run("lstm_grad", [*arguments, update(gates), cells, *outs, Out(wide, place_of=9), Work(2 * b * h)], ints)
    assert list(map(bits, in_place[1:])) == list(map(bits, results))


# Dropout


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10 of Salmon et al. 2011, in Python's integers."""
    c, (k0, k1), word = list(counter), key, 2**32
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b // word ^ c[1] ^ k0, b % word, a // word ^ c[3] ^ k1, a % word]
        k0, k1 = (k0 + 0x9E3779B9) % word, (k1 + 0xBB67AE85) % word
    return c


def test_philox_gives_its_authors_vectors() -> None:
    ones = 2**32 - 1
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox([ones] * 4, [ones] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize(
    ("seed", "step", "first_row", "row", "n"),
    [(0, 0, 0, 1, 1), (123456789012345, 7, 3, 5, 33), (-5, 2**40 + 9, 2**35, 3, 10), (1, 2, -1, 7, 20)],
)
def test_dropout(seed: int, step: int, first_row: int, row: int, n: int) -> None:
    x, op, p = normal(n), 11, 0.4
    (y,) = run("dropout", [x, i64(seed, step, first_row), Out((n,))], [n, op, row], [p])
    for i in range(n):
        c, word = (first_row * row + i) % 2**64, 2**32
        words = philox([c // 4 % word, c // 4 // word, step % word, op], [seed % word, seed % 2**64 // word])
        drops = (words[c % 4] >> 8) * 2.0**-24 < p
        assert y[i] == 0 if drops else abs(y[i] - x[i] / (1 - p)) <= 1e-6 * abs(x[i])
    in_place = run("dropout", [update(x), i64(seed, step, first_row), Out((n,), place_of=0)], [n, op, row], [p])
    assert bits(in_place[1]) == bits(y)


def test_dropout_of_part_of_a_batch_is_part_of_the_whole() -> None:
    whole = run("dropout", [np.ones(60, np.float32), i64(3, 4, 10), Out((60,))], [60, 2, 6], [0.5])[0]
    part = run("dropout", [np.ones(18, np.float32), i64(3, 4, 13), Out((18,))], [18, 2, 6], [0.5])[0]
    assert np.array_equal(whole[18:36], part)
    assert 0.2 < (whole == 0).mean() < 0.8


# Losses

# R C B rows
CLASSES = [(1, 1, 1, 1), (4, 10, 4, 4), (6, 5, 3, 2), (4, 33, 4, 0), (16, 7, 8, 5)]
IGNORED = -100


def class_case(r: int, c: int, b: int, rows: int) -> tuple[Array, Array, torch.Tensor]:
    """Logits, targets of which some are ignored, and which rows count."""
    target = np.random.default_rng(r).integers(0, c, r)
    target[2::5] = IGNORED
    counted = torch.tensor((np.arange(r) < rows * r // b) & (target != IGNORED))
    target[rows * r // b :] = 10**9  # what stands in padding is nobody's business
    return 2 * normal(r, c), target, counted


@pytest.mark.parametrize(("r", "c", "b", "rows"), CLASSES)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_and_its_gradient(r: int, c: int, b: int, rows: int, weighted: bool, smoothing: float) -> None:
    z, target, counted = class_case(r, c, b, rows)
    weight = np.abs(normal(c)) if weighted else None
    z64, w64 = double(z), None if weight is None else double(weight, grad=False)
    each = F.cross_entropy(
        z64[counted], torch.tensor(target)[counted], w64, reduction="none", label_smoothing=smoothing
    )
    loss64 = 0.3 * each.sum()
    (-1.5 * loss64).backward()
    inputs, ints = [z, target, weight, i64(rows), f32(0.3)], [r, c, b, IGNORED]
    (loss,) = run("cross_entropy", [*inputs, Out((1,))], ints, [smoothing])
    close(loss, loss64)
    (dz,) = run("cross_entropy_grad", [f32(-1.5), *inputs, Out((r, c))], ints, [smoothing])
    close(dz, z64.grad, at_least=0.5)
    assert not dz[~counted.numpy()].any()
    in_place = [f32(-1.5), update(z), *inputs[1:], Out((r, c), place_of=1)]
    assert bits(run("cross_entropy_grad", in_place, ints, [smoothing])[1]) == bits(dz)


@pytest.mark.parametrize(("r", "c", "b", "rows"), CLASSES)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_and_its_gradient(r: int, c: int, b: int, rows: int, weighted: bool, gamma: float) -> None:
    z, target, counted = class_case(r, c, b, rows)
    weight = np.abs(normal(c)) if weighted else None
    z64, w64 = double(z), double(np.ones(c) if weight is None else weight, grad=False)
    t = torch.tensor(target)[counted]
    log_p = torch.log_softmax(z64[counted], 1).gather(1, t[:, None])[:, 0]
    loss64 = 0.3 * (w64[t] * (1 - log_p.exp()) ** gamma * -log_p).sum()
    loss64.backward()
    inputs, ints = [z, target, weight, i64(rows), f32(0.3)], [r, c, b, IGNORED]
    (loss,) = run("focal", [*inputs, Out((1,))], ints, [gamma])
    close(loss, loss64)
    (dz,) = run("focal_grad", [f32(1), *inputs, Out((r, c))], ints, [gamma])
    if c > 1:  # with one class p is 1 whatever z is
        close(dz, z64.grad, at_least=0.5)
    assert not dz[~counted.numpy()].any()
    in_place = [f32(1), update(z), *inputs[1:], Out((r, c), place_of=1)]
    assert bits(run("focal_grad", in_place, ints, [gamma])[1]) == bits(dz)


@pytest.mark.parametrize(("name", "parameter"), [("cross_entropy", 0.0), ("cross_entropy", 0.1), ("focal", 2.0)])
def test_class_losses_of_large_logits(name: str, parameter: float) -> None:
    z = f32(1e4, -1e4, 0, -1e4, 1e4, 9999).reshape(2, 3)
    for target in (i64(0, 0), i64(1, 2)):
        inputs = [z, target, None, i64(2), f32(1)]
        (loss,) = run(name, [*inputs, Out((1,))], [2, 3, 2, -1], [parameter])
        (dz,) = run(name + "_grad", [f32(1), *inputs, Out((2, 3))], [2, 3, 2, -1], [parameter])
        assert np.isfinite(loss).all()
        assert np.isfinite(dz).all()
        if name == "cross_entropy":
            expected = F.cross_entropy(double(z), torch.tensor(target), reduction="sum", label_smoothing=parameter)
            close(loss, expected)


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
@pytest.mark.parametrize("bad", [-1, 3, 2**60])
def test_a_class_outside_the_table_stops_the_run(name: str, bad: int) -> None:
    inputs = [normal(2, 3), i64(0, bad), None, i64(2), f32(1)]
    run(name, [*inputs, Out((1,))], [2, 3, 2, IGNORED], [0], Status.OUT_OF_RANGE)
    run(name + "_grad", [f32(1), *inputs, Out((2, 3))], [2, 3, 2, IGNORED], [0], Status.OUT_OF_RANGE)


PAIR_LOSSES: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = [
    lambda p, t: F.mse_loss(p, t, reduction="sum"),
    lambda p, t: F.l1_loss(p, t, reduction="sum"),
    lambda p, t: F.huber_loss(p, t, reduction="sum", delta=0.7),
    lambda p, t: F.binary_cross_entropy_with_logits(p, t, reduction="sum"),
]


@pytest.mark.parametrize(("n", "b", "rows"), [(1, 1, 1), (12, 4, 3), (40, 8, 8), (6, 3, 0), (3000, 10, 9)])
@pytest.mark.parametrize("kind", range(4), ids=["mse", "l1", "huber", "bce"])
def test_pair_loss_and_its_gradient(kind: int, n: int, b: int, rows: int) -> None:
    p, t, counted = 2 * normal(n), special.expit(normal(n, seed=1)), rows * n // b
    p64 = double(p)
    loss64 = 0.3 * PAIR_LOSSES[kind](p64[:counted], double(t[:counted], grad=False))
    (2 * loss64).backward()
    inputs, delta = [p, t, i64(rows), f32(0.3)], [0.7]
    (loss,) = run("pair_loss", [*inputs, Out((1,))], [kind, n, b], delta)
    close(loss, loss64)
    (dp,) = run("pair_loss_grad", [f32(2), *inputs, Out((n,))], [kind, n, b], delta)
    close(dp, p64.grad)
    in_place = [f32(2), update(p), *inputs[1:], Out((n,), place_of=1)]
    assert bits(run("pair_loss_grad", in_place, [kind, n, b], delta)[1]) == bits(dp)


def test_binary_cross_entropy_of_large_logits() -> None:
    p, t = f32(1e4, -1e4, 1e4, -1e4), f32(1, 0, 0, 1)
    (loss,) = run("pair_loss", [p, t, i64(4), f32(1), Out((1,))], [3, 4, 4], [1])
    assert loss[0] == 2e4
    (dp,) = run("pair_loss_grad", [f32(1), p, t, i64(4), f32(1), Out((4,))], [3, 4, 4], [1])
    assert dp.tolist() == [0, 0, 1, -1]


@pytest.mark.parametrize(("r", "c", "b", "rows"), CLASSES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_and_its_gradient(r: int, c: int, b: int, rows: int, temperature: float) -> None:
    z, t, counted = 2 * normal(r, c), 2 * normal(r, c, seed=1), rows * r // b
    z64, t64 = double(z), double(t, grad=False)
    log_p, log_q = (torch.log_softmax(a[:counted] / temperature, 1) for a in (z64, t64))
    loss64 = 0.3 * temperature**2 * F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    loss64.backward()
    inputs = [z, t, i64(rows), f32(0.3)]
    (loss,) = run("distill", [*inputs, Out((1,))], [r, c, b], [temperature])
    close(loss, loss64)
    (dz,) = run("distill_grad", [f32(1), *inputs, Out((r, c))], [r, c, b], [temperature])
    close(dz, z64.grad)
    in_place = [f32(1), update(z), *inputs[1:], Out((r, c), place_of=1)]
    assert bits(run("distill_grad", in_place, [r, c, b], [temperature])[1]) == bits(dz)


def test_distillation_of_large_logits() -> None:
    z, t = f32(1e4, -1e4, 0).reshape(1, 3), f32(-1e4, 1e4, 0).reshape(1, 3)
    (loss,) = run("distill", [z, t, i64(1), f32(1), Out((1,))], [1, 3, 1], [2])
    close(loss, 4 * 1e4)
    (dz,) = run("distill_grad", [f32(1), z, t, i64(1), f32(1), Out((1, 3))], [1, 3, 1], [2])
    close(dz, [2, -2, 0])


# Updates

STEPS = 3


def optimise(
    optimizer: Callable[[list[torch.Tensor]], torch.optim.Optimizer],
    step: Callable[[Array, Array, int], Array],
    n: int,
) -> None:
    """Some steps of PyTorch's optimizer in float64 beside ours."""
    w = normal(n)
    w64 = double(w)
    theirs = optimizer([w64])
    for t in range(1, STEPS + 1):
        g = normal(n, seed=t)
        w64.grad = double(g, grad=False)
        theirs.step()
        w = step(w, g, t)
        close(w, w64, at_least=1)


@pytest.mark.parametrize("n", [1, 5, 16, 2051])
@pytest.mark.parametrize(("momentum", "nesterov"), [(None, 0), (0.0, 0), (0.9, 0), (0.9, 1)])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_sgd(n: int, momentum: float | None, nesterov: int, decay: float) -> None:
    state: list[Array] = [] if momentum is None else [np.zeros(n, np.float32)]

    def step(w: Array, g: Array, _: int) -> Array:
        velocity = update(state[0]) if state else None
        w, *state[:] = run("sgd", [update(w), g, velocity, f32(0.1)], [n, nesterov], [momentum or 0, decay])
        return w

    optimise(lambda p: torch.optim.SGD(p, 0.1, momentum or 0, 0, decay, bool(nesterov)), step, n)


@pytest.mark.parametrize("n", [1, 5, 16, 2051])
@pytest.mark.parametrize("decoupled", [0, 1])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam(n: int, decoupled: int, decay: float) -> None:
    m, v = np.zeros(n, np.float32), np.zeros(n, np.float32)

    def step(w: Array, g: Array, t: int) -> Array:
        nonlocal m, v
        corrections = f32(1 / (1 - 0.9**t), 1 / math.sqrt(1 - 0.99**t))
        w, m, v = run(
            "adam",
            [update(w), g, update(m), update(v), f32(0.01), corrections],
            [n, decoupled],
            [0.9, 0.99, 1e-8, decay],
        )
        return w

    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimise(lambda p: kind(p, 0.01, (0.9, 0.99), 1e-8, decay), step, n)


@pytest.mark.parametrize("n", [1, 5, 16, 2051])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_rmsprop(n: int, momentum: float, decay: float) -> None:
    v, u = np.zeros(n, np.float32), np.zeros(n, np.float32)

    def step(w: Array, g: Array, _: int) -> Array:
        nonlocal v, u
        buffers = [update(w), g, update(v), update(u) if momentum else None, f32(0.01)]
        w, v, *rest = run("rmsprop", buffers, [n], [0.95, 1e-8, momentum, decay])
        u = rest[0] if rest else u
        return w

    optimise(lambda p: torch.optim.RMSprop(p, 0.01, 0.95, 1e-8, decay, momentum), step, n)


@pytest.mark.parametrize("n", [1, 5, 16, 2051])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adagrad(n: int, decay: float) -> None:
    v = np.zeros(n, np.float32)

    def step(w: Array, g: Array, _: int) -> Array:
        nonlocal v
        w, v = run("adagrad", [update(w), g, update(v), f32(0.1)], [n], [1e-10, decay])
        return w

    optimise(lambda p: torch.optim.Adagrad(p, 0.1, 0, decay, 0, 1e-10), step, n)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 7, 8, 2050])
def test_a_gradient_that_is_not_finite_stops_the_run(bad: float, at: int) -> None:
    n = 2051
    w, g, state = normal(n), normal(n, seed=1), update(np.ones(n, np.float32))
    g[at] = bad
    for name, buffers, ints, floats in (
        ("sgd", [update(w), g, None, f32(0.1)], [n, 0], [0, 0]),
        ("adam", [update(w), g, state, state, f32(0.1), f32(1, 1)], [n, 0], [0.9, 0.99, 1e-8, 0]),
        ("rmsprop", [update(w), g, state, None, f32(0.1)], [n], [0.9, 1e-8, 0, 0]),
        ("adagrad", [update(w), g, state, f32(0.1)], [n], [1e-8, 0]),
    ):
        after, *_ = run(name, buffers, ints, floats, Status.NOT_FINITE)
        assert np.isfinite(after).all(), "a bad gradient has reached the weights"
    run("check_finite", [g], [n], status=Status.NOT_FINITE)


def test_finite_numbers_pass() -> None:
    run("check_finite", [f32(3.4e38, -3.4e38, 1e-45, 0, -0.0)], [5])


def test_proximal() -> None:
    g, w, anchor = normal(19), normal(19, seed=1), normal(19, seed=2)
    (y,) = run("proximal", [g, w, anchor, Out((19,))], [19], [0.3])
    close(y, g.astype(np.float64) + 0.3 * (w.astype(np.float64) - anchor))
    assert bits(run("proximal", [update(g), w, anchor, Out((19,), place_of=0)], [19], [0.3])[1]) == bits(y)


@pytest.mark.parametrize("n", [1, 7, 100_003])
def test_square_sum(n: int) -> None:
    x = normal(n)
    close(run("square_sum", [x, Out((1,))], [n])[0], [np.square(x.astype(np.float64)).sum()], 1e-7)


@pytest.mark.parametrize(
    ("squares", "expected"), [(0.0, 1.0), (4.0, 1.0), (16.0, 0.5), (np.inf, 0.0), (np.nan, np.nan)]
)
def test_clip_scale(squares: float, expected: float) -> None:
    np.testing.assert_allclose(run("clip_scale", [f32(squares), Out((1,))], [], [2.0])[0], expected, rtol=1e-6)


@pytest.mark.parametrize("n", [1000, 100_000])
def test_long_sums_stay_near_float32s_own_error(n: int) -> None:
    """All terms are positive and far from powers of two, so an error that grew with n would show."""
    x = np.random.default_rng(0).uniform(1, 2, n).astype(np.float32)
    exact = x.astype(np.float64).sum()
    plane, zero, one, outs = x.reshape(n, 1, 1), f32(0), f32(1), [Out((n, 1, 1)), Out((1,)), Out((1,))]
    sums = {
        "rows": run("reduce", [x, Out((1,))], [1, n, 0, 0, 0, 0, 0, *[0] * 6], [1])[0],
        "columns": run("reduce", [np.repeat(x, 3), Out((3,))], [2, n, 3, 0, 0, 0, 0, 0, 1, *[0] * 4], [1])[0],
        "l1": run("pair_loss", [x, 0 * x, i64(1), f32(1), Out((1,))], [1, n, 1], [1])[0],
        "batch_norm": run("batch_norm_grad", [plane, plane, one, zero, one, i64(1), *outs], [n, 1, 1, 1, 0], [0])[2],
    }
    for name, total in sums.items():
        assert np.abs(total / exact - 1).max() < 2.5e-7, name
