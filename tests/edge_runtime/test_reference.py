"""The NumPy oracle against PyTorch in float64: every op forward, every gradient, every loss, every update.

A case yields (what, the oracle's number, PyTorch's number); it calls the oracle by `evaluate`, which also holds each
result against the op's row in `ir/ops.py`.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edge_runtime.engine import reference
from edge_runtime.engine.philox import philox4x32
from edge_runtime.errors import NumericsError
from edge_runtime.ir.graph import Graph, Node, Value
from edge_runtime.ir.ops import OPS
from edge_runtime.ir.verify import verify

CASES = {}
CALLED = set()


def case(**variants):
    """Register a case; each keyword is an argument of it and the values to run it with, in all combinations."""

    def register(function):
        for values in itertools.product(*variants.values()):
            chosen = dict(zip(variants, values, strict=True))
            CASES[" ".join([function.__name__, *(f"{key}={value}" for key, value in chosen.items())])] = (
                function,
                chosen,
            )
        return function

    return register


def evaluate(op, *inputs, **attributes):
    row = OPS[op]
    assert row.inputs[0] <= len(inputs) <= row.inputs[1], op
    assert sorted(row.attributes) == sorted(attributes), op
    results = reference.FORWARD[op](*inputs, **attributes)
    if rule := row.shapes([Value("", x.shape, ir_dtype(x)) for x in inputs], attributes):
        outputs = results if isinstance(results, tuple) else (results,)
        assert [(y.shape, ir_dtype(y)) for y in outputs] == [(tuple(shape), dtype) for shape, dtype in rule], op
    CALLED.add(op)
    return results


def ir_dtype(x):
    return {"f": "f32", "i": "i64", "u": "u8"}[x.dtype.kind]


def autograd(function, arrays, *g):
    """The results of PyTorch's function, then the gradient of each array, given those of the results."""
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    results = function(*tensors)
    results = results if isinstance(results, tuple) else (results,)
    gradients = torch.autograd.grad(results, tensors, [torch.tensor(one) for one in g])
    return [x.detach().numpy() for x in (*results, *gradients)]


def compare(names, got, expected):
    return zip(names.split(), got, expected, strict=True)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def integers(*values):
    return np.array(values, np.int64)


# elementwise, shapes, reductions

UNARY = {
    "exp": torch.exp,
    "gelu": functional.gelu,
    "relu": torch.relu,
    "relu6": functional.relu6,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


@case(op=UNARY)
def unary(op):
    x, g = 4 * normal(5, 7), normal(5, 7, seed=1)
    y = evaluate(op, x)
    kept = x if op in ("gelu", "silu") else y
    dx = g * y if op == "exp" else evaluate(f"{op}_grad", g, kept)
    yield from compare("y dx", (y, dx), autograd(UNARY[op], [x], g))


@case()
def elementwise_and_shapes():
    x, row, t = normal(3, 4, 5), normal(4, 1, seed=1), torch.from_numpy(normal(3, 4, 5))
    yield "add", evaluate("add", x, row), t + torch.from_numpy(row)
    yield "mul", evaluate("mul", row, x), t * torch.from_numpy(row)
    yield "scale", evaluate("scale", x, by=3.0, plus=-1.0), 3 * t - 1
    yield "clip", evaluate("clip", x, low=-0.5, high=0.25), t.clip(-0.5, 0.25)
    yield "detach", evaluate("detach", x), t
    yield "reshape", evaluate("reshape", x, shape=(5, 12)), t.reshape(5, 12)
    yield "transpose", evaluate("transpose", x, order=(2, 0, 1)), t.permute(2, 0, 1)
    yield "slice", evaluate("slice", x, dim=1, start=1, stop=3), t[:, 1:3]
    yield "pad", evaluate("pad", x, dim=1, start=2, size=9), functional.pad(t, (0, 0, 2, 3))
    yield "cat", evaluate("cat", x, x[:, :2], dim=1), torch.cat([t, t[:, :2]], 1)
    yield "expand", evaluate("expand", row, shape=(3, 4, 5), by=2.0), 2 * torch.from_numpy(row).expand(3, 4, 5)
    yield "zeros", evaluate("zeros", shape=(2, 3)), torch.zeros(2, 3)
    for dims, keepdim in itertools.product([(0, 2), (1,), (0, 1, 2)], [False, True]):
        yield "sum", evaluate("sum", x, dims=dims, keepdim=keepdim), t.sum(dims, keepdim=keepdim)
        yield "mean", evaluate("mean", x, dims=dims, keepdim=keepdim), t.mean(dims, keepdim=keepdim)


@case(bits=[2, 3, 8])
def fake_quant(bits):
    most = 2 ** (bits - 1) - 1
    w = np.clip(normal(4, 3, 5), -1, 1)
    w[:, 0, 0] = [1, -1, 1, -1]  # the largest of each row
    scale = np.array([0.5, 1, 2, 4])  # of the grids, exactly
    w *= (scale * most).reshape(-1, 1, 1)
    zero = torch.zeros(4, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(
        torch.tensor(w), torch.tensor(scale).float(), zero, 0, -most, most
    )
    yield "w", evaluate("fake_quant_weight", w, bits=bits), expected

    x = np.clip(normal(6, 10), -1, 2**bits - 2)
    x[0, :2] = -1, 2**bits - 2  # a scale of 1
    x[4:] = 1e6  # no rows of the batch
    expected = torch.fake_quantize_per_tensor_affine(torch.tensor(x), 1.0, 1 - 2 ** (bits - 1), -most - 1, most)
    yield "x", evaluate("fake_quant", x, integers(4), batch=6, bits=bits), expected


@case(dim=[0, 1, 2])
def softmax(dim):
    x, g = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    y = evaluate("softmax", x, dim=dim)
    got = y, evaluate("softmax_grad", g, y, dim=dim)
    yield from compare("y dx", got, autograd(lambda t: t.softmax(dim), [x], g))


# linear algebra, convolutions, pools


@case(shape=[(6,), (3, 6), (2, 5, 6)])
def linear(shape):
    x, w, b, g = normal(*shape), normal(4, 6), normal(4), normal(*shape[:-1], 4, seed=1)
    y, dx, dw, _ = autograd(functional.linear, [x, w, b], g)
    got = evaluate("linear", x, w, b), evaluate("linear_dx", g, w), evaluate("linear_dw", g, x)
    yield from compare("y dx dw", got, (y, dx, dw))
    yield "without bias", evaluate("linear", x, w), y - b


CONVOLUTIONS = {  # C, O, kernel, stride, padding, groups
    "plain": (4, 6, (3, 3), (1, 1), (1, 1), 1),
    "uneven": (4, 6, (3, 2), (2, 3), (1, 0), 1),
    "grouped": (4, 6, (2, 3), (2, 2), (0, 2), 2),
    "depthwise": (4, 4, (3, 3), (2, 1), (1, 1), 4),
    "pointwise": (4, 6, (1, 1), (1, 1), (0, 0), 1),
}


@case(kind=CONVOLUTIONS)
def conv2d(kind):
    channels, out, kernel, stride, padding, groups = CONVOLUTIONS[kind]
    window = {"stride": stride, "padding": padding, "groups": groups}
    x, w, b = normal(2, channels, 8, 7), normal(out, channels // groups, *kernel), normal(out)
    y = evaluate("conv2d", x, w, b, **window)
    g = normal(*y.shape, seed=1)
    got = evaluate("conv2d_dx", g, w, shape=x.shape, **window), evaluate("conv2d_dw", g, x, shape=w.shape, **window)
    expected = autograd(lambda *tensors: functional.conv2d(*tensors, **window), [x, w, b], g)
    yield from compare("y dx dw", (y, *got), expected[:3])


@case(window=[((2, 2), (2, 2), (0, 0)), ((3, 2), (2, 3), (1, 1)), ((3, 3), (1, 1), (1, 0))])
def max_pool2d(window):
    attributes = dict(zip(("kernel", "stride", "padding"), window, strict=True))
    x = normal(2, 3, 8, 7).round(1)  # so that there are ties
    y, index = evaluate("max_pool2d", x, **attributes)
    g = normal(*y.shape, seed=1)
    dx = evaluate("max_pool2d_grad", g, index, shape=x.shape, **attributes)
    yield from compare("y dx", (y, dx), autograd(lambda t: functional.max_pool2d(t, *window), [x], g))
    (_, kw), (sh, sw), (ph, pw) = window
    rows = np.arange(y.shape[2])[:, None] * sh - ph + index // kw
    columns = np.arange(y.shape[3]) * sw - pw + index % kw
    places = functional.max_pool2d(torch.from_numpy(x), *window, return_indices=True)[1]
    yield "places", rows * x.shape[3] + columns, places


@case(window=[((2, 2), (2, 2), (0, 0)), ((3, 2), (2, 3), (0, 0))])
def avg_pool2d(window):
    attributes = dict(zip(("kernel", "stride", "padding"), window, strict=True))
    x = normal(2, 3, 8, 7)
    y = evaluate("avg_pool2d", x, **attributes)
    g = normal(*y.shape, seed=1)
    dx = evaluate("avg_pool2d_grad", g, shape=x.shape, **attributes)
    yield from compare("y dx", (y, dx), autograd(lambda t: functional.avg_pool2d(t, *window), [x], g))


@case()
def embedding():
    table, ids, g = normal(7, 3), integers(1, 4, 1, 1, 0, 6).reshape(2, 3), normal(2, 3, 3)
    got = evaluate("embedding", table, ids), evaluate("embedding_grad", g, ids, shape=table.shape)
    yield from compare("y dtable", got, autograd(lambda t: functional.embedding(torch.from_numpy(ids), t), [table], g))


# normalisation


@case(shape=[(4, 3), (8, 3), (4, 3, 5), (4, 3, 5, 2)], rows=[2, 3, 4])
def batch_norm(shape, rows):
    """Of a batch of 4 rows; the second shape has two examples in each of them."""
    x, w, b, g = normal(*shape), normal(3), normal(3, seed=1), normal(*shape, seed=1)
    rmean, rvar = normal(3, seed=2), 1 + normal(3, seed=3) ** 2
    new_mean, new_var = torch.from_numpy(rmean.copy()), torch.from_numpy(rvar.copy())
    real = rows * shape[0] // 4

    def norm(x, w, b):
        return functional.batch_norm(x, new_mean, new_var, w, b, training=True, momentum=0.3, eps=1e-3)

    y, mean, var = evaluate("batch_norm", x, w, b, integers(rows), batch=4, eps=1e-3)
    back = evaluate("batch_norm_grad", g, x, w, mean, var, integers(rows), batch=4, eps=1e-3, training=True)
    expected = autograd(norm, [x[:real], w, b], g[:real])
    yield from compare("y dx dw db", (y[:real], back[0][:real], *back[1:]), expected)
    yield "padding", back[0][real:], 0 * g[real:]
    yield "again", evaluate("batch_norm_apply", x, w, b, mean, var, eps=1e-3), y
    moving = evaluate("running_stats", mean, var, integers(rows), rmean, rvar, batch=4, momentum=0.3, shape=shape)
    yield from compare("rmean rvar", moving, (new_mean, new_var))


@case(shape=[(4, 3), (4, 3, 5, 2)])
def frozen_batch_norm(shape):
    x, w, b, g = normal(*shape), normal(3), normal(3, seed=1), normal(*shape, seed=1)
    mean, var = normal(3, seed=2), 1 + normal(3, seed=3) ** 2
    y = evaluate("batch_norm_apply", x, w, b, mean, var, eps=1e-3)
    back = evaluate("batch_norm_grad", g, x, w, mean, var, integers(1), batch=4, eps=1e-3, training=False)
    stats = [torch.from_numpy(mean), torch.from_numpy(var)]
    expected = autograd(lambda x, w, b: functional.batch_norm(x, *stats, w, b, eps=1e-3), [x, w, b], g)
    yield from compare("y dx dw db", (y, *back), expected)


@case(groups=[1, 2, 6])
def group_norm(groups):
    x, w, b, g = normal(3, 6, 4, 2), normal(6), normal(6, seed=1), normal(3, 6, 4, 2, seed=1)
    y, *stats = evaluate("group_norm", x, w, b, groups=groups, eps=1e-3)
    back = evaluate("group_norm_grad", g, x, w, *stats, groups=groups)
    expected = autograd(lambda x, w, b: functional.group_norm(x, groups, w, b, 1e-3), [x, w, b], g)
    yield from compare("y dx dw db", (y, *back), expected)


@case(dims=[1, 2], affine=[0, 1, 2])
def layer_norm(dims, affine):
    x, g = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    weights = [normal(*x.shape[-dims:], seed=seed) for seed in (2, 3)][:affine]
    y, *stats = evaluate("layer_norm", x, *weights, dims=dims, eps=1e-3)
    back = evaluate("layer_norm_grad", g, x, *stats, *weights[:1], affine=affine, dims=dims)

    def norm(x, w=None, b=None):
        return functional.layer_norm(x, x.shape[-dims:], w, b, 1e-3)

    names = ["y", "dx", "dw", "db"][: 2 + affine]
    yield from zip(names, (y, *back), autograd(norm, [x, *weights], g), strict=True)


# sequences


@case(causal=[False, True], tq=[4, 6])
def attention(causal, tq):
    """6 keys for `tq` queries, keys and values of different widths; a causal row i sees columns 0..i, as in PyTorch."""
    q, k, v, g = normal(2, 3, tq, 5), normal(2, 3, 6, 5, seed=1), normal(2, 3, 6, 4), normal(2, 3, tq, 4, seed=1)
    attributes = {"causal": causal, "scale": 0.7}
    y, lse = evaluate("attention", q, k, v, **attributes)
    back = evaluate("attention_grad", g, q, k, v, y, lse, **attributes)

    def attend(q, k, v):
        return functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.7)

    yield from compare("y dq dk dv", (y, *back), autograd(attend, [q, k, v], g))
    scores = torch.from_numpy(0.7 * q @ k.swapaxes(-1, -2))
    yield (
        "lse",
        lse,
        scores.where(torch.ones(tq, 6).tril() > 0, -torch.inf).logsumexp(-1) if causal else scores.logsumexp(-1),
    )


@case(kind=["gru", "lstm"], bias=[False, True])
def recurrent(kind, bias):
    gates, states = {"gru": (3, 1), "lstm": (4, 2)}[kind]
    x, w_ih, w_hh = normal(2, 4, 3), normal(gates * 5, 3), normal(gates * 5, 5)
    biases = [normal(gates * 5, seed=seed) for seed in (1, 2)]
    starts = [normal(2, 5, seed=seed) for seed in range(states)]
    g = [normal(2, 4, 5, seed=3), *(normal(2, 5, seed=4 + seed) for seed in range(states))]

    def layer(x, *rest):
        starts, weights = [h[None] for h in rest[:states]], rest[states : None if bias else -2]
        run = getattr(torch, kind)  # what nn.GRU and nn.LSTM call
        y, *final = run(x, starts if states == 2 else starts[0], weights, bias, 1, 0.0, True, False, True)
        unused = 0 if bias else 0 * (rest[-1].sum() + rest[-2].sum())
        return (y + unused, *(h[0] for h in final))

    given = biases if bias else []
    y, *rest = evaluate(kind, x, *starts, w_ih, w_hh, *given)
    kept = rest[states:]
    back = evaluate(f"{kind}_grad", *g, x, *starts, w_ih, w_hh, y, *kept)
    expected = autograd(layer, [x, *starts, w_ih, w_hh, *biases], *g)
    names = ["y", *["hn", "cn"][:states], "dx", *["dh0", "dc0"][:states], "dw_ih", "dw_hh", "db_ih", "db_hh"]
    compared = len(names) if bias else -2
    got = [y, *rest[:states], *back[:-1]]
    yield from compare(" ".join(names[:compared]), got[:compared], expected[:compared])
    again = evaluate(f"{kind}_gates", x, *starts, w_ih, w_hh, *given, y)
    again = again if isinstance(again, tuple) else (again,)
    yield from compare(" ".join(["gates", "cells"][:states]), again, kept)
    if bias:  # the gradients of the sums are those of a bias, before it is summed
        sums = back[-1].sum((0, 1)).reshape(4, 5)
        yield "dgates", sums[:gates].ravel(), expected[-2]
        yield "dm", sums[3], expected[-1][-5:]


# losses: 4 rows of 3 examples, of 5 classes

TARGET = np.random.default_rng(0).integers(0, 5, (4, 3))
TARGET[0, 1] = TARGET[2, 2] = -7
CLASS_WEIGHT = np.array([0.5, 1.0, 2.0, 0.0, 3.0])
WEIGHTS = {"equal": (), "by class": (CLASS_WEIGHT,)}


def check_loss(name, expected, z, *rest, rows, **attributes):
    """Loss and gradient of the oracle against autograd of `expected`, a function of the real rows of z."""
    norm, gl = np.array([0.3]), np.array([1.7])
    inputs = (rest[0], integers(rows), norm, *rest[1:])
    loss = evaluate(name, z, *inputs, batch=4, **attributes)
    dz = evaluate(f"{name}_grad", gl, z, *inputs, batch=4, **attributes)
    scaled = autograd(lambda t: 0.3 * expected(t).reshape(1), [z[:rows]], gl)
    yield from compare("loss dz", (loss, dz[:rows]), scaled)
    yield "padding", dz[rows:], 0 * dz[rows:]


@case(rows=[0, 1, 3, 4], weights=WEIGHTS, smoothing=[0.0, 0.1])
def cross_entropy(rows, weights, smoothing):
    def expected(z):
        weight = torch.from_numpy(CLASS_WEIGHT) if weights == "by class" else None
        target = torch.from_numpy(TARGET[:rows]).flatten()
        options = {"ignore_index": -7, "label_smoothing": smoothing}
        return functional.cross_entropy(z.reshape(-1, 5), target, weight, reduction="sum", **options)

    z = normal(4, 3, 5)
    yield from check_loss(
        "cross_entropy", expected, z, TARGET, *WEIGHTS[weights], rows=rows, ignore_index=-7, smoothing=smoothing
    )


@case(weights=WEIGHTS, smoothing=[0.0, 0.1])
def mean_cross_entropy(weights, smoothing):
    """With one over the sum of the targets' weights as norm it is PyTorch's mean."""
    w = CLASS_WEIGHT if weights == "by class" else np.ones(5)
    z, real = normal(4, 3, 5), TARGET[TARGET != -7]
    options = {"ignore_index": -7, "label_smoothing": smoothing}
    expected = functional.cross_entropy(
        torch.from_numpy(z).flatten(0, 1), torch.from_numpy(TARGET).flatten(), torch.from_numpy(w), **options
    )
    inputs = (z, TARGET, integers(4), np.array([1 / w[real].sum()]), *WEIGHTS[weights])
    yield "loss", evaluate("cross_entropy", *inputs, batch=4, ignore_index=-7, smoothing=smoothing), expected.reshape(1)


@case(rows=[0, 3], weights=WEIGHTS, gamma=[0.0, 0.5, 1.0, 2.0])
def focal(rows, weights, gamma):
    def expected(z):
        counted = torch.from_numpy(TARGET[:rows] != -7)
        log_p = z.log_softmax(-1)[counted]
        target = torch.from_numpy(TARGET[:rows])[counted]
        log_p = log_p.gather(1, target[:, None])[:, 0]
        w = torch.from_numpy(CLASS_WEIGHT)[target] if weights == "by class" else 1
        return -(w * (1 - log_p.exp()) ** gamma * log_p).sum()

    yield from check_loss(
        "focal", expected, normal(4, 3, 5), TARGET, *WEIGHTS[weights], rows=rows, ignore_index=-7, gamma=gamma
    )


PAIR_LOSSES = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "huber": lambda p, t, reduction: functional.huber_loss(p, t, reduction, delta=0.6),
    "bce_with_logits": functional.binary_cross_entropy_with_logits,
}


@case(rows=[0, 3, 4], kind=PAIR_LOSSES)
def pair_loss(rows, kind):
    p, t = normal(4, 3, 2), normal(4, 3, 2, seed=1)
    t = t > 0 if kind == "bce_with_logits" else t
    t = t.astype(float)
    expected = lambda z: PAIR_LOSSES[kind](z, torch.from_numpy(t[:rows]), reduction="sum")  # noqa: E731
    yield from check_loss("pair_loss", expected, p, t, rows=rows, kind=kind, delta=0.6)


@case(rows=[0, 3, 4], temperature=[1.0, 2.5])
def distill(rows, temperature):
    z, teacher = normal(4, 3, 5), normal(4, 3, 5, seed=1)

    def expected(z):
        p, q = ((v / temperature).log_softmax(-1) for v in (torch.from_numpy(teacher[:rows]), z))
        return temperature**2 * functional.kl_div(q, p, reduction="sum", log_target=True)

    yield from check_loss("distill", expected, z, teacher, rows=rows, temperature=temperature)


# updates: five steps with a learning rate that changes


def steps(make, update, *moments):
    """Five steps of PyTorch's optimizer, and of `update`, a function of (step, w, g, lr, *moments)."""
    rates = [0.1, 0.1, 0.03, 0.2, 0.05]
    parameter = nn.Parameter(torch.from_numpy(normal(6)))
    optimizer, state = make([parameter]), (normal(6), *(np.zeros(6) for _ in moments))
    for t, rate in enumerate(rates):
        parameter.grad = torch.from_numpy(normal(6, seed=t + 1))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        w, *rest = state
        state = update(t + 1, w, normal(6, seed=t + 1), np.array([rate]), *rest)
        yield f"w at step {t}", state[0], parameter.detach().numpy()
    for name, moment in zip(moments, state[1:], strict=True):
        yield name, moment, optimizer.state[parameter][name].numpy()


@case(momentum=[0.0, 0.9], nesterov=[False, True], weight_decay=[0.0, 0.1])
def sgd(momentum, nesterov, weight_decay):
    options = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov and momentum > 0}
    yield from steps(
        lambda parameters: torch.optim.SGD(parameters, 0.1, **options),
        lambda t, w, g, lr, *v: evaluate("sgd", w, g, lr, *v, **options),
        *(["momentum_buffer"] if momentum else []),
    )


@case(decoupled=[False, True], weight_decay=[0.0, 0.1])
def adam(decoupled, weight_decay):
    options = {"eps": 1e-3, "weight_decay": weight_decay}

    def update(t, w, g, lr, m, v):
        corrections = np.array([1 / (1 - 0.8**t), 1 / np.sqrt(1 - 0.95**t)])
        return evaluate("adam", w, g, m, v, lr, corrections, beta1=0.8, beta2=0.95, decoupled=decoupled, **options)

    make = torch.optim.AdamW if decoupled else torch.optim.Adam
    yield from steps(lambda p: make(p, betas=(0.8, 0.95), **options), update, "exp_avg", "exp_avg_sq")


@case(momentum=[0.0, 0.9], weight_decay=[0.0, 0.1])
def rmsprop(momentum, weight_decay):
    options = {"alpha": 0.9, "eps": 1e-3, "momentum": momentum, "weight_decay": weight_decay}
    yield from steps(
        lambda p: torch.optim.RMSprop(p, **options),
        lambda t, w, g, lr, v, *u: evaluate("rmsprop", w, g, v, lr, *u, **options),
        *["square_avg", "momentum_buffer"][: 1 + (momentum > 0)],
    )


@case(weight_decay=[0.0, 0.1])
def adagrad(weight_decay):
    options = {"eps": 1e-3, "weight_decay": weight_decay}
    yield from steps(
        lambda p: torch.optim.Adagrad(p, **options),
        lambda t, w, g, lr, v: evaluate("adagrad", w, g, v, lr, **options),
        "sum",
    )


@case()
def around_updates():
    w, anchor, g = normal(6), normal(6, seed=1), normal(6, seed=2)
    term = autograd(lambda t: 0.15 * ((t - torch.from_numpy(anchor)) ** 2).sum().reshape(1), [w], np.ones(1))[1]
    yield "proximal", evaluate("proximal", g, w, anchor, mu=0.3), g + term
    yield "accumulate", evaluate("accumulate", w, g), w + g
    yield "clear", evaluate("clear", w), 0 * w
    assert evaluate("check_finite", w) == ()
    for max_norm in (0.5, 100.0):
        parameters = [nn.Parameter(torch.zeros(6).double()) for _ in range(2)]
        for parameter, gradient in zip(parameters, (w, g), strict=True):
            parameter.grad = torch.from_numpy(gradient.copy())
        nn.utils.clip_grad_norm_(parameters, max_norm)
        squares = evaluate("add", evaluate("square_sum", w), evaluate("square_sum", g))
        yield "clip_scale", g * evaluate("clip_scale", squares, max_norm=max_norm), parameters[1].grad


# random masks


@case()
def dropout():
    """Element by element, as the header of the native ops words it."""
    seed, step, first_row, op, p = 0x12345678_9ABCDEF0, 2**31 + 7, 2**31 + 3, 5, 0.4
    x, expected = normal(3, 7), []
    for i, value in enumerate(x.ravel()):
        c = first_row * 7 + i
        block = [np.uint64(word) for word in (c // 4 % 2**32, c // 4 >> 32, step, op)]
        word = int(philox4x32(block, (seed % 2**32, seed >> 32))[c % 4])
        expected.append(0.0 if (word >> 8) * 2**-24 < p else value / (1 - p))
    yield (
        "y",
        evaluate("dropout", x, integers(seed, step, first_row), batch=len(x), id=op, p=p),
        np.reshape(expected, x.shape),
    )


@pytest.mark.parametrize("name", CASES)
def test_the_oracle_computes_what_pytorch_computes(name):
    function, chosen = CASES[name]
    for what, got, expected in function(**chosen):
        np.testing.assert_allclose(got, np.asarray(expected), rtol=1e-9, atol=1e-10, err_msg=what)


def test_the_cases_call_every_op():
    CALLED.clear()
    for function, chosen in CASES.values():
        list(function(**chosen))
    assert CALLED == OPS.keys() == reference.FORWARD.keys()


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, words):
    result = philox4x32([np.array([word], np.uint64) for word in counter], key)
    assert " ".join(f"{int(word[0]):08x}" for word in result) == words


def test_an_element_is_dropped_below_p_only():
    first = 0x6627E8 / 2**24  # of the first known answer
    for p, kept in ((first, True), (np.nextafter(first, 1), False)):
        assert (evaluate("dropout", np.ones((1, 1)), integers(0, 0, 0), batch=1, id=0, p=p).item() > 0) == kept


def test_dropout_keeps_its_rate_and_what_is_expected():
    x = np.ones((100, 1000))
    for p in (0.1, 0.5, 0.8):
        y = evaluate("dropout", x, integers(3, 0, 0), batch=len(x), id=0, p=p)
        assert set(np.unique(y)) == {0.0, 1 / (1 - p)}
        assert abs((y == 0).mean() - p) < 5 * np.sqrt(p * (1 - p) / x.size)
        assert np.abs((y == 0).mean(0) - p).max() < 6 * np.sqrt(p * (1 - p) / 100)  # no column stands out


def test_masks_differ_by_seed_step_and_op_and_repeat_otherwise():
    def mask(seed, step, op):
        return evaluate("dropout", np.ones((16, 64)), integers(seed, step, 0), batch=16, id=op, p=0.5) > 0

    places = list(itertools.product([1, 2, 1 + 2**32, -1], [0, 1], [0, 1]))
    masks = [mask(*place) for place in places]
    for (i, one), (j, other) in itertools.combinations(enumerate(masks), 2):
        assert 0.4 < (one == other).mean() < 0.6, (places[i], places[j])
    assert all((mask(*place) == one).all() for place, one in zip(places, masks, strict=True))


def test_rows_of_a_part_are_rows_of_the_whole():
    x = normal(8, 3, 5)
    whole = evaluate("dropout", x, integers(11, 4, 0), batch=len(x), id=2, p=0.3)
    for first in (1, 3, 6):
        part = evaluate("dropout", x[first:], integers(11, 4, first), batch=len(x[first:]), id=2, p=0.3)
        assert (part == whole[first:]).all()


# what has no counterpart in PyTorch


def test_padding_and_ignored_rows_may_hold_anything():
    z, target = normal(4, 3, 5), TARGET.copy()
    z[2:], target[2:], z[0, 1] = np.nan, 999, np.inf
    inputs = target, integers(2), np.ones(1)
    for name, attributes in {"cross_entropy": {"smoothing": 0.1}, "focal": {"gamma": 2.0}}.items():
        options = {"batch": 4, "ignore_index": -7, **attributes}
        assert np.isfinite(evaluate(name, z, *inputs, **options)).all()
        assert np.isfinite(evaluate(f"{name}_grad", np.ones(1), z, *inputs, **options)).all()
    x, weights, g = normal(4, 3), (np.ones(3), np.zeros(3)), normal(4, 3)
    x[3], g[3] = 1e300, np.nan
    _, mean, var = reference.FORWARD["batch_norm"](x[:3], *weights, integers(3), batch=3, eps=1e-5)
    dx, dw, db = evaluate("batch_norm_grad", g, x, weights[0], mean, var, integers(3), batch=4, eps=1e-5, training=True)
    assert np.isfinite([*dx.ravel(), *dw, *db]).all()


def test_focal_loss_of_a_certain_example_is_flat():
    z, target = np.array([[0.0, 1000.0], [1000.0, 0.0]]), integers(1, 1)
    for gamma in (0.0, 0.5, 2.0):
        inputs, options = (z, target, integers(2), np.ones(1)), {"batch": 2, "ignore_index": -100, "gamma": gamma}
        assert evaluate("focal", *inputs, **options) == 1000  # all of it from the second
        np.testing.assert_array_equal(evaluate("focal_grad", np.ones(1), *inputs, **options), [[0.0, 0.0], [1.0, -1.0]])


def test_a_nan_wins_in_a_window_and_padding_never_does():
    window = {"kernel": (2, 2), "stride": (2, 2), "padding": (1, 1)}
    x = np.array([[-np.inf, 1.0], [2.0, np.nan]]).reshape(1, 1, 2, 2)
    y, index = evaluate("max_pool2d", x, **window)
    np.testing.assert_array_equal(y[0, 0], x[0, 0])  # each window holds one element, in one of its corners
    np.testing.assert_array_equal(index[0, 0], [[3, 2], [1, 0]])
    x[0, 0] = [[5.0, np.nan], [7.0, np.nan]]
    y, index = evaluate("max_pool2d", x, **window | {"padding": (0, 0)})
    assert np.isnan(y).all()
    assert index.item() == 1
    g, outside = np.ones((1, 1, 2, 2)), np.zeros((1, 1, 2, 2), np.uint8)
    dx = evaluate("max_pool2d_grad", g, outside, shape=(1, 1, 2, 2), **window)
    np.testing.assert_array_equal(dx[0, 0], [[0, 0], [0, 1]])  # place 0 is padding in three windows


def test_what_cannot_be_computed_is_an_error():
    with pytest.raises(IndexError, match="table of 7"):
        evaluate("embedding", normal(7, 3), integers(0, -1))
    for name, attributes in {"cross_entropy": {"smoothing": 0.0}, "focal": {"gamma": 2.0}}.items():
        with pytest.raises(IndexError, match="table of 5"):
            evaluate(
                name, normal(2, 5), integers(0, 5), integers(2), np.ones(1), batch=2, ignore_index=-100, **attributes
            )
    with pytest.raises(ValueError, match="more than one value"):
        evaluate("batch_norm", normal(2, 3), np.ones(3), np.zeros(3), integers(1), batch=2, eps=1e-5)
    bad, lr, good = np.array([1.0, np.inf]), np.ones(1), np.ones(2)
    with pytest.raises(NumericsError):
        evaluate("check_finite", bad)
    with pytest.raises(NumericsError):
        evaluate("sgd", good, bad, lr, momentum=0.0, nesterov=False, weight_decay=0.0)


def test_a_graph_runs_in_order_and_leaves_its_tensors_alone():
    values = [Value("x", (2, 3)), Value("w", (1, 3)), Value("lr", (1,)), Value("y", (2, 1)), Value("dw", (1, 3))]
    update = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    graph = Graph(
        {value.name: value for value in values},
        ("x", "lr"),
        ("w",),
        (
            Node("linear", ("x", "w"), ("y",)),
            Node("linear_dw", ("y", "x"), ("dw",)),  # of y^2 / 2
            Node("check_finite", ("y",), ()),
            Node("sgd", ("w", "dw", "lr"), (), update, ("w",)),
        ),
        ("y",),
    )
    tensors = {"x": normal(2, 3), "w": normal(1, 3), "lr": np.array([0.1])}
    before = {name: tensor.copy() for name, tensor in tensors.items()}
    result = reference.run(verify(graph), tensors)
    np.testing.assert_allclose(result["w"], before["w"] - 0.1 * result["y"].T @ before["x"])
    assert all((tensors[name] == before[name]).all() for name in tensors)
