"""The `[buffer]` table: rounds that take in answers made for an earlier round. See docs/rounds.md."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge_runtime.config import key
from edge_runtime.errors import ConfigError
from server.protection_config import PrivacyConfig
from server.strategy import STRATEGIES

MODES = ("sync", "semi_sync", "async")


@dataclass(frozen=True, slots=True)
class BufferConfig:
    """Of modes "semi_sync" and "async". An update is s rounds stale if so many have closed since it was asked for.

    `size` updates make a round of mode "async", 0 for `server.cohort`, which it then sets; `concurrency` nodes are at
    work in it at any time, 0 for twice the cohort. A stale update is multiplied by 1 / (1 + s)^`exponent`
    ("polynomial", Xie et al. 2019) or not ("constant"); one of more than `max_staleness` rounds is refused.
    """

    size: int = key(0, low=0, high=1_000_000)
    concurrency: int = key(0, low=0, high=1_000_000)
    staleness: str = key("polynomial", choices=("polynomial", "constant"))
    exponent: float = key(0.5, low=0, high=10)
    max_staleness: int = key(20, low=0, high=1_000_000)

    def discount(self, staleness: int) -> float:
        """What an update that is so many rounds stale is multiplied by, above 0 and at most 1."""
        return math.pow(1 + staleness, -self.exponent) if self.staleness == "polynomial" else 1.0


def check_mode(mode: str, strategy: str, secure: bool, privacy: PrivacyConfig) -> None:
    """ConfigError where a round that takes in late answers would promise what nobody can account for."""
    if mode == "sync":
        return
    if STRATEGIES[strategy].control or STRATEGIES[strategy].normalised:
        raise ConfigError(
            f'server.mode = {mode!r}: must be "sync" with server.strategy = {strategy!r}, which weighs the updates of '
            "one model against each other"
        )
    if secure:
        raise ConfigError(
            f'server.mode = {mode!r}: must be "sync" with secure.enabled, whose masks cancel only between clients that '
            "were asked together"
        )
    if privacy.chosen(secure) == "central" and privacy.population:
        raise ConfigError(
            f"privacy.population = {privacy.population}: must be 0 with server.mode = {mode!r}: whose update is in "
            "which round follows from how fast devices are, and no random sample may be claimed of that"
        )
