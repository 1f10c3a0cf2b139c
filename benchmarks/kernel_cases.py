"""Native ops beside the PyTorch functions that do the same, on the shapes of the five models.

A case is a small arena with one op to time, ops that have to run once before it, and a closure over torch tensors with
the same contents. PyTorch's side is called as eager training calls it: through Python, into memory that it allocates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from steps import MODELS, torch_model
from torch import Tensor, nn
from torch.nn import functional

from edge_runtime.kernels.native import ARENA_ALIGNMENT, OP_DTYPE, NativeProgram, op_code

aten = torch.ops.aten
EPS = 1e-5

Array = NDArray[Any]
Spec = tuple[str, str, Sequence[int], Sequence[float]]  # an op: name, buffers by name ("-": absent), ints, floats


class Arena:
    """Arrays by name, copied into one block that native ops run in."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._offsets, end = {"-": -1}, 0
        for name, array in arrays.items():
            self._offsets[name] = end
            end += -(-array.nbytes // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
        block = np.zeros(end + ARENA_ALIGNMENT, np.uint8)
        start = -block.ctypes.data % ARENA_ALIGNMENT
        self.bytes = block[start : start + end]
        self._arrays = {name: self._place(name, array) for name, array in arrays.items()}

    def _place(self, name: str, array: Array) -> Array:
        at = self._offsets[name]
        there = self.bytes[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
        there[...] = array
        return there

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def program(self, spec: Spec, repeats: int = 1) -> NativeProgram:
        """The op, `repeats` times over."""
        name, buffers, ints, floats = spec
        records = np.zeros(repeats, OP_DTYPE)
        records["code"] = op_code(name)
        offsets = [self._offsets[buffer] for buffer in buffers.split()]
        records["buffers"] = -1
        records["buffers"][:, : len(offsets)] = offsets
        records["ints"][:, : len(ints)] = ints
        records["floats"][:, : len(floats)] = floats
        return NativeProgram(records, len(self.bytes))

    def run(self, spec: Spec) -> None:
        status, _ = self.program(spec).run(self.bytes, 0, 1)
        if status != 0:
            raise ValueError(f"{spec[0]} stopped with status {status}")


@dataclass(frozen=True)
class Case:
    """`result` names the array that must hold what `torch` returns first."""

    label: str
    arena: Arena
    op: Spec
    torch: Callable[[], Any]
    result: str


def randn(*shape: int, seed: int = 0) -> Array:
    """Standard normal, the same numbers for the same seed and shape."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def zeros(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


def tensor(array: Array) -> Tensor:
    return torch.from_numpy(array.copy())


def all_cases(batch: int) -> Iterator[Case]:
    shapes = layer_shapes(batch)
    for shape in shapes["conv"]:
        yield from convolution(*shape)
    for shape in shapes["linear"]:
        yield from linear(*shape)
    for shape in shapes["norm"]:
        yield from batch_norm(*shape)
    yield from layer_norm(batch * 64, 64)
    for kind, count in (("relu", batch * 16 * 32 * 32), ("relu6", batch * 48 * 32 * 32), ("gelu", batch * 64 * 256)):
        yield from unary(kind, count)
    for kind, count in (("sigmoid", batch * 64 * 64), ("tanh", batch * 64 * 64), ("silu", batch * 64 * 64)):
        yield from unary(kind, count)
    yield add(batch * 16 * 32 * 32)
    yield add_bias(batch * 64, 256)
    yield transpose(batch, 64, 3, 2, 32)
    yield from max_pool(batch * 6, 28)
    yield from max_pool(batch * 16, 10)
    yield mean(batch * 160, 16)
    yield from attention(batch, 2, 64, 32)
    yield from gru(batch, 64, 64, 64)
    yield from embedding(80, 64, batch * 64)
    yield from cross_entropy(batch, 10)
    yield from cross_entropy(batch * 64, 80)
    yield sgd(37_632)


def layer_shapes(batch: int) -> dict[str, list[tuple[int, ...]]]:
    """What the five models' layers see, each shape once: conv N C H W O k s p g; linear M N K; norm N C H W."""
    found: dict[str, dict[tuple[int, ...], None]] = {"conv": {}, "linear": {}, "norm": {}}

    def note(layer: Any, inputs: Any, _: Any) -> None:
        x = tuple(inputs[0].shape)
        if isinstance(layer, nn.Conv2d):
            rest = (layer.out_channels, layer.kernel_size[0], layer.stride[0], layer.padding[0], layer.groups)
            found["conv"][(*x, *rest)] = None  # type: ignore[index]
        elif isinstance(layer, nn.Linear):
            found["linear"][inputs[0].numel() // x[-1], layer.out_features, layer.in_features] = None
        elif isinstance(layer, nn.BatchNorm2d):
            found["norm"][x] = None

    for name in MODELS:
        module, x, _ = torch_model(name, batch)
        for layer in module.modules():
            layer.register_forward_hook(note)
        with torch.no_grad():
            module(x)
    return {kind: list(shapes) for kind, shapes in found.items()}


def convolution(n: int, c: int, h: int, w: int, o: int, k: int, s: int, p: int, groups: int) -> Iterator[Case]:
    out = (h + 2 * p - k) // s + 1
    kind = "depthwise" if c == o == groups else "pointwise" if k == s == 1 and p == 0 else "dense"
    label = f"conv2d {kind} {k}x{k} s{s} ({n},{c},{h},{w})->{o}"
    x, weight, g = randn(n, c, h, w), randn(o, c // groups, k, k), randn(n, o, out, out)
    arrays = {
        "x": x, "w": weight, "g": g, "y": zeros(*g.shape), "dx": zeros(*x.shape), "dw": zeros(*weight.shape),
    }  # fmt: skip
    ints = (n, c, h, w, o, k, k, s, s, p, p, groups)
    tx, tw, tg = tensor(x), tensor(weight), tensor(g)

    def backward(which: int) -> Callable[[], Any]:
        mask = [which == 0, which == 1, False]
        geometry = ([s, s], [p, p], [1, 1], False, [0, 0], groups)
        return lambda: aten.convolution_backward(tg, tx, tw, None, *geometry, mask)[which]

    arena = Arena(arrays)
    yield Case(
        f"{label} forward", arena, ("conv2d", "x w - y", ints, ()),
        lambda: functional.conv2d(tx, tw, None, s, p, 1, groups), "y",
    )  # fmt: skip
    yield Case(f"{label} dx", arena, ("conv2d_dx", "g w dx", ints, ()), backward(0), "dx")
    yield Case(f"{label} dw", arena, ("conv2d_dw", "g x dw", ints, ()), backward(1), "dw")


def linear(m: int, n: int, k: int) -> Iterator[Case]:
    x, w, b, g = randn(m, k), randn(n, k), randn(n), randn(m, n)
    outputs = {"y": zeros(m, n), "dx": zeros(m, k), "dw": zeros(n, k)}
    arena, ints = Arena({"x": x, "w": w, "b": b, "g": g, **outputs}), (m, n, k)
    tx, tw, tb, tg = map(tensor, (x, w, b, g))
    label = f"linear ({m},{k})->{n}"
    yield Case(f"{label} forward", arena, ("linear", "x w b y", ints, ()), lambda: functional.linear(tx, tw, tb), "y")
    yield Case(f"{label} dx", arena, ("linear_dx", "g w dx", ints, ()), lambda: tg.mm(tw), "dx")
    yield Case(f"{label} dw", arena, ("linear_dw", "g x dw", ints, ()), lambda: tg.t().mm(tx), "dw")


def batch_norm(n: int, c: int, h: int, w: int) -> Iterator[Case]:
    x, weight, bias, g = randn(n, c, h, w), randn(c), randn(c, seed=1), randn(n, c, h, w, seed=1)
    inputs = {"x": x, "w": weight, "b": bias, "g": g, "rows": np.array([n])}
    outputs = {"y": zeros(*x.shape), "mean": zeros(c), "var": zeros(c), "dx": zeros(*x.shape)}
    arena = Arena({**inputs, **outputs, "dw": zeros(c), "db": zeros(c)})
    label, ints = f"batch_norm ({n},{c},{h},{w})", (n, c, h * w, n)
    forward: Spec = ("batch_norm", "x w b rows y mean var", ints, (EPS,))
    arena.run(forward)
    tx, tw, tb, tg = map(tensor, (x, weight, bias, g))
    mean, var = torch.zeros(c), torch.ones(c)
    _, saved_mean, saved_rstd = aten.native_batch_norm(tx, tw, tb, mean, var, True, 0.1, EPS)
    saved = (mean, var, saved_mean, saved_rstd, True, EPS, [True, True, True])
    yield Case(
        f"{label} forward", arena, forward,
        lambda: aten.native_batch_norm(tx, tw, tb, mean, var, True, 0.1, EPS), "y",
    )  # fmt: skip
    yield Case(
        f"{label} backward", arena, ("batch_norm_grad", "g x w mean var rows dx dw db", (*ints, 1), (EPS,)),
        lambda: aten.native_batch_norm_backward(tg, tx, tw, *saved), "dx",
    )  # fmt: skip
    yield Case(
        f"batch_norm_apply ({n},{c},{h},{w})", arena, ("batch_norm_apply", "x w b mean var y", ints[:3], (EPS,)),
        lambda: aten.native_batch_norm(tx, tw, tb, saved_mean, saved_rstd**-2 - EPS, False, 0.1, EPS), "y",
    )  # fmt: skip


def layer_norm(rows: int, width: int) -> Iterator[Case]:
    x, w, b, g = randn(rows, width), randn(width), randn(width, seed=1), randn(rows, width, seed=1)
    outputs = {"y": zeros(rows, width), "mean": zeros(rows), "rstd": zeros(rows), "dx": zeros(rows, width)}
    arena = Arena({"x": x, "w": w, "b": b, "g": g, **outputs, "dw": zeros(width), "db": zeros(width)})
    forward: Spec = ("layer_norm", "x w b y mean rstd", (rows, width), (EPS,))
    arena.run(forward)
    tx, tw, tb, tg = map(tensor, (x, w, b, g))
    _, mean, rstd = aten.native_layer_norm(tx, [width], tw, tb, EPS)
    yield Case(
        f"layer_norm ({rows},{width}) forward", arena, forward,
        lambda: aten.native_layer_norm(tx, [width], tw, tb, EPS), "y",
    )  # fmt: skip
    yield Case(
        f"layer_norm ({rows},{width}) backward", arena,
        ("layer_norm_grad", "g x w mean rstd dx dw db", (rows, width), ()),
        lambda: aten.native_layer_norm_backward(tg, tx, [width], mean, rstd, tw, tb, [True, True, True]), "dx",
    )  # fmt: skip


def unary(name: str, n: int) -> Iterator[Case]:
    kind = ("relu", "relu6", "gelu", "sigmoid", "silu", "tanh").index(name)
    x, g = randn(n) * 3, randn(n, seed=1)
    tx, tg = tensor(x), tensor(g)
    functions: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "relu": (torch.relu, lambda: aten.threshold_backward(tg, ty, 0)),
        "relu6": (functional.relu6, lambda: aten.hardtanh_backward(tg, ty, 0.0, 6.0)),
        "gelu": (functional.gelu, lambda: aten.gelu_backward(tg, tx)),
        "sigmoid": (torch.sigmoid, lambda: aten.sigmoid_backward(tg, ty)),
        "silu": (functional.silu, lambda: aten.silu_backward(tg, tx)),
        "tanh": (torch.tanh, lambda: aten.tanh_backward(tg, ty)),
    }
    forward, backward = functions[name]
    ty = forward(tx)
    arena = Arena({"x": x, "g": g, "y": ty.numpy(), "dx": zeros(n)})
    kept = "x" if name in ("gelu", "silu") else "y"
    yield Case(f"{name} ({n}) forward", arena, ("unary", "x y", (kind, n), (0, 0)), lambda: forward(tx), "y")
    yield Case(f"{name} ({n}) backward", arena, ("unary_grad", f"g {kept} dx", (kind, n), ()), backward, "dx")


def add(n: int) -> Case:
    a, b = randn(n), randn(n, seed=1)
    walk = (1, *_padded(n), *_padded(1), *_padded(1))
    ta, tb = tensor(a), tensor(b)
    arena = Arena({"a": a, "b": b, "y": zeros(n)})
    return Case(f"add ({n})", arena, ("binary", "a b y", (0, *walk), ()), lambda: ta + tb, "y")


def add_bias(rows: int, width: int) -> Case:
    a, b = randn(rows, width), randn(width)
    walk = (2, *_padded(rows, width), *_padded(width, 1), *_padded(0, 1))
    ta, tb = tensor(a), tensor(b)
    arena = Arena({"a": a, "b": b, "y": zeros(rows, width)})
    return Case(f"add bias ({rows},{width})", arena, ("binary", "a b y", (0, *walk), ()), lambda: ta + tb, "y")


def transpose(b: int, t: int, three: int, heads: int, d: int) -> Case:
    """Attention's split of qkv into planes."""
    x = randn(b, t, three, heads, d)
    tx = tensor(x)
    shape, order = (three, b, heads, t, d), (2, 0, 3, 1, 4)
    from_strides = [int(np.prod(x.shape[i + 1 :])) for i in order]
    to_strides = [int(np.prod(shape[i + 1 :])) for i in range(5)]
    ints = (4, 5, *_padded(*shape), *_padded(*from_strides), *_padded(*to_strides), 0, 0)
    arena = Arena({"x": x, "y": zeros(*shape)})
    return Case(
        f"copy: transpose {x.shape}", arena, ("copy", "x y", ints, (1.0,)), lambda: tx.permute(order).contiguous(), "y"
    )


def _padded(*numbers: int) -> tuple[int, ...]:
    return (*numbers, *[0] * (6 - len(numbers)))


def mean(planes: int, size: int) -> Case:
    """The mean over height and width before a classifier."""
    x = randn(planes, size)
    tx = tensor(x)
    arena = Arena({"x": x, "y": zeros(planes)})
    ints = (2, *_padded(planes, size), *_padded(1, 0))
    return Case(f"reduce: mean ({planes},{size})", arena, ("reduce", "x y", ints, (1 / size,)), lambda: tx.mean(1), "y")


def max_pool(planes: int, size: int) -> Iterator[Case]:
    x, half = randn(planes, size, size), size // 2
    arena = Arena({
        "x": x, "y": zeros(planes, half, half), "i": np.zeros((planes, half, half), np.uint8),
        "g": randn(planes, half, half), "dx": zeros(planes, size, size),
    })  # fmt: skip
    ints = (planes, size, size, 2, 2, 2, 2, 0, 0)
    forward: Spec = ("max_pool2d", "x y i", ints, ())
    arena.run(forward)
    tx, tg = tensor(x)[None], tensor(arena["g"])[None]
    index = aten.max_pool2d_with_indices(tx, [2, 2], [2, 2])[1]
    window = ([2, 2], [2, 2], [0, 0], [1, 1], False)
    yield Case(
        f"max_pool2d ({planes},{size},{size}) forward", arena, forward,
        lambda: aten.max_pool2d_with_indices(tx, [2, 2], [2, 2]), "y",
    )  # fmt: skip
    yield Case(
        f"max_pool2d ({planes},{size},{size}) backward", arena, ("max_pool2d_grad", "g i dx", ints, ()),
        lambda: aten.max_pool2d_with_indices_backward(tg, tx, *window, index), "dx",
    )  # fmt: skip


def attention(batch: int, heads: int, length: int, width: int) -> Iterator[Case]:
    shape, planes = (batch, heads, length, width), batch * heads
    q, k, v, g = (randn(*shape, seed=i) for i in range(4))
    names = ("y", "dq", "dk", "dv")
    outputs = {name: zeros(*shape) for name in names}
    arena = Arena({"q": q, "k": k, "v": v, "g": g, **outputs, "lse": zeros(planes, length)})
    ints, scale = (planes, length, length, width, width, 1), width**-0.5
    forward: Spec = ("attention", "q k v y lse -", ints, (scale,))
    arena.run(forward)
    tq, tk, tv, tg = map(tensor, (q, k, v, g))
    y, lse = aten._scaled_dot_product_flash_attention_for_cpu(tq, tk, tv, 0.0, True)
    label = f"attention causal {shape}"
    yield Case(
        f"{label} forward", arena, forward,
        lambda: aten._scaled_dot_product_flash_attention_for_cpu(tq, tk, tv, 0.0, True), "y",
    )  # fmt: skip
    yield Case(
        f"{label} backward", arena, ("attention_grad", "g q k v y lse dq dk dv -", ints, (scale,)),
        lambda: aten._scaled_dot_product_flash_attention_for_cpu_backward(tg, tq, tk, tv, y, lse, 0.0, True), "dq",
    )  # fmt: skip


def gru(b: int, t: int, i: int, h: int) -> Iterator[Case]:
    x, h0, gy = randn(b, t, i), zeros(b, h), randn(b, t, h, seed=1)
    shapes = ((3 * h, i), (3 * h, h), (3 * h,), (3 * h,))
    w_ih, w_hh, b_ih, b_hh = (0.1 * randn(*shape, seed=seed) for seed, shape in enumerate(shapes))
    arena = Arena({
        "x": x, "h0": h0, "w_ih": w_ih, "w_hh": w_hh, "b_ih": b_ih, "b_hh": b_hh, "gy": gy, "ghn": zeros(b, h),
        "y": zeros(b, t, h), "hn": zeros(b, h), "gates": zeros(b, t, 4 * h), "dgates": zeros(b, t, 4 * h),
        "dx": zeros(b, t, i), "dh0": zeros(b, h), "dw_ih": zeros(3 * h, i), "dw_hh": zeros(3 * h, h),
        "db_ih": zeros(3 * h), "db_hh": zeros(3 * h), "work": zeros(3 * b * h),
    })  # fmt: skip
    forward: Spec = ("gru", "x h0 w_ih w_hh b_ih b_hh y hn gates work", (b, t, i, h), ())
    arena.run(forward)
    tx, *weights = (tensor(array).requires_grad_() for array in (x, w_ih, w_hh, b_ih, b_hh))
    th0, tg = tensor(h0)[None], tensor(gy)

    def run() -> Any:
        return aten.gru.input(tx, th0, weights, True, 1, 0.0, True, False, True)

    y = run()[0]
    yield Case(f"gru ({b},{t},{i}) hidden {h} forward", arena, forward, run, "y")
    yield Case(
        f"gru ({b},{t},{i}) hidden {h} backward", arena,
        ("gru_grad", "gy ghn x h0 w_ih w_hh y gates dx dh0 dw_ih dw_hh db_ih db_hh dgates work", (b, t, i, h), ()),
        lambda: torch.autograd.grad(y, (tx, *weights), tg, retain_graph=True), "dx",
    )  # fmt: skip


def embedding(rows: int, width: int, n: int) -> Iterator[Case]:
    ids, table, g = np.arange(n) * 7919 % rows, randn(rows, width), randn(n, width)
    arena = Arena({"table": table, "ids": ids, "g": g, "y": zeros(n, width), "dtable": zeros(rows, width)})
    ints = (rows, width, n)
    ti, tt, tg = torch.from_numpy(ids), tensor(table), tensor(g)
    label = f"embedding ({rows},{width}) of {n}"
    yield Case(
        f"{label} forward", arena, ("embedding", "table ids y", ints, ()), lambda: functional.embedding(ti, tt), "y"
    )
    yield Case(
        f"{label} backward", arena, ("embedding_grad", "g ids dtable", ints, ()),
        lambda: aten.embedding_dense_backward(tg, ti, rows, -1, False), "dtable",
    )  # fmt: skip


def cross_entropy(rows: int, classes: int) -> Iterator[Case]:
    z, target = randn(rows, classes), np.arange(rows) * 31 % classes
    one = np.ones(1, np.float32)
    inputs = {"z": z, "target": target, "rows": np.array([rows]), "norm": one / rows, "gl": one}
    arena = Arena({**inputs, "loss": zeros(1), "dz": zeros(rows, classes)})
    ints = (rows, classes, rows, -100)
    tz, tt = tensor(z).requires_grad_(), torch.from_numpy(target)
    loss = functional.cross_entropy(tz, tt)
    label = f"cross_entropy ({rows},{classes})"
    yield Case(
        f"{label} forward", arena, ("cross_entropy", "z target - rows norm loss", ints, (0.0,)),
        lambda: functional.cross_entropy(tz, tt), "loss",
    )  # fmt: skip
    yield Case(
        f"{label} backward", arena, ("cross_entropy_grad", "gl z target - rows norm dz", ints, (0.0,)),
        lambda: torch.autograd.grad(loss, tz, retain_graph=True), "dz",
    )  # fmt: skip


def sgd(n: int) -> Case:
    w, g = randn(n), randn(n, seed=1)
    arena = Arena({"w": w, "g": g, "lr": np.full(1, 1e-9, np.float32)})
    tw, tg = tensor(w), tensor(g)
    return Case(f"sgd ({n})", arena, ("sgd", "w g - lr", (n, 0), (0.0, 0.0)), lambda: tw.add_(tg, alpha=-1e-9), "w")
