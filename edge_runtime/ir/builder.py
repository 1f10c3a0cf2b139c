"""A graph under construction: what capture, gradient rules and passes write to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.graph import Attribute, Graph, Node, Value
from edge_runtime.ir.ops import ShapeError, shapes_of


class Builder:
    """Adds values and nodes; shapes follow from `ir/ops.py`, so a row never states one.

    A graph that is given is where it starts from.
    """

    def __init__(self, graph: Graph | None = None, *, batch: int = 1) -> None:
        self._values: dict[str, Value] = dict(graph.values) if graph else {}
        self._inputs: list[str] = list(graph.inputs) if graph else []
        self._state: list[str] = list(graph.state) if graph else []
        self._nodes: list[Node] = list(graph.nodes) if graph else []
        self.batch = batch  # rows of the batch that the shapes are made for
        self.hint = ""  # name for the next values: the exporter's own
        self.source = ""  # the user's line that is being captured

    def input(self, name: str, shape: Iterable[int], dtype: str = "f32") -> str:
        """A value that comes from outside; one of that name that is there already is the same one."""
        if name not in self._inputs:
            self._inputs.append(name)
            self._add(Value(name, tuple(shape), dtype))
        return name

    def state(self, name: str, shape: Iterable[int], dtype: str = "f32") -> str:
        self._state.append(name)
        return self._add(Value(name, tuple(shape), dtype))

    def rows(self) -> str:
        """The input that says how many rows of the batch are real; the others are padding at its end."""
        return self.input("rows", (1,), "i64")

    def random(self) -> str:
        """The input (seed, step, first row) that random masks are made from."""
        return self.input("random", (3,), "i64")

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(self._nodes)

    def count(self, op: str) -> int:
        return sum(node.op == op for node in self._nodes)

    def value(self, name: str) -> Value:
        return self._values[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._values[name].shape

    def emit(self, op: str, *inputs: str, writes: tuple[str, ...] = (), **attributes: Attribute) -> str:
        """Add a node with one output; returns the output's name."""
        return self.emit_all(op, *inputs, writes=writes, **attributes)[0]

    def emit_all(self, op: str, *inputs: str, writes: tuple[str, ...] = (), **attributes: Attribute) -> list[str]:
        """Add a node; returns the names of all its outputs."""
        try:
            shapes = shapes_of(op, [self._values[name] for name in inputs], attributes)
        except ShapeError as error:
            raise UnsupportedOpError(f"{op}: {error}; at {self.source or 'an unknown line'}") from error
        outputs = tuple(self._add(Value(self._fresh(), shape, dtype)) for shape, dtype in shapes)
        self._nodes.append(Node(op, inputs, outputs, attributes, writes, self.source))
        return list(outputs)

    def append(self, node: Node, inputs: tuple[str, ...], values: Mapping[str, Value]) -> None:
        """Add `node` of another graph as it is, reading `inputs`."""
        self._values.update((name, values[name]) for name in node.outputs)
        self._nodes.append(dataclasses.replace(node, inputs=inputs))

    def refuse(self, what: str, instead: str = "") -> UnsupportedOpError:
        """The error for an op that cannot be captured exactly; to be raised by the caller."""
        text = f"{what} is not supported, at {self.source or 'an unknown line'}"
        return UnsupportedOpError(f"{text}; {instead}" if instead else text)

    def finish(self, outputs: Iterable[str]) -> Graph:
        """The graph, without nodes that no output, no state and no check needs."""
        outputs = tuple(outputs)
        needed, kept = set(outputs), []
        for node in reversed(self._nodes):
            if node.writes or not node.outputs or needed.intersection(node.outputs):
                kept.append(node)
                needed.update(node.inputs)
        written = {name for node in kept for name in node.outputs}
        state = tuple(name for name in self._state if name in needed)
        names = [name for name in self._values if name in written or name in self._inputs or name in state]
        values = {name: self._values[name] for name in names}
        return Graph(values, tuple(self._inputs), state, tuple(reversed(kept)), outputs)

    def _fresh(self) -> str:
        if self.hint not in self._values:
            return self.hint
        return next(name for i in range(1, len(self._values) + 2) if (name := f"{self.hint}.{i}") not in self._values)

    def _add(self, value: Value) -> str:
        self._values[value.name] = value
        return value.name


def window(value: Any) -> tuple[int, int]:
    """PyTorch's int or [int] or [int, int] as a pair."""
    sizes = [value] if isinstance(value, int) else list(value)
    return (sizes[0], sizes[-1])
