"""From a PyTorch module and its trained tensors to a `FloatModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_runtime.capture.batched import capture_batched, mode
from edge_runtime.deploy.graph.float_model import FloatModel, batch_prime, checked
from edge_runtime.errors import ConfigError, UnsupportedOpError
from edge_runtime.passes.fuse import join_views
from edge_runtime.passes.rows import require_independent_rows


def captured_model(
    module: torch.nn.Module, example: Any, state_dict: Mapping[str, NDArray[np.generic]] | None = None
) -> FloatModel:
    """The module's forward pass in evaluation mode.

    Args:
        module: float32, one input, one output; it is left as it is.
        example: a batch of inputs (B, ...), of which shape and dtype count.
        state_dict: arrays under the names of `module.state_dict()`; None for the module's own.

    Raises:
        UnsupportedOpError: an op that cannot be captured exactly, or rows of a batch that act on each other.
        ConfigError: `state_dict` lacks a tensor that the model uses, or has one of another shape.

    """
    x = torch.as_tensor(np.asarray(example)[:1])
    x = x.to(torch.float32 if x.is_floating_point() else torch.int64)
    with mode(module, training=False):
        captured = capture_batched(module, [x])
    if captured.fixed:
        raise UnsupportedOpError(f"the model only works for batches of {captured.fixed}; deploy one that takes any")
    batch = batch_prime(captured.small)
    graph = join_views(captured.at(batch))
    require_independent_rows(graph, batch)
    tensors = {name: one.detach().numpy() for name, one in module.state_dict().items()}
    if state_dict is not None:
        if missing := sorted(set(graph.state) - set(state_dict)):
            raise ConfigError(f"the state_dict has no {missing[0]}, which the model uses")
        tensors = {name: np.asarray(state_dict[name]) for name in graph.state}
    for name in graph.state:
        if tensors[name].shape != graph.values[name].shape:
            raise ConfigError(f"{name} is {tensors[name].shape}, the model has {graph.values[name].shape}")
    weights = {name: np.array(tensors[name], np.float32) for name in graph.state}
    return checked(FloatModel(graph, weights, batch))
