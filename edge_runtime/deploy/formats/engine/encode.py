"""The bytes of an `EngineModel`; `run/engine_file.py` says what they mean and reads them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.run.engine_file import BITS, MAGIC, VERSION, Constant, EngineModel, Port
from edge_runtime.program.container import ALIGNMENT, sealed


def encode(model: EngineModel) -> bytes:
    blob = bytearray()
    constants = []
    for one in model.constants.values():
        constants.append([one.name, one.dtype, one.shape, len(blob), one.scale])
        blob += one.content
        blob += bytes(-len(blob) % ALIGNMENT)
    header = {
        "version": VERSION,
        "input": _port(model.input),
        "output": _port(model.output),
        "activation_bytes": model.activation_bytes,
        "constants": constants,
        "ops": [[op.name, op.buffers, op.ints, op.floats] for op in model.ops],
    }
    return sealed(MAGIC, header, blob)


def _port(port: Port) -> list[object]:
    return [port.name, port.dtype, port.shape, port.offset]


def floats(name: str, content: NDArray[np.floating]) -> Constant:
    return Constant(name, "f32", _shape(content), np.ascontiguousarray(content, "<f4").tobytes())


def words(name: str, content: NDArray[np.integer]) -> Constant:
    return Constant(name, "i32", _shape(content), np.ascontiguousarray(content, "<i4").tobytes())


def small(name: str, content: NDArray[np.integer], bits: int = 8, scale: str | None = None) -> Constant:
    """Integers of `bits` bits, in the smallest of 8, 4 and 2 that holds them."""
    dtype = next(one for one in ("s2", "s4", "s8") if BITS[one] >= bits)
    width = BITS[dtype]
    flat = np.ascontiguousarray(content, np.int8).reshape(-1)
    if width < 8:
        per = 8 // width
        codes = np.zeros(-(-flat.size // per) * per, np.uint8)
        codes[: flat.size] = flat.view(np.uint8) & ((1 << width) - 1)
        shifted = codes.reshape(-1, per) << np.arange(0, 8, width, dtype=np.uint8)
        flat = np.bitwise_or.reduce(shifted, axis=1).view(np.int8)
    return Constant(name, dtype, _shape(content), flat.tobytes(), scale)


def _shape(content: NDArray[np.generic]) -> tuple[int, ...]:
    return content.shape or (1,)
