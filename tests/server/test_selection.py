"""Who is asked: what each policy prefers, the floor that nobody falls through, and how a restored one goes on."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.config import from_flat
from edge_runtime.errors import ConfigError
from server.checkpoint import pack, unpack
from server.config import ServerConfig
from server.rounds import DECLINED, DROPPED, LATE, TAKEN, Outcome, choose_cohort
from server.selection import Availability, Floor, Uniform, Utility, make_selection
from server.selection_config import POLICIES, SelectionConfig

every_policy = pytest.mark.parametrize("policy", POLICIES)


def taken(node: int, loss: float = 1.0, examples: int = 100, seconds: float = 10.0, **more: Any) -> Outcome:
    return Outcome(node, TAKEN, examples, loss, seconds, **more)


def outcomes(rng: np.random.Generator, nodes: Sequence[int]) -> list[Outcome]:
    """Of each node whatever chance makes of it."""
    made = []
    for node in nodes:
        end = rng.choice([TAKEN, TAKEN, LATE, DROPPED, DECLINED])
        seconds = float(rng.exponential(20)) if end in (TAKEN, LATE) else None
        made.append(Outcome(node, str(end), int(rng.integers(1, 500)), float(rng.exponential()), seconds))
    return made


# -- all policies ---------------------------------------------------------------------------------------------------


@every_policy
@given(
    nodes=st.sets(st.integers(0, 2**64 - 1), max_size=30),
    size=st.integers(1, 12),
    seed=st.integers(0, 2**31 - 1),
    fairness=st.sampled_from([0.0, 0.3]),
)
@settings(max_examples=30)
def test_a_cohort_is_of_the_size_asked_for_and_of_the_nodes_given(
    policy: str, nodes: set[int], size: int, seed: int, fairness: float
) -> None:
    selection = make_selection(SelectionConfig(policy=policy, fairness=fairness), seed)
    rng = np.random.default_rng(seed)
    for number in range(1, 6):
        here = [node for node in nodes if rng.random() < 0.7]
        chosen = selection.choose(here, size, number)
        assert chosen == sorted(set(chosen))
        assert set(chosen) <= set(here)
        assert len(chosen) == min(size, len(here))
        selection.learn(number, outcomes(rng, chosen))


@every_policy
@pytest.mark.parametrize("fairness", [0.0, 0.25])
def test_a_restored_policy_goes_on_exactly_as_the_original(policy: str, fairness: float) -> None:
    settings = SelectionConfig(policy=policy, fairness=fairness, pace_window=2)
    selection, restored = make_selection(settings, 7), make_selection(settings, 7)
    rng = np.random.default_rng(1)
    nodes = [*range(30), 2**64 - 1]

    def play(one: Any, number: int, seed: int) -> list[list[int]]:
        fresh = np.random.default_rng(seed)
        here = [node for node in nodes if fresh.random() < 0.8]
        chosen = [one.choose(here, 6, number), one.choose(here, 2, number)]
        one.learn(number, outcomes(fresh, chosen[0]))
        return chosen

    for number in range(1, 9):
        play(selection, number, int(rng.integers(2**31)))
    restored.restore(unpack(pack(selection.state())))
    for number in range(9, 15):
        seed = int(rng.integers(2**31))
        assert play(restored, number, seed) == play(selection, number, seed)
    assert pack(restored.state()) == pack(selection.state())


@every_policy
def test_the_same_seed_chooses_the_same_and_another_one_others(policy: str) -> None:
    def cohorts(seed: int) -> list[list[int]]:
        selection, rng = make_selection(SelectionConfig(policy=policy), seed), np.random.default_rng(3)
        chosen = []
        for number in range(1, 8):
            chosen.append(selection.choose(range(40), 5, number))
            selection.learn(number, outcomes(rng, chosen[-1]))
        return chosen

    assert cohorts(1) == cohorts(1)
    assert cohorts(1) != cohorts(2)


@every_policy
def test_a_second_draw_in_a_round_is_another_draw(policy: str) -> None:
    selection = make_selection(SelectionConfig(policy=policy), 5)
    assert selection.choose(range(100), 10, 1) != selection.choose(range(100), 10, 1)


# -- the floor ------------------------------------------------------------------------------------------------------


class Favourites:
    """A policy that would always take the same ones."""

    def choose(self, nodes: Sequence[int], size: int, number: int) -> list[int]:
        return sorted(nodes)[:size]

    def learn(self, number: int, outcomes: Any) -> None: ...

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None: ...


@given(
    count=st.integers(2, 25),
    size=st.integers(1, 10),
    share=st.sampled_from([0.05, 0.2, 0.5, 0.99]),
    seed=st.integers(0, 1000),
    availability=st.sampled_from([0.3, 0.8, 1.0]),
)
@settings(max_examples=60)
def test_nobody_who_can_be_asked_waits_longer_than_the_bound(
    count: int, size: int, share: float, seed: int, availability: float
) -> None:
    """Node 99 is always there, the policy never takes it, and the others come and go, or come new."""
    floor, rng = Floor(Favourites(), share, seed), np.random.default_rng(seed)
    waited = longest = 0
    for number in range(1, 120):
        others = [node for node in range(count - 1) if rng.random() < availability and node <= number]
        chosen = floor.choose([*others, 99], size, number)
        waited = 0 if 99 in chosen else waited + 1
        longest = max(longest, waited)
    by_waiting = 1 if size == 1 or availability < 1 else math.ceil(share * min(size, 2))
    assert longest <= (count - 1) // by_waiting


def test_the_bound_is_reached_and_without_a_floor_there_is_none() -> None:
    """10 devices, cohorts of 4, half of which go by waiting: every device within 5 draws."""
    floor = Floor(Favourites(), 0.5, seed=1)
    cohorts = [floor.choose(range(10), 4, number) for number in range(1, 41)]
    for first in range(len(cohorts) - 5):
        assert set().union(*cohorts[first : first + 5]) == set(range(10))
    assert not any(9 in Favourites().choose(range(10), 4, number) for number in range(1, 41))


def test_the_floor_takes_its_share_and_leaves_the_policy_the_rest() -> None:
    floor = Floor(Favourites(), 0.2, seed=1)
    counts = Counter(node for number in range(1, 101) for node in floor.choose(range(50), 10, number))
    # 8 of 10 places are the policy's.
    assert all(counts[node] >= 90 for node in range(7))
    assert min(counts[node] for node in range(50)) >= 100 * 2 // 50


# -- uniform --------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**31 - 1), number=st.integers(1, 1000))
def test_uniform_is_the_draw_by_seed_and_round(seed: int, number: int) -> None:
    assert Uniform(seed).choose(range(50), 10, number) == choose_cohort(range(50), 10, seed, number)


# -- availability ---------------------------------------------------------------------------------------------------


def shares(selection: Any, rounds: int, here: Any, end: Any, count: int = 20, size: int = 5) -> Counter[int]:
    counts: Counter[int] = Counter()
    for number in range(1, rounds + 1):
        chosen = selection.choose([node for node in range(count) if here(node, number)], size, number)
        counts.update(chosen)
        selection.learn(number, [end(node) for node in chosen])
    return counts


def test_devices_that_drop_out_are_asked_less_often() -> None:
    """Nodes from 10 on drop out every time."""
    counts = shares(
        Availability(3), 200, lambda *_: True, lambda node: taken(node) if node < 10 else Outcome(node, DROPPED)
    )
    good, bad = (sum(counts[node] for node in part) for part in (range(10), range(10, 20)))
    assert good > 4 * bad


def test_devices_that_come_back_after_long_are_asked_less_often_than_those_that_were_there() -> None:
    selection = Availability(3)
    counts: Counter[int] = Counter()
    for number in range(1, 401):
        here = [node for node in range(20) if node < 10 or number % 20 == 0]
        chosen = selection.choose(here, 5, number)
        if number % 20 == 0:
            counts.update(chosen)
    steady, rare = (sum(counts[node] for node in part) for part in (range(10), range(10, 20)))
    assert steady > 2 * rare > 0


def test_to_be_late_or_to_decline_is_not_to_drop_out() -> None:
    one, other = Availability(1), Availability(1)
    for number in range(1, 20):
        one.choose(range(4), 4, number)
        other.choose(range(4), 4, number)
        other.learn(number, [Outcome(0, LATE, seconds=60.0), Outcome(1, DECLINED)])
    assert one.choose(range(4), 2, 20) == other.choose(range(4), 2, 20)


# -- utility --------------------------------------------------------------------------------------------------------

NO_EXPLORATION = SelectionConfig(policy="utility", exploration=0.0, exploration_min=0.0)


def measured(settings: SelectionConfig, *known: Outcome, number: int = 1) -> Utility:
    selection = Utility(settings, 4)
    selection.learn(number, known)
    return selection


def test_scores_are_oorts() -> None:
    """By hand, for three devices measured in round 2, seen from round 8: the pace is the middle one's 20 s."""
    known = [taken(1, 2.0, 100, 10.0), taken(2, 1.0, 100, 20.0), taken(3, 1.5, 100, 80.0)]
    selection = measured(SelectionConfig(policy="utility", pace=50.0), *known, number=2)
    assert selection.preferred_s == 20.0
    clipped = np.percentile([200.0, 100.0, 150.0], 95)
    bonus = math.sqrt(0.1 * math.log(8) / 2)
    good = 2 / 3  # came to the end of its one round
    expected = [(1 + bonus) * good, (100 / clipped + bonus) * good, (150 / clipped + bonus) * (20 / 80) ** 2 * good]
    np.testing.assert_allclose(selection.scores([1, 2, 3], 8), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (taken(1, loss=3.0), taken(2, loss=1.0)),
        (taken(1, examples=300), taken(2, examples=100)),
        (taken(1, seconds=10.0), taken(2, seconds=100.0)),
        (taken(1, headroom=2.0), taken(2, headroom=0.4)),
    ],
)
def test_what_counts(better: Outcome, worse: Outcome) -> None:
    selection = measured(NO_EXPLORATION, better, worse)
    first, second = selection.scores([1, 2], 5)
    assert first > 1.5 * second
    assert selection.choose([1, 2], 1, 5) == [1]


def test_who_drops_out_or_was_measured_just_now_counts_for_less() -> None:
    selection = measured(NO_EXPLORATION, taken(1), taken(2), taken(3))
    selection.learn(9, [Outcome(2, DROPPED), taken(3)])
    reliable, dropper, fresh = selection.scores([1, 2, 3], 10)
    assert reliable > 1.3 * dropper
    assert fresh < reliable * (3 / 4) / (2 / 3)  # more reliable, but the bonus of the unknown is smaller


def test_one_device_that_claims_a_monstrous_loss_does_not_shadow_the_others() -> None:
    honest = [taken(node, loss=1.0 + node / 100) for node in range(1, 41)]
    selection = measured(NO_EXPLORATION, *honest, taken(99, loss=1e30))
    scores = selection.scores([99, 40, 1], 2)
    assert scores[0] == pytest.approx(scores[1], rel=0.05)
    assert scores[2] > 0.5 * scores[0]


def test_everyone_is_explored_before_long_and_exploration_falls_to_its_floor() -> None:
    settings = SelectionConfig(policy="utility", fairness=0.0)
    selection = Utility(settings, 2)
    assert selection.exploration(1) == 0.9
    assert selection.exploration(10_000) == 0.2
    seen: set[int] = set()
    for number in range(1, 41):
        chosen = selection.choose(range(100), 10, number)
        seen.update(chosen)
        selection.learn(number, [taken(node) for node in chosen])
    assert seen == set(range(100))


def test_a_device_that_is_late_each_time_is_not_explored_for_ever() -> None:
    selection = Utility(SelectionConfig(policy="utility", exploration=1.0, exploration_decay=1.0), 2)
    counts = shares(selection, 60, lambda *_: True, lambda node: Outcome(node, LATE, seconds=60.0), count=40, size=4)
    assert max(counts.values()) <= 12  # 6 if all were asked alike
    assert len(counts) == 40


def test_devices_that_miss_every_deadline_do_not_take_the_places_of_good_ones() -> None:
    """Half of all never come to the end: once all are known, they are not explored again."""
    selection = Utility(SelectionConfig(policy="utility", exploration=0.9, exploration_decay=1.0), 2)
    counts = shares(
        selection, 60, lambda *_: True, lambda node: taken(node) if node < 20 else Outcome(node, DROPPED, seconds=60.0),
        count=40, size=10,
    )  # fmt: skip
    assert all(counts[node] == 1 for node in range(20, 40))


def test_a_device_that_was_waited_for_in_vain_counts_as_slow() -> None:
    selection = measured(NO_EXPLORATION, taken(1), taken(2), taken(3))
    before = selection.scores([2], 3)[0]
    selection.learn(2, [Outcome(2, DROPPED, seconds=40.0)])
    assert selection.scores([2], 3)[0] < before / 10


def test_the_pacer_waits_longer_when_utility_dries_up_and_not_before() -> None:
    times = [taken(node, seconds=float(node)) for node in range(1, 101)]
    for losses, waits_longer in (((2.0, 2.0, 1.0, 1.0), True), ((1.0, 1.0, 2.0, 2.0), False)):
        selection = Utility(SelectionConfig(policy="utility", pace=30.0, pace_step=40.0, pace_window=2), 1)
        selection.learn(1, [Outcome(one.node, one.end, 100, losses[0], one.seconds) for one in times])
        before = selection.preferred_s
        assert before == pytest.approx(30.7)
        for number, loss in enumerate(losses[1:], 2):
            selection.learn(number, [Outcome(one.node, one.end, 100, loss, one.seconds) for one in times])
        assert selection.preferred_s == pytest.approx(70.3 if waits_longer else before)


# -- settings -------------------------------------------------------------------------------------------------------

SMALL = {"data.name": "digits", "model.name": "digits_cnn", "server.cohort": 10}
SECURE = {"secure.enabled": True}
CENTRAL = {"privacy.noise_multiplier": 1.0}


@pytest.mark.parametrize(
    "protection", [SECURE, CENTRAL, SECURE | {"privacy.noise_multiplier": 1.0, "privacy.clip": 1.0}]
)
@pytest.mark.parametrize(
    "asks", [{"selection.policy": "utility"}, {"selection.policy": "availability"}, {"selection.fairness": 0.1}]
)
def test_what_nobody_knows_or_privacy_does_not_allow_is_refused(
    protection: dict[str, Any], asks: dict[str, Any]
) -> None:
    name = next(iter(asks))
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")) as caught:
        from_flat(ServerConfig, SMALL | protection | asks)
    assert "\n" not in str(caught.value)
    from_flat(ServerConfig, SMALL | protection)
    from_flat(ServerConfig, SMALL | asks)


def test_a_floor_is_a_share() -> None:
    with pytest.raises(ConfigError, match=r"selection\.fairness = -0\.5"):
        SelectionConfig(fairness=-0.5)
    assert SelectionConfig().floor == 0.0
    assert SelectionConfig(policy="utility").floor == 0.2
    assert SelectionConfig(policy="utility", fairness=0.0).floor == 0.0


def test_state_is_small() -> None:
    """10,000 devices take less than 1 MB in each round's checkpoint."""
    selection = make_selection(SelectionConfig(policy="utility"), 1)
    selection.choose(range(10_000), 200, 1)
    selection.learn(1, [taken(node) for node in range(10_000)])
    assert len(pack(selection.state())) < 1_000_000
    assert json.dumps(sorted(selection.state()))


@pytest.mark.parametrize("claim", [1e300, 1.7e308, 1e12])
@pytest.mark.parametrize("fleet", [2, 10])
def test_what_one_device_claims_neither_empties_a_cohort_nor_hides_the_others(claim: float, fleet: int) -> None:
    """Its loss may be any finite number, and it may say that it has 2^28 examples."""
    selection = Utility(SelectionConfig(policy="utility", exploration=0.0, exploration_min=0.0), 1)
    honest = [taken(node, loss=1.0 if node % 2 else 5.0) for node in range(1, fleet)]
    selection.learn(1, [taken(0, loss=claim, examples=2**28), *honest])
    nodes = list(range(fleet))
    scores = selection.scores(nodes, 2)
    assert np.all(np.isfinite(scores))
    assert len(selection.choose(nodes, 2, 2)) == 2
    if fleet > 2:
        assert scores[2] > scores[1] + 0.1  # who learns more still counts for more
    assert json.dumps(selection.state()["pacer"], allow_nan=False)
