"""Which activations to keep for the backward pass, and the nodes that compute the others a second time.

Keeping is chosen in two stages. First the cheapest cut: of all sets of forward values from which the backward pass can
be fed by cheap ops alone (normalisations, activations, pools), the one of fewest bytes; a minimum cut between what is
computed and what is needed, as in Herrmann et al. 2019 and PyTorch's partitioner. Then, if that is still too much,
segments (Chen et al. 2016): only the values that cross a segment's border are kept, and a segment is replayed when the
backward pass reaches it. A replay runs the same ops on the same numbers, so results do not change by a bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from edge_runtime.ir.builder import Builder
from edge_runtime.ir.graph import Graph, Node
from edge_runtime.ir.ops import OPS, Recompute
from edge_runtime.ir.verify import verify

_INFINITE = 1 << 60


def needed_backward(graph: Graph, boundary: int) -> set[str]:
    """The values made by the first `boundary` nodes that later ones read."""
    made = {name for node in graph.nodes[:boundary] for name in node.outputs}
    return {name for node in graph.nodes[boundary:] for name in node.inputs if name in made}


def cheapest_kept(graph: Graph, boundary: int) -> set[str]:
    """The forward values to keep if cheap ops may recompute the rest: fewest bytes, then fewest recomputations."""
    needed = needed_backward(graph, boundary)
    edges: list[tuple[str, str, int]] = []
    for node in graph.nodes[:boundary]:
        for name in node.outputs:
            edges.append((f"{name}>", f"{name}<", graph.values[name].nbytes))
            if name in needed:
                edges.append((f"{name}<", "sink", _INFINITE))
            again = _again(node, name)
            sources = again.inputs if again and OPS[again.op].recompute is Recompute.CHEAP else None
            if sources is None:
                edges.append(("source", f"{name}>", _INFINITE))
            else:
                made = (source for source in sources if source not in graph.state and source not in graph.inputs)
                edges.extend((f"{source}<", f"{name}>", _INFINITE) for source in made)
    behind = _sink_side(edges)
    return {name for node in graph.nodes[:boundary] for name in node.outputs if _is_cut(name, behind)}


def _is_cut(name: str, behind: set[str]) -> bool:
    return f"{name}<" in behind and f"{name}>" not in behind


def _sink_side(edges: Iterable[tuple[str, str, int]]) -> set[str]:
    """The vertices behind the minimum cut that lies nearest to the sink (Edmonds & Karp 1972)."""
    room: dict[str, dict[str, int]] = {"source": {}, "sink": {}}
    for start, end, capacity in edges:
        ahead, back = room.setdefault(start, {}), room.setdefault(end, {})
        ahead[end] = min(_INFINITE, ahead.get(end, 0) + capacity)
        back.setdefault(start, 0)
    while True:
        came_from, queue = {"source": ""}, deque(["source"])
        while queue and "sink" not in came_from:
            here = queue.popleft()
            for there, capacity in room[here].items():
                if capacity and there not in came_from:
                    came_from[there] = here
                    queue.append(there)
        if "sink" not in came_from:
            break
        path, at = [], "sink"
        while at != "source":
            path.append((came_from[at], at))
            at = came_from[at]
        flow = min(room[start][end] for start, end in path)
        for start, end in path:
            room[start][end] -= flow
            room[end][start] += flow
    behind, queue = {"sink"}, deque(["sink"])
    while queue:
        here = queue.popleft()
        for there in room[here]:
            if room[there].get(here) and there not in behind:
                behind.add(there)
                queue.append(there)
    return behind


def segment_borders(graph: Graph, boundary: int, kept: set[str], segment_bytes: int) -> list[int]:
    """Places in the forward pass, each after a node, between segments that hold about `segment_bytes` of `kept`.

    Of the places that would do, the one that the fewest bytes cross.
    """
    last_use: dict[str, int] = {}
    for place, node in enumerate(graph.nodes[:boundary]):
        last_use.update(dict.fromkeys(node.inputs, place))
    crossing: list[int] = []
    produced: list[int] = []
    live: dict[str, int] = {}
    for place, node in enumerate(graph.nodes[:boundary]):
        live.update((name, graph.values[name].nbytes) for name in node.outputs)
        live = {name: nbytes for name, nbytes in live.items() if last_use.get(name, -1) > place}
        crossing.append(sum(live.values()))
        produced.append(sum(graph.values[name].nbytes for name in node.outputs if name in kept))
    borders: list[int] = []
    held = 0
    candidates: list[int] = []
    for place, nbytes in enumerate(produced):
        if candidates and held + nbytes > segment_bytes:
            best = min(candidates, key=lambda p: (crossing[p], -p))
            borders.append(best)
            held = sum(produced[best + 1 : place])
            candidates = []
        held += nbytes
        if held >= segment_bytes / 2:
            candidates.append(place)
    return borders


def kept_with_segments(graph: Graph, boundary: int, kept: set[str], borders: list[int]) -> set[str]:
    """What of the forward pass stays in memory: what crosses a border, and all of `kept` behind the last one."""
    if not borders:
        return kept
    made_at = {name: place for place, node in enumerate(graph.nodes[:boundary]) for name in node.outputs}
    stay = {name for name in kept if made_at[name] > borders[-1]}
    for place, node in enumerate(graph.nodes[:boundary]):
        for name in node.inputs:
            if name in made_at and any(made_at[name] <= border < place for border in borders):
                stay.add(name)
    return stay | _without_a_second_time(graph, boundary, kept | needed_backward(graph, boundary), stay)


def _without_a_second_time(graph: Graph, boundary: int, wanted: set[str], stay: set[str]) -> set[str]:
    """What has to stay as well, because computing `wanted` again comes upon it and it can be computed once only."""
    made_by = {name: node for node in graph.nodes[:boundary] for name in node.outputs}
    found: set[str] = set()
    seen = wanted - stay
    open_ = list(seen)
    while open_:
        name = open_.pop()
        again = _again(made_by[name], name)
        if again is None:
            found.add(name)
            continue
        new = {source for source in again.inputs if source in made_by} - stay - seen
        seen |= new
        open_ += new
    return found


def recompute(graph: Graph, boundary: int, stay: set[str], kept: set[str]) -> Graph:
    """The same step with only `stay` held between forward and backward pass.

    What is in `kept` is computed once more when it is first needed, and then held; anything else is computed from those
    right where it is needed.
    """
    made_by = {name: node for node in graph.nodes[:boundary] for name in node.outputs}
    b = Builder(Graph(graph.values, graph.inputs, graph.state, graph.nodes[:boundary], graph.outputs))
    held: dict[str, str] = {}  # clones of `kept`
    near: dict[str, str] = {}  # clones of other values, for the backward pass

    def clone(name: str, passing: dict[str, str]) -> str:
        """A value equal to forward value `name`; `passing` are the clones that will do besides `held`."""
        if name not in made_by or name in stay:
            return name
        memo = held if name in kept else passing
        if name not in memo:
            node = made_by[name]
            again = _again(node, name)
            if again is None:
                raise AssertionError(f"{name} cannot be recomputed and is not kept")
            inner: dict[str, str] = {} if name in kept else passing
            b.hint, b.source = f"{name}'", node.source
            inputs = [clone(source, inner) for source in again.inputs]
            b.hint = f"{name}'"
            results = b.emit_all(again.op, *inputs, **again.attributes)
            for output, result in zip(again.outputs, results, strict=True):
                (held if output in kept else memo)[output] = result
        return memo[name]

    for node in graph.nodes[boundary:]:
        inputs = tuple(clone(name, near) for name in node.inputs)
        b.append(node, inputs, graph.values)
    return verify(b.finish(graph.outputs))


def _again(node: Node, name: str) -> Node | None:
    """The node that gives `name`, an output of `node`, a second time; None where that cannot be."""
    if node.op == "batch_norm":
        x, w, bias, _rows = node.inputs
        y, *stats = node.outputs
        if name != y:
            return None  # statistics are small, and a second pass must not move them
        return Node("batch_norm_apply", (x, w, bias, *stats), (y,), {"eps": node.attributes["eps"]}, source=node.source)
    if node.op in ("gru", "lstm"):
        states = 1 if node.op == "gru" else 2
        y, kept = node.outputs[0], node.outputs[1 + states :]
        if name not in kept:
            return None  # a second walk through time
        return Node(f"{node.op}_gates", (*node.inputs, y), kept, source=node.source)
    return None if OPS[node.op].recompute is Recompute.NEVER else node
