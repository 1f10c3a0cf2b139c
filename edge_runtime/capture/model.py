"""A PyTorch module as the planner takes it."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import numpy as np
import torch

from edge_runtime.capture.batched import BatchedGraph, capture_batched, mode, resized
from edge_runtime.capture.capture import capture
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.graph import Value
from edge_runtime.ir.model import Model
from edge_runtime.passes.pipeline import simplify
from edge_runtime.passes.rows import require_independent_rows

# A batch size that divides no dim by chance: where it shows in a shape, the batch is.
A_PRIME = 997


def capture_model(module: torch.nn.Module, example_inputs: Any) -> Model:
    """Capture `module`; of the examples (a tensor or array, or a tuple of them) only shape and dtype count.

    Raises:
        UnsupportedOpError: an op, a dtype or a use of the batch that cannot be had exactly.

    """
    given = example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,)
    examples = [_example(one) for one in given]
    with mode(module, training=True):
        training = capture_batched(module, examples)
    with mode(module, training=False):
        evaluation = capture_batched(module, examples)
    for graph in (training, evaluation):
        rows = graph.fixed or A_PRIME
        require_independent_rows(simplify(graph.at(rows)), rows, split=not graph.fixed)

    tensors = dict(module.state_dict(keep_vars=True))
    counters = {name: int(one) for name, one in tensors.items() if one.dtype == torch.int64 and one.ndim == 0}
    aliases = _aliases(tensors, {*training.small.state, *evaluation.small.state})
    floats = {name: one for name, one in tensors.items() if name not in counters and name not in aliases}
    for name, one in floats.items():
        if one.dtype != torch.float32:
            raise UnsupportedOpError(f"tensor {name} is {one.dtype}; only float32 models are trained")
    if strange := {*training.small.state, *evaluation.small.state} - floats.keys():
        raise UnsupportedOpError(f"tensor {min(strange)} is not in the module's state_dict; register it as a buffer")
    parameters = {aliases.get(name, name): one for name, one in module.named_parameters()}
    moved = Counter(name for node in training.small.nodes for name in node.writes)
    return Model(
        forward=functools.cache(lambda batch: simplify(training.at(batch))),
        predict=functools.cache(lambda batch: simplify(evaluation.at(batch))),
        check=functools.partial(_check, module, examples, training, evaluation),
        fixed=training.fixed or evaluation.fixed,
        state=tuple(Value(name, tuple(one.shape)) for name, one in floats.items()),
        parameters=frozenset(parameters),
        trainable=tuple(n for n, one in parameters.items() if one.requires_grad and n in training.small.state),
        initial={name: one.detach().numpy().copy() for name, one in floats.items()},
        counters=counters,
        counted={name: moved[mean] for name in counters if (mean := _running_mean(name)) in moved},
        aliases=aliases,
        names=tuple(tensors),
    )


def _example(one: Any) -> torch.Tensor:
    """The example as float32 or int64, whatever its precision: only its shape and kind count."""
    tensor = one if isinstance(one, torch.Tensor) else torch.from_numpy(np.asarray(one))
    if tensor.ndim == 0:
        raise UnsupportedOpError("an example input must be an array whose first dim is the batch")
    return tensor.to(torch.float32 if tensor.is_floating_point() else torch.int64)


def _running_mean(counter: str) -> str:
    """The running mean that a batch norm's counter belongs to."""
    return f"{counter.removesuffix('num_batches_tracked')}running_mean"


def _aliases(tensors: dict[str, torch.Tensor], captured: set[str]) -> dict[str, str]:
    """Names of one tensor that has several, with the one that the captured graph calls it by, or else the first."""
    groups: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(id(tensor), []).append(name)
    chosen = {
        name: next((one for one in names if one in captured), names[0]) for names in groups.values() for name in names
    }
    return {name: one for name, one in chosen.items() if name != one}


def _check(
    module: torch.nn.Module,
    examples: list[torch.Tensor],
    training: BatchedGraph,
    evaluation: BatchedGraph,
    rows: int,
    rows_predict: int,
) -> None:
    """Capture once more at the sizes that will run.

    Raises:
        UnsupportedOpError: the module runs another graph there than its captures at small sizes say.

    """
    for graph, size, train in ((training, rows, True), (evaluation, rows_predict, False)):
        if graph.fixed:
            continue
        with mode(module, training=train):
            real = simplify(capture(module, *(resized(example, size) for example in examples)))
        expected = simplify(graph.at(size))
        if (real.nodes, real.values, real.outputs) != (expected.nodes, expected.values, expected.outputs):
            raise UnsupportedOpError(f"the model's graph depends on its batch size: at {size} rows it is another")
