"""Whether an ONNX file names other files: of any file that ONNX Runtime might take, checked before it sees the bytes.

`trust/onnx_model.py` is stricter: it refuses whatever the models that we write do not need, sub-graphs among it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edge_runtime.deploy.trust.protobuf import fields
from edge_runtime.errors import ArtefactError

# Of each kind of message, the fields that are messages we look into.
_INSIDE: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_DEPTH = 64  # a subgraph takes three levels
_TENSOR_NAME, _TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 8, 13, 14
_EXTERNAL = 1

Field = tuple[int, int | memoryview]


@dataclass(frozen=True, slots=True)
class Message:
    """A message of `kind` "model", "graph", "node", "attribute", "tensor", ...; its fields in the file's order.

    Numbers are int, all else is bytes. A node's op_type is field 4 and its domain 7.
    """

    kind: str
    fields: tuple[Field, ...]

    def text(self, number: int) -> str:
        """The last field of this number, which is the one that counts; "" if there is none."""
        found = [value for field, value in self.fields if field == number and isinstance(value, memoryview)]
        return bytes(found[-1]).decode("utf-8", "replace") if found else ""


def messages(model: bytes) -> Iterator[Message]:
    """Every node, attribute, tensor and graph of a model, subgraphs and functions included.

    Raises:
        ArtefactError: bytes that are no protobuf message, or graphs nested too deep.

    """
    waiting = [("model", memoryview(model), 0)]
    while waiting:
        kind, content, depth = waiting.pop()
        if depth > _DEPTH:
            raise ArtefactError("not an ONNX model: its graphs are nested too deep")
        message = Message(
            kind, tuple((number, value) for number, _, value in fields(content, f"not an ONNX model: {kind}"))
        )
        yield message
        for number, value in message.fields:
            if inside := _INSIDE[kind].get(number):
                if isinstance(value, int):
                    raise ArtefactError(f"not an ONNX model: field {number} of a {kind} is a number")
                waiting.append((inside, value, depth + 1))


def external_tensors(model: bytes) -> list[str]:
    """Names of the tensors whose content the file says is in another file."""
    return [
        message.text(_TENSOR_NAME)
        for message in messages(model)
        if message.kind == "tensor"
        and any(
            number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value == _EXTERNAL)
            for number, value in message.fields
        )
    ]
