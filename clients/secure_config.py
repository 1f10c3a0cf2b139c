"""What the owner of a device asks of secure rounds, in Flower's node config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clients.config import whole
from edge_runtime.errors import ConfigError
from edge_runtime.secagg import Policy

NOISES = ("discrete_gaussian", "skellam")


@dataclass(frozen=True, slots=True)
class SecureConfig:
    """What this node asks of a round under secure aggregation, and who it is there. No server can lower it.

    `device-key` is the path of its private key, made there if there is none; without it each run gets a new one.
    `enrolled` is the path of a text file with the public keys of the devices that it shares secrets with, one a line;
    without it those that the server lists are believed. `secure-min-clients` and `secure-min-threshold` are the fewest
    clients of a sum and of those who together could open an input; `secure-max-clip` is the largest clip, 0 for any.
    `secure-malicious-server` asks for the consistency phase and its quorum.

    `secure-noise` names the kinds of noise it accepts, with commas, and refuses all other rounds; empty: any, or none.
    Without noise in them, two sums over cohorts that differ by one client tell that client's update: whoever fears that
    of a server asks for noise. `secure-only` refuses what secure aggregation does not cover, training and evaluation in
    the clear: a server could else just ask for them.
    """

    device_key: str = ""
    enrolled: str = ""
    min_clients: int = 3
    min_threshold: int = 2
    max_clip: float = 0.0
    malicious_server: bool = False
    noise: frozenset[str] = frozenset()
    only: bool = False

    @classmethod
    def from_node_config(cls, values: Mapping[str, Any]) -> SecureConfig:
        clip = values.get("secure-max-clip", 0.0)
        if type(clip) not in (int, float) or not clip >= 0:
            raise ConfigError(f"node config: secure-max-clip = {clip!r}: must be a number >= 0")
        config = cls(
            device_key=str(values.get("device-key", "")),
            enrolled=str(values.get("enrolled", "")),
            min_clients=whole(values, "secure-min-clients", 3),
            min_threshold=whole(values, "secure-min-threshold", 2),
            max_clip=float(clip),
            malicious_server=_flag(values, "secure-malicious-server"),
            noise=frozenset(word.strip() for word in str(values.get("secure-noise", "")).split(",") if word.strip()),
            only=_flag(values, "secure-only"),
        )
        if config.min_clients < 2 or config.min_threshold < 1:
            raise ConfigError("node config: secure-min-clients must be >= 2, secure-min-threshold >= 1")
        if unknown := config.noise - set(NOISES):
            raise ConfigError(f"node config: secure-noise = {min(unknown)!r}: must be of {', '.join(NOISES)}")
        return config

    @property
    def policy(self) -> Policy:
        """The floor for `secagg.Client`; kinds of noise are `noise`, for a policy knows exact texts alone."""
        return Policy(
            min_threshold=self.min_threshold,
            min_clients=self.min_clients,
            malicious_server=self.malicious_server,
            max_clip=self.max_clip or None,
        )


def _flag(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name, False)
    if type(value) is not bool:
        raise ConfigError(f"node config: {name} = {value!r}: must be true or false")
    return value
