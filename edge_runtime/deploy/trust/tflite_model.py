"""A `.tflite` file as far as it must be understood to be judged: one graph of builtin operators over plain tensors.

Field numbers: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs.
Refused: custom (and so Flex) operators, more than one graph (and so loops and branches), contents outside the tables or
outside the file, sparse and variable tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_runtime.deploy.trust.flatbuffer import Table, root
from edge_runtime.errors import ArtefactError

Shape = tuple[int, ...]
MAX_TENSORS = MAX_OPERATORS = 100_000
MAX_LINKS = 1_000_000  # inputs and outputs of all operators
MAX_RANK, MAX_KNOWN = 8, 64
# TensorType -> bits of an element: float32, float16, int32, uint8, int64, bool, int16, int8, int4.
BITS: Mapping[int, int] = {0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 9: 8, 17: 4}
_INTS = {2: "<i4", 4: "<i8"}


@dataclass(frozen=True, slots=True)
class TfliteTensor:
    """A tensor as the file declares it; `ints` are its numbers, if it is a short integer constant."""

    shape: Shape
    constant: bool
    ints: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class TfliteOperator:
    """One operator; -1 for an input that is left out. `options` is the table of its builtin options."""

    code: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Table | None


@dataclass(frozen=True, slots=True)
class TfliteModel:
    """The one graph of a file."""

    tensors: tuple[TfliteTensor, ...]
    operators: tuple[TfliteOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_tflite(content: bytes, max_elements: int) -> TfliteModel:
    """The graph in a file, no tensor of which has more than `max_elements`.

    Raises:
        ArtefactError: malformed, or with anything in it that is not allowed.

    """
    model = root(content, b"TFL3", "TFLite")
    model.only(0, 1, 2, 3, 4, 5, 6, 7)  # 8 and 9 are contents in other files
    graphs = list(model.tables(2, "TFLite graphs", MAX_OPERATORS))
    if model.number(0, "I") != 3 or len(graphs) != 1:
        raise ArtefactError(f"TFLite: has schema {model.number(0, 'I')} and {len(graphs)} graphs; 3 and 1 are allowed")
    buffers = list(model.tables(4, "TFLite buffers", MAX_TENSORS))
    for buffer in buffers:
        buffer.only(0)  # 1 and 2 place contents behind the tables
    codes = [_code(one) for one in model.tables(1, "TFLite operator codes", MAX_OPERATORS)]
    tensors = tuple(_tensor(one, buffers, max_elements) for one in graphs[0].tables(0, "TFLite tensors", MAX_TENSORS))
    operators = _operators(graphs[0], codes)
    return TfliteModel(tensors, operators, _links(graphs[0], 1), _links(graphs[0], 2))


def _code(table: Table) -> int:
    table.only(0, 2, 3)  # 1 names a custom operator
    # Old readers take the one, new ones the larger.
    return max(table.number(0, "b"), table.number(3, "i"))


def _tensor(table: Table, buffers: list[Table], max_elements: int) -> TfliteTensor:
    table.only(0, 1, 2, 3, 4, 5, 7, 8)  # 6 sparse, 9 and 10 contents elsewhere
    shape = tuple(map(int, table.numbers(0, "<i4")[: MAX_RANK + 1]))
    kind, place = table.number(1, "b"), table.number(2, "I")
    count = math.prod(shape)
    if kind not in BITS or len(shape) > MAX_RANK or any(n < 0 for n in shape) or count > max_elements:
        raise ArtefactError(f"TFLite: a tensor {shape} of type {kind}; a device takes {max_elements} elements at most")
    if place >= len(buffers) or table.number(5, "b"):
        raise ArtefactError("TFLite: a tensor has no buffer, or is a variable")
    content = buffers[place].numbers(0, "|u1")
    if not len(content):
        return TfliteTensor(shape, False, None)
    if len(content) != -(-count * BITS[kind] // 8):
        raise ArtefactError(f"TFLite: a constant {shape} has {len(content)} bytes")
    short = kind in _INTS and count <= MAX_KNOWN
    ints = tuple(map(int, np.frombuffer(content.tobytes(), _INTS[kind]))) if short else None
    return TfliteTensor(shape, True, ints)


def _operators(graph: Table, codes: list[int]) -> tuple[TfliteOperator, ...]:
    found, links = [], 0
    for table in graph.tables(3, "TFLite operators", MAX_OPERATORS):
        one = _operator(table, codes)
        links += len(one.inputs) + len(one.outputs)
        # Counted as they come: operators may share one vector, so a small file can name it very often.
        if links > MAX_LINKS:
            raise ArtefactError(f"TFLite: its operators have more than {MAX_LINKS} inputs and outputs")
        found.append(one)
    return tuple(found)


def _operator(table: Table, codes: list[int]) -> TfliteOperator:
    table.only(0, 1, 2, 3, 4, 6, 8)  # 5, 9 and 10 are custom options, 7 variables, 11 and 12 options of later operators
    index = table.number(0, "I")
    if index >= len(codes):
        raise ArtefactError("TFLite: an operator of no code")
    options = table.table(4, "TFLite options")
    return TfliteOperator(codes[index], _links(table, 1), _links(table, 2), options)


def _links(table: Table, number: int) -> tuple[int, ...]:
    found = table.numbers(number, "<i4")
    if len(found) > MAX_TENSORS:
        raise ArtefactError("TFLite: too many inputs or outputs")
    return tuple(map(int, found))
