"""From a quantised graph to ops of the native core.

Every value has up to three forms, made when somebody asks for them: `raw`, as its node gave it; `s8`, on its grid, in
some order of memory (`layout`); `f32`, as a float op reads it, which is the rounded one where the value has a grid.
Conversions stand where an integer op meets a float one, and nowhere else. A node that could compute in integers but
has no such op here is done in float32 between two conversions, which is what its grids mean.
"""

from __future__ import annotations

from edge_runtime.deploy.formats.engine.integer_rows import INTEGER, TABLES
from edge_runtime.deploy.formats.engine.lowering import Lowering
from edge_runtime.deploy.formats.engine.place import placed
from edge_runtime.deploy.graph.blocks import Block, blocks
from edge_runtime.deploy.graph.quantise import is_integer
from edge_runtime.deploy.graph.quantised import QuantisedModel
from edge_runtime.deploy.run.engine_file import EngineModel
from edge_runtime.errors import UnsupportedOpError

BITS = 8  # of activations


def lower(quantised: QuantisedModel, rows: int) -> EngineModel:
    """The model for `rows` rows. Raises UnsupportedOpError for a node that the core has no op for."""
    one = Lowering(quantised, rows)
    graph = one.graph
    for block in blocks(graph, quantised.quants):
        _check_bits(one, block)
        if not (_is_integer(one, block) and INTEGER[block.node.op](one, block)):
            one.float_block(block)
    x, y = graph.inputs[0], graph.outputs[0]
    output = one.floats_of(y)
    if not isinstance(output, int):
        raise UnsupportedOpError("the model's output does not depend on its input")
    return placed(one.steps, one.sizes, one.constants, (graph.values[x], one.input), (graph.values[y], output))


def _is_integer(one: Lowering, block: Block) -> bool:
    """Whether it computes in integers, or is a function of one value between two grids, which is a table."""
    node = block.node
    if node.op not in INTEGER or block.output not in one.quants:
        return False
    table = node.op in TABLES and node.inputs[0] in one.quants and node.inputs[0] not in one.state
    return table or is_integer(node, one.graph, one.quants)


def _check_bits(one: Lowering, block: Block) -> None:
    for name in (*block.node.inputs, block.output):
        if name in one.quants and name not in one.state and one.quants[name].bits != BITS:
            raise UnsupportedOpError(f"{name}: activations have {BITS} bits here, not {one.quants[name].bits}")
