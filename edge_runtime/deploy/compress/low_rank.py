"""Low-rank factorisation: one layer becomes two thinner ones, where that takes fewer bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.compress.rebuild import rebuilt
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.errors import ConfigError
from edge_runtime.ir.graph import Node

SCALE_BYTES = 4  # of an INT8 weight, per output channel


@dataclass(frozen=True, slots=True)
class Factored:
    """One layer that could be factored, at one rank.

    Attributes:
        weight: its name; the layer is linear, or a convolution in one group.
        rank: of the most that the layer has, `full_rank`.
        energy: share of the sum of squared singular values that is kept.
        bytes_before, bytes_after: of the layer's INT8 weights with their scales.

    """

    weight: str
    rank: int
    full_rank: int
    energy: float
    bytes_before: int
    bytes_after: int

    @property
    def saves(self) -> bool:
        return self.bytes_after < self.bytes_before


def rank_table(model: FloatModel, energy: float) -> list[Factored]:
    """For every layer the lowest rank that keeps the share `energy` of its squared singular values."""
    if not 0 < energy <= 1:
        raise ConfigError(f"energy = {energy}: must be > 0 and <= 1")
    return [_at_energy(model, node.inputs[1], energy) for node in _layers(model)]


def factored(model: FloatModel, *, ranks: Mapping[str, int] | None = None, energy: float | None = None) -> FloatModel:
    """Layers as products: W (O, I) = A (O, r) B (r, I), the best of rank r (Eckart and Young 1936).

    A convolution becomes one to r channels and a 1x1 one behind it (Zhang et al. 2016, "Accelerating very deep
    convolutional networks", section 3.1). The singular values are shared out evenly, so that both factors' numbers are
    of one size, which rounding wants.

    Args:
        model: of which a layer that shares its weight with another is left as it is.
        ranks: by weight name, whatever that saves; or
        energy: the share of squared singular values to keep, in every layer where that takes fewer bytes.

    Raises:
        ConfigError: a name of no such layer, a rank that it does not have, or both arguments, or none.

    """
    if (ranks is None) == (energy is None):
        raise ConfigError("give ranks or energy, and not both")
    layers = {node.inputs[1]: node for node in _layers(model)}
    if ranks is None:
        assert energy is not None
        ranks = {one.weight: one.rank for one in rank_table(model, energy) if one.saves}
    for name, rank in ranks.items():
        if name not in layers:
            raise ConfigError(f"{name} is no weight that can be factored; there are {', '.join(layers) or 'none'}")
        if not 1 <= rank <= min(_matrix(model.weights[name]).shape):
            raise ConfigError(f"rank of {name} = {rank}: must be from 1 to {min(_matrix(model.weights[name]).shape)}")
    weights = dict(model.weights)
    nodes: list[Node] = []
    for node in model.graph.nodes:
        if node.inputs[1:2] and node.inputs[1] in ranks and layers[node.inputs[1]] is node:
            nodes += _split(model, node, ranks[node.inputs[1]], weights)
        else:
            nodes.append(node)
    return rebuilt(model, nodes, weights)


def _layers(model: FloatModel) -> Iterator[Node]:
    readers = Counter(name for node in model.graph.nodes for name in node.inputs)
    for node in model.graph.nodes:
        fits = node.op == "linear" or (node.op == "conv2d" and node.attributes["groups"] == 1)
        if fits and node.inputs[1] in model.weights and readers[node.inputs[1]] == 1:
            yield node


def _matrix(w: NDArray[np.float32]) -> NDArray[np.float32]:
    return w.reshape(len(w), -1)


def _at_energy(model: FloatModel, name: str, energy: float) -> Factored:
    matrix = _matrix(model.weights[name]).astype(np.float64)
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    kept = np.cumsum(squares) / max(float(squares.sum()), 1e-300)
    rank = min(int(np.searchsorted(kept, energy - 1e-12)) + 1, len(squares))
    rows, columns = matrix.shape
    before = rows * (columns + SCALE_BYTES)
    after = rank * (columns + SCALE_BYTES) + rows * (rank + SCALE_BYTES)
    return Factored(name, rank, len(squares), float(kept[rank - 1]), before, after)


def _split(model: FloatModel, node: Node, rank: int, weights: dict[str, NDArray[np.float32]]) -> list[Node]:
    """The two layers for `node`; their weights go to `weights`, the bias stays with the second."""
    name = node.inputs[1]
    w = model.weights[name]
    u, s, v = np.linalg.svd(_matrix(w).astype(np.float64), full_matrices=False)
    root = np.sqrt(s[:rank])
    first, second = root[:, None] * v[:rank], u[:, :rank] * root
    names = [_fresh(model, f"{name}.{which}") for which in ("in", "out")]
    tail = (1, 1) if node.op == "conv2d" else ()
    weights[names[0]] = first.reshape(rank, *w.shape[1:]).astype(np.float32)
    weights[names[1]] = second.reshape(len(w), rank, *tail).astype(np.float32)
    between = _fresh(model, f"{node.outputs[0]}.in")
    plain = {**node.attributes, "stride": (1, 1), "padding": (0, 0)} if tail else node.attributes
    return [
        replace(node, inputs=(node.inputs[0], names[0]), outputs=(between,)),
        replace(node, inputs=(between, names[1], *node.inputs[2:]), attributes=plain),
    ]


def _fresh(model: FloatModel, name: str) -> str:
    taken = model.graph.values
    return name if name not in taken else next(n for i in range(len(taken) + 1) if (n := f"{name}.{i}") not in taken)
