"""Whatever small network is drawn, at whatever plan: the engine, the NumPy oracle and PyTorch agree.

A graph is grown from drawn decisions, which can be replayed for another batch size. The engine (float32, in an arena
full of NaN, perhaps recomputing, in micro-batches, or on a batch that is not full) and the oracle (float64, in the
plain training graph) take one step with momentum: the velocity is then the gradient. PyTorch differentiates the forward
graph by itself in float64, op by op from the table `TORCH`.

Where float32 may take the other side of a kink (ReLU at 0, two maxima of a window), or where all that a normalisation
normalises is rounding, no engine can agree: PyTorch's float64 values show such draws, and they are thrown away.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import edge_runtime as er
from edge_runtime.engine import reference
from edge_runtime.engine.session import Session
from edge_runtime.ir.builder import Builder
from edge_runtime.ir.graph import Graph, Node
from edge_runtime.ir.model import Model
from edge_runtime.passes.pipeline import simplify
from edge_runtime.passes.training import Recipe, training_step
from edge_runtime.planner.assemble import assemble
from edge_runtime.planner.budget import candidates, place
from simulations import models

Array = np.ndarray[Any, Any]
LEARNING_RATE = 0.1
KINK = 2e-5  # of a tensor's scale: float32 values that are nearer to a kink than this may lie on its other side
FLAT = 0.03  # of the values' size: a standard deviation below it is mostly rounding once they are normalised

# What PyTorch computes for a node, from its attributes and inputs; several outputs as a tuple, of which those that only
# the engine's own backward pass reads may be missing.
TORCH: dict[str, Callable[..., Any]] = {
    "add": lambda a, x, y: x + y,
    "mul": lambda a, x, y: x * y,
    "scale": lambda a, x: x * a["by"] + a["plus"],
    "exp": lambda a, x: x.exp(),
    "gelu": lambda a, x: functional.gelu(x),
    "relu": lambda a, x: x.relu(),
    "relu6": lambda a, x: functional.relu6(x),
    "sigmoid": lambda a, x: x.sigmoid(),
    "silu": lambda a, x: functional.silu(x),
    "tanh": lambda a, x: x.tanh(),
    "dropout": lambda a, x, random: x * torch.from_numpy(
        reference.FORWARD["dropout"](np.ones(tuple(x.shape)), random.numpy(), **a)),
    "reshape": lambda a, x: x.reshape(a["shape"]),
    "transpose": lambda a, x: x.permute(a["order"]),
    "slice": lambda a, x: x.narrow(a["dim"], a["start"], a["stop"] - a["start"]),
    "cat": lambda a, *xs: torch.cat(xs, a["dim"]),
    "zeros": lambda a: torch.zeros(a["shape"], dtype=torch.float64),
    "mean": lambda a, x: x.mean(a["dims"], a["keepdim"]),
    "sum": lambda a, x: x.sum(a["dims"], a["keepdim"]),
    "avg_pool2d": lambda a, x: functional.avg_pool2d(x, a["kernel"], a["stride"]),
    "max_pool2d": lambda a, x: (functional.max_pool2d(x, a["kernel"], a["stride"], a["padding"]),),
    "softmax": lambda a, x: x.softmax(a["dim"]),
    "linear": lambda a, x, w, b=None: functional.linear(x, w, b),
    "conv2d": lambda a, x, w, b=None: functional.conv2d(x, w, b, a["stride"], a["padding"], 1, a["groups"]),
    "embedding": lambda a, table, ids: functional.embedding(ids, table),
    "batch_norm": lambda a, x, w, b, rows: (
        functional.batch_norm(x, None, None, w, b, training=True, eps=a["eps"]), *_statistics(x)),
    "batch_norm_apply": lambda a, x, w, b, mean, var: functional.batch_norm(x, mean, var, w, b, eps=a["eps"]),
    "running_stats": lambda a, mean, var, rows, old_mean, old_var: _moved(a, mean, var, old_mean, old_var),
    "group_norm": lambda a, x, w, b: (functional.group_norm(x, a["groups"], w, b, a["eps"]),),
    "layer_norm": lambda a, x, *wb: (functional.layer_norm(x, x.shape[x.ndim - a["dims"]:], *wb, eps=a["eps"]),),
    "attention": lambda a, q, k, v: (
        functional.scaled_dot_product_attention(q, k, v, is_causal=a["causal"], scale=a["scale"]),),
    "gru": lambda a, x, h, *weights: _recurrent(torch.gru, x, h[None], weights),
    "lstm": lambda a, x, h, c, *weights: _recurrent(torch.lstm, x, (h[None], c[None]), weights),
}  # fmt: skip

LOSSES: dict[er.losses.Loss, Callable[[Tensor, Tensor], Tensor]] = {
    er.CrossEntropy(): functional.cross_entropy,
    er.CrossEntropy(label_smoothing=0.1): lambda z, y: functional.cross_entropy(z, y, label_smoothing=0.1),
    er.MSE(): functional.mse_loss,
    er.Huber(delta=0.7): lambda z, y: functional.huber_loss(z, y, delta=0.7),
    er.BCEWithLogits(): lambda z, y: functional.binary_cross_entropy_with_logits(z, y.sigmoid()),
}


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    dims = [0, *range(2, x.ndim)]
    return x.mean(dims), x.var(dims, correction=0)


def _moved(a: Any, mean: Tensor, var: Tensor, old_mean: Tensor, old_var: Tensor) -> tuple[Tensor, Tensor]:
    count = math.prod(a["shape"]) // a["shape"][1]
    m = a["momentum"]
    return (1 - m) * old_mean + m * mean, (1 - m) * old_var + m * var * count / (count - 1)


def _recurrent(function: Any, x: Tensor, start: Any, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    y, *states = function(x, start, weights, len(weights) == 4, 1, 0.0, True, False, True)
    return (y, *(state[0] for state in states))


# How a network is drawn.


@dataclass
class Choices:
    """Decisions that are drawn, and kept, or repeated. They depend on anything but the batch size."""

    draw: Callable[[Any], int] | None = None
    made: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._old: Iterator[int] = iter(list(self.made))

    def one(self, options: Sequence[Any]) -> Any:
        if self.draw is None:
            return options[next(self._old)]
        self.made.append(self.draw(st.integers(0, len(options) - 1)))
        return options[self.made[-1]]


class Growth:
    """A forward graph on its way, layer by layer."""

    def __init__(self, choices: Choices, batch: int) -> None:
        self.one, self.batch = choices.one, batch
        self.b = Builder(batch=batch)
        self.b.hint = "v"
        self.parameters: list[str] = []
        self.buffers: list[str] = []

    def weight(self, *shape: int) -> str:
        self.parameters.append(f"w{len(self.parameters)}")
        return self.b.state(self.parameters[-1], shape)

    def buffer(self, kind: str, size: int) -> str:
        self.buffers.append(f"{kind}{len(self.buffers)}")
        return self.b.state(self.buffers[-1], (size,))

    def linear(self, x: str, width: int) -> str:
        bias = [self.weight(width)] if self.one([True, False]) else []
        return self.b.emit("linear", x, self.weight(width, self.b.shape(x)[-1]), *bias)

    def conv(self, x: str, channels: int, kernel: tuple[int, int], stride: int, padding: int, groups: int) -> str:
        bias = [self.weight(channels)] if self.one([True, False]) else []
        w = self.weight(channels, self.b.shape(x)[1] // groups, *kernel)
        return self.b.emit(
            "conv2d", x, w, *bias, stride=(stride, stride), padding=(padding,) * 2, groups=groups
        )  # fmt: skip


def activation(g: Growth, x: str) -> str:
    return g.b.emit(g.one(["relu", "relu6", "gelu", "sigmoid", "silu", "tanh"]), x)


def scale(g: Growth, x: str) -> str:
    return g.b.emit("scale", x, by=g.one([-0.7, 1.5]), plus=g.one([0.0, 0.3]))


def exp(g: Growth, x: str) -> str:
    return g.b.emit("exp", g.b.emit("tanh", x))


def dropout(g: Growth, x: str) -> str:
    return g.b.emit("dropout", x, g.b.random(), batch=g.batch, id=g.b.count("dropout"), p=g.one([0.1, 0.5]))


def batch_norm(g: Growth, x: str) -> str:
    shape = g.b.shape(x)
    affine = [g.weight(shape[1]), g.weight(shape[1])]
    moving = [g.buffer("mean", shape[1]), g.buffer("var", shape[1])]
    if g.one([True, True, False]):
        y, *stats = g.b.emit_all("batch_norm", x, *affine, g.b.rows(), batch=g.batch, eps=1e-5)
        attributes: dict[str, Any] = {"batch": g.batch, "momentum": 0.1, "shape": shape}
        g.b.emit_all("running_stats", *stats, g.b.rows(), *moving, writes=tuple(moving), **attributes)
        return y
    return g.b.emit("batch_norm_apply", x, *affine, *moving, eps=1e-5)


def group_norm(g: Growth, x: str) -> str:
    channels = g.b.shape(x)[1]
    groups = g.one([n for n in (1, 2, channels) if channels % n == 0 and math.prod(g.b.shape(x)[1:]) // n >= 4] or [1])
    return g.b.emit_all("group_norm", x, g.weight(channels), g.weight(channels), groups=groups, eps=1e-5)[0]


def layer_norm(g: Growth, x: str) -> str:
    shape = g.b.shape(x)
    dims = g.one([n for n in (1, 2) if n < len(shape)])
    affine = [g.weight(*shape[len(shape) - dims :]) for _ in range(g.one([0, 1, 2]))]
    return g.b.emit_all("layer_norm", x, *affine, dims=dims, eps=1e-5)[0]


def parameter(g: Growth, x: str) -> str:
    """A weight added or multiplied that is broadcast over the rows, and perhaps over more."""
    shape = g.b.shape(x)[1:]
    w = g.weight(*g.one([shape, (*shape[:-1], 1), shape[-1:], (1,) * len(shape)]))
    return g.b.emit(g.one(["add", "mul"]), *g.one([(x, w), (w, x)]))


def convolution(g: Growth, x: str) -> str:
    _, channels, height, width = g.b.shape(x)
    padding = g.one([0, 1, 2])
    kernel = (g.one(_up_to(3, height + 2 * padding)), g.one(_up_to(5, width + 2 * padding)))
    groups = g.one([n for n in range(1, channels + 1) if channels % n == 0])
    return g.conv(x, groups * g.one([1, 2, 3]), kernel, g.one([1, 2]), padding, groups)


def separable(g: Growth, x: str) -> str:
    """Depthwise, then pointwise."""
    channels = g.b.shape(x)[1]
    y = g.conv(x, channels, (3, 3), g.one([1, 2]), 1, channels)
    return g.conv(y, g.one([2, 5, 8]), (1, 1), g.one([1, 2]), 0, 1)


def pool(g: Growth, x: str) -> str:
    height, width = g.b.shape(x)[2:]
    kernel = (g.one(_up_to(3, height)), g.one(_up_to(3, width)))
    stride = (g.one([1, 2, 3]), g.one([1, 2]))
    if g.one([True, False]):
        padding = (g.one([0, kernel[0] // 2]), g.one([0, kernel[1] // 2]))
        return g.b.emit_all("max_pool2d", x, kernel=kernel, stride=stride, padding=padding)[0]
    return g.b.emit("avg_pool2d", x, kernel=kernel, stride=stride, padding=(0, 0))


def residual_convolution(g: Growth, x: str) -> str:
    y = g.conv(x, g.b.shape(x)[1], (3, 3), 1, 1, 1)
    return g.b.emit("add", *g.one([(x, y), (y, x)]))


def gate(g: Growth, x: str) -> str:
    """Squeeze and excitation: every channel times a factor from the means of all."""
    means = g.b.emit("mean", x, dims=(2, 3), keepdim=True)
    return g.b.emit("mul", x, g.b.emit("sigmoid", g.conv(means, g.b.shape(x)[1], (1, 1), 1, 0, 1)))


def slices(g: Growth, x: str) -> str:
    """Two overlapping slices of dim 1, joined the other way round."""
    size = g.b.shape(x)[1]
    middle = g.one(range(1, size)) if size > 1 else 1
    parts = (middle - 1, size), (0, middle)
    return g.b.emit("cat", *(g.b.emit("slice", x, dim=1, start=start, stop=stop) for start, stop in parts), dim=1)


def branches(g: Growth, x: str) -> str:
    """One value through two functions, joined in the last dim."""
    return g.b.emit("cat", activation(g, x), x, dim=len(g.b.shape(x)) - 1)


def dense(g: Growth, x: str) -> str:
    return g.linear(x, g.one([1, 3, 8, 17]))


def residual_dense(g: Growth, x: str) -> str:
    width = g.b.shape(x)[-1]
    return g.b.emit("add", x, g.linear(activation(g, g.linear(x, 2 * width)), width))


def swap(g: Growth, x: str) -> str:
    rank = len(g.b.shape(x))
    return g.b.emit("transpose", x, order=(0, *range(2, rank), 1))


def softmax(g: Growth, x: str) -> str:
    return g.b.emit("softmax", x, dim=g.one(range(1, len(g.b.shape(x)))))


def attention(g: Growth, x: str) -> str:
    """One projection cut into q, k and v of some heads."""
    batch, length = g.b.shape(x)[:2]
    heads, width = g.one([1, 2]), g.one([2, 4])
    whole = g.b.emit("reshape", g.linear(x, 3 * heads * width), shape=(batch, length, 3, heads, width))
    whole = g.b.emit("transpose", whole, order=(2, 0, 3, 1, 4))
    parts = [g.b.emit("slice", whole, dim=0, start=k, stop=k + 1) for k in range(3)]
    q, k, v = (g.b.emit("reshape", part, shape=(batch, heads, length, width)) for part in parts)
    y = g.b.emit_all("attention", q, k, v, causal=g.one([True, False]), scale=width**-0.5)[0]
    y = g.b.emit("transpose", y, order=(0, 2, 1, 3))
    return g.b.emit("reshape", y, shape=(batch, length, heads * width))


def recurrent(g: Growth, x: str) -> str:
    batch, _, width = g.b.shape(x)
    op, gates, states = g.one([("gru", 3, 1), ("lstm", 4, 2)])
    hidden = g.one([2, 5, 8])
    starts = [g.b.emit("zeros", shape=(batch, hidden)) for _ in range(states)]
    biases = [g.weight(gates * hidden), g.weight(gates * hidden)] if g.one([True, False]) else []
    weights = g.weight(gates * hidden, width), g.weight(gates * hidden, hidden)
    y, final, *_ = g.b.emit_all(op, x, *starts, *weights, *biases)
    if g.one([True, False]):  # the final state acts too, at every step
        y = g.b.emit("add", y, g.b.emit("reshape", final, shape=(batch, 1, hidden)))
    return y


def _up_to(most: int, room: int) -> list[int]:
    return list(range(1, min(most, room) + 1))


ANY = (activation, scale, exp, dropout, parameter, branches)
LAYERS = {
    "image": (*ANY, convolution, convolution, separable, pool, residual_convolution, gate, batch_norm, batch_norm,
              group_norm, layer_norm, slices),
    "sequence": (*ANY, dense, residual_dense, layer_norm, attention, attention, recurrent, recurrent, swap, softmax,
                 slices),
    "vector": (*ANY, dense, dense, residual_dense, layer_norm, batch_norm, slices, softmax),
}  # fmt: skip


def grow(choices: Choices, batch: int) -> Growth:
    """A network from an input x to logits (B, 3) or (B, T, 3)."""
    g = Growth(choices, batch)
    kind = g.one(["image", "sequence", "vector", "tokens"])
    if kind == "tokens":
        ids = g.b.input("x", (batch, g.one([1, 4, 9])), "i64")
        x, kind = g.b.emit("embedding", g.weight(11, g.one([1, 6])), ids), "sequence"
    else:
        shape = {
            "image": lambda: (g.one([1, 3, 4]), g.one([4, 7]), g.one([5, 8])),
            "sequence": lambda: (g.one([1, 5, 8]), g.one([2, 6])),
            "vector": lambda: (g.one([1, 6, 13]),),
        }[kind]()
        x = g.b.input("x", (batch, *shape))
    for _ in range(g.one([1, 2, 3, 4, 5])):
        if math.prod(g.b.shape(x)[1:]) < 600:
            x = g.one(LAYERS[kind])(g, x)
    shape = g.b.shape(x)
    match kind, g.one(["flat", "mean", "each"]):
        case "image", "mean":
            x = g.b.emit("mean", x, dims=(2, 3), keepdim=False)
        case "sequence", "mean":
            x = g.b.emit("sum", x, dims=(1,), keepdim=False)
        case "sequence", "each":
            pass
        case _:
            x = g.b.emit("reshape", x, shape=(batch, math.prod(shape[1:])))
    g.logits = g.linear(x, 3)  # type: ignore[attr-defined]
    return g


@dataclass(frozen=True)
class Case:
    """A network with its batch, its plan and its data."""

    decisions: tuple[int, ...]
    batch: int
    rows: int
    micro: int
    level: int
    frozen: int
    loss: er.losses.Loss
    seed: int

    def at(self, batch: int) -> Graph:
        g = self.growth(batch)
        return g.b.finish([g.logits])  # type: ignore[attr-defined]

    def growth(self, batch: int) -> Growth:
        return grow(Choices(made=list(self.decisions)), batch)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    choices = Choices(draw)
    batch = draw(st.integers(2, 5))
    g = grow(choices, batch)
    normed = g.b.count("batch_norm") > 0
    rows = draw(st.integers(2 if normed else 1, batch))
    micro = batch if normed else draw(st.sampled_from([batch, batch, batch, 1, 2]))
    return Case(
        tuple(choices.made), batch, rows, micro,
        level=draw(st.integers(0, 4)),
        frozen=draw(st.sampled_from([0, 0, len(g.parameters) // 2, len(g.parameters) - 1])),
        loss=draw(st.sampled_from(list(LOSSES))),
        seed=draw(st.integers(0, 2**20)),
    )  # fmt: skip


# The three that must agree.


@dataclass(frozen=True)
class Step:
    """What one step of training did: its loss, gradients by name, and the new running statistics by name."""

    loss: float
    gradients: dict[str, Array]
    buffers: dict[str, Array]


@dataclass(frozen=True)
class Data:
    state: dict[str, Array]
    x: Array
    y: Array


def drawn_data(case: Case, g: Growth) -> Data:
    """Weights that keep a signal's size, for `rows` rows."""
    rng = np.random.default_rng(case.seed)
    state = {}
    for name in (*g.parameters, *g.buffers):
        shape = g.b.shape(name)
        values = rng.standard_normal(shape)
        if name.startswith("var"):
            values = 0.5 + values**2
        elif len(shape) > 1:
            values = values / math.sqrt(math.prod(shape[1:]))
        else:
            values = 0.3 * values + (g.parameters.index(name) % 2 if name in g.parameters else 0)
        state[name] = values.astype(np.float32)
    value = g.b.value("x")
    shape = (case.rows, *value.shape[1:])
    x = rng.integers(0, 11, shape) if value.dtype == "i64" else rng.standard_normal(shape).astype(np.float32)
    logits = (case.rows, *g.b.shape(g.logits)[1:])  # type: ignore[attr-defined]
    if isinstance(case.loss, er.CrossEntropy):
        y: Array = rng.integers(0, 3, logits[:-1])
        if case.seed % 3 == 0 and y.size > 1:
            y.flat[0] = case.loss.ignore_index
        return Data(state, x, y)
    return Data(state, x, rng.standard_normal(logits).astype(np.float32))


def recipe_of(case: Case, g: Growth) -> Recipe:
    return Recipe(case.loss, er.SGD(lr=LEARNING_RATE, momentum=0.9), tuple(g.parameters[case.frozen :]))


def by_engine(case: Case, g: Growth, data: Data) -> Step:
    recipe = recipe_of(case, g)
    state = tuple(g.b.value(name) for name in data.state)
    found = candidates(case.at, case.at, recipe, state, [case.batch], [case.micro])
    placed = place(list(islice(found, case.level + 1))[-1])
    model = Model(
        forward=case.at, predict=case.at, check=lambda *_: None, fixed=0, state=state,
        parameters=frozenset(g.parameters), trainable=recipe.trainable, initial=data.state,
        counters={}, counted=(), aliases={}, names=tuple(data.state),
    )  # fmt: skip
    program = er.Program.from_bytes(assemble(placed, [placed], 0, case.batch, model).to_bytes())
    trainer = er.Trainer(program)
    trainer._session = session = Session(program, poison=True)
    trainer.load_state_dict(data.state)
    loss = trainer.step(data.x, by_loss(case, data.y))
    assert session.touched_bytes() <= program.peak_bytes
    after = trainer.snapshot()
    gradients = {name: after[f"{name}/velocity"] for name in recipe.trainable}
    for name in g.parameters:
        moved = data.state[name] - np.float32(LEARNING_RATE) * gradients.get(name, np.float32(0))
        np.testing.assert_allclose(after[name], moved, rtol=1e-6, atol=1e-7)
    return Step(loss, gradients, {name: after[name] for name in g.buffers})


def by_oracle(case: Case, g: Growth, data: Data) -> Step:
    recipe = recipe_of(case, g)
    graph, _ = training_step(simplify(case.at(case.batch)), recipe, case.batch)
    y = by_loss(case, data.y)
    counted = np.count_nonzero(y != -100) if isinstance(case.loss, er.CrossEntropy) else y.size
    scalars = {"rows": np.array([case.rows]), "random": np.array([0, 0, 0]), "lr": np.array([LEARNING_RATE])}
    scalars["norm.0"] = np.array([1 / counted if counted else 0.0])
    tensors = {"x": padded(data.x, case.batch), "target.0": padded(y, case.batch), **scalars}
    state = {name: array.astype(np.float64) for name, array in data.state.items()}
    state |= {f"{name}/velocity": np.zeros(g.b.shape(name)) for name in recipe.trainable}
    after = reference.run(graph, {**tensors, **state})
    gradients = {name: after[f"{name}/velocity"] for name in recipe.trainable}
    return Step(
        float(after[graph.outputs[0]][0]), gradients, {name: after.get(name, state[name]) for name in g.buffers}
    )


def by_torch(case: Case, g: Growth, data: Data) -> tuple[Step, bool]:
    """The step, and whether float32 can follow it."""
    graph = case.at(case.rows)
    values = {name: torch.from_numpy(array).double() for name, array in data.state.items()}
    leaves = [values[name].requires_grad_() for name in g.parameters[case.frozen :]]
    x = torch.from_numpy(data.x)
    values |= {"x": x.double() if x.is_floating_point() else x, "random": torch.zeros(3, dtype=torch.int64)}
    values["rows"] = torch.tensor([case.rows])
    unsure = False
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        unsure = unsure or delicate(node, inputs)
        results = TORCH[node.op](node.attributes, *inputs)
        results = results if isinstance(results, tuple) else (results,)
        values.update(zip((*node.outputs, *node.writes), results, strict=False))
    z, y = values[graph.outputs[0]], torch.from_numpy(by_loss(case, data.y))
    if isinstance(case.loss, er.CrossEntropy):
        loss = LOSSES[case.loss](z.reshape(-1, 3), y.reshape(-1)) if (y >= 0).any() else 0 * z.sum()
    else:
        loss = functional.binary_cross_entropy_with_logits(z, y.double()) if case.loss == er.BCEWithLogits() else (
            LOSSES[case.loss](z, y.double()))  # fmt: skip
    found = torch.autograd.grad(loss, leaves)
    gradients = {name: one.numpy() for name, one in zip(g.parameters[case.frozen :], found, strict=True)}
    return Step(loss.item(), gradients, {name: values[name].detach().numpy() for name in g.buffers}), unsure


def by_loss(case: Case, y: Array) -> Array:
    """Targets as the loss takes them: probabilities for binary cross-entropy."""
    return 1 / (1 + np.exp(-y)) if isinstance(case.loss, er.BCEWithLogits) else y


def padded(array: Array, batch: int) -> Array:
    whole = np.zeros((batch, *array.shape[1:]), array.dtype if array.dtype.kind == "i" else np.float64)
    whole[: len(array)] = array
    return whole


def delicate(node: Node, inputs: Sequence[Tensor]) -> bool:
    """Whether rounding in float32 may change what this node does by more than it rounds."""
    if not inputs or not inputs[0].is_floating_point():
        return False
    x, a = inputs[0].detach(), node.attributes
    margin = KINK * max(1.0, float(x.abs().max()))
    match node.op:
        case "relu" | "relu6":
            return any(bool(((x - kink).abs() < margin).any()) for kink in (0.0, 6.0))
        case "max_pool2d":
            height, width = a["padding"]
            whole = functional.pad(x, (width, width, height, height), value=-1e9).flatten(0, 1)[:, None]
            windows = functional.unfold(whole, a["kernel"], stride=a["stride"])
            first, second = windows.topk(2, dim=1).values.unbind(1) if windows.shape[1] > 1 else (windows, windows)
            return bool(((first - second < margin) & (first != second)).any())
        case "batch_norm" | "group_norm" | "layer_norm":
            sets = {
                "batch_norm": lambda: x.transpose(0, 1).flatten(1),
                "group_norm": lambda: x.reshape(x.shape[0] * a["groups"], -1),
                "layer_norm": lambda: x.flatten(x.ndim - a["dims"]),
            }[node.op]()
            return bool((sets.std(-1, correction=0) < FLAT * sets.abs().amax(-1)).any())
        case _:
            return False


def assert_agree(found: Step, true: Step, tolerance: float) -> None:
    assert found.loss == pytest.approx(true.loss, rel=tolerance, abs=tolerance)
    largest = max([0.1, *(float(np.abs(g).max()) for g in true.gradients.values())])
    for name, g in true.gradients.items():
        error, own = np.abs(found.gradients[name] - g).max(), float(np.abs(g).max())
        # The second bound is for tensors with small gradients, and leaves room for terms that cancel out.
        assert error <= tolerance * largest, name
        assert error <= 100 * tolerance * own + 0.2 * tolerance * largest, name
    for name, array in true.buffers.items():
        np.testing.assert_allclose(found.buffers[name], array, rtol=tolerance, atol=tolerance)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(case=cases())
def test_engine_oracle_and_pytorch_agree_on_any_graph(case: Case) -> None:
    g = case.growth(case.batch)
    data = drawn_data(case, g)
    true, unsure = by_torch(case, g, data)
    assume(not unsure)
    assert_agree(by_oracle(case, g, data), true, 1e-9)
    assert_agree(by_engine(case, g, data), true, 1e-5)


# The same through the front door: modules as users write them, captured by torch.export. Their activations are smooth,
# so that float32 can always follow.

SMOOTH = (nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Steps(nn.Module):
    """The outputs of a recurrent layer at every step."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)[0]
        return y


class MeanOverTime(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def drawn_cnn(one: Callable[[Sequence[Any]], Any]) -> tuple[nn.Module, Tensor]:
    channels = one([1, 3])
    x = torch.randn(4, channels, 8, 8)
    layers: list[nn.Module] = []
    for _ in range(one([1, 2, 3])):
        out, groups = one([4, 8]), one([1, channels])
        out -= out % groups
        out = max(out, groups)
        layers.append(
            nn.Conv2d(channels, out, one([1, 3]), one([1, 2]), padding=1, groups=groups, bias=one([True, False]))
        )
        norm = one([nn.BatchNorm2d(out), nn.BatchNorm2d(out).eval(), nn.GroupNorm(1, out), nn.Identity()])
        layers += [norm, one(SMOOTH)()]
        if one([True, False]):
            layers.append(Residual(nn.Conv2d(out, out, 3, padding=1)))
        channels = out
    layers.append(one([nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(2)]))
    return _with_head(nn.Sequential(*layers, nn.Flatten()), x)


def drawn_sequence_model(one: Callable[[Sequence[Any]], Any]) -> tuple[nn.Module, Tensor]:
    width = 8
    layers: list[nn.Module] = [nn.Embedding(20, width)]
    for _ in range(one([1, 2])):
        layer = one([
            models.TransformerBlock(width, one([1, 2])),
            Steps(nn.GRU(width, width, one([1, 2]), batch_first=True)),
            Steps(nn.LSTM(width, width, batch_first=True)),
            Residual(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 5), one(SMOOTH)(), nn.Linear(5, width))),
        ])  # fmt: skip
        layers.append(layer)
    layers.append(one([MeanOverTime(), nn.LayerNorm(width), nn.Flatten()]))
    return _with_head(nn.Sequential(*layers), torch.randint(0, 20, (4, one([1, 6]))))


def _with_head(body: nn.Sequential, x: Tensor) -> tuple[nn.Module, Tensor]:
    body.append(nn.Linear(body(x).shape[-1], 3))
    return body, x


@pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")  # torch.export calling torch.utils._pytree
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_module_trains_as_in_pytorch(data: st.DataObject) -> None:
    one = Choices(data.draw).one
    torch.manual_seed(one(range(1000)))
    module, x = one([drawn_cnn, drawn_sequence_model])(one)
    y = torch.randint(0, 3, module(x).shape[:-1])
    optimizer = er.SGD(lr=LEARNING_RATE, momentum=0.9)
    program = er.build(module, x, batch_size=4, optimizer=optimizer)
    if one([False, False, True]):
        smallest = min(point.peak_bytes for point in program.report.curve)
        program = er.build(module, x, batch_size=4, optimizer=optimizer, memory_budget=smallest)
    trainer = er.Trainer(program)
    trainer._session = Session(program, poison=True)
    trainer.load_state_dict({name: one.numpy() for name, one in module.state_dict().items()})
    loss = trainer.step(x.numpy(), y.numpy())
    after = trainer.snapshot()
    exact = copy.deepcopy(module).double()
    exact_loss = functional.cross_entropy(
        exact(x.double() if x.is_floating_point() else x).reshape(-1, 3), y.reshape(-1)
    )
    exact_loss.backward()
    true = {name: one.grad.numpy() for name, one in exact.named_parameters() if one.grad is not None}
    moving = {name: one.numpy() for name, one in exact.named_buffers() if one.is_floating_point()}
    found = Step(loss, {name: after[f"{name}/velocity"] for name in true}, {name: after[name] for name in moving})
    assert_agree(found, Step(exact_loss.item(), true, moving), 1e-5)
