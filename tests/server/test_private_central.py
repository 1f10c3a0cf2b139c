"""Central privacy: what one client can do to the sum is bounded for every input, and the noise on it is what is booked.

The votes and the noise of DP-FTRL, whose sums are made in the same way, are tested here as well.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_runtime.config import from_flat
from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.privacy import Ledger, MatrixMechanism, SampledGaussian, epsilon
from server.aggregate import add_discounted
from server.buffer_config import BufferConfig
from server.central import Central
from server.clipped_sum import ClippedSum, Grid
from server.config import ServerConfig
from server.ftrl import Ftrl
from server.rounds import RoundResult

SIZE = 20_000
BASE = {"server.cohort": 5, "server.rounds": 8, "server.min_updates": 1, "privacy.noise_multiplier": 1.5}


def config(**values: Any) -> ServerConfig:
    return from_flat(ServerConfig, BASE | {name.replace("__", "."): value for name, value in values.items()})


def is_variance(samples: np.ndarray, std: float) -> bool:
    """Whether sum (x / std)^2 is where a chi-square variable of so many degrees is, but for one time in 10^6."""
    return abs(np.square(samples / std).sum() - samples.size) < 5 * math.sqrt(2 * samples.size)


def closed(number: int, delta: np.ndarray | None, *clients: str) -> RoundResult:
    return RoundResult(number, delta, clients, (), None, 0, None)


def play(privacy: Central | Ftrl, number: int, updates: list[np.ndarray]) -> np.ndarray:
    """One round, as a run plays it."""
    assert privacy.why_stop() is None
    privacy.task(config().task(number))
    total = privacy.aggregate()
    for update in updates:
        total.add(update.astype(np.float32), 1)
    mean = total.mean()
    privacy.settle(number, closed(number, mean, *map(str, range(len(updates)))))
    return mean


HOSTILE = st.one_of(
    arrays.arrays(np.float32, 300, elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    arrays.arrays(np.float32, 300, elements=st.sampled_from([0.0, 0.5, -0.5, 3e38, -3e38, 1e-45])),
    st.sampled_from([1.0, 0.057735, 1e-3]).map(
        lambda value: np.full(300, value, np.float32)
    ),  # 1 / sqrt(300): the clip
)


@given(HOSTILE, st.sampled_from([0.03, 1.0, 1e6]), st.integers(0, 300))
@settings(max_examples=150, deadline=None)
def test_no_update_moves_the_sum_further_than_is_booked(update, clip, vote):
    grid = Grid(300, vote)
    total = ClippedSum(grid, clip, 1, lambda whole: whole.astype(np.float64))
    for one in (np.ones(300, np.float32), update):
        before = total._sum.copy()
        total.add(one, 2**28)
        moved = (total._sum - before).astype(object)
        assert int(moved @ moved) <= grid.l2**2


@given(HOSTILE, st.sampled_from([0.03, 1.0, 1e6]), st.integers(0, 300), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_a_stale_update_moves_the_sum_no_further_and_a_clipped_one_by_its_discount(update, clip, vote, staleness):
    grid, discount = Grid(300, vote), BufferConfig().discount(staleness)
    total = ClippedSum(grid, clip, 1, lambda whole: whole.astype(np.float64))
    for one in (np.ones(300, np.float32), update):
        before = total._sum.copy()
        add_discounted(total, one, 2**28, discount)
        moved = (total._sum - before).astype(object)
        assert int(moved @ moved) <= grid.l2**2
        values = moved[:300].astype(float)
        assert np.linalg.norm(values) <= grid.length * discount + math.sqrt(300)  # what rounding adds


@given(st.sampled_from([1, 300, 10**6, 10**9]), st.floats(0.01, 100))
def test_noise_is_never_below_its_multiplier(size, noise_multiplier):
    for grid in (Grid(size), Grid(size).with_vote(noise_multiplier, 40)):
        assert float(grid.sigma(noise_multiplier)) >= noise_multiplier * grid.l2
        assert float(grid.sigma(noise_multiplier)) <= max(1.0, noise_multiplier * grid.l2 * (1 + 1e-10))
        assert grid.l2 <= 1.035 * max(grid.length, 1024)  # what rounding and the vote cost


def test_the_mean_of_silent_clients_is_the_noise_that_is_booked():
    privacy = Central(config(privacy__clip=2.0, privacy__population=50), SIZE)
    noise = play(privacy, 1, [np.zeros(SIZE)] * 3)
    sensitivity = 2.0 * Grid(SIZE).l2 / Grid(SIZE).length
    assert sensitivity == pytest.approx(2.0, rel=0.003)
    assert is_variance(noise, 1.5 * sensitivity / 5)  # over the cohort that is expected, not over who came
    again = play(privacy, 2, [np.zeros(SIZE)] * 3)
    assert abs(np.corrcoef(noise, again)[0, 1]) < 5 / math.sqrt(SIZE)


def test_the_mean_is_that_of_the_clipped_updates():
    rng = np.random.default_rng(1)
    updates = [rng.normal(size=SIZE) * 0.001, rng.normal(size=SIZE) * 5]
    norms = [np.linalg.norm(update) for update in updates]
    clipped = [update * min(1, 1 / norm) for update, norm in zip(updates, norms, strict=True)]
    privacy = Central(config(privacy__clip=1.0, privacy__noise_multiplier=0.01), SIZE)
    found = play(privacy, 1, updates)
    noise = 0.01 * math.sqrt(SIZE) / 5
    assert np.linalg.norm(found - sum(clipped) / 5) < 1.2 * noise + 0.05  # and of the rounding


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_costs_its_client_only(bad):
    privacy = Central(config(privacy__clip=1.0), 10)
    total = privacy.aggregate()
    total.add(np.ones(10, np.float32), 1)
    with pytest.raises(PeerError, match="NaN or infinite"):
        total.add(np.array([1.0] * 9 + [bad], np.float32), 1)
    assert total.count == 1
    assert np.isfinite(total.mean()).all()


def test_weights_count_for_nothing_and_no_loss_is_told():
    privacy = Central(config(privacy__clip=1.0), 10)
    total = privacy.aggregate()
    for weight in (1, 2**28, -5):
        total.add(np.ones(10, np.float32), weight)
    assert total.count == 3
    assert total.total_weight == 0


def test_the_books_hold_every_round_that_told_something_and_no_other():
    privacy = Central(config(privacy__clip=1.0, privacy__population=50), 10)
    play(privacy, 1, [np.ones(10)])
    privacy.aggregate()
    privacy.settle(2, closed(2, None, "a", "b"))  # too few came: the mean was not asked for
    play(privacy, 3, [np.ones(10)])
    told = SampledGaussian(1.5, 0.1)
    assert privacy.epsilon == pytest.approx(epsilon(Ledger((told, told)), 1e-5), rel=1e-6)
    final = privacy.final()
    known = epsilon(Ledger((SampledGaussian(1.5, 1.0, 2),)), 1e-5)  # client 0 was in both
    assert final["epsilon_without_sampling"] == pytest.approx(known, rel=1e-6)
    assert final["participations"] == 2
    assert final["epsilon"] < final["epsilon_without_sampling"]


def test_the_noise_that_a_budget_takes_spends_it_in_the_planned_rounds():
    settings = config(privacy__clip=1.0, privacy__population=50, privacy__noise_multiplier=0.0, privacy__epsilon=3.0)
    privacy = Central(settings, 10)
    for number in range(1, 9):
        play(privacy, number, [])
    assert 2.99 < privacy.epsilon <= 3.0
    assert "the privacy budget is spent" in str(privacy.why_stop())


@pytest.mark.parametrize("mechanism", [Central, Ftrl])
def test_an_adaptive_clip_finds_the_quantile_of_the_norms(mechanism):
    """Norms of 0.1 to 0.5 from 100 clients, under noise: from 1, the clip comes down to about their median."""
    values = {"server__cohort": 100, "server__rounds": 60, "privacy__clip_rate": 0.3, "privacy__noise_multiplier": 0.5}
    privacy = mechanism(config(privacy__clip=0.0, **values), 200)
    rng = np.random.default_rng(2)
    units = rng.normal(size=(100, 200))
    units /= np.linalg.norm(units, axis=1)[:, np.newaxis]
    updates = list(units * np.linspace(0.1, 0.5, 100)[:, np.newaxis])
    clips = []
    for number in range(1, 61):
        play(privacy, number, updates)
        clips.append(privacy.clip)
    assert clips[0] == 1.0
    assert np.mean(clips[-20:]) == pytest.approx(0.3, abs=0.05)


def test_votes_cost_what_the_books_say():
    """Noise on the sum of votes: 1 / 10 of a large cohort, more in a small one, where it costs 3 % and no more."""
    for clients in (4, 40, 400, 1000):
        plain, grid = Grid(SIZE), Grid(SIZE).with_vote(1.5, clients)
        votes_std = float(grid.sigma(1.5)) / grid.vote
        assert votes_std == pytest.approx(max(clients / 10, 1.5 * math.sqrt(17)), rel=0.05)
        assert grid.l2 <= 1.032 * plain.l2


class TestFtrl:
    def test_the_noise_in_the_sum_of_all_rounds_is_what_the_strategy_says(self):
        privacy = Ftrl(config(privacy__clip=1.0, privacy__separation=4), SIZE)
        independent = Ftrl(config(privacy__clip=1.0, privacy__separation=1), SIZE)
        scale = Grid(SIZE).l2 / Grid(SIZE).length / 5
        for one, gain in ((privacy, 1.3), (independent, 1.0)):
            total = sum(play(one, number, []) for number in range(1, 9))
            per_clip = one._strategy.error(one._noise_multiplier).largest
            assert is_variance(total, per_clip * scale)
            # Against fresh noise every round for a client that may be in all of them.
            assert per_clip / one._sensitivity <= 1.5 * math.sqrt(8) / gain

    def test_a_round_that_tells_nothing_has_its_place_in_the_noise(self):
        privacy = Ftrl(config(privacy__clip=1.0, privacy__separation=4), SIZE)
        first = play(privacy, 1, [])
        privacy.aggregate()
        privacy.settle(2, closed(2, None))
        third = play(privacy, 3, [])  # has passed round 2: what it takes back of round 1 is c_2's share
        coefficient = np.corrcoef(first, third)[0, 1]
        c = np.array(privacy._strategy.numerators) / privacy._strategy.numerators[0]
        inverse = [1.0, -c[1], c[1] ** 2 - c[2]]
        expected = inverse[2] / np.linalg.norm(inverse)
        assert coefficient == pytest.approx(expected, abs=5 / math.sqrt(SIZE))

    def test_the_whole_run_is_spent_when_it_begins(self, tmp_path):
        from server.run_store import RunStore

        settings = config(
            privacy__clip=1.0, privacy__population=20, privacy__noise_multiplier=0.0, privacy__epsilon=3.0
        )
        privacy = Ftrl(settings, 10)
        assert privacy.epsilon == 0
        privacy.open(RunStore(tmp_path / "run"))
        assert 2.99 < privacy.epsilon <= 3.0
        (event,) = privacy._budget.ledger.events
        assert isinstance(event, MatrixMechanism)
        assert event.rounds == 8
        play(privacy, 1, [])
        assert privacy.epsilon <= 3.0

    def test_nobody_is_asked_again_before_the_separation_is_over(self):
        privacy = Ftrl(config(privacy__clip=1.0, privacy__population=20), 10)
        assert privacy.final()["separation"] == 4
        last: dict[int, int] = {}
        for number in range(1, 9):
            cohort = privacy.cohort(range(18), number)
            rested = sum(number - last.get(node, -99) >= 4 for node in range(18))
            assert all(number - last.get(node, -99) >= 4 for node in cohort)
            assert len(cohort) == min(5, rested), "all who may be asked are, from the first round on"
            total = privacy.task(config().task(number)) and privacy.aggregate()
            privacy.settle(number, closed(number, total.mean(), *map(str, cohort)))
            last |= dict.fromkeys(cohort, number)
        assert len(last) == 18

    @pytest.mark.parametrize("separation", [4, 5, 6])
    def test_cohorts_stay_full_unless_that_is_said_before_the_run(self, separation):
        settings = config(privacy__clip=1e6, privacy__population=20, privacy__separation=separation)
        privacy, sizes = Ftrl(settings, 1), []
        for number in range(1, 9):
            cohort = privacy.cohort(range(20), number)
            sizes.append(len(cohort))
            total = privacy.task(config().task(number)) and privacy.aggregate()
            privacy.settle(number, closed(number, total.mean(), *map(str, cohort)))
        warned = any(f"privacy.separation = {separation}" in line for line in privacy.warnings())
        assert warned == (min(sizes) < settings.server.cohort)

    def test_more_than_the_budget_is_refused_before_the_run(self):
        with pytest.raises(ConfigError, match="one release"):
            Ftrl(config(privacy__clip=1.0, privacy__epsilon=0.1), 10)
