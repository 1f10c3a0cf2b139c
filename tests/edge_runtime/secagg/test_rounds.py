"""A round gives the exact integer sum of the survivors, or ends with a reason and no sum, whoever drops when.

The names hold the numbers of the fault and attack cases; the hostile ones are in `test_attacks.py`.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

import edge_runtime as er
from edge_runtime.secagg import messages as m
from edge_runtime.secagg.client import Client
from edge_runtime.secagg.config import Config
from edge_runtime.secagg.device import Contribution
from edge_runtime.secagg.server import DeadlinePassed, Outcome, Received
from edge_runtime.secagg.simulate import drop_link, enrol, make_fleet, simulate_round
from edge_runtime.secagg.transitions import CLIENT, PHASES, SERVER

NAMES = list(PHASES)


def make_inputs(clients, count: int = 5, seed: int = 0, largest: int = 50) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {client: rng.integers(-largest, largest + 1, count) for client in clients}


def assert_exact(outcome: Outcome, inputs, survivors) -> None:
    assert outcome.aborted is None
    assert outcome.survivors == set(survivors)
    assert outcome.sum.dtype == np.int64
    np.testing.assert_array_equal(outcome.sum, sum(inputs[client] for client in survivors))


def assert_clean_abort(outcome: Outcome) -> None:
    assert outcome.aborted
    assert outcome.sum is None
    assert outcome.weight is None
    assert outcome.survivors == frozenset()


def build(inputs, config, **kwargs):
    clients = list(inputs)
    count = next(iter(inputs.values())).size
    agreed = config.for_round(run=1, round_number=1, clients=len(clients), count=count)
    return make_fleet({c: Contribution(v) for c, v in inputs.items()}, agreed, enrol(clients, **kwargs))


@pytest.mark.parametrize(("n", "threshold"), [(2, 1), (2, 2), (3, 2), (5, 5), (50, 26)])
@pytest.mark.parametrize("bits", [10, 16, 32])
def test_case_01_no_drops(n: int, threshold: int, bits: int) -> None:
    largest = (2 ** (bits - 1) - 1) // n
    inputs = make_inputs(range(100, 100 + n), 7, seed=n, largest=min(largest, 10**6))
    outcome = er.secagg.simulate_round(inputs, er.secagg.Config(bits=bits, threshold=threshold))
    assert_exact(outcome, inputs, inputs)


@pytest.mark.parametrize("prg", ["aes-128-ctr", "aes-256-ctr"])
def test_case_01_other_mask_streams_and_ids_of_64_bits(prg: str) -> None:
    inputs = make_inputs([0, 7, 2**63, 2**64 - 1], 33)
    outcome = simulate_round(inputs, Config(threshold=3, prg=prg), {7: "masked_input"})
    assert_exact(outcome, inputs, [0, 2**63, 2**64 - 1])


@pytest.mark.parametrize("n", [2, 5])
def test_case_01_values_at_both_ends_of_the_range(n: int) -> None:
    for sign in (1, -1):
        inputs = {client: np.full(9, sign * (2**15 - 1) // n) for client in range(n)}
        inputs = {client: np.clip(v, -((2**15 - 1) // n), None) for client, v in inputs.items()}
        assert_exact(simulate_round(inputs, Config(bits=16, threshold=1)), inputs, inputs)


@pytest.mark.parametrize(
    ("phase", "counted"),
    [
        pytest.param("advertise", False, id="case_02"),
        pytest.param("share_keys", False, id="case_03"),
        pytest.param("masked_input", False, id="case_04"),
        pytest.param("consistency", True, id="case_05_before_consistency"),
        pytest.param("unmask", True, id="case_05_before_unmask"),
    ],
)
@pytest.mark.parametrize("neighbours", [0, 6])
def test_case_02_to_05_a_drop_costs_that_client_only(phase: str, counted: bool, neighbours: int) -> None:
    inputs = make_inputs(range(12))
    config = Config(threshold=4, neighbours=neighbours)
    outcome = simulate_round(inputs, config, {3: phase, 8: phase})
    assert_exact(outcome, inputs, [c for c in inputs if counted or c not in (3, 8)])
    assert outcome.dropped[phase] == (3, 8)


@pytest.mark.parametrize(("phase", "consistency"), [("consistency", True), ("unmask", True), ("unmask", False)])
def test_case_06_drops_at_the_end_down_to_the_threshold(phase: str, consistency: bool) -> None:
    inputs = make_inputs(range(10))
    config = Config(bits=16, threshold=7, consistency=consistency)
    assert_exact(simulate_round(inputs, config, dict.fromkeys(range(3), phase)), inputs, inputs)
    assert_clean_abort(simulate_round(inputs, config, dict.fromkeys(range(4), phase)))


@pytest.mark.parametrize("phase", ["advertise", "share_keys", "masked_input"])
def test_case_06_drops_before_the_end_down_to_the_threshold(phase: str) -> None:
    inputs = make_inputs(range(10))
    assert_exact(simulate_round(inputs, Config(threshold=7), dict.fromkeys(range(3), phase)), inputs, range(3, 10))
    assert_clean_abort(simulate_round(inputs, Config(threshold=7), dict.fromkeys(range(4), phase)))


def random_round(seed: int) -> tuple[dict[int, np.ndarray], Config, dict[int, str]]:
    draw = random.Random(seed)
    n = draw.randint(2, 9)
    clients = [draw.randrange(2**64) for _ in range(n)] if draw.random() < 0.5 else range(n)
    neighbours = draw.choice([0, 0, 4]) if n > 6 else 0
    threshold = draw.randint(1, neighbours or n)
    config = Config(
        bits=draw.choice([8, 10, 12, 16, 21, 32]),
        threshold=threshold,
        neighbours=neighbours,
        min_survivors=draw.choice([0, 0, n // 2]),
        consistency=draw.random() < 0.8,
    )
    largest = min((2 ** (config.bits - 1) - 1) // n, 1000)
    inputs = make_inputs(clients, draw.randint(1, 9), seed, largest)
    chance = draw.choice([0.1, 0.3, 0.6])
    return inputs, config, {client: draw.choice(NAMES) for client in clients if draw.random() < chance}


def must_finish(inputs, config: Config, drops) -> bool:
    """Whether the rules promise a sum: in a complete graph, enough clients left in every phase."""
    left = len(inputs)
    for phase in NAMES:
        if phase == "consistency" and not config.consistency:
            continue
        left -= sum(1 for p in drops.values() if p == phase)
        floor = max(config.threshold, config.min_clients) if phase in NAMES[:3] else config.threshold
        floor = max(floor, config.min_survivors) if phase == "masked_input" else floor
        if left < floor:
            return False
    return True


@pytest.mark.parametrize("block", range(10))
def test_case_07_random_drops_at_every_phase(block: int) -> None:
    """300 rounds in all: the exact sum of those whose input came in, or a clean abort, and an abort only if due."""
    finished = 0
    for seed in range(30 * block, 30 * block + 30):
        inputs, config, drops = random_round(seed)
        outcome = simulate_round(inputs, config, drops)
        if outcome.aborted:
            assert_clean_abort(outcome)
        else:
            kept = [c for c in inputs if drops.get(c) not in ("advertise", "share_keys", "masked_input")]
            assert_exact(outcome, inputs, kept)
            finished += 1
        if config.neighbours == 0:
            assert (outcome.aborted is None) == must_finish(inputs, config, drops), seed
    assert finished


def test_case_08_a_late_masked_input_is_refused_for_good() -> None:
    inputs = make_inputs(range(6))
    fleet = build(inputs, Config(threshold=3))
    held: list[bytes] = []

    def link(from_server: bool, client: int, data: bytes) -> bytes | None:
        if not from_server and client == 2 and data[1] == 6:
            held.append(data)
            return None
        if not from_server and data[1] in (8, 10):  # the others confirm, then unmask: the late one tries each time
            for late in held:
                with pytest.raises(er.PeerError, match="no place"):
                    fleet.server.receive(Received(2, late))
        return data

    assert_exact(fleet.run(link), inputs, [0, 1, 3, 4, 5])
    assert held


def test_case_25_a_client_that_cannot_make_an_update_abstains() -> None:
    inputs = make_inputs(range(6))
    fleet = build(inputs, Config(threshold=3))

    def diverged(agreed):
        raise er.NumericsError("NaN in the update")

    device = fleet.clients[4]._phase.own.device
    fleet.clients[4] = Client(device, diverged)
    outcome = fleet.run()
    assert_exact(outcome, inputs, [0, 1, 2, 3, 5])
    assert outcome.dropped["masked_input"] == (4,)
    assert fleet.clients[4].phase == "Ended"


def test_case_25_values_above_the_bound_are_never_masked() -> None:
    inputs = make_inputs(range(6))
    inputs[4] = np.full(5, 10**6)
    with pytest.raises(er.ConfigError, match=r"inputs\[4\].*max_abs"):
        simulate_round(inputs, Config(threshold=3))
    outcome = build(inputs, Config(threshold=3)).run()  # and where nobody looks beforehand, it abstains
    assert_exact(outcome, inputs, [0, 1, 2, 3, 5])


@pytest.mark.parametrize(
    "config", [Config(bits=8, max_abs=26), Config(bits=8, max_abs=5, max_weight=6), Config(bits=2), Config(bits=3)]
)
def test_case_26_a_config_whose_sums_could_wrap_is_refused(config: Config) -> None:
    with pytest.raises(er.ConfigError, match="take more bits"):
        config.for_round(run=1, round_number=1, clients=5, count=4)


def test_case_26_a_wrap_that_was_allowed_is_flagged_and_reaches_one_lane_on() -> None:
    inputs = {client: np.array([127, 0, 0, 5, 0, 0, 0, 0, -3]) for client in range(5)}
    outcome = simulate_round(inputs, Config(bits=8, threshold=3, max_abs=127, wrap=True))
    assert outcome.may_wrap
    error = outcome.sum - sum(inputs.values())
    assert error[0] % 256 == 0
    assert error[0] != 0
    assert abs(error[1]) <= 2  # as many as the first lane wrapped
    assert not error[2:].any()
    assert not simulate_round(make_inputs(range(5)), Config(threshold=3)).may_wrap


@pytest.mark.parametrize("weight", [0, -1, -(10**30), True, 1.5])
def test_case_27_a_weight_below_one_is_refused(weight) -> None:
    with pytest.raises(er.ConfigError, match="weight"):
        simulate_round(make_inputs(range(4)), Config(threshold=2, max_weight=8), weights={0: weight})


def test_case_26_a_value_beyond_its_lane_wraps_in_it_alone() -> None:
    inputs = {client: np.array([3, 200 if client == 2 else 4, -5]) for client in range(4)}
    outcome = simulate_round(inputs, Config(bits=8, threshold=2, max_abs=300, wrap=True))
    assert outcome.may_wrap
    np.testing.assert_array_equal(outcome.sum, [12, 212 - 256, -20])


@pytest.mark.parametrize("weight", [9, 1000, 10**30])
def test_case_27_a_weight_above_the_largest_counts_as_the_largest(weight: int) -> None:
    inputs = make_inputs(range(5), largest=100)
    weights = {0: weight, 1: 3, 2: 8, 3: 1, 4: 5}
    outcome = simulate_round(inputs, Config(threshold=3, max_weight=8), {3: "masked_input"}, weights=weights)
    np.testing.assert_array_equal(outcome.sum, 8 * inputs[0] + 3 * inputs[1] + 8 * inputs[2] + 5 * inputs[4])
    assert outcome.weight == 8 + 3 + 8 + 5


@pytest.mark.parametrize("phase", NAMES)
def test_case_28_a_slow_client_is_dropped_at_the_deadline(phase: str) -> None:
    inputs = make_inputs(range(6))
    fleet = build(inputs, Config(threshold=3))
    slow = drop_link({2: phase})
    sends = fleet.server.start()
    while fleet.server.outcome is None:
        answers = [(s.client, a) for s in sends for a in fleet.clients[s.client].receive(s.data)]
        arrived = [(c, a) for c, a in answers if slow(False, c, a) is not None]
        sends = [s for c, a in arrived for s in fleet.server.receive(Received(c, a))]
        if not sends and fleet.server.outcome is None:
            assert fleet.server.waiting == {2}
            sends = fleet.server.receive(DeadlinePassed())
            assert fleet.server.outcome or sends
    counted = phase in ("consistency", "unmask")
    assert_exact(fleet.server.outcome, inputs, [c for c in inputs if counted or c != 2])


def test_case_28_a_clock_that_jumps_ends_the_round_cleanly() -> None:
    for answered in range(6):
        fleet = build(make_inputs(range(4)), Config(threshold=2))
        sends = fleet.server.start()
        for _ in range(answered):
            answers = [(s.client, a) for s in sends for a in fleet.clients[s.client].receive(s.data)]
            sends = [s for c, a in answers for s in fleet.server.receive(Received(c, a))]
        for _ in range(6):
            fleet.server.receive(DeadlinePassed())
        assert fleet.server.outcome is not None
        if answered < 5:
            assert_clean_abort(fleet.server.outcome)
        assert fleet.server.phase == "Ended"


@pytest.mark.parametrize("kind", [3, 5, 7, 9])
def test_case_29_a_client_that_restarts_counts_as_dropped(kind: int) -> None:
    inputs = make_inputs(range(6))
    fleet = build(inputs, Config(threshold=3))
    advertised: list[bytes] = []

    def link(from_server: bool, client: int, data: bytes) -> bytes | None:
        if from_server and client == 2 and data[1] == kind:  # it lost its state, and keeps what its owner stored
            fleet.clients[2] = Client(fleet.devices[2], lambda _: Contribution(inputs[2]))
            setup = m.encode(m.Setup(fleet.agreed), None)
            with pytest.raises(er.PeerError, match="took part"):
                fleet.clients[2].receive(setup)
        if not from_server and client == 2:
            advertised.append(data)
        return data

    outcome = fleet.run(link)
    assert_exact(outcome, inputs, [c for c in inputs if kind in (7, 9) or c != 2])
    assert len({data[1] for data in advertised}) == len(advertised)  # no phase was answered twice


def test_case_30_a_server_that_restarts_starts_a_new_round_with_fresh_keys() -> None:
    inputs = make_inputs(range(4))
    devices = enrol(list(inputs))
    config = Config(threshold=2)
    adverts = []
    for number in (1, 2):
        agreed = config.for_round(run=1, round_number=number, clients=4, count=5)
        fleet = make_fleet({c: Contribution(v) for c, v in inputs.items()}, agreed, devices)
        if number == 1:  # the server dies after the first phase
            adverts += [m.decode(fleet.clients[s.client].receive(s.data)[0], agreed) for s in fleet.server.start()]
            continue

        def link(from_server: bool, client: int, data: bytes, agreed=agreed, adverts=adverts) -> bytes:
            if data[1] == 2:
                adverts.append(m.decode(data, agreed))
            return data

        assert_exact(fleet.run(link), inputs, inputs)
    published = [key for advert in adverts for key in (advert.mask_key, advert.channel_key)]
    assert len(published) == len(set(published)) == 16


def test_case_33_two_runs_with_one_input_have_nothing_in_common() -> None:
    inputs = {client: np.zeros(64, np.int64) for client in range(4)}
    seen: list[bytes] = []

    def link(from_server: bool, client: int, data: bytes) -> bytes:
        if not from_server and data[1] in (4, 6):
            body = data[16:]
            seen.extend(body[at : at + 16] for at in range(0, 128, 16)) if data[1] == 6 else seen.append(body)
        return data

    for number in (1, 2):
        agreed = Config(threshold=2).for_round(run=1, round_number=number, clients=4, count=64)
        fleet = make_fleet({c: Contribution(v) for c, v in inputs.items()}, agreed, enrol(list(inputs)))
        assert_exact(fleet.run(link), inputs, inputs)
    assert len(seen) == len(set(seen)) == 2 * 4 * (8 + 1)


def test_case_36_colluders_learn_the_sum_of_the_others_and_no_more() -> None:
    """With n - 1 colluders that is one input: the floor on the cohort and on the threshold is what forbids it."""
    inputs = make_inputs(range(5))
    outcome = simulate_round(inputs, Config(threshold=3))
    others = outcome.sum - sum(inputs[c] for c in (1, 2, 3, 4))
    np.testing.assert_array_equal(others, inputs[0])
    refused = simulate_round(inputs, Config(threshold=3), policy=er.secagg.Policy(min_threshold=2, corrupt=4))
    assert_clean_abort(refused)
    small = simulate_round(inputs, Config(threshold=3), policy=er.secagg.Policy(min_clients=6))
    assert_clean_abort(small)
    # two honest clients in a sum at least: with 2 corrupt ones that is 4 survivors, and the round has to promise them
    three = er.secagg.Policy(corrupt=2)
    assert_clean_abort(simulate_round(inputs, Config(threshold=3), policy=three))
    promised = Config(threshold=3, min_clients=4)
    assert_exact(simulate_round(inputs, promised, {0: "masked_input"}, policy=three), inputs, range(1, 5))
    assert_clean_abort(simulate_round(inputs, promised, dict.fromkeys((0, 1), "masked_input"), policy=three))


def test_the_tables_lead_from_the_first_phase_to_the_last() -> None:
    for start, steps in (
        ("Invited", {phase: after for (phase, _), after in CLIENT.items()}),
        ("Advertising", {phase: after for phase, (_, after) in SERVER.items()}),
    ):
        reached, todo = set(), [start]
        while todo:
            phase = todo.pop()
            reached.add(phase)
            todo += [after for after in steps.get(phase, ()) if after not in reached]
        assert reached == {*steps, "Ended"}


def test_a_round_of_one_client_or_of_unequal_inputs_is_refused() -> None:
    with pytest.raises(er.ConfigError, match="clients"):
        simulate_round(make_inputs([1]), Config(threshold=1))
    with pytest.raises(er.ConfigError, match="at least two"):
        simulate_round({}, Config(threshold=1))
    with pytest.raises(er.ConfigError, match=r"inputs\[2\].*shape"):
        simulate_round(make_inputs([1, 3]) | {2: np.zeros(6, np.int64)}, Config(threshold=1))
    with pytest.raises(er.ConfigError, match="no phase"):
        simulate_round(make_inputs(range(3)), Config(threshold=1), {1: "upload"})
    with pytest.raises(er.ConfigError, match="no client"):
        simulate_round(make_inputs(range(3)), Config(threshold=1), {5: "unmask"})


def test_the_servers_outcome_is_the_only_thing_left() -> None:
    fleet = build(make_inputs(range(4)), Config(threshold=2))
    fleet.run()
    assert fleet.server.phase == "Ended"
    assert fleet.server._phase.words is None
    assert {client.phase for client in fleet.clients.values()} == {"Ended"}
