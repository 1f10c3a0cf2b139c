"""A graph as text: one line per value that comes from outside, one per node; stable, for people and golden tests."""

from __future__ import annotations

from edge_runtime.ir.graph import Attribute, Graph, Node, Value


def to_text(graph: Graph) -> str:
    """The whole graph; a node reads `c1: f32[8,6,28,28] = conv2d(x, c1.weight) groups=1 padding=(2, 2) ...`."""
    lines = [f"input {_typed(graph.values[name])}" for name in graph.inputs]
    lines += [f"state {_typed(graph.values[name])}" for name in graph.state]
    lines += [_line(graph, node) for node in graph.nodes]
    lines.append("output " + ", ".join(graph.outputs))
    return "\n".join(lines) + "\n"


def _line(graph: Graph, node: Node) -> str:
    written = ", ".join(_typed(graph.values[name]) for name in node.outputs)
    call = f"{node.op}({', '.join(node.inputs)})"
    parts = [f"{written} = {call}" if written else call]
    parts += [f"{name}={_plain(value)}" for name, value in sorted(node.attributes.items())]
    if node.writes:
        parts.append("writes " + ", ".join(node.writes))
    return " ".join(parts)


def _typed(value: Value) -> str:
    return f"{value.name}: {value.dtype}[{','.join(map(str, value.shape))}]"


def _plain(value: Attribute) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
