"""Mixed precision: how much each layer suffers from fewer bits, and the widths that cost least for the bytes they save.

One layer's weight is rounded at a time, all else staying float32, and the model's answers are compared (as in HAQ's and
HAWQ's greedy baselines, Wang et al. 2019, Dong et al. 2019; measured here, not learned or derived). Errors of layers
are close to independent, so their squares add up; so, more roughly, do losses of accuracy: `measure` says what a whole
assignment really gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.quantise import quantise, weight_quant
from edge_runtime.errors import ConfigError
from edge_runtime.ir.grids import layer_weights
from edge_runtime.train.metrics import accuracy

RUNNABLE = (8, 4)  # widths that runtimes compute with; 3 and 2 are for storage and transport
SCALE_BYTES = 4

Labels = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Effect:
    """What a model is with some of its weights rounded.

    Attributes:
        accuracy: share of right answers.
        error: mean square of how far the outputs move, over their mean square.

    """

    accuracy: float
    error: float


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight: its elements, its rows (each has a scale), and the effect of every width that was tried."""

    name: str
    size: int
    rows: int
    effects: Mapping[int, Effect]

    def nbytes(self, bits: int) -> int:
        """Packed integers and scales."""
        return -(-self.size * bits // 8) + SCALE_BYTES * self.rows


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The table: the float32 model's accuracy, and its layers in order."""

    accuracy: float
    layers: tuple[Layer, ...]

    def nbytes(self, bits: Mapping[str, int]) -> int:
        """Of all weights of layers at these widths, 8 for those that are not there."""
        return sum(layer.nbytes(bits.get(layer.name, 8)) for layer in self.layers)

    def drop(self, bits: Mapping[str, int]) -> float:
        """Points of accuracy that these widths are expected to cost: the sum of what each costs alone."""
        return sum(_drop(self, layer, bits[layer.name]) for layer in self.layers if layer.name in bits)


def sensitivity(model: FloatModel, x: NDArray[np.generic], y: Labels, bits: Sequence[int] = (8, 4, 2)) -> Sensitivity:
    """Measure every layer at every width.

    Args:
        model: folded.
        x: inputs (n, ...).
        y: the classes that are right, of the output's shape but for its last dim.
        bits: widths, each from 2 to 8.

    """
    if not bits or not all(2 <= one <= 8 for one in bits):
        raise ConfigError(f"bits = {tuple(bits)}: must be numbers from 2 to 8")
    exact = predict(model, x)
    layers = []
    for name in layer_weights(model.graph):
        w = model.weights[name]
        effects = {}
        for one in sorted(set(bits), reverse=True):
            rounded = model.with_weights({name: weight_quant(w, one).round(w)})
            effects[one] = _effect(predict(rounded, x), exact, y)
        layers.append(Layer(name, w.size, len(w), effects))
    return Sensitivity(_effect(exact, exact, y).accuracy, tuple(layers))


def measure(model: FloatModel, x: NDArray[np.generic], y: Labels, bits: Mapping[str, int]) -> Effect:
    """The effect of rounding all weights at once, those that `bits` does not name to 8 bits."""
    rounded = quantise(model, {}, weight_bits=bits, activations=False).rounded()
    return _effect(predict(rounded, x), predict(model, x), y)


def choose_bits(
    table: Sensitivity,
    *,
    target_bytes: int | None = None,
    max_drop: float | None = None,
    widths: Sequence[int] = RUNNABLE,
) -> dict[str, int]:
    """A width for every layer: narrowed one after another, where a saved byte costs least error.

    Args:
        table: of `sensitivity`, with all of `widths` in it.
        target_bytes: stop as soon as weights with their scales take no more; None to narrow what may be narrowed.
        max_drop: points of accuracy that the widths may cost, as `Sensitivity.drop` expects it; None for any number.
        widths: those that may be taken. Fewer than 4 bits only travel smaller.

    Returns:
        Bits by weight name, as `quantise` takes them. A smaller target narrows the same layers and more.

    Raises:
        ConfigError: neither bound, a width that the table lacks, or a target that cannot be met.

    """
    if target_bytes is None and max_drop is None:
        raise ConfigError("choose_bits needs target_bytes, max_drop, or both")
    if missing := sorted(set(widths) - {bits for layer in table.layers for bits in layer.effects}):
        raise ConfigError(f"widths: {missing[0]} bits were not measured; give sensitivity(bits=...) all of them")
    chosen = dict.fromkeys((layer.name for layer in table.layers), max(widths))
    while target_bytes is None or table.nbytes(chosen) > target_bytes:
        moves = [
            (cost, layer.name, bits)
            for layer in table.layers
            for bits, cost in _moves(layer, chosen[layer.name], widths)
            if max_drop is None or table.drop({**chosen, layer.name: bits}) <= max_drop
        ]
        if not moves:
            break
        _, name, bits = min(moves)
        chosen[name] = bits
    if target_bytes is not None and (least := table.nbytes(chosen)) > target_bytes:
        bound = "" if max_drop is None else f" at an expected loss of {max_drop:g} points"
        raise ConfigError(
            f"target_bytes = {target_bytes}: widths {', '.join(map(str, widths))} come down to {least} bytes{bound}; "
            "what would help: narrower widths, a larger max_drop, pruning"
        )
    return chosen


def to_text(table: Sensitivity, chosen: Mapping[str, int] | None = None) -> str:
    """The table for people; a `*` marks the width that was chosen."""
    widths = sorted({bits for layer in table.layers for bits in layer.effects}, reverse=True)
    long = max([len("weight"), *(len(layer.name) for layer in table.layers)])
    lines = [
        f"{'weight':{long}}  {'numbers':>9}" + "".join(f"  {f'{bits} bits: accuracy, error':>24} " for bits in widths)
    ]
    for layer in table.layers:
        cells = []
        for bits in widths:
            effect = layer.effects[bits]
            mark = "*" if chosen and chosen.get(layer.name) == bits else " "
            cells.append(f"  {100 * effect.accuracy:10.2f} %  {effect.error:10.2e}{mark}")
        lines.append(f"{layer.name:{long}}  {layer.size:9}" + "".join(cells))
    lines.append(f"float32: {100 * table.accuracy:.2f} %; all at 8 bits: {table.nbytes({})} bytes")
    if chosen:
        lines.append(f"chosen (*): {table.nbytes(chosen)} bytes, {table.drop(chosen):.2f} points less are expected")
    return "\n".join(lines) + "\n"


def _effect(outputs: NDArray[np.float32], exact: NDArray[np.float32], y: Labels) -> Effect:
    moved = np.square(outputs.astype(np.float64) - exact).mean()
    return Effect(accuracy(outputs, y), float(moved / np.square(exact.astype(np.float64)).mean()))


def _drop(table: Sensitivity, layer: Layer, bits: int) -> float:
    """Points; a layer that happens to do better rounded makes up for no other."""
    return 100 * max(0.0, table.accuracy - layer.effects[bits].accuracy)


def _moves(layer: Layer, now: int, widths: Sequence[int]) -> Iterator[tuple[int, float]]:
    """Narrower widths, and the error that each adds for a byte that it saves."""
    for bits in widths:
        if bits < now:
            saved = layer.nbytes(now) - layer.nbytes(bits)
            yield bits, (layer.effects[bits].error - layer.effects[now].error) / max(saved, 1)
