"""A graph under construction: what the rows of `capture/aten.py` write to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.graph import Attribute, Graph, Node, Value
from edge_runtime.ir.ops import OPS, ShapeError


class Builder:
    """Adds values and nodes; shapes follow from `ir/ops.py`, so a row never states one."""

    def __init__(self) -> None:
        self._values: dict[str, Value] = {}
        self._inputs: list[str] = []
        self._state: list[str] = []
        self._nodes: list[Node] = []
        self.hint = ""  # name for the next values: the exporter's own
        self.source = ""  # the user's line that is being captured

    def input(self, name: str, shape: Iterable[int], dtype: str) -> str:
        self._inputs.append(name)
        return self._add(Value(name, tuple(shape), dtype))

    def state(self, name: str, shape: Iterable[int], dtype: str) -> str:
        self._state.append(name)
        return self._add(Value(name, tuple(shape), dtype))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._values[name].shape

    def emit(self, op: str, *inputs: str, writes: tuple[str, ...] = (), **attributes: Attribute) -> str:
        """Add a node with one output; returns the output's name."""
        return self.emit_all(op, *inputs, writes=writes, **attributes)[0]

    def emit_all(self, op: str, *inputs: str, writes: tuple[str, ...] = (), **attributes: Attribute) -> list[str]:
        """Add a node; returns the names of all its outputs."""
        try:
            shapes = OPS[op].shapes([self._values[name] for name in inputs], attributes)
        except ShapeError as error:
            raise UnsupportedOpError(f"{op}: {error}; at {self.source}") from error
        outputs = tuple(self._add(Value(self._fresh(), shape, dtype)) for shape, dtype in shapes)
        self._nodes.append(Node(op, inputs, outputs, attributes, writes, self.source))
        return list(outputs)

    def refuse(self, what: str, instead: str = "") -> UnsupportedOpError:
        """The error for an op that cannot be captured exactly; to be raised by the caller."""
        text = f"{what} is not supported, at {self.source or 'an unknown line'}"
        return UnsupportedOpError(f"{text}; {instead}" if instead else text)

    def finish(self, outputs: Iterable[str]) -> Graph:
        """The graph, without nodes that no output and no state needs."""
        outputs = tuple(outputs)
        needed, kept = set(outputs), []
        for node in reversed(self._nodes):
            if node.writes or needed.intersection(node.outputs):
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
