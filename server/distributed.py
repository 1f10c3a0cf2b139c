"""Distributed differential privacy: every client noises its own share, and the server sees but their sum.

The noise of a sum is that of its survivors. Each share is so large that the fewest survivors that a round may end with,
less the colluders assumed among them, still have all the noise that the budget was planned with; below that number the
protocol ends without a sum. Booked are the survivors that there were. Neighbours differ by one client, whose vector
turns to zeros (Kairouz, Liu, Steinke 2021; Agarwal, Kairouz, Liu 2021).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

from edge_runtime.errors import ConfigError
from edge_runtime.privacy import DistributedSum, Ledger, epsilon
from edge_runtime.privacy.noise import table
from edge_runtime.privacy.pmf import PMFS
from edge_runtime.secagg.plan import BitPlan
from edge_runtime.sums import NoiseShare, SumEncoder
from edge_runtime.train.config import RoundTask
from server.aggregate import Aggregate, EqualSum
from server.budget import Budget
from server.checkpoint import Tree
from server.clipped_sum import VARIATION, Clip, largest_vote
from server.config import ServerConfig
from server.private import swamped
from server.protection_config import SecureConfig, whole_share
from server.results import finite
from server.rounds import RoundResult
from server.run_store import RunStore
from server.sampling import Entropy, Participations, make_sampling
from server.sum_plan import SumPlan, plan_lanes, round_seed, settings_of

_HEADROOM = 4.0  # standard deviations of a sum that fit in half a lane
_HEADROOM_WITH_VOTES = 12.0  # all votes may be alike, and add up to more than any rotated coordinate
_BEGUN = "privacy_sum_begun"  # event: from here on there may be a sum that the server knows
_PLANS = 6  # scale and noise follow from one another; they settle in two or three


@dataclass(frozen=True, slots=True)
class Honesty:
    """Whose noise is counted on, in a cohort."""

    secure: SecureConfig

    def colluders(self, clients: int) -> int:
        return whole_share(self.secure.corrupt, clients)

    def fewest(self, clients: int) -> int:
        """Survivors below which a round ends without a sum."""
        return max(self.secure.min_clients, clients - whole_share(self.secure.dropout, clients))

    def shares(self, clients: int) -> int:
        """Noise shares in the worst sum of a cohort of so many.

        Raises:
            ConfigError: there may be none.

        """
        shares = self.fewest(clients) - self.colluders(clients)
        if shares < 1:
            raise ConfigError(
                f"secure.corrupt = {self.secure.corrupt:g}: of {clients} clients {self.fewest(clients)} may be left, "
                "and all of them work for the server; raise server.cohort or lower secure.dropout or secure.corrupt"
            )
        return shares


class Distributed:
    """`Privacy` of `privacy.mechanism = "distributed"`, for updates of `size` values. Also a `SumPlanner`."""

    def __init__(self, config: ServerConfig, size: int, entropy: Entropy = os.urandom) -> None:
        settings, self._secure, self._seed, self._size = config.privacy, config.secure, config.seed, size
        self._clients, self._rounds, self._kind = config.server.cohort, config.server.rounds, settings.noise
        self._sampling = make_sampling(config, entropy)
        self._honesty = Honesty(config.secure)
        self._budget = Budget.of(settings)
        self._clip = Clip(settings)
        # A sample may be larger than the cohort that is expected; beyond this, sums wrap more often than planned.
        spread = math.ceil(4 * math.sqrt(self._clients)) if self._sampling.rate < 1 else 0
        self._most = min(self._clients + spread, settings.population or self._clients)
        self._noise_multiplier, self._plan, self._encoder = self._design(settings.noise_multiplier)
        self._spent: list[DistributedSum] = []
        self._taken = Participations()
        self._booked = 0  # events so far
        self._lost = 0  # of what is spent, that of rounds which were killed: who took part there is not known
        self._asked = 0  # clients of the last plan
        self._store: RunStore | None = None
        self.clip: float | None = None

    def open(self, store: RunStore) -> None:
        """Open the books. A sum that was under way when the run was killed may have been known: it is booked."""
        self._budget.open(store)
        self._store, last = store, store.last_event(_BEGUN, "privacy_spent", "round_closed")
        if last is not None and last.kind == _BEGUN:
            event = self._event(self._noise_multiplier, self._encoder, last.data["clients"])
            self._budget.spend(event, last.round)
        own = [event for event in self._budget.own if isinstance(event, DistributedSum)]
        self._lost, self._booked = self._lost + len(own) - self._booked, len(own)
        self._spent = own

    def why_stop(self) -> str | None:
        """Judged by the fewest survivors that the round may end with."""
        return self._budget.why_not(self._event(self._noise_multiplier, self._encoder, self._clients))

    def cohort(self, nodes: Sequence[int], number: int) -> list[int]:
        return self._sampling.draw(nodes, number)

    def further(self, nodes: Sequence[int], size: int, number: int) -> list[int]:
        """Nobody: a sum is of those who were asked together."""
        return []

    def task(self, task: RoundTask) -> RoundTask:
        return task

    def aggregate(self) -> Aggregate:
        return EqualSum(self._size)

    def sum_plan(self, number: int, clients: int) -> SumPlan:
        """For a cohort of so many; ConfigError if it can't be served."""
        self.clip, self._asked = self._clip.now, clients
        if self._store is not None:
            self._store.append(_BEGUN, {"clients": clients}, number, durable=True)
        encoder = replace(
            self._encoder,
            clip=self.clip,
            scale=self._encoder.scale / self.clip,
            seed=round_seed(self._seed, number),
            noise=self._share(self._noise_multiplier, self._encoder.l2, self._honesty.shares(clients)),
        )
        settings = settings_of(self._secure, clients, self._plan, encoder, self._honesty.fewest(clients))
        # Noise may take a value out of its lane: it comes in again at the other end, as sums do.
        settings = replace(settings, max_abs=1 << settings.bits - 1)
        return SumPlan(encoder, settings, parts=self._clients)

    def settle(self, number: int, result: RoundResult) -> None:
        """A sum that was made is spent, whatever became of it, and so is one that was being unmasked when it failed.

        The server has seen the one; the other it could know with a client that kept its share back.
        """
        clients = result.clients or result.opened
        if not clients:
            return
        shares = len(clients) - self._honesty.colluders(self._asked)
        event = self._event(self._noise_multiplier, self._encoder, self._asked, shares)
        self._budget.spend(event, number)
        self._spent.append(event)
        self._booked += 1
        self._taken.add(clients)
        self._clip.move(result.votes, self._clients)

    @property
    def epsilon(self) -> float:
        return self._budget.epsilon

    def warnings(self) -> tuple[str, ...]:
        extra = math.sqrt(self._clients / self._honesty.shares(self._clients)) * self._plan.inflation
        ratio = self._noise_multiplier * extra * math.sqrt(self._size) / self._clients
        return swamped(ratio, self._rounds)

    def final(self) -> dict[str, Any]:
        return self._budget.figures() | {
            "mechanism": "distributed",
            "noise": self._kind,
            "epsilon_without_sampling": finite(self._without_sampling()),
            "noise_multiplier": self._noise_multiplier,
            "sampling_rate": self._sampling.rate,
            "clip": self._clip.now,
            "participations": self._taken.most,
            "bits": self._plan.bits,
            "scale": self._encoder.scale / self._clip.now,
            "inflation": self._plan.inflation,
        }

    def state(self) -> Tree:
        return {
            "taken": self._taken.state(),
            "clip": self._clip.state(),
            "last_clip": self.clip,
            "booked": self._booked,
            "lost": self._lost,
        }

    def restore(self, state: Tree) -> None:
        self._taken.restore(state["taken"])
        self._clip.restore(state["clip"])
        self.clip, self._lost, self._booked = state["last_clip"], state["lost"], state["booked"]

    def _design(self, given: float) -> tuple[float, BitPlan, SumEncoder]:
        """Noise, in what one client can do, the lanes, and the encoder at a clip of 1, that follow from each other."""
        noise = given or 1.0
        for _ in range(_PLANS):
            plan = self._lanes(noise)
            encoder = self._coder(plan.scale, self._vote(plan, noise))
            before, noise = noise, given or self._calibrated(encoder)
            if abs(noise / before - 1) < 1e-3:
                break
        return noise, plan, encoder

    def _lanes(self, noise: float) -> BitPlan:
        """For the largest cohort, with all its shares of noise there."""
        lasting = math.sqrt(self._most / self._honesty.shares(self._most))
        with_vote = 1.04 if self._clip.adaptive else 1.0  # a vote is at most 1 / 4 as long as the values
        return plan_lanes(
            self._secure,
            self._most,
            self._size,
            clip=1.0,
            noise_std=lambda scale: noise * with_vote * self._coder(scale, 0).l2 * lasting,
            headroom=_HEADROOM_WITH_VOTES if self._clip.adaptive else _HEADROOM,
        )

    def _vote(self, plan: BitPlan, noise: float) -> int:
        """As large as `largest_vote`, and as all votes alike leave room for beside the noise."""
        if not self._clip.adaptive:
            return 0
        most = largest_vote(self._coder(plan.scale, 0).l2, noise, self._clients)
        room = (2.0 ** (plan.bits - 1) - _HEADROOM * plan.noise_std) / self._most
        return max(1, round(min(most, room)))

    def _coder(self, scale: float, vote: int) -> SumEncoder:
        return SumEncoder(self._size, 1.0, scale, 0, fraction=self._secure.fraction, vote=vote)

    def _calibrated(self, encoder: SumEncoder) -> float:
        shares = self._honesty.shares(self._clients)
        low, high = (float(limit) for limit in (PMFS[self._kind].low, PMFS[self._kind].high))
        low, high = (_whole(self._kind, limit, shares) / encoder.l2 for limit in (low, high))

        def event(noise: float) -> DistributedSum:
            return self._event(noise, encoder, self._clients, rounds=self._rounds, variation=VARIATION)

        return self._budget.noise_for(event, low=max(0.05, 1.001 * low), high=min(16384.0, 0.999 * high))

    def _event(
        self,
        noise: float,
        encoder: SumEncoder,
        clients: int,
        shares: int | None = None,
        rounds: int = 1,
        variation: float | None = None,
    ) -> DistributedSum:
        """A sum of a cohort of `clients`, of whose noise `shares` are counted; by default as few as there may be."""
        fewest = self._honesty.shares(clients)
        share = self._share(noise, encoder.l2, fewest)
        if variation is None:
            variation = table(share.kind, share.parameter).total_variation
        return DistributedSum(
            mechanism=share.kind,
            noise=share.parameter,
            shares=fewest if shares is None else shares,
            l2=encoder.l2,
            l1=encoder.l1,
            dimension=encoder.count,
            sampling_rate=self._sampling.rate,
            rounds=rounds,
            sample_variation=variation,
        )

    def _share(self, noise: float, l2: float, shares: int) -> NoiseShare:
        """One client's, of which `shares` make `noise` times what one client can do; rounded up."""
        std = Decimal(noise) * Decimal(l2)
        exact = std * std / shares if self._kind == "skellam" else std / Decimal(shares).sqrt()
        return NoiseShare(self._kind, f"{Context(prec=9, rounding=ROUND_CEILING).plus(exact):f}")

    def _without_sampling(self) -> float:
        """Against the server, which knows whom it asked: at most what the worst rounds come to, as many as anyone had.

        Of this run. Those who took part in fewer rounds, or in better ones, are told less of.
        """
        worst = sorted(self._spent, key=lambda event: event.variance / event.l2**2)[: self._taken.most + self._lost]
        return epsilon(Ledger(tuple(replace(event, sampling_rate=1.0) for event in worst)), self._budget.delta)


def _whole(kind: str, parameter: float, shares: int) -> float:
    """The standard deviation of so many shares of that parameter."""
    return math.sqrt(shares * parameter) if kind == "skellam" else math.sqrt(shares) * parameter
