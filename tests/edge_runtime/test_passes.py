"""The passes change what is kept and in which order, never a number."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import edge_runtime as er
from edge_runtime.capture.batched import capture_batched
from edge_runtime.capture.capture import capture
from edge_runtime.engine import reference
from edge_runtime.ir.builder import Builder
from edge_runtime.ir.graph import Graph, Value
from edge_runtime.ir.verify import verify
from edge_runtime.losses import denominator
from edge_runtime.passes.fuse import join_views, pool_before_activation
from edge_runtime.passes.pipeline import FORWARD_PASSES, simplify
from edge_runtime.passes.recompute import cheapest_kept, kept_with_segments, needed_backward, recompute, segment_borders
from edge_runtime.passes.training import Recipe, gradient_graph, training_step
from edge_runtime.planner.budget import candidates

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")  # torch.export in torch.utils._pytree


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU6())
        self.a = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.Dropout(0.3), nn.Conv2d(8, 4, 1))
        self.b = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.GroupNorm(2, 4), nn.GELU())
        self.out = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(64), nn.Dropout(0.2), nn.Linear(64, 5))

    def forward(self, x):
        x = self.stem(x)
        x = x + self.a(x)
        return self.out(torch.relu(x + self.b(x)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 6)
        self.gru, self.lstm = nn.GRU(6, 8, batch_first=True), nn.LSTM(8, 6, batch_first=True)
        self.out = nn.Linear(6, 5)

    def forward(self, x):
        y, last = self.gru(self.embedding(x))
        return self.out(torch.tanh(self.lstm(y + last.transpose(0, 1))[0]))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.qkv, self.out = nn.Embedding(5, 8), nn.Linear(8, 24), nn.Linear(8, 5)
        self.n1, self.n2, self.mix = nn.LayerNorm(8), nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU())
        self.back = nn.Linear(16, 8)

    def forward(self, x):
        x = self.embedding(x)
        q, k, v = self.qkv(self.n1(x)).chunk(3, -1)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(x + self.back(self.mix(self.n2(x))))


ROWS = 6
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 5, (4, ROWS, 7))
MODELS = {
    "residual": (Residual, RNG.standard_normal((4, ROWS, 2, 8, 8)).astype(np.float32), RNG.integers(0, 5, (4, ROWS))),
    "recurrent": (Recurrent, TOKENS, TOKENS),
    "attending": (Attending, TOKENS, TOKENS),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]()


# Recomputation.


@pytest.mark.parametrize("name", MODELS)
def test_every_plan_gives_the_same_bits_in_the_oracle(name):
    module, x, y = made(name), *(array[0] for array in MODELS[name][1:])
    captured = capture_batched(module, [torch.from_numpy(x)])
    recipe = Recipe(er.CrossEntropy(0.1), er.Adam(), tuple(n for n, _ in module.named_parameters()))
    tensors = {key: value.numpy() for key, value in module.state_dict().items() if value.ndim}
    state = [Value(key, value.shape) for key, value in tensors.items()]
    results: list[dict[str, np.ndarray]] = []
    for plan in candidates(lambda b: simplify(captured.at(b)), captured.at, recipe, state, [ROWS], [ROWS]):
        graph = plan.phases[0].graph
        verify(graph)
        zeros = {value.name: np.zeros(value.shape) for value in plan.state}
        scalars = {"lr": np.array([0.01]), "corrections": np.array([10.0, 31.6]), "norm.0": np.array([1 / y.size])}
        inputs = {graph.inputs[0]: x.astype(np.float64) if x.dtype == np.float32 else x, "target.0": y}
        given = {**zeros, **{k: v.astype(np.float64) for k, v in tensors.items()}, **scalars, **inputs}
        given |= {"rows": np.array([ROWS]), "random": np.array([5, 0, 0])}
        got = reference.run(graph, {key: given[key] for key in (*graph.inputs, *graph.state)})
        results.append({key: got[key] for key in (*graph.outputs, *graph.state)})
    assert len(results) > 3
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for key, value in other.items():
            np.testing.assert_array_equal(value, results[0][key], err_msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_every_plan_on_the_curve_trains_to_the_same_bits_natively(name):
    module, xs, ys = made(name), *MODELS[name][1:]

    def trained(program: er.Program) -> list[np.ndarray]:
        trainer = er.Trainer(program, seed=3)
        losses = [trainer.step(x, y) for x, y in zip(xs, ys, strict=True)]
        return [np.array(losses), *trainer.snapshot().values()]

    def build(budget: int | None) -> er.Program:
        return er.build(module, xs[0], optimizer=er.Adam(), batch_size=ROWS, micro_batch=ROWS, memory_budget=budget)

    free = build(None)
    budgets = [point.peak_bytes for point in free.report.curve]
    assert len(budgets) > 1
    expected = trained(free)
    for budget in budgets:
        program = build(budget)
        assert program.peak_bytes <= budget
        assert program.micro_batch == ROWS
        for got, one in zip(trained(program), expected, strict=True):
            np.testing.assert_array_equal(got, one)


def test_running_statistics_move_once_a_step_whatever_is_recomputed():
    module = made("residual")
    for dropout in module.modules():
        if isinstance(dropout, nn.Dropout):
            dropout.p = 0.0
    forward = simplify(capture(module, torch.zeros(ROWS, 2, 8, 8)))
    recipe = Recipe(er.CrossEntropy(), er.SGD(), tuple(n for n, _ in module.named_parameters()))
    graph, boundary = training_step(forward, recipe, ROWS)
    kept = cheapest_kept(graph, boundary)
    for parts in (2, 4, 8):
        total = sum(graph.values[name].nbytes for name in kept)
        borders = segment_borders(graph, boundary, kept, total // parts)
        again = recompute(graph, boundary, kept_with_segments(graph, boundary, kept, borders), kept)
        assert Counter(node.op for node in again.nodes)["running_stats"] == 2
        assert Counter(node.op for node in again.nodes)["batch_norm"] == 2

    x, y = (array[0] for array in MODELS["residual"][1:])
    program = er.build(module, x, batch_size=ROWS)
    tightest = er.build(module, x, batch_size=ROWS, memory_budget=min(p.peak_bytes for p in program.report.curve))
    assert tightest.report.chosen.extra_flops > 0
    trainer, rival = er.Trainer(tightest), er.TorchTrainer(copy.deepcopy(module))
    trainer.step(x, y)
    rival.step(x, y)
    for name, value in rival.state_dict().items():
        if "running" in name or "tracked" in name:
            np.testing.assert_allclose(trainer.state_dict()[name], value, rtol=1e-5, atol=1e-6)


@st.composite
def forward_passes(draw) -> tuple[Graph, int]:
    """A random forward pass of cheap and heavy ops of several sizes, and a backward pass that reads some of it."""
    b = Builder(batch=2)
    b.hint = "v"
    x, w = b.input("x", (2, 4)), b.state("w", (4, 4))
    rows = b.rows()
    values, moved = [x], []
    for _ in range(draw(st.integers(2, 8))):
        if sum(len(node.outputs) for node in b.nodes) > 7:
            break  # for the search through all subsets
        one, other = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        kind = draw(st.sampled_from(["linear", "relu", "add", "double", "layer_norm", "batch_norm", "mean"]))
        if kind == "linear":
            values.append(b.emit("linear", one, w))
        elif kind == "relu":
            values.append(b.emit("relu", one))
        elif kind == "add" and b.shape(one) == b.shape(other):
            values.append(b.emit("add", one, other))
        elif kind == "double":
            values.append(b.emit("cat", one, other, dim=0))
        elif kind == "layer_norm":
            values += b.emit_all("layer_norm", one, dims=1, eps=1e-5)[:1]
        elif kind == "batch_norm" and b.shape(one)[0] % 2 == 0:
            scale = b.state(f"s{len(values)}", (4,))
            y, *stats = b.emit_all("batch_norm", one, scale, scale, rows, batch=2, eps=1e-5)
            values.append(y)
            moved += stats  # running statistics are moved behind the forward pass, so all of them are read there
        elif kind == "mean":
            values.append(b.emit("mean", one, dims=(0,), keepdim=True))
    boundary = len(b.nodes)
    made = [name for node in b.nodes for name in node.outputs]
    read = draw(st.lists(st.sampled_from(made), min_size=1, max_size=4, unique=True)) if made else []
    read = list(dict.fromkeys([*read, *moved]))
    b.hint = "out"
    outputs = [b.emit("scale", name, by=2.0, plus=0.0) for name in read]
    graph = b.finish(outputs)
    return verify(graph), sum(not node.outputs[0].startswith("out") for node in graph.nodes[:boundary])


CHEAP = ("relu", "add", "cat", "layer_norm", "mean")


def sources(graph: Graph, boundary: int) -> dict[str, tuple[str, ...] | None]:
    """For each forward value, what it can cheaply be computed from again; None where it cannot."""
    found: dict[str, tuple[str, ...] | None] = {}
    for node in graph.nodes[:boundary]:
        for name in node.outputs:
            if node.op == "batch_norm" and name == node.outputs[0]:
                found[name] = (*node.inputs[:1], *node.outputs[1:])  # from its own statistics, which must not move
            else:
                found[name] = node.inputs if node.op in CHEAP else None
    return found


def can_feed(kept: set[str], name: str, again: dict[str, tuple[str, ...] | None]) -> bool:
    if name in kept or name not in again:
        return True
    inputs = again[name]
    return inputs is not None and all(can_feed(kept, one, again) for one in inputs)


@settings(max_examples=120, deadline=None)
@given(forward_passes())
def test_what_is_kept_is_the_fewest_bytes_that_can_cheaply_feed_the_backward_pass(passes):
    graph, boundary = passes
    again = sources(graph, boundary)
    needed = needed_backward(graph, boundary)
    kept = cheapest_kept(graph, boundary)
    assert all(can_feed(kept, name, again) for name in needed)
    names = list(again)

    def nbytes(chosen) -> int:
        return sum(graph.values[name].nbytes for name in chosen)

    for mask in range(1 << len(names)):
        subset = {name for place, name in enumerate(names) if mask >> place & 1}
        if nbytes(subset) < nbytes(kept):
            assert not all(can_feed(subset, name, again) for name in needed), subset


@settings(max_examples=60, deadline=None)
@given(forward_passes(), st.integers(1, 5), st.integers(0, 10))
def test_recomputing_a_random_graph_changes_no_bit_of_its_outputs(passes, parts, seed):
    graph, boundary = passes
    kept = cheapest_kept(graph, boundary)
    total = sum(graph.values[name].nbytes for name in kept)
    borders = segment_borders(graph, boundary, kept, total // parts)
    again = recompute(graph, boundary, kept_with_segments(graph, boundary, kept, borders), kept)
    verify(again)
    rng = np.random.default_rng(seed)
    given_ = {name: rng.standard_normal(graph.values[name].shape) for name in (*graph.inputs, *graph.state)}
    given_["rows"] = np.array([2])
    before, after = reference.run(graph, given_), reference.run(again, given_)
    assert again.outputs == graph.outputs
    for name in graph.outputs:
        np.testing.assert_array_equal(before[name], after[name])


# Rewrites of the forward pass.


class Pooled(nn.Module):
    """Pools behind activations; in `between`, what else happens to the activation."""

    def __init__(self, activation, between="nothing") -> None:
        super().__init__()
        self.conv, self.act, self.between = nn.Conv2d(2, 3, 3, padding=1), activation, between
        self.pool, self.out = nn.MaxPool2d(3, 2, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x):
        y = self.act(self.conv(x) * 3)
        pooled = self.out(self.pool(y))
        match self.between:
            case "read again":
                return pooled + y.mean((2, 3), keepdim=True)[:, :2]
            case "pooled twice":
                return pooled + self.pool(y)[:, :2]
            case "is an output":
                return pooled, y
            case _:
                return pooled


def both_ways(module, x, passes, loss=None) -> tuple[Graph, Graph]:
    """The graph before and after; outputs and gradients of both are the same numbers."""
    before = capture(module, x)
    after = passes(before)
    verify(after)
    count = len(before.outputs)
    loss = loss or (er.MSE() if count == 1 else er.MultiTask((er.MSE(),) * count))
    names = tuple(name for name, _ in module.named_parameters())
    results = []
    for forward in (before, after):
        graph = gradient_graph(forward, Recipe(loss, er.SGD(), names), len(x))
        rng = np.random.default_rng(1)
        given_ = {key: value.double().numpy() for key, value in module.state_dict().items()}
        given_ |= {forward.inputs[0]: x.double().numpy(), "rows": np.array([len(x)])}
        for k in range(count):
            target = rng.standard_normal(before.values[before.outputs[k]].shape)
            given_ |= {f"target.{k}": target, f"norm.{k}": np.array([1 / denominator(er.MSE(), target)])}
        got = reference.run(graph, {name: given_[name] for name in (*graph.inputs, *graph.state)})
        forwards = reference.run(forward, {name: given_[name] for name in (*forward.inputs, *forward.state)})
        results.append([got[name] for name in graph.outputs] + [forwards[name] for name in forward.outputs])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    return before, after


def order(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes if node.op in ("relu", "relu6", "max_pool2d", "tanh")]


IMAGES = {
    "random": torch.randn(2, 2, 7, 7, generator=torch.Generator().manual_seed(0)),
    "full of ties": torch.randint(-3, 4, (2, 2, 7, 7), generator=torch.Generator().manual_seed(0)).float(),
    "one value": torch.ones(2, 2, 7, 7),
}


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_a_pool_goes_before_its_activation_and_no_output_or_gradient_changes(activation, images):
    torch.manual_seed(0)
    module = Pooled(nn.ReLU() if activation == "relu" else nn.ReLU6())
    before, after = both_ways(module, IMAGES[images], pool_before_activation)
    assert order(before) == [activation, "max_pool2d"]
    assert order(after) == ["max_pool2d", activation]
    assert sum(value.nbytes for value in after.values.values()) < sum(value.nbytes for value in before.values.values())


@pytest.mark.parametrize("between", ["read again", "pooled twice", "is an output"])
def test_an_activation_that_something_else_needs_stays_before_its_pool(between):
    before, after = both_ways(Pooled(nn.ReLU(), between), IMAGES["random"], pool_before_activation)
    assert after == before


def test_an_activation_that_can_fall_stays_before_its_pool():
    before, after = both_ways(Pooled(nn.Tanh()), IMAGES["random"], pool_before_activation)
    assert after == before


def test_pools_in_a_row_all_go_before_the_activation():
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2, 1), nn.Conv2d(3, 1, 1))
    _, after = both_ways(module, IMAGES["full of ties"], pool_before_activation)
    assert order(after) == ["max_pool2d", "max_pool2d", "relu"]


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(6, 8)

    def forward(self, x):
        y = self.l(x).view(2, 4, 2).reshape(2, 8).view(2, 2, 4).transpose(1, 2).transpose(1, 2)  # the last two undo
        y = (y * 1.0 + 0.0).permute(1, 0, 2).permute(2, 1, 0)
        return y.reshape(-1).view(2, 8).view(2, 8)


def test_views_of_views_become_one_and_no_output_or_gradient_changes():
    before, after = both_ways(Views(), torch.randn(2, 6), join_views)
    counts = [Counter(node.op for node in graph.nodes) for graph in (before, after)]
    assert counts[0]["reshape"] > counts[1]["reshape"] >= 1
    assert counts[1]["transpose"] == 1
    assert "scale" not in counts[1]


def test_a_view_that_is_asked_for_or_read_elsewhere_stays_readable():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(6, 8)

        def forward(self, x):
            y = self.l(x).view(2, 4, 2)
            return y, torch.tanh(y).view(2, 8) + y.reshape(2, 8)

    both_ways(Both(), torch.randn(2, 6), join_views)


@st.composite
def view_chains(draw) -> Graph:
    b = Builder(batch=2)
    b.hint = "v"
    values = [b.input("x", (2, 3, 4)), b.state("w", (24,))]
    for _ in range(draw(st.integers(1, 8))):
        one = draw(st.sampled_from(values))
        shape = b.shape(one)
        kind = draw(st.sampled_from(["reshape", "transpose", "scale", "tanh"]))
        if kind == "reshape":
            values.append(b.emit("reshape", one, shape=draw(st.sampled_from([(2, 3, 4), (24,), (4, 6), (2, 12)]))))
        elif kind == "transpose":
            values.append(b.emit("transpose", one, order=tuple(draw(st.permutations(range(len(shape)))))))
        elif kind == "scale":
            values.append(b.emit("scale", one, by=draw(st.sampled_from([1.0, 2.0])), plus=0.0))
        else:
            values.append(b.emit("tanh", one))
    made = values[2:]
    return b.finish(draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True)))


@settings(max_examples=100, deadline=None)
@given(view_chains())
def test_any_chain_of_views_keeps_its_outputs(graph):
    tensors = {"x": np.random.default_rng(0).standard_normal((2, 3, 4)), "w": np.arange(24.0)}
    for one in FORWARD_PASSES:
        after = verify(one(graph))
        assert (after.outputs, after.inputs, after.state) == (graph.outputs, graph.inputs, graph.state)
        assert len(after.nodes) <= len(graph.nodes)
        before, got = reference.run(graph, tensors), reference.run(after, tensors)
        for name in graph.outputs:
            np.testing.assert_array_equal(got[name], before[name])


def test_passes_return_new_graphs_and_leave_the_old_ones_as_they_were():
    graph = capture(Pooled(nn.ReLU()), IMAGES["random"])
    copied = dataclasses.replace(graph, values=dict(graph.values))
    simplify(graph)
    assert graph == copied


def test_passing_twice_changes_nothing_more():
    for module, x in ((Pooled(nn.ReLU()), IMAGES["random"]), (Views(), torch.randn(2, 6))):
        once = simplify(capture(module, x))
        assert simplify(once) == once
