"""A scenario: what is simulated, as one frozen value read from TOML and `key=value` overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_runtime.config import flatten_tree, from_flat, section
from edge_runtime.errors import ConfigError
from server.config import ServerConfig
from simulations.faults import FaultConfig
from simulations.traces import FleetConfig

SHIPPED = Path(__file__).with_name("scenarios")
DEFAULT = "mnist"


@dataclass(frozen=True, slots=True)
class Scenario(ServerConfig):
    """The server's settings and, for a simulation, how its clients misbehave, and how fast they are."""

    faults: FaultConfig = section(FaultConfig)
    fleet: FleetConfig = section(FleetConfig)

    def __post_init__(self) -> None:
        ServerConfig.__post_init__(self)  # super() does not find its way in a dataclass with slots
        drawn = self.server.mode == "sync" or self.mechanism in ("local", "ftrl")
        if self.mechanism != "none" and drawn and not self.privacy.population:
            # A simulation knows all its clients, and draws from them itself.
            object.__setattr__(self, "privacy", replace(self.privacy, population=self.data.clients))
        if self.region.socket:
            raise ConfigError(
                f"region.socket = {self.region.socket!r}: must be empty; a simulation stands for no region"
            )
        if self.server.cohort > self.data.clients:
            raise ConfigError(f"server.cohort = {self.server.cohort}: must be <= data.clients ({self.data.clients})")
        if self.faults.poison and (self.uplink.codec != ("float32",) or self.secure.enabled):
            raise ConfigError(
                f"faults.poison = {self.faults.poison:g}: rewrites an update in the clear; needs uplink.codec = "
                "float32 and secure.enabled = false"
            )


def load_scenario(name: str = DEFAULT, overrides: Sequence[str] = (), out: str | None = None) -> Scenario:
    """Read a shipped scenario by name, or a TOML file by path, with `key=value` overrides and then `run.out` on top.

    Raises:
        ConfigError: no such file, not TOML, or a key that is unknown or out of range.

    """
    values = read_scenario(name, overrides)
    if out is not None:
        values["run.out"] = out
    return from_flat(Scenario, values)


def read_scenario(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys that a scenario and its overrides give, as they stand there.

    Raises:
        ConfigError: no such file, or not TOML.

    """
    path = _locate(name)
    try:
        values = flatten_tree(tomllib.loads(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error})") from error
    return values | dict(parse_override(override) for override in overrides)


def shipped() -> list[str]:
    """Names of the scenarios that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def parse_override(text: str) -> tuple[str, Any]:
    """`server.rounds=5` -> ("server.rounds", 5). Values are TOML; what is not TOML is taken as plain text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r}: must be of the form key=value")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _locate(name: str) -> Path:
    if Path(name).suffix == ".toml":
        if not Path(name).is_file():
            raise ConfigError(f"scenario {name!r}: no such file; shipped scenarios: {', '.join(shipped())}")
        return Path(name)
    if name not in shipped():
        raise ConfigError(f"scenario {name!r}: must be a .toml file or one of {', '.join(shipped())}")
    return SHIPPED / f"{name}.toml"
