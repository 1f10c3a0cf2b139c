"""The whole chain under noise: about as accurate as a central Gaussian of the same privacy, also under real masks."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest

import edge_runtime as er
from edge_runtime.privacy import SampledGaussian, accountant, clip_by_norm, noise_for
from edge_runtime.secagg.lanes import Lanes
from edge_runtime.sums import NoiseShare, SumEncoder

CLIENTS, SIZE, CLIP = 100, 2**15, 1.0


@pytest.fixture(scope="module")
def multiplier() -> float:
    """The central Gaussian's noise multiplier: epsilon 5 at delta 1e-5 over 500 rounds, 1 client in 100 sampled."""
    return noise_for(5.0, 1e-5, lambda z: SampledGaussian(z, 0.01, 500))


@pytest.fixture(scope="module")
def updates() -> np.ndarray:
    """Longer than the clip, with a common part; nine tenths of the energy in a tenth of the values."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=SIZE) + rng.normal(size=(CLIENTS, SIZE))
    values[:, : SIZE // 10] *= 9
    return values / 100


def encoder_of(plan: er.secagg.BitPlan, clients: int, size: int, seed: int, fraction: float = 1.0) -> SumEncoder:
    share = NoiseShare("discrete_gaussian", f"{plan.noise_std / math.sqrt(clients):.9g}")
    return SumEncoder(size, CLIP, plan.scale, seed, fraction=fraction, noise=share)


def planned(multiplier: float, clients: int, size: int, bits: int, fraction: float = 1.0) -> er.secagg.BitPlan:
    def noise_std(scale: float) -> float:
        return multiplier * SumEncoder(size, CLIP, scale, 0, fraction=fraction).l2

    return er.secagg.plan_bits(clients=clients, size=size, clip=CLIP, bits=bits, fraction=fraction, noise_std=noise_std)


@pytest.mark.parametrize(("bits", "most"), [(10, 1.27), (12, 1.03), (14, 1.01), (16, 1.01)])
def test_the_error_is_a_central_gaussians(bits: int, most: float, multiplier: float, updates: np.ndarray) -> None:
    """Clip, rotate, round, 100 discrete Gaussian shares, sum modulo 2^bits, decode. One round: +-0.4 % by chance."""
    plan = planned(multiplier, CLIENTS, SIZE, bits)
    encoder, lanes = encoder_of(plan, CLIENTS, SIZE, seed=9), Lanes(bits, SIZE)
    rng = np.random.default_rng(2)
    total = np.zeros(SIZE, np.int64)
    for x in updates:
        total += lanes.wrap(encoder.encode(x, rng, rng.bytes(32)))[0]
    wrapped, _ = lanes.wrap(total)
    mean, _ = encoder.decode(wrapped, CLIENTS)
    expected = np.mean([clip_by_norm(x, CLIP) for x in updates], axis=0)
    ratio = float(np.sqrt(np.mean((mean - expected) ** 2))) / (multiplier * CLIP / CLIENTS)
    told = f"{bits} bits: rmse {ratio:.4f} of a central Gaussian's std (planned {plan.inflation:.4f})"
    print(told)
    assert 0.98 < ratio <= most, told
    assert ratio == pytest.approx(plan.inflation, abs=0.03), told


def test_the_accountant_sees_the_same_noise_over_sensitivity(multiplier: float) -> None:
    """Unsampled, so that both are exact: the shares' Renyi divergence is the central Gaussian's."""
    plan = planned(multiplier, CLIENTS, SIZE, 12)
    encoder = encoder_of(plan, CLIENTS, SIZE, seed=9)
    assert encoder.noise is not None
    shares = accountant.ddgauss_rdp(encoder.l2, float(encoder.noise.parameter), CLIENTS, encoder.count)
    np.testing.assert_allclose(shares, accountant.gaussian_rdp(multiplier), rtol=1e-6)


def test_a_quarter_of_the_coordinates_carries_the_same_noise(multiplier: float) -> None:
    """What travels is clipped to its own length, so that noise on the mean is no stronger than with all of them."""
    dense, thin = (planned(multiplier, CLIENTS, SIZE, 16, fraction) for fraction in (1.0, 0.25))
    rng = np.random.default_rng(3)
    errors = []
    for plan, fraction in ((dense, 1.0), (thin, 0.25)):
        encoder = encoder_of(plan, CLIENTS, SIZE, seed=4, fraction=fraction)
        total = np.zeros(encoder.count, np.int64)
        for _ in range(CLIENTS):
            total += encoder.encode(np.zeros(SIZE), rng, rng.bytes(32))
        errors.append(float(np.linalg.norm(encoder.decode(total, CLIENTS)[0])))
    assert thin.bits_per_parameter == dense.bits_per_parameter / 4
    assert errors[1] < 1.05 * errors[0]


def test_case_39_the_noise_of_a_sum_is_that_of_the_survivors_shares(multiplier: float) -> None:
    """Zero updates at 20, 10 and 0 % drops: the variance that is left, by chi-square."""
    plan = planned(multiplier, CLIENTS, SIZE, 16)
    encoder = encoder_of(plan, CLIENTS, SIZE, seed=9)
    rng = np.random.default_rng(5)
    total, variance = np.zeros(SIZE, np.int64), plan.noise_std**2 / CLIENTS
    for survivors in range(1, CLIENTS + 1):
        total += encoder.encode(np.zeros(SIZE), rng, rng.bytes(32))
        if survivors in (80, 90, 100):
            chi_square = float(total @ total) / (survivors * variance)
            assert abs(chi_square - SIZE) < 5 * math.sqrt(2 * SIZE)


@pytest.mark.parametrize("noisy", [False, True])
def test_real_masks_change_nothing(noisy: bool) -> None:
    """20 clients, two of which drop: what the server unmasks is the plain sum of the others, lane by lane."""
    clients, size, rng = 20, 700, np.random.default_rng(6)
    if noisy:
        plan = planned(2.0, clients, size, 0, fraction=0.5)
        encoder = encoder_of(plan, clients, size, seed=1, fraction=0.5)
    else:
        plan = er.secagg.plan_bits(clients=clients, size=size, clip=CLIP, fraction=0.5)
        encoder = SumEncoder(size, CLIP, plan.scale, 1, plan.value_max, fraction=0.5)
    assert encoder.count == plan.kept
    updates = {client: rng.normal(size=size) / 20 for client in range(clients)}
    inputs = {client: encoder.encode(x, rng, os.urandom(32)) for client, x in updates.items()}
    config = er.secagg.Config(
        bits=plan.bits, threshold=11, max_abs=plan.value_max or 2**31, wrap=plan.wrap, encoding=encoder.pack()
    )
    outcome = er.secagg.simulate_round(inputs, config, drops={3: "masked_input", 7: "share_keys"})
    assert outcome.aborted is None
    assert outcome.sum is not None
    survivors = sorted(outcome.survivors)
    assert survivors == [client for client in range(clients) if client not in (3, 7)]
    plain = np.sum([inputs[client] for client in survivors], axis=0)
    assert np.array_equal(outcome.sum, Lanes(plan.bits, plan.kept).wrap(plain)[0])
    mean, _ = SumEncoder.parse(config.encoding).decode(outcome.sum, len(survivors))
    assert np.array_equal(mean, encoder.decode(outcome.sum, len(survivors))[0])
