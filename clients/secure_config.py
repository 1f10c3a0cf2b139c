"""What the owner of a device asks of secure rounds, in Flower's node config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clients.config import whole
from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.privacy.ledger import SHARES
from edge_runtime.secagg import Policy, RoundConfig
from edge_runtime.sums import SumEncoder

DELTA = 1e-5  # of `secure-max-epsilon`


@dataclass(frozen=True, slots=True)
class SecureConfig:
    """What this node asks of a round under secure aggregation, and who it is there. No server can lower it.

    `device-key` is the path of its private key, made there if there is none; without it each run gets a new one.
    `enrolled` is the path of a text file with the public keys of the devices that it shares secrets with, one a line;
    without it those that the server lists are believed. `secure-min-clients` and `secure-min-threshold` are the fewest
    clients of a sum and of those who together could open an input; `secure-max-clip` is the largest clip, 0 for any.
    `secure-malicious-server` asks for the consistency phase and its quorum. `secure-corrupt` is how many others of a
    cohort (of its neighbours, where they are fewer) may work for the server; `Policy` says what follows.

    `secure-noise` names the kinds of noise it accepts, with commas, and refuses all other rounds; empty: any, or none.
    `secure-max-epsilon` says how much: the most that one round may tell, at a delta of 1e-5, of a client that is known
    to be in it, with no more survivors than the round may end with and without the noise of the corrupt; 0 for any.
    Without noise in them, two sums over cohorts that differ by one client tell that client's update: whoever fears that
    of a server asks for noise, and for enough. `secure-only` refuses what secure aggregation does not cover, training
    and evaluation in the clear: a server could else just ask for them.
    """

    device_key: str = ""
    enrolled: str = ""
    min_clients: int = 3
    min_threshold: int = 2
    max_clip: float = 0.0
    malicious_server: bool = False
    corrupt: int = 0
    noise: frozenset[str] = frozenset()
    max_epsilon: float = 0.0
    only: bool = False

    @classmethod
    def from_node_config(cls, values: Mapping[str, Any]) -> SecureConfig:
        config = cls(
            device_key=str(values.get("device-key", "")),
            enrolled=str(values.get("enrolled", "")),
            min_clients=whole(values, "secure-min-clients", 3),
            min_threshold=whole(values, "secure-min-threshold", 2),
            max_clip=_number(values, "secure-max-clip"),
            malicious_server=_flag(values, "secure-malicious-server"),
            corrupt=whole(values, "secure-corrupt", 0),
            noise=frozenset(word.strip() for word in str(values.get("secure-noise", "")).split(",") if word.strip()),
            max_epsilon=_number(values, "secure-max-epsilon"),
            only=_flag(values, "secure-only"),
        )
        if config.min_clients < 2 or config.min_threshold < 1:
            raise ConfigError("node config: secure-min-clients must be >= 2, secure-min-threshold >= 1")
        if config.corrupt < 0:
            raise ConfigError(f"node config: secure-corrupt = {config.corrupt}: must be >= 0")
        if unknown := config.noise - set(SHARES):
            raise ConfigError(f"node config: secure-noise = {min(unknown)!r}: must be of {', '.join(SHARES)}")
        return config

    @property
    def policy(self) -> Policy:
        """The floor for `secagg.Client`; kinds of noise are `noise`, for a policy knows exact texts alone."""
        return Policy(
            min_threshold=self.min_threshold,
            min_clients=self.min_clients,
            malicious_server=self.malicious_server,
            corrupt=self.corrupt,
            max_clip=self.max_clip or None,
        )

    def check_noise(self, encoder: SumEncoder, agreed: RoundConfig) -> None:
        """Refuse a round of other noise, or of less.

        Raises:
            PeerError: names the kinds, or the epsilon.

        """
        noise = encoder.noise.kind if encoder.noise else "none"
        wanted = self.noise or (frozenset(SHARES) if self.max_epsilon else self.noise)
        if wanted and noise not in wanted:
            raise PeerError(f"the round's noise is {noise}; this node asks for {' or '.join(sorted(wanted))}")
        if self.max_epsilon and (spent := self._epsilon(encoder, agreed)) > self.max_epsilon:
            raise PeerError(f"the round may tell an epsilon of {spent:.4g}; this node allows {self.max_epsilon:g}")

    def _epsilon(self, encoder: SumEncoder, agreed: RoundConfig) -> float:
        from edge_runtime.privacy import DistributedSum, Ledger, epsilon  # what nodes that do not ask need not load

        assert encoder.noise is not None
        fewest = max(agreed.fewest_survivors, self.policy.floor)
        told = DistributedSum(
            mechanism=encoder.noise.kind,
            noise=encoder.noise.parameter,
            shares=fewest - self.corrupt,
            l2=encoder.l2,
            l1=encoder.l1,
            dimension=encoder.count,
        )
        return epsilon(Ledger((told,)), DELTA)


def _number(values: Mapping[str, Any], name: str) -> float:
    value = values.get(name, 0.0)
    if type(value) not in (int, float) or not value >= 0:
        raise ConfigError(f"node config: {name} = {value!r}: must be a number >= 0")
    return float(value)


def _flag(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name, False)
    if type(value) is not bool:
        raise ConfigError(f"node config: {name} = {value!r}: must be true or false")
    return value
