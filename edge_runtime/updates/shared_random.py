"""Random numbers that sender and receiver draw alike from a seed in the payload.

Only the raw words of NumPy's Philox (Salmon et al. 2011) are used: those are the same in every version and on every
machine, which the distributions built on them need not be.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def draw_seed(rng: np.random.Generator) -> int:
    """A seed for a payload: 32 bits."""
    return int(rng.integers(1 << 32))


def words(seed: int, count: int) -> NDArray[np.uint32]:
    """`count` random words of 32 bits."""
    raw = np.random.Philox(key=seed).random_raw((count + 1) // 2)
    return raw.astype("<u8", copy=False).view("<u4")[:count]
