"""What a graph costs to run, as a number to compare plans by; not a time."""

from __future__ import annotations

from edge_runtime.ir.graph import Graph
from edge_runtime.ir.ops import OPS

# Floating-point operations that a small core does in the time it moves one byte: 8 a cycle against 4 bytes a cycle.
FLOPS_PER_BYTE = 2
# And in the time it takes to begin an op.
FLOPS_PER_OP = 5000


def flops(graph: Graph) -> int:
    """Floating-point operations of one run."""
    return sum(OPS[n.op].flops([graph.values[name] for name in n.inputs], n.attributes) for n in graph.nodes)


def cost(graph: Graph) -> float:
    """Floating-point operations, with memory traffic counted as what it keeps from being done."""
    nodes = [node for node in graph.nodes if not OPS[node.op].view]
    traffic = sum(graph.values[name].nbytes for node in nodes for name in (*node.inputs, *node.outputs))
    return flops(graph) + FLOPS_PER_BYTE * traffic + FLOPS_PER_OP * len(nodes)
