"""Every row of the TFLite writer, in LiteRT: float32 as PyTorch, INT8 as the quantised graph's definition."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from edge_runtime.deploy.formats.tflite import write_tflite
from edge_runtime.deploy.graph.calibrate import calibrate
from edge_runtime.deploy.graph.captured import captured_model
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.fold import fold
from edge_runtime.deploy.graph.quantise import quantise
from edge_runtime.deploy.graph.rounding import predict_rounded
from edge_runtime.deploy.runner import Runner
from edge_runtime.ir.graph import Graph, Node, Value

ROWS = 3
BATCH = 997


class Of(nn.Module):
    """A function between layers."""

    def __init__(self, function, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


class Attention(nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.qkv, self.causal = nn.Linear(8, 24), causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one.unflatten(-1, (2, 4)).transpose(1, 2) for one in self.qkv(x).chunk(3, -1))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return y.transpose(1, 2).flatten(2)


class Squeeze(nn.Module):
    """A gate for each channel, from the mean over the image."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]


IMAGE, ROW, SEQUENCE = (3, 9, 8), (12,), (5, 8)
CASES = {
    "conv": (nn.Conv2d(3, 5, 3, padding=1), IMAGE),
    "conv that TFLite pads elsewhere": (nn.Conv2d(3, 5, 3, 2, 1), IMAGE),
    "conv without bias": (nn.Conv2d(3, 5, (1, 3), (2, 1), bias=False), IMAGE),
    "conv in groups": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, padding=1, groups=2)), IMAGE),
    "depthwise": (nn.Conv2d(3, 3, 3, padding=1, groups=3), IMAGE),
    "depthwise that multiplies": (nn.Conv2d(3, 6, 3, 2, 1, groups=3), IMAGE),
    "conv of one channel": (nn.Conv2d(1, 4, 3, padding=1), (1, 8, 8)),
    "linear": (nn.Linear(12, 7), ROW),
    "linear without bias": (nn.Linear(8, 7, bias=False), SEQUENCE),
    "linear of a sequence": (nn.Linear(8, 7), SEQUENCE),
    "flattened conv": (nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(210, 4)), IMAGE),
    "flattened conv, read twice": (
        Of(lambda x, conv, a, b: a(conv(x).flatten(1)) + b(torch.tanh(conv(x).flatten(1))), nn.Conv2d(3, 2, 3),
           nn.Linear(84, 4), nn.Linear(84, 4)),
        IMAGE,
    ),
    "conv, joined and clipped": (Of(lambda x, c: functional.relu6(1.5 * c(x) + x), nn.Conv2d(3, 3, 1)), IMAGE),
    "residual": (Of(lambda x, c, d: torch.relu(c(x) + d(x)), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)), IMAGE),
    "per-channel factor": (Of(lambda x, n: n(torch.relu(x)), nn.BatchNorm2d(3)), IMAGE),
    "gate": (Squeeze(), IMAGE),
    "max pool": (nn.MaxPool2d(2), IMAGE),
    "max pool with padding": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(3, 2, 1)), IMAGE),
    "average pool": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d((2, 3), (2, 1))), IMAGE),
    "mean of the image": (Of(lambda x, c, out: out(c(x).mean((2, 3))), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)), IMAGE),
    "mean of channels": (Of(lambda x, c: c(x).mean(1, keepdim=True), nn.Conv2d(3, 4, 3)), IMAGE),
    "mean of rows": (Of(lambda x, c: c(x).mean(3), nn.Conv2d(3, 4, 3)), IMAGE),
    "sum": (Of(lambda x, pool: pool(x).sum((1, 3)), nn.MaxPool2d(2)), IMAGE),
    "relu": (nn.ReLU(), ROW),
    "relu6": (Of(lambda x: functional.relu6(4 * x)), ROW),
    "sigmoid": (nn.Sigmoid(), ROW),
    "tanh": (nn.Tanh(), ROW),
    "silu": (nn.SiLU(), ROW),
    "gelu": (nn.Sequential(nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 3)), ROW),
    "scale": (Of(lambda x: 1 - 2.5 * x), ROW),
    "times a number": (Of(lambda x: -0.5 * x), ROW),
    "softmax": (nn.Softmax(-1), ROW),
    "softmax over channels": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1)), IMAGE),
    "product": (Of(lambda x, a, b: a(x) * b(x), nn.Linear(12, 4), nn.Linear(12, 4)), ROW),
    "slice of channels": (Of(lambda x, c: c(x)[:, 1:3], nn.Conv2d(3, 4, 3)), IMAGE),
    "cat of channels": (
        Of(lambda x, c, d: torch.cat([c(x), d(x), x[:, :, 1:-1, 1:-1]], 1), nn.Conv2d(3, 4, 3), nn.Conv2d(3, 2, 3)),
        IMAGE,
    ),
    "transposed": (Of(lambda x, c, out: out(c(x).permute(0, 2, 3, 1)), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)), IMAGE),
    "space as time": (
        Of(lambda x, c, f: f(c(x).flatten(2).transpose(1, 2)), nn.Conv2d(3, 8, 3), nn.Linear(8, 2)),
        IMAGE,
    ),
    "expand": (Of(lambda x, c: c(x).mean((2, 3), keepdim=True).expand(-1, -1, 2, 3), nn.Conv2d(3, 4, 3)), IMAGE),
    "layer norm": (nn.LayerNorm(8), SEQUENCE),
    "layer norm of the image": (nn.LayerNorm([9, 8], elementwise_affine=False), IMAGE),
    "group norm": (nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 2, 1)), IMAGE),
    "group norm of rows": (nn.GroupNorm(4, 12), ROW),
    "attention": (Attention(causal=False), SEQUENCE),
    "causal attention": (Attention(causal=True), SEQUENCE),
    "gru": (Of(lambda x, g, out: out(g(x)[0]), nn.GRU(8, 6, 2, batch_first=True), nn.Linear(6, 3)), SEQUENCE),
    "gru without bias, its end": (Of(lambda x, g: g(x)[1][0], nn.GRU(8, 6, bias=False, batch_first=True)), SEQUENCE),
    "gru from a state": (
        Of(lambda x, g, i: g(x, i(x[:, 0])[None])[0], nn.GRU(8, 6, batch_first=True), nn.Linear(8, 6)),
        SEQUENCE,
    ),
    "lstm": (Of(lambda x, m, out: out(m(x)[0][:, -1]), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)), SEQUENCE),
    "lstm, its cells": (Of(lambda x, m: m(x)[1][1][1], nn.LSTM(8, 6, 2, batch_first=True)), SEQUENCE),
}  # fmt: skip


@functools.cache
def captured(name):
    """Of a case: the model as captured, inputs, and PyTorch's answer."""
    torch.manual_seed(0)
    module, shape = CASES[name]
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.normal_(layer.weight)
    x = torch.randn(ROWS, *shape)
    with torch.no_grad():
        return captured_model(module.eval(), x), x.numpy(), module(x).numpy()


def predicted(model, x, batch=1):
    return Runner.of(write_tflite(model, batch=batch), ".tflite").predict(x)


@pytest.mark.parametrize("name", CASES)
def test_float_equals_torch(name):
    model, x, expected = captured(name)
    for one in (model, fold(model)):
        for batch in (0, 1, 2):
            np.testing.assert_allclose(predicted(one, x, batch), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("bits", "activations"), [(8, True), (4, True), (8, False), (4, False)])
@pytest.mark.parametrize("name", CASES)
def test_integers_equal_the_rounded_graph(name, bits, activations):
    model, x, _ = captured(name)
    model = fold(model)
    quantised = quantise(model, calibrate(model, [x]), weight_bits=bits, activations=activations)
    got = predicted(quantised, x)
    grid = quantised.quants.get(model.graph.outputs[0])
    # A step where a float32 sum lies between two, and one more where such a step came before. LiteRT's convolutions of
    # 4-bit weights round twice, which is a step more in each.
    steps = 2.01 if bits == 8 or not activations else 4.01
    allowed = steps * float(grid.scale[0]) if grid else steps_inside(quantised)
    assert abs(got - predict_rounded(quantised, x)).max() <= allowed + 2e-5


def steps_inside(quantised):
    """What a float32 output may differ by where a step of a grid before it does."""
    inside = [float(one.scale[0]) for name, one in quantised.quants.items() if name not in quantised.model.weights]
    return 2 * max(inside, default=0.0)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_windows_of_any_geometry(data):
    """PyTorch's padding is said exactly, whether TFLite has it or not; also where a pad meets negative numbers."""
    kernel = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    size = tuple(data.draw(st.integers(k, k + 6)) for k in kernel)
    groups = data.draw(st.sampled_from([1, 2, 4]))
    x = torch.randn(2, 4, *size) - 1
    layer = data.draw(
        st.sampled_from(
            [
                nn.Conv2d(4, 8, kernel, stride, padding, groups=groups),
                nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(kernel, stride, padding)),
                nn.AvgPool2d(kernel, stride),
            ]
        )
    )
    with torch.no_grad():
        expected = layer(x).numpy()
    model = fold(captured_model(layer, x))
    np.testing.assert_allclose(predicted(model, x.numpy()), expected, atol=1e-5)
    quantised = quantise(model, calibrate(model, [x.numpy()]))
    step = float(quantised.quants[model.graph.outputs[0]].scale[0])
    assert abs(predicted(quantised, x.numpy()) - predict_rounded(quantised, x.numpy())).max() <= 1.01 * step


# What PyTorch's capture does not make, but passes do: op, attributes, shape of the output for (rows, 6, 5).
MADE = [
    ("exp", {}, (6, 5)),
    ("clip", {"low": 0.0, "high": 1.0}, (6, 5)),
    ("clip", {"low": -1.0, "high": 1.0}, (6, 5)),
    ("clip", {"low": -0.5, "high": 0.25}, (6, 5)),
    ("pad", {"dim": 2, "start": 1, "size": 8}, (6, 8)),
    ("scale", {"by": 0.25, "plus": 0.0}, (6, 5)),
    ("detach", {}, (6, 5)),
]


def graph_of(*nodes, shape):
    """A model whose nodes go from x (rows, 6, 5) to y (rows, *shape)."""
    values = {"x": Value("x", (BATCH, 6, 5)), "y": Value("y", (BATCH, *shape))}
    return FloatModel(Graph(values, ("x",), (), nodes, ("y",)), {}, BATCH)


@pytest.mark.parametrize(("op", "attributes", "shape"), MADE)
def test_ops_that_passes_make(op, attributes, shape):
    model = graph_of(Node(op, ("x",), ("y",), attributes), shape=shape)
    x = np.random.default_rng(0).normal(size=(ROWS, 6, 5)).astype(np.float32)
    for batch in (0, 1):
        np.testing.assert_allclose(predicted(model, x, batch), predict(model, x), atol=1e-6)
    quantised = quantise(model, calibrate(model, [x]))
    step = max(float(one.scale[0]) for one in quantised.quants.values()) if quantised.quants else 0
    assert abs(predicted(quantised, x) - predict_rounded(quantised, x)).max() <= 1.01 * step + 1e-6
