"""Server optimizers against Flower's own strategies, and what must hold of each by definition."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flower

from server.config import StrategyConfig
from server.strategy import STRATEGIES

SETTINGS = StrategyConfig(lr=0.3, momentum=0.8, beta1=0.85, beta2=0.97, tau=1e-2)


def play(name: str, deltas: list[np.ndarray], settings: StrategyConfig = SETTINGS) -> np.ndarray:
    """Weights after applying the deltas one by one to a fixed start."""
    rule = STRATEGIES[name]
    weights = np.linspace(-1, 1, deltas[0].size).astype(np.float32)
    state = rule.init(weights.size)
    for delta in deltas:
        state, weights = rule.apply(settings, state, weights, delta)
    return weights


@pytest.fixture
def deltas() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, 50) for _ in range(6)]


def test_fedavg_adds_the_scaled_mean_delta(deltas):
    start = np.linspace(-1, 1, 50).astype(np.float32)
    np.testing.assert_allclose(play("fedavg", deltas[:1]), start + 0.3 * deltas[0], rtol=1e-6)


def test_fedprox_moves_the_server_as_fedavg_does(deltas):
    np.testing.assert_array_equal(play("fedprox", deltas), play("fedavg", deltas))
    assert STRATEGIES["fedprox"].proximal
    assert not STRATEGIES["fedavg"].proximal


def test_momentum_accumulates_over_rounds():
    delta = np.ones(4)
    moved = play("fedavgm", [delta, delta]) - np.linspace(-1, 1, 4).astype(np.float32)
    np.testing.assert_allclose(moved, 0.3 * (1 + 1.8), rtol=1e-6)


def test_fedavgm_without_momentum_is_fedavg(deltas):
    plain = StrategyConfig(lr=0.3, momentum=0.0)
    np.testing.assert_array_equal(play("fedavgm", deltas, plain), play("fedavg", deltas, plain))


# Flower's FedAdam corrects its bias with exponent round + 1, Kingma & Ba with round: hence rounds from 0 here.
@pytest.mark.parametrize(
    ("name", "theirs", "first_round"),
    [
        ("fedadam", flower.FedAdam(eta=0.3, eta_l=0.1, beta_1=0.85, beta_2=0.97, tau=1e-2), 0),
        ("fedyogi", flower.FedYogi(eta=0.3, eta_l=0.1, beta_1=0.85, beta_2=0.97, tau=1e-2), 1),
        ("fedadagrad", flower.FedAdagrad(eta=0.3, eta_l=0.1, tau=1e-2), 1),
    ],
)
def test_adaptive_strategies_equal_flowers(name, theirs, first_round, deltas, monkeypatch):
    weights = np.linspace(-1, 1, 50)
    for number, delta in enumerate(deltas, first_round):
        theirs.current_arrays = {"w": weights}
        averaged = ArrayRecord({"w": Array(weights + delta)})
        monkeypatch.setattr(
            flower.FedAvg, "aggregate_train", lambda self, server_round, replies, mean=averaged: (mean, None)
        )
        record, _ = theirs.aggregate_train(number, [])
        weights = record["w"].numpy()
    np.testing.assert_allclose(play(name, deltas), weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", STRATEGIES)
def test_inputs_are_left_alone_and_weights_stay_float32(name):
    rule, delta, weights = STRATEGIES[name], np.full(3, 0.5), np.zeros(3, np.float32)
    state = rule.init(3)
    _, moved = rule.apply(SETTINGS, state, weights, delta)
    assert moved.dtype == np.float32
    np.testing.assert_array_equal(weights, 0)
    np.testing.assert_array_equal(delta, 0.5)
    assert all((moment == 0).all() for moment in state.moments)
