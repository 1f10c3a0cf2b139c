"""The `[rollout]` table of a scenario: how the exported artefact goes out to the devices."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.config import key
from edge_runtime.deploy.offer import MAX_VERSION, SUFFIXES
from server.rollout import parse_stages


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """The artefact is signed and offered stage by stage; see server/rollout.py for what halts it."""

    enabled: bool = key(False)
    format: str = key("engine", choices=tuple(SUFFIXES))
    stages: tuple[str, ...] = key(("10", "50", "100"))  # per cent of the devices that can take it
    max_failures: float = key(0.1, low=0, high=1)  # share of a stage that may fail, or of all that may fall back
    deadline_s: float = key(300.0, above=0, high=604_800)  # for each answer
    health_s: float = key(60.0, low=0, high=604_800)  # how long a stage runs it before it is judged
    approve: bool = key(False)  # each stage waits until somebody approves of it
    version: int = key(0, low=0, high=MAX_VERSION)  # 0 = the UTC time, seconds since 1970
    key: str = key("")  # path of the release key that signs; its statement stands beside it. Last: it hides `key`

    def __post_init__(self) -> None:
        parse_stages(self.stages)
