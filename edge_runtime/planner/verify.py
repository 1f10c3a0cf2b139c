"""The promise of an arena plan, checked on every plan that is made."""

from __future__ import annotations

from collections.abc import Sequence

from edge_runtime.planner.arena import ALIGNMENT, ArenaPlan
from edge_runtime.planner.lifetimes import Lifetime


class PlanError(AssertionError):
    """A plan that breaks its promise; a fault of the planner."""


def verify_arena(plan: ArenaPlan, buffers: Sequence[Lifetime]) -> ArenaPlan:
    """The same plan, if every buffer lies aligned inside the arena and no two that live at once share a byte."""
    ordered = sorted(buffers, key=lambda one: plan.offsets[one.name])
    for i, one in enumerate(ordered):
        start = plan.offsets[one.name]
        end = start + one.nbytes
        if start < 0 or start % ALIGNMENT or end > plan.nbytes:
            raise PlanError(f"{one.name} at {start} .. {end} of {plan.nbytes}")
        for other in ordered[i + 1 :]:
            if plan.offsets[other.name] >= end:
                break
            if one.overlaps(other):
                raise PlanError(f"{one.name} and {other.name} share bytes and both live at one time")
    return plan
