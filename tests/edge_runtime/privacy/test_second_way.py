"""The accountant's numbers a second way: sums and integrals over the distributions, and a composition of its own.

Q is the noise, P the noise moved by one client's vector, R = (1 - q) Q + q P what a Poisson sample of rate q releases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import fft, optimize, special, stats

from edge_runtime.privacy import DistributedSum, Event, Ledger, SampledGaussian, epsilon
from edge_runtime.privacy.accountant import ORDERS, ddgauss_rdp, gaussian_rdp, skellam_rdp
from edge_runtime.privacy.clipping import update_multiplier

Log = np.ndarray  # of probabilities or densities


def mixture(log_q: Log, log_p: Log, q: float) -> Log:
    return np.logaddexp(math.log1p(-q) + log_q, math.log(q) + log_p) if q < 1 else log_p


def renyi(log_a: Log, log_b: Log, orders: np.ndarray, step: float = 1.0) -> np.ndarray:
    """D_a(A || B) for each order; of densities by the trapezoidal rule, exact to rounding where they decay so fast."""
    return np.array([(special.logsumexp(a * log_a - (a - 1) * log_b) + math.log(step)) / (a - 1) for a in orders])


def skellam_log_pmf(mu: float, k: np.ndarray) -> Log:
    """Of I_k(mu) e^-mu, by its power series: no scaled Bessel function reaches far enough into the tail."""
    m = np.arange(int(3 * mu) + 200)[:, np.newaxis]
    k = np.abs(k)
    terms = (2 * m + k) * math.log(mu / 2) - special.gammaln(m + 1) - special.gammaln(m + k + 1)
    return special.logsumexp(terms, axis=0) - mu


def gaussian_sum_log_pmf(sigma: float, shares: int, k: np.ndarray) -> Log:
    """Of the sum of `shares` discrete Gaussians, convolved one by one in logarithms."""
    reach = int(np.abs(k).max())
    support = np.arange(-reach, reach + 1)
    one = -(support**2) / (2 * sigma**2)
    one = one - special.logsumexp(one)
    total = one
    for _ in range(shares - 1):
        total = np.array(
            [special.logsumexp(total[max(0, s) : 2 * reach + 1 + min(0, s)]
                               + one[::-1][max(0, -s) : 2 * reach + 1 + min(0, -s)]) for s in support]
        )  # fmt: skip
    return total[k + reach]


# --- one round: sampled ---


@given(st.floats(0, 40), st.floats(0, 1), st.floats(1, 1000))
def test_the_inequality_that_covers_the_other_direction(log_p: float, rate: float, order: float) -> None:
    """u^a - u^(1-a) + p (v^a - v^(1-a)) >= 0 at 400 digits: at q = 1, or a = 1, it is 0 by terms that cancel."""
    with mpmath.workdps(400):
        p, q, a = mpmath.exp(mpmath.mpf(log_p)), mpmath.mpf(rate), mpmath.mpf(order)
        u, v = 1 - q + q * p, 1 - q + q / p
        terms = [u**a, -(u ** (1 - a)), p * v**a, -p * v ** (1 - a)]
        assert mpmath.fsum(terms) >= -(mpmath.mpf(10) ** -350) * max(map(abs, terms))


@pytest.mark.parametrize(("sigma", "q"), [(0.7, 0.001), (1.0, 0.01), (3.0, 0.2), (1.3, 0.9)])
def test_sampled_gaussian_rdp_is_its_integral_at_every_order(sigma: float, q: float) -> None:
    step = sigma / 16
    x = np.arange(-14 * sigma, ORDERS[-1] + 14 * sigma, step)
    log_q, log_p = -(x**2) / (2 * sigma**2), -((x - 1) ** 2) / (2 * sigma**2)
    normal = math.log(sigma * math.sqrt(2 * math.pi))
    log_q, log_r = log_q - normal, mixture(log_q, log_p, q) - normal
    found = gaussian_rdp(sigma, q)
    np.testing.assert_allclose(found, renyi(log_r, log_q, ORDERS, step), rtol=1e-8, atol=1e-12)
    assert np.all(renyi(log_q, log_r, ORDERS, step) <= found * (1 + 1e-8) + 1e-12)


NOISES: dict[str, tuple[Callable[[np.ndarray], Log], int]] = {
    "skellam 2, moved by 1": (lambda k: skellam_log_pmf(2.0, k), 1),
    "skellam 9, moved by 4": (lambda k: skellam_log_pmf(9.0, k), 4),
    "skellam 60, moved by 3": (lambda k: skellam_log_pmf(60.0, k), 3),
    "sum of 3 discrete Gaussians of 0.5, moved by 1": (lambda k: gaussian_sum_log_pmf(0.5, 3, k), 1),
    "sum of 4 discrete Gaussians of 0.8, moved by 2": (lambda k: gaussian_sum_log_pmf(0.8, 4, k), 2),
}
FEW = np.array([2, 3, 4, 8, 16, 32])


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("q", [0.003, 0.1, 0.6])
def test_the_sum_over_orders_is_one_direction_and_covers_the_other(name: str, q: float) -> None:
    """By direct summation over whole numbers. Unsampled costs of the very pair in, both sampled directions out."""
    log_pmf, shift = NOISES[name]
    support = np.arange(-260, 261)
    log_q, log_p = log_pmf(support)[shift:], log_pmf(support)[:-shift]
    log_r = mixture(log_q, log_p, q)
    every = np.arange(2, FEW[-1] + 1)
    costs = np.concatenate([[0.0, 0.0], renyi(log_p, log_q, every)])
    expanded = [
        special.logsumexp([stats.binom.logpmf(k, a, q) + max(0, k - 1) * costs[k] for k in range(a + 1)]) / (a - 1)
        for a in FEW
    ]
    removed, added = renyi(log_r, log_q, FEW), renyi(log_q, log_r, FEW)
    np.testing.assert_allclose(removed, expanded, rtol=1e-7, atol=1e-12)
    assert np.all(added <= removed * (1 + 1e-7) + 1e-12)


@pytest.mark.parametrize(("mu", "shift"), [(2.0, 1), (9.0, 1), (30.0, 3), (100.0, 2)])
@pytest.mark.parametrize("q", [0.003, 0.1, 0.6, 1.0])
def test_sampled_skellam_rdp_is_above_the_sum_over_whole_numbers_and_above_the_gaussians(
    mu: float, shift: int, q: float
) -> None:
    support = np.arange(-460, 461)
    log_pmf = skellam_log_pmf(mu, support)
    log_q, log_r = log_pmf[shift:], mixture(log_pmf[shift:], log_pmf[:-shift], q)
    orders = ORDERS[ORDERS <= 64]
    found = skellam_rdp(shift, shift, mu, q)[: orders.size]
    for actual in (renyi(log_r, log_q, orders), renyi(log_q, log_r, orders)):
        assert np.all(actual <= found * (1 + 1e-9) + 1e-13)
    assert np.all(found >= gaussian_rdp(math.sqrt(mu) / shift, q)[: orders.size] * (1 - 1e-12))


def test_a_vectors_bound_covers_the_sum_over_two_coordinates() -> None:
    """(2, 1) under Skellam noise of variance 12: Delta_2 = sqrt(5), Delta_1 = 3."""
    support = np.arange(-200, 201)
    log_pmf = skellam_log_pmf(12.0, support)
    log_q = (log_pmf[2:-2, np.newaxis] + log_pmf[np.newaxis, 2:-2]).ravel()
    log_p = (log_pmf[:-4, np.newaxis] + log_pmf[np.newaxis, 1:-3]).ravel()
    log_r = mixture(log_q, log_p, 0.05)
    orders = np.array([2, 4, 8, 16])
    found = skellam_rdp(math.sqrt(5), 3.0, 12.0, 0.05)[orders - 2]
    removed, added = renyi(log_r, log_q, orders), renyi(log_q, log_r, orders)
    assert np.all(added <= removed * (1 + 1e-9))
    assert np.all(removed <= found)
    assert np.all(removed[:3] > 0.75 * found[:3])


def test_sampled_sums_of_discrete_gaussians_are_above_the_convolution() -> None:
    support = np.arange(-120, 121)
    log_pmf = gaussian_sum_log_pmf(0.8, 4, support)
    log_q = log_pmf[2:]
    for q in (0.01, 0.3):
        log_r = mixture(log_q, log_pmf[:-2], q)
        found = ddgauss_rdp(2.0, 0.8, 4, 1, q)[FEW - 2]
        for actual in (renyi(log_r, log_q, FEW), renyi(log_q, log_r, FEW)):
            assert np.all(actual <= found * (1 + 1e-9))


# --- adaptive clipping ---


@pytest.mark.parametrize(("z", "votes_std"), [(0.8, 10.0), (1.1, 2.0), (4.0, 4.5)])
def test_update_and_votes_together_cost_what_the_noise_multiplier_alone_does(z: float, votes_std: float) -> None:
    """By adding Renyi costs, by composing privacy losses, and, on one sample, by an integral over both coordinates."""
    update = update_multiplier(z, votes_std)
    np.testing.assert_allclose(gaussian_rdp(update) + gaussian_rdp(votes_std), gaussian_rdp(z), rtol=1e-12)
    both = Ledger((SampledGaussian(update, 1.0, 30), SampledGaussian(votes_std, 1.0, 30)))
    assert epsilon(both, 1e-6) == pytest.approx(epsilon(Ledger((SampledGaussian(z, 1.0, 30),)), 1e-6), rel=1e-4)

    q, step, orders = 0.05, 0.125, np.array([2, 3, 8, 12])
    ends = np.array([1 / update, 1 / votes_std])  # where the client moves (update, votes) to, in units of the noise
    x, y = (np.arange(-12, orders[-1] * end + 12, step) for end in ends)
    log_q = -(x[:, np.newaxis] ** 2 + y**2) / 2 - math.log(2 * math.pi)
    log_p = -((x[:, np.newaxis] - ends[0]) ** 2 + (y - ends[1]) ** 2) / 2 - math.log(2 * math.pi)
    together = renyi(mixture(log_q, log_p, q), log_q, orders, step**2)
    np.testing.assert_allclose(together, gaussian_rdp(z, q)[orders - 2], rtol=1e-7)
    # On one sample they cost more than on two: such a run's event is one, with z, not one for each part.
    apart = gaussian_rdp(update, q) + gaussian_rdp(votes_std, q)
    assert np.all(together > apart[orders - 2])


# --- whole runs, by a composition written for these tests ---


@dataclass(frozen=True)
class Losses:
    """Mass at `first` + i * `step` of one round's ln(A/B) under A, and what lies above all of it."""

    mass: np.ndarray
    first: int
    step: float
    above: float = 0.0

    def epsilon(self, rounds: int, delta: float, spread: float) -> float:
        """Composed by FFT over -spread..spread; masses wrapped from beyond it are too small to see."""
        half = math.ceil(spread / self.step)
        folded = np.zeros(2 * half)
        np.add.at(folded, (self.first + np.arange(self.mass.size)) % (2 * half), self.mass)
        composed = np.maximum(fft.irfft(fft.rfft(folded) ** rounds, 2 * half), 0.0)[:half]  # losses from 0 on
        losses = self.step * np.arange(half)
        infinite = 1 - (1 - self.above) ** rounds

        def excess(eps: float) -> float:
            beyond = losses > eps
            return infinite + float(composed[beyond] @ -np.expm1(eps - losses[beyond])) - delta

        return 0.0 if excess(0.0) <= 0 else float(optimize.brentq(excess, 0.0, spread - 1.0, xtol=1e-9))


def gaussian_losses(sigma: float, q: float, step: float, up: bool, removed: bool) -> Losses:
    """ln(R/Q) under R if `removed`, else ln(Q/R) under Q; each loss moved to the grid point above or below."""

    def place(loss: np.ndarray) -> np.ndarray:  # x at which ln(R/Q) is `loss`
        inside = np.maximum((np.exp(loss) - (1 - q)) / q, 1e-300)
        return sigma**2 * np.log(inside) + 0.5

    x = np.array([-9.0 * sigma, 1 + 9.0 * sigma])
    low, high = np.log1p(q * np.expm1((2 * x - 1) / (2 * sigma**2)))
    grid = np.arange(math.floor(low / step), math.ceil(high / step) + 1)
    at = place(grid * step)
    if removed:
        below = (1 - q) * stats.norm.cdf(at, 0, sigma) + q * stats.norm.cdf(at, 1, sigma)
    else:
        below = stats.norm.cdf(at, 0, sigma)
    mass = np.diff(below)
    mass[0], mass[-1] = mass[0] + below[0], mass[-1] + (0 if up else 1 - below[-1])
    if removed:
        return Losses(mass, int(grid[0]) + up, step, (1 - below[-1]) if up else 0.0)
    return Losses(mass[::-1], -int(grid[-1]) + up, step)


@pytest.mark.parametrize(
    ("sigma", "q", "rounds", "delta"), [(1.0, 0.01, 400, 1e-5), (0.8, 0.05, 50, 1e-5), (3.0, 0.3, 100, 1e-4)]
)
def test_a_sampled_runs_epsilon_is_within_losses_rounded_down_and_up(
    sigma: float, q: float, rounds: int, delta: float
) -> None:
    """No Renyi order and no other library: losses cut to a grid, added up by Fourier transform, in both directions."""
    step = 1e-5
    low, high = (
        max(gaussian_losses(sigma, q, step, up, removed).epsilon(rounds, delta, 16.0) for removed in (True, False))
        for up in (False, True)
    )
    assert high - low <= rounds * step + 1e-6
    found = epsilon(Ledger((SampledGaussian(sigma, q, rounds),)), delta)
    assert low <= found <= high


def test_an_attacker_who_knows_the_losses_sees_the_stated_delta() -> None:
    """200,000 runs of 60 rounds with the client in: E[(1 - e^(epsilon - loss))+] is delta to five standard errors."""
    sigma, q, rounds, delta = 0.9, 0.1, 60, 0.01
    eps = epsilon(Ledger((SampledGaussian(sigma, q, rounds),)), delta)
    rng = np.random.default_rng(11)
    loss = np.zeros(200_000)
    for _ in range(rounds):
        x = rng.normal(0, sigma, loss.size) + (rng.random(loss.size) < q)
        loss += np.log1p(q * np.expm1((2 * x - 1) / (2 * sigma**2)))
    gained = np.maximum(0.0, -np.expm1(eps - loss))
    assert abs(gained.mean() - delta) < 5 * gained.std() / math.sqrt(loss.size)


@pytest.mark.parametrize("q", [0.02, 0.2])
def test_a_skellam_runs_epsilon_is_above_what_its_losses_add_up_to(q: float) -> None:
    """One coordinate: every loss rounded down, so a lower bound; the stated epsilon is Renyi's, 5-35 % above."""
    mu, shift, rounds, step = 12.0, 2, 80, 1e-5
    support = np.arange(-70, 71)
    log_pmf = skellam_log_pmf(mu, support)
    log_q, log_r = log_pmf[shift:], mixture(log_pmf[shift:], log_pmf[:-shift], q)
    lowest = []
    for log_a, log_b in ((log_r, log_q), (log_q, log_r)):
        grid = np.floor((log_a - log_b) / step).astype(np.int64)
        kept = np.exp(log_a) > 1e-18
        first = int(grid[kept].min())
        lowest.append(Losses(np.bincount(grid[kept] - first, np.exp(log_a[kept])), first, step))
    low = max(losses.epsilon(rounds, 1e-5, 24.0) for losses in lowest)
    event: Event = DistributedSum("skellam", "4", 3, float(shift), float(shift), 1, sampling_rate=q, rounds=rounds)
    assert low <= epsilon(Ledger((event,)), 1e-5) <= 1.35 * low
