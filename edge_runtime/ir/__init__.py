"""The intermediate representation: a graph of composite ops with static shapes, its op table, its checker, its text."""

from edge_runtime.ir.graph import Graph, Node, Value
from edge_runtime.ir.text import to_text
from edge_runtime.ir.verify import verify

__all__ = ["Graph", "Node", "Value", "to_text", "verify"]
