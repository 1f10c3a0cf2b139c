"""`FloatModel`: the graph of a trained model in evaluation mode, with its weights. Passes go from one to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.graph import Graph, Shape, Value
from edge_runtime.ir.verify import verify

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class FloatModel:
    """A graph in evaluation mode, and the contents of its state.

    Attributes:
        graph: one input, one output; its shapes are for `batch` rows.
        weights: float32, one for each of `graph.state`.
        batch: a prime that divides no other dim of the graph: where it shows in a shape, the batch is.

    """

    graph: Graph
    weights: Weights
    batch: int

    def at(self, rows: int) -> Graph:
        """The graph for `rows` rows."""
        return at_batch(self.graph, self.batch, rows)

    @property
    def input(self) -> Value:
        return self.graph.values[self.graph.inputs[0]]

    @property
    def output(self) -> Value:
        return self.graph.values[self.graph.outputs[0]]

    @property
    def parameters(self) -> int:
        return sum(one.size for one in self.weights.values())

    def with_weights(self, changed: Weights) -> FloatModel:
        """The same graph, with these tensors in place of its own; all of its own shapes."""
        for name, one in changed.items():
            if name in self.weights and one.shape != self.weights[name].shape:
                raise ValueError(f"{name} is {one.shape}, the graph has {self.weights[name].shape}")
        return dataclasses.replace(self, weights={name: changed.get(name, one) for name, one in self.weights.items()})


def checked(model: FloatModel) -> FloatModel:
    """The same model, if its graph keeps the IR's rules and its weights fit; what a pass ends with.

    Raises:
        UnsupportedOpError: more than one input or output.

    """
    graph = verify(model.graph)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UnsupportedOpError(
            f"a deployed model has one input and one output; this one has {len(graph.inputs)} and {len(graph.outputs)}"
        )
    weights = {}
    for name in graph.state:
        one = np.ascontiguousarray(model.weights[name], np.float32)
        if one.shape != graph.values[name].shape:
            raise ValueError(f"weight {name} is {one.shape}, the graph says {graph.values[name].shape}")
        weights[name] = one
    return FloatModel(graph, weights, model.batch)


PRIMES = (997, 1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049, 1051)


def batch_prime(graph: Graph) -> int:
    """One of `PRIMES` that divides no number of the graph: in the graph for so many rows, it shows them alone."""
    numbers = {n for value in graph.values.values() for n in value.shape}
    for node in graph.nodes:
        for one in node.attributes.values():
            numbers.update(n for n in (one if isinstance(one, tuple) else (one,)) if isinstance(n, int))
    return next(prime for prime in PRIMES if all(n % prime or n == 0 for n in numbers))


def at_batch(graph: Graph, batch: int, rows: int) -> Graph:
    """The graph whose shapes are for `batch` rows, for `rows` rows."""
    if rows == batch:
        return graph

    def scaled(shape: Shape) -> Shape:
        return tuple(n // batch * rows if n % batch == 0 else n for n in shape)

    values = {
        name: value if name in graph.state else dataclasses.replace(value, shape=scaled(value.shape))
        for name, value in graph.values.items()
    }
    nodes = tuple(
        dataclasses.replace(node, attributes={key: _scaled(key, one, scaled) for key, one in node.attributes.items()})
        for node in graph.nodes
    )
    return verify(dataclasses.replace(graph, values=values, nodes=nodes))


def _scaled(key: str, attribute: Any, scaled: Any) -> Any:
    match key:
        case "shape":
            return scaled(attribute)
        case "start" | "stop" | "size":
            return scaled((attribute,))[0] if attribute else attribute
        case _:
            return attribute
