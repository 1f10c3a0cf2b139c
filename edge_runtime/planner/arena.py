"""Where each buffer lies: offsets such that no two that live at the same time share a byte."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_runtime.planner.lifetimes import Lifetime

SEARCH, MOST_TRIES = 1_000_000, 600  # pairs of buffers that the search may compare, and orders that it may try
NEAR_BOUND = 1.005
ALIGNMENT = 64  # bytes; a cache line, and more than any vector load here asks for


@dataclass(frozen=True, slots=True)
class ArenaPlan:
    """Byte offset of every buffer, and the bytes that hold them all."""

    offsets: dict[str, int]
    nbytes: int


def plan_arena(buffers: Sequence[Lifetime], bound: int = 0, *, thorough: bool = True) -> ArenaPlan:
    """First fit in several orders, which a thorough plan then improves by a search, one after another.

    `bound` is what no plan can be below; coming near it ends the search. The search is seeded: equal buffers get equal
    plans.
    """
    duration = {one.name: one.last_step - one.first_step + 1 for one in buffers}
    keys: list[Callable[[Lifetime], tuple[float, ...]]] = [
        lambda v: (-v.nbytes,),
        lambda v: (-v.nbytes * duration[v.name],),
        lambda v: (-duration[v.name], -v.nbytes),
        lambda v: (v.first_step, -v.nbytes),
        lambda v: (-v.last_step, -v.nbytes),
    ]
    orders = [sorted(buffers, key=lambda v: (*key(v), v.name)) for key in keys]
    starts = sorted(((order, _first_fit(order)) for order in orders), key=lambda start: start[1].nbytes)
    best = starts[0][1]
    for order, plan in starts if thorough else ():
        if _near(best, bound):
            break
        best = min(best, _improved(order, plan, bound), key=lambda found: found.nbytes)
    return best


def _near(plan: ArenaPlan, bound: int) -> bool:
    return plan.nbytes <= bound * NEAR_BOUND + ALIGNMENT * 16


def _improved(order: list[Lifetime], plan: ArenaPlan, bound: int) -> ArenaPlan:
    """The plan after some seeded tries to place a buffer earlier that reaches the top, or any other one."""
    rng = random.Random(len(order))  # noqa: S311  a search, no secret
    tries = min(MOST_TRIES, SEARCH // max(1, len(order)) ** 2)
    while tries > 0 and not _near(plan, bound):
        tries -= 1
        top = [i for i, one in enumerate(order) if plan.offsets[one.name] + one.nbytes == plan.nbytes]
        start = rng.choice(top) if rng.random() < 0.5 else rng.randrange(len(order))
        changed = order.copy()
        changed.insert(rng.randrange(start + 1), changed.pop(start))
        tried = _first_fit(changed)
        if tried.nbytes <= plan.nbytes:
            order, plan = changed, tried
    return plan


def _first_fit(order: Sequence[Lifetime]) -> ArenaPlan:
    offsets: dict[str, int] = {}
    placed: list[tuple[int, int, Lifetime]] = []  # (offset, end, buffer), by offset
    for one in order:
        at = 0
        for offset, end, other in placed:
            if one.first_step <= other.last_step and other.first_step <= one.last_step:
                if at + one.nbytes <= offset:
                    break
                at = max(at, aligned(end))
        offsets[one.name] = at
        placed.append((at, at + one.nbytes, one))
        placed.sort(key=lambda entry: entry[0])
    return ArenaPlan(offsets, max((end for _, end, _ in placed), default=0))


def aligned(nbytes: int) -> int:
    """`nbytes`, rounded up so that what follows is aligned."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
