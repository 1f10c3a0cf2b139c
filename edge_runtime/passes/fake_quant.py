"""Rounding where a deployed model rounds, in a graph that is trained: quantisation-aware training.

Forward, values go to the nearest number of an integer grid (Jacob et al. 2018, section 3); backward, the gradient goes
through as if they had not (Bengio et al. 2013, section 4). Weights are on a symmetric grid per row, over their own
range; activations on an asymmetric one per tensor, over the range of the batch at hand.

A batch norm need not be folded first. Folding multiplies row c of the weight by some a_c, and a grid that is symmetric
over max|row| is multiplied along with it: what is rounded before folding is what would be rounded after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from edge_runtime.ir.builder import Builder
from edge_runtime.ir.graph import Graph, Node
from edge_runtime.ir.grids import ACTIVATION_BITS, INTEGER_OPS, MOVES, WEIGHTS, bits_by_weight, layer_weights
from edge_runtime.ir.verify import verify

_LAYERS = ("conv2d", "linear")
_NORMS = ("batch_norm", "batch_norm_apply")
_ACTS = ("relu", "relu6")
_GONE = ("dropout", "detach")  # not there on the device


def with_fake_quant(graph: Graph, weight_bits: int | Mapping[str, int], activations: bool) -> Graph:
    """A forward graph that rounds what the deployed model will.

    Args:
        graph: of a module in training or evaluation mode, or of a folded model. The batch comes first in its inputs.
        weight_bits: 2 to 8 for all weights of layers, or by the weight's name, 8 for those that are not there.
        activations: whether activations are rounded too, to 8 bits: at the graph's inputs and wherever a block ends,
            which is behind the batch norm and the ReLU that a layer takes up. Rows of the batch then act on each other,
            by their common range.

    Raises:
        ConfigError: bits outside 2 to 8, or names of no weight.

    """
    bits = bits_by_weight(layer_weights(graph), weight_bits)
    rounded = _activations(graph) if activations else frozenset()
    b = Builder(Graph(graph.values, graph.inputs, graph.state, (), graph.outputs), batch=_batch(graph))
    on_grid: dict[str, str] = {}  # of each value that is rounded, the rounded one

    def read(name: str) -> str:
        if name in rounded and name not in on_grid:
            counts = graph.values[name].shape[:1] == (b.batch,) and name not in graph.state
            b.hint = f"{name}.rounded"
            on_grid[name] = b.emit("fake_quant", name, b.rows(), batch=b.batch if counts else 1, bits=ACTIVATION_BITS)
        return on_grid.get(name, name)

    def weight(name: str) -> str:
        if (key := f"{name} of a layer") not in on_grid:
            b.hint = f"{name}.rounded"
            on_grid[key] = b.emit("fake_quant_weight", name, bits=bits[name])
        return on_grid[key]

    # Rounded right before its first use: its gradient is then whole, and the weight updated, as early as without.
    for node in graph.nodes:
        b.source = node.source
        places = WEIGHTS.get(node.op, ())
        inputs = tuple(
            weight(name) if place in places and name in bits else read(name) for place, name in enumerate(node.inputs)
        )
        b.append(node, inputs, graph.values)
    return verify(b.finish([read(name) for name in graph.outputs]))


def _activations(graph: Graph) -> frozenset[str]:
    """The values that get a grid of their own."""
    batch = _batch(graph)
    found: set[str] = set()
    moved: set[str] = set()
    same: dict[str, str] = {}  # of what is not there on the device, what is there instead
    for node, output in _blocks(graph):
        layer = node.op in _LAYERS
        if node.op in _GONE:
            same[output] = same.get(node.inputs[0], node.inputs[0])
        if node.op not in (*INTEGER_OPS, *_NORMS) or (layer and node.inputs[1] not in graph.state):
            continue
        given = node.inputs[:1] if layer or node.op in _NORMS else node.inputs
        floats = [same.get(name, name) for name in given if graph.values[name].dtype == "f32"]
        values = (*floats, output)
        by_row = all(name in graph.state or graph.values[name].shape[:1] == (batch,) for name in values)
        if floats and by_row:
            found.update(values)
            if node.op in MOVES:
                moved.add(output)
    return frozenset(found - moved)


def _blocks(graph: Graph) -> list[tuple[Node, str]]:
    """Nodes that begin a block, each with what comes out of it: behind the batch norm and activation that join it.

    An activation that was moved behind a max pool counts as before it, where the device has it: both give the same.
    """
    readers = Counter(name for node in graph.nodes for name in node.inputs)
    readers.update(graph.outputs)
    by_first = {node.inputs[0]: node for node in graph.nodes if node.inputs}
    inside: set[str] = set()
    blocks = []

    def joined(name: str, ops: tuple[str, ...]) -> Node | None:
        node = by_first.get(name)
        return node if node and readers[name] == 1 and node.op in ops else None

    for node in graph.nodes:
        if not node.outputs or node.outputs[0] in inside:
            continue
        end = node.outputs[0]
        folds = node.op == "conv2d" or (node.op == "linear" and len(graph.values[end].shape) == 2)
        if folds and (norm := joined(end, _NORMS)):
            inside.add(end := norm.outputs[0])
        if node.op in (*_LAYERS, *_NORMS, "add"):
            pool = joined(end, ("max_pool2d",))
            if act := joined(pool.outputs[0] if pool else end, _ACTS):
                inside.update(one.outputs[0] for one in (pool, act) if one)
                end = act.outputs[0]
        blocks.append((node, end))
    return blocks


def _batch(graph: Graph) -> int:
    """Rows of the batch."""
    return next(graph.values[name].shape[0] for name in graph.inputs if name not in ("rows", "random"))
