"""One round's bookkeeping: every asked client is counted once, good or bad, whatever arrives and in which order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.updates import TensorLayout, make_codec, wire
from server.aggregate import WeightedSum
from server.buffer_config import BufferConfig
from server.rounds import OpenRound, Update, choose_cohort

LAYOUT = TensorLayout((("w", (3, 2)), ("b", (2,))))
CODEC = make_codec("float32")
NODES = [11, 22, 33, 2**63 + 5]


def opened(min_updates: int = 1) -> OpenRound:
    return OpenRound(4, {node: str(node) for node in NODES}, LAYOUT, CODEC, min_updates, WeightedSum(LAYOUT.size))


def update(
    value: float, examples: int = 1, round_number: int = 4, layout: TensorLayout = LAYOUT, loss: float = 0.5
) -> Update:
    body = np.full(layout.size, value, "<f4").tobytes()  # packed by hand: a codec would refuse a NaN
    return Update(wire.pack(CODEC.names, layout.digest, round_number, body), examples, loss)


def test_mean_is_weighted_by_examples_and_silence_is_named():
    current = opened()
    current.receive(11, update(1.0, examples=1, loss=1.0))
    current.receive(22, update(4.0, examples=3, loss=2.0))
    result = current.close("no reply within 5 s")
    np.testing.assert_allclose(result.delta, (1 + 12) / 4)
    assert result.train_loss == pytest.approx(7 / 4)
    assert result.clients == ("11", "22")
    assert {(failure.client, failure.reason) for failure in result.failures} == {
        ("33", "no reply within 5 s"),
        (str(2**63 + 5), "no reply within 5 s"),
    }


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (update(math.nan), "NaN"),
        (update(1.0, round_number=3), "round 3"),
        (update(1.0, layout=TensorLayout((("w", (3, 2)),))), "missing"),
        (update(1.0, layout=TensorLayout((("w", (2, 3)), ("b", (2,))))), "another shape"),
        (update(1.0, examples=0), "examples"),
        (update(1.0, loss=math.nan), "loss"),
        (Update(b"", 1, 0.5), "does not start"),
    ],
)
def test_a_bad_update_costs_that_client_only(bad, reason):
    current = opened()
    current.receive(11, bad)
    current.receive(22, update(2.0))
    result = current.close("silent")
    np.testing.assert_array_equal(result.delta, 2.0)
    assert result.failures[0].client == "11"
    assert reason in result.failures[0].reason


def test_too_few_good_updates_leave_no_delta():
    current = opened(min_updates=2)
    current.receive(11, update(1.0))
    current.fail(22, "it raised")
    assert current.close("silent").delta is None


@given(st.lists(st.tuples(st.sampled_from([*NODES, 99]), st.sampled_from(["good", "nan", "error"])), max_size=12))
def test_every_asked_client_is_counted_exactly_once(arrivals):
    current = opened()
    for node, kind in arrivals:
        if kind == "error":
            current.fail(node, "it raised")
        else:
            current.receive(node, update(math.nan if kind == "nan" else 1.0))
    result = current.close("silent")
    failed = [failure.client for failure in result.failures]
    assert sorted([*result.clients, *failed]) == sorted(map(str, NODES))
    first = {node: kind for node, kind in reversed(arrivals) if node in NODES}
    assert set(result.clients) == {str(node) for node, kind in first.items() if kind == "good"}


@given(
    st.sets(st.integers(1, 2**64 - 1), min_size=1, max_size=30),
    st.integers(1, 40),
    st.integers(0, 99),
    st.integers(1, 99),
)
def test_a_cohort_is_distinct_known_nodes_and_repeats(nodes, size, seed, number):
    cohort = choose_cohort(list(nodes), size, seed, number)
    assert len(cohort) == len(set(cohort)) == min(size, len(nodes))
    assert set(cohort) <= nodes
    assert cohort == choose_cohort(sorted(nodes, reverse=True), size, seed, number)


@given(
    st.lists(
        st.tuples(st.sampled_from([*NODES, 99]), st.sampled_from(["good", "nan", "error", "declines", "late"])),
        max_size=12,
    )
)
def test_of_all_that_may_become_of_a_client_the_first_stands(arrivals):
    current = opened()
    for node, kind in arrivals:
        {
            "good": lambda node: current.receive(node, update(1.0)),
            "nan": lambda node: current.receive(node, update(math.nan)),
            "error": lambda node: current.fail(node, "it raised"),
            "declines": lambda node: current.decline(node, "on battery"),
            "late": current.leave,
        }[kind](node)
    result = current.close("silent")
    failed = [failure.client for failure in result.failures]
    declined = [failure.client for failure in result.declined]
    assert sorted([*result.clients, *failed, *declined, *result.late]) == sorted(map(str, NODES))
    first = {str(node): kind for node, kind in reversed(arrivals) if node in NODES}
    for kind, ended in {"good": result.clients, "declines": declined, "late": result.late}.items():
        assert set(ended) == {client for client, how in first.items() if how == kind}


@given(st.integers(1, 9), st.integers(0, 5))
def test_an_update_is_read_as_of_the_round_that_it_was_made_for(made_for, most):
    current = opened()
    current.number, current.max_staleness, current.discount = 9, most, BufferConfig().discount
    failure = current.receive(11, update(2.0, round_number=made_for), made_for)
    result = current.close("silent")
    if 9 - made_for > most:
        assert failure is not None
        assert failure.reason == f"made for round {made_for}, and buffer.max_staleness = {most}"
        assert result.delta is None
    else:
        assert failure is None
        np.testing.assert_allclose(result.delta, 2 / math.sqrt(1 + 9 - made_for), rtol=1e-6)


def test_an_update_of_another_round_than_it_was_asked_for_is_refused():
    current = opened()
    current.max_staleness = 5
    failure = current.receive(11, update(1.0, round_number=3), made_for=2)
    assert failure is not None
    assert "round 3" in failure.reason


def test_cohorts_are_drawn_evenly():
    counts = np.zeros(20)
    for number in range(1, 2001):
        counts[choose_cohort(range(20), 5, seed=3, round_number=number)] += 1
    # Each count is binomial(2000, 1/4): mean 500, deviation 19.4.
    assert abs(counts - 500).max() < 5 * 19.4
