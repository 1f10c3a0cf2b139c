"""The yardstick without any modelling: one dead-zone quantiser for the whole update and one adaptive table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

THETA = 0.3  # |x|/step + THETA is rounded down: below 0.5 more values become zero
HEADER_BITS = 96  # step and the two levels' corrections, in float32
BISECTIONS = 30


def plain_quantizer(values: NDArray[np.float32], target: float) -> tuple[float, float]:
    """Bits per value, at most `target`, and NMSE; the bits are an ideal code length, no bytes are made."""
    magnitudes = np.abs(values, dtype=np.float64)
    scale = float(magnitudes.max())
    low, high = math.log2(scale) - 30, math.log2(scale) + 1
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _bits(magnitudes, values, 2.0**middle) > target:
            low = middle
        else:
            high = middle
    step = 2.0**high
    return _bits(magnitudes, values, step), _nmse(magnitudes, step)


def _bits(magnitudes: NDArray[np.float64], values: NDArray[np.float32], step: float) -> float:
    levels = np.floor(magnitudes / step + THETA)
    counts = np.unique(np.copysign(levels, values) + 0.0, return_counts=True)[1]
    return (adaptive_code_length(counts) + HEADER_BITS) / len(values)


def adaptive_code_length(counts: NDArray[np.integer[Any]]) -> float:
    """Bits of a sequence with these symbol counts, each coded by the counts so far plus 1/2 (Krichevsky-Trofimov).

    >>> round(adaptive_code_length(np.array([1, 1])), 6)  # 1/2, then (0 + 1/2) / (1 + 1)
    3.0
    """
    total, kinds = int(counts.sum()), len(counts)
    nats = math.lgamma(total + kinds / 2) - math.lgamma(kinds / 2)
    nats -= sum(math.lgamma(count + 0.5) for count in counts) - kinds * math.lgamma(0.5)
    return nats / math.log(2)


def _nmse(magnitudes: NDArray[np.float64], step: float) -> float:
    scaled = magnitudes / step
    levels = np.floor(scaled + THETA)
    decoded = levels.copy()
    for own in (levels == 1, levels >= 2):
        if own.any():
            decoded[own] += float(np.mean(scaled[own] - levels[own]))
    return float(np.sum((scaled - decoded) ** 2) / np.sum(scaled**2))
