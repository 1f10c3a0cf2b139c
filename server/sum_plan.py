"""How the updates of one cohort, or of one group of it, are summed without being seen: encoder and settings.

Without noise here. The clip is then no promise of privacy: it sets the grid that all clients' values are rounded to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from edge_runtime.errors import ConfigError
from edge_runtime.secagg import Config, choose_neighbours
from edge_runtime.secagg.graph import COMPLETE_UP_TO, Degree
from edge_runtime.secagg.plan import BitPlan, plan_bits
from edge_runtime.sums import SumEncoder, texts_of
from server.checkpoint import Tree
from server.clipped_sum import Clip
from server.config import ServerConfig
from server.private import NoPrivacy
from server.protection_config import SecureConfig, whole_share
from server.rounds import RoundResult

CLIP_QUANTILE, CLIP_RATE = 0.9, 1.0
VOTE = 1  # without noise one vote is one


@dataclass(frozen=True, slots=True)
class SumPlan:
    """How one cohort's updates, or one group's, are summed. The driver puts the mask PRG into the settings.

    The mean is the sum over `parts`; 0 = over the survivors, or their weights.
    """

    encoder: SumEncoder
    settings: Config
    parts: int = 0


@runtime_checkable
class SumPlanner(Protocol):
    """A `Privacy` whose rounds are played under secure aggregation."""

    def sum_plan(self, number: int, clients: int) -> SumPlan:
        """For that many clients of one sum; ConfigError if so many can't be served."""


class SummedUpdates(NoPrivacy):
    """Secure aggregation and no noise.

    A `privacy.clip` of 0 follows the clients' norms by their votes, which are summed too. No promise rests on the clip
    here and votes are exact, so it may lie higher and move faster than under noise: cutting few updates costs less than
    a finer grid gives.
    """

    def __init__(self, config: ServerConfig, size: int) -> None:
        super().__init__(config, size)
        self._secure, self._seed = config.secure, config.seed
        quantile = max(config.privacy.clip_quantile, CLIP_QUANTILE)
        self._clip = Clip(replace(config.privacy, clip_quantile=quantile, clip_rate=CLIP_RATE))
        for asked in {config.server.cohort, config.server.cohort + config.spares}:
            for clients in set(group_sizes(asked, config.secure)):
                self.sum_plan(1, clients)  # what can't be served shows before the run

    def sum_plan(self, number: int, clients: int) -> SumPlan:
        secure, clip = self._secure, self._clip.now
        plan = plan_lanes(secure, clients, self._size, clip)
        encoder = SumEncoder(
            size=self._size,
            clip=clip,
            scale=plan.scale,
            seed=round_seed(self._seed, number),
            value_max=plan.value_max,
            fraction=secure.fraction,
            vote=VOTE if self._clip.adaptive else 0,
        )
        return SumPlan(encoder, settings_of(secure, clients, plan, encoder))

    def settle(self, number: int, result: RoundResult) -> None:
        if result.clients:
            self._clip.move(result.votes, len(result.clients))

    def state(self) -> Tree:
        return {**super().state(), "clip": self._clip.state()}

    def restore(self, state: Tree) -> None:
        super().restore(state)
        self._clip.restore(state["clip"])


def plan_lanes(
    secure: SecureConfig,
    clients: int,
    size: int,
    clip: float,
    noise_std: Callable[[float], float] | None = None,
    headroom: float = 4.0,
) -> BitPlan:
    """`plan_bits` as `[secure]` asks for it; its ConfigError says that this is the table to change."""
    try:
        return plan_bits(
            clients=clients,
            size=size,
            clip=clip,
            value_bits=secure.value_bits,
            bits=secure.bits,
            fraction=secure.fraction,
            max_weight=secure.max_weight,
            noise_std=noise_std,
            headroom=headroom,
        )
    except ConfigError as error:
        raise ConfigError(f"[secure] {error}") from error


def settings_of(
    secure: SecureConfig, clients: int, plan: BitPlan, encoder: SumEncoder, min_survivors: int = 0
) -> Config:
    """The protocol's settings for a sum of `clients`."""
    degree = choose_degree(secure, clients)
    return Config(
        bits=plan.bits,
        threshold=degree.t,
        neighbours=degree.k if degree.k < clients - 1 else 0,
        min_clients=secure.min_clients,
        min_survivors=min_survivors,
        max_abs=plan.value_max,
        max_weight=secure.max_weight,
        wrap=plan.wrap,
        consistency=secure.malicious_server,
        deadline_ms=min(int(1000 * secure.phase_deadline_s), 2**32 - 1),
        **texts_of(encoder),
    )


def choose_degree(secure: SecureConfig, clients: int) -> Degree:
    """Neighbours of each client and the threshold, as told or as few as the promises allow.

    Up to `COMPLETE_UP_TO` clients everybody is everybody's neighbour. k + 1 hold shares of a secret, its owner among
    them: a malicious server's two stories can't both reach t of them if 2 t > k + 1 + corrupt.

    Raises:
        ConfigError: so many clients can't lose `dropout` of them and bear `corrupt`; names the keys to change.

    """
    corrupt, dropped = whole_share(secure.corrupt, clients), whole_share(secure.dropout, clients)
    left = clients - dropped
    if left < secure.min_clients:
        raise ConfigError(
            f"secure.min_clients = {secure.min_clients}: {clients} clients are in a sum and {dropped} may drop out; "
            "raise server.cohort, or lower secure.min_clients or secure.dropout"
        )
    if not secure.neighbours and not secure.threshold and clients > COMPLETE_UP_TO:
        return choose_neighbours(clients, secure.corrupt, secure.dropout, malicious_server=secure.malicious_server)
    k = min(secure.neighbours or clients - 1, clients - 1)
    if secure.neighbours and clients <= COMPLETE_UP_TO and k < clients - 1:
        raise ConfigError(
            f"secure.neighbours = {secure.neighbours}: fewer than all are not safe among {clients} clients; take 0"
        )
    holders = k + 1
    least = (holders + min(corrupt, k)) // 2 + 1 if secure.malicious_server else max(2, min(corrupt, k) + 1)
    most = min(left, holders)
    threshold = secure.threshold or least
    if secure.threshold and threshold < least:
        raise ConfigError(
            f"secure.threshold = {threshold}: must be >= {least} for {clients} clients with secure.corrupt = "
            f"{secure.corrupt:g} and secure.malicious_server = {secure.malicious_server}"
        )
    if threshold > most:
        raise ConfigError(
            f"secure.threshold = {secure.threshold}: {threshold} of {clients} clients must stay to the end, and "
            f"secure.dropout = {secure.dropout:g} leaves {most}; raise server.cohort, or lower secure.dropout or "
            "secure.corrupt"
        )
    return Degree(k, threshold)


def group_sizes(clients: int, secure: SecureConfig) -> list[int]:
    """How many clients each of `secure.groups` sums has, as even as can be.

    Raises:
        ConfigError: a group would have fewer than `secure.min_clients`.

    """
    if clients < secure.min_clients:
        raise ConfigError(
            f"secure.min_clients = {secure.min_clients}: a round of {clients} clients; raise server.cohort, or lower it"
        )
    if clients < secure.groups * secure.min_clients:
        raise ConfigError(
            f"secure.groups = {secure.groups}: {clients} clients do not make groups of secure.min_clients = "
            f"{secure.min_clients}; raise server.cohort, or take fewer groups"
        )
    return [len(part) for part in np.array_split(np.arange(clients), secure.groups)]


def round_seed(seed: int, number: int) -> int:
    """64 public bits of a round, for its rotation and the coordinates that travel."""
    return int(np.random.SeedSequence([seed, number, 0x5EC]).generate_state(1, np.uint64)[0])
