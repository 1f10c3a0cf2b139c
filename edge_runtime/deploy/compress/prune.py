"""Unstructured pruning: the least important weights become zero. Files compress better, inference is no faster."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.compress.scores import Scores, magnitude
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.errors import ConfigError


def prune(
    model: FloatModel,
    fraction: float,
    *,
    scores: Scores | None = None,
    per_layer: bool = False,
    names: Sequence[str] | None = None,
) -> FloatModel:
    """The same graph with `fraction` of the weights at zero, those of the lowest scores; ties in the order of storage.

    Args:
        model: whose weights with two or more dims are pruned, biases never.
        fraction: 0 to 1, of all of them together; zeros that are there already count.
        scores: `scores.magnitude` if None (Han et al. 2015), or `scores.taylor` (Molchanov et al. 2019).
        per_layer: that fraction of every weight tensor, instead of all together.
        names: prune these alone; patterns with `*`.

    """
    check_fraction(fraction)
    scores = magnitude(model) if scores is None else scores
    chosen = fitting(names or ["*"], [name for name, w in model.weights.items() if w.ndim >= 2])
    ranked = {name: np.where(model.weights[name] == 0, -1.0, scores[name]) for name in chosen}
    if per_layer:
        return model.with_weights({name: _without(model, name, lowest(one, fraction)) for name, one in ranked.items()})
    marked = lowest(np.concatenate([one.ravel() for one in ranked.values()]), fraction)
    pruned, start = {}, 0
    for name, one in ranked.items():
        pruned[name] = _without(model, name, marked[start : start + one.size].reshape(one.shape))
        start += one.size
    return model.with_weights(pruned)


def sparsity(model: FloatModel) -> float:
    """The share of zeros among the weights that `prune` may take."""
    weights = [w for w in model.weights.values() if w.ndim >= 2]
    return sum(int((w == 0).sum()) for w in weights) / max(sum(w.size for w in weights), 1)


def fitting(patterns: Sequence[str], known: Sequence[str]) -> list[str]:
    """Those of `known` that a pattern fits, in their order; ConfigError for a pattern that fits none."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ConfigError(f"{pattern!r} fits none of the weights it is for: {', '.join(known) or 'there are none'}")
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]


def check_fraction(fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise ConfigError(f"fraction = {fraction}: must be >= 0 and < 1")


def lowest(scores: NDArray[np.floating], fraction: float) -> NDArray[np.bool_]:
    """Marks the `fraction` of lowest scores."""
    marked = np.zeros(scores.size, np.bool_)
    marked[np.argsort(scores.ravel(), kind="stable")[: round(fraction * scores.size)]] = True
    return marked.reshape(scores.shape)


def _without(model: FloatModel, name: str, marked: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(marked, np.float32(0), model.weights[name])
