"""The Program file: `container.py` with the magic `HEDGEPRG`; a blob of initial weights, each on a 64-byte border.

The header names every tensor with its offset and every op of the native core with its numbers. What is read is checked
here for form and range, and by the native core for what its ops touch, before anything runs.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import losses, optimizers
from edge_runtime.errors import ProgramError
from edge_runtime.files import write_atomically
from edge_runtime.ir.graph import ITEM_BYTES
from edge_runtime.program.container import ALIGNMENT, Fields, opened, parsed, sealed
from edge_runtime.program.native_op import NativeOp
from edge_runtime.program.program import KINDS, ROLES, Phase, PlanPoint, Program, Report, StateTensor, Tensor

MAGIC, VERSION = b"HEDGEPRG", 1
MAX_ARENA_BYTES = 1 << 40
MAX_OPS, MAX_TENSORS = 1_000_000, 100_000
_FIELDS = Fields(ProgramError, max_text=1000)
_int, _float, _text, _list = _FIELDS.integer, _FIELDS.number, _FIELDS.text, _FIELDS.items
DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "i64": np.dtype("<i8")}


def write_program(program: Program, path: Path) -> Path:
    """Write atomically: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, [encode(program)])
    return path


def read_program(path: Path, max_arena_bytes: int | None = None) -> Program:
    """The Program in a file. Raises ProgramError, naming the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ProgramError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return decode(data, max_arena_bytes)
    except ProgramError as error:
        raise ProgramError(f"{path}: {error}") from error


def encode(program: Program) -> bytes:
    blob = bytearray()
    initial = []
    for one in program.state:
        if one.tensor.name in program.initial:
            content = np.ascontiguousarray(program.initial[one.tensor.name], DTYPES[one.tensor.dtype])
            initial.append([one.tensor.name, len(blob)])
            blob += content.tobytes()
            blob += bytes(-len(blob) % ALIGNMENT)
    header = {
        "version": VERSION,
        "loss": losses.to_json(program.loss),
        "optimizer": optimizers.to_json(program.optimizer),
        "batch_size": program.batch_size,
        "micro_batch": program.micro_batch,
        "memory_budget": program.memory_budget,
        "arena_bytes": program.arena_bytes,
        "state_bytes": program.state_bytes,
        "state": [[*_tensor_json(one.tensor), one.role, one.trained] for one in program.state],
        "counters": dict(program.counters),
        "counted": dict(program.counted),
        "aliases": dict(program.aliases),
        "state_dict_order": list(program.state_dict_order),
        "initial": initial,
        "phases": [_phase_json(phase) for phase in program.phases],
        "report": dataclasses.asdict(program.report),
    }
    return sealed(MAGIC, header, blob)


def _tensor_json(tensor: Tensor) -> list[Any]:
    return [tensor.name, tensor.dtype, list(tensor.shape), tensor.offset]


def _phase_json(phase: Phase) -> dict[str, Any]:
    return {
        "kind": phase.kind,
        "batch": phase.batch,
        "inputs": [_tensor_json(tensor) for tensor in phase.inputs],
        "outputs": [_tensor_json(tensor) for tensor in phase.outputs],
        "ops": [[op.name, op.node, op.buffers, op.ints, op.floats, op.makes] for op in phase.ops],
        "labels": list(phase.labels),
        "lower_bound_bytes": phase.lower_bound_bytes,
    }


def decode(data: bytes, max_arena_bytes: int | None = None) -> Program:
    """The Program that `encode` wrote; bounded in time and memory by the length of `data`."""
    header, blob = opened(data, MAGIC, VERSION, ("Hedgerow Program", "Program"), ProgramError)
    program = parsed(_program, header, blob, ProgramError)
    if max_arena_bytes is not None and program.arena_bytes > max_arena_bytes:
        raise ProgramError(f"it needs {program.arena_bytes} bytes to train, {max_arena_bytes} are allowed")
    return program


def _program(h: dict[str, Any], blob: memoryview) -> Program:
    arena = _int(h["arena_bytes"], 1, MAX_ARENA_BYTES)
    state_bytes = _int(h["state_bytes"], 0, arena)
    batch = _int(h["batch_size"], 1, 2**31)
    state = tuple(_state(one, state_bytes) for one in _list(h["state"], MAX_TENSORS))
    names = {one.tensor.name: one for one in state}
    if len(names) != len(state):
        raise ProgramError("malformed header: two state tensors of one name")
    counters = {_text(name): _int(value, 0, 2**62) for name, value in h["counters"].items()}
    order = tuple(_text(name) for name in _list(h["state_dict_order"], MAX_TENSORS))
    counted = {_text(name): _int(value, 1, 1 << 20) for name, value in h["counted"].items()}
    aliases = {_text(name): _text(value) for name, value in h["aliases"].items()}
    module = {name for name, one in names.items() if one.role in ("weight", "buffer")}
    if not set(counted) <= set(counters) or not set(aliases.values()) <= module or set(aliases) & module:
        raise ProgramError("malformed header: counted or aliases name no tensors of the module")
    if sorted(order) != sorted({*module, *counters, *aliases}):
        raise ProgramError("malformed header: state_dict_order does not name the module's tensors")
    phases = tuple(_phase(one, arena) for one in _list(h["phases"], 64))
    _check_kinds(phases, batch)
    for one in state:
        of, _, kind = one.tensor.name.rpartition("/")
        if one.role in ("anchor", "correction", "gradient") and (
            kind != one.role or of not in names or names[of].tensor.shape != one.tensor.shape
        ):
            raise ProgramError(f"malformed header: {one.tensor.name!r} belongs to no tensor of its shape")
    return Program(
        loss=losses.from_json(h["loss"]),
        optimizer=optimizers.from_json(h["optimizer"]),
        batch_size=batch,
        micro_batch=_int(h["micro_batch"], 1, batch),
        memory_budget=_int(h["memory_budget"], 0, 2**62),
        arena_bytes=arena,
        state_bytes=state_bytes,
        state=state,
        counters=counters,
        counted=counted,
        aliases=aliases,
        state_dict_order=order,
        phases=phases,
        report=_report(h["report"]),
        initial=dict(_initial(one, names, blob) for one in _list(h["initial"], MAX_TENSORS)),
    )


def _check_kinds(phases: tuple[Phase, ...], batch: int) -> None:
    kinds = [phase.kind for phase in phases]
    split = kinds.count("accumulate") == kinds.count("update") == 1 and "step" not in kinds
    whole = "step" in kinds and "accumulate" not in kinds and "update" not in kinds
    if not (split or whole) or kinds.count("predict") != 1:
        raise ProgramError(f"malformed header: phases {', '.join(kinds) or 'none'} do not make a Program")
    if whole and batch != max(phase.batch for phase in phases if phase.kind == "step"):
        raise ProgramError(f"malformed header: no step is for {batch} rows")


def _state(entry: Any, state_bytes: int) -> StateTensor:
    name, dtype, shape, offset, role, trained = entry
    if role not in ROLES or not isinstance(trained, bool):
        raise ProgramError(f"malformed header: state tensor {name!r} has no known role")
    return StateTensor(_tensor([name, dtype, shape, offset], state_bytes), role, trained)


def _tensor(entry: Any, limit: int) -> Tensor:
    name, dtype, shape, offset = entry
    if dtype not in DTYPES:
        raise ProgramError(f"malformed header: tensor {name!r} has dtype {dtype!r}")
    sizes = tuple(_int(n, 1, MAX_ARENA_BYTES) for n in _list(shape, 16))
    nbytes = math.prod(sizes) * ITEM_BYTES[dtype]
    start = _int(offset, 0, limit)
    if nbytes > limit - start or start % ITEM_BYTES[dtype]:
        raise ProgramError(f"malformed header: tensor {name!r} lies outside its arena")
    return Tensor(_text(name), dtype, sizes, start)


def _phase(p: dict[str, Any], arena: int) -> Phase:
    if p["kind"] not in KINDS:
        raise ProgramError(f"malformed header: no phase of kind {p['kind']!r}")
    labels = tuple(_text(label) for label in _list(p["labels"], MAX_OPS))
    return Phase(
        kind=p["kind"],
        batch=_int(p["batch"], 1, 2**31),
        inputs=tuple(_tensor(one, arena) for one in _list(p["inputs"], MAX_TENSORS)),
        outputs=tuple(_tensor(one, arena) for one in _list(p["outputs"], MAX_TENSORS)),
        ops=tuple(_op(one, len(labels), arena) for one in _list(p["ops"], MAX_OPS)),
        labels=labels,
        lower_bound_bytes=_int(p["lower_bound_bytes"], 0, arena),
    )


def _op(entry: Any, nodes: int, arena: int) -> NativeOp:
    name, node, buffers, ints, floats, (offset, elements) = entry
    makes = (_int(offset, -1, arena), _int(elements, 0, arena // 4))
    if makes[0] + 4 * makes[1] > arena or (makes[0] == -1) != (makes[1] == 0) or (makes[1] and makes[0] % 4):
        raise ProgramError(f"malformed header: what {name!r} makes lies outside the arena")
    return NativeOp(
        _text(name),
        tuple(_int(n, -1, MAX_ARENA_BYTES) for n in _list(buffers, 20)),
        tuple(_int(n, -(2**62), 2**62) for n in _list(ints, 24)),
        tuple(_float(n) for n in _list(floats, 6)),
        _int(node, 0, nodes - 1),
        makes,
    )


def _report(r: dict[str, Any]) -> Report:
    return Report(
        chosen=_point(r["chosen"]),
        curve=tuple(_point(one) for one in _list(r["curve"], 1000)),
        parts=tuple((_text(name), _int(nbytes, 0, MAX_ARENA_BYTES)) for name, nbytes in _list(r["parts"], 100)),
        fullest_at=_text(r["fullest_at"]),
        forward_flops=_int(r["forward_flops"], 0, 2**62),
        step_flops=_int(r["step_flops"], 0, 2**62),
        kept=tuple(
            (_text(op), _text(fate), _int(nbytes, 0, MAX_ARENA_BYTES)) for op, fate, nbytes in _list(r["kept"], MAX_OPS)
        ),
    )


def _point(p: dict[str, Any]) -> PlanPoint:
    return PlanPoint(
        peak_bytes=_int(p["peak_bytes"], 0, MAX_ARENA_BYTES),
        cost=_float(p["cost"]),
        extra_flops=_int(p["extra_flops"], 0, 2**62),
        micro_batch=_int(p["micro_batch"], 1, 2**31),
        trained_tensors=_int(p["trained_tensors"], 0, MAX_TENSORS),
        name=_text(p["name"]),
    )


def _initial(entry: Any, names: dict[str, StateTensor], blob: memoryview) -> tuple[str, NDArray[Any]]:
    name, offset = entry
    tensor = names[name].tensor
    nbytes = math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
    start = _int(offset, 0, len(blob))
    if nbytes > len(blob) - start:
        raise ProgramError(f"malformed header: the contents of {name!r} are not in the file")
    return name, np.frombuffer(blob[start : start + nbytes], DTYPES[tensor.dtype]).reshape(tensor.shape)
