"""The growing ledger's epsilon is that of the accountant, whatever the events and their order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.privacy import DistributedSum, Ledger, MatrixMechanism, SampledGaussian, epsilon
from edge_runtime.privacy.running import RunningEpsilon, gaussian_epsilon

SUM = DistributedSum("skellam", "4e4", 6, 450.0, 35000.0, 6144, sampling_rate=0.4)
EVENTS = [
    SampledGaussian(3.0, 0.1, rounds=2, dimension=1000, sample_variation=1e-32),
    SampledGaussian(5.0, 1.0),
    SampledGaussian(4.0, 1.0, rounds=3),
    MatrixMechanism(9.0, 2.5, rounds=40),
]


@given(st.lists(st.sampled_from([*EVENTS, SUM]), min_size=1, max_size=5))
@settings(max_examples=12, deadline=None)
def test_as_the_accountant_says_of_the_whole_ledger(events):
    running = RunningEpsilon.of(Ledger(tuple(events)), 1e-5)
    assert running.epsilon == pytest.approx(epsilon(Ledger(tuple(events)), 1e-5), rel=1e-6)
    assert running.ledger.events == tuple(events)


def test_nothing_is_spent_by_no_events():
    assert RunningEpsilon(1e-5).epsilon == 0


def test_noise_tables_are_charged_to_delta():
    exact = SampledGaussian(1.0, 1.0)
    coarse = SampledGaussian(1.0, 1.0, dimension=1000, sample_variation=1e-11)
    hopeless = SampledGaussian(1.0, 1.0, dimension=1000, sample_variation=1e-7)
    found = [RunningEpsilon.of(Ledger((event,)), 1e-5).epsilon for event in (exact, coarse, hopeless)]
    assert found == [pytest.approx(epsilon(Ledger((event,)), 1e-5), rel=1e-6) for event in (exact, coarse, hopeless)]
    assert found[0] < found[1] < found[2] == float("inf")


def test_noise_that_protects_nobody_is_judged_within_ordinary_memory():
    for rate in (0.3, 1.0):
        assert RunningEpsilon.of(Ledger((SampledGaussian(0.002, rate),)), 1e-5).epsilon > 1000


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("mu", [0.02, 0.3, 1.0, 4.0])
def test_the_closed_form_is_what_loss_distributions_come_to(mu, delta):
    ledger = Ledger((SampledGaussian(1 / mu, 1.0),))
    assert gaussian_epsilon(mu, delta) == pytest.approx(epsilon(ledger, delta), rel=2e-4, abs=2e-4)


def test_the_closed_form_known_answer():
    assert gaussian_epsilon(4 / 4.0, 1e-5) == pytest.approx(4.3772, abs=5e-5)  # sixteen rounds of noise 4
