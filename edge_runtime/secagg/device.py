"""What a client brings into a round: who it is, and its input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError
from edge_runtime.secagg import keys
from edge_runtime.secagg.config import Policy, RoundConfig
from edge_runtime.secagg.messages import Words

Vector = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Device:
    """What a client keeps from round to round.

    enrolled: the public device keys it trusts, by client id. Who fills it decides whom a client shares with.
    rounds_seen: (run, round) of every round it took part in; it takes part once. Its owner keeps it across restarts.
    """

    id: int
    key: keys.DeviceKey
    enrolled: Mapping[int, bytes]
    policy: Policy = Policy()
    rounds_seen: set[tuple[int, int]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Contribution:
    """A client's input: int64 of shape (count,), and its weight where the round has weights."""

    values: Vector = field(repr=False)
    weight: int = field(default=1, repr=False)

    def __post_init__(self) -> None:
        if type(self.weight) is not int or self.weight < 1:
            raise ConfigError(f"weight {self.weight!r}: must be a whole number >= 1; without examples, abstain")

    def words(self, agreed: RoundConfig) -> Words:
        """The lanes that go under the masks; a weight above the round's largest counts as the largest.

        Raises:
            ConfigError: another shape or dtype, or a value beyond `max_abs`. The text holds no value.

        """
        if self.values.dtype != np.int64 or self.values.shape != (agreed.count,):
            raise ConfigError(
                f"an input must be int64 of shape ({agreed.count},), got {self.values.dtype} of {self.values.shape}"
            )
        if self.values.min() < -agreed.max_abs or self.values.max() > agreed.max_abs:
            raise ConfigError(f"an input has values beyond the round's max_abs of {agreed.max_abs}; clip it first")
        lanes = self.values
        if agreed.settings.max_weight:
            weight = min(self.weight, agreed.max_weight)
            lanes = np.append(lanes * weight, weight)
        if agreed.settings.wrap:
            lanes = agreed.lanes.wrapped(lanes)
        return agreed.lanes.pack(lanes)


@dataclass(frozen=True, slots=True)
class Packed:
    """An input whose lanes were packed when it was made: uint64 of shape (words,)."""

    lanes: Words = field(repr=False)

    def words(self, agreed: RoundConfig) -> Words:
        """A copy, to be masked in place; ConfigError for lanes of another round."""
        if self.lanes.dtype != np.uint64 or self.lanes.shape != (agreed.lanes.words,):
            raise ConfigError(f"packed lanes must be uint64 of shape ({agreed.lanes.words},)")
        return self.lanes.copy()


class Input(Protocol):
    """What goes under the masks."""

    def words(self, agreed: RoundConfig) -> Words:
        """The packed lanes, which the caller may write into."""


Update = Callable[[RoundConfig], Input]
