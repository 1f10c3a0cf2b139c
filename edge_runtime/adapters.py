"""Low-rank adapters by their names in a state_dict: merged back into the weights that they stand beside.

NumPy alone, so that a device can merge what it trained; `capture/adapters.py` puts them into a module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The names that Hu et al. gave them in their own library.
LORA_A, LORA_B = "lora_A", "lora_B"


def merge_adapters(state_dict: Mapping[str, NDArray[Any]], *, alpha: float | None = None) -> dict[str, NDArray[Any]]:
    """The ordinary model: every W that has adapters becomes W + (alpha / r) B A, and the adapters go.

    Hu et al. 2021, arXiv 2106.09685, section 4.1. The product is summed in float64 and rounded to the weight's dtype
    once. All other tensors are handed on as they are, in their order; a state_dict without adapters is its own result.

    Args:
        state_dict: with each `NAME.weight` (out, in) or (out, in, 1, 1) that has them, its `NAME.lora_A` (r, in) and
            `NAME.lora_B` (out, r), with the same two dims of 1 behind them for a convolution.
        alpha: what the adapters were made with; None for the rank, their default.

    >>> state = {"f.weight": np.ones((2, 3)), "f.lora_A": np.ones((1, 3)), "f.lora_B": np.array([[1.0], [2.0]])}
    >>> merge_adapters(state)["f.weight"].tolist()
    [[2.0, 2.0, 2.0], [3.0, 3.0, 3.0]]

    """
    merged = dict(state_dict)
    for name in state_dict:
        layer, _, last = name.rpartition(LORA_A)
        weight, other = f"{layer}weight", f"{layer}{LORA_B}"
        if last or not name.endswith(LORA_A) or other not in merged or weight not in merged:
            continue
        a, b = (_matrix(merged.pop(part)) for part in (name, other))
        scale = 1.0 if alpha is None else alpha / len(a)
        base = merged[weight]
        merged[weight] = (base + scale * (b @ a).reshape(base.shape)).astype(base.dtype)
    return merged


def _matrix(adapter: NDArray[Any]) -> NDArray[np.float64]:
    return adapter.reshape(adapter.shape[:2]).astype(np.float64)
