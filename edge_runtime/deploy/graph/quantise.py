"""Which values become integers, and on what grid: a folded `FloatModel` and ranges to a `QuantisedModel`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.graph.blocks import blocks
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.quantised import Quant, QuantisedModel
from edge_runtime.ir.graph import Graph, Node
from edge_runtime.ir.grids import ACTIVATION_BITS, INTEGER_OPS, MOVES, bits_by_weight, layer_weights

Ranges = Mapping[str, tuple[float, float]]

# What the functions can give is known, and the grids that TFLite asks for hold it: scale and zero point.
FIXED = {"sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)}

# In steps of its grid; an int32 sum of products has room beside it. LiteRT's kernels for 4-bit weights sum 16 times
# that.
LARGEST_BIAS, LARGEST_BIAS_4 = 2**30, 2**26


def quantise(
    model: FloatModel, ranges: Ranges, *, weight_bits: int | Mapping[str, int] = 8, activations: bool = True
) -> QuantisedModel:
    """Put weights, and activations unless told otherwise, on integer grids.

    Args:
        model: folded (`fold.fold`).
        ranges: least and greatest of every value with a batch (`calibrate.calibrate`).
        weight_bits: 2 to 8 for all, or by weight name, 8 for those that are not there.
        activations: False for weight-only: integers are then storage, and arithmetic is float32.

    Raises:
        ConfigError: bits outside 2 to 8, or names of no weight.

    """
    graph = model.graph
    stored = layer_weights(graph)
    bits = bits_by_weight(stored, weight_bits)
    quants = _activation_quants(model, ranges) if activations else {}
    inputs_of = {node.inputs[1]: node for node in graph.nodes if node.op in ("conv2d", "linear")}
    for name in sorted(stored):
        step = None
        if (layer := inputs_of.get(name)) and is_integer(layer, graph, quants) and len(layer.inputs) > 2:
            largest = LARGEST_BIAS if bits[name] > 4 else LARGEST_BIAS_4
            step = np.abs(model.weights[layer.inputs[2]]) / quants[layer.inputs[0]].scale[0] / largest
        quants[name] = weight_quant(model.weights[name], bits[name], step)
    for node in graph.nodes:
        if node.op in ("conv2d", "linear") and len(node.inputs) > 2 and is_integer(node, graph, quants):
            scale = (quants[node.inputs[0]].scale * quants[node.inputs[1]].scale).astype(np.float32)
            quants[node.inputs[2]] = Quant(scale, np.zeros(scale.shape, np.int32), 32, 0, symmetric=True)
    return QuantisedModel(model, quants)


def is_integer(node: Node, graph: Graph, quants: Mapping[str, Quant]) -> bool:
    """Whether `node` has all that it takes to compute in integers: a grid for each float input that is no bias."""
    if node.op not in INTEGER_OPS:
        return False
    read = node.inputs[:2] if node.op in ("conv2d", "linear") else node.inputs
    return all(name in quants for name in read if graph.values[name].dtype == "f32" and name not in graph.state) and (
        node.op not in ("conv2d", "linear") or node.inputs[1] in graph.state
    )


def weight_quant(w: NDArray[np.float32], bits: int, least: NDArray[np.float32] | None = None) -> Quant:
    """Symmetric, one scale per row of `w`: max|row| / (2^(bits-1) - 1), at least `least`."""
    top = np.abs(w.reshape(len(w), -1)).max(1)
    scale = top / (2 ** (bits - 1) - 1)
    scale = np.where(scale > 0, scale, 1.0) if least is None else np.maximum(scale, least)
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0).astype(np.float32)
    return Quant(scale, np.zeros(len(w), np.int32), bits, 0, symmetric=True)


def activation_quant(low: float, high: float, bits: int = ACTIVATION_BITS) -> Quant:
    """Asymmetric over [low, high] and 0, which is exactly on the grid (Jacob et al. 2018, section 2.1)."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    if not np.finfo(np.float32).tiny < scale < np.finfo(np.float32).max:
        scale = 1.0
    bottom = -(2 ** (bits - 1))
    zero = int(np.clip(round(bottom - low / scale), bottom, -bottom - 1))
    return Quant(np.array([scale], np.float32), np.array([zero], np.int32), bits)


def _activation_quants(model: FloatModel, ranges: Ranges) -> dict[str, Quant]:
    """A grid for every value that an integer op reads or makes; one for all that are linked by moves."""
    graph = model.graph
    found = blocks(graph)
    values: set[str] = set()
    links: list[tuple[str, str]] = []
    for block in found:
        node = block.node
        if node.op not in INTEGER_OPS or (node.op in ("conv2d", "linear") and node.inputs[1] not in graph.state):
            continue
        read = [name for name in _activations(node) if graph.values[name].dtype == "f32"]
        if not read or any(name not in ranges and name not in graph.state for name in (*read, block.output)):
            continue
        values.update(name for name in (*read, block.output))
        if node.op in MOVES or node.op == "cat":
            links += [(name, block.output) for name in read]
    leader = _groups(values, links)
    bounds: dict[str, tuple[float, float]] = {}
    for name in values:
        low, high = _range(model, ranges, name)
        before = bounds.get(leader[name], (low, high))
        bounds[leader[name]] = (min(low, before[0]), max(high, before[1]))
    fixed = {leader[b.output]: FIXED[b.node.op] for b in found if b.node.op in FIXED and b.output in values}
    alone = {name for b in found if b.output in values and b.node.op not in MOVES for name in [leader[b.output]]}
    made = [leader[b.output] for b in found if b.output in values and b.node.op not in MOVES]
    grids = {}
    for name, (low, high) in bounds.items():
        if name in fixed and name in alone and made.count(name) == 1:
            scale, zero = fixed[name]
            grids[name] = Quant(np.array([scale], np.float32), np.array([zero], np.int32), ACTIVATION_BITS)
        else:
            grids[name] = activation_quant(low, high)
    return {name: grids[leader[name]] for name in values}


def _activations(node: Node) -> tuple[str, ...]:
    return node.inputs[:1] if node.op in ("conv2d", "linear") else node.inputs


def _range(model: FloatModel, ranges: Ranges, name: str) -> tuple[float, float]:
    if name in model.weights:
        return float(model.weights[name].min()), float(model.weights[name].max())
    return ranges[name]


def _groups(names: set[str], links: list[tuple[str, str]]) -> dict[str, str]:
    """Of each name, the one that stands for all that it is linked with."""
    leader = {name: name for name in names}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for a, b in links:
        first, second = sorted((find(a), find(b)))
        leader[second] = first
    return {name: find(name) for name in names}
