"""A captured model for any batch size: two captures at small sizes, and every number that differs between them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edge_runtime.capture.capture import capture
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.graph import Graph, Node, Value
from edge_runtime.ir.verify import GraphError, verify

_SIZES = (2, 3)  # not 1: PyTorch treats a dim of 1 in ways of its own


@dataclass(frozen=True, slots=True)
class BatchedGraph:
    """`small` and `large` are the same model at the two sizes; with `fixed`, the model only works at that size."""

    small: Graph
    large: Graph
    fixed: int = 0

    def at(self, batch: int) -> Graph:
        """The graph for `batch` rows.

        Raises:
            UnsupportedOpError: the model's graph depends on the batch size in another way than by its shapes.

        """
        if self.fixed:
            if batch != self.fixed:
                raise UnsupportedOpError(
                    f"the model only works for batches of {self.fixed}, which its example has; {batch} was asked for"
                )
            return self.small
        values = {
            name: Value(name, _at(value.shape, self.large.values[name].shape, batch), value.dtype)
            for name, value in self.small.values.items()
        }
        pairs = zip(self.small.nodes, self.large.nodes, strict=True)
        nodes = tuple(dataclasses.replace(a, attributes=_attributes(a, b, batch)) for a, b in pairs)
        try:
            return verify(dataclasses.replace(self.small, values=values, nodes=nodes))
        except GraphError as error:
            raise UnsupportedOpError(f"the model's graph cannot be made for a batch of {batch}: {error}") from error


def capture_batched(module: torch.nn.Module, examples: Sequence[torch.Tensor]) -> BatchedGraph:
    """Capture `module` for any batch size; `examples` show the shape and dtype of one batch of each input.

    Raises:
        UnsupportedOpError: as `capture`.

    """
    sizes = {len(example) for example in examples}
    if len(sizes) != 1 or 0 in sizes:
        raise UnsupportedOpError("the example inputs must have one batch size, of at least 1")
    try:
        small, large = (capture(module, *(resized(example, size) for example in examples)) for size in _SIZES)
    except UnsupportedOpError as error:
        if "cannot trace" not in str(error):
            raise
        whole = capture(module, *examples)  # a model that is made for one batch size; or the error again, as it is
        return BatchedGraph(whole, whole, sizes.pop())
    if [_form(node) for node in small.nodes] != [_form(node) for node in large.nodes]:
        raise UnsupportedOpError("the model runs other ops for other batch sizes")
    return BatchedGraph(small, large)


@contextlib.contextmanager
def mode(module: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """`module` in training mode (its layers as they are, if it is in it already) or in evaluation mode, for a while."""
    before = [(part, part.training) for part in module.modules()]
    if training != module.training:
        module.train(training)
    elif not training:
        module.eval()
    try:
        yield
    finally:
        for part, flag in before:
            part.training = flag


def resized(example: torch.Tensor, batch: int) -> torch.Tensor:
    """The example's first row, `batch` times: of the shape that a batch of that size has."""
    return example[:1].expand(batch, *example.shape[1:]).clone()


def _form(node: Node) -> tuple[Any, ...]:
    return (node.op, node.inputs, node.outputs, node.writes, sorted(node.attributes))


def _at(small: Any, large: Any, batch: int) -> Any:
    """What a number or tuple that is `small` at batch 2 and `large` at batch 3 is at `batch`."""
    if isinstance(small, tuple):
        if len(small) != len(large):
            raise UnsupportedOpError("the model's graph depends on the batch size")
        return tuple(_at(a, b, batch) for a, b in zip(small, large, strict=True))
    if isinstance(small, bool) or not isinstance(small, int):
        if small != large:
            raise UnsupportedOpError(f"the model computes with its batch size ({small} and {large})")
        return small
    step = large - small
    return small + step * (batch - _SIZES[0])


def _attributes(a: Node, b: Node, batch: int) -> dict[str, Any]:
    return {name: _at(value, b.attributes[name], batch) for name, value in a.attributes.items()}
