"""`build`: a PyTorch module to a Program. The one place that strings capture, passes, planner and packing together.

nn.Module -> Graph -> training Graph -> plans, of which one is chosen -> offsets -> native ops -> Program
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import losses as loss_specs
from edge_runtime.errors import ConfigError, MissingPackageError, UnsupportedOpError
from edge_runtime.ir.graph import Graph, Value
from edge_runtime.losses import LOSSES, Loss
from edge_runtime.optimizers import SGD, Optimizer
from edge_runtime.passes.pipeline import simplify
from edge_runtime.passes.training import LOG_VARIANCES, Recipe
from edge_runtime.planner.arena import ALIGNMENT
from edge_runtime.planner.budget import Candidate, GraphAt, Placed, candidates, choose, fullest, label, over_budget
from edge_runtime.planner.cost import flops
from edge_runtime.program.packed import pack
from edge_runtime.program.program import Phase, PlanPoint, Program, Report, StateTensor, Tensor

if TYPE_CHECKING:
    import torch

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def build(
    module: torch.nn.Module,
    example_inputs: Any,
    *,
    loss: str | Loss = "cross_entropy",
    optimizer: Optimizer | None = None,
    batch_size: int | Sequence[int] = 32,
    memory_budget: int | str | None = None,
    trainable: Sequence[str] | str | None = None,
    micro_batch: int | None = None,
    proximal_mu: float = 0.0,
    correction: bool = False,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
) -> Program:
    """Plan the training of `module` inside a byte budget.

    Args:
        module: float32; captured in training mode, layers that are in evaluation mode stay so (frozen batch norm).
        example_inputs: a tensor or array (batch, ...), or a tuple of them, one per input; only shape and dtype count.
        loss: a name of `losses.LOSSES`, or a loss.
        optimizer: SGD(lr=0.05) if None.
        batch_size: rows of a step, shorter batches are masked exactly; several sizes share one Program and its weights,
            and a batch runs at the smallest one that holds it.
        memory_budget: bytes, or a text such as "8 MiB" or "40 MB" (10^6), for weights, gradients, optimizer state,
            activations, workspace and input together; None for no limit.
        trainable: None for every parameter that requires a gradient; names, or patterns with `*`; or "auto": all if
            they fit, else as many as fit, in order of measured importance.
        micro_batch: rows that go through the model at once; None leaves it to the planner, which splits a batch only
            where that is exact: not across batch norm in training.
        proximal_mu: FedProx's mu.
        correction: whether the Program has room for SCAFFOLD's c - c_i, see `Trainer.set_correction`.
        clip_value: bound of each gradient's elements; 0 for none.
        clip_norm: bound of the norm of all gradients together, which then wait for each other; 0 for none.

    Raises:
        UnsupportedOpError: an op or a loss that cannot be done exactly; names the line of the module.
        BudgetError: nothing fits; says what the smallest plan needs and what would help.
        ConfigError: an argument outside its range.

    """
    batches = _batches(batch_size)
    budget = parse_bytes(memory_budget)
    spec = _loss(loss)
    model = _captured(module, example_inputs)
    names = _trainable(module, trainable)
    recipe = Recipe(spec, optimizer or SGD(), names, proximal_mu, correction, clip_value, clip_norm)
    sizes = _micro_batches(model.forward, max(batches), micro_batch)

    def plans(chosen: Recipe) -> tuple[Placed | None, list[Placed]]:
        return choose(list(candidates(model.forward, model.predict, chosen, model.state, batches, sizes)), budget)

    best, curve = plans(recipe)
    if best is None and trainable == "auto":
        from edge_runtime.importance import by_importance

        ranked = by_importance(model.forward, recipe, model.initial)
        names = _most_that_fit(lambda chosen: plans(chosen)[0] is not None, recipe, ranked)
        # If not even one fits, the last one, next to the loss, comes closest.
        best, curve = plans(dataclasses.replace(recipe, trainable=names or recipe.trainable[-1:]))
    if best is None:
        raise over_budget(curve, budget, _advice(model.forward, trainable, max(batches), micro_batch))
    return _program(best, curve, budget, max(batches), model)


def parse_bytes(budget: int | str | None) -> int:
    """A budget in bytes; 0 for None.

    >>> parse_bytes("8 MiB"), parse_bytes("40 MB"), parse_bytes(1000), parse_bytes(None)
    (8388608, 40000000, 1000, 0)
    """
    if budget is None:
        return 0
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(budget))
    if not found or found[2].lower() not in _UNITS or float(found[1]) * _UNITS[found[2].lower()] < 1:
        raise ConfigError(f"memory_budget = {budget!r}: must be bytes, or a text such as '8 MiB' or '40 MB'")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _batches(batch_size: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (batch_size,) if isinstance(batch_size, int) else tuple(sorted(set(batch_size)))
    if not sizes or any(not isinstance(size, int) or not 1 <= size <= 1_000_000 for size in sizes):
        raise ConfigError(f"batch_size = {batch_size!r}: must be whole numbers from 1 to 1000000")
    return sizes


def _loss(loss: str | Loss) -> Loss:
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ConfigError(f"loss = {loss!r}: must be one of {', '.join(sorted(LOSSES))}, or a loss object")
        return LOSSES[loss]()
    return loss


@dataclass(frozen=True, slots=True)
class _Model:
    """A captured module: its forward graph in training and in evaluation mode for any batch, and its tensors."""

    forward: GraphAt
    predict: GraphAt
    state: tuple[Value, ...]
    parameters: frozenset[str]
    initial: dict[str, NDArray[np.float32]]
    counters: dict[str, int]
    names: tuple[str, ...]


def _captured(module: torch.nn.Module, example_inputs: Any) -> _Model:
    try:
        import torch

        from edge_runtime.capture.batched import capture_batched, mode
    except ImportError as error:
        raise MissingPackageError("building a Program needs PyTorch: pip install 'hedgerow[server]'") from error
    given = example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,)
    examples = [one if isinstance(one, torch.Tensor) else torch.from_numpy(np.asarray(one)) for one in given]
    with mode(module, training=True):
        training = capture_batched(module, examples)
    with mode(module, training=False):
        evaluation = capture_batched(module, examples)
    tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    counters = {name: int(one) for name, one in tensors.items() if one.dtype == torch.int64 and one.ndim == 0}
    floats = {name: one for name, one in tensors.items() if name not in counters}
    for name, one in floats.items():
        if one.dtype != torch.float32:
            raise UnsupportedOpError(f"tensor {name} is {one.dtype}; only float32 models are trained")
    used = {*training.small.state, *evaluation.small.state}
    if strange := used - floats.keys():
        raise UnsupportedOpError(f"tensor {min(strange)} is not in the module's state_dict; register it as a buffer")

    @functools.cache
    def forward(batch: int) -> Graph:
        return simplify(training.at(batch))

    @functools.cache
    def predict(batch: int) -> Graph:
        return simplify(evaluation.at(batch))

    return _Model(
        forward,
        predict,
        state=tuple(Value(name, tuple(one.shape)) for name, one in floats.items()),
        parameters=frozenset(name for name, _ in module.named_parameters(remove_duplicate=False)),
        initial={name: one.numpy().copy() for name, one in floats.items()},
        counters=counters,
        names=tuple(tensors),
    )


def _trainable(module: torch.nn.Module, trainable: Sequence[str] | str | None) -> tuple[str, ...]:
    """Names of the parameters to train, in the module's order."""
    parameters = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    if trainable is None or trainable == "auto":
        names = tuple(name for name, wanted in parameters.items() if wanted)
    else:
        from fnmatch import fnmatchcase

        patterns = [trainable] if isinstance(trainable, str) else list(trainable)
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in parameters):
                raise ConfigError(f"trainable = {pattern!r}: fits no parameter; there are {', '.join(parameters)}")
        names = tuple(name for name in parameters if any(fnmatchcase(name, pattern) for pattern in patterns))
    if not names:
        raise ConfigError("the model has no trainable parameter")
    return names


def _micro_batches(forward: GraphAt, batch: int, asked: int | None) -> tuple[int, ...]:
    """Row counts to try: the whole batch, its halves down to 1 where splitting is exact; or what was asked for."""
    if asked is not None:
        if not 1 <= asked <= batch:
            raise ConfigError(f"micro_batch = {asked}: must be from 1 to the batch size, {batch}")
        return (asked,)
    if _has_batch_norm(forward(batch)):
        return (batch,)
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return tuple(sizes)


def _has_batch_norm(graph: Graph) -> bool:
    return any(node.op == "batch_norm" for node in graph.nodes)


def _most_that_fit(fits: Callable[[Recipe], bool], recipe: Recipe, ranked: Sequence[str]) -> tuple[str, ...]:
    """Tensors that can be trained together, in the model's order: each of `ranked` that still fits beside those before.

    Whole runs of tensors are tried first and halved where they do not fit.
    """
    chosen: set[str] = set()

    def add(names: Sequence[str]) -> None:
        tried = chosen | set(names)
        if fits(dataclasses.replace(recipe, trainable=tuple(name for name in recipe.trainable if name in tried))):
            chosen.update(names)
        elif len(names) > 1:
            add(names[: len(names) // 2])
            add(names[len(names) // 2 :])

    add(ranked)
    return tuple(name for name in recipe.trainable if name in chosen)


def _advice(forward: GraphAt, trainable: Any, batch: int, micro_batch: int | None) -> list[str]:
    advice = []
    if _has_batch_norm(forward(batch)):
        if micro_batch is None or micro_batch > 1:
            advice.append("GroupNorm or frozen BatchNorm (.eval()), which let a batch be split")
        if batch > 1:
            advice.append("a smaller batch_size")
    elif micro_batch is not None and micro_batch > 1:
        advice.append("micro_batch=None, so that the planner may split a batch further")
    if trainable is None:
        advice.append('trainable="auto", or names of the last layers')
    return advice or ["a smaller model"]


def _program(best: Placed, curve: list[Placed], budget: int, batch: int, model: _Model) -> Program:
    plan = best.candidate
    offsets, state_bytes = _state_offsets(plan.state)
    contents = {**model.initial, **_constants(plan)}
    phases = []
    for planned, arena in zip(plan.phases, best.arenas, strict=True):
        graph = planned.graph
        places = {name: state_bytes + arena.offsets[buffer] for name, buffer in planned.lifetimes.buffer_of.items()}
        places.update((name, offsets[name]) for name in graph.state)
        for node in graph.nodes:  # a view of a state tensor is that tensor
            if node.op == "reshape" and node.inputs[0] in graph.state:
                places[node.outputs[0]] = offsets[node.inputs[0]]
        work = {
            int(name.removeprefix("work.")): state_bytes + offset
            for name, offset in arena.offsets.items()
            if name.startswith("work.")
        }
        phases.append(
            Phase(
                kind=planned.kind,
                batch=planned.batch,
                inputs=tuple(_tensor(graph.values[name], places[name]) for name in graph.inputs),
                outputs=tuple(_tensor(graph.values[name], places[name]) for name in graph.outputs),
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
        state=tuple(_state_tensor(value, offsets[value.name], plan.recipe, model) for value in plan.state),
        counters=model.counters,
        state_dict_order=model.names,
        phases=tuple(phases),
        report=_report(best, curve),
        initial={name: content for name, content in contents.items() if name in offsets},
    )


def _tensor(value: Value, offset: int) -> Tensor:
    return Tensor(value.name, value.dtype, value.shape, offset)


def _state_offsets(state: Sequence[Value]) -> tuple[dict[str, int], int]:
    offsets, end = {}, 0
    for value in state:
        offsets[value.name] = end
        end += -(-value.nbytes // ALIGNMENT) * ALIGNMENT
    return offsets, end


def _constants(plan: Candidate) -> dict[str, Any]:
    """Contents of the loss's own tensors."""
    terms = loss_specs.terms(plan.recipe.loss)
    weights = {f"loss.class_weights.{k}": getattr(term.loss, "class_weights", ()) for k, term in enumerate(terms)}
    return {name: np.asarray(values, np.float32) for name, values in weights.items() if values}


_SUFFIXES = {"anchor": "anchor", "correction": "correction", "gradient": "gradient"}


def _state_tensor(value: Value, offset: int, recipe: Recipe, model: _Model) -> StateTensor:
    name = value.name
    if name in model.initial:
        role = "weight" if name in model.parameters else "buffer"
    elif name == LOG_VARIANCES:
        return StateTensor(_tensor(value, offset), "variance", trained=True)
    elif name.startswith("loss.class_weights."):
        role = "constant"
    else:
        role = _SUFFIXES.get(name.rsplit("/", 1)[-1], "moment")
    return StateTensor(_tensor(value, offset), role, trained=name in recipe.trainable)


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
