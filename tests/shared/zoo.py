"""The zoo's models as tests of deployment start from them, captured once for all files: torch.export takes seconds.

Nothing here may be changed by a test; who must, takes a copy.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_runtime.deploy.graph.calibrate import calibrate
from edge_runtime.deploy.graph.captured import captured_model
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.fold import fold
from edge_runtime.deploy.graph.quantise import Ranges, quantise
from edge_runtime.deploy.graph.quantised import QuantisedModel
from simulations import models

IMAGES = {
    "lenet": (1, 28, 28),
    "resnet8": (3, 32, 32),
    "mobilenet_v2_small": (3, 32, 32),
    "mlp": (1, 28, 28),
    "watch_cnn": (6, 1, 100),
    "digits_cnn": (1, 8, 8),
    "ds_cnn": (1, 49, 10),
}
TOKENS = ("char_gru", "char_transformer")
ROWS, LENGTH = 24, 20


@dataclass(frozen=True)
class Example:
    """A module in evaluation mode whose batch norms have seen a few batches; inputs (ROWS, ...); the captured graph."""

    module: nn.Module
    x: NDArray[np.generic]
    model: FloatModel
    folded: FloatModel


@functools.cache
def example(name: str) -> Example:
    """The model of that name."""
    torch.manual_seed(0)
    module: nn.Module = getattr(models, name)()
    x = torch.randint(0, 80, (ROWS, LENGTH)) if name in TOKENS else torch.randn(ROWS, *IMAGES[name])
    with torch.no_grad():
        for _ in range(3):
            module.train()(x)
    model = captured_model(module.eval(), x.numpy())
    return Example(module, x.numpy(), model, fold(model))


@functools.cache
def ranges(name: str) -> Ranges:
    """Of its values, over its inputs."""
    return calibrate(example(name).folded, [example(name).x])


def quantised(name: str, **options: object) -> QuantisedModel:
    """With the options of `quantise`."""
    return quantise(example(name).folded, ranges(name), **options)  # type: ignore[arg-type]


def answer(module: nn.Module, x: NDArray[np.generic]) -> NDArray[np.float32]:
    """PyTorch's."""
    with torch.no_grad():
        return np.asarray(module(torch.from_numpy(x)).numpy(), np.float32)
