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
    charged,
    event_rdp,
    import_dp_accounting,
    rdp_epsilon,
)
from edge_runtime.privacy.ledger import DistributedSum, Event, Ledger, SampledGaussian

_MEANS_NOTHING = 100.0  # an epsilon
_NEGLIGIBLE = 1e-9  # of delta: so much is set aside for the noise tables, which as a rule take 1e-20


@dataclass(frozen=True, slots=True)
class RunningEpsilon:
    """A ledger, and what its events compose to. Frozen, like the ledger: `append` gives a longer one.

    Sampled Gaussians are composed as privacy loss distributions, one after another; the unsampled ones, whose
    multipliers add as 1 / z^2, in closed form (Balle, Wang 2018). A `DistributedSum` among them turns all to Renyi
    costs; so does an epsilon beyond all meaning, whose loss distribution would take gigabytes.
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
        sampled, unsampled = self._sampled, self._unsampled
        costs = self._costs + _rdp(event)
        gaussian = self._gaussian and not isinstance(event, DistributedSum)
        gaussian = gaussian and rdp_epsilon(ORDERS, costs, self.delta) < _MEANS_NOTHING
        match event:
            case DistributedSum():
                pass
            case SampledGaussian(noise_multiplier=z, sampling_rate=rate) if rate < 1:
                if gaussian:
                    composed = _sampled_loss(z, rate).self_compose(event.rounds)
                    sampled = composed if sampled is None else sampled.compose(composed)
            case SampledGaussian(noise_multiplier=z):
                unsampled += event.rounds / z**2
            case matrix:
                unsampled += (matrix.sensitivity / matrix.noise_multiplier) ** 2
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
        return charged(curve, self.delta, variation)

    def _curve(self) -> Curve:
        if not self._gaussian:
            return lambda delta: rdp_epsilon(ORDERS, self._costs, delta)
        if self._sampled is None:
            return lambda delta: gaussian_epsilon(math.sqrt(self._unsampled), delta)
        losses = self._sampled
        if self._unsampled:
            losses = losses.compose(_loss(1 / math.sqrt(self._unsampled)))
        return lambda delta: float(losses.get_epsilon_for_delta(delta))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The least epsilon of Gaussian noise of 1 / mu times the sensitivity, by bisection, from above.

    delta = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)
    """
    low, high = 0.0, 1.0
    while _gaussian_delta(high, mu) > delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _gaussian_delta(middle, mu) > delta else (low, middle)
    return high


def _gaussian_delta(epsilon: float, mu: float) -> float:
    a, t = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    first = math.erfc(a / math.sqrt(2)) / 2
    if t < 25:
        return first - math.exp(epsilon) * math.erfc(t / math.sqrt(2)) / 2
    # e^epsilon phi(t) = phi(a); and Phi(-t) / phi(t) below its series, so that delta comes out above
    mills = (1 - t**-2) / t
    return first - math.exp(-a * a / 2) / math.sqrt(2 * math.pi) * mills


def _rdp(event: Event) -> Costs:
    if isinstance(event, SampledGaussian | DistributedSum):
        return event.rounds * event_rdp(replace(event, rounds=1))
    return event_rdp(event)


def _loss(noise_multiplier: float, sampling_rate: float = 1.0) -> Any:
    import_dp_accounting()
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sampling_rate, value_discretization_interval=PLD_INTERVAL
    )


_sampled_loss = lru_cache(maxsize=4)(_loss)  # the same in every round, and half a second of work
