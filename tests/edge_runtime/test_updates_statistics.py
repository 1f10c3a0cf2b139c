"""Codecs over many draws and on Gaussian vectors, where theory says what must come out."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from edge_runtime.updates import TensorLayout, make_codec
from edge_runtime.updates.rotate import LLOYD_MAX, walsh_hadamard
from edge_runtime.updates.sparsify import random_positions

DRAWS = 500


def heavy_tailed() -> tuple[np.ndarray, TensorLayout]:
    """Values as updates have them: a few far above the rest, many exact zeros, tensors of several sizes."""
    layout = TensorLayout.of({"conv": (8, 5, 3), "bias": (8,), "scale": (), "out": (150,)})
    rng = np.random.default_rng(11)
    x = rng.standard_normal(layout.size) * np.exp(rng.standard_normal(layout.size))
    return np.where(rng.random(layout.size) < 0.2, 0, x).astype(np.float32), layout


def z_scores(names: str, options: dict[str, float], x: np.ndarray, layout: TensorLayout) -> np.ndarray:
    codec = make_codec(names, **options)
    draws = np.stack(
        [codec.decode_vector(codec.encode_vector(x, layout, seed=seed), layout) for seed in range(DRAWS)]
    ).astype(np.float64)
    deviation = draws - x
    error = np.hypot(deviation.std(axis=0, ddof=1) / math.sqrt(DRAWS), np.abs(deviation).max() / DRAWS)
    return deviation.mean(axis=0) / error


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ("uniform", {"bits": 1}),
        ("uniform", {"bits": 2}),
        ("uniform", {"bits": 8}),
        ("randk", {"fraction": 0.25}),
        ("randk,uniform", {"fraction": 0.5, "bits": 4}),
        ("hadamard", {"bits": 1, "unbiased": True}),
        ("hadamard", {"bits": 3, "unbiased": True}),
        ("randk,hadamard", {"fraction": 0.5, "bits": 2, "unbiased": True}),
    ],
)
def test_the_mean_over_500_draws_is_what_was_encoded(names: str, options: dict[str, float]) -> None:
    """A z-test for each of 279 values: z = (mean - x) / error, error^2 = s^2 / 500 + (D / 500)^2.

    D is the largest deviation of any value in any draw: what happens less than once in 500 draws need not have
    happened. If unbiased, one |z| above 5 has probability 8e-7 (Student's t, 499 degrees of freedom), any of them 2e-4;
    the mean of all z^2 is at most 1, with a standard deviation of sqrt(2 / 279) = .085 (more where values share a
    scale).
    """
    x, layout = heavy_tailed()
    assert make_codec(names, **options).unbiased
    z = z_scores(names, options, x, layout)
    assert np.abs(z).max() < 5
    assert np.mean(z**2) < 1.5


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ("float16", {}),
        ("int8", {}),
        ("topk", {}),
        ("topk,uniform", {}),
        ("randk,int8", {}),
        ("signsgd", {}),
        ("stc", {}),
        ("hadamard", {}),
    ],
)
def test_one_biased_stage_makes_a_codec_biased(names: str, options: dict[str, float]) -> None:
    assert not make_codec(names, **options).unbiased


def test_the_z_test_finds_the_bias_of_the_least_squared_error() -> None:
    """The test above can fail: at 1 bit the scale of least error shrinks the values by 2 / pi."""
    x, layout = heavy_tailed()
    z = z_scores("hadamard", {"bits": 1}, x, layout)
    assert np.abs(z).max() > 5
    assert np.mean(z**2) > 1.5


# ---- Gaussian vectors

SIZE = 1 << 20


@pytest.fixture(scope="module")
def gaussian() -> tuple[np.ndarray, TensorLayout]:
    return np.random.default_rng(5).standard_normal(SIZE).astype(np.float32), TensorLayout.of({"x": (SIZE,)})


def rate_and_error(gaussian: tuple[np.ndarray, TensorLayout], names: str, **options: float) -> tuple[float, float]:
    """Real bits per value, and the squared error over the squared values."""
    x, layout = gaussian
    codec = make_codec(names, **options)
    payload = codec.encode_vector(x, layout, seed=1)
    wide = x.astype(np.float64)
    return 8 * len(payload) / SIZE, float(((wide - codec.decode_vector(payload, layout)) ** 2).sum() / (wide**2).sum())


# Published (Max 1960, table I), and for 1 bit 1 - 2 / pi; unbiased: e / (1 - e) of the biased e, for 1 bit pi / 2 - 1.
@pytest.mark.parametrize(("bits", "least"), [(1, 1 - 2 / math.pi), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_rotated_levels_reach_lloyd_maxs_error(
    gaussian: tuple[np.ndarray, TensorLayout], bits: int, least: float
) -> None:
    for unbiased, expected in ((False, least), (True, least / (1 - least))):
        rate, error = rate_and_error(gaussian, "hadamard", bits=bits, unbiased=unbiased)
        assert error == pytest.approx(expected, rel=0.01)
        assert bits < rate < bits + 0.01


@pytest.mark.parametrize(("bits", "measured"), [(1, 23.3), (2, 1.98), (4, 0.0722), (8, 0.00025)])
def test_stochastic_uniform_has_the_variance_of_its_steps(
    gaussian: tuple[np.ndarray, TensorLayout], bits: int, measured: float
) -> None:
    """E (x^ - x)^2 = step^2 f (1 - f), where x lies f of a step above a level. `measured`: another draw's range."""
    rate, error = rate_and_error(gaussian, "uniform", bits=bits)
    x = gaussian[0].astype(np.float64)
    step = (x.max() - x.min()) / ((1 << bits) - 1)
    f = (x - x.min()) / step % 1
    assert error == pytest.approx((step**2 * f * (1 - f)).sum() / (x**2).sum(), rel=0.02)
    assert error == pytest.approx(measured, rel=0.07)
    assert rate == pytest.approx(bits, abs=0.001)


# The error of keeping the fraction p of largest values: 1 - 2 (t phi(t) + Q(t)), Q(t) = p / 2. Rates: log2 C(d, k) / d
# for ideal positions (.0808 and .2864 bits) and the values' own bits; Golomb-Rice codes and headers take the rest.
@pytest.mark.parametrize(
    ("names", "fraction", "error", "rate"),
    [
        ("topk,float16", 0.01, 0.915, 0.241),
        ("topk,int8", 0.01, 0.915, 0.161),
        ("stc", 0.01, 0.916, 0.091),
        ("topk,float16", 0.05, 0.720, 1.09),
        ("topk,int8", 0.05, 0.720, 0.686),
        ("stc", 0.05, 0.726, 0.336),
    ],
)
def test_sparse_codecs_have_the_error_of_the_tail_they_leave(
    gaussian: tuple[np.ndarray, TensorLayout], names: str, fraction: float, error: float, rate: float
) -> None:
    measured = rate_and_error(gaussian, names, fraction=fraction)
    assert measured == (pytest.approx(rate, rel=0.015), pytest.approx(error, rel=0.005))


@pytest.mark.parametrize(("name", "peak"), [("int8", 127), ("int4", 7)])
def test_integers_have_the_error_of_their_step(gaussian: tuple[np.ndarray, TensorLayout], name: str, peak: int) -> None:
    """step^2 / 12, the Gaussian being flat over one step of int8 and nearly so over one of int4."""
    _, error = rate_and_error(gaussian, name)
    assert error == pytest.approx((np.abs(gaussian[0]).max() / peak) ** 2 / 12, rel=0.05)


def test_randk_has_the_error_of_its_fraction(gaussian: tuple[np.ndarray, TensorLayout]) -> None:
    rate, error = rate_and_error(gaussian, "randk", fraction=0.1)
    assert error == pytest.approx(1 / 0.1 - 1, rel=0.02)
    assert rate == pytest.approx(3.2, abs=0.001), "positions cost nothing"


def test_signsgd_is_1_bit_lloyd_max_without_rotation(gaussian: tuple[np.ndarray, TensorLayout]) -> None:
    rate, error = rate_and_error(gaussian, "signsgd")
    assert error == pytest.approx(1 - 2 / math.pi, rel=0.01)
    assert rate == pytest.approx(1, abs=0.001)


# ---- what the codecs are built from


@pytest.mark.parametrize("bits", LLOYD_MAX)
def test_levels_are_the_means_of_their_cells(bits: int) -> None:
    """Lloyd's condition: between midpoints, each level is E[x | cell] = (phi(a) - phi(b)) / (Phi(b) - Phi(a))."""
    levels = LLOYD_MAX[bits]
    assert len(levels) == 2 ** (bits - 1)
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(levels)), math.inf]
    for level, (a, b) in zip(levels, pairwise(edges), strict=True):
        density = math.exp(-a * a / 2) - math.exp(-b * b / 2)
        mass = (math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2))) / 2
        assert level == pytest.approx(density / math.sqrt(2 * math.pi) / mass, abs=1e-7)


@pytest.mark.parametrize("order", range(9))
def test_the_fast_transform_is_sylvesters_matrix(order: int) -> None:
    matrix = np.ones((1, 1))
    for _ in range(order):
        matrix = np.kron([[1, 1], [1, -1]], matrix)
    x = np.random.default_rng(order).integers(-50, 50, (3, 1 << order)).astype(np.float32)  # sums of whole numbers
    np.testing.assert_array_equal(walsh_hadamard(x.copy()), x @ matrix)


def test_every_position_is_as_likely_as_the_others() -> None:
    """5,000 draws of 5 out of 20: each position 1,250 times with a standard deviation of 30.6; the bound is 5 of them.

    Any of 20 positions beyond it has probability 1e-5.
    """
    counts = np.zeros(20)
    for seed in range(5000):
        positions = random_positions(seed, 20, 5)
        assert (np.diff(positions) > 0).all()
        counts[positions] += 1
    assert np.abs(counts - 1250).max() < 5 * math.sqrt(5000 * 0.25 * 0.75)
