"""A `.tflite` file under construction. Equal constants, shapes, scales and options are written once.

The file is a FlatBuffer of one subgraph, by the schema that ai-edge-litert brings with it. It has no metadata, and only
its input and output have names. Bytes depend on the calls alone: the same calls give the same file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edge_runtime.deploy.formats.tflite.operators import OPERATORS
from edge_runtime.deploy.graph.quantised import Quant
from edge_runtime.ir.graph import Shape

Array = NDArray[Any]
SCHEMA_VERSION = 3
ALIGNMENT = 16  # of constants, as the schema asks: kernels load them in whole vectors
TYPES = {"float32": "FLOAT32", "int32": "INT32", "int64": "INT64", "int8": "INT8"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's record: numbers of its constant's bytes and of its grid, if it has them.

    `signature` is the shape with -1 where any size goes.
    """

    shape: Shape
    type: str
    buffer: int = 0
    quant: int = -1
    name: str = ""
    signature: Shape = ()


@dataclass(frozen=True, slots=True)
class Operator:
    code: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]


class TfliteFile:
    """Tensors are known by their number."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self._buffers: dict[bytes, int] = {b"": 0}
        self._quants: dict[tuple[bytes, bytes, int], int] = {}
        self._constants: dict[Tensor, int] = {}

    def tensor(
        self, shape: Shape, kind: str = "FLOAT32", quant: Quant | None = None, name: str = "", signature: Shape = ()
    ) -> int:
        """A value that an operator makes, or the model's input."""
        self.tensors.append(Tensor(shape, kind, 0, self._quant(quant), name, signature))
        return len(self.tensors) - 1

    def constant(self, content: Array, quant: Quant | None = None) -> int:
        """The dtype of `content` says the type; integers of at most 4 bits by `quant` are packed two to a byte."""
        kind, data = TYPES[content.dtype.name], np.ascontiguousarray(content).tobytes()
        if quant and quant.bits <= 4 and kind == "INT8":
            kind, data = "INT4", _packed(content)
        buffer = self._buffers.setdefault(data, len(self._buffers))
        record = Tensor(content.shape, kind, buffer, self._quant(quant))
        if record not in self._constants:
            self._constants[record] = len(self.tensors)
            self.tensors.append(record)
        return self._constants[record]

    def rename(self, tensor: int, name: str, signature: Shape) -> int:
        self.tensors[tensor] = replace(self.tensors[tensor], name=name, signature=signature)
        return tensor

    def operator(self, code: str, inputs: Sequence[int], outputs: Sequence[int], **options: Any) -> None:
        """An input of -1 is one that is left out."""
        self.operators.append(Operator(code, tuple(inputs), tuple(outputs), tuple(sorted(options.items()))))

    def _quant(self, quant: Quant | None) -> int:
        if quant is None:
            return -1
        zero = quant.zero_point.astype(np.int64)
        key = (quant.scale.astype(np.float32).tobytes(), zero.tobytes(), quant.axis or 0)
        return self._quants.setdefault(key, len(self._quants))

    def finish(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        data = list(self._buffers)
        return _Writer(sum(map(len, data))).write(self, data, list(self._quants), inputs, outputs)


def _packed(content: Array) -> bytes:
    """Two's complement in 4 bits, the first of a pair in the low half."""
    nibbles = content.astype(np.uint8).ravel() & 15
    nibbles = np.append(nibbles, np.zeros(len(nibbles) % 2, np.uint8))
    return bytes((nibbles[0::2] | nibbles[1::2] << 4).astype(np.uint8))


class _Writer:
    """FlatBuffers grow from the end of the file to its start: what is referred to is written first."""

    def __init__(self, nbytes: int) -> None:
        self._b = flatbuffers.Builder(nbytes + (1 << 16))
        self._shared: dict[Any, int] = {}  # offsets of vectors and tables, by their content

    def write(
        self,
        file: TfliteFile,
        buffers: Sequence[bytes],
        quants: Sequence[tuple[bytes, bytes, int]],
        inputs: Sequence[int],
        outputs: Sequence[int],
    ) -> bytes:
        b = self._b
        stored = [self._table("Buffer", Data=self._bytes(one) if one else None) for one in buffers]
        grids = [self._quantisation(*one) for one in quants]
        tensors = self._vector([self._tensor(one, grids) for one in file.tensors])
        codes = list(dict.fromkeys(one.code for one in file.operators))
        operators = self._vector([self._operator(one, codes.index(one.code)) for one in file.operators])
        graph = self._table(
            "SubGraph",
            Tensors=tensors,
            Inputs=self._ints(inputs),
            Outputs=self._ints(outputs),
            Operators=operators,
        )
        model = self._table(
            "Model",
            Version=SCHEMA_VERSION,
            OperatorCodes=self._vector([self._code(one) for one in codes]),
            Subgraphs=self._vector([graph]),
            Buffers=self._vector(stored),
        )
        b.Finish(model, b"TFL3")
        return bytes(b.Output())

    def _tensor(self, one: Tensor, grids: Sequence[int]) -> int:
        return self._table(
            "Tensor",
            Shape=self._ints(one.shape),
            Type=getattr(schema.TensorType, one.type),
            Buffer=one.buffer,
            Name=self._b.CreateString(one.name) if one.name else None,
            Quantization=grids[one.quant] if one.quant >= 0 else None,
            ShapeSignature=self._ints(one.signature) if one.signature else None,
        )

    def _quantisation(self, scale: bytes, zero_point: bytes, axis: int) -> int:
        return self._table(
            "QuantizationParameters",
            Scale=self._array(np.frombuffer(scale, np.float32)),
            ZeroPoint=self._array(np.frombuffer(zero_point, np.int64)),
            QuantizedDimension=axis,
        )

    def _operator(self, one: Operator, code: int) -> int:
        table = OPERATORS[one.code][1]
        return self._table(
            "Operator",
            OpcodeIndex=code,
            Inputs=self._ints(one.inputs),
            Outputs=self._ints(one.outputs),
            BuiltinOptionsType=getattr(schema.BuiltinOptions, table) if table else 0,
            BuiltinOptions=self._options(table, one.options) if table else None,
        )

    def _options(self, table: str, options: tuple[tuple[str, Any], ...]) -> int:
        key = (table, options)
        if key not in self._shared:
            record = getattr(schema, f"{table}T")()
            for name, value in options:
                if not hasattr(record, name):
                    raise AttributeError(f"{table} has no {name}")
                setattr(record, name, value)
            self._shared[key] = record.Pack(self._b)
        return self._shared[key]

    def _code(self, code: str) -> int:
        number = getattr(schema.BuiltinOperator, code)
        # Readers from before 2020 know only the first of the two, a byte.
        return self._table(
            "OperatorCode", DeprecatedBuiltinCode=min(number, 127), Version=OPERATORS[code][0], BuiltinCode=number
        )

    def _table(self, table: str, **fields: Any) -> int:
        """Offsets and numbers, by the names that the schema's functions have; None is left out."""
        getattr(schema, f"{table}Start")(self._b)
        for name, value in fields.items():
            if value is not None:
                getattr(schema, f"{table}Add{name}")(self._b, value)
        offset: int = getattr(schema, f"{table}End")(self._b)
        return offset

    def _vector(self, offsets: Sequence[int]) -> int:
        self._b.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self._b.PrependUOffsetTRelative(offset)
        return int(self._b.EndVector())

    def _ints(self, numbers: Sequence[int]) -> int:
        return self._array(np.array(numbers, np.int32))

    def _array(self, content: Array) -> int:
        key = (content.dtype.str, content.tobytes())
        if key not in self._shared:
            self._shared[key] = self._b.CreateNumpyVector(content)
        return self._shared[key]

    def _bytes(self, content: bytes) -> int:
        """The library's own byte vectors are aligned to 4."""
        b = self._b
        b.StartVector(1, len(content), ALIGNMENT)
        b.head -= len(content)
        b.Bytes[b.head : b.head + len(content)] = content
        return int(b.EndVector())
