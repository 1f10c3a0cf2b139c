"""The (epsilon, delta) that a ledger's events add up to, and the noise that a wanted one takes.

Gaussian events alone are judged by dp-accounting's privacy loss distributions (server extra), discretised at 1e-4. A
ledger with a `DistributedSum` is judged by Renyi differential privacy (RDP) at whole orders, added over all events:

    Skellam                     Agarwal, Kairouz, Liu 2021
    sums of discrete Gaussians  Kairouz, Liu, Steinke 2021
    sampled, all of them        Mironov, Talwar, Zhang 2019: exact where the unsampled cost is; see `_sampled`

Neighbours differ by one client, added or removed. In a `DistributedSum` its vector turns to zeros and its noise share
stays; where the share would go too, leave one out of `shares`. What noise tables are off by is charged to delta:
outputs within total variation v of an (epsilon, d) mechanism's are (epsilon, d + (1 + e^epsilon) v).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_runtime.errors import ConfigError, MissingPackageError
from edge_runtime.privacy.ledger import DistributedSum, Event, Ledger, MatrixMechanism, SampledGaussian

Costs = NDArray[np.float64]
Curve = Callable[[float], float]  # delta -> epsilon
Judge = Callable[[Counter[Event]], Curve]  # of events, each with how often it happened

PLD_INTERVAL = 1e-4
ORDERS = np.array([*range(2, 129), *range(136, 257, 8), 288, 320, 384, 448, 512, 640, 768, 1024])
_EVERY = np.arange(ORDERS[-1] + 1)
_LOG_FACTORIAL = np.concatenate([[0.0], np.cumsum(np.log(_EVERY[1:]))])


def epsilon(ledger: Ledger, delta: float) -> float:
    """The smallest epsilon shown for all that the ledger holds together; infinite if the noise tables use up delta.

    Raises:
        MissingPackageError: the ledger holds Gaussian events only, and dp-accounting is not installed.

    """
    _check_delta(delta)
    return _judged(ledger, delta, _judge_of(ledger))


def noise_for(
    epsilon_target: float,
    delta: float,
    event: Callable[[float], Event],
    spent: Ledger | None = None,
    low: float = 0.05,
    high: float = 16384.0,
) -> float:
    """The least noise x, to a relative 1e-5, for which `spent` and then `event(x)` stay within (epsilon, delta).

    `event` says what x is and what the run does with it: `lambda z: SampledGaussian(z, 0.01, 500)`, or a
    `DistributedSum` with f"{x:.9g}" as its noise. More noise must mean a smaller epsilon; x is sought in low..high.

    Raises:
        ConfigError: even x = `high` is not enough.

    """
    _check_delta(delta)
    if not (math.isfinite(epsilon_target) and epsilon_target > 0):
        raise ConfigError(f"epsilon = {epsilon_target}: must be a number above 0")
    before = spent or Ledger()

    def excess(judge: Judge) -> Callable[[float], float]:
        @cache
        def at(log_x: float) -> float:
            found = _judged(before.append(event(math.exp(log_x))), delta, judge)
            return math.log(min(max(found / epsilon_target, 1e-9), 1e9))  # near a straight line in log_x

        return at

    lowest, x = math.log(low), math.log(high)
    if excess(_rdp_curve)(x) > 0:
        raise ConfigError(
            f"epsilon = {epsilon_target:.5g}: no noise up to {high:.5g} reaches it at delta {delta:g}; "
            "allow a larger epsilon or delta, or fewer rounds"
        )
    exact = _judge_of(before.append(event(high)))
    # The quick judges first, each close to the next: privacy loss distributions of very little noise are huge.
    for judge, step, tolerance in ((_rdp_curve, 1.0, 1e-2), (_coarse_pld_curve, 0.05, 1e-4), (exact, 2e-4, 1e-5)):
        if judge is not _coarse_pld_curve or exact is _pld_curve:
            at = excess(judge)
            x = _least(at, *_bracket(at, x, lowest, step), tolerance)
    return math.exp(x)


def rdp_epsilon(orders: ArrayLike, costs: ArrayLike, delta: float) -> float:
    """The least, over orders a, of r(a) + ln(1 - 1/a) - (ln delta + ln a) / (a - 1) (Canonne, Kamath, Steinke 2020)."""
    a, r = np.asarray(orders, np.float64), np.asarray(costs, np.float64)
    found = r + np.log1p(-1 / a) - (math.log(delta) + np.log(a)) / (a - 1)
    return max(0.0, float(found.min()))


@lru_cache(maxsize=4096)
def event_rdp(event: Event) -> Costs:
    """At each of ORDERS, of one round of the event."""
    match event:
        case SampledGaussian(noise_multiplier=z, sampling_rate=rate):
            return gaussian_rdp(z, rate)
        case MatrixMechanism(noise_multiplier=z, sensitivity=sensitivity):
            return gaussian_rdp(z / sensitivity)
        case DistributedSum(mechanism="skellam") as e:
            return skellam_rdp(e.l2, e.l1, e.variance, e.sampling_rate)
        case DistributedSum() as e:
            return ddgauss_rdp(e.l2, float(e.noise), e.shares, e.dimension, e.sampling_rate)


def gaussian_rdp(noise_multiplier: float, sampling_rate: float = 1.0) -> Costs:
    """At each of ORDERS. Unsampled a / 2 z^2."""
    return _sampled(lambda a: a / (2 * noise_multiplier**2), sampling_rate)


def skellam_rdp(l2: float, l1: float, mu: float, sampling_rate: float = 1.0) -> Costs:
    """At each of ORDERS: a D2^2 / 2 mu + min(((2a - 1) D2^2 + 6 D1) / 4 mu^2, 3 D1 / 2 mu), mu of the sum."""

    def cost(a: Costs) -> Costs:
        extra = np.minimum(((2 * a - 1) * l2**2 + 6 * l1) / (4 * mu**2), 3 * l1 / (2 * mu))
        return a * l2**2 / (2 * mu) + extra

    return _sampled(cost, sampling_rate)


def ddgauss_rdp(l2: float, sigma: float, shares: int, dimension: int, sampling_rate: float = 1.0) -> Costs:
    """At each of ORDERS: min(a D^2 / 2 n s^2 + t d, a/2 (D / (sqrt(n) s) + sqrt(d) t)^2).

    t = 10 sum over k = 1..n-1 of e^(-2 pi^2 s^2 k / (k+1)) is how far the sum of n is from one discrete
    Gaussian.
    """
    k = np.arange(1, shares)
    apart = 10 * float(np.exp(-2 * math.pi**2 * sigma**2 * k / (k + 1)).sum())
    ratio = l2 / (math.sqrt(shares) * sigma)

    def cost(a: Costs) -> Costs:
        return np.minimum(a * ratio**2 / 2 + apart * dimension, a / 2 * (ratio + math.sqrt(dimension) * apart) ** 2)

    return _sampled(cost, sampling_rate)


def _sampled(cost: Callable[[Costs], Costs], rate: float) -> Costs:
    """RDP of symmetric noise on a Poisson sample, at ORDERS, from a bound c on its unsampled RDP; never above c.

    e^((a-1) r(a)) = sum over l = 0..a of C(a,l) (1-q)^(a-l) q^l e^((l-1) c(l))

    With all but the client's draw fixed, Q is the noise without it, P the noise moved by its vector w, and
    R = (1-q) Q + q P. Both directions are covered, for any symmetric noise in any dimension:
    - D_a(R || Q): the sum is E_Q[(R/Q)^a] expanded, equal if c is exact, for every P and Q.
    - D_a(Q || R) is not larger, as x -> w - x swaps P and Q. So E_Q f(p) = E_Q p f(1/p) for p = P/Q, and
      2 (E_Q[(R/Q)^a] - E_Q[(Q/R)^(a-1)]) = E_Q[u^a - u^(1-a) + p (v^a - v^(1-a))], u = 1 - q + q p, v = 1 - q + q / p.
      For p >= 1, half of what is in brackets is u^.5 sinh((a-.5) ln u) - p v^.5 sinh((a-.5) ln(1/v)): 0 at a = 1,
      and not below 0 for a > 1, because u v >= 1. For p < 1, u and v change places.
    This is the form of Zhu and Wang's theorem 6 (2019); its condition on odd moments is not needed here.
    """
    whole = cost(_EVERY.astype(np.float64))
    if rate == 1:
        return np.asarray(whole[ORDERS])
    grown = np.where(_EVERY >= 2, (_EVERY - 1) * whole, 0.0)
    moments = np.array([np.logaddexp.reduce(_log_binomial(a, rate) + grown[: a + 1]) for a in ORDERS])
    found: Costs = np.minimum(whole[ORDERS], moments / (ORDERS - 1))
    return found


def _log_binomial(a: int, rate: float) -> Costs:
    """The logarithm of C(a,l) (1-q)^(a-l) q^l for l = 0..a."""
    taken = _EVERY[: a + 1]
    choose = _LOG_FACTORIAL[a] - _LOG_FACTORIAL[taken] - _LOG_FACTORIAL[a - taken]
    log_probability: Costs = choose + (a - taken) * math.log1p(-rate) + taken * math.log(rate)
    return log_probability


def _rdp_curve(counts: Counter[Event]) -> Curve:
    total = np.sum([rounds * event_rdp(event) for event, rounds in counts.items()], axis=0)
    return lambda delta: rdp_epsilon(ORDERS, total, delta)


def _pld_curve(counts: Counter[Event], interval: float = PLD_INTERVAL) -> Curve:
    dp = import_dp_accounting()
    accountant = dp.pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, interval)
    for event, rounds in counts.items():
        match event:
            case SampledGaussian(noise_multiplier=z, sampling_rate=rate):
                accountant.compose(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(z)), rounds)
            case MatrixMechanism(noise_multiplier=z, sensitivity=sensitivity):
                accountant.compose(dp.GaussianDpEvent(z / sensitivity), rounds)
    return lambda delta: float(accountant.get_epsilon(delta))


def _coarse_pld_curve(counts: Counter[Event]) -> Curve:
    return _pld_curve(counts, 10 * PLD_INTERVAL)


def _judge_of(ledger: Ledger) -> Judge:
    return _rdp_curve if any(isinstance(event, DistributedSum) for event in ledger.events) else _pld_curve


def import_dp_accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise MissingPackageError(
            "the privacy accountant needs dp-accounting, which a server has; pip install 'hedgerow[server]'"
        ) from error
    return dp_accounting


def charged(curve: Curve, delta: float, variation: float) -> float:
    """The epsilon whose own d, plus (1 + e^epsilon) * variation, is delta: found from below, as a fixed point."""
    found = curve(delta)
    while variation > 0 and math.isfinite(found):
        left = delta - (1 + math.exp(min(found, 700.0))) * variation
        if left <= 0:
            return math.inf
        previous, found = found, curve(left)
        if found <= previous * (1 + 1e-9):
            break
    return found


def _judged(ledger: Ledger, delta: float, judge: Judge) -> float:
    counts: Counter[Event] = Counter()
    for event in ledger.events:
        if isinstance(event, MatrixMechanism):  # all its rounds are one release
            counts[event] += 1
        else:
            counts[replace(event, rounds=1)] += event.rounds
    return charged(judge(counts), delta, ledger.variation) if counts else 0.0


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(f"delta = {delta}: must be above 0 and below 1; less than 1 / clients is usual")


def _bracket(excess: Callable[[float], float], start: float, lowest: float, step: float) -> tuple[float, float]:
    """Ends low < high with excess(high) <= 0, and excess(low) > 0 unless low is `lowest`, around `start`."""
    low = high = start
    while excess(high) > 0:
        low, high, step = high, high + step, 2 * step
    while low > lowest and excess(low) <= 0:
        low, high, step = max(lowest, low - step), low, 2 * step
    return low, high


def _least(excess: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """The least x in low..high with excess(x) <= 0, for a falling function; excess(high) <= 0.

    Secant steps, each aimed a little past the root so that it closes the bracket; every fifth halves the bracket.
    """
    before, last = (high, excess(high)), (low, excess(low))
    if last[1] <= 0:
        return low
    step = 1
    while high - low > tolerance:
        x = (low + high) / 2
        if step % 5 and last[1] != before[1]:
            root = last[0] - last[1] * (last[0] - before[0]) / (last[1] - before[1])
            aimed = root + math.copysign(0.4 * tolerance, last[1])
            x = aimed if low < aimed < high else x
        before, last = last, (x, excess(x))
        low, high = (x, high) if last[1] > 0 else (low, x)
        step += 1
    return high
