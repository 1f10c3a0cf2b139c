"""Levers change what they say and no more: shapes fit, what is removed was worth nothing, the rest stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from zoo import IMAGES, example

import edge_runtime as er
from edge_runtime.deploy.compress.binary import binarise
from edge_runtime.deploy.compress.channel_groups import Channels
from edge_runtime.deploy.compress.channels import channel_groups, prune_channels
from edge_runtime.deploy.compress.low_rank import factored, rank_table
from edge_runtime.deploy.compress.prune import prune, sparsity
from edge_runtime.deploy.compress.scores import magnitude, taylor
from edge_runtime.deploy.graph.captured import captured_model
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.fold import fold
from edge_runtime.errors import ConfigError, UnsupportedOpError
from simulations import models

SHAPES = [name for name in IMAGES if name != "ds_cnn"]


class Branches(nn.Module):
    """Channels that are joined, squeezed and gated, padded, and flattened: every way that one can be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 3, 1)
        self.deep = nn.Conv2d(7, 7, 3, groups=7, padding=1)
        self.squeeze, self.excite = nn.Linear(7, 5), nn.Linear(5, 7)
        self.norm = nn.BatchNorm2d(7)
        self.out = nn.Linear(7 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.deep(torch.cat([self.a(x), self.b(x)], 1)))
        gate = self.excite(torch.relu(self.squeeze(y.mean((2, 3)))))[:, :, None, None]
        y = self.norm(y * gate)
        return self.out(torch.max_pool2d(y, 2).flatten(1))  # type: ignore[no-any-return]


class Grouped(nn.Module):
    """A convolution in two groups, which channels cannot be followed through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.grouped(self.first(x))).mean((2, 3)))  # type: ignore[no-any-return]


def made(module: nn.Module, *shape: int, folded: bool = True) -> tuple[FloatModel, NDArray[np.float32]]:
    """A model with weights, biases and statistics at random, and inputs for it."""
    torch.manual_seed(0)
    x = torch.randn(4, *shape)
    with torch.no_grad():
        for _ in range(2):
            module.train()(x)
    captured = captured_model(module.eval(), x)
    return (fold(captured) if folded else captured), x.numpy()


def zoo(name: str) -> tuple[FloatModel, NDArray[np.float32]]:
    one = example(name)
    return one.folded, one.x[:4].astype(np.float32)


def without_channels(model: FloatModel, share: float) -> FloatModel:
    """The same model with the first channels of every set that can go made worth nothing: rows and biases zero."""
    channels = Channels.of(model)
    weights = {name: w.copy() for name, w in model.weights.items()}
    for group, one in channels.groups().items():
        if one.blocked:
            continue
        stay = {group: np.arange(round(share * one.size), one.size)}
        for use in channels.uses:
            if use.axis == 0:  # rows and numbers per channel; columns are of what reads them
                gone = np.setdiff1d(np.arange(len(weights[use.weight])), channels.indices(use.runs, stay))
                weights[use.weight][gone] = 0
    return model.with_weights(weights)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("together", [False, True])
def test_channels_that_are_zero_go_without_a_trace(name: str, together: bool):
    model, x = zoo(name)
    if together:
        half = without_channels(model, 0.5)
        pruned = prune_channels(half, 0.4, together=True)
    else:
        half = without_channels(model, 0.25)
        pruned = prune_channels(half, 0.25)
    expected = predict(half, x)
    assert pruned.parameters < 0.85 * half.parameters
    np.testing.assert_allclose(predict(pruned, x), expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("folded", [True, False])
def test_channels_are_followed_through_joins_gates_and_norms(folded: bool):
    model, x = made(Branches(), 2, 8, 8, folded=folded)
    groups = {one.layers: one.blocked for one in channel_groups(model)}
    # a and b are joined side by side: each is a set of its own, and the depthwise layer and the gate belong to both.
    assert groups[("a.weight", "deep.weight", "excite.weight")] == ""
    assert groups[("b.weight", "deep.weight", "excite.weight")] == ""
    assert groups[("out.weight",)] == "they are the model's output"
    empty = without_channels(model, 0.4)
    np.testing.assert_allclose(predict(prune_channels(empty, 0.4), x), predict(empty, x), atol=1e-5)
    pruned = prune_channels(model, {"a.weight": 0.5, "b.weight": 0.4, "squeeze.weight": 0.4})
    shapes = {name: w.shape for name, w in pruned.weights.items()}
    assert shapes["deep.weight"] == (4, 1, 3, 3)
    assert shapes["excite.weight"] == (4, 3)
    assert shapes["out.weight"] == (3, 4 * 16)
    assert predict(pruned, x).shape == (4, 3)


def test_what_stays_is_what_a_model_of_those_channels_computes():
    """Cutting channels of a two-layer model by hand, in NumPy."""
    model, x = zoo("mlp")
    pruned = prune_channels(model, 0.75)
    w, b = model.weights["1.weight"], model.weights["1.bias"]
    kept = np.sort(np.argsort(-(np.abs(w).sum(1) + np.abs(b)), kind="stable")[:16])
    hidden = np.maximum(x.reshape(4, -1) @ w[kept].T + b[kept], 0)
    expected = hidden @ model.weights["3.weight"][:, kept].T + model.weights["3.bias"]
    np.testing.assert_allclose(predict(pruned, x), expected, atol=1e-5)


def test_a_pruned_model_keeps_a_multiple_and_at_least_one():
    model, _ = zoo("lenet")
    assert len(prune_channels(model, 0.5, multiple=8).weights["f1.weight"]) == 64
    assert len(prune_channels(model, 0.99).weights["c1.weight"]) == 1


def test_channels_that_cannot_be_followed_are_refused_by_name():
    model, _ = made(Grouped(), 1, 8, 8)
    with pytest.raises(UnsupportedOpError, match=r"first\.weight cannot be pruned: conv2d .* has 2 groups"):
        prune_channels(model, {"first.weight": 0.5})
    with pytest.raises(UnsupportedOpError, match=r"no channels can be pruned.*has 2 groups.*model's output"):
        prune_channels(model, 0.5)
    with pytest.raises(ConfigError, match="fits none of the weights"):
        prune_channels(model, {"nothing": 0.5})
    with pytest.raises(ConfigError, match=r"fraction = 1"):
        prune_channels(model, 1.0)


def test_only_the_inside_of_a_transformer_can_go():
    torch.manual_seed(0)
    x = torch.randint(0, 80, (2, 64))
    model = fold(captured_model(models.char_transformer(), x))
    free = [one.layers for one in channel_groups(model) if not one.blocked]
    assert free == [("blocks.0.f1.weight",), ("blocks.1.f1.weight",)]
    assert predict(prune_channels(model, 0.5), x.numpy()).shape == (2, 64, 81)


@settings(max_examples=20, deadline=None)
@given(fraction=st.floats(0, 0.99), per_layer=st.booleans(), seed=st.integers(0, 9))
def test_pruning_takes_the_lowest_and_as_many_as_asked(fraction: float, per_layer: bool, seed: int):
    model, _ = zoo("digits_cnn")
    rng = np.random.default_rng(seed)
    scores = {name: rng.random(w.shape) for name, w in model.weights.items()}
    pruned = prune(model, fraction, scores=scores, per_layer=per_layer)
    matrices = [name for name, w in model.weights.items() if w.ndim >= 2]
    sets = [[name] for name in matrices] if per_layer else [matrices]
    for names in sets:
        gone = np.concatenate([(pruned.weights[name] == 0).ravel() for name in names])
        rank = np.concatenate([scores[name].ravel() for name in names])
        assert gone.sum() == round(fraction * gone.size)
        assert rank[gone].max(initial=0) <= rank[~gone].min(initial=1)
        for name in names:
            kept = pruned.weights[name] != 0
            assert np.array_equal(pruned.weights[name][kept], model.weights[name][kept])
    assert all(np.array_equal(w, model.weights[n]) for n, w in pruned.weights.items() if w.ndim < 2)


def test_zeros_count_and_names_choose():
    model, _ = zoo("digits_cnn")
    once = prune(model, 0.5)
    assert sparsity(once) == pytest.approx(0.5, abs=1e-3)
    assert all(np.array_equal(w, once.weights[name]) for name, w in prune(once, 0.5).weights.items())
    only = prune(model, 0.5, names=["hidden.*"])
    changed = [name for name, w in model.weights.items() if not np.array_equal(w, only.weights[name])]
    assert changed == ["hidden.weight"]


def test_gradient_scores_are_those_of_pytorch():
    torch.manual_seed(0)
    module = models.digits_cnn()
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, 24)
    expected = {name: np.zeros(tuple(one.shape)) for name, one in module.named_parameters()}
    batches = [(x[:16], y[:16]), (x[16:], y[16:])]
    for a, b in batches:
        module.zero_grad()
        torch.nn.functional.cross_entropy(module(torch.from_numpy(a)), torch.from_numpy(b)).backward()
        for name, one in module.named_parameters():
            assert one.grad is not None
            expected[name] += (one.detach().numpy() * one.grad.numpy()).astype(np.float64) ** 2 / 2
    scores = taylor(captured_model(module, x[:1]), batches)
    for name, one in expected.items():
        np.testing.assert_allclose(scores[name], one, rtol=1e-3, atol=1e-7 * float(one.max()))


@pytest.mark.parametrize("name", SHAPES)
def test_factors_of_full_rank_are_the_layer_itself(name: str):
    model, x = zoo(name)
    ranks = {one.weight: one.full_rank for one in rank_table(model, 1.0)}
    whole = factored(model, ranks=ranks)
    expected = predict(model, x)
    assert len(whole.graph.nodes) == len(model.graph.nodes) + len(ranks)
    np.testing.assert_allclose(predict(whole, x), expected, atol=2e-5 * max(1.0, float(np.abs(expected).max())))


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(2, 12), columns=st.integers(2, 12), rank=st.integers(1, 12), seed=st.integers(0, 99))
def test_factors_are_the_best_of_their_rank(rows: int, columns: int, rank: int, seed: int):
    """Eckart and Young: the squared error is the sum of the squared singular values that are left out."""
    torch.manual_seed(seed)
    rank = min(rank, rows, columns)
    layer = nn.Linear(columns, rows)
    model = captured_model(layer, np.zeros((1, columns), np.float32))
    thin = factored(model, ranks={"weight": rank})
    product = thin.weights["weight.out"].astype(np.float64) @ thin.weights["weight.in"]
    w = model.weights["weight"].astype(np.float64)
    left = np.linalg.svd(w, compute_uv=False)[rank:]
    assert np.sum((w - product) ** 2) == pytest.approx(np.sum(left**2), abs=1e-9)


def test_energy_factors_only_where_bytes_are_saved():
    model, x = zoo("lenet")
    rows = {one.weight: one for one in rank_table(model, 0.7)}
    thin = factored(model, energy=0.7)
    split = {name.removesuffix(".in") for name in thin.weights if name.endswith(".in")}
    assert split == {name for name, one in rows.items() if one.saves}
    assert thin.parameters < model.parameters
    for name in split:
        assert len(thin.weights[f"{name}.in"]) == rows[name].rank
    assert predict(thin, x).shape == (4, 10)
    assert factored(model, energy=1.0).parameters == model.parameters  # random weights have no low rank


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "ranks or energy"),
        ({"energy": 1.5}, "energy = 1.5"),
        ({"ranks": {"f1.bias": 2}}, r"f1\.bias is no weight"),
        ({"ranks": {"f1.weight": 121}}, "from 1 to 120"),
    ],
)
def test_factoring_refuses_what_is_not_there(arguments: dict[str, object], said: str):
    model, _ = zoo("lenet")
    with pytest.raises(ConfigError, match=said):
        factored(model, **arguments)  # type: ignore[arg-type]


def test_binarised_rows_have_two_values_and_the_least_error():
    model, x = zoo("lenet")
    binary = binarise(model)
    assert [n for n, w in model.weights.items() if not np.array_equal(w, binary.weights[n])] == ["f2.weight"]
    w, b = model.weights["f2.weight"], binary.weights["f2.weight"]
    assert all(len(np.unique(np.abs(row))) == 1 for row in b)
    for factor in (0.9, 1.1):
        assert np.sum((w - b) ** 2) < np.sum((w - factor * b) ** 2)
    assert predict(binary, x).shape == (4, 10)
    with pytest.raises(ConfigError, match="none is between"):
        binarise(zoo("mlp")[0])


def test_magnitudes_are_of_every_weight():
    model, _ = zoo("digits_cnn")
    assert {name: one.shape for name, one in magnitude(model).items()} == {n: w.shape for n, w in model.weights.items()}


def test_a_pruned_model_trains_on_as_any_other():
    """A graph with its weights is all that a Program takes: no module, no PyTorch."""
    model, x = zoo("digits_cnn")
    pruned = prune_channels(model, 0.5)
    program = er.build_graph(pruned.at, pruned.weights, optimizer=er.SGD(lr=0.1), batch_size=4)
    trainer = er.Trainer(program, threads=1)
    np.testing.assert_allclose(trainer.predict(x), predict(pruned, x), atol=1e-6)
    y = np.arange(4)
    first = trainer.step(x, y)
    for _ in range(20):
        last = trainer.step(x, y)
    assert last < first / 2
    moved = pruned.with_weights({n: np.asarray(w, np.float32) for n, w in trainer.state_dict().items()})
    np.testing.assert_allclose(predict(moved, x), trainer.predict(x), atol=1e-6)
