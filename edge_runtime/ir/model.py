"""A model as the planner takes it: its forward pass in training and in evaluation mode, and its tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.ir.graph import Graph, Value


@dataclass(frozen=True, slots=True)
class Model:
    """A model to train: a captured module, or a graph with its weights.

    Attributes:
        forward, predict: the graph for a number of rows, in training and in evaluation mode.
        check: raises where the module would run other graphs at the numbers of rows that a plan uses.
        fixed: the one batch size that the module works for; 0 if it works for any.
        state: its float tensors, each once.
        parameters: of those, the ones that are parameters.
        trainable: of those, the ones that require a gradient and are used, in the module's order.
        initial: contents of the float tensors.
        counters: its int64 scalars, with their values; `counted` says by how much a training step raises which.
        aliases: of a tensor with several names (tied weights), the others with the one that `state` has.
        names: all names of its state_dict, in order.

    """

    forward: Callable[[int], Graph]
    predict: Callable[[int], Graph]
    check: Callable[[int, int], None]
    fixed: int
    state: tuple[Value, ...]
    parameters: frozenset[str]
    trainable: tuple[str, ...]
    initial: dict[str, NDArray[np.float32]]
    counters: dict[str, int]
    counted: dict[str, int]
    aliases: dict[str, str]
    names: tuple[str, ...]
