"""The search for the fastest plan that fits a memory budget.

A plan is a choice of what the backward pass finds in memory (everything; what cannot be recomputed cheaply; segment
borders only) and of how many rows go through the model at once. There are a few dozen, each is made in milliseconds,
so all are made and measured: bytes by liveness, time by a cost model. The choice is among those that no other one beats
in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from edge_runtime.config import text_bytes
from edge_runtime.errors import BudgetError
from edge_runtime.ir.graph import Graph, Node, Value
from edge_runtime.passes.recompute import (
    cheapest_kept,
    kept_with_segments,
    needed_backward,
    recompute,
    segment_borders,
)
from edge_runtime.passes.training import Recipe, accumulated_update, accumulation_step, evaluation, training_step
from edge_runtime.planner.arena import ArenaPlan, aligned, plan_arena
from edge_runtime.planner.cost import cost, flops
from edge_runtime.planner.lifetimes import Lifetimes, find_lifetimes
from edge_runtime.planner.verify import verify_arena

SEGMENTS = (2, 3, 4, 5, 6, 8, 12, 16)  # of how many equal parts the kept bytes are cut into, as a try


@dataclass(frozen=True, slots=True)
class Planned:
    """One phase: its graph, for how many rows, and which of its bytes live when."""

    kind: str
    batch: int
    graph: Graph
    lifetimes: Lifetimes

    def scratch_bytes(self) -> int:
        return self.lifetimes.peak_bytes()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A whole plan, before offsets are given."""

    name: str
    micro_batch: int
    recipe: Recipe
    phases: tuple[Planned, ...]
    state: tuple[Value, ...]
    forward_values: frozenset[str]  # of the model's own forward pass
    kept: tuple[tuple[str, str, int], ...]  # activations needed by the backward pass: op, fate, bytes
    cost: float
    flops: int

    def state_bytes(self) -> int:
        return sum(aligned(value.nbytes) for value in self.state)

    def bound_bytes(self) -> int:
        """What no placement of its buffers can be below."""
        return self.state_bytes() + max(phase.scratch_bytes() for phase in self.phases)


@dataclass(frozen=True, slots=True)
class Placed:
    """A plan with an offset for every buffer of every phase, counted from the end of the state."""

    candidate: Candidate
    arenas: tuple[ArenaPlan, ...]

    def peak_bytes(self) -> int:
        return self.candidate.state_bytes() + max(arena.nbytes for arena in self.arenas)


GraphAt = Callable[[int], Graph]
T = TypeVar("T")


def candidates(
    forward_at: GraphAt,
    predict_at: GraphAt,
    recipe: Recipe,
    module_state: Sequence[Value],
    batches: Sequence[int],
    micro_batches: Sequence[int],
    *,
    fixed: bool = False,
) -> Iterator[Candidate]:
    """Every plan for batches of up to `max(batches)` rows, `micro_batches` saying how many may go at once.

    `module_state` are the tensors of the module's state_dict, which are in every plan, used or not. With
    `fixed`, no other number of rows is tried, for evaluation either.
    """
    whole = max(batches)
    for micro in micro_batches:
        split = micro < whole
        sizes = (micro,) if split else tuple(sorted(batches))
        make = accumulation_step if split else training_step
        built = [_Step.of(*make(forward_at(size), recipe, size)) for size in sizes]
        update = accumulated_update(built[-1].graph, recipe) if split else None
        for level in _levels(built[-1]):
            steps = [_apply(level, step) for step in built]
            kind = "accumulate" if split else "step"
            phases = [_planned(kind, size, graph) for size, (graph, _) in zip(sizes, steps, strict=True)]
            work, operations = cost(phases[-1].graph), flops(phases[-1].graph)
            if update:
                phases.append(_planned("update", whole, update))
                times = -(-whole // micro)
                work = work * times + cost(update)
                operations = operations * times + flops(update)
            room = max(phase.scratch_bytes() for phase in phases)
            phases.append(_predict(predict_at, recipe, whole, room, fixed))
            yield Candidate(
                name=_level_name(level),
                micro_batch=micro,
                recipe=recipe,
                phases=tuple(phases),
                state=_state(module_state, [phase.graph for phase in phases]),
                forward_values=frozenset(forward_at(micro).values),
                kept=steps[-1][1],
                cost=work,
                flops=operations,
            )


def choose(found: Sequence[Candidate], budget: int) -> tuple[Placed | None, list[Placed]]:
    """The cheapest plan of at most `budget` bytes (0: no limit), or None; and all plans that no other one beats."""
    bounds = sorted(found, key=lambda c: (c.bound_bytes(), c.cost))
    placed = [place(one) for one in _front(bounds, lambda one: one.cost)]
    # The long search for offsets is for the plan that is taken, and for those that it can bring inside the budget.
    for i, one in enumerate(placed):
        if one.candidate.bound_bytes() <= budget < one.peak_bytes():
            placed[i] = place(one.candidate, thorough=True)
    fitting = [i for i, one in enumerate(placed) if not budget or one.peak_bytes() <= budget]
    if not fitting:
        return None, placed
    best = min(fitting, key=lambda i: (placed[i].candidate.cost, placed[i].peak_bytes()))
    chosen = placed[best] = place(placed[best].candidate, thorough=True)
    peaks = sorted(placed, key=lambda one: (one.peak_bytes(), one.candidate.cost))
    return chosen, _front(peaks, lambda one: one.candidate.cost)


def _front(ordered: Sequence[T], cost_of: Callable[[T], float]) -> list[T]:
    """Of plans in order of size, those that cost less than every smaller one."""
    front: list[T] = []
    for one in ordered:
        if not front or cost_of(one) < cost_of(front[-1]):
            front.append(one)
    return front


def place(candidate: Candidate, *, thorough: bool = False) -> Placed:
    """Offsets for every phase, each plan checked."""
    arenas = []
    for phase in candidate.phases:
        plan = plan_arena(phase.lifetimes.buffers, phase.scratch_bytes(), thorough=thorough)
        arenas.append(verify_arena(plan, phase.lifetimes.buffers))
    return Placed(candidate, tuple(arenas))


def over_budget(curve: Sequence[Placed], budget: int, advice: Sequence[str]) -> BudgetError:
    """The error that says what the smallest plan needs, where, and what would help."""
    smallest = min((place(one.candidate, thorough=True) for one in curve), key=lambda one: one.peak_bytes())
    phase = max(smallest.candidate.phases, key=lambda one: one.scratch_bytes())
    at, live = fullest(phase)
    node = phase.graph.nodes[at] if phase.graph.nodes else Node("nothing", (), ())
    largest = ", ".join(f"{name} {text_bytes(nbytes)}" for name, nbytes in live[:4])
    return BudgetError(
        f"training needs {text_bytes(smallest.peak_bytes())} ({smallest.peak_bytes()} bytes), the budget is "
        f"{text_bytes(budget)}; the smallest plan ({smallest.candidate.name}, {smallest.candidate.micro_batch} rows at "
        f"once) holds {text_bytes(smallest.candidate.state_bytes())} of weights and state, and most at {label(node)}: "
        f"{largest}; what would help: {'; '.join(advice)}"
    )


def fullest(phase: Planned) -> tuple[int, list[tuple[str, int]]]:
    """The node at which most bytes are in use, and those buffers, largest first."""
    live = phase.lifetimes.live_bytes()
    at = max(range(len(live)), key=lambda step: live[step])
    there = [(one.name, one.nbytes) for one in phase.lifetimes.buffers if one.first_step <= at <= one.last_step]
    return at, sorted(there, key=lambda entry: -entry[1])


def label(node: Node) -> str:
    """A node in a message: its op, the value it makes or the state it moves, and where the user's file has it.

    Neither the file's folder nor the line's text: a Program is sent to other machines.
    """
    of = (*node.outputs, *node.writes, *node.inputs)[:1]
    place = node.source.split(": ", 1)[0].rsplit("/", 1)[-1]
    return f"{node.op} {''.join(of)}{f' at {place}' if place else ''}"[:300]


@dataclass(frozen=True, slots=True)
class _Level:
    """0 parts: keep everything; 1: recompute what is cheap; more: replay segments."""

    parts: int


@dataclass(frozen=True, slots=True)
class _Step:
    """A step that keeps everything, and what its levels are made from: the minimum cut, made once."""

    graph: Graph
    boundary: int
    needed: set[str]
    kept: set[str]

    @classmethod
    def of(cls, graph: Graph, boundary: int) -> _Step:
        return cls(graph, boundary, needed_backward(graph, boundary), cheapest_kept(graph, boundary))

    def borders(self, parts: int) -> list[int]:
        total = sum(self.graph.values[name].nbytes for name in self.kept)
        return segment_borders(self.graph, self.boundary, self.kept, total // parts)


def _levels(step: _Step) -> Iterator[_Level]:
    yield _Level(0)
    if step.kept != step.needed:
        yield _Level(1)
    seen: set[tuple[int, ...]] = {()}
    for parts in SEGMENTS:
        borders = tuple(step.borders(parts))
        if borders not in seen:
            seen.add(borders)
            yield _Level(parts)


def _apply(level: _Level, step: _Step) -> tuple[Graph, tuple[tuple[str, str, int], ...]]:
    """The graph at that level, and what becomes of each activation that the backward pass needs."""
    graph, boundary, needed, kept = step.graph, step.boundary, step.needed, step.kept
    if level.parts == 0:
        return graph, _fates(graph, boundary, needed, needed, needed)
    borders = step.borders(level.parts) if level.parts > 1 else []
    stay = kept_with_segments(graph, boundary, kept, borders)
    return recompute(graph, boundary, stay, kept), _fates(graph, boundary, needed | kept, stay, kept)


def _fates(
    graph: Graph, boundary: int, needed: set[str], stay: set[str], kept: set[str]
) -> tuple[tuple[str, str, int], ...]:
    def fate(name: str) -> str:
        return "kept" if name in stay else "replayed" if name in kept else "recomputed"

    makers = [(name, node.op) for node in graph.nodes[:boundary] for name in node.outputs if name in needed]
    return tuple((op, fate(name), graph.values[name].nbytes) for name, op in makers)


def _level_name(level: _Level) -> str:
    return {0: "keep everything", 1: "recompute what is cheap"}.get(level.parts, f"replay segments of 1/{level.parts}")


def _planned(kind: str, batch: int, graph: Graph) -> Planned:
    return Planned(kind, batch, graph, find_lifetimes(graph))


def _predict(predict_at: GraphAt, recipe: Recipe, batch: int, room: int, fixed: bool) -> Planned:
    """The forward pass and loss for as many rows as the training step's own memory holds, and at least one."""
    while True:
        planned = _planned("predict", batch, evaluation(predict_at(batch), recipe, batch))
        if planned.scratch_bytes() <= room or batch == 1 or fixed:
            return planned
        batch = -(-batch // 2)


def _state(module_state: Sequence[Value], graphs: Sequence[Graph]) -> tuple[Value, ...]:
    found = {value.name: value for value in module_state}
    for graph in graphs:
        found.update((name, graph.values[name]) for name in graph.state)
    return tuple(found.values())
