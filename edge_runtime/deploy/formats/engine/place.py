"""Offsets for buffers: when each is in use, and where it then lies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_runtime.deploy.run.engine_file import Constant, EngineModel, EngineOp, Port
from edge_runtime.ir.graph import Value
from edge_runtime.planner.arena import plan_arena
from edge_runtime.planner.lifetimes import Lifetime
from edge_runtime.planner.verify import verify_arena
from edge_runtime.program.native_op import ABSENT

# Of ops whose output may lie where an input did: the places of the two among the buffers.
IN_PLACE = {
    "add_s8": ((0, 2), (1, 2)),
    "mul_s8": ((0, 2), (1, 2)),
    "lookup_s8": ((0, 2),),
    "unary": ((0, 1),),
    "softmax": ((0, 1),),
    "batch_norm_apply": ((0, 5),),
}


@dataclass(frozen=True, slots=True)
class Step:
    """An op whose buffers are numbers of activations (ABSENT for none) or names of constants."""

    op: str
    buffers: tuple[int | str, ...]
    ints: tuple[int, ...]
    floats: tuple[float, ...] = ()


def placed(
    steps: Sequence[Step],
    sizes: Sequence[int],
    constants: Mapping[str, Constant],
    x: tuple[Value, int],
    y: tuple[Value, int],
) -> EngineModel:
    """The model with every buffer in its place; `x` and `y` are the input's and the output's value and buffer."""
    steps, y = _in_place(steps, sizes, x[1], y)
    buffers = _lifetimes(steps, sizes, first=x[1], last=y[1])
    bound = _peak(buffers, len(steps))
    plan = verify_arena(plan_arena(buffers, bound), buffers)
    offsets = {number: plan.offsets[str(number)] for number in range(len(sizes)) if str(number) in plan.offsets}
    ops = tuple(
        EngineOp(step.op, tuple(_resolved(one, offsets) for one in step.buffers), step.ints, step.floats)
        for step in steps
    )
    used = {one for op in ops for one in op.buffers if isinstance(one, str)}
    used |= {scale for name in used if (scale := constants[name].scale)}
    kept = {name: one for name, one in constants.items() if name in used}
    ports = [Port(value.name, value.dtype, value.shape, offsets[number]) for value, number in (x, y)]
    return EngineModel(ports[0], ports[1], plan.nbytes, kept, ops)


def _resolved(buffer: int | str, offsets: Mapping[int, int]) -> int | str:
    return buffer if isinstance(buffer, str) or buffer == ABSENT else offsets[buffer]


def _in_place(
    steps: Sequence[Step], sizes: Sequence[int], first: int, y: tuple[Value, int]
) -> tuple[list[Step], tuple[Value, int]]:
    """The same steps, with outputs in the buffers of inputs that nothing reads later, where the op allows it."""
    last_use = {one: place for place, step in enumerate(steps) for one in step.buffers}
    last_use[y[1]] = len(steps)
    same: dict[int | str, int | str] = {}
    changed = []
    for place, step in enumerate(steps):
        buffers = [same.get(one, one) for one in step.buffers]
        for source, output in IN_PLACE.get(step.op, ()):
            x, out = buffers[source], buffers[output]
            mortal = isinstance(x, int) and isinstance(out, int) and x != first and last_use[x] == place
            if mortal and buffers.count(x) == 1 and sizes[x] == sizes[out]:  # type: ignore[index]  # both are int
                same[step.buffers[output]] = buffers[output] = x
                last_use[x] = last_use[step.buffers[output]]
                break
        changed.append(dataclasses.replace(step, buffers=tuple(buffers)))
    return changed, (y[0], same.get(y[1], y[1]))  # type: ignore[return-value]  # what replaces an int is one


def _lifetimes(steps: Sequence[Step], sizes: Sequence[int], first: int, last: int) -> list[Lifetime]:
    """From the first op that names a buffer to the last; the input is there before all, the output after all."""
    used: dict[int, tuple[int, int]] = {first: (0, 0)}
    for place, step in enumerate(steps):
        for one in step.buffers:
            if isinstance(one, int) and one != ABSENT:
                used[one] = (used.get(one, (place, place))[0], place)
    used[last] = (used.get(last, (0, 0))[0], max(0, len(steps) - 1))
    return [Lifetime(str(number), sizes[number], *span) for number, span in sorted(used.items())]


def _peak(buffers: Sequence[Lifetime], steps: int) -> int:
    """The most that is in use at one op: no plan needs less."""
    return max(sum(b.nbytes for b in buffers if b.first_step <= at <= b.last_step) for at in range(max(1, steps)))
