"""From a plan with its offsets to a Program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_runtime import losses
from edge_runtime.ir.graph import Value
from edge_runtime.ir.model import Model
from edge_runtime.losses import LOG_VARIANCES
from edge_runtime.planner.arena import aligned
from edge_runtime.planner.budget import Candidate, Placed, fullest, label
from edge_runtime.planner.cost import flops
from edge_runtime.program.packed import pack
from edge_runtime.program.program import Phase, PlanPoint, Program, Report, StateTensor, Tensor


def assemble(best: Placed, curve: Sequence[Placed], budget: int, batch: int, model: Model) -> Program:
    """The Program of plan `best` for batches of up to `batch` rows; `curve` are the plans it was chosen from."""
    plan = best.candidate
    offsets, state_bytes = _state_offsets(plan.state)
    contents: dict[str, NDArray[np.float32]] = {**model.initial, **_constants(plan)}
    phases = []
    for planned, arena in zip(plan.phases, best.arenas, strict=True):
        graph = planned.graph
        places = {name: state_bytes + arena.offsets[buffer] for name, buffer in planned.lifetimes.buffer_of.items()}
        places.update((name, offsets[name]) for name in graph.state)
        places.update((name, offsets[source]) for name, source in planned.lifetimes.state_views.items())
        work = {
            int(name.removeprefix("work.")): state_bytes + offset
            for name, offset in arena.offsets.items()
            if name.startswith("work.")
        }
        phases.append(
            Phase(
                kind=planned.kind,
                batch=planned.batch,
                inputs=tuple(_tensor(graph.values[name], places) for name in graph.inputs),
                outputs=tuple(_tensor(graph.values[name], places) for name in graph.outputs),
                ops=tuple(pack(graph, places, work)),
                labels=tuple(label(node) for node in graph.nodes),
                lower_bound_bytes=state_bytes + planned.scratch_bytes(),
            )
        )
    return Program(
        loss=plan.recipe.loss,
        optimizer=plan.recipe.optimizer,
        batch_size=batch,
        micro_batch=plan.micro_batch,
        memory_budget=budget,
        arena_bytes=state_bytes + max(arena.nbytes for arena in best.arenas),
        state_bytes=state_bytes,
        state=tuple(_state_tensor(value, offsets, plan, model) for value in plan.state),
        counters=model.counters,
        counted=model.counted,
        aliases=model.aliases,
        state_dict_order=model.names,
        phases=tuple(phases),
        report=_report(best, curve),
        initial={name: content for name, content in contents.items() if name in offsets},
        forward=model.predict,
    )


def _tensor(value: Value, offsets: Mapping[str, int]) -> Tensor:
    return Tensor(value.name, value.dtype, value.shape, offsets[value.name])


def _state_offsets(state: Sequence[Value]) -> tuple[dict[str, int], int]:
    offsets, end = {}, 0
    for value in state:
        offsets[value.name] = end
        end += aligned(value.nbytes)
    return offsets, end


def _constants(plan: Candidate) -> dict[str, NDArray[np.float32]]:
    """Contents of the loss's own tensors."""
    terms = losses.terms(plan.recipe.loss)
    weights = {f"loss.class_weights.{k}": getattr(term.loss, "class_weights", ()) for k, term in enumerate(terms)}
    return {name: np.asarray(values, np.float32) for name, values in weights.items() if values}


def _state_tensor(value: Value, offsets: Mapping[str, int], plan: Candidate, model: Model) -> StateTensor:
    name = value.name
    tensor = _tensor(value, offsets)
    if name in model.initial:
        if name in model.parameters:
            return StateTensor(tensor, "weight", trained=name in plan.recipe.trainable)
        written = {one for phase in plan.phases for node in phase.graph.nodes for one in node.writes}
        return StateTensor(tensor, "buffer", trained=name in written)
    if name == LOG_VARIANCES:
        return StateTensor(tensor, "variance", trained=True)
    if name.startswith("loss.class_weights."):
        return StateTensor(tensor, "constant")
    kind = name.rsplit("/", 1)[-1]
    return StateTensor(tensor, kind if kind in ("anchor", "correction", "gradient") else "moment")


def _report(best: Placed, curve: Sequence[Placed]) -> Report:
    base = min(one.candidate.cost for one in curve)
    plain = min(one.candidate.flops for one in curve)

    def point(one: Placed) -> PlanPoint:
        plan = one.candidate
        return PlanPoint(
            peak_bytes=one.peak_bytes(),
            cost=round(plan.cost / base, 4),
            extra_flops=plan.flops - plain,
            micro_batch=plan.micro_batch,
            trained_tensors=len(plan.recipe.trainable),
            name=plan.name,
        )

    plan = best.candidate
    step = max(plan.phases, key=lambda phase: phase.scratch_bytes())
    at, live = fullest(step)
    predict = plan.phases[-1]
    return Report(
        chosen=point(best),
        curve=tuple(point(one) for one in curve),
        parts=_parts(plan, live),
        fullest_at=label(step.graph.nodes[at]),
        forward_flops=flops(predict.graph) // predict.batch,
        step_flops=plan.flops,
        kept=plan.kept,
    )


def _parts(plan: Candidate, live: Sequence[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Bytes of the arena at its fullest moment, by what they are for."""
    parts = dict.fromkeys(("weights and buffers", "optimizer and other state"), 0)
    for value in plan.state:
        own = "/" not in value.name and not value.name.startswith("loss.")
        parts["weights and buffers" if own else "optimizer and other state"] += value.nbytes
    inputs = set(plan.phases[0].graph.inputs)
    for name, nbytes in live:
        if name.startswith("work."):
            kind = "workspace"
        elif name in inputs:
            kind = "input"
        elif name.startswith("d."):
            kind = "gradients"
        elif name in plan.forward_values:
            kind = "kept activations"
        else:
            kind = "recomputed activations"
        parts[kind] = parts.get(kind, 0) + nbytes
    return tuple(parts.items())
