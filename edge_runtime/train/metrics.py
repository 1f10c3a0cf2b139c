"""Figures about predictions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def accuracy(logits: NDArray[np.floating], targets: NDArray[np.integer]) -> float:
    """Share of targets that are the largest logit; logits (..., C), targets (...). 0.0 when there are none."""
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"logits {logits.shape} do not fit targets {targets.shape}")
    return float(np.mean(logits.argmax(-1) == targets)) if targets.size else 0.0


def agreement(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Share of rows in which two sets of logits (..., C) have the same largest entry."""
    return accuracy(a, b.argmax(-1))
