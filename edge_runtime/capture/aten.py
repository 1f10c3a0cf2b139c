"""What each ATen op of an exported forward pass becomes: one row per op, nothing silently approximated.

A row gets the builder and the op's arguments, tensors as value names (lists of names where ATen has lists), missing
arguments at ATen's defaults; it returns a name or a list of names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from edge_runtime.ir.builder import Builder, window

Row = Callable[..., Any]
R = TypeVar("R", bound=Row)
ATEN: dict[str, Row] = {}

# What to use in place of an op that has no row.
INSTEAD = {
    "conv_transpose2d": "use a plain Conv2d after a larger input",
    "cumsum": "sum over a fixed window with Conv2d",
    "einsum": "use linear layers, or scaled_dot_product_attention",
    "elu": "use ReLU, GELU or SiLU",
    "hardsigmoid": "use Sigmoid",
    "hardswish": "use SiLU",
    "instance_norm": "use GroupNorm",
    "leaky_relu": "use ReLU, GELU or SiLU",
    "matmul": "use linear layers, or scaled_dot_product_attention",
    "bmm": "use linear layers, or scaled_dot_product_attention",
    "mish": "use SiLU",
    "prelu": "use ReLU, GELU or SiLU",
    "softplus": "use ReLU, GELU or SiLU",
    "upsample_nearest2d": "keep the size, or pool to it",
    "log_softmax": "return logits: the loss applies it",
}


def aten(*names: str) -> Callable[[R], R]:
    def register(row: R) -> R:
        ATEN.update(dict.fromkeys(names, row))
        return row

    return register


def _activation(op: str) -> Row:
    return lambda b, x: b.emit(op, x)


for _name in ("relu", "relu6", "sigmoid", "silu", "tanh"):
    ATEN[f"{_name}.default"] = ATEN[f"{_name}_.default"] = _activation(_name)


@aten("hardtanh.default", "hardtanh_.default")
def _hardtanh(b: Builder, x: str, low: float = -1.0, high: float = 1.0) -> str:
    if (low, high) != (0, 6):
        raise b.refuse(f"hardtanh from {low:g} to {high:g}", "use ReLU6, which is 0 to 6")
    return b.emit("relu6", x)


@aten("gelu.default")
def _gelu(b: Builder, x: str, approximate: str = "none") -> str:
    if approximate != "none":
        raise b.refuse(f"gelu with approximate={approximate!r}", "use the exact gelu")
    return b.emit("gelu", x)


@aten("linear.default")
def _linear(b: Builder, x: str, w: str, bias: str | None = None) -> str:
    return b.emit("linear", x, w, *_given(bias))


@aten("conv2d.default")
def _conv2d(
    b: Builder,
    x: str,
    w: str,
    bias: str | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> str:
    if window(dilation) != (1, 1):
        raise b.refuse(f"conv2d with dilation {dilation}", "use dilation 1, or a larger kernel")
    return b.emit("conv2d", x, w, *_given(bias), stride=window(stride), padding=window(padding), groups=groups)


@aten("conv1d.default", "conv3d.default")
def _other_conv(b: Builder, *_: Any) -> str:
    raise b.refuse("a convolution over one or three dims", "use Conv2d (a kernel of (1, k) convolves over time)")


@aten("conv2d.padding")
def _named_padding(b: Builder, *_: Any) -> str:
    raise b.refuse("conv2d with padding by name", "give it in numbers: 1 for a kernel of 3, 2 for one of 5")


@aten("max_pool2d.default")
def _max_pool(
    b: Builder, x: str, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> str:
    if window(dilation) != (1, 1) or ceil_mode or math.prod(window(kernel)) > 255:
        raise b.refuse(
            "max_pool2d with dilation, ceil_mode or over 255 places",
            "use dilation 1, ceil_mode=False, a smaller kernel",
        )
    return b.emit("max_pool2d", x, kernel=window(kernel), stride=window(stride or kernel), padding=window(padding))


@aten("avg_pool2d.default")
def _avg_pool(
    b: Builder,
    x: str,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> str:
    if window(padding) != (0, 0) or ceil_mode or divisor:
        raise b.refuse("avg_pool2d with padding, ceil_mode or its own divisor", "use none of them")
    return b.emit("avg_pool2d", x, kernel=window(kernel), stride=window(stride or kernel), padding=(0, 0))


@aten("adaptive_avg_pool2d.default")
def _adaptive_pool(b: Builder, x: str, size: Any) -> str:
    height, width = b.shape(x)[2:]
    out = window(size)
    if out == (1, 1):
        return b.emit("mean", x, dims=(2, 3), keepdim=True)
    if height % out[0] or width % out[1]:
        raise b.refuse(f"adaptive_avg_pool2d of {height}x{width} to {out[0]}x{out[1]}", "use sizes that divide")
    kernel = (height // out[0], width // out[1])
    return b.emit("avg_pool2d", x, kernel=kernel, stride=kernel, padding=(0, 0))


@aten("adaptive_max_pool2d.default")
def _adaptive_max_pool(b: Builder, x: str, size: Any) -> list[str]:
    height, width = b.shape(x)[2:]
    out = window(size)
    if height % out[0] or width % out[1]:
        raise b.refuse(f"adaptive_max_pool2d of {height}x{width} to {out[0]}x{out[1]}", "use sizes that divide")
    return [_max_pool(b, x, (height // out[0], width // out[1]))]


def _reduction(op: str) -> Row:
    def row(b: Builder, x: str, dims: Sequence[int], keepdim: bool = False) -> str:
        rank = len(b.shape(x))
        return b.emit(op, x, dims=tuple(sorted(dim % rank for dim in dims)), keepdim=keepdim)

    return row


ATEN["mean.dim"], ATEN["sum.dim_IntList"] = _reduction("mean"), _reduction("sum")


@aten("batch_norm.default")
def _batch_norm(
    b: Builder,
    x: str,
    w: str | None,
    bias: str | None,
    mean: str | None,
    var: str | None,
    training: bool,
    momentum: float,
    eps: float,
    _cudnn: bool,
) -> str:
    if w is None or bias is None or mean is None or var is None:
        raise b.refuse(
            "batch norm without affine weights or running statistics", "use affine=True and track_running_stats=True"
        )
    if not training:
        return b.emit("batch_norm_apply", x, w, bias, mean, var, eps=eps)
    rows, batch = b.rows(), b.batch
    y, *stats = b.emit_all("batch_norm", x, w, bias, rows, batch=batch, eps=eps)
    moving: dict[str, Any] = {"batch": batch, "momentum": momentum, "shape": b.shape(x)}
    b.emit_all("running_stats", *stats, rows, mean, var, writes=(mean, var), **moving)
    return y


@aten("group_norm.default")
def _group_norm(
    b: Builder, x: str, groups: int, w: str | None = None, bias: str | None = None, eps: float = 1e-5, _: bool = True
) -> str:
    if w is None or bias is None:
        raise b.refuse("group norm without affine weights", "use affine=True")
    return b.emit("group_norm", x, w, bias, groups=groups, eps=eps)


@aten("layer_norm.default")
def _layer_norm(
    b: Builder,
    x: str,
    shape: Sequence[int],
    w: str | None = None,
    bias: str | None = None,
    eps: float = 1e-5,
    _: bool = True,
) -> str:
    return b.emit("layer_norm", x, *_given(w), *_given(bias), dims=len(shape), eps=eps)


@aten("embedding.default")
def _embedding(b: Builder, table: str, ids: str, padding: int = -1, scaled: bool = False, sparse: bool = False) -> str:
    if padding >= 0 or scaled or sparse:
        raise b.refuse("embedding with padding_idx, scale_grad_by_freq or sparse", "use a plain embedding")
    return b.emit("embedding", table, ids)


@aten("scaled_dot_product_attention.default")
def _attention(
    b: Builder,
    q: str,
    k: str,
    v: str,
    mask: str | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
) -> str:
    if mask is not None or dropout:
        raise b.refuse("attention with a mask tensor or dropout", "use is_causal=True, or full attention")
    return b.emit("attention", q, k, v, causal=causal, scale=scale or 1 / math.sqrt(b.shape(q)[-1]))


@aten("softmax.int")
def _softmax(b: Builder, x: str, dim: int, _dtype: Any = None) -> str:
    return b.emit("softmax", x, dim=dim % len(b.shape(x)))


@aten("add.Tensor", "add_.Tensor")
def _add(b: Builder, x: str, y: str | float, alpha: float = 1) -> str:
    if not isinstance(y, str):
        return b.emit("scale", x, by=1.0, plus=float(alpha * y))
    return b.emit("add", x, y if alpha == 1 else b.emit("scale", y, by=float(alpha), plus=0.0))


@aten("sub.Tensor")
def _sub(b: Builder, x: str, y: str | float, alpha: float = 1) -> str:
    return _add(b, x, y, -alpha)


@aten("mul.Tensor")
def _mul(b: Builder, x: str, y: str | float) -> str:
    return b.emit("mul", x, y) if isinstance(y, str) else b.emit("scale", x, by=float(y), plus=0.0)


@aten("div.Tensor")
def _div(b: Builder, x: str, y: str | float) -> str:
    if isinstance(y, str):
        raise b.refuse("division by a tensor", "multiply, or divide by a number")
    return b.emit("scale", x, by=1 / y, plus=0.0)


@aten("neg.default")
def _neg(b: Builder, x: str) -> str:
    return b.emit("scale", x, by=-1.0, plus=0.0)


@aten("rsub.Scalar")
def _rsub(b: Builder, x: str, y: float, alpha: float = 1) -> str:
    return b.emit("scale", x, by=-float(alpha), plus=float(y))


@aten("cat.default")
def _cat(b: Builder, xs: Sequence[str], dim: int = 0) -> str:
    return b.emit("cat", *xs, dim=dim % len(b.shape(xs[0])))


@aten("slice.Tensor")
def _slice(b: Builder, x: str, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1) -> str:
    if step != 1:
        raise b.refuse(f"a slice in steps of {step}", "use steps of 1")
    dim %= len(b.shape(x))
    first, end, _ = slice(start, stop).indices(b.shape(x)[dim])
    if (first, end) == (0, b.shape(x)[dim]):
        return x
    return b.emit("slice", x, dim=dim, start=first, stop=end)


@aten("select.int")
def _select(b: Builder, x: str, dim: int, index: int) -> str:
    dim %= len(b.shape(x))
    index %= b.shape(x)[dim]
    return _squeeze(b, b.emit("slice", x, dim=dim, start=index, stop=index + 1), dim)


@aten("unbind.int")
def _unbind(b: Builder, x: str, dim: int = 0) -> list[str]:
    return [_select(b, x, dim, index) for index in range(b.shape(x)[dim])]


@aten("split.Tensor")
def _split(b: Builder, x: str, size: int, dim: int = 0) -> list[str]:
    dim %= len(b.shape(x))
    whole = b.shape(x)[dim]
    return [_slice(b, x, dim, start, min(start + size, whole)) for start in range(0, whole, size)]


@aten("chunk.default")
def _chunk(b: Builder, x: str, count: int, dim: int = 0) -> list[str]:
    return _split(b, x, -(-b.shape(x)[dim % len(b.shape(x))] // count), dim)


@aten("permute.default")
def _permute(b: Builder, x: str, order: Sequence[int]) -> str:
    rank = len(b.shape(x))
    return b.emit("transpose", x, order=tuple(dim % rank for dim in order))


@aten("transpose.int")
def _transpose(b: Builder, x: str, first: int, second: int) -> str:
    order = list(range(len(b.shape(x))))
    order[first], order[second] = order[second], order[first]
    return b.emit("transpose", x, order=tuple(order))


@aten("view.default", "reshape.default", "_unsafe_view.default")
def _reshape(b: Builder, x: str, shape: Sequence[int]) -> str:
    sizes = list(shape)
    if -1 in sizes:
        sizes[sizes.index(-1)] = math.prod(b.shape(x)) // -math.prod(sizes)
    return x if tuple(sizes) == b.shape(x) else b.emit("reshape", x, shape=tuple(sizes))


@aten("flatten.using_ints")
def _flatten(b: Builder, x: str, start: int = 0, end: int = -1) -> str:
    shape = b.shape(x)
    start, end = start % len(shape), end % len(shape)
    return _reshape(b, x, (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


@aten("unsqueeze.default")
def _unsqueeze(b: Builder, x: str, dim: int) -> str:
    shape = b.shape(x)
    dim %= len(shape) + 1
    return _reshape(b, x, (*shape[:dim], 1, *shape[dim:]))


@aten("squeeze.dim")
def _squeeze(b: Builder, x: str, dim: int) -> str:
    shape = b.shape(x)
    dim %= len(shape)
    return _reshape(b, x, (*shape[:dim], *shape[dim + 1 :])) if shape[dim] == 1 else x


@aten("detach.default")
def _detach(b: Builder, x: str) -> str:
    return b.emit("detach", x)


@aten("to.dtype", "to.device", "to.dtype_layout", "to.other", "_to_copy.default", "type_as.default")
def _to(b: Builder, x: str, *arguments: Any, **options: Any) -> str:
    wanted = [str(one) for one in (*arguments, *options.values()) if str(one).startswith("torch.")]
    types = [one for one in wanted if one in ("torch.float32", "torch.int64")]
    others = [one for one in wanted if one not in types and one.startswith(("torch.float", "torch.int", "torch.b"))]
    own = {"f32": "torch.float32", "i64": "torch.int64"}[b.value(x).dtype]
    if others or any(one != own for one in types):
        raise b.refuse(f"turning {own} into {(others or types)[0]}", "use float32 throughout, int64 for tokens")
    return x


@aten("pow.Tensor_Scalar", "square.default")
def _square(b: Builder, x: str, exponent: float = 2) -> str:
    if exponent != 2:
        raise b.refuse(f"the power {exponent}", "use x * x for squares")
    return b.emit("mul", x, x)


@aten("clamp.default", "clamp_min.default")
def _clamp(b: Builder, x: str, low: float | None = None, high: float | None = None) -> str:
    if low != 0 or high not in (None, 6):
        raise b.refuse(f"clamp from {low} to {high}", "use relu (from 0) or relu6 (from 0 to 6)")
    return b.emit("relu" if high is None else "relu6", x)


@aten("t.default")
def _t(b: Builder, x: str) -> str:
    return b.emit("transpose", x, order=tuple(reversed(range(len(b.shape(x))))))


@aten("stack.default")
def _stack(b: Builder, xs: Sequence[str], dim: int = 0) -> str:
    dim %= len(b.shape(xs[0])) + 1
    return b.emit("cat", *(_unsqueeze(b, x, dim) for x in xs), dim=dim)


@aten("unflatten.int")
def _unflatten(b: Builder, x: str, dim: int, sizes: Sequence[int]) -> str:
    shape = b.shape(x)
    dim %= len(shape)
    whole = [shape[dim] // -math.prod(sizes) if n == -1 else n for n in sizes]
    return _reshape(b, x, (*shape[:dim], *whole, *shape[dim + 1 :]))


@aten("expand.default")
def _expand(b: Builder, x: str, sizes: Sequence[int], **_: Any) -> str:
    own = (1,) * (len(sizes) - len(b.shape(x))) + b.shape(x)
    shape = tuple(mine if n == -1 else n for n, mine in zip(sizes, own, strict=True))
    return _reshape(b, x, shape) if shape == own else b.emit("expand", _reshape(b, x, own), shape=shape, by=1.0)


@aten("zeros_like.default")
def _zeros_like(b: Builder, x: str, **_: Any) -> str:
    if b.value(x).dtype != "f32":
        raise b.refuse("zeros of whole numbers", "use float32")
    return b.emit("zeros", shape=b.shape(x))


@aten("contiguous.default", "clone.default", "alias.default")
def _same(_: Builder, x: str, *__: Any, **___: Any) -> str:
    return x


@aten("dropout.default", "dropout_.default")
def _dropout(b: Builder, x: str, p: float, train: bool) -> str:
    if not train or not p:
        return x
    if p >= 1:
        raise b.refuse("dropout with p=1", "use p below 1")
    return b.emit("dropout", x, b.random(), batch=b.batch, id=b.count("dropout"), p=p)


@aten("feature_dropout.default", "feature_dropout_.default", "alpha_dropout.default", "feature_alpha_dropout.default")
def _other_dropout(b: Builder, x: str, p: float, train: bool) -> str:
    if train and p:
        raise b.refuse("dropout of whole channels, or alpha dropout, in training", "use Dropout")
    return x


@aten("zeros.default")
def _zeros(b: Builder, shape: Sequence[int], dtype: Any = None, **_: Any) -> str:
    if str(dtype) not in ("None", "torch.float32"):
        raise b.refuse(f"zeros of {dtype}", "use float32")
    return b.emit("zeros", shape=tuple(shape))


@aten("gru.input")
def _gru(b: Builder, x: str, start: str, weights: Sequence[str], *flags: Any) -> list[str]:
    y, states = _recurrent(b, "gru", x, [start], weights, *flags)
    return [y, *states]


@aten("lstm.input")
def _lstm(b: Builder, x: str, start: Sequence[str], weights: Sequence[str], *flags: Any) -> list[str]:
    y, states = _recurrent(b, "lstm", x, start, weights, *flags)
    return [y, *states]


def _recurrent(
    b: Builder,
    op: str,
    x: str,
    starts: Sequence[str],
    weights: Sequence[str],
    biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[str, list[str]]:
    """Layers one after the other, batch first; returns the last layer's outputs and the stacked final states."""
    if bidirectional or (dropout and train and layers > 1):
        raise b.refuse(f"a bidirectional {op}, or one with dropout", "use one direction without dropout")
    if not batch_first:
        x = _transpose(b, x, 0, 1)
    per_layer = len(weights) // layers
    finals: list[list[str]] = []
    for layer in range(layers):
        own = weights[layer * per_layer : (layer + 1) * per_layer]
        x, *rest = b.emit_all(op, x, *(_select(b, start, 0, layer) for start in starts), *own)
        finals.append([_unsqueeze(b, state, 0) for state in rest[: len(starts)]])
    stacked = [list(parts) for parts in zip(*finals, strict=True)]
    y = x if batch_first else _transpose(b, x, 0, 1)
    return y, [parts[0] if layers == 1 else _cat(b, parts) for parts in stacked]


def _given(value: str | None) -> tuple[str, ...]:
    return () if value is None else (value,)
