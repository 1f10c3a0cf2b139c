"""Rounding to the grid that integers of a few bits have, and back: what a deployed model does to its values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edge_runtime.engine.reference.arithmetic import Array

SMALLEST = np.finfo(np.float32).tiny  # a scale that is not above it becomes 1: all values of its grid are 0


def fake_quant(x: Array, rows: Array, *, batch: int, bits: int) -> Array:
    """One grid for all of `x`, over the range of its real rows and 0 (Jacob et al. 2018, section 2.1)."""
    real = x.reshape(-1)[: x.size // batch * int(np.clip(rows[0], 0, batch))]
    low = np.fmin.reduce(real, initial=0.0).astype(np.float64)
    high = np.fmax.reduce(real, initial=0.0).astype(np.float64)
    bottom, steps = -(2 ** (bits - 1)), 2**bits - 1
    with np.errstate(invalid="ignore"):  # an infinite range makes all of it NaN
        scale = (high - low) / steps
        scale = 1.0 if scale <= SMALLEST else scale
        zero = np.clip(np.rint(bottom - low / scale), bottom, -bottom - 1).astype(x.dtype)
        scale = np.asarray(scale, x.dtype)
        return (np.clip(np.rint(x / scale) + zero, bottom, -bottom - 1) - zero) * scale


def fake_quant_weight(w: Array, *, bits: int) -> Array:
    """A grid for each row of `w`, symmetric about 0."""
    most = 2 ** (bits - 1) - 1
    top = np.fmax.reduce(np.abs(w.reshape(len(w), -1)), 1)
    scale = (np.where(np.isnan(top), 0, top) / most).astype(w.dtype)
    scale = np.where(scale <= SMALLEST, np.ones((), w.dtype), scale).reshape(-1, *[1] * (w.ndim - 1))
    with np.errstate(invalid="ignore"):
        return np.clip(np.rint(w / scale), -most, most) * scale


ROWS: dict[str, Callable[..., Any]] = {"fake_quant": fake_quant, "fake_quant_weight": fake_quant_weight}
