"""The `[selection]` table of a scenario: by what rule a cohort is chosen. See docs/selection.md."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.config import key
from edge_runtime.errors import ConfigError

POLICIES = {"uniform": 0.0, "availability": 0.2, "utility": 0.2}  # with the fairness of each


@dataclass(frozen=True, slots=True)
class SelectionConfig:
    """`fairness` is the share of every cohort that goes to those who have waited longest; -1: the policy's own.

    The rest is of "utility": `exploration` is the share of the first cohort that goes to devices never measured, which
    falls by `exploration_decay` from round to round, down to `exploration_min`. A device slower than the `pace`-th
    percentile counts for less, by the power of `slowness`; the pace goes up by `pace_step` whenever `pace_window`
    rounds have gained less than as many before them.
    """

    policy: str = key("uniform", choices=tuple(POLICIES))
    fairness: float = key(-1.0, low=-1, below=1)
    exploration: float = key(0.9, low=0, high=1)
    exploration_decay: float = key(0.98, above=0, high=1)
    exploration_min: float = key(0.2, low=0, high=1)
    slowness: float = key(2.0, low=0, high=10)
    pace: float = key(30.0, above=0, high=100)
    pace_step: float = key(5.0, low=0, high=100)
    pace_window: int = key(20, low=1, high=100_000)

    def __post_init__(self) -> None:
        if -1 < self.fairness < 0:
            raise ConfigError(f"selection.fairness = {self.fairness:g}: must be from 0 to below 1, or -1")

    @property
    def floor(self) -> float:
        """The share of every cohort that goes to those who have waited longest."""
        return POLICIES[self.policy] if self.fairness < 0 else self.fairness


def check_selection(selection: SelectionConfig, secure: bool, mechanism: str) -> None:
    """Refuse a choice that would need what nobody knows, or would change what privacy claims.

    Raises:
        ConfigError: a policy other than uniform, or a floor, under secure aggregation or privacy.

    """
    if selection.policy == "uniform" and not selection.floor:
        return
    name, value = ("policy", repr(selection.policy)) if selection.policy != "uniform" else ("fairness", selection.floor)
    must = '"uniform"' if name == "policy" else "0"
    if mechanism != "none":
        raise ConfigError(
            f"selection.{name} = {value}: must be {must} with privacy.mechanism = {mechanism!r}, which draws its "
            "cohorts by chance alone and keeps no figures of single clients"
        )
    if secure:
        raise ConfigError(
            f"selection.{name} = {value}: must be {must} with secure.enabled = true, under which there are no figures "
            "of single clients to choose by"
        )
