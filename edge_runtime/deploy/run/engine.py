"""Runs a `.hedgerow` model on the native core: NumPy and ctypes, one arena, one call for each inference.

At load, constants are unpacked, laid out for this CPU's kernels and put behind the activations, so that the core's
check of every op against the arena's size covers them too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.run.backend import Spec
from edge_runtime.deploy.run.engine_file import ALIGNMENT, Constant, EngineModel, EngineOp, Port, decode, elements
from edge_runtime.errors import ArtefactError, BudgetError, EdgeRuntimeError, ProgramError
from edge_runtime.kernels import int8
from edge_runtime.kernels.native import OP_DTYPE, NativeProgram, Status, Team, op_code

# Of ops that read a weight in this CPU's own layout: which of their ints are its dims.
PACKED: Mapping[str, tuple[int, ...]] = {
    "conv2d_s8": (4, 5, 6, 3),
    "depthwise_s8": (4, 5, 6),
    "linear_s8": (1, 2),
}
WEIGHT = 1  # the place of that buffer
_ITEMS = {"f32": np.float32, "i64": np.int64}


class EngineBackend:
    """Float32 (or int64 tokens) in, float32 out, for the batch that the file was written for.

    Args:
        model: the bytes of a file.
        threads: that share each op; they change no bit of a result.
        max_memory: bytes that activations and constants may take together; None for any.

    Raises:
        ArtefactError: the file is damaged, malformed, or reaches outside its arena.
        BudgetError: it needs more memory than `max_memory`.

    """

    def __init__(self, model: bytes, *, threads: int = 1, max_memory: int | None = None) -> None:
        found = decode(model)
        regions = _regions(found)
        nbytes = _end(found, regions)
        if max_memory is not None and nbytes > max_memory:
            raise BudgetError(
                f"the model needs {nbytes} bytes for activations and constants, {max_memory} are allowed; "
                "export it with fewer bits or for a smaller batch"
            )
        try:
            block = np.zeros(nbytes + ALIGNMENT, np.uint8)
        except MemoryError as error:
            raise BudgetError(f"the model needs {nbytes} bytes, and there are not so many") from error
        start = -block.ctypes.data % ALIGNMENT
        self.arena: NDArray[np.uint8] = block[start : start + nbytes]
        for region in regions.values():
            region.fill(self.arena[region.offset : region.offset + region.nbytes])
        try:
            program = NativeProgram(_records(found, regions), nbytes)
        except ProgramError as error:
            raise ArtefactError(f"malformed: {error}") from error
        self.input, self.output = (Spec(one.name, one.dtype, one.shape) for one in (found.input, found.output))
        self._x, self._y = (_view(self.arena, one) for one in (found.input, found.output))
        self._run = program.bound(self.arena, 0, len(found.ops), Team(threads) if threads > 1 else None)
        self._lock = threading.Lock()  # there is one arena

    def predict(self, x: NDArray[np.generic]) -> NDArray[np.float32]:
        with self._lock:
            self._x[...] = x
            if status := self._run():
                raise _failure(status)
            return self._y.copy()


@dataclass(frozen=True, slots=True)
class Region:
    """Where a constant lies in the arena, and what puts it there."""

    offset: int
    nbytes: int
    fill: Callable[[NDArray[np.uint8]], None]


Key = tuple[str, ...] | tuple[str, str, tuple[int, ...]]


def _key(op: EngineOp, place: int, name: str) -> tuple[Any, ...]:
    """Constants are shared by the ops that read them in one layout."""
    if op.name in PACKED and place == WEIGHT:
        return (name, op.name, tuple(op.ints[i] for i in PACKED[op.name]))
    return (name,)


def _regions(model: EngineModel) -> dict[tuple[Any, ...], Region]:
    regions: dict[tuple[Any, ...], Region] = {}
    end = _aligned(model.activation_bytes)
    for op in model.ops:
        if op.name in PACKED and len(op.ints) <= max(PACKED[op.name]):
            raise ArtefactError(f"malformed: {op.name} lacks its sizes")
        for place, name in enumerate(op.buffers):
            if not isinstance(name, str) or (key := _key(op, place, name)) in regions:
                continue
            constant = model.constants[name]
            nbytes, fill = _packed(constant, op) if len(key) > 1 else _plain(constant, model.constants)
            regions[key] = Region(end, nbytes, fill)
            end += _aligned(nbytes)
    return regions


def _packed(constant: Constant, op: EngineOp) -> tuple[int, Callable[[NDArray[np.uint8]], None]]:
    if constant.shape != tuple(op.ints[i] for i in PACKED[op.name]) or constant.dtype in ("f32", "i32"):
        raise ArtefactError(f"malformed: {constant.name!r} is not the weight that {op.name} asks for")
    nbytes = int8.op_pack_bytes(op.name, op.ints)
    return nbytes, lambda to: int8.op_pack(op.name, op.ints, elements(constant), to)


def _plain(constant: Constant, constants: Mapping[str, Constant]) -> tuple[int, Callable[[NDArray[np.uint8]], None]]:
    """As it is; integers with a scale as float32."""
    if constant.scale is None:
        item = 4 if constant.dtype in ("f32", "i32") else 1
        return item * constant.size, lambda to: _put(elements(constant), to)
    scale = constants[constant.scale]
    return 4 * constant.size, lambda to: _put(_dequantised(constant, scale), to)


def _dequantised(constant: Constant, scale: Constant) -> NDArray[np.float32]:
    by = elements(scale).reshape(-1, *[1] * (len(constant.shape) - 1))
    real: NDArray[np.float32] = elements(constant).astype(np.float32) * by
    return real


def _put(content: NDArray[Any], to: NDArray[np.uint8]) -> None:
    to.view(content.dtype)[...] = content.reshape(-1)


def _end(model: EngineModel, regions: Mapping[tuple[Any, ...], Region]) -> int:
    return max(
        (one.offset + _aligned(one.nbytes) for one in regions.values()), default=_aligned(model.activation_bytes)
    )


def _records(model: EngineModel, regions: Mapping[tuple[Any, ...], Region]) -> NDArray[np.void]:
    records = np.zeros(len(model.ops), OP_DTYPE)
    records["buffers"] = -1
    for record, op in zip(records, model.ops, strict=True):
        record["code"] = op_code(op.name)
        for place, one in enumerate(op.buffers):
            record["buffers"][place] = regions[_key(op, place, one)].offset if isinstance(one, str) else one
        record["ints"][: len(op.ints)] = op.ints
        record["floats"][: len(op.floats)] = op.floats
    return records


def _view(arena: NDArray[np.uint8], port: Port) -> NDArray[Any]:
    dtype = np.dtype(_ITEMS[port.dtype])
    nbytes = dtype.itemsize * int(np.prod(port.shape))
    return arena[port.offset : port.offset + nbytes].view(dtype).reshape(port.shape)


def _aligned(nbytes: int) -> int:
    return nbytes + -nbytes % ALIGNMENT


def _failure(status: int) -> Exception:
    if status == Status.OUT_OF_RANGE:
        return ValueError("a token is outside the model's table")
    return EdgeRuntimeError(f"the model stopped with status {status}")
