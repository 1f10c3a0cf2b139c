"""DP-FTRL: sensitivity against every pattern, exact streams, the noise of decoded sums, epsilon a second way."""

from __future__ import annotations

import doctest
import itertools
import math
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, optimize, special, stats

from edge_runtime.errors import ConfigError, MissingPackageError, NumericsError
from edge_runtime.privacy import (
    Ledger,
    MatrixMechanism,
    MatrixStream,
    Strategy,
    accountant,
    banded,
    blt,
    epsilon,
    matrix,
    noise_for,
    rounded_gaussian,
)

RUN = {"rounds": 200, "separation": 20, "participations": 10}
falling = st.lists(st.integers(1, 300), min_size=1, max_size=7).map(lambda found: tuple(sorted(found, reverse=True)))


def dense(strategy: Strategy) -> np.ndarray:
    column = np.zeros(strategy.rounds)
    column[: strategy.bands] = np.array(strategy.numerators) / 2**strategy.bits
    return linalg.toeplitz(column, np.zeros(strategy.rounds))


def prefix_noise(strategy: Strategy) -> np.ndarray:
    """Standard deviation of each prefix sum's noise, by dense matrices: the row norms of A C^-1."""
    return np.linalg.norm(np.tri(strategy.rounds) @ np.linalg.inv(dense(strategy)), axis=1)


def patterns(rounds: int, separation: int, participations: int) -> list[tuple[int, ...]]:
    return [
        pattern
        for size in range(1, participations + 1)
        for pattern in itertools.combinations(range(rounds), size)
        if all(b - a >= separation for a, b in itertools.pairwise(pattern))
    ]


def test_the_examples_in_its_docstrings() -> None:
    assert doctest.testmod(matrix) == (0, 2)


# --- sensitivity ---


@settings(max_examples=60, deadline=None)
@given(falling, st.integers(0, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_sensitivity_is_the_most_that_any_pattern_of_rounds_reaches(
    numerators: tuple[int, ...], more: int, separation: int, participations: int, seed: int
) -> None:
    """Over all patterns: reached with equal vectors; never passed by any signs, nor by random directions."""
    strategy = Strategy(numerators, len(numerators) + more, bits=3)
    found = strategy.sensitivity(separation, participations)
    columns = dense(strategy)
    most = 0.0
    rng = np.random.default_rng(seed)
    for pattern in patterns(strategy.rounds, separation, participations):
        chosen = columns[:, pattern]
        signs = np.array(list(itertools.product((-1, 1), repeat=len(pattern)))).T
        most = max(most, float(np.linalg.norm(chosen @ signs, axis=0).max()))
        directions = rng.normal(size=(len(pattern), 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        assert np.linalg.norm(chosen @ directions) <= found * (1 + 1e-12)
    assert found == pytest.approx(most, rel=1e-12)
    assert found >= most * (1 - 1e-14)


def test_bands_no_wider_than_the_separation_cost_root_k_columns() -> None:
    strategy = banded(20, 200)
    column = math.sqrt(sum(n * n for n in strategy.numerators)) / 2**strategy.bits
    assert strategy.sensitivity(20, 9) == pytest.approx(3 * column, rel=1e-12)
    assert strategy.sensitivity(20, 10) == pytest.approx(math.sqrt(10) * column, rel=1e-12)
    assert strategy.sensitivity(20, 99) == strategy.sensitivity(20, 10)  # no more fit into 200 rounds
    assert strategy.sensitivity(25, 3) == pytest.approx(math.sqrt(3) * column, rel=1e-12)
    assert matrix.independent(50).sensitivity(1, 49) == pytest.approx(7, rel=1e-12)
    assert matrix.prefix(50).sensitivity(1, 1) == pytest.approx(math.sqrt(50), rel=1e-12)


# --- strategies ---


def test_banded_holds_the_square_root_of_the_prefix_matrix() -> None:
    full = banded(64, 64, bits=16)
    i = np.arange(64)
    exact = special.binom(2 * i, i) / 4.0**i
    np.testing.assert_allclose(np.array(full.numerators) / 2**16, exact, atol=2.0**-17)
    root = linalg.toeplitz(exact, np.zeros(64))
    np.testing.assert_allclose(root @ root, np.tri(64), atol=1e-12)
    assert banded(8, 64, bits=16).numerators == full.numerators[:8]


@pytest.mark.parametrize(
    "strategy",
    [
        matrix.independent(50),
        matrix.prefix(50),
        banded(1, 50),
        banded(7, 50),
        banded(50, 50, bits=6),
        blt(50, 10, 4),
        blt(50, 10, 4, bands=10),
    ],
)
def test_error_is_that_of_the_dense_matrices(strategy: Strategy) -> None:
    rows = prefix_noise(strategy)
    found = strategy.error(2.5)
    assert found.largest == pytest.approx(2.5 * rows.max(), rel=1e-9)
    assert found.rms == pytest.approx(2.5 * math.sqrt((rows**2).mean()), rel=1e-9)


def compared(strategy: Strategy) -> float:
    return strategy.error(strategy.sensitivity(RUN["separation"], RUN["participations"])).rms


def test_correlated_noise_beats_both_baselines_and_fitting_beats_the_square_root() -> None:
    """200 rounds, up to 10 of a client, 20 apart; published strategies stand in this order too."""
    fresh, prefix = compared(matrix.independent(200)), compared(matrix.prefix(200))
    root, fitted, cut = compared(banded(20, 200)), compared(blt(**RUN)), compared(blt(**RUN, bands=20))
    assert cut < root < fitted < fresh / 2.5
    assert fitted < prefix / 5
    assert compared(blt(**RUN, bits=16)) == pytest.approx(fitted, rel=2e-3)


def test_a_cut_blt_is_next_to_the_best_banded_strategy() -> None:
    """Against all 19 coefficients set free, for a client that may join every 20 rounds."""

    def free(x: np.ndarray) -> float:
        column = np.concatenate([[1.0], x, np.zeros(180)])
        return math.log(matrix._error(column, 1.0).rms * math.sqrt(10) * float(np.linalg.norm(column)))

    best = math.exp(optimize.minimize(free, np.full(19, 0.3), method="L-BFGS-B").fun)
    assert best * (1 - 1e-4) <= compared(blt(**RUN, bands=20)) <= best * 1.001


def test_a_blt_that_all_rounds_mix_beats_the_square_root_when_a_client_joins_once() -> None:
    once = blt(200, 200, 1, buffers=3)
    assert once.bands > 150
    full = banded(200, 200)
    assert once.error(once.sensitivity(200, 1)).rms < full.error(full.sensitivity(200, 1)).rms


# --- streams ---


@settings(max_examples=40, deadline=None)
@given(falling, st.integers(0, 3), st.integers(1, 2**40), st.integers(0, 2**32 - 1))
def test_the_stream_is_exact_and_estimates_are_its_decoding(
    numerators: tuple[int, ...], more: int, largest: int, seed: int
) -> None:
    """E in Python's whole numbers; and C times the estimates is E plus the very noise of the key."""
    strategy = Strategy(numerators, len(numerators) + more, bits=4)
    rng = np.random.default_rng(seed)
    sums = rng.integers(-largest, largest, (strategy.rounds, 5), endpoint=True)
    stream = MatrixStream(strategy, 5, "37.5")
    estimates: list[list[Fraction]] = []
    for t in range(strategy.rounds):
        key = bytes([t]) * 32
        encoded = stream.encode(sums[t])
        exact = [sum(n * int(sums[t - i, j]) for i, n in enumerate(numerators[: t + 1])) for j in range(5)]
        assert encoded.dtype == np.int64
        assert encoded.tolist() == exact
        estimates.append([Fraction(value) for value in stream.release(sums[t], key)])
        noise = rounded_gaussian("37.5", 5, key)
        for j in range(5):
            again = sum(n * estimates[t - i][j] for i, n in enumerate(numerators[: t + 1]))
            scale = sum(n * abs(estimates[t - i][j]) for i, n in enumerate(numerators[: t + 1])) + 1
            assert abs(again - (exact[j] + int(noise[j]))) <= scale * Fraction(1, 2**48)


def test_one_band_is_independent_noise_every_round() -> None:
    stream = MatrixStream(banded(1, 3, bits=0), 400, "50")
    rng = np.random.default_rng(1)
    for t in range(3):
        sums, key = rng.integers(-(2**40), 2**40, 400), bytes([t]) * 32
        assert np.array_equal(stream.release(sums, key), sums + rounded_gaussian("50", 400, key))
        assert stream.state()["sums"].shape == (0, 400)


@pytest.mark.parametrize("strategy", [banded(6, 24), blt(24, 6, 4), blt(24, 6, 4, bands=6), matrix.prefix(24)])
def test_noise_of_the_decoded_prefix_sums_has_the_stated_variance(strategy: Strategy) -> None:
    """Each round within five standard errors of the dense matrices' row, and the run within those of `error`."""
    d, sigma = 20_000, "900"
    noise = float(sigma) / 2**strategy.bits
    sums = np.random.default_rng(2).integers(-(10**6), 10**6, (24, d))
    stream = MatrixStream(strategy, d, sigma)
    seen = []
    reached = np.zeros(d)
    for t in range(24):
        reached += stream.release(sums[t], bytes([t, 7]) * 16) - sums[t]
        seen.append(reached.var())
    expected = noise**2 * prefix_noise(strategy) ** 2
    assert np.all(np.abs(np.array(seen) / expected - 1) < 5 * math.sqrt(2 / d))
    assert math.sqrt(np.mean(seen)) == pytest.approx(strategy.error(noise).rms, rel=5 * math.sqrt(1 / d))
    assert math.sqrt(seen[-1]) == pytest.approx(strategy.error(noise).largest, rel=5 * math.sqrt(1 / d))


def test_long_runs_stay_accurate() -> None:
    """Decoding feeds on its own results for 1,000 rounds: floats must not add to the noise."""
    strategy = banded(100, 1000)
    stream = MatrixStream(strategy, 3, "3000")
    noise, estimates = [], []
    for t in range(1000):
        key = t.to_bytes(32, "little")
        noise.append(rounded_gaussian("3000", 3, key))
        estimates.append(stream.release(np.zeros(3, np.int64), key))
    exact = linalg.solve_triangular(dense(strategy) * 2**strategy.bits, np.array(noise, float), lower=True)
    np.testing.assert_allclose(np.array(estimates), exact, rtol=0, atol=1e-9 * np.abs(exact).max())


@settings(deadline=None)  # the first example makes the noise table
@given(st.integers(0, 11), st.integers(0, 2**32 - 1))
def test_a_restored_stream_goes_on_as_the_first(stop: int, seed: int) -> None:
    strategy = banded(4, 12)
    sums = np.random.default_rng(seed).integers(-(2**33), 2**33, (12, 6))
    keys = [bytes([t, 1]) * 16 for t in range(12)]
    whole, first, second = (MatrixStream(strategy, 6, "25") for _ in range(3))
    expected = [whole.release(*both) for both in zip(sums, keys, strict=True)]
    for t in range(stop):
        first.release(sums[t], keys[t])
    second.restore(first.state())
    assert second.round == stop
    for t in range(stop, 12):
        assert np.array_equal(second.release(sums[t], keys[t]), expected[t])


def test_an_estimate_handed_out_is_not_the_streams_own() -> None:
    one, other = (MatrixStream(banded(3, 3), 2, "5") for _ in range(2))
    sums = np.array([3, 4])
    one.release(sums, bytes(32))[:] = 0
    sums_again = sums.copy()
    other.release(sums_again, bytes(32))
    sums_again[:] = 99
    assert np.array_equal(one.release(sums, bytes([1]) * 32), other.release(sums, bytes([1]) * 32))


# --- privacy ---


def gaussian_delta(eps: float, mu: float) -> float:
    """Balle and Wang 2018, theorem 8."""
    return float(stats.norm.cdf(-eps / mu + mu / 2) - math.exp(eps) * stats.norm.cdf(-eps / mu - mu / 2))


@pytest.mark.parametrize("bands", [0, 20])
@pytest.mark.parametrize("z", [4.0, 9.0])
def test_a_whole_runs_epsilon_is_that_of_one_gaussian_release(bands: int, z: float) -> None:
    """Mu from the dense matrix and the worst pattern, the closed form's root; no ledger, no accountant, no strategy."""
    strategy = blt(**RUN, bands=bands)
    event = MatrixMechanism(z, strategy.sensitivity(RUN["separation"], RUN["participations"]), rounds=200)
    mu = float(np.linalg.norm(dense(strategy)[:, ::20].sum(axis=1))) / z
    expected = optimize.brentq(lambda eps: gaussian_delta(eps, mu) - 1e-6, 0, 100, xtol=1e-12)
    assert epsilon(Ledger((event,)), 1e-6) == pytest.approx(expected, abs=1e-4, rel=1e-4)
    by_rdp = accountant.rdp_epsilon(accountant.ORDERS, accountant.ORDERS * mu**2 / 2, 1e-6)
    assert expected < by_rdp < 1.15 * expected


def test_noise_calibrated_for_a_run_is_what_its_stream_adds() -> None:
    """From epsilon to sigma in whole numbers, and back to epsilon from sigma and the longest encoded difference."""
    strategy = blt(**RUN, bands=20)
    sensitivity, l2 = strategy.sensitivity(RUN["separation"], RUN["participations"]), 135.58
    z = noise_for(2.0, 1e-6, lambda x: MatrixMechanism(x, sensitivity, rounds=200))
    sigma = strategy.noise_sigma(z, l2)
    assert float(sigma) == pytest.approx(z * l2 * 256, rel=1e-10)
    assert float(sigma) >= z * l2 * 256
    moved = l2 * 256 * float(np.linalg.norm(dense(strategy)[:, ::20].sum(axis=1)))
    assert gaussian_delta(2.0, moved / float(sigma)) == pytest.approx(1e-6, rel=2e-3)
    stream = MatrixStream(strategy, 1000, sigma)
    assert stream.release(np.zeros(1000, np.int64), bytes(32)).std() == pytest.approx(z * l2, rel=0.1)
    event = MatrixMechanism(z, sensitivity, 200, 1000, stream.sample_variation)
    assert 0 < event.variation < 1e-25
    assert epsilon(Ledger((event,)), 1e-6) <= 2.0
    assert epsilon(Ledger((replace(event, sensitivity=1.01 * sensitivity),)), 1e-6) > 2.0


# --- refusals ---


@pytest.mark.parametrize("numerators", [(), (0,), (3, 4), (3, 0), (3, 2, -1), (1, 1, 1, 1, 1, 1)])
def test_a_strategy_that_grows_or_outlasts_its_run_is_refused(numerators: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="never grow"):
        Strategy(numerators, 5)


def test_plans_out_of_range_are_refused() -> None:
    for bands in (0, 11):
        with pytest.raises(ConfigError, match="bands"):
            banded(bands, 10)
    for arguments in ((0, 1, 1), (10, 0, 1), (10, 1, 0), (10, 1, 1, 11), (10, 1, 1, 0, 0)):
        with pytest.raises(ConfigError, match="blt"):
            blt(*arguments)
    with pytest.raises(ConfigError, match="separation 0"):
        banded(2, 10).sensitivity(0, 1)


def test_a_stream_refuses_rounds_beyond_its_plan_and_sums_it_cannot_hold() -> None:
    stream = MatrixStream(Strategy((3, 2), 2), 2, "5")
    for wrong in (np.zeros(3, np.int64), np.zeros(2)):
        with pytest.raises(ConfigError, match="must be int64"):
            stream.release(wrong, bytes(32))  # type: ignore[arg-type]
    with pytest.raises(NumericsError, match=r"2\^62"):
        stream.release(np.array([0, -(2**62)]), bytes(32))
    for t in range(2):
        stream.release(np.zeros(2, np.int64), bytes([t]) * 32)
    with pytest.raises(ConfigError, match="planned for 2 rounds"):
        stream.release(np.zeros(2, np.int64), bytes(32))
    with pytest.raises(ConfigError, match="another run"):
        MatrixStream(Strategy((3, 2, 1), 3), 2, "5").restore(stream.state())
    with pytest.raises(ConfigError, match="sigma"):
        MatrixStream(Strategy((1,), 2), 2, "0.5")


def test_without_scipy_a_fit_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'hedgerow\[server\]'"):
        blt(20, 5, 2)
    assert banded(5, 20).bands == 5
