"""Which values share bytes, and from which node to which those bytes are in use."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.ir.graph import Graph, Node
from edge_runtime.ir.ops import OPS


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Bytes that a buffer needs, from the node that first writes it to the last one that reads it."""

    name: str
    nbytes: int
    first_step: int
    last_step: int

    def overlaps(self, other: Lifetime) -> bool:
        return self.first_step <= other.last_step and other.first_step <= self.last_step


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Buffers, and which value lies where.

    `buffer_of` maps each value that is not state to its buffer; scratch space of node i is the buffer `work.i`.
    `state_views` maps views of state tensors to those.
    """

    buffers: tuple[Lifetime, ...]
    buffer_of: dict[str, str]
    state_views: dict[str, str]
    steps: int

    def live_bytes(self) -> list[int]:
        """Bytes in use at each node."""
        change = [0] * (self.steps + 2)
        for one in self.buffers:
            change[one.first_step] += one.nbytes
            change[one.last_step + 1] -= one.nbytes
        total, out = 0, []
        for difference in change[: self.steps]:
            total += difference
            out.append(total)
        return out

    def peak_bytes(self) -> int:
        """The most that is in use at one node: no placement needs less."""
        return max(self.live_bytes(), default=0)


def find_lifetimes(graph: Graph) -> Lifetimes:
    """Lifetimes of all buffers of `graph`, its state apart.

    A view is its input's buffer. An output takes over the buffer of an input where its op's row allows it, the sizes
    are equal, and nothing reads that input later. Inputs of the graph are there before the first node; its outputs
    are in use to the end.
    """
    steps = max(1, len(graph.nodes))
    last_use = dict.fromkeys(graph.inputs, 0)
    for place, node in enumerate(graph.nodes):
        last_use.update(dict.fromkeys((*node.inputs, *node.outputs), place))
    last_use.update(dict.fromkeys(graph.outputs, steps))  # behind the last node: nothing may take their bytes

    state = set(graph.state)  # and what is a view of it
    state_views: dict[str, str] = {}
    buffer_of = {name: name for name in graph.inputs}
    first: dict[str, int] = dict.fromkeys(graph.inputs, 0)
    last: dict[str, int] = {name: last_use[name] for name in graph.inputs}
    sizes = {name: graph.values[name].nbytes for name in graph.inputs}
    for place, node in enumerate(graph.nodes):
        taken = _taken_over(graph, node, place, buffer_of, last, state)
        for at, name in enumerate(node.outputs):
            if OPS[node.op].view and node.inputs[0] in state:
                state_views[name] = state_views.get(node.inputs[0], node.inputs[0])
                state.add(name)
                continue
            if OPS[node.op].view:
                buffer = buffer_of[node.inputs[0]]
            elif at in taken:
                buffer = taken[at]
            else:
                buffer = name
                first[name], last[name], sizes[name] = place, place, graph.values[name].nbytes
            buffer_of[name] = buffer
            last[buffer] = max(last[buffer], last_use[name])
    buffers = [Lifetime(name, sizes[name], first[name], min(last[name], steps - 1)) for name in sizes]
    for place, node in enumerate(graph.nodes):
        nbytes = OPS[node.op].work([graph.values[name] for name in node.inputs], node.attributes)
        if nbytes:
            buffers.append(Lifetime(f"work.{place}", nbytes, place, place))
    return Lifetimes(tuple(buffers), buffer_of, state_views, steps)


def _taken_over(
    graph: Graph, node: Node, place: int, buffer_of: dict[str, str], last: dict[str, int], state: set[str]
) -> dict[int, str]:
    """Output places of `node` with the buffers they take over from its inputs."""
    taken: dict[int, str] = {}
    for out, into in OPS[node.op].in_place:
        if out in taken or into >= len(node.inputs):
            continue
        source = node.inputs[into]
        if source in state or source in graph.inputs:
            continue
        buffer = buffer_of[source]
        a, y = graph.values[source], graph.values[node.outputs[out]]
        others = {buffer_of[name] for i, name in enumerate(node.inputs) if i != into and name not in state}
        dies = last[buffer] == place  # nothing in the buffer is read later
        if a.shape == y.shape and a.dtype == y.dtype and dies and buffer not in others | set(taken.values()):
            taken[out] = buffer
    return taken
