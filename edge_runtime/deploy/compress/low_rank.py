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


# Of a weight w (O, I): squared singular values, falling, and the singular vectors of its shorter side, as columns.
Spectrum = tuple[NDArray[np.float64], NDArray[np.float64]]


def spectra(model: FloatModel) -> dict[str, Spectrum]:
    """Of every weight that can be factored. They cost more than all else here: who tries many energies, shares them."""
    return {node.inputs[1]: _spectrum(_matrix(model.weights[node.inputs[1]])) for node in _layers(model)}


def rank_table(model: FloatModel, energy: float, known: Mapping[str, Spectrum] | None = None) -> list[Factored]:
    """For every layer the lowest rank that keeps the share `energy` of its squared singular values."""
    if not 0 < energy <= 1:
        raise ConfigError(f"energy = {energy}: must be > 0 and <= 1")
    known = spectra(model) if known is None else known
    return [_at_energy(model, name, spectrum[0], energy) for name, spectrum in known.items()]


def factored(
    model: FloatModel,
    *,
    ranks: Mapping[str, int] | None = None,
    energy: float | None = None,
    known: Mapping[str, Spectrum] | None = None,
) -> FloatModel:
    """Layers as products: W (O, I) = A (O, r) B (r, I), the best of rank r (Eckart and Young 1936).

    A convolution becomes one to r channels and a 1x1 one behind it (Zhang et al. 2016, "Accelerating very deep
    convolutional networks", section 3.1). The singular values are shared out evenly, so that both factors' numbers are
    of one size, which rounding wants.

    Args:
        model: of which a layer that shares its weight with another is left as it is.
        ranks: by weight name, whatever that saves; or
        energy: the share of squared singular values to keep, in every layer where that takes fewer bytes.
        known: this model's `spectra`; computed if None.

    Raises:
        ConfigError: a name of no such layer, a rank that it does not have, or both arguments, or none.

    """
    if (ranks is None) == (energy is None):
        raise ConfigError("give ranks or energy, and not both")
    layers = {node.inputs[1]: node for node in _layers(model)}
    if ranks is None:
        assert energy is not None
        known = spectra(model) if known is None else known
        ranks = {one.weight: one.rank for one in rank_table(model, energy, known) if one.saves}
    for name, rank in ranks.items():
        if name not in layers:
            raise ConfigError(f"{name} is no weight that can be factored; there are {', '.join(layers) or 'none'}")
        if not 1 <= rank <= min(_matrix(model.weights[name]).shape):
            raise ConfigError(f"rank of {name} = {rank}: must be from 1 to {min(_matrix(model.weights[name]).shape)}")
    weights = dict(model.weights)
    nodes: list[Node] = []
    for node in model.graph.nodes:
        if node.inputs[1:2] and node.inputs[1] in ranks and layers[node.inputs[1]] is node:
            spectrum = known[node.inputs[1]] if known else _spectrum(_matrix(model.weights[node.inputs[1]]))
            nodes += _split(
                model, node, factors(_matrix(model.weights[node.inputs[1]]), ranks[node.inputs[1]], spectrum), weights
            )
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


def _at_energy(model: FloatModel, name: str, squares: NDArray[np.float64], energy: float) -> Factored:
    kept = np.cumsum(squares) / max(float(squares.sum()), 1e-300)
    rank = min(int(np.searchsorted(kept, energy - 1e-12)) + 1, len(squares))
    rows, columns = _matrix(model.weights[name]).shape
    before = rows * (columns + SCALE_BYTES)
    after = rank * (columns + SCALE_BYTES) + rows * (rank + SCALE_BYTES)
    return Factored(name, rank, len(squares), float(kept[rank - 1]), before, after)


def factors(w: NDArray[np.float32], rank: int, spectrum: Spectrum) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """B (rank, I) and A (O, rank) whose product A B is the best approximation of w (O, I), their norms alike."""
    kept = spectrum[1][:, :rank]
    first, second = (kept.T @ w, kept) if len(w) <= w.shape[1] else (kept.T, w @ kept)
    norms = np.maximum(np.linalg.norm(first, axis=1), 1e-30), np.maximum(np.linalg.norm(second, axis=0), 1e-30)
    balance = np.sqrt(norms[1] / norms[0])
    return (first * balance[:, None]).astype(np.float32), (second / balance).astype(np.float32)


def _spectrum(w: NDArray[np.float32]) -> Spectrum:
    """From w w^T or w^T w, which is many times faster than a whole decomposition of w.

    In float64 that costs no digit that a float32 weight has.
    """
    wide = w.astype(np.float64)
    squares, basis = np.linalg.eigh(wide @ wide.T if len(w) <= w.shape[1] else wide.T @ wide)
    return np.maximum(squares[::-1], 0), basis[:, ::-1]


def _split(
    model: FloatModel,
    node: Node,
    both: tuple[NDArray[np.float32], NDArray[np.float32]],
    weights: dict[str, NDArray[np.float32]],
) -> list[Node]:
    """The two layers for `node`; their weights go to `weights`, the bias stays with the second."""
    name = node.inputs[1]
    w = model.weights[name]
    first, second = both
    names = [_fresh(model, f"{name}.{which}") for which in ("in", "out")]
    tail = (1, 1) if node.op == "conv2d" else ()
    weights[names[0]] = first.reshape(len(first), *w.shape[1:])
    weights[names[1]] = second.reshape(len(w), len(first), *tail)
    between = _fresh(model, f"{node.outputs[0]}.in")
    plain = {**node.attributes, "stride": (1, 1), "padding": (0, 0)} if tail else node.attributes
    return [
        replace(node, inputs=(node.inputs[0], names[0]), outputs=(between,)),
        replace(node, inputs=(between, names[1], *node.inputs[2:]), attributes=plain),
    ]


def _fresh(model: FloatModel, name: str) -> str:
    taken = model.graph.values
    return name if name not in taken else next(n for i in range(len(taken) + 1) if (n := f"{name}.{i}") not in taken)
