"""Reverse mode: the nodes that give the gradient of a loss, and what is done with each as soon as it is whole."""

from __future__ import annotations

from collections.abc import Callable, Collection

from edge_runtime.ir.builder import Builder
from edge_runtime.passes.gradients import GRADIENTS

# What to emit for a weight and its gradient, called right after the gradient's last term: a gradient that is used up
# at once never lies beside the others in memory.
OnGradient = Callable[[str, str], None]


def emit_backward(b: Builder, loss: str, wanted: Collection[str], on_gradient: OnGradient) -> None:
    """Append the gradients of `loss` (one float) with respect to every state tensor in `wanted`.

    Nodes are visited last to first; terms of one gradient are added in that order, whatever happens to the graph later.
    """
    forward = list(b.nodes)
    needs = set(wanted)  # values through which a wanted tensor acts
    first_use: dict[str, int] = {}
    for place, node in enumerate(forward):
        for name in node.inputs:
            if name in wanted:
                first_use.setdefault(name, place)
        if node.outputs and needs.intersection(node.inputs):
            if node.op not in GRADIENTS:
                raise b.refuse(f"the gradient of {node.op}")
            needs.update(node.outputs)
    gradients = {loss: b.emit("scale", b.emit("zeros", shape=(1,)), by=0.0, plus=1.0)}
    for place, node in reversed(list(enumerate(forward))):
        given = [gradients.pop(name, "") for name in node.outputs]
        if any(given):
            b.hint, b.source = f"d.{node.outputs[0]}", node.source
            wants = [name in needs for name in node.inputs]
            results = GRADIENTS[node.op](b, node, given, wants) if any(wants) else [""] * len(wants)
            for name, result, want in zip(node.inputs, results, wants, strict=True):
                if want and result:
                    gradients[name] = b.emit("add", gradients[name], result) if name in gradients else result
        for name in dict.fromkeys(node.inputs):
            if first_use.get(name) == place and name in gradients:
                b.hint = f"d.{name}"
                on_gradient(name, gradients.pop(name))
