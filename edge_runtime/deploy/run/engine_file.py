"""The `.hedgerow` file: a model as ops of the native core, with its constants as integers.

Layout: `program/container.py` with the magic `HEDGEINF`, the constants on 64-byte borders. The header:

    version           1
    input, output     [name, dtype, shape, offset], offset in the activations
    activation_bytes  what the activations take, planned; every op's buffers lie in them or are constants
    constants         [name, dtype, shape, offset, scale] in the order of their bytes; dtype "f32", "i32", "s8", or
                      "s4" and "s2", 2 and 4 to a byte, first in the low bits; scale names the float32 constant, one
                      number or one for each row, by which a reader multiplies integers that float ops read; else null
    ops               [name, buffers, ints, floats], as in `kernels/program/ops.h`; a buffer is an offset in the
                      activations, the name of a constant, or -1. Where the core wants a packed constant, a file has
                      three: weights (O, kh, kw, C), (C, kh, kw) or (N, K), int32 biases with what the input's zero
                      point adds, and float32 multipliers. A reader packs them for its CPU

The checksum finds damage, not malice: the signed manifest does that, and nothing in a file makes a reader leave its
arena.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ArtefactError
from edge_runtime.program.container import ALIGNMENT, Fields, opened, parsed
from edge_runtime.program.native_op import ABSENT

MAGIC, VERSION = b"HEDGEINF", 1
MAX_ARENA_BYTES = 1 << 32
MAX_OPS, MAX_CONSTANTS, MAX_RANK = 100_000, 100_000, 8
_FIELDS = Fields(ArtefactError, max_text=200)
_int, _float, _text, _list = _FIELDS.integer, _FIELDS.number, _FIELDS.text, _FIELDS.items
BITS = {"f32": 32, "i32": 32, "s8": 8, "s4": 4, "s2": 2}
# What a model for inference can ask of the core; a file with any other op is refused.
OPS = frozenset((
    "quantize_s8", "dequantize_s8", "conv2d_s8", "depthwise_s8", "linear_s8", "add_s8", "mul_s8", "max_pool_s8",
    "avg_pool_s8", "lookup_s8", "copy", "fill", "reduce", "binary", "unary", "linear", "conv2d", "max_pool2d",
    "avg_pool2d", "batch_norm_apply", "group_norm", "layer_norm", "embedding", "attention", "softmax", "gru", "lstm",
))  # fmt: skip

Buffer = int | str


@dataclass(frozen=True, slots=True)
class Port:
    """Where the input or the output lies in the activations; dtype "f32" or "i64"."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor and its bytes as they stand in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: bytes | memoryview
    scale: str | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class EngineOp:
    """An op of the native core, some of whose buffers are constants."""

    name: str
    buffers: tuple[Buffer, ...]
    ints: tuple[int, ...] = ()
    floats: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineModel:
    """What a file says."""

    input: Port
    output: Port
    activation_bytes: int
    constants: Mapping[str, Constant]
    ops: tuple[EngineOp, ...]


def stored_bytes(dtype: str, size: int) -> int:
    """How many bytes of a file `size` elements take."""
    return -(-size * BITS[dtype] // 8)


def decode(data: bytes) -> EngineModel:
    """The model in a file, without a copy of its constants; bounded in time and memory by the length of `data`.

    Raises:
        ArtefactError: not such a file, of another version, damaged, or malformed.

    """
    header, blob = opened(data, MAGIC, VERSION, (".hedgerow model",) * 2, ArtefactError)
    return parsed(_model, header, blob, ArtefactError)


def elements(constant: Constant) -> NDArray[Any]:
    """A constant's numbers as its dtype, small integers as int8."""
    match constant.dtype:
        case "f32" | "i32":
            return np.frombuffer(constant.content, "<f4" if constant.dtype == "f32" else "<i4").reshape(constant.shape)
        case "s8":
            return np.frombuffer(constant.content, np.int8).reshape(constant.shape)
        case _:
            bits = BITS[constant.dtype]
            found = np.frombuffer(constant.content, np.uint8)[:, None] << np.arange(8 - bits, -1, -bits, dtype=np.uint8)
            return (found.view(np.int8) >> (8 - bits)).reshape(-1)[: constant.size].reshape(constant.shape)


def _model(h: dict[str, Any], blob: memoryview) -> EngineModel:
    limit = _int(h["activation_bytes"], 1, MAX_ARENA_BYTES)
    constants: dict[str, Constant] = {}
    end = 0
    for entry in _list(h["constants"], MAX_CONSTANTS):
        one, start = _constant(entry, blob)
        if one.name in constants or start != end:
            raise ArtefactError(f"malformed header: {one.name!r} is there twice, or not behind the one before it")
        constants[one.name] = one
        end = start + len(one.content) + -len(one.content) % ALIGNMENT
    if end != len(blob):
        raise ArtefactError("malformed header: the constants do not fill the file")
    for one in constants.values():
        _check_scale(one, constants)
    ops = tuple(_op(one, constants, limit) for one in _list(h["ops"], MAX_OPS))
    return EngineModel(_port(h["input"], limit), _port(h["output"], limit), limit, constants, ops)


def _port(entry: Any, limit: int) -> Port:
    name, dtype, shape, offset = entry
    item = {"f32": 4, "i64": 8}[dtype]
    sizes = _shape(shape)
    start = _int(offset, 0, limit)
    if math.prod(sizes) * item > limit - start or start % item:
        raise ArtefactError(f"malformed header: {name!r} lies outside the activations")
    return Port(_text(name), dtype, sizes, start)


def _constant(entry: Any, blob: memoryview) -> tuple[Constant, int]:
    name, dtype, shape, offset, scale = entry
    sizes = _shape(shape)
    start = _int(offset, 0, len(blob))
    nbytes = stored_bytes(dtype, math.prod(sizes))
    if nbytes > len(blob) - start:
        raise ArtefactError(f"malformed header: the contents of {name!r} are not in the file")
    named = None if scale is None else _text(scale)
    return Constant(_text(name), dtype, sizes, blob[start : start + nbytes], named), start


def _check_scale(one: Constant, constants: Mapping[str, Constant]) -> None:
    if one.scale is None:
        return
    scale = constants.get(one.scale)
    if (
        scale is None
        or scale.dtype != "f32"
        or scale.size not in (1, *one.shape[:1])
        or one.dtype not in ("s8", "s4", "s2")
    ):
        raise ArtefactError(f"malformed header: {one.name!r} has no scale that fits it")


def _op(entry: Any, constants: Mapping[str, Constant], limit: int) -> EngineOp:
    name, buffers, ints, floats = entry
    if name not in OPS:
        raise ArtefactError(f"malformed header: {str(name)[:80]!r} is no op of a model")
    places = tuple(_buffer(one, constants, limit) for one in _list(buffers, 20))
    numbers = tuple(_int(n, -(2**62), 2**62) for n in _list(ints, 24))
    return EngineOp(name, places, numbers, tuple(_float(n) for n in _list(floats, 6)))


def _buffer(value: Any, constants: Mapping[str, Constant], limit: int) -> Buffer:
    if isinstance(value, str):
        return constants[value].name
    return _int(value, ABSENT, limit)


def _shape(value: Any) -> tuple[int, ...]:
    sizes = tuple(_int(n, 1, MAX_ARENA_BYTES) for n in _list(value, MAX_RANK))
    _int(math.prod(sizes), 1, MAX_ARENA_BYTES)
    return sizes
