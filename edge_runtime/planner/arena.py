"""Where each buffer lies: offsets such that no two that live at the same time share a byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_runtime.planner.lifetimes import Lifetime

ALIGNMENT = 64  # bytes; a cache line, and more than any vector load here asks for


@dataclass(frozen=True, slots=True)
class ArenaPlan:
    """Byte offset of every buffer, and the bytes that hold them all."""

    offsets: dict[str, int]
    nbytes: int


def plan_arena(buffers: Sequence[Lifetime], bound: int = 0) -> ArenaPlan:
    """First fit in several orders, then in orders that move the highest buffers to the front; the smallest wins.

    `bound` is what no plan can be below; reaching it ends the search.
    """
    duration = {one.name: one.last_step - one.first_step + 1 for one in buffers}
    orders: list[Callable[[Lifetime], tuple[float, ...]]] = [
        lambda v: (-v.nbytes,),
        lambda v: (-v.nbytes * duration[v.name],),
        lambda v: (-duration[v.name], -v.nbytes),
        lambda v: (v.first_step, -v.nbytes),
        lambda v: (-v.last_step, -v.nbytes),
    ]
    best: ArenaPlan | None = None
    best_order: list[Lifetime] = []
    for key in orders:
        order = sorted(buffers, key=lambda v: (*key(v), v.name))
        plan = _first_fit(order)
        if best is None or plan.nbytes < best.nbytes:
            best, best_order = plan, order
    assert best is not None
    tries = 24
    while tries and best.nbytes > max(bound + ALIGNMENT * 8, bound * 1.005):
        tries -= 1
        # The buffers that reach the top, placed first, pull the top down; the others fill in around them.
        edge = best.nbytes - (best.nbytes - bound) / 2
        top = [one for one in best_order if best.offsets[one.name] + one.nbytes > edge]
        order = top + [one for one in best_order if one not in top]
        plan = _first_fit(order)
        if plan.nbytes >= best.nbytes:
            break
        best, best_order = plan, order
    return best


def _first_fit(order: Sequence[Lifetime]) -> ArenaPlan:
    offsets: dict[str, int] = {}
    placed: list[tuple[int, int, Lifetime]] = []  # (offset, end, buffer), by offset
    for one in order:
        at = 0
        for offset, end, other in placed:
            if one.first_step <= other.last_step and other.first_step <= one.last_step:
                if at + one.nbytes <= offset:
                    break
                at = max(at, _aligned(end))
        offsets[one.name] = at
        placed.append((at, at + one.nbytes, one))
        placed.sort(key=lambda entry: entry[0])
    return ArenaPlan(offsets, max((end for _, end, _ in placed), default=0))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
