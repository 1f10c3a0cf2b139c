"""Dropout (Srivastava et al. 2014) with the masks of a counter-based generator: a function of seed, step and place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edge_runtime.engine.philox import philox4x32
from edge_runtime.engine.reference.arithmetic import Array


def dropout(x: Array, random: Array, *, batch: int, id: int, p: float) -> Array:  # noqa: A002  the op's own name for it
    """0 with probability p, else x / (1 - p); `random` is (seed, step, first row), and x has `batch` rows.

    Element i has the counter c = first row * row size + i, and word c mod 4 of Philox at (c / 4, step, id).
    """
    seed, step, first_row = (int(word) % 2**64 for word in random)
    places = np.arange(x.size, dtype=np.uint64) + np.uint64(first_row * (x.size // batch) % 2**64)
    blocks = places // 4
    counter = [blocks % 2**32, blocks >> 32, np.full_like(blocks, step % 2**32), np.full_like(blocks, id)]
    words = np.stack(philox4x32(counter, (seed % 2**32, seed >> 32)))
    word = words[places % 4, np.arange(x.size)]
    uniform = (word >> 8) * 2.0**-24
    return np.where(uniform.reshape(x.shape) < p, 0, x / (1 - p))


ROWS: dict[str, Callable[..., Any]] = {"dropout": dropout}
