"""The order and shape of a model's float32 tensors, so that a whole model can be one flat vector.

Server and client must agree on names, shapes and order: the layout's digest travels with every payload.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

FloatVector = NDArray[np.float32]


@dataclass(frozen=True)
class TensorLayout:
    """Names and shapes of float32 tensors in their order on the wire, which is the model's own order."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[np.generic] | tuple[int, ...]]) -> TensorLayout:
        """The layout of `{name: array}` or `{name: shape}`; integer arrays (batch counters) are left out."""
        shapes = []
        for name, tensor in tensors.items():
            if isinstance(tensor, tuple):
                shapes.append((name, tensor))
            elif np.issubdtype(tensor.dtype, np.floating):
                shapes.append((name, tensor.shape))
        return cls(tuple(shapes))

    @cached_property
    def size(self) -> int:
        """Number of float32 values in the whole model."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    @cached_property
    def digest(self) -> bytes:
        """First 8 bytes of the SHA-256 over names, shapes and dtype.

        It tells mistakes apart, another model or another order. It is no protection: who may send is decided elsewhere.
        """
        text = json.dumps([[name, list(shape), "float32"] for name, shape in self.shapes], separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()[:8]

    def subset(self, names: Collection[str]) -> TensorLayout:
        """The layout of these tensors alone, still in this layout's order.

        Raises:
            ValueError: a name is not in this layout.

        """
        if unknown := sorted(set(names) - {name for name, _ in self.shapes}):
            raise ValueError(f"tensor {unknown[0]} is not in the layout of {len(self.shapes)} tensors")
        return TensorLayout(tuple((name, shape) for name, shape in self.shapes if name in names))

    def name_at(self, index: int) -> str:
        """Name of the tensor that holds the flat vector's value at `index`."""
        if not 0 <= index < self.size:
            raise IndexError(f"no value {index} in a layout of {self.size}")
        ends = list(accumulate(math.prod(shape) for _, shape in self.shapes))
        return self.shapes[bisect_right(ends, index)][0]

    def spans(self) -> Iterator[tuple[int, int]]:
        """First and past-the-last flat index of each tensor that has values, in order."""
        start = 0
        for _, shape in self.shapes:
            if size := math.prod(shape):
                yield start, start + size
                start += size

    def matrices(self) -> Iterator[tuple[slice, int, int]]:
        """Each tensor that has values as a matrix: where it stands in the flat vector, its rows and its columns.

        Rows are output channels: shape[0] of a tensor of two axes or more; any other is one row.
        """
        shapes = (shape for _, shape in self.shapes if math.prod(shape))
        for (start, stop), shape in zip(self.spans(), shapes, strict=True):
            rows = shape[0] if len(shape) > 1 else 1
            yield slice(start, stop), rows, (stop - start) // rows

    def flatten(self, tensors: Mapping[str, NDArray[np.generic]]) -> FloatVector:
        """One float32 vector of shape (size,) with every tensor of the layout, copied.

        Raises:
            ValueError: a tensor is missing or has another shape.

        """
        flat = np.empty(self.size, np.float32)
        for name, view in self.views(flat).items():
            if name not in tensors:
                raise ValueError(f"tensor {name} is missing; the layout has {len(self.shapes)} tensors")
            if tensors[name].shape != view.shape:
                raise ValueError(f"tensor {name} has shape {tensors[name].shape}, the layout says {view.shape}")
            with np.errstate(over="ignore"):  # a float64 too large becomes infinite, which every codec refuses
                view[...] = tensors[name]
        return flat

    def views(self, flat: FloatVector) -> dict[str, FloatVector]:
        """`{name: view}` into a vector of shape (size,), without copying."""
        if flat.shape != (self.size,):
            raise ValueError(f"a vector of {flat.size} values does not hold this layout's {self.size}")
        views: dict[str, FloatVector] = {}
        offset = 0
        for name, shape in self.shapes:
            count = math.prod(shape)
            views[name] = flat[offset : offset + count].reshape(shape)
            offset += count
        return views
