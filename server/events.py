"""What a run tells its listeners while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server import results
from server.config import ServerConfig


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The model is built, and clients are waited for. `warnings` are lines for the user.

    `closed` rounds were played before, by a run that is resumed now.
    """

    config: ServerConfig
    directory: Path
    parameters: int
    warnings: tuple[str, ...] = ()
    closed: int = 0


@dataclass(frozen=True, slots=True)
class ClientAnswered:
    """One client's part of the current round is settled, well or badly."""

    round: int
    client: str


@dataclass(frozen=True, slots=True)
class RoundClosed:
    """Round `row.round` of `rounds` is over; `row` is its row of `run.json`."""

    row: results.RoundRow
    rounds: int


@dataclass(frozen=True, slots=True)
class RunPaused:
    """Round `round` waits for devices, at most for `patience_s`; `reason` says why."""

    round: int
    reason: str
    patience_s: float

    @property
    def line(self) -> str:
        return f"paused before round {self.round}, for at most {self.patience_s:.0f} s: {self.reason}"


@dataclass(frozen=True, slots=True)
class RunContinued:
    """The run goes on with round `round`."""

    round: int

    @property
    def line(self) -> str:
        return f"goes on with round {self.round}"


@dataclass(frozen=True, slots=True)
class RolloutTold:
    """The artefact goes out to the devices, and `line` says how far it has come."""

    line: str


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The run directory is complete; `final` is `run.json`'s `final`."""

    directory: Path
    final: Mapping[str, Any]


Event = RunStarted | ClientAnswered | RoundClosed | RunPaused | RunContinued | RolloutTold | RunFinished
Listener = Callable[[Event], None]
