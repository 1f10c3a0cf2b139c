"""Runs a `.hedgerow` model on the native core: NumPy and ctypes, one arena, one call for each inference.

At load, constants are unpacked, laid out for this CPU's kernels and put behind the activations, so that the core's
check of every op against the arena's size covers them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.run.backend import Spec
from edge_runtime.deploy.run.engine_file import (
    MAX_ARENA_BYTES,
    Constant,
    EngineModel,
    EngineOp,
    Port,
    decode,
    elements,
)
from edge_runtime.errors import ArtefactError, BudgetError, EdgeRuntimeError, ProgramError
from edge_runtime.kernels import int8
from edge_runtime.kernels.native import OP_DTYPE, NativeProgram, Status, Team, op_code
from edge_runtime.program.container import ALIGNMENT
from edge_runtime.program.native_op import ABSENT

# Of ops that read a packed constant: which of their ints are the dims of its weight. In a file, the weight, the biases
# and the multipliers are buffers 1, 2 and 3.
PACKED: Mapping[str, tuple[int, ...]] = {"conv2d_s8": (4, 5, 6, 3), "depthwise_s8": (3, 4, 5), "linear_s8": (1, 2)}

Fill = Callable[[NDArray[np.uint8]], None]
Predict = Callable[[NDArray[np.generic]], NDArray[np.float32]]
Names = tuple[str, ...]
_ITEMS = {"f32": np.float32, "i64": np.int64}


class EngineBackend:
    """Float32 (or int64 tokens) in, float32 out, for the batch that the file was written for.

    `predict` may be called by several threads, which take turns.

    Args:
        model: the bytes of a file.
        threads: that share each op; they change no bit of a result.
        max_memory: bytes that activations and constants may take together; None for any.

    Raises:
        ArtefactError: the file is damaged, malformed, or reaches outside its arena.
        BudgetError: it needs more memory than `max_memory`.

    """

    predict: Predict

    def __init__(self, model: bytes, *, threads: int = 1, max_memory: int | None = None) -> None:
        found = decode(model)
        regions, nbytes = _regions(found)
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
        self.activation_bytes = found.activation_bytes
        try:
            for region in regions.values():
                region.fill(self.arena[region.offset : region.offset + region.nbytes])
            program = NativeProgram(_records(found, regions), nbytes)
        except (ProgramError, ValueError) as error:
            raise ArtefactError(f"malformed: {error}") from error
        self.input, self.output = (Spec(one.name, one.dtype, one.shape) for one in (found.input, found.output))
        self._run = program.bound(self.arena, 0, len(found.ops), Team(threads) if threads > 1 else None)
        self.predict = _predictor(_view(self.arena, found.input), self._run, _view(self.arena, found.output))


def _predictor(x: NDArray[Any], run: Callable[[], int], y: NDArray[np.float32]) -> Predict:
    """Inference by `run` between two places of an arena; with names of its own, for a lookup costs as much as an op."""
    arenas: SimpleQueue[None] = SimpleQueue()  # holds the one arena: who takes it runs, who finds none waits
    arenas.put(None)
    take, give, copy = arenas.get, arenas.put, y.copy

    def predict(inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        take()
        try:
            x[...] = inputs
            if status := run():
                raise _failure(status)
            return copy()
        finally:
            give(None)

    return predict


@dataclass(frozen=True, slots=True)
class Region:
    """Where a constant, or what is packed of three, lies in the arena, and what puts it there."""

    offset: int
    nbytes: int
    fill: Fill


def _regions(model: EngineModel) -> tuple[dict[Names, Region], int]:
    """A place for each constant that an op reads, by the names of what it is made of; and the bytes of the arena."""
    regions: dict[Names, Region] = {}
    end = _aligned(model.activation_bytes)
    for op in model.ops:
        for names in _constants(op):
            constants = [model.constants[name] for name in names]
            nbytes, fill = _packed(op, *constants) if len(names) == 3 else _plain(constants[0], model.constants)
            if names not in regions:
                regions[names] = Region(end, nbytes, fill)
                end += _aligned(nbytes)
                # Layers may share their weights, and each is packed for itself.
                if end > 2 * MAX_ARENA_BYTES:
                    raise ArtefactError(f"malformed: once unpacked it takes more than {2 * MAX_ARENA_BYTES} bytes")
    return regions, end


def _constants(op: EngineOp) -> list[Names]:
    if op.name in PACKED:
        return [_layer(op)]
    return [(name,) for name in op.buffers if isinstance(name, str)]


def _layer(op: EngineOp) -> Names:
    names = tuple(name for name in op.buffers[1:4] if isinstance(name, str))
    if len(names) != 3 or len(op.buffers) != 5 or len(op.ints) <= max(PACKED[op.name]):
        raise ArtefactError(f"malformed: {op.name} lacks its constants or sizes")
    return names


def _packed(op: EngineOp, w: Constant, bias: Constant, multiplier: Constant) -> tuple[int, Fill]:
    dims = tuple(op.ints[i] for i in PACKED[op.name])
    rows = (dims[0],)
    kinds = w.dtype in ("s8", "s4", "s2"), bias.dtype == "i32", multiplier.dtype == "f32"
    if (w.shape, bias.shape, multiplier.shape) != (dims, rows, rows) or not all(kinds):
        raise ArtefactError(f"malformed: {w.name!r} is not the layer that {op.name} asks for")
    try:
        if op.name == "depthwise_s8":
            nbytes, pack = int8.depthwise_packed_bytes(dims[0], dims[1] * dims[2]), int8.pack_depthwise
        else:
            window = (dims[1], dims[2] * dims[3]) if op.name == "conv2d_s8" else (1, dims[1])
            nbytes, pack = int8.conv_packed_bytes(dims[0], *window), int8.pack_conv
    except ValueError as error:
        raise ArtefactError(f"malformed: {w.name!r}: {error}") from error
    return nbytes, lambda to: pack(elements(w), elements(bias), elements(multiplier), to)


def _plain(constant: Constant, constants: Mapping[str, Constant]) -> tuple[int, Fill]:
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


def _records(model: EngineModel, regions: Mapping[Names, Region]) -> NDArray[np.void]:
    records = np.zeros(len(model.ops), OP_DTYPE)
    records["buffers"] = ABSENT
    for record, op in zip(records, model.ops, strict=True):
        buffers: tuple[int | str | Names, ...] = op.buffers
        if op.name in PACKED:
            buffers = (op.buffers[0], _layer(op), op.buffers[4])
        record["code"] = op_code(op.name)
        record["buffers"][: len(buffers)] = [_offset(one, regions) for one in buffers]
        record["ints"][: len(op.ints)] = op.ints
        record["floats"][: len(op.floats)] = op.floats
    return records


def _offset(buffer: int | str | Names, regions: Mapping[Names, Region]) -> int:
    if isinstance(buffer, int):
        return buffer
    return regions[buffer if isinstance(buffer, tuple) else (buffer,)].offset


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
