"""`build`: a PyTorch module to a Program. The one place that strings capture, passes, planner and packing together.

nn.Module -> Graph -> training Graph -> plans, of which one is chosen -> offsets -> native ops -> Program

`build_graph` is the same without the first arrow, and so without PyTorch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import losses as loss_specs
from edge_runtime.adapters import LORA_A
from edge_runtime.config import names_that_fit, parse_bytes
from edge_runtime.errors import ConfigError, MissingPackageError, UnsupportedOpError
from edge_runtime.ir.graph import Graph
from edge_runtime.ir.model import Model
from edge_runtime.losses import LOSSES, Loss
from edge_runtime.optimizers import SGD, Optimizer, checked
from edge_runtime.passes.fake_quant import with_fake_quant
from edge_runtime.passes.pipeline import simplify
from edge_runtime.passes.training import Recipe
from edge_runtime.planner.assemble import assemble
from edge_runtime.planner.budget import GraphAt, Placed, candidates, choose, over_budget
from edge_runtime.program.program import Program

if TYPE_CHECKING:
    import torch


def build(
    module: torch.nn.Module,
    example_inputs: Any,
    *,
    loss: str | Loss = "cross_entropy",
    optimizer: Optimizer | None = None,
    batch_size: int | Sequence[int] = 32,
    memory_budget: int | str | None = None,
    trainable: Sequence[str] | str | None = None,
    lora_rank: int = 0,
    lora_alpha: float | None = None,
    micro_batch: int | None = None,
    proximal_mu: float = 0.0,
    correction: bool = False,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    qat_bits: int | Mapping[str, int] = 0,
    qat_activations: bool = True,
) -> Program:
    """Plan the training of `module` inside a byte budget.

    Args:
        module: float32; captured in training mode. Layers that are in evaluation mode inside a module that is in
            training mode stay so (frozen batch norm); a module that is in evaluation mode as a whole is not frozen.
        example_inputs: a tensor or array (batch, ...), or a tuple of them, one per input; only shape and dtype count.
        loss: a name of `losses.LOSSES`, or a loss.
        optimizer: SGD(lr=0.05) if None.
        batch_size: rows of a step, shorter batches are masked exactly; several sizes share one Program and its weights,
            and a batch runs at the smallest one that holds it.
        memory_budget: bytes, or a text such as "8 MiB" or "40 MB" (10^6), for weights, gradients, optimizer state,
            activations, workspace and input together; None for no limit.
        trainable: None for every parameter that requires a gradient; names, or patterns with `*`; or "auto": all if
            they fit, else as many as fit, in order of measured importance.
        lora_rank: rank of the low-rank adapters that train in place of the weights of linear and 1x1 convolution
            layers, 0 for none; see `capture/adapters.py` for which layers and what trains beside them. `trainable` then
            names what trains beside them. They are tensors of the Program's state_dict: `merge_adapters` gives that of
            `module`.
        lora_alpha: scales what the adapters add by alpha / rank; None for the rank.
        micro_batch: rows that go through the model at once; None leaves it to the planner, which splits a batch only
            where that is exact: not across batch norm in training, which then takes each part's own statistics, and
            moves its running ones once for each.
        proximal_mu: FedProx's mu.
        correction: whether the Program has room for SCAFFOLD's c - c_i, see `Trainer.set_correction`.
        clip_value: bound of each gradient's elements; 0 for none.
        clip_norm: bound of the norm of all gradients together, which then wait for each other; 0 for none.
        qat_bits: quantisation-aware training, see `passes/fake_quant.py`: every step, and evaluation too, computes with
            the weights of layers rounded to integers of 2 to 8 bits, or by weight name; what is kept, sent and saved
            stays float32. 0 for off. Not with `lora_rank`: what a device will round is the merged weight.
        qat_activations: with `qat_bits`, whether training steps also round activations, to 8 bits over the range of the
            batch, which the planner then does not split. Evaluation and prediction do not: on a device those ranges are
            fixed, and here an example's result would depend on the others of its batch.

    Raises:
        UnsupportedOpError: an op or a loss that cannot be done exactly; names the line of the module.
        BudgetError: nothing fits; says what the smallest plan needs and what would help.
        ConfigError: an argument outside its range.

    """
    batches = _batches(batch_size)
    budget = parse_bytes(memory_budget)
    spec = _loss(loss)
    _check_bounds({"proximal_mu": proximal_mu, "clip_value": clip_value, "clip_norm": clip_norm})
    if lora_rank and qat_bits:
        raise ConfigError("qat_bits: must be 0 with a lora_rank; what a device rounds is the merged weight")
    if lora_rank:
        model = _captured(_adapted(module, lora_rank, lora_alpha, trainable), example_inputs)
        _check_adapters(model)
    else:
        model = _captured(module, example_inputs)
    if qat_bits:
        model = _rounding(model, qat_bits, qat_activations)
    names = _trainable(model, None if lora_rank else trainable)
    recipe = Recipe(spec, _optimizer(optimizer), names, proximal_mu, correction, clip_value, clip_norm)
    return _planned(model, recipe, batches, budget, trainable, micro_batch)


def build_graph(
    forward: GraphAt,
    weights: Mapping[str, NDArray[np.float32]],
    *,
    loss: str | Loss = "cross_entropy",
    optimizer: Optimizer | None = None,
    batch_size: int | Sequence[int] = 32,
    memory_budget: int | str | None = None,
    trainable: Sequence[str] | str | None = None,
    micro_batch: int | None = None,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
) -> Program:
    """Plan the training of a graph, such as that of a pruned model: `build_graph(model.at, model.weights)`.

    `forward` gives the graph for a number of rows, the same in training and in evaluation; its rows are independent.
    `weights` are the contents of its state, and train unless `trainable` says otherwise. The rest is as in `build`.
    """
    batches = _batches(batch_size)
    _check_bounds({"clip_value": clip_value, "clip_norm": clip_norm})
    model = _of_graph(forward, weights)
    names = _trainable(model, trainable)
    recipe = Recipe(_loss(loss), _optimizer(optimizer), names, clip_value=clip_value, clip_norm=clip_norm)
    return _planned(model, recipe, batches, parse_bytes(memory_budget), trainable, micro_batch)


def _planned(
    model: Model,
    recipe: Recipe,
    batches: Sequence[int],
    budget: int,
    trainable: Sequence[str] | str | None,
    micro_batch: int | None,
) -> Program:
    """The Program of the fastest plan that fits; with "auto", of as many tensors as fit."""
    sizes = _micro_batches(model, max(batches), micro_batch)

    def plans(chosen: Recipe) -> tuple[Placed | None, list[Placed]]:
        found = candidates(model.forward, model.predict, chosen, model.state, batches, sizes, fixed=bool(model.fixed))
        return choose(list(found), budget)

    best, curve = plans(recipe)
    if best is None and trainable == "auto":
        from edge_runtime.importance import ROWS, by_importance

        ranked = by_importance(model.forward, recipe, model.initial, model.fixed or ROWS)
        names = _most_that_fit(lambda chosen: plans(chosen)[0] is not None, recipe, ranked)
        # If not even one fits, the last one, next to the loss, comes closest.
        best, curve = plans(dataclasses.replace(recipe, trainable=names or recipe.trainable[-1:]))
    if best is None:
        raise over_budget(curve, budget, _advice(model.forward, trainable, max(batches), micro_batch))
    for phase in best.candidate.phases:
        if phase.kind in ("step", "accumulate"):
            model.check(phase.batch, best.candidate.phases[-1].batch)
    return assemble(best, curve, budget, max(batches), model)


def _of_graph(forward: GraphAt, weights: Mapping[str, NDArray[np.float32]]) -> Model:
    at = functools.cache(lambda rows: simplify(forward(rows)))
    state = tuple(forward(2).values[name] for name in weights)
    return Model(
        forward=at,
        predict=at,
        check=lambda rows, rows_predict: None,  # there is no module that could run another graph
        fixed=0,
        state=state,
        parameters=frozenset(weights),
        trainable=tuple(weights),
        initial={name: np.array(one, np.float32) for name, one in weights.items()},
        counters={},
        counted={},
        aliases={},
        names=tuple(weights),
    )


def _batches(batch_size: int | Sequence[int]) -> tuple[int, ...]:
    sizes = list(batch_size) if isinstance(batch_size, list | tuple) else [batch_size]
    if not sizes or not all(type(size) is int and 1 <= size <= 1_000_000 for size in sizes):
        raise ConfigError(f"batch_size = {batch_size!r}: must be whole numbers from 1 to 1000000")
    return tuple(sorted(set(sizes)))  # type: ignore[arg-type]  # they are ints, as was just checked


def _loss(loss: str | Loss) -> Loss:
    if isinstance(loss, str) and loss in LOSSES:
        return LOSSES[loss]()
    if not isinstance(loss, Loss):
        raise ConfigError(f"loss = {loss!r}: must be one of {', '.join(sorted(LOSSES))}, or a loss object")
    return loss_specs.checked(loss)


def _optimizer(optimizer: Optimizer | None) -> Optimizer:
    if optimizer is None:
        return SGD()
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer = {optimizer!r}: must be an optimizer object, such as SGD(lr=0.05)")
    return checked(optimizer)


def _check_bounds(numbers: Mapping[str, float]) -> None:
    for name, value in numbers.items():
        if not math.isfinite(value) or value < 0:
            raise ConfigError(f"{name} = {value}: must be a finite number >= 0")


def _adapted(
    module: torch.nn.Module, rank: int, alpha: float | None, trainable: Sequence[str] | str | None
) -> torch.nn.Module:
    if type(rank) is not int or rank < 0:
        raise ConfigError(f"lora_rank = {rank!r}: must be a whole number >= 0, and 0 for no adapters")
    if alpha is not None and not 0 < alpha < math.inf:
        raise ConfigError(f"lora_alpha = {alpha}: must be a finite number > 0, or None for lora_rank")
    with _needs_torch():
        from edge_runtime.capture.adapters import with_adapters
    return with_adapters(module, rank, alpha, trainable)


def _captured(module: torch.nn.Module, example_inputs: Any) -> Model:
    with _needs_torch():
        from edge_runtime.capture.model import capture_model
    return capture_model(module, example_inputs)


def _rounding(model: Model, bits: int | Mapping[str, int], activations: bool) -> Model:
    """The same tensors; graphs that compute with them rounded."""
    forward, predict = model.forward, model.predict
    return dataclasses.replace(
        model,
        forward=functools.cache(lambda batch: with_fake_quant(forward(batch), bits, activations)),
        predict=functools.cache(lambda batch: with_fake_quant(predict(batch), bits, activations=False)),
    )


@contextlib.contextmanager
def _needs_torch() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingPackageError("building a Program needs PyTorch: pip install 'hedgerow[server]'") from error


def _check_adapters(model: Model) -> None:
    """Refuse a model that takes an adapted layer's weight without calling the layer: the adapters would do nothing."""
    for graph in (model.forward(model.fixed or 2), model.predict(model.fixed or 2)):
        for name in model.names:
            layer = name.removesuffix(LORA_A)
            if layer != name and name not in graph.state and f"{layer}weight" in graph.state:
                raise UnsupportedOpError(
                    f"the model uses {layer}weight without calling its layer, past the layer's adapters; call the "
                    f"layer, or leave lora_rank at 0"
                )


def _trainable(model: Model, trainable: Sequence[str] | str | None) -> tuple[str, ...]:
    """Names of the parameters to train, in the module's order."""
    names = model.trainable
    if trainable is not None and trainable != "auto":
        known = [name for name in model.names if model.aliases.get(name, name) in model.parameters]
        wanted = {model.aliases.get(name, name) for name in names_that_fit(trainable, known)}
        used = model.forward(model.fixed or 2).state
        names = tuple(name for name in known if name in wanted and name in used)
    if not names:
        raise ConfigError("the model has no trainable parameter that its output depends on")
    return names


def _micro_batches(model: Model, batch: int, asked: int | None) -> tuple[int, ...]:
    """Row counts to try: the whole batch, its halves down to 1 where splitting is exact; or what was asked for."""
    if asked is not None:
        if type(asked) is not int or not 1 <= asked <= batch:
            raise ConfigError(f"micro_batch = {asked}: must be from 1 to the batch size, {batch}")
        return (asked,)
    if model.fixed or _has(model.forward(batch), "batch_norm", "fake_quant"):
        return (batch,)
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return tuple(sizes)


def _has(graph: Graph, *ops: str) -> bool:
    return any(node.op in ops for node in graph.nodes)


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
    if _has(forward(batch), "batch_norm", "fake_quant"):
        if _has(forward(batch), "fake_quant"):
            advice.append("qat_activations=False, which lets a batch be split")
        elif micro_batch is None or micro_batch > 1:
            advice.append("GroupNorm, or BatchNorm layers frozen by their own .eval(), which let a batch be split")
        if batch > 1:
            advice.append("a smaller batch_size")
    elif micro_batch is not None and micro_batch > 1:
        advice.append("micro_batch=None, so that the planner may split a batch further")
    if trainable is None:
        advice.append('trainable="auto", or names of the last layers')
    return advice or ["a smaller model"]
