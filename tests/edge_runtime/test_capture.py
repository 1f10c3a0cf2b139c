"""Capture and the NumPy oracle against PyTorch: every op, whole models, and what is refused.

A module is run by PyTorch in float64, its captured graph by `engine/reference/` in float64: they agree to rounding.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edge_runtime.capture.aten import ATEN
from edge_runtime.capture.capture import capture
from edge_runtime.engine import reference
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.graph import Value
from edge_runtime.ir.ops import OPS
from edge_runtime.ir.text import to_text
from simulations import models

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*deprecated.*:FutureWarning"
)  # torch.export calling torch.utils._pytree


class Apply(nn.Module):
    """A module from a function of (self, x), with parameters given by name."""

    def __init__(self, function, **members):
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, x):
        return self.function(self, x)


class Moving(nn.Module):
    """Keeps a moving sum of its own, which is no batch norm's."""

    def __init__(self):
        super().__init__()
        self.register_buffer("sum", torch.zeros(6))

    def forward(self, x):
        self.sum += x.mean((0, 1))
        return x + self.sum


def change(y, function):
    function(y)
    return y


def image(channels: int = 4, side: int = 9) -> torch.Tensor:
    return torch.randn(3, channels, side, side)


def sequence(width: int = 6) -> torch.Tensor:
    return torch.randn(3, 5, width)


CASES = {
    "linear": (nn.Linear(6, 4), sequence()),
    "linear without bias": (nn.Linear(6, 4, bias=False), sequence()),
    "conv": (nn.Conv2d(4, 6, 3, padding=1), image()),
    "conv stride, no bias": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), image()),
    "conv 1x1": (nn.Conv2d(4, 8, 1), image()),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), image()),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), image()),
    "activations": (
        nn.Sequential(nn.ReLU(), nn.GELU(), nn.Sigmoid(), nn.SiLU(), nn.Tanh(), nn.ReLU6(), nn.Hardtanh(0, 6)),
        sequence(),
    ),
    "max pool": (nn.MaxPool2d(3, stride=2, padding=1), image()),
    "average pool": (nn.AvgPool2d(2), image()),
    "adaptive pool to 1": (nn.AdaptiveAvgPool2d(1), image()),
    "detach, expand and sum": (
        Apply(lambda m, x: m.p.expand(3, -1, -1) + x.detach().sum(1, keepdim=True), p=nn.Parameter(torch.randn(5, 1))),
        sequence(),
    ),
    "small functions": (
        Apply(lambda _, x: torch.stack([x**2, -x, 1 - x, x.clamp(min=0), torch.zeros_like(x)]).unflatten(-1, (2, 3))),
        sequence(),
    ),
    "adaptive max pool": (nn.AdaptiveMaxPool2d(3), image()),
    "adaptive pool to 3": (nn.AdaptiveAvgPool2d(3), image()),
    "mean": (Apply(lambda _, x: x.mean((2, 3)) + x.mean(1, keepdim=True).mean((-1, -2))), image()),
    "batch norm": (nn.BatchNorm2d(4), image()),
    "batch norm, frozen": (nn.BatchNorm2d(4).eval(), image()),
    "batch norm over rows": (nn.BatchNorm1d(6), torch.randn(8, 6)),
    "group norm": (nn.GroupNorm(2, 4), image()),
    "layer norm": (nn.LayerNorm(6), sequence()),
    "layer norm over two dims": (nn.LayerNorm((5, 6)), sequence()),
    "layer norm, no weights": (nn.LayerNorm(6, elementwise_affine=False), sequence()),
    "embedding": (nn.Embedding(11, 4), torch.randint(0, 11, (3, 5))),
    "attention": (Apply(lambda _, x: functional.scaled_dot_product_attention(x, 2 * x, x + 1)), sequence()),
    "causal attention": (
        Apply(lambda _, x: functional.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3)),
        torch.randn(2, 3, 5, 4),
    ),
    "softmax": (nn.Softmax(dim=1), sequence()),
    "arithmetic": (Apply(lambda _, x: (x + 1) * x - x * 0.5 + torch.sub(x, x, alpha=3) / 4 - 2), sequence()),
    "broadcast": (Apply(lambda m, x: x + m.p, p=nn.Parameter(torch.randn(5, 1))), sequence()),
    "cat and slices": (Apply(lambda _, x: torch.cat([x[:, 1:3], x[:, :1], x[:, -2:]], dim=1)), sequence()),
    "views": (
        Apply(lambda _, x: x.flatten(1).view(3, 6, -1).unsqueeze(0).squeeze(0).transpose(1, 2).reshape(3, 30)),
        sequence(),
    ),
    "permute, unbind, chunk, split": (
        Apply(
            lambda _, x: sum([*x.permute(2, 0, 1).unbind(0)[:2], x.chunk(4, -1)[2][..., 0], x.split(4, -1)[1][..., 1]])
        ),
        sequence(),
    ),
    "gru": (Apply(lambda m, x: m.g(x)[0], g=nn.GRU(6, 4, batch_first=True)), sequence()),
    "two-layer gru, time first": (Apply(lambda m, x: m.g(x)[0] + m.g(x)[1][1], g=nn.GRU(6, 4, 2)), sequence()),
    "lstm": (
        Apply(lambda m, x: m.g(x)[0] + m.g(x)[1][1].transpose(0, 1), g=nn.LSTM(6, 4, batch_first=True)),
        sequence(),
    ),
    "dropout that does nothing": (nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.5).eval()), sequence()),
    "lenet": (models.LeNet(), torch.randn(2, 1, 28, 28)),
    "resnet8": (models.ResNet8(), torch.randn(2, 3, 32, 32)),
    "mobilenet": (models.MobileNetV2Small(), torch.randn(2, 3, 32, 32)),
    "gru model": (models.CharGRU(80, 64, 64), torch.randint(0, 80, (2, 64))),
    "transformer": (models.CharTransformer(80), torch.randint(0, 80, (2, 64))),
}


@pytest.mark.parametrize("name", CASES)
def test_the_captured_graph_computes_what_the_module_computes(name):
    module, x = CASES[name]
    graph = capture(module, x)
    double = module.double()
    x = x.double() if x.is_floating_point() else x
    tensors = {key: value.numpy().copy() for key, value in double.state_dict().items()}
    values = reference.run(graph, {graph.inputs[0]: x.numpy(), "rows": np.array([len(x)]), **tensors})
    with torch.no_grad():
        expected = double(x).numpy()
    np.testing.assert_allclose(values[graph.outputs[0]], expected, rtol=1e-9, atol=1e-9)
    for key, value in double.state_dict().items():  # running statistics moved alike, all else stayed
        if key in values:
            np.testing.assert_allclose(values[key], value.numpy(), rtol=1e-9, atol=1e-12, err_msg=key)
    module.float()


MADE_BY_PASSES = {
    *(name for name in OPS if name.endswith(("_grad", "_dx", "_dw", "_gates"))),
    *("clip", "exp", "pad"),
    *("cross_entropy", "distill", "focal", "pair_loss"),
    *("accumulate", "adagrad", "adam", "clear", "clip_scale", "proximal", "rmsprop", "sgd", "square_sum"),
    *("check_finite", "fake_quant", "fake_quant_weight"),
}


def test_the_cases_cover_every_op_that_a_model_can_hold():
    modules = [*CASES.values(), (nn.Dropout(0.5), sequence())]
    captured = {node.op for module, x in modules for node in capture(module, x).nodes}
    assert captured == OPS.keys() - MADE_BY_PASSES


def test_training_batch_norm_needs_to_know_how_many_rows_are_real():
    trained, frozen = (capture(CASES[name][0], image()) for name in ("batch norm", "batch norm, frozen"))
    assert trained.inputs == ("input", "rows")
    assert trained.values["rows"] == Value("rows", (1,), "i64")
    assert frozen.inputs == ("input",)
    assert [node.op for node in frozen.nodes] == ["batch_norm_apply"]


def test_dropout_zeroes_its_share_and_scales_the_rest_each_layer_by_its_own_mask():
    module = Apply(lambda m, x: torch.cat([m.a(x), m.b(x)]), a=nn.Dropout(0.25), b=nn.Dropout(0.25))
    x = torch.rand(40, 50, dtype=torch.float64) + 1
    graph = capture(module, x.float())
    assert graph.inputs == ("x", "random")

    def run(seed, step):
        values = reference.run(graph, {"x": x.numpy(), "random": np.array([seed, step, 0])})
        return np.split(values[graph.outputs[0]], 2)

    one, other = run(seed=5, step=0)
    for y in (one, other, module(x).numpy()[:40]):  # the last is PyTorch's
        assert 0.2 < (y == 0).mean() < 0.3
        np.testing.assert_allclose(y, np.where(y == 0, 0, x.numpy() / 0.75))
    assert (one != other).mean() > 0.3  # independent masks differ at 2 * 0.25 * 0.75 of all places
    assert (one != run(seed=5, step=1)[0]).mean() > 0.3
    assert (one != run(seed=6, step=0)[0]).mean() > 0.3
    assert (one == run(seed=5, step=0)[0]).all()


REFUSED = {
    "dilated conv": (nn.Conv2d(4, 4, 3, dilation=2), image(), "dilation"),
    "conv1d": (nn.Conv1d(6, 4, 3), torch.randn(3, 6, 9), "Conv2d"),
    "ceil mode": (nn.MaxPool2d(2, ceil_mode=True), image(), "ceil_mode"),
    "tanh gelu": (nn.GELU(approximate="tanh"), sequence(), "exact gelu"),
    "hardtanh": (nn.Hardtanh(), sequence(), "ReLU6"),
    "two directions": (Apply(lambda m, x: m.g(x)[0], g=nn.GRU(6, 4, bidirectional=True)), sequence(), "one direction"),
    "padding index": (nn.Embedding(11, 4, padding_idx=0), torch.randint(0, 11, (3, 5)), "plain embedding"),
    "a column changed in place": (Apply(lambda _, x: change(x * 2, lambda y: y[:, 0].add_(1))), sequence(), "in place"),
    "a view changed in place": (
        Apply(lambda _, x: change(x * 2, lambda y: functional.relu(y.view(-1), inplace=True))),
        sequence(),
        "in place",
    ),
    "an item changed in place": (
        Apply(lambda _, x: change(x * 2, lambda y: y.unbind(0)[0].mul_(2))),
        sequence(),
        "in p",
    ),
    "an input changed in place": (Apply(lambda _, x: x.add_(1)), sequence(), "in place"),
    "a buffer changed in place": (Moving(), sequence(), "in place"),
    "a token that is calculated with": (
        Apply(lambda m, x: m.e(x + 1), e=nn.Embedding(9, 4)),
        torch.randint(0, 8, (3, 5)),
        "it computes with f32",
    ),
    "another precision": (Apply(lambda _, x: x.double().float()), sequence(), "float64"),
    "a tensor that is no buffer": (Apply(lambda _, x: x + torch.tensor([1.0])), sequence(), "register_buffer"),
    "unknown op": (Apply(lambda _, x: torch.cumsum(x, 0)), sequence(), "cumsum"),
    "double precision": (nn.Linear(6, 4).double(), sequence().double(), "float64"),
    "certain dropout": (nn.Dropout(1.0), sequence(), "below 1"),
    "control flow": (Apply(lambda _, x: x if x.sum() > 0 else -x), sequence(), "cannot trace"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exact_is_refused_with_the_way_out(name):
    module, x, hint = REFUSED[name]
    with pytest.raises(UnsupportedOpError, match=hint):
        capture(module, x)


def test_a_refusal_names_the_users_line():
    class Running(nn.Module):
        def forward(self, x):
            return torch.cumsum(x, 0)

    with pytest.raises(UnsupportedOpError) as refusal:
        capture(Running(), sequence())
    assert "test_capture.py:" in str(refusal.value)
    assert "torch.cumsum(x, 0)" in str(refusal.value)


def test_every_row_of_the_table_is_an_op_of_pytorch():
    for name in ATEN:
        packet, _, overload = name.partition(".")
        assert hasattr(getattr(torch.ops.aten, packet), overload), name


def test_text_of_a_small_network_is_stable():
    module = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))
    assert to_text(capture(module, torch.zeros(3, 1, 4, 4))) == (
        "input input: f32[3,1,4,4]\n"
        "input rows: i64[1]\n"
        "state 0.weight: f32[2,1,3,3]\n"
        "state 0.bias: f32[2]\n"
        "state 1.weight: f32[2]\n"
        "state 1.bias: f32[2]\n"
        "state 4.weight: f32[5,32]\n"
        "state 4.bias: f32[5]\n"
        "state 1.running_mean: f32[2]\n"
        "state 1.running_var: f32[2]\n"
        "conv2d: f32[3,2,4,4] = conv2d(input, 0.weight, 0.bias) groups=1 padding=(1, 1) stride=(1, 1)\n"
        "batch_norm: f32[3,2,4,4], batch_norm.1: f32[2], batch_norm.2: f32[2]"
        " = batch_norm(conv2d, 1.weight, 1.bias, rows) batch=3 eps=1e-05\n"
        "running_stats(batch_norm.1, batch_norm.2, rows, 1.running_mean, 1.running_var)"
        " batch=3 momentum=0.1 shape=(3, 2, 4, 4) writes 1.running_mean, 1.running_var\n"
        "relu: f32[3,2,4,4] = relu(batch_norm)\n"
        "flatten: f32[3,32] = reshape(relu) shape=(3, 32)\n"
        "linear: f32[3,5] = linear(flatten, 4.weight, 4.bias)\n"
        "output linear\n"
    )
