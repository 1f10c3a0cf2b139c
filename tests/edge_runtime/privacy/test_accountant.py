"""Epsilons against closed forms, published values, and divergences computed from the distributions themselves."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, special, stats

from edge_runtime.errors import ConfigError, MissingPackageError
from edge_runtime.privacy import (
    DistributedSum,
    Event,
    Ledger,
    MatrixMechanism,
    SampledGaussian,
    accountant,
    epsilon,
    l1_bound,
    l2_bound,
    noise_for,
)
from edge_runtime.privacy.accountant import ORDERS, ddgauss_rdp, gaussian_rdp, rdp_epsilon, skellam_rdp

SMALL = ORDERS[ORDERS <= 64]


def gaussian_delta(eps: float, mu: float) -> float:
    """Balle and Wang 2018, theorem 8."""
    return float(stats.norm.cdf(-eps / mu + mu / 2) - math.exp(eps) * stats.norm.cdf(-eps / mu - mu / 2))


def gaussian_epsilon(mu: float, delta: float) -> float:
    return float(optimize.brentq(lambda eps: gaussian_delta(eps, mu) - delta, 0, 200, xtol=1e-12))


def one_sampled_delta(eps: float, sigma: float, q: float) -> float:
    """The hockey-stick divergence of (1-q) N(0) + q N(1) and N(0), the larger of both directions, in closed form."""

    def crossing(ratio: float) -> float:  # where the densities' quotient is `ratio`
        return sigma**2 * math.log((ratio - 1 + q) / q) + 0.5

    x = crossing(math.exp(eps))
    with_it = (1 - q) * stats.norm.sf(x, 0, sigma) + q * stats.norm.sf(x, 1, sigma)
    removed = with_it - math.exp(eps) * stats.norm.sf(x, 0, sigma)
    if math.exp(-eps) <= 1 - q:
        return float(removed)
    y = crossing(math.exp(-eps))
    with_it = (1 - q) * stats.norm.cdf(y, 0, sigma) + q * stats.norm.cdf(y, 1, sigma)
    return max(float(removed), float(stats.norm.cdf(y, 0, sigma) - math.exp(eps) * with_it))


def of(*events: Event) -> Ledger:
    return Ledger(events)


@pytest.mark.parametrize(
    ("sigma", "q", "rounds", "delta", "published", "bracket"),
    [
        (1.0, 0.01, 1000, 1e-5, 1.8282, (1.8181, 1.8384)),
        (1.1, 256 / 60000, 14063, 1e-5, 2.3818, (2.3715, 2.3918)),
        (1.0, 100 / 3400, 1500, 1 / 3400, 5.9684, (5.958, 5.9789)),
        (4.0, 1.0, 16, 1e-5, 4.3772, (4.3669, 4.3874)),
        (0.5, 0.02, 500, 1e-6, 20.1676, (20.157, 20.179)),
    ],
)
def test_known_epsilons(
    sigma: float, q: float, rounds: int, delta: float, published: float, bracket: tuple[float, float]
) -> None:
    """PLD's to four digits, inside the bracket of another library (Microsoft's prv_accountant 0.2.0)."""
    found = epsilon(of(SampledGaussian(sigma, q, rounds)), delta)
    assert found == pytest.approx(published, abs=6e-5)
    assert bracket[0] < found < bracket[1]


@pytest.mark.parametrize(
    ("sigma", "rounds", "delta"), [(4.0, 16, 1e-5), (1.0, 1, 1e-6), (30.0, 100, 1e-4), (0.7, 1, 1e-9)]
)
def test_unsampled_is_the_closed_form(sigma: float, rounds: int, delta: float) -> None:
    expected = gaussian_epsilon(math.sqrt(rounds) / sigma, delta)
    assert epsilon(of(SampledGaussian(sigma, 1.0, rounds)), delta) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(("sigma", "q"), [(0.8, 0.01), (0.6, 0.2), (2.0, 0.5)])
def test_one_sampled_round_is_the_closed_form(sigma: float, q: float) -> None:
    found = epsilon(of(SampledGaussian(sigma, q)), 1e-5)
    assert one_sampled_delta(found, sigma, q) == pytest.approx(1e-5, rel=2e-3)


def test_a_matrix_run_is_one_gaussian_of_its_sensitivity() -> None:
    found = epsilon(of(MatrixMechanism(8.0, 2.0, rounds=1000)), 1e-5)
    assert found == pytest.approx(gaussian_epsilon(2.0 / 8.0, 1e-5), abs=2e-4)


def test_a_ledger_of_single_rounds_is_judged_as_their_sum() -> None:
    once = SampledGaussian(1.3, 0.05)
    assert epsilon(of(*[once] * 40), 1e-5) == epsilon(of(replace(once, rounds=40)), 1e-5)
    mixed = epsilon(of(replace(once, rounds=20), SampledGaussian(1.5, 0.05, 20)), 1e-5)
    all_quieter = epsilon(of(SampledGaussian(1.5, 0.05, 40)), 1e-5)
    assert all_quieter < mixed < epsilon(of(replace(once, rounds=40)), 1e-5)
    two = of(SampledGaussian(5.0, 1.0, 9), MatrixMechanism(6.0, 3.0, rounds=5))
    assert epsilon(two, 1e-5) == pytest.approx(gaussian_epsilon(math.hypot(3 / 5, 1 / 2), 1e-5), abs=3e-4)


def test_nothing_released_costs_nothing() -> None:
    assert epsilon(Ledger(), 1e-5) == 0


# --- Renyi ---


def test_rdp_to_epsilon_known_answer() -> None:
    orders = np.arange(2, 33)
    assert rdp_epsilon(orders, np.full(31, 1.1), 1e-5) == pytest.approx(1.32783806176, abs=1e-11)
    assert rdp_epsilon([32], [1.1], 1e-5) == pytest.approx(1.32783806176, abs=1e-11)


def test_sampled_gaussian_rdp_known_answers() -> None:
    """At q = .01, sigma = 2.5, 50 rounds: those of the published orders that are whole."""
    costs = dict(zip(ORDERS.tolist(), (50 * gaussian_rdp(2.5, 0.01)).tolist(), strict=True))
    for order, expected in {5: 2.18075656e-3, 50: 2.38460375e-2, 100: 167.416308}.items():
        assert costs[order] == pytest.approx(expected, rel=1e-8)


def test_gaussian_rdp_known_epsilon() -> None:
    """Sigma = 4.530877117 is (1, 1e-6) by RDP with orders up to 100 in steps of .001; whole ones are barely above."""
    found = rdp_epsilon(ORDERS, gaussian_rdp(4.530877117), 1e-6)
    assert 1.0 - 1e-6 <= found < 1.0005


def renyi(p: np.ndarray, q: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """D_a(p || q) for each order, in logarithms; p and q have full support here."""
    log_p, log_q = np.log(p), np.log(q)
    return np.array([special.logsumexp(a * log_p - (a - 1) * log_q) / (a - 1) for a in orders])


def skellam_pmf(mu: float, reach: int) -> np.ndarray:
    return special.ive(np.abs(np.arange(-reach, reach + 1)), mu)


def dgauss_sum_pmf(sigma: float, shares: int, reach: int) -> np.ndarray:
    k = np.arange(-reach, reach + 1)
    one = np.exp(-(k**2) / (2 * sigma**2))
    one /= one.sum()
    total = one
    for _ in range(shares - 1):
        total = np.convolve(total, one, mode="same")
    return total


def shifted(pmf: np.ndarray, by: int) -> tuple[np.ndarray, np.ndarray]:
    """The distribution and itself moved by `by`, on the values where both are computed."""
    return pmf[by:], pmf[:-by]


@pytest.mark.parametrize(("mu", "shift"), [(4.0, 1), (30.0, 1), (30.0, 3), (200.0, 5)])
@pytest.mark.parametrize("q", [1.0, 0.1])
def test_skellam_rdp_is_above_the_divergence_of_the_distribution(mu: float, shift: int, q: float) -> None:
    """In one dimension, where Delta_1 = Delta_2 = the shift. Orders as far as float64 tails reach."""
    orders = np.arange(2, 9)
    moved, still = shifted(skellam_pmf(mu, math.ceil(10 * math.sqrt(mu)) + 15), shift)
    moved = (1 - q) * still + q * moved
    bound = skellam_rdp(shift, shift, mu, q)[: orders.size]
    for actual in (renyi(moved, still, orders), renyi(still, moved, orders)):
        assert np.all(actual <= bound * (1 + 1e-9))
    if q == 1 and mu > 3 * orders[-1] * shift:  # else the Gaussian is not near
        assert np.all(renyi(moved, still, orders) > 0.95 * orders * shift**2 / (2 * mu))


@pytest.mark.parametrize(("sigma", "shares", "shift"), [(0.6, 4, 1), (1.0, 10, 2), (2.0, 5, 4)])
@pytest.mark.parametrize("q", [1.0, 0.1])
def test_ddgauss_rdp_is_above_that_of_the_convolution(sigma: float, shares: int, shift: int, q: float) -> None:
    orders = np.arange(2, 9)
    moved, still = shifted(dgauss_sum_pmf(sigma, shares, math.ceil(11 * sigma * math.sqrt(shares))), shift)
    moved = (1 - q) * still + q * moved
    bound = ddgauss_rdp(shift, sigma, shares, 1, q)[: orders.size]
    for actual in (renyi(moved, still, orders), renyi(still, moved, orders)):
        assert np.all(actual <= bound * (1 + 1e-6))


@pytest.mark.parametrize("q", [1.0, 0.02])
def test_discrete_rdp_is_never_below_the_gaussians_and_tends_to_it(q: float) -> None:
    """One vector of norm s and noise of variance (3 s)^2: at a larger scale s the whole numbers matter less."""
    d, shares = 1000, 50
    gaussian = gaussian_rdp(3.0, q)
    unsampled = gaussian_rdp(3.0)
    gaps = []
    for s in (2.0, 20.0, 200.0, 2000.0):
        l1 = l1_bound(s, d)
        skellam = skellam_rdp(s, l1, 9 * s**2, q)
        ddgauss = ddgauss_rdp(s, 3 * s / math.sqrt(shares), shares, d, q)
        for costs in (skellam, ddgauss):
            assert np.all(costs >= gaussian * (1 - 1e-12))
        gaps.append(float((skellam_rdp(s, l1, 9 * s**2) / unsampled).max() - 1))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-2
    np.testing.assert_allclose(ddgauss_rdp(200.0, 600 / math.sqrt(shares), shares, d), unsampled, rtol=1e-12)


# --- whole ledgers ---

D = 2**15
L2 = l2_bound(100.0, 1.0, D)
BASE = DistributedSum("skellam", "94", 100, L2, l1_bound(L2, D), D, sampling_rate=0.01, rounds=500)


@pytest.mark.parametrize("mechanism", ["skellam", "discrete_gaussian"])
def test_epsilon_grows_with_rounds_rate_and_drop_outs_and_falls_with_noise(mechanism: str) -> None:
    base = replace(BASE, mechanism=mechanism, noise="94" if mechanism == "skellam" else "9.695")
    here = epsilon(of(base), 1e-5)
    assert 4.0 < here < 4.3
    for worse in (
        replace(base, rounds=600),
        replace(base, sampling_rate=0.012),
        replace(base, shares=80),
        replace(base, l2=base.l2 * 1.1),
        replace(base, noise=str(float(base.noise) * 0.9)),
    ):
        assert epsilon(of(worse), 1e-5) > here
    assert epsilon(of(base, base), 1e-5) > here
    assert epsilon(of(base), 1e-6) > here > epsilon(of(base), 1e-4)


def test_gaussian_epsilon_grows_with_rounds_and_rate_and_falls_with_noise() -> None:
    base = SampledGaussian(1.2, 0.02, 200)
    here = epsilon(of(base), 1e-5)
    for worse in (replace(base, rounds=250), replace(base, sampling_rate=0.025), replace(base, noise_multiplier=1.1)):
        assert epsilon(of(worse), 1e-5) > here
    assert epsilon(of(base), 1e-6) > here


def test_a_mixed_ledger_costs_more_than_each_part() -> None:
    votes = SampledGaussian(10.0, 0.01, 500)
    together = epsilon(of(BASE, votes, MatrixMechanism(50.0, 1.0, rounds=9)), 1e-5)
    assert together > epsilon(of(BASE), 1e-5) > epsilon(of(votes), 1e-5)


def test_what_the_noise_tables_are_off_by_is_charged_to_delta() -> None:
    event = SampledGaussian(4.0, 1.0, 16, dimension=1000, sample_variation=1e-12)
    found = epsilon(of(event), 1e-5)
    charge = (1 + math.exp(found)) * 1e-12 * 16_000
    assert gaussian_delta(found, 1.0) + charge == pytest.approx(1e-5, rel=2e-3)
    assert found > epsilon(of(replace(event, sample_variation=0.0)), 1e-5) + 0.01
    assert epsilon(of(replace(event, sample_variation=1e-9)), 1e-5) == math.inf
    assert epsilon(of(replace(BASE, sample_variation=1e-3)), 1e-5) == math.inf


# --- calibration ---


@pytest.mark.parametrize(
    ("q", "queries", "sensitivity", "published"), [(0.01, 1, 1, 0.67379294682), (0.001, 25, 6, 3.20956502598)]
)
def test_known_noise_for_one_and_1e_5(q: float, queries: int, sensitivity: float, published: float) -> None:
    """dp-accounting's own calibration test; to the relative 1e-5 that noise_for promises."""

    def event(noise: float) -> SampledGaussian:
        return SampledGaussian(noise / sensitivity, q, queries)

    found = noise_for(1.0, 1e-5, event)
    assert published * (1 - 1e-6) <= found <= published * (1 + 1.1e-5)
    assert epsilon(of(event(found)), 1e-5) <= 1.0


def test_noise_for_is_the_closed_form_when_all_take_part() -> None:
    found = noise_for(2.0, 1e-6, lambda z: SampledGaussian(z, 1.0, 4))
    assert gaussian_delta(2.0, 2 / found) == pytest.approx(1e-6, rel=2e-3)


@pytest.mark.parametrize("mechanism", ["skellam", "discrete_gaussian"])
def test_noise_for_a_distributed_sum_is_enough_and_a_little_less_is_not(mechanism: str) -> None:
    def event(noise: float) -> DistributedSum:
        return replace(BASE, mechanism=mechanism, noise=f"{noise:.9g}")

    found = noise_for(5.0, 1e-5, event)
    assert epsilon(of(event(found)), 1e-5) <= 5.0 < epsilon(of(event(found * (1 - 2e-5))), 1e-5)


def test_noise_for_leaves_room_for_what_was_spent() -> None:
    spent = of(replace(BASE, rounds=200))

    def event(noise: float) -> DistributedSum:
        return replace(BASE, noise=f"{noise:.9g}", rounds=300)

    found = noise_for(5.0, 1e-5, event, spent)
    assert found > noise_for(5.0, 1e-5, event)
    assert 4.999 < epsilon(spent.append(event(found)), 1e-5) <= 5.0


def test_a_target_out_of_reach_is_refused() -> None:
    with pytest.raises(ConfigError, match="no noise up to 10 reaches it"):
        noise_for(0.1, 1e-5, lambda z: SampledGaussian(z, 1.0, 1000), high=10.0)
    for target in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="epsilon"):
            noise_for(target, 1e-5, lambda z: SampledGaussian(z, 1.0))


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match="delta"):
        epsilon(of(BASE), delta)


def test_without_dp_accounting_sums_are_judged_and_gaussians_name_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'hedgerow\[server\]'"):
        epsilon(of(SampledGaussian(1.0, 0.1)), 1e-5)
    assert 4.0 < epsilon(of(BASE), 1e-5) < 4.3
    assert accountant.PLD_INTERVAL == 1e-4


def test_a_device_loads_neither_dp_accounting_nor_scipy() -> None:
    script = "import sys, edge_runtime.privacy; print(sorted({'dp_accounting', 'scipy', 'torch'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
