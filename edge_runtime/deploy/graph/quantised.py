"""`QuantisedModel`: the one quantised graph that every writer starts from, and what its numbers mean.

Scheme: weights symmetric, one scale per output channel; activations asymmetric, one scale per tensor; biases int32 with
the scale input times weight. A value that has a `Quant` is rounded to it wherever it is read; all others are float32.
So the graph says the same as ONNX QuantizeLinear/DequantizeLinear pairs at those values (Jacob et al. 2018, section 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.graph.float_model import FloatModel


@dataclass(frozen=True, slots=True)
class Quant:
    """real = scale (q - zero_point), q a signed integer of `bits` bits.

    Attributes:
        scale: float32 (1,), or (channels,) along `axis`; above 0.
        zero_point: int32, of the same shape; 0 where `symmetric`.
        bits: 2 to 8, or 32 for a bias.
        axis: dim that the scales belong to; None for one scale.
        symmetric: q is in +-(2^(bits-1) - 1); else it is in [-2^(bits-1), 2^(bits-1) - 1].

    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    bits: int = 8
    axis: int | None = None
    symmetric: bool = False

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1)) + int(self.symmetric)

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def quantise(self, x: NDArray[np.floating]) -> NDArray[np.int32]:
        """Integers of `x`, rounded half to even and saturated, as ONNX QuantizeLinear; int32 of its shape."""
        scale, zero = self._along(x.ndim)
        q = np.rint(x.astype(np.float32) / scale) + zero
        whole: NDArray[np.int32] = np.clip(q, self.low, self.high).astype(np.int32)
        return whole

    def dequantise(self, q: NDArray[np.integer]) -> NDArray[np.float32]:
        scale, zero = self._along(q.ndim)
        return ((q.astype(np.int64) - zero).astype(np.float32) * scale).astype(np.float32)

    def round(self, x: NDArray[np.floating]) -> NDArray[np.float32]:
        """`x` on the grid: what a reader of the value sees."""
        return self.dequantise(self.quantise(x))

    def _along(self, rank: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        if self.axis is None:
            return self.scale, self.zero_point
        shape = [-1 if dim == self.axis else 1 for dim in range(rank)]
        return self.scale.reshape(shape), self.zero_point.reshape(shape)


@dataclass(frozen=True, slots=True)
class QuantisedModel:
    """A folded float model, and which of its values are integers.

    Attributes:
        model: float32 weights, as they are before rounding.
        quants: of values and of weights, by name. A node computes in integers where all its activations have one and
            `ir.grids.INTEGER_OPS` has its op; a weight that has one while its node's activations do not is stored as
            integers and used as float32 (weight-only).

    """

    model: FloatModel
    quants: Mapping[str, Quant]

    def integers(self, name: str) -> NDArray[np.int32]:
        """The weight or bias `name` as integers; int32 of its shape, whatever its bits."""
        return self.quants[name].quantise(self.model.weights[name])

    def rounded(self) -> FloatModel:
        """The float model whose weights are already on their grids."""
        return self.model.with_weights(
            {name: self.quants[name].round(one) for name, one in self.model.weights.items() if name in self.quants}
        )
