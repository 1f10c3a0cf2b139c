"""An ONNX file as far as it must be understood to be judged: nodes, constants, ends. Whatever else it has is refused.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Not known here, and so not allowed: functions,
external data, training graphs, sparse or string tensors, sub-graphs and so loops and branches, other operator domains.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from edge_runtime.deploy.trust.protobuf import Kind, Message, Schema
from edge_runtime.errors import ArtefactError

Shape = tuple[int, ...]
MAX_RANK, MAX_KNOWN = 8, 64
_NUMBER, _ONE, _MANY, _NUMBERS, _FLOATS = Kind.NUMBER, Kind.ONE, Kind.MANY, Kind.NUMBERS, Kind.FLOATS

_PAIR: Schema = {1: ("key", _ONE), 2: ("value", _ONE)}
_MODEL: Schema = {
    1: ("ir_version", _NUMBER), 2: ("producer_name", _ONE), 3: ("producer_version", _ONE), 4: ("domain", _ONE),
    5: ("model_version", _NUMBER), 6: ("doc_string", _ONE), 7: ("graph", _ONE), 8: ("opset_import", _MANY),
    14: ("metadata_props", _MANY),
}  # fmt: skip
_OPSET: Schema = {1: ("domain", _ONE), 2: ("version", _NUMBER)}
_GRAPH: Schema = {
    1: ("node", _MANY), 2: ("name", _ONE), 5: ("initializer", _MANY), 10: ("doc_string", _ONE), 11: ("input", _MANY),
    12: ("output", _MANY), 13: ("value_info", _MANY), 16: ("metadata_props", _MANY),
}  # fmt: skip
_NODE: Schema = {
    1: ("input", _MANY), 2: ("output", _MANY), 3: ("name", _ONE), 4: ("op_type", _ONE), 5: ("attribute", _MANY),
    6: ("doc_string", _ONE), 7: ("domain", _ONE), 9: ("metadata_props", _MANY),
}  # fmt: skip
_ATTRIBUTE: Schema = {
    1: ("name", _ONE), 2: ("f", Kind.FLOAT), 3: ("i", _NUMBER), 4: ("s", _ONE), 5: ("t", _ONE), 7: ("floats", _FLOATS),
    8: ("ints", _NUMBERS), 9: ("strings", _MANY), 13: ("doc_string", _ONE), 20: ("type", _NUMBER),
}  # fmt: skip
_TENSOR: Schema = {
    1: ("dims", _NUMBERS), 2: ("data_type", _NUMBER), 4: ("float_data", _FLOATS), 5: ("int32_data", _NUMBERS),
    7: ("int64_data", _NUMBERS), 8: ("name", _ONE), 9: ("raw_data", _ONE), 10: ("double_data", _FLOATS),
    11: ("uint64_data", _NUMBERS), 12: ("doc_string", _ONE),
}  # fmt: skip
_VALUE: Schema = {1: ("name", _ONE), 2: ("type", _ONE), 3: ("doc_string", _ONE), 4: ("metadata_props", _MANY)}
_TYPE: Schema = {1: ("tensor_type", _ONE), 6: ("denotation", _ONE)}
_TENSOR_TYPE: Schema = {1: ("elem_type", _NUMBER), 2: ("shape", _ONE)}
_TENSOR_SHAPE: Schema = {1: ("dim", _MANY)}
_DIM: Schema = {1: ("dim_value", _NUMBER), 2: ("dim_param", _ONE), 3: ("denotation", _ONE)}
_EXTERNAL: Schema = {**_TENSOR, 13: ("external_data", _MANY), 14: ("data_location", _NUMBER)}

# TensorProto.DataType -> bits of an element in raw_data.
BITS: Mapping[int, int] = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 21: 4, 22: 4,
}  # fmt: skip
INT64 = 7


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor in the file: its shape, the bytes that it takes, and its values if it is short and int64."""

    name: str
    shape: Shape
    nbytes: int
    ints: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Attribute:
    """Numbers alone are read; a text is kept to be compared."""

    ints: tuple[int, ...] = ()
    text: str = ""
    tensor: Constant | None = None


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One operator."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A graph; `inputs` are those that a caller gives, with 1 in the place of a dim that is not told."""

    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]
    constants: tuple[Constant, ...]
    nodes: tuple[OnnxNode, ...]


def read_onnx(content: bytes) -> OnnxModel:
    """The graph in a file.

    Raises:
        ArtefactError: malformed, or with anything in it that is not allowed.

    """
    model = Message(memoryview(content), _MODEL, "ONNX")
    for opset in model.messages("opset_import", _OPSET):
        _check_domain(opset)
    body = model.content("graph")
    if body is None:
        raise ArtefactError("ONNX: has no graph")
    graph = Message(body, _GRAPH, "ONNX")
    constants = tuple(_tensor(one) for one in graph.messages("initializer", _EXTERNAL))
    stored = {one.name for one in constants}
    inputs = {one.text("name"): _shape_of(one) for one in graph.messages("input", _VALUE)}
    return OnnxModel(
        {name: shape for name, shape in inputs.items() if name not in stored},
        tuple(one.text("name") for one in graph.messages("output", _VALUE)),
        constants,
        tuple(_node(one) for one in graph.messages("node", _NODE)),
    )


def _check_domain(message: Message) -> None:
    if message.text("domain") not in ("", "ai.onnx"):
        raise ArtefactError(f"{message.what}: the operators of {message.text('domain')[:80]!r} are not allowed")


def _node(message: Message) -> OnnxNode:
    _check_domain(message)
    attributes = {one.text("name"): _attribute(one) for one in message.messages("attribute", _ATTRIBUTE)}
    inputs, outputs = message.texts("input"), message.texts("output")
    return OnnxNode(message.text("op_type"), tuple(inputs), tuple(outputs), attributes)


def _attribute(message: Message) -> Attribute:
    tensors = [_tensor(one) for one in message.messages("t", _EXTERNAL)]
    ints = [message.number("i")] if "i" in message else message.numbers("ints")
    return Attribute(tuple(ints), message.text("s"), tensors[0] if tensors else None)


def _tensor(message: Message) -> Constant:
    name = message.text("name")
    if "external_data" in message or "data_location" in message:
        raise ArtefactError(f"ONNX: the contents of {name[:80]!r} lie outside the file")
    shape, kind = tuple(message.numbers("dims")), message.number("data_type")
    if kind not in BITS or len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise ArtefactError(f"ONNX: the constant {name[:80]!r} has a type or shape that no model here needs")
    count, raw = math.prod(shape), message.content("raw_data")
    nbytes = -(-count * BITS[kind] // 8)
    if raw is not None:
        complete = len(raw) == nbytes
    else:
        # Two 4-bit numbers share one of int32_data; complex ones are two of float_data each, and not allowed.
        stored = -(-count // 2) if BITS[kind] == 4 else count
        typed = message.count("float_data", 4), message.count("double_data", 8)
        varints = (message.count(f"{one}_data") for one in ("int32", "int64", "uint64"))
        complete = sum((*typed, *varints)) == stored
    if not complete:
        raise ArtefactError(f"ONNX: the constant {name[:80]!r} has not the contents that its shape {shape} needs")
    return Constant(name, shape, nbytes, _ints(message, raw, kind, count))


def _ints(message: Message, raw: memoryview | None, kind: int, count: int) -> tuple[int, ...] | None:
    if kind != INT64 or count > MAX_KNOWN:
        return None
    return struct.unpack(f"<{count}q", raw) if raw is not None else tuple(message.numbers("int64_data"))


def _shape_of(value: Message) -> Shape:
    for schema, name in ((_TYPE, "type"), (_TENSOR_TYPE, "tensor_type"), (_TENSOR_SHAPE, "shape")):
        inner = value.messages(name, schema)
        if not inner:
            raise ArtefactError(f"{value.what}: an input is no tensor of a known rank")
        value = inner[0]
    return tuple(one.number("dim_value") if "dim_value" in one else 1 for one in value.messages("dim", _DIM))
