"""Nothing is overwritten before it is read for the last time, nothing is read before it is written, all of it fits."""

from __future__ import annotations

import dataclasses
import functools
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import edge_runtime as er
from edge_runtime import building
from edge_runtime.capture.capture import capture
from edge_runtime.engine.session import Session
from edge_runtime.ir.builder import Builder
from edge_runtime.ir.graph import Graph, Node, Value
from edge_runtime.ir.ops import OPS
from edge_runtime.ir.verify import verify
from edge_runtime.passes.recompute import cheapest_kept, kept_with_segments, recompute, segment_borders
from edge_runtime.passes.training import Recipe, training_step
from edge_runtime.planner.arena import ALIGNMENT, ArenaPlan, plan_arena
from edge_runtime.planner.lifetimes import Lifetime, find_lifetimes
from edge_runtime.planner.verify import PlanError, verify_arena
from simulations import models

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")  # torch.export in torch.utils._pytree


# Lifetimes, by playing the graph on paper: which value does each buffer hold when a node comes to read it?


def play(graph: Graph) -> None:
    """Fail if a node finds another value in a buffer than the one it means to read, or writes where it must not."""
    found = find_lifetimes(graph)
    spans = {one.name: one for one in found.buffers}
    state = {*graph.state, *found.state_views}
    assert all(graph.values[name].nbytes == graph.values[of].nbytes for name, of in found.state_views.items())
    holds = {found.buffer_of[name]: {name} for name in graph.inputs}
    for place, node in enumerate(graph.nodes):
        read = [name for name in node.inputs if name not in state]
        for name in read:
            assert name in holds[found.buffer_of[name]], f"{name} is gone when node {place} ({node.op}) reads it"
            span = spans[found.buffer_of[name]]
            assert span.first_step <= place <= span.last_step
            assert span.nbytes >= graph.values[name].nbytes
        row = OPS[node.op]
        if row.view and node.inputs[0] in state:
            assert node.outputs[0] in state, "a view of state is that state"
            continue
        written = [found.buffer_of[name] for name in node.outputs]
        assert len(set(written)) == len(written), "two outputs in one buffer"
        for at, (name, buffer) in enumerate(zip(node.outputs, written, strict=True)):
            assert spans[buffer].first_step <= place <= spans[buffer].last_step
            assert spans[buffer].nbytes >= graph.values[name].nbytes
            if row.view:
                holds.setdefault(buffer, set()).add(name)
                continue
            users = [place for place, one in enumerate(node.inputs) if found.buffer_of.get(one) == buffer]
            if users:
                assert len(users) == 1, f"{node.op} is given one buffer twice and overwrites it"
                assert (at, users[0]) in row.in_place
                source = node.inputs[users[0]]
                assert graph.values[source].shape == graph.values[name].shape
                assert graph.values[source].dtype == graph.values[name].dtype
                assert source not in graph.inputs
            holds[buffer] = {name}
    for name in graph.outputs:
        if name not in state:
            assert name in holds[found.buffer_of[name]], f"output {name} is gone at the end"
            assert spans[found.buffer_of[name]].last_step == len(graph.nodes) - 1
    assert not state & spans.keys(), "state has its own place"
    for place, node in enumerate(graph.nodes):
        if nbytes := row_work(graph, node):
            assert spans[f"work.{place}"] == Lifetime(f"work.{place}", nbytes, place, place)


def row_work(graph: Graph, node: Node) -> int:
    return OPS[node.op].work([graph.values[name] for name in node.inputs], node.attributes)


@st.composite
def graphs(draw) -> Graph:
    b = Builder(batch=2)
    b.hint = "v"
    values = [b.input("x", (2, 4)), b.input("y", (2, 4))]
    w, square = b.state("w", (2, 4)), b.state("square", (4, 4))
    rows = b.rows()
    for _ in range(draw(st.integers(1, 14))):
        one, other = draw(st.sampled_from([*values[-4:], w])), draw(st.sampled_from([*values, w]))
        kind = draw(
            st.sampled_from(["relu", "add", "mul", "flat", "back", "linear", "norm", "grad", "relu_grad", "cat"])
        )
        flat = b.shape(one) == (8,)
        if kind == "flat":
            values.append(b.emit("reshape", one, shape=(8,)))
        elif kind == "back" and flat:
            values.append(b.emit("reshape", one, shape=(2, 4)))
        elif kind == "relu":
            values.append(b.emit("relu", one))
        elif kind in ("add", "mul", "relu_grad") and b.shape(one) == b.shape(other):
            values.append(b.emit(kind, one, other))
        elif kind == "cat" and b.shape(one) == b.shape(other):
            values.append(b.emit("slice", b.emit("cat", one, other, dim=0), dim=0, start=0, stop=b.shape(one)[0]))
        elif kind == "linear" and not flat:
            values.append(b.emit("linear", one, square))
        elif kind == "norm" and not flat:
            s = b.emit("sum", w, dims=(0,), keepdim=False)
            values += b.emit_all("batch_norm", one, s, s, rows, batch=2, eps=1e-5)[:1]
        elif kind == "grad" and not flat and b.shape(other) == (2, 4):
            y, mean, rstd = b.emit_all("layer_norm", other, dims=1, eps=1e-5)
            values.append(y)
            values += b.emit_all("layer_norm_grad", one, other, mean, rstd, affine=0, dims=1)
    made = [name for name in values if name not in ("x", "y")] or [b.emit("relu", "x")]
    return verify(b.finish(draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))))


@settings(max_examples=300, deadline=None)
@given(graphs())
def test_no_value_of_a_random_graph_is_overwritten_before_its_last_reader(graph):
    play(graph)


TRAINED = {
    "lenet": (models.LeNet, torch.zeros(2, 1, 28, 28)),
    "resnet": (models.ResNet8, torch.zeros(2, 3, 32, 32)),
    "mobilenet": (models.MobileNetV2Small, torch.zeros(2, 3, 32, 32)),
    "gru": (functools.partial(models.CharGRU, 80, 64, 64), torch.zeros(2, 12, dtype=torch.int64)),
    "transformer": (functools.partial(models.CharTransformer, 80), torch.zeros(2, 64, dtype=torch.int64)),
}


@functools.cache
def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return TRAINED[name][0]()


@pytest.mark.parametrize("name", TRAINED)
def test_no_value_of_a_training_step_is_overwritten_before_its_last_reader(name):
    module, x = model(name), TRAINED[name][1]
    names = tuple(key for key, _ in module.named_parameters())
    recipe = Recipe(
        er.CrossEntropy(), er.Adam(), names, proximal_mu=0.1, correction=True, clip_value=1.0, clip_norm=1.0
    )
    for one in (recipe, Recipe(er.CrossEntropy(), er.SGD(), names)):
        graph, boundary = training_step(capture(module, x), one, len(x))
        play(graph)
        kept = cheapest_kept(graph, boundary)
        total = sum(graph.values[key].nbytes for key in kept)
        borders = segment_borders(graph, boundary, kept, total // 4)
        play(recompute(graph, boundary, kept_with_segments(graph, boundary, kept, borders), kept))


def taking_over(graph: Graph, taker: str) -> bool:
    """Whether value `taker` took over the buffer of another."""
    return find_lifetimes(graph).buffer_of[taker] != taker


def chain(*nodes: Node, outputs=("z",), inputs=("x",), state=()) -> Graph:
    names = {*inputs, *state, *(name for node in nodes for name in (*node.inputs, *node.outputs))}
    return verify(Graph({name: Value(name, (2, 3)) for name in names}, inputs, state, nodes, outputs))


def relu(x: str, y: str) -> Node:
    return Node("relu", (x,), (y,))


def test_an_output_takes_over_a_buffer_that_nobody_reads_any_more():
    assert taking_over(chain(relu("x", "y"), relu("y", "z")), "z")


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (chain(relu("x", "y"), relu("y", "z"), Node("add", ("y", "z"), ("end",)), outputs=("end",)), "is read later"),
        (chain(relu("x", "z")), "is an input"),
        (chain(relu("x", "y"), relu("y", "z"), outputs=("y", "z")), "is an output"),
        (chain(relu("w", "z"), state=("w",)), "is state"),
        (chain(relu("x", "y"), Node("add", ("y", "y"), ("z",))), "is passed twice"),
    ],
)
def test_an_output_does_not_take_over_a_buffer_that(graph, why):
    assert not taking_over(graph, "z"), why


def test_a_view_that_is_read_later_keeps_the_buffer_of_what_it_views():
    flat = Value("flat", (6,))
    graph = chain(relu("x", "y"), relu("y", "z"))
    nodes = (graph.nodes[0], Node("reshape", ("y",), ("flat",), {"shape": (6,)}), graph.nodes[1], relu("flat", "end"))
    values = {**graph.values, "flat": flat, "end": Value("end", (6,))}
    viewed = verify(Graph(values, ("x",), (), nodes, ("z", "end")))
    assert not taking_over(viewed, "z")
    assert find_lifetimes(viewed).buffer_of["flat"] == "y"
    play(viewed)


def test_a_view_that_is_asked_for_keeps_the_buffer_of_what_it_views():
    nodes = (relu("x", "y"), Node("reshape", ("y",), ("flat",), {"shape": (6,)}), relu("y", "z"))
    values = {**{name: Value(name, (2, 3)) for name in "xyz"}, "flat": Value("flat", (6,))}
    viewed = verify(Graph(values, ("x",), (), nodes, ("flat", "z")))
    assert not taking_over(viewed, "z")
    play(viewed)


# Arenas.


@st.composite
def lifetimes(draw) -> list[Lifetime]:
    steps = draw(st.integers(1, 30))
    buffers = []
    for place in range(draw(st.integers(1, 25))):
        first = draw(st.integers(0, steps - 1))
        size = draw(st.one_of(st.integers(1, 300), st.sampled_from([64, 4096, 1 << 20])))
        buffers.append(Lifetime(f"b{place}", size, first, draw(st.integers(first, steps - 1))))
    return buffers


def most_at_once(buffers: list[Lifetime]) -> int:
    """Bytes at the fullest step, each buffer rounded up as its place is."""
    steps = range(max(one.last_step for one in buffers) + 1)
    sizes = [(-(-one.nbytes // ALIGNMENT) * ALIGNMENT, one) for one in buffers]
    return max(sum(size for size, one in sizes if one.first_step <= step <= one.last_step) for step in steps)


@settings(max_examples=100, deadline=None)
@given(lifetimes())
def test_no_two_buffers_that_live_at_once_share_a_byte(buffers):
    bound = most_at_once(buffers)
    plan = plan_arena(buffers, bound)
    assert plan.offsets.keys() == {one.name for one in buffers}
    for one in buffers:
        assert plan.offsets[one.name] % ALIGNMENT == 0
        assert 0 <= plan.offsets[one.name] <= plan.nbytes - one.nbytes
    for a, b in combinations(buffers, 2):
        if a.overlaps(b):
            apart = plan.offsets[a.name] + a.nbytes <= plan.offsets[b.name]
            assert apart or plan.offsets[b.name] + b.nbytes <= plan.offsets[a.name]
    assert plan.nbytes <= sum(-(-one.nbytes // ALIGNMENT) * ALIGNMENT for one in buffers)
    assert plan_arena(buffers[::-1], bound) == plan, "a plan depends on the buffers, not on their order"


@settings(max_examples=50, deadline=None)
@given(lifetimes(), st.data())
def test_the_checker_finds_a_plan_that_breaks_its_promise(buffers, data):
    plan = plan_arena(buffers, most_at_once(buffers))
    assert verify_arena(plan, buffers) is plan
    moved = data.draw(st.sampled_from(buffers))
    at = data.draw(st.sampled_from([-64, 32, plan.nbytes, *plan.offsets.values()]))
    changed = ArenaPlan({**plan.offsets, moved.name: at}, plan.nbytes)
    sound = at >= 0 and at % ALIGNMENT == 0 and at + moved.nbytes <= plan.nbytes
    for other in buffers:
        if other is not moved and other.overlaps(moved):
            start = plan.offsets[other.name]
            sound &= at + moved.nbytes <= start or start + other.nbytes <= at
    if sound:
        verify_arena(changed, buffers)
    else:
        with pytest.raises(PlanError):
            verify_arena(changed, buffers)


# Whole plans. A capture takes most of a build's time and is the same for every budget, so it is made once a model.


@pytest.fixture(autouse=True, scope="module")
def _each_model_is_captured_once():
    capture_it, memo = building._captured, {}

    def captured(module, example_inputs):
        key = (id(module), tuple(example_inputs.shape[1:]))
        if key not in memo:
            found = capture_it(module, example_inputs)
            memo[key] = (module, dataclasses.replace(found, check=functools.cache(found.check)))
        return memo[key][1]

    building._captured = captured
    yield
    building._captured = capture_it


@functools.cache
def built(name: str, batch: int, budget: int | None = None) -> er.Program:
    return er.build(model(name), TRAINED[name][1], batch_size=batch, memory_budget=budget)


@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("name", TRAINED)
def test_a_plan_is_at_most_a_tenth_above_what_no_plan_can_be_below(name, batch):
    program = built(name, batch)
    assert program.lower_bound_bytes <= program.peak_bytes <= 1.10 * program.lower_bound_bytes


def poisoned(program: er.Program) -> er.Trainer:
    """A trainer whose arena holds NaN wherever nothing has been written."""
    return er.Trainer(program, seed=1, session=Session(program, poison=True))


def some_batches(name: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    x, rng = TRAINED[name][1], np.random.default_rng(0)
    if x.dtype == torch.int64:
        tokens = rng.integers(0, 80, (2, batch, *x.shape[1:]))
        return tokens, tokens[:, ::-1].copy()
    return rng.standard_normal((2, batch, *x.shape[1:])).astype(np.float32), rng.integers(0, 10, (2, batch))


def budgets_of(name: str, batch: int) -> list[int | None]:
    """None, the smallest, and one between."""
    curve = sorted({point.peak_bytes for point in built(name, batch).report.curve})
    return [None, *sorted({curve[0], curve[len(curve) // 2]})]


@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("name", TRAINED)
def test_steps_touch_the_whole_arena_and_nothing_else_and_read_only_what_was_written(name, batch):
    xs, ys = some_batches(name, batch)
    for budget in budgets_of(name, batch):
        program = built(name, batch, budget)
        assert program.peak_bytes == program.arena_bytes <= (budget or program.peak_bytes)
        on_poison, on_zeros = poisoned(program), er.Trainer(program, seed=1)
        for x, y in zip(xs, ys, strict=True):
            assert on_poison.step(x, y) == on_zeros.step(x, y)
        expected = on_zeros.snapshot()
        for key, value in on_poison.snapshot().items():
            np.testing.assert_array_equal(value, expected[key], err_msg=key)
        in_words = -(-program.arena_bytes // 4) * 4  # touched_bytes counts whole words
        assert on_poison._session.touched_bytes() == in_words


@pytest.mark.parametrize("name", TRAINED)
def test_a_forward_pass_reads_only_what_was_written_and_stays_inside(name):
    program = built(name, 8)
    xs, ys = some_batches(name, 8)
    on_poison, on_zeros = poisoned(program), er.Trainer(program, seed=1)
    batches = list(zip(xs, ys, strict=True))
    assert on_poison.evaluate(batches) == on_zeros.evaluate(batches)
    assert on_poison._session.touched_bytes() <= -(-program.arena_bytes // 4) * 4
    np.testing.assert_array_equal(on_poison.predict(xs[0]), on_zeros.predict(xs[0]))


def test_the_guard_shows_a_write_behind_the_arena():
    session = Session(built("lenet", 1), poison=True)
    assert session.touched_bytes() <= session.program.state_bytes
    session._guarded[session.program.arena_bytes + 5] = 1
    assert session.touched_bytes() > session.program.arena_bytes


def test_lower_budgets_give_smaller_slower_plans_and_the_curve_says_which():
    points = built("mobilenet", 8).report.curve
    for one, other in combinations(points, 2):
        assert (one.peak_bytes < other.peak_bytes) == (one.cost > other.cost), "a point that another one beats"
    assert min(points, key=lambda p: p.cost).peak_bytes == built("mobilenet", 8).peak_bytes
    for point in points:
        chosen = built("mobilenet", 8, point.peak_bytes).report.chosen
        assert chosen.peak_bytes <= point.peak_bytes  # offsets are searched for longer where a plan is taken
        assert dataclasses.replace(chosen, peak_bytes=point.peak_bytes) == point
