"""Distributed noise: what is in the sums of real rounds, with drop-outs, against what the books say of it."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from clients.secure_config import SecureConfig
from edge_runtime.config import from_flat
from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.privacy import DistributedSum, Ledger, epsilon
from edge_runtime.secagg import Lanes, Outcome, simulate_round
from edge_runtime.sums import NoiseShare, agreed_encoder
from server.config import ServerConfig
from server.distributed import Distributed
from server.rounds import RoundResult
from server.sum_plan import SumPlan

SIZE = 6000
BASE = {
    "server.cohort": 20,
    "server.rounds": 10,
    "server.min_updates": 2,
    "secure.enabled": True,
    "secure.dropout": 0.2,
    "secure.corrupt": 0.1,
    "secure.malicious_server": False,
    "privacy.noise_multiplier": 2.0,
    "privacy.clip": 1.0,
}


def config(**values: Any) -> ServerConfig:
    return from_flat(ServerConfig, BASE | {name.replace("__", "."): value for name, value in values.items()})


def encoded(plan: SumPlan, x: np.ndarray) -> np.ndarray:
    """What a client hands to the protocol."""
    values = plan.encoder.encode(x, np.random.default_rng(), os.urandom(32))
    return Lanes(plan.settings.bits, plan.encoder.count).wrapped(values)


def play(privacy: Distributed, drops: int, x: np.ndarray | None = None) -> tuple[SumPlan, Outcome]:
    """A round of the real protocol, in which so many clients are lost before their masked input."""
    plan = privacy.sum_plan(1, 20)
    inputs = {client: encoded(plan, np.zeros(SIZE) if x is None else x) for client in range(1, 21)}
    lost = dict.fromkeys(range(1, 1 + drops), "masked_input")
    return plan, simulate_round(inputs, plan.settings, drops=lost)


def settle(privacy: Distributed, outcome: Outcome) -> DistributedSum:
    clients = tuple(map(str, outcome.survivors))
    privacy.settle(1, RoundResult(1, np.zeros(SIZE), clients, (), None, 0, None))
    (event,) = privacy._budget.ledger.events
    assert isinstance(event, DistributedSum)
    return event


@pytest.mark.parametrize("noise", ["skellam", "discrete_gaussian"])
@pytest.mark.parametrize("drops", [0, 2, 4])
def test_the_noise_in_the_sum_is_that_of_the_survivors_and_booked_is_no_more(noise, drops):
    privacy = Distributed(config(privacy__noise=noise), SIZE)
    plan, outcome = play(privacy, drops)
    assert outcome.sum is not None
    assert len(outcome.survivors) == 20 - drops
    event = settle(privacy, outcome)
    # Zero updates round to zeros, so what is left is noise, which a rotation leaves as it is. Two of 20 may collude.
    assert event.shares == 20 - drops - 2
    variance = event.variance * (20 - drops) / event.shares
    measured = np.square(outcome.sum.astype(float)).sum() / variance
    assert abs(measured - SIZE) < 5.5 * math.sqrt(2 * outcome.sum.size) + outcome.sum.size - SIZE
    mean, _ = plan.encoder.decode(outcome.sum, plan.parts)
    std = math.sqrt(variance) / plan.encoder.scale / 20
    assert abs(np.square(mean / std).sum() - SIZE) < 5.5 * math.sqrt(2 * SIZE)
    # The wanted noise is there even in the worst case, less the colluders.
    assert event.variance >= (2.0 * event.l2) ** 2 * (18 - drops) / 14 * (1 - 1e-9)
    of_all = DistributedSum(event.mechanism, event.noise, 20 - drops, event.l2, event.l1, event.dimension)
    assert privacy.epsilon >= epsilon(Ledger((of_all,)), 1e-5)
    assert privacy.epsilon == pytest.approx(epsilon(Ledger((event,)), 1e-5), rel=1e-6)


def test_below_the_fewest_survivors_there_is_no_sum_and_nothing_is_spent():
    privacy = Distributed(config(), SIZE)
    plan, outcome = play(privacy, drops=5)
    assert plan.settings.min_survivors == 16
    assert outcome.sum is None
    assert outcome.aborted
    privacy.settle(1, RoundResult(1, None, (), (), None, 0, None, unchanged=outcome.aborted))
    assert privacy.epsilon == 0


def test_a_sum_that_was_made_and_not_used_is_spent():
    privacy = Distributed(config(), SIZE)
    _, outcome = play(privacy, drops=4)
    privacy.settle(1, RoundResult(1, None, tuple(map(str, outcome.survivors)), (), None, 0, None, unchanged="too few"))
    assert privacy.epsilon > 0


def test_a_sum_that_failed_while_it_was_unmasked_is_spent():
    """One client that gives wrong shares, or none, keeps the sum from an honest server, not from one it works with."""
    privacy = Distributed(config(), SIZE)
    plan = privacy.sum_plan(1, 20)
    inputs = {client: encoded(plan, np.zeros(SIZE)) for client in range(1, 21)}
    lost = dict.fromkeys(range(1, 20), "unmask")
    outcome = simulate_round(inputs, plan.settings, drops=lost)
    assert outcome.sum is None
    assert outcome.survivors == frozenset()
    opened = tuple(map(str, outcome.opened))
    privacy.settle(1, RoundResult(1, None, (), (), None, 0, None, unchanged=outcome.aborted, opened=opened))
    made = Distributed(config(), SIZE)
    made.sum_plan(1, 20)
    made.settle(1, RoundResult(1, None, tuple(map(str, range(20))), (), None, 0, None))
    assert privacy.epsilon == made.epsilon > 0


def test_a_node_that_asks_for_noise_may_say_how_much():
    """The kind alone would let a server name noise of next to nothing."""
    privacy = Distributed(config(), SIZE)
    plan = privacy.sum_plan(1, 20)
    count = plan.encoder.count
    agreed = plan.settings.for_round(run=1, round_number=1, clients=20, count=count)
    told = epsilon(Ledger((privacy._event(2.0, plan.encoder, 20),)), 1e-5)  # of 16 survivors, two of them corrupt
    for share in (1.01, 0.99):
        asked = SecureConfig.from_node_config({"secure-max-epsilon": told * share, "secure-corrupt": 2})
        if share > 1:
            asked.check_noise(plan.encoder, agreed)
        else:
            with pytest.raises(PeerError, match="may tell an epsilon"):
                asked.check_noise(plan.encoder, agreed)
    for kind, least in (("skellam", "0.01"), ("discrete_gaussian", "0.05")):
        for scale in (plan.encoder.scale, 1e-9):
            faint = replace(plan.encoder, scale=scale, noise=NoiseShare(kind, least))
            SecureConfig.from_node_config({"secure-noise": kind}).check_noise(faint, agreed)
            with pytest.raises(PeerError, match="may tell an epsilon"):
                SecureConfig.from_node_config({"secure-max-epsilon": 20.0}).check_noise(faint, agreed)


def test_noise_and_weights_together_are_refused_by_clients():
    plan = Distributed(config(), SIZE).sum_plan(1, 20)
    weighted = replace(plan.settings, max_weight=1000)
    for settings in (plan.settings, weighted):
        agreed = settings.for_round(run=1, round_number=1, clients=20, count=plan.encoder.count)
        if settings is weighted:
            with pytest.raises(PeerError, match="weights"):
                agreed_encoder(agreed, SIZE)
        else:
            assert agreed_encoder(agreed, SIZE) == plan.encoder


def test_the_mean_is_right_up_to_the_noise_and_over_the_expected_cohort():
    privacy = Distributed(config(), SIZE)
    rng = np.random.default_rng(3)
    x = rng.normal(size=SIZE)
    x /= np.linalg.norm(x) * 1.001
    plan, outcome = play(privacy, 2, x)
    assert outcome.sum is not None
    mean, _ = plan.encoder.decode(outcome.sum, plan.parts)
    along = float(mean @ x) / float(x @ x)
    event = settle(privacy, outcome)
    std = math.sqrt(event.variance * 18 / 16) / plan.encoder.scale / 20
    assert along == pytest.approx(18 / 20, abs=6 * std)


def test_a_budget_is_kept_with_the_fewest_survivors_in_every_round():
    settings = config(privacy__noise_multiplier=0.0, privacy__epsilon=4.0, privacy__population=100)
    privacy = Distributed(settings, SIZE)
    for number in range(1, 11):
        assert privacy.why_stop() is None
        privacy.sum_plan(number, 20)
        fewest = tuple(map(str, range(16)))
        privacy.settle(number, RoundResult(number, None, fewest, (), None, 0, None))
    assert 3.99 < privacy.epsilon <= 4.0
    assert "the privacy budget is spent" in str(privacy.why_stop())
    final = privacy.final()
    assert final["epsilon_without_sampling"] > final["epsilon"]
    assert final["participations"] == 10


def test_more_survivors_spend_less():
    spent = {}
    for survivors in (16, 20):
        privacy = Distributed(config(privacy__population=100), SIZE)
        privacy.sum_plan(1, 20)
        privacy.settle(1, RoundResult(1, None, tuple(map(str, range(survivors))), (), None, 0, None))
        spent[survivors] = privacy.epsilon
    assert spent[20] < spent[16]


@pytest.mark.parametrize("cohort", [9, 20, 33])
def test_samples_of_any_size_carry_the_same_noise(cohort):
    """A Poisson sample varies; the noise that the fewest survivors leave of it does not."""
    privacy = Distributed(config(privacy__population=100), SIZE)
    plan = privacy.sum_plan(1, cohort)
    shares = plan.settings.min_survivors - math.floor(cohort / 10)
    assert shares * float(plan.encoder.noise.parameter) == pytest.approx((2.0 * plan.encoder.l2) ** 2, rel=1e-6)
    assert plan.parts == 20


def test_votes_of_all_clients_alike_do_not_wrap():
    settings = config(privacy__clip=0.0, privacy__population=200, privacy__noise_multiplier=0.5)
    privacy = Distributed(settings, SIZE)
    plan, outcome = play(privacy, 0, np.zeros(SIZE))  # all within the clip
    assert outcome.sum is not None
    _, votes = plan.encoder.decode(outcome.sum, plan.parts)
    share = privacy.sum_plan(1, 20).encoder
    std = math.sqrt(20 * float(share.noise.parameter)) / share.vote
    assert votes == pytest.approx(20, abs=5 * std)
    assert std < 20 / 3
    privacy.settle(1, RoundResult(1, None, tuple(map(str, range(20))), (), None, 0, None, votes=votes))
    assert privacy.sum_plan(2, 20).encoder.clip < 1.0
    assert plan.encoder.l2 == pytest.approx(privacy.sum_plan(2, 20).encoder.l2, rel=1e-9)


def test_what_cannot_be_served_is_named_before_the_run():
    with pytest.raises(ConfigError, match=r"secure\.corrupt = 0\.9"):
        Distributed(config(secure__corrupt=0.9), SIZE)
    with pytest.raises(ConfigError, match="bits"):
        Distributed(config(secure__bits=8), SIZE)
