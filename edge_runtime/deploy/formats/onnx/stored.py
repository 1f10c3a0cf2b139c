"""Weights on their way into a file: turned to the layout that ONNX wants, together with the grid they are on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.graph.quantised import Quant


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight as the file holds it: float32 without a `quant`, else the integers of that grid."""

    content: NDArray[np.generic]
    quant: Quant | None = None

    @property
    def real(self) -> NDArray[np.float32]:
        """The numbers that it stands for."""
        if self.quant is None:
            return self.content.astype(np.float32)
        return self.quant.dequantise(self.content.astype(np.int32))

    def rows(self, order: Sequence[int]) -> Stored:
        """In another order of the first dim."""
        quant, rows = self.quant, list(order)
        if quant and quant.axis == 0:
            quant = dataclasses.replace(quant, scale=quant.scale[rows], zero_point=quant.zero_point[rows])
        return Stored(self.content[rows], quant)

    def transposed(self) -> Stored:
        """The last two dims change places."""
        last = self.content.ndim - 1
        swapped = {last: last - 1, last - 1: last}
        return Stored(self.content.swapaxes(-1, -2), self._along(swapped))

    def under_one(self) -> Stored:
        """With a dim of 1 in front."""
        return Stored(self.content[None], self._along({i: i + 1 for i in range(self.content.ndim)}))

    def _along(self, axes: Mapping[int, int]) -> Quant | None:
        if self.quant is None or self.quant.axis is None:
            return self.quant
        return dataclasses.replace(self.quant, axis=axes.get(self.quant.axis, self.quant.axis))


def encoding(quant: Quant) -> tuple[int, np.dtype[Any]]:
    """What is added to the integers of a grid, and the dtype that they then have.

    Activations are uint8, so that zero points lie 128 higher and nothing else is different: on x86 ONNX Runtime turns
    int8 activations into uint8 itself, but not those that two nodes read, and then runs their layers in float32.
    """
    if quant.bits == 32:
        return 0, np.dtype(np.int32)
    return (0, np.dtype(np.int8)) if quant.symmetric else (128, np.dtype(np.uint8))


SMALLEST_PACKED = 512  # elements; below that, the nodes that unpack it take more than they save


def packed_bits(quant: Quant, size: int) -> int:
    """Bits that each of `size` integers takes in the file: 2 or 4 where they fit and fill whole bytes, else 8 or 32."""
    if not quant.symmetric or size < SMALLEST_PACKED:
        return max(8, quant.bits)
    return next((width for width in (2, 4) if quant.bits <= width and size * width % 8 == 0), max(8, quant.bits))


def packed(content: NDArray[np.generic], width: int) -> NDArray[np.uint8]:
    """Several integers of `width` bits a byte, the first one lowest, each 2^(width-1) higher than it is."""
    digits = (content.astype(np.int32).reshape(-1, 8 // width) + (1 << width - 1)).astype(np.uint32)
    whole: NDArray[np.uint8] = (digits << np.arange(0, 8, width, dtype=np.uint32)).sum(1).astype(np.uint8)
    return whole


def unpacking_table(width: int) -> NDArray[np.int8]:
    """(256, 8 / width): of each byte, the integers that `packed` put into it."""
    digits = np.arange(256)[:, None] >> np.arange(0, 8, width) & (1 << width) - 1
    return (digits - (1 << width - 1)).astype(np.int8)
