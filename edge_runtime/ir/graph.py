"""What a model is between PyTorch and a Program: values with static shapes, and nodes in execution order.

Single assignment: every value is an input, a state tensor, or written by exactly one node. State tensors (weights
and running statistics, under the names of the module's `state_dict()`) are the only ones a node may overwrite, and
it says so in `writes`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, ...]
Attribute = int | float | bool | str | tuple[int, ...]

ITEM_BYTES = {"f32": 4, "i64": 8, "u8": 1}


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor: contiguous, row-major, of dtype "f32", "i64", or "u8" (places in a pool's window)."""

    name: str
    shape: Shape
    dtype: str = "f32"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Node:
    """One op. `source` is the line of the user's module that made it, for error messages."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)  # values are of type Attribute
    writes: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Graph:
    """Values by name; which of them come from outside (`inputs`), live on (`state`), and are asked for (`outputs`)."""

    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    state: tuple[str, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
