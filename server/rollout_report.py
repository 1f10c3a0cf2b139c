"""A roll-out in words, from its rows in `run.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FAILURES = {"refused": "refused", "silent": "fell silent", "rolled_back": "rolled it back"}


def describe_stage(stage: Mapping[str, Any]) -> str:
    """A stage's row in `run.json` in one line."""
    if not stage["offered"]:
        return f"roll-out stage {stage['percent']} %: nobody new"
    failed = [f"{stage[name]} {words}" for name, words in FAILURES.items() if stage[name]]
    counts = ", ".join([f"{stage['installed']} of {stage['offered']} devices run it", *failed])
    return f"roll-out stage {stage['percent']} %: {counts}"


def rollout_lines(final: Mapping[str, Any]) -> list[str]:
    """How a roll-out ended, of `run.json`'s `final`; no line where there was none."""
    rollout = final.get("rollout")
    if not rollout:
        return []
    if error := rollout.get("error"):
        return [f"no roll-out: {error}"]
    lines = []
    if rollout["halted"]:
        recalled, stuck = (rollout["devices"].get(place, 0) for place in ("recalled", "stuck"))
        lines = [f"roll-out halted: {rollout['halted']}", f"ordered back: {recalled} did, {stuck} may not have"]
    fleet = ", ".join(f"{count} run {_version(name)}" for name, count in rollout["versions"].items())
    return [*lines, f"version {rollout['version']} in the fleet: {fleet}"]


def _version(name: str) -> str:
    return {"0": "none", "unknown": "an unknown one"}.get(name, name)
