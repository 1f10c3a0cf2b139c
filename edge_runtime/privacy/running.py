"""The epsilon of a ledger that grows: what `accountant.epsilon` says of it, at the cost of one event at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from edge_runtime.privacy.accountant import (
    ORDERS,
    PLD_INTERVAL,
    Costs,
    Curve,
    _charged,
    _dp_accounting,
    _event_rdp,
    rdp_epsilon,
)
from edge_runtime.privacy.ledger import DistributedSum, Event, Ledger, SampledGaussian

_NEGLIGIBLE = 1e-9  # of delta: so much is set aside for the noise tables, which as a rule take 1e-20


@dataclass(frozen=True, slots=True)
class RunningEpsilon:
    """A ledger, and what its events compose to. Frozen, like the ledger: `append` gives a longer one.

    Sampled Gaussians are composed as privacy loss distributions, one after another; the unsampled ones, whose
    multipliers add as 1 / z^2, in closed form at the end. A `DistributedSum` among them turns all to Renyi costs.
    """

    delta: float
    ledger: Ledger = Ledger()
    _costs: Costs = field(default_factory=lambda: np.zeros(ORDERS.size))
    _sampled: Any = None  # dp_accounting's PrivacyLossDistribution
    _unsampled: float = 0.0
    _gaussian: bool = True

    @classmethod
    def of(cls, ledger: Ledger, delta: float) -> RunningEpsilon:
        running = cls(delta)
        for event in ledger.events:
            running = running.append(event)
        return running

    def append(self, event: Event) -> RunningEpsilon:
        """The ledger with `event` at its end. Takes about 0.1 s for a sampled Gaussian, else next to none."""
        sampled, unsampled, gaussian = self._sampled, self._unsampled, self._gaussian
        match event:
            case DistributedSum():
                gaussian = False
            case SampledGaussian(noise_multiplier=z, sampling_rate=rate) if rate < 1:
                if gaussian:
                    composed = _sampled_loss(z, rate).self_compose(event.rounds)
                    sampled = composed if sampled is None else sampled.compose(composed)
            case SampledGaussian(noise_multiplier=z):
                unsampled += event.rounds / z**2
            case matrix:
                unsampled += (matrix.sensitivity / matrix.noise_multiplier) ** 2
        costs = self._costs + _rdp(event)
        return RunningEpsilon(self.delta, self.ledger.append(event), costs, sampled, unsampled, gaussian)

    @property
    def epsilon(self) -> float:
        """As `accountant.epsilon` finds it. Of sampled Gaussians this takes about 0.1 s."""
        if not self.ledger.events:
            return 0.0
        variation = self.ledger.variation
        curve = self._curve()
        quick = curve(self.delta * (1 - _NEGLIGIBLE))
        if (1 + math.exp(min(quick, 700.0))) * variation <= self.delta * _NEGLIGIBLE:
            return quick
        return _charged(curve, self.delta, variation)

    def _curve(self) -> Curve:
        if not self._gaussian:
            return lambda delta: rdp_epsilon(ORDERS, self._costs, delta)
        losses = self._sampled
        if self._unsampled:
            once = _loss(1 / math.sqrt(self._unsampled))
            losses = once if losses is None else losses.compose(once)
        return lambda delta: float(losses.get_epsilon_for_delta(delta))


def _rdp(event: Event) -> Costs:
    if isinstance(event, SampledGaussian | DistributedSum):
        return event.rounds * _event_rdp(replace(event, rounds=1))
    return _event_rdp(event)


def _loss(noise_multiplier: float, sampling_rate: float = 1.0) -> Any:
    _dp_accounting()
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sampling_rate, value_discretization_interval=PLD_INTERVAL
    )


_sampled_loss = lru_cache(maxsize=4)(_loss)  # the same in every round, and half a second of work
