"""Binarised linear layers, for study: one bit a weight, and a scale per row.

No runtime here has kernels for one-bit weights, so an exported file has them as INT8 and is no faster.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_runtime.deploy.compress.prune import fitting
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.errors import ConfigError


def binarise(model: FloatModel, names: Sequence[str] | None = None) -> FloatModel:
    """The weights of linear layers as sign(w) mean|w|, the mean over each row; sign(0) is +1.

    It is the nearest such matrix in the sense of least squares (Rastegari et al. 2016, "XNOR-Net", equation 6).

    Args:
        model: of which linear layers are binarised, others are left.
        names: of weights, or patterns with `*`; None for all but the first and the last layer, as the paper has it.

    """
    layers = linear_weights(model)
    if names is None:
        chosen = layers[1:-1]
        if not chosen:
            raise ConfigError(f"of {len(layers)} linear layers none is between the first and the last; name some")
    else:
        chosen = fitting(names, layers)
    weights = {name: model.weights[name] for name in chosen}
    signs = {name: np.where(w < 0, np.float32(-1), np.float32(1)) for name, w in weights.items()}
    return model.with_weights({n: signs[n] * np.abs(w).mean(1, keepdims=True) for n, w in weights.items()})


def linear_weights(model: FloatModel) -> list[str]:
    """Names of the weights of linear layers, in order."""
    found = [node.inputs[1] for node in model.graph.nodes if node.op == "linear"]
    return [name for name in dict.fromkeys(found) if name in model.weights]
