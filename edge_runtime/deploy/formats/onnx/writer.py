"""From a deployed model to the bytes of an `.onnx` file, made from our own graph; torch.onnx has no part in it."""

from __future__ import annotations

import dataclasses

import onnx
from onnx import TensorProto, helper

from edge_runtime.deploy.formats.onnx.emitter import Emitter
from edge_runtime.deploy.formats.onnx.rows import NEEDS, ROWS
from edge_runtime.deploy.formats.onnx.sequences import without_zero_states
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.quantised import QuantisedModel
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.builder import Builder
from edge_runtime.ir.graph import Graph, Node

INPUT, OUTPUT, BATCH = "input", "output", "batch"
OPSET = 13  # the first whose DequantizeLinear takes one scale per channel
IR_VERSION = 10  # the highest that onnxruntime 1.20, our oldest, reads
_DTYPES = {"f32": TensorProto.FLOAT, "i64": TensorProto.INT64}


def write_onnx(model: FloatModel | QuantisedModel, *, batch: int = 0) -> bytes:
    """The file; equal models give equal bytes.

    A quantised model's weights are int8 with DequantizeLinear behind them; those of 2, 3 or 4 bits share bytes, and are
    int8 once the model is loaded. There is never external data.

    Args:
        model: in evaluation mode; batch norms may be folded or not.
        batch: rows that the file is for; 0 for any.

    Raises:
        UnsupportedOpError: an op that ONNX cannot hold; names it and the line of the module that it comes from.

    """
    floats, quants = (model, {}) if isinstance(model, FloatModel) else (model.model, model.quants)
    graph = _live(floats.at(batch) if batch else floats.graph)
    for node in graph.nodes:
        if node.op not in ROWS:
            raise UnsupportedOpError(f"{node.op} cannot be written as ONNX, at {node.source or 'an unknown line'}")
    opset = max([OPSET, *(NEEDS.get(node.op, OPSET) for node in graph.nodes)])
    emitter = Emitter(graph, floats.weights, quants, 0 if batch else floats.batch, opset)
    emitter.start(INPUT)
    for node in graph.nodes:
        emitter.source = node.source
        ROWS[node.op](emitter, node)
    nodes = emitter.finish(OUTPUT)
    ends = [
        helper.make_tensor_value_info(
            name, _DTYPES[value.dtype], [BATCH if emitter.has_batch(n) else n for n in value.shape]
        )
        for name, value in ((INPUT, graph.values[graph.inputs[0]]), (OUTPUT, graph.values[graph.outputs[0]]))
    ]
    proto = helper.make_graph(nodes, "hedgerow", ends[:1], ends[1:], list(emitter.initializers))
    opsets = [helper.make_opsetid("", opset)]
    version = min(IR_VERSION, helper.find_min_ir_version_for(opsets))
    made = helper.make_model(proto, opset_imports=opsets, ir_version=version, producer_name="hedgerow")
    _check(made)
    content: bytes = made.SerializeToString(deterministic=True)
    return content


def _live(graph: Graph) -> Graph:
    """Without nodes that nothing reads, once recurrent layers no longer read a start that is zero anyway."""
    nodes = tuple(without_zero_states(graph))
    for node in nodes:
        _require_one_output(node, graph, nodes)
    return Builder(dataclasses.replace(graph, nodes=nodes)).finish(graph.outputs)


def _require_one_output(node: Node, graph: Graph, nodes: tuple[Node, ...]) -> None:
    """What a node keeps for its gradient has no place in the file."""
    if node.op in ("gru", "lstm"):
        return
    read = {name for other in nodes for name in other.inputs} | set(graph.outputs)
    if read.intersection(node.outputs[1:]):
        raise UnsupportedOpError(f"{node.op}: only its first output can be written as ONNX, at {node.source}")


def _check(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
