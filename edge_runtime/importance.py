"""Which weights matter most to a loss, measured: what `trainable="auto"` keeps when not all can be trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from edge_runtime.engine import reference
from edge_runtime.ir.graph import Graph
from edge_runtime.losses import CLASS_LOSSES, BCEWithLogits, KLDivergence, terms
from edge_runtime.passes.training import Recipe, gradient_graph

ROWS, TRIALS = 8, 4


def by_importance(
    forward_at: Callable[[int], Graph],
    recipe: Recipe,
    weights: Mapping[str, NDArray[np.float32]],
    rows: int = ROWS,
    seed: int = 0,
) -> list[str]:
    """Names of `recipe.trainable`, the most important first.

    The measure is the trace of each tensor's empirical Fisher information per byte that training it takes: the sum of
    its squared gradients, divided by its size (Kirkpatrick et al. 2017, section 2.1). Targets are drawn from the
    model's own predictions, as the Fisher information asks, and inputs are standard normal noise, or uniform tokens,
    for no examples are at hand where a Program is built.
    """
    rng = np.random.default_rng(seed)
    forward = forward_at(rows)
    graph = gradient_graph(forward, recipe, rows)
    scores = dict.fromkeys(recipe.trainable, 0.0)
    for _ in range(TRIALS):
        tensors: dict[str, NDArray[np.generic]] = {name: weights[name] for name in graph.state if name in weights}
        tensors |= {name: np.zeros(graph.values[name].shape, np.float32) for name in graph.state if name not in weights}
        tensors |= {name: _drawn(graph, name, rows, rng) for name in graph.inputs}
        given = {name: tensors[name] for name in (*forward.inputs, *forward.state)}
        outputs = reference.run(forward, given)
        for k, term in enumerate(terms(recipe.loss)):
            tensors[f"target.{k}"] = _target(term.loss, outputs[forward.outputs[term.output]], rng)
        values = reference.run(graph, tensors)
        for name, gradient in zip(recipe.trainable, graph.outputs[1:], strict=True):
            scores[name] += float(np.mean(np.square(values[gradient], dtype=np.float64)))
    return sorted(scores, key=lambda name: -scores[name])


def _drawn(graph: Graph, name: str, rows: int, rng: np.random.Generator) -> NDArray[np.generic]:
    value = graph.values[name]
    if name == "rows":
        return np.full(1, rows, np.int64)
    if name == "random":
        return np.zeros(3, np.int64)
    if value.dtype == "i64":
        tables = [n.inputs[0] for n in graph.nodes if n.op == "embedding" and n.inputs[1] == name]
        high = min((graph.values[table].shape[0] for table in tables), default=1)
        return rng.integers(0, high, value.shape)
    if name.startswith(("norm.", "share")):
        return np.full(1, 1 / rows, np.float32)
    return rng.standard_normal(value.shape).astype(np.float32)


def _target(loss: object, output: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.generic]:
    """A target drawn from what the model itself predicts."""
    if isinstance(loss, CLASS_LOSSES):
        noise = rng.gumbel(size=output.shape)  # the largest of logits plus Gumbel noise is a draw from their softmax
        return np.asarray((output + noise).argmax(-1), np.int64)
    if isinstance(loss, BCEWithLogits):
        return np.asarray(rng.random(output.shape) < 1 / (1 + np.exp(-output.astype(np.float64))), np.float32)
    spread = 0.0 if isinstance(loss, KLDivergence) else 1.0
    return np.asarray(output + spread * rng.standard_normal(output.shape), np.float32)
