"""Every gradient rule and every loss against PyTorch's autograd, in float64.

A small module is captured, its gradient graph built and run by the NumPy oracle; PyTorch runs the same module in
float64. Both sides of a rule are then the same numbers to rounding, so a tolerance of 1e-9 hides no wrong term.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import edge_runtime as er
from edge_runtime import losses
from edge_runtime.capture.capture import capture
from edge_runtime.engine import reference
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.builder import Builder
from edge_runtime.ir.ops import OPS
from edge_runtime.ir.verify import verify
from edge_runtime.passes.autodiff import emit_backward
from edge_runtime.passes.gradients import GRADIENTS
from edge_runtime.passes.pipeline import simplify
from edge_runtime.passes.training import LOG_VARIANCES, Recipe, gradient_graph
from edge_runtime.train import torch_losses

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")  # torch.export in torch.utils._pytree

RANDOM = np.array([7, 3, 0])  # seed, step, first row


class Apply(nn.Module):
    """A module from a function of (self, *inputs), with parts given by name."""

    def __init__(self, function, **members):
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))))


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def tokens(*shape: int, below: int = 5) -> torch.Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(1))


IMAGE, SEQUENCE, FLAT = (3, 4, 6, 6), (3, 5, 6), (3, 6)
attention = functional.scaled_dot_product_attention

# A module, its inputs. Each starts at a weight, so that the rule's gradient of its input is part of what is compared.
CASES = {
    "linear": (nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4, bias=False)), SEQUENCE),
    "detach": (Apply(lambda m, x: m.l(x) * m.l(x).detach(), l=nn.Linear(6, 5)), FLAT),
    "sum": (Apply(lambda m, x: m.l(x).sum(1) * m.l(x).sum(1, keepdim=True)[:, 0], l=nn.Linear(6, 5)), SEQUENCE),
    "expand": (Apply(lambda m, x: x * m.p.expand(len(x), -1), p=nn.Parameter(randn(1, 6))), FLAT),
    "linear of one vector a row": (nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), FLAT),
    "conv": (nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 2, (2, 3), (1, 2), (0, 1), bias=False)), IMAGE),
    "conv 1x1, depthwise, grouped": (
        nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.Conv2d(8, 6, 2, groups=2)),
        IMAGE,
    ),
    **{
        f"{kind.__name__}": (nn.Sequential(nn.Linear(6, 6), kind(), nn.Linear(6, 4)), SEQUENCE)
        for kind in (nn.GELU, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Tanh)
    },
    "ReLU6": (Apply(lambda m, x: functional.relu6(m.w * x * 5), w=weight(6)), SEQUENCE),
    "max pool": (nn.Sequential(nn.Conv2d(4, 4, 3), nn.MaxPool2d(3, 2, 1)), IMAGE),
    "overlapping max pool": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(3, 1)), IMAGE),
    "average pool": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.AvgPool2d(2), nn.Conv2d(4, 2, 1)), IMAGE),
    "overlapping average pool": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.AvgPool2d(3, 1)), IMAGE),
    "mean": (
        Apply(lambda m, x: (m.w * x).mean((2, 3)) + (m.w * x).mean(1, keepdim=True).mean((-1, -2)), w=weight(6)),
        IMAGE,
    ),
    "softmax": (Apply(lambda m, x: (m.w * x).softmax(1) * (m.w * x).softmax(-1), w=weight(6)), SEQUENCE),
    "batch norm": (nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)), IMAGE),
    "batch norm over rows": (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)), (8, 6)),
    "batch norm, frozen": (nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3).eval(), nn.Conv2d(3, 2, 1)), IMAGE),
    "group norm": (nn.Sequential(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 2, 1)), IMAGE),
    "layer norm": (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 4)), SEQUENCE),
    "layer norm over two dims": (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm((5, 6)), nn.Linear(6, 4)), SEQUENCE),
    "layer norm, no weights": (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6, elementwise_affine=False)), SEQUENCE),
    "layer norm, no bias": (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6, bias=False)), SEQUENCE),
    "embedding": (nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 4)), tokens(3, 5)),
    "attention": (
        Apply(lambda m, x: attention(m.q(x), m.k(x), m.v(x)), q=nn.Linear(6, 4), k=nn.Linear(6, 4), v=nn.Linear(6, 3)),
        SEQUENCE,
    ),
    "causal attention, keys alone trained": (
        Apply(lambda m, x: attention(x, m.k(x), x, is_causal=True, scale=0.3), k=nn.Linear(6, 6)),
        SEQUENCE,
    ),
    "gru": (Apply(lambda m, x: m.g(m.l(x))[0], l=nn.Linear(6, 6), g=nn.GRU(6, 4, batch_first=True)), SEQUENCE),
    "gru, its final state": (Apply(lambda m, x: m.g(x)[1][0], g=nn.GRU(6, 4, batch_first=True)), SEQUENCE),
    "gru, outputs and final state, no bias": (
        Apply(lambda m, x: m.g(x)[0] * m.g(x)[1].transpose(0, 1), g=nn.GRU(6, 4, bias=False, batch_first=True)),
        SEQUENCE,
    ),
    "gru, trained initial state, two layers, time first": (
        Apply(lambda m, x: m.g(x, m.h.tanh())[0], g=nn.GRU(6, 4, 2), h=weight(2, 5, 4)),
        SEQUENCE,
    ),
    "lstm": (Apply(lambda m, x: m.g(m.l(x))[0], l=nn.Linear(6, 6), g=nn.LSTM(6, 4, batch_first=True)), SEQUENCE),
    "lstm, its final cell": (Apply(lambda m, x: m.g(x)[1][1][0], g=nn.LSTM(6, 4, batch_first=True)), SEQUENCE),
    "lstm, all it gives": (
        Apply(
            lambda m, x: torch.cat([m.g(x)[0], *(s.transpose(0, 1) for s in m.g(x)[1])], 1),
            g=nn.LSTM(6, 4, batch_first=True, bias=False),
        ),
        SEQUENCE,
    ),
    "arithmetic": (Apply(lambda m, x: (m.w * x + 1) * m.w - (m.w * x) * 0.5 - m.w / 4, w=weight(6)), SEQUENCE),
    "a product with itself": (Apply(lambda m, x: (m.w + x) * (m.w + x), w=weight(6)), SEQUENCE),
    "broadcast add and mul": (
        Apply(
            lambda m, x: (x + m.a) * m.b + m.c * (m.d + x), a=weight(5, 1), b=weight(6), c=weight(1, 1, 6), d=weight(1)
        ),
        SEQUENCE,
    ),
    "broadcast of both sides": (
        Apply(lambda m, x: x * (m.a * m.b + m.c), a=weight(5, 1), b=weight(1, 6), c=weight(1)),
        SEQUENCE,
    ),
    "cat and slices": (
        Apply(lambda m, x: torch.cat([(m.w * x)[:, 1:3], m.w * x, (m.w * x)[:, -1:]], 1), w=weight(6)),
        SEQUENCE,
    ),
    "one value in a cat twice": (
        Apply(lambda m, x: (lambda y: torch.cat([y, x, y], 2))(m.w * x), w=weight(6)),
        SEQUENCE,
    ),
    "views": (
        Apply(lambda m, x: (m.w * x).flatten(1).view(3, 6, -1).transpose(1, 2).reshape(3, 30), w=weight(6)),
        SEQUENCE,
    ),
    "permute, unbind, chunk": (
        Apply(
            lambda m, x: (lambda y: y.permute(2, 0, 1).unbind(0)[1] + y.chunk(4, -1)[2][..., 0])(m.w * x), w=weight(6)
        ),
        SEQUENCE,
    ),
    "a weight seen through views": (Apply(lambda m, x: x * m.w.view(3, 6)[1], w=weight(18)), SEQUENCE),
    "a weight used twice": (Apply(lambda m, x: m.l(torch.tanh(m.l(x))), l=nn.Linear(6, 6)), SEQUENCE),
    "tied embedding": (
        Apply(lambda m, x: functional.linear(m.e(x).tanh(), m.e.weight), e=nn.Embedding(5, 6)),
        tokens(3, 5),
    ),
    "residual branches": (
        Apply(
            lambda m, x: (lambda y: y + m.b(torch.relu(y + m.c(y))))(m.a(x)),
            a=nn.Conv2d(4, 4, 1),
            b=nn.Conv2d(4, 4, 3, padding=1),
            c=nn.Conv2d(4, 4, 3, padding=1, groups=4),
        ),
        IMAGE,
    ),
    "two inputs": (
        Apply(lambda m, x, y: m.l(x) + m.r(y).mean(1, keepdim=True), l=nn.Linear(6, 4), r=nn.Linear(6, 4)),
        SEQUENCE,
        SEQUENCE,
    ),
}


def inputs_of(case) -> list[torch.Tensor]:
    return [one if isinstance(one, torch.Tensor) else randn(*one) for one in case[1:]]


def compare(module, inputs, loss, targets, trainable=None) -> set[str]:
    """Hold loss and gradients of the graph against autograd; returns the ops of the graph."""
    forward = simplify(capture(module, *inputs))
    names = tuple(trainable or (name for name, _ in module.named_parameters()))
    graph = gradient_graph(forward, Recipe(loss, er.SGD(), names), len(inputs[0]))
    verify(graph)
    parts = losses.terms(loss)
    targets = [target.double() if target.is_floating_point() else target for target in targets]
    module = module.double()
    given = {
        **{name: tensor.numpy().copy() for name, tensor in module.state_dict().items()},
        **dict(zip([name for name in graph.inputs if name not in SCALARS], [x.numpy() for x in inputs], strict=False)),
        **{f"target.{k}": target.numpy() for k, target in enumerate(targets)},
        **norms(parts, targets),
        "rows": np.array([len(inputs[0])]),
        "share": np.ones(1),
        "random": RANDOM,
    }
    for k, part in enumerate(parts):
        if getattr(part.loss, "class_weights", ()):
            given[f"loss.class_weights.{k}"] = np.array(part.loss.class_weights)
    got = reference.run(graph, {name: doubled(given[name]) for name in (*graph.inputs, *graph.state)})

    weights = {name: parameter for name, parameter in module.named_parameters() if name in names}
    outputs = module(*(x.double() if x.is_floating_point() else x for x in inputs))
    expected = torch_loss(loss, outputs if isinstance(outputs, tuple) else (outputs,), targets)
    gradients = torch.autograd.grad(expected, list(weights.values()))
    np.testing.assert_allclose(got[graph.outputs[0]], [expected.item()], rtol=1e-9, atol=1e-12)
    for name, output, gradient in zip(names, graph.outputs[1:], gradients, strict=True):
        np.testing.assert_allclose(got[output], gradient.numpy(), rtol=1e-9, atol=1e-9, err_msg=name)
        assert got[output].shape == tuple(weights[name].shape)
    module.float()
    return {node.op for node in graph.nodes}


def norms(parts, targets) -> dict[str, np.ndarray]:
    """What each term of a loss is multiplied by: one over what it counts."""
    counts = [losses.denominator(p.loss, target.numpy()) for p, target in zip(parts, targets, strict=True)]
    return {f"norm.{k}": 1 / np.array([count]) for k, count in enumerate(counts)}


SCALARS = {"rows", "random", "share"}


def doubled(array):
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def torch_loss(loss, outputs, targets, log_variances=None):
    total = torch.zeros((), dtype=torch.float64)
    for k, (term, target) in enumerate(zip(losses.terms(loss), targets, strict=True)):
        z = outputs[term.output]
        value = term.weight * torch_losses.mean_loss(term.loss, z, torch_losses.fitted(term.loss, z, target))
        total += value if log_variances is None else torch.exp(-log_variances[k]) * value + log_variances[k]
    return total


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_autograd(name):
    module, inputs = CASES[name][0], inputs_of(CASES[name])
    outputs = module(*inputs)
    compare(module, inputs, er.MSE(), [torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2))])


CLASSES = tokens(3, 5, below=4)
SOME_IGNORED = torch.where(CLASSES == 1, -7, CLASSES)
LOGITS = randn(3, 5, 4)
LOSSES = {
    "cross_entropy": (er.CrossEntropy(), [CLASSES]),
    "cross_entropy, smoothed": (er.CrossEntropy(label_smoothing=0.2), [CLASSES]),
    "cross_entropy, weighted, some ignored": (
        er.CrossEntropy(0.1, class_weights=(0.5, 2.0, 1.0, 0.25), ignore_index=-7),
        [SOME_IGNORED],
    ),
    "focal": (er.Focal(), [CLASSES]),
    "focal, weighted, some ignored": (er.Focal(1.5, (0.5, 2.0, 1.0, 0.25), -7), [SOME_IGNORED]),
    "focal with gamma 0": (er.Focal(0.0), [CLASSES]),
    "kl": (er.KLDivergence(3.0), [LOGITS]),
    "distillation": (er.Distillation(0.25, 2.0, 0.1), [CLASSES, LOGITS]),
    "bce": (er.BCEWithLogits(), [LOGITS.sigmoid()]),
    "mse": (er.MSE(), [LOGITS]),
    "l1": (er.L1(), [LOGITS]),
    "huber": (er.Huber(0.7), [LOGITS]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_are_those_of_pytorch(name):
    loss, targets = LOSSES[name]
    compare(nn.Linear(6, 4), [randn(*SEQUENCE)], loss, targets)


def test_every_loss_is_compared():
    compared = {type(loss) for loss, _ in LOSSES.values()}
    assert compared | {er.MultiTask} == {*losses.SingleLoss.__args__, er.Distillation, er.MultiTask}


def two_heads() -> nn.Module:
    return Apply(
        lambda m, x: (m.a(torch.tanh(m.trunk(x))), m.b(torch.tanh(m.trunk(x)))),
        trunk=nn.Linear(6, 6),
        a=nn.Linear(6, 4),
        b=nn.Linear(6, 2),
    )


TASKS = (er.CrossEntropy(0.1), er.Huber())
TASK_TARGETS = [CLASSES, randn(3, 5, 2)]


def test_two_outputs_with_fixed_weights_add_their_gradients():
    compare(two_heads(), [randn(*SEQUENCE)], er.MultiTask(TASKS, weights=(0.25, 3.0)), TASK_TARGETS)


def test_learned_variances_weigh_the_losses_and_get_gradients_of_their_own():
    loss = er.MultiTask(TASKS, weights=(0.5, 2.0), learned=True)
    s = np.array([0.3, -0.7])
    module, x = two_heads(), randn(*SEQUENCE)
    forward = capture(module, x)
    names = tuple(name for name, _ in module.named_parameters())
    graph = gradient_graph(forward, Recipe(loss, er.SGD(), (*names, LOG_VARIANCES)), 3)
    given = {name: tensor.numpy().astype(np.float64) for name, tensor in module.state_dict().items()}
    given |= {forward.inputs[0]: x.double().numpy(), LOG_VARIANCES: s, "rows": np.array([3]), "share": np.ones(1)}
    for k, (term, target) in enumerate(zip(losses.terms(loss), TASK_TARGETS, strict=True)):
        given[f"target.{k}"] = doubled(target.numpy())
        given[f"norm.{k}"] = 1 / np.array([losses.denominator(term.loss, target.numpy())])
    got = reference.run(graph, given)

    module, variances = module.double(), torch.tensor(s, requires_grad=True)
    expected = torch_loss(loss, module(x.double()), TASK_TARGETS, variances)
    gradients = torch.autograd.grad(expected, [*module.parameters(), variances])
    for output, number in zip(graph.outputs, [expected.detach()[None], *gradients], strict=True):
        np.testing.assert_allclose(got[output], number.numpy(), rtol=1e-9, atol=1e-12)


def test_dropout_sends_gradients_through_the_mask_of_the_forward_pass():
    x, y = randn(3, 6), randn(3, 4)
    module = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.4), nn.Linear(8, 4))
    mask = torch.from_numpy(reference.FORWARD["dropout"](np.ones((3, 8)), RANDOM, batch=3, id=0, p=0.4))
    assert 0 < (mask == 0).sum() < mask.numel()
    graph = gradient_graph(capture(module, x), Recipe(er.MSE(), er.SGD(), ("0.weight", "2.weight")), 3)
    given = {name: tensor.numpy().astype(np.float64) for name, tensor in module.state_dict().items()}
    given |= {"input": x.double().numpy(), "target.0": y.double().numpy(), "norm.0": np.array([1 / 12])}
    got = reference.run(graph, given | {"rows": np.array([3]), "random": RANDOM})

    module = module.double()
    expected = functional.mse_loss(module[2](mask * module[0](x.double())), y.double())
    gradients = torch.autograd.grad(expected, [module[0].weight, module[2].weight])
    for output, gradient in zip(graph.outputs[1:], gradients, strict=True):
        np.testing.assert_allclose(got[output], gradient.numpy(), rtol=1e-9, atol=1e-12)


def test_a_sum_spreads_its_gradient():
    b = Builder(batch=2)
    w, x = b.state("w", (4,)), b.input("x", (2, 3, 4))
    b.hint = "y"
    y = b.emit("sum", b.emit("mul", x, w), dims=(1,), keepdim=False)
    loss = b.emit("sum", b.emit("reshape", b.emit("mul", y, y), shape=(8,)), dims=(0,), keepdim=True)
    found = {}
    emit_backward(b, loss, ("w",), found.__setitem__)
    given = {"w": weight(4).detach().double(), "x": randn(2, 3, 4).double()}
    got = reference.run(verify(b.finish([found["w"]])), {name: tensor.numpy() for name, tensor in given.items()})
    w = given["w"].requires_grad_()
    (gradient,) = torch.autograd.grad(((given["x"] * w).sum(1) ** 2).sum(), [w])
    np.testing.assert_allclose(got[found["w"]], gradient.numpy(), rtol=1e-9)


# What stands in no model between a loss and a weight: gradients themselves, updates, checks, bookkeeping.
NEVER_DIFFERENTIATED = {
    *(name for name in OPS if name.endswith(("_grad", "_dx", "_dw", "_gates"))),
    *("accumulate", "adagrad", "adam", "clear", "clip_scale", "proximal", "rmsprop", "sgd", "square_sum"),
    *("check_finite", "clip", "pad", "running_stats"),
}


def test_every_differentiable_op_has_a_rule():
    assert OPS.keys() - NEVER_DIFFERENTIATED == GRADIENTS.keys()


def test_the_cases_use_every_rule(monkeypatch):
    used = set()
    for op, rule in list(GRADIENTS.items()):
        monkeypatch.setitem(GRADIENTS, op, lambda *a, op=op, rule=rule: (used.add(op), rule(*a))[1])
    for case in CASES.values():
        module, inputs = case[0], inputs_of(case)
        forward = capture(module, *inputs)
        names = tuple(name for name, _ in module.named_parameters())
        gradient_graph(forward, Recipe(er.MSE(), er.SGD(), names), len(inputs[0]))
    # The others have tests of their own above; zeros are where gradients end.
    elsewhere = {"fake_quant", "fake_quant_weight"}  # test_fake_quant.py: their gradients are not derivatives
    assert used == GRADIENTS.keys() - elsewhere - {"dropout", "exp", "zeros", "cross_entropy", "focal", "distill"}


def test_an_op_without_a_rule_is_refused_with_its_name_where_it_lies_on_the_path():
    b = Builder(batch=2)
    w, x = b.state("w", (4,)), b.input("x", (2, 4))
    b.hint = "y"
    y = b.emit("mul", b.emit("clip", x, low=-1.0, high=1.0), w)  # not on the path: no weight before it
    loss = b.emit("sum", b.emit("reshape", y, shape=(8,)), dims=(0,), keepdim=True)
    emit_backward(Builder(b.finish([loss])), loss, ("w",), lambda *_: None)
    loss = b.emit("clip", loss, low=-1.0, high=1.0)
    with pytest.raises(UnsupportedOpError, match="gradient of clip"):
        emit_backward(b, loss, ("w",), lambda *_: None)


# Part of a model.


def ops_of(module, x, trainable) -> list[str]:
    graph = gradient_graph(capture(module, x), Recipe(er.MSE(), er.SGD(), tuple(trainable)), len(x))
    return [node.op for node in graph.nodes]


def test_nothing_is_computed_below_the_lowest_trained_layer():
    module = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    x = randn(*IMAGE)
    everything = ops_of(module, x, ["0.weight", "2.weight", "5.weight"])
    assert everything.count("conv2d_dw") == 2
    assert everything.count("conv2d_dx") == 1  # the input's own gradient is nobody's
    upper = ops_of(module, x, ["2.bias", "5.weight", "5.bias"])
    assert upper.count("relu_grad") == 1
    assert not {"conv2d_dw", "conv2d_dx"}.intersection(upper)
    last = ops_of(module, x, ["5.bias"])
    assert not {"conv2d_dw", "conv2d_dx", "relu_grad", "linear_dx", "linear_dw"}.intersection(last)


@pytest.mark.parametrize("trainable", [["2.bias"], ["0.weight"], ["0.bias", "4.weight"], ["1.weight", "4.bias"]])
def test_gradients_of_a_part_are_those_of_the_whole(trainable):
    module = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 4))
    compare(module, [randn(*SEQUENCE)], er.CrossEntropy(), [CLASSES], trainable)


def test_a_frozen_branch_beside_a_trained_one_gets_no_gradient():
    module = Apply(lambda m, x: m.a(x) + m.b(torch.tanh(x)), a=nn.Linear(6, 4), b=nn.Linear(6, 4))
    ops = compare(module, [randn(*SEQUENCE)], er.CrossEntropy(), [CLASSES], ["a.weight"])
    assert not {"tanh_grad", "linear_dx"} & ops


def test_rows_of_padding_change_no_gradient():
    """As the losses say: a batch of 3 real rows of 5 gives what 3 rows alone give, whatever the padding holds."""
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    loss = er.CrossEntropy(class_weights=(1.0, 2.0, 3.0, 0.5))
    names = tuple(name for name, _ in module.named_parameters())
    x, y = np.random.default_rng(0).standard_normal((5, 2, 4, 4)), np.array([0, 3, 1, 2, 2])
    results = []
    for batch, rows in ((3, 3), (5, 3)):
        forward = capture(module, torch.zeros(batch, 2, 4, 4))
        graph = gradient_graph(forward, Recipe(loss, er.SGD(), names), batch)
        given = {name: tensor.numpy().astype(np.float64) for name, tensor in module.state_dict().items()}
        given |= {"input": x[:batch], "target.0": y[:batch], "rows": np.array([rows])}
        given |= {"loss.class_weights.0": np.array(loss.class_weights)}
        given |= {"norm.0": 1 / np.array([losses.denominator(loss, y[:rows])])}
        got = reference.run(graph, {name: given[name] for name in (*graph.inputs, *graph.state)})
        results.append([got[name] for name in graph.outputs])
    for alone, padded in zip(*results, strict=True):
        np.testing.assert_allclose(padded, alone, rtol=1e-9, atol=1e-12)


def test_a_parts_share_of_the_batch_sums_to_the_whole():
    """Gradients of rows 0-1 and 2-4, each normed by the whole batch, add up to the gradient of rows 0-4."""
    module, x = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4)), randn(5, 6).double().numpy()
    y = np.array([0, 3, 1, 2, 2])
    names = tuple(name for name, _ in module.named_parameters())
    sums = []
    for pieces in ([slice(0, 5)], [slice(0, 2), slice(2, 5)]):
        total = [0.0] * (1 + len(names))
        for piece in pieces:
            rows = len(x[piece])
            graph = gradient_graph(
                capture(module, torch.zeros(rows, 6)), Recipe(er.CrossEntropy(), er.SGD(), names), rows
            )
            given = {name: tensor.numpy().astype(np.float64) for name, tensor in module.state_dict().items()}
            given |= {"input": x[piece], "target.0": y[piece], "rows": np.array([rows]), "norm.0": np.array([0.2])}
            got = reference.run(graph, {name: given[name] for name in (*graph.inputs, *graph.state)})
            total = [a + got[name] for a, name in zip(total, graph.outputs, strict=True)]
        sums.append(total)
    for whole, parts in zip(*sums, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-9, atol=1e-12)


def test_a_loss_for_another_number_of_outputs_is_refused():
    forward = capture(two_heads(), randn(*SEQUENCE))
    with pytest.raises(UnsupportedOpError, match="MultiTask"):
        gradient_graph(forward, Recipe(er.MSE(), er.SGD(), ("a.weight",)), 3)


def test_class_weights_for_another_number_of_classes_are_refused():
    forward = capture(nn.Linear(6, 4), randn(*SEQUENCE))
    loss = dataclasses.replace(er.CrossEntropy(), class_weights=(1.0, 2.0))
    with pytest.raises(UnsupportedOpError, match="2 class weights for 4 classes"):
        gradient_graph(forward, Recipe(loss, er.SGD(), ("weight",)), 3)
