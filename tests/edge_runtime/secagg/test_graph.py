"""Neighbours and thresholds: published numbers, the bounds in exact fractions, and graphs that stay connected."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.secagg import Config, Policy
from edge_runtime.secagg.graph import (
    Degree,
    Neighbours,
    choose_neighbours,
    complete_graph,
    corrupt_neighbours,
    neighbours,
)

# Shares corrupt and dropped, then (k, t) for each n, at 2^-40 and 2^-20.
COLUMNS = ((0.05, 0.10), (0.10, 0.10), (0.10, 0.20), (0.20, 0.20), (0.33, 0.10))
TABLE = {
    50: ((8, 3), (12, 6), (16, 6), (22, 11), (22, 17)),
    100: ((16, 6), (22, 11), (32, 11), (42, 21), (44, 32)),
    200: ((32, 11), (38, 19), (50, 21), (64, 35), (68, 48)),
    500: ((36, 17), (42, 24), (58, 28), (86, 47), (90, 63)),
    1000: ((36, 18), (46, 26), (66, 31), (98, 54), (102, 72)),
    10000: ((42, 21), (54, 30), (76, 36), (120, 65), (122, 85)),
}
CELLS = [(n, *shares, answer) for n, row in TABLE.items() for shares, answer in zip(COLUMNS, row, strict=True)]


def hypergeometric(population: int, marked: int, draws: int, hits: int) -> Fraction:
    if not 0 <= hits <= draws:
        return Fraction(0)
    ways = math.comb(marked, hits) * math.comb(population - marked, draws - hits)
    return Fraction(ways, math.comb(population, draws))


def meets(n: int, corrupt: int, drop: int, k: int, t: int) -> bool:
    """The three conditions in exact fractions."""
    bought = n * sum(hypergeometric(n - 1, corrupt, k, i) for i in range(t, k + 1))
    starved = n * sum(hypergeometric(n - 1, n - 1 - drop, k, i) for i in range(t))
    cut = Fraction(n)
    for i in range(k // 2):
        cut *= Fraction(corrupt + drop - i, n - i)
    whole = corrupt + drop < k or cut < Fraction(1, 2**40)
    return bought < Fraction(1, 2**40) and starved < Fraction(1, 2**20) and whole


@pytest.mark.parametrize(("n", "corrupt", "drop", "answer"), CELLS)
def test_case_35_the_published_table(n: int, corrupt: float, drop: float, answer: tuple[int, int]) -> None:
    assert choose_neighbours(n, corrupt, drop) == answer


@given(st.integers(2, 70), st.integers(0, 50), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_case_35_the_choice_is_the_least_that_meets_the_bounds(n: int, corrupt: int, drop: int) -> None:
    c, d = n * corrupt // 100, n * drop // 100
    least = next(((k, t) for k in range(4, n, 2) for t in range(2, k + 1) if meets(n, c, d, k, t)), None)
    try:
        chosen = choose_neighbours(n, corrupt / 100, drop / 100)
    except ConfigError:
        assert least is None
        assert n - 1 - d < max(c + 1, min(2, n - 1 - d))
        return
    if least is None:
        assert chosen.k == n - 1
        assert c < chosen.t <= n - 1 - d
    else:
        assert chosen == least


@given(st.integers(4, 400), st.integers(0, 30), st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_a_malicious_server_finds_no_two_quorums_without_an_honest_holder(n: int, corrupt: int, drop: int) -> None:
    try:
        k, t = choose_neighbours(n, corrupt / 100, drop / 100, malicious_server=True)
    except ConfigError:
        return
    c = n * corrupt // 100
    if k == n - 1:
        most = c
    else:
        limit = Fraction(1, 2**40)
        tails = (n * sum(hypergeometric(n - 1, c, k, i) for i in range(m + 1, k + 1)) for m in range(k + 1))
        most = next(m for m, tail in enumerate(tails) if tail < limit)
    assert corrupt_neighbours(n, corrupt / 100, k) == most
    # both halves of those who hold shares, the owner among them, need t, and only the corrupt answer both
    assert t > most
    assert 2 * t > k + 1 + most
    policy = Policy(malicious_server=True, corrupt=most)
    config = Config(threshold=t, neighbours=0 if k == n - 1 else k, min_clients=max(t, policy.floor))
    policy.check_config(config.for_round(run=1, round_number=1, clients=n, count=1))


@pytest.mark.parametrize(("n", "corrupt", "drop"), sorted({cell[:3] for cell in CELLS}))
def test_every_choice_for_a_malicious_server_passes_the_clients_policy(n: int, corrupt: float, drop: float) -> None:
    k, t = choose_neighbours(n, corrupt, drop, malicious_server=True)
    policy = Policy(malicious_server=True, corrupt=corrupt_neighbours(n, corrupt, k))
    settings = Config(threshold=t, neighbours=0 if k == n - 1 else k, min_clients=max(t, policy.floor))
    policy.check_config(settings.for_round(run=1, round_number=1, clients=n, count=1))
    least = replace(settings, threshold=(k + 1 + policy.corrupt) // 2)
    with pytest.raises(PeerError, match="disagree"):
        policy.check_degree(least.for_round(run=1, round_number=1, clients=n, count=1), k)


def test_a_malicious_server_leaves_room_for_a_third_to_drop() -> None:
    assert complete_graph(99, 0.0, 0.33, malicious_server=True) == (98, 50)
    assert complete_graph(99, 0.32, 0.33, malicious_server=True) == (98, 66)
    with pytest.raises(ConfigError, match="more clients"):
        complete_graph(99, 0.33, 0.34, malicious_server=True)


@pytest.mark.parametrize(
    ("n", "corrupt", "drop", "answer"),
    [(2, 0, 0, (1, 1)), (3, 0, 0, (2, 2)), (3, 0.34, 0, (2, 2)), (10, 0.3, 0.3, (9, 4)), (100, 0.29, 0.2, (99, 30))],
)
def test_the_complete_graph(n: int, corrupt: float, drop: float, answer: tuple[int, int]) -> None:
    assert complete_graph(n, corrupt, drop) == Degree(*answer)


@pytest.mark.parametrize(
    ("n", "corrupt", "drop"),
    [(1, 0, 0), (65537, 0, 0), (9, -0.1, 0), (9, 1, 0), (9, 0, 1.5), (9, math.nan, 0), (10, 0.6, 0.6), (2, 0, 0.5)],
)
def test_what_cannot_be_is_a_config_error(n: int, corrupt: float, drop: float) -> None:
    with pytest.raises(ConfigError):
        choose_neighbours(n, corrupt, drop)


def connected(graph: dict[int, tuple[int, ...]], alive: set[int]) -> bool:
    reached, todo = set(), [next(iter(alive))]
    while todo:
        client = todo.pop()
        if client not in reached:
            reached.add(client)
            todo += alive.intersection(graph[client])
    return reached == alive


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[int, tuple[int, ...]], int]:
    ids = draw(st.sets(st.integers(0, 2**64 - 1), min_size=2, max_size=30))
    k = draw(st.sampled_from([*range(2, len(ids) - 1, 2), len(ids) - 1]))
    return neighbours(ids, k, draw(st.binary(max_size=32))), k


@given(graphs())
def test_case_35_everybody_has_k_neighbours_that_know_it(drawn: tuple[dict[int, tuple[int, ...]], int]) -> None:
    graph, k = drawn
    for client, near in graph.items():
        assert list(near) == sorted(set(near) - {client})
        assert len(near) == k
        assert all(client in graph[other] for other in near)


@given(graphs(), st.data())
def test_case_35_connected_whichever_k_less_one_drop(
    drawn: tuple[dict[int, tuple[int, ...]], int], data: st.DataObject
) -> None:
    graph, k = drawn
    gone = data.draw(st.sets(st.sampled_from(sorted(graph)), max_size=k - 1))
    assert connected(graph, set(graph) - gone)


@given(graphs(), st.data())
def test_whether_those_present_are_one_part(drawn: tuple[Neighbours, int], data: st.DataObject) -> None:
    graph, _ = drawn
    present = data.draw(st.sets(st.sampled_from(sorted(graph)), min_size=1))
    assert graph.joins(present) == connected(graph, present)


def test_case_35_connected_whichever_k_less_one_drop_exhaustively() -> None:
    for n, k in [(6, 2), (7, 4), (8, 4), (9, 6), (5, 4)]:
        graph = neighbours(range(n), k, b"seed")
        assert all(connected(graph, set(graph) - set(gone)) for gone in combinations(graph, k - 1))


def test_case_35_the_chosen_degree_survives_random_drops() -> None:
    rng = random.Random(35)
    for n in (50, 100):
        k, t = choose_neighbours(n, 0.1, 0.1)
        for _ in range(100):
            graph = neighbours(range(n), k, rng.randbytes(32))
            corrupt, gone = set(rng.sample(range(n), n // 10)), set(rng.sample(range(n), n // 10))
            assert all(len(corrupt.intersection(near)) < t for near in graph.values())
            assert all(len(set(near) - gone) >= t for near in graph.values())
            assert connected(graph, set(graph) - gone - corrupt)


def test_the_ring_is_the_seeds_and_nobody_elses() -> None:
    ids = [7, 2**64 - 1, 0, 12, 99, 5]
    ring = neighbours(ids, 2, b"a")
    assert ring == neighbours(reversed(ids), 2, b"a")
    assert len({tuple(sorted(neighbours(ids, 2, bytes([s])).items())) for s in range(99)}) > 30  # of 5! / 2 = 60


def test_all_rings_are_equally_likely() -> None:
    draws, seen = 3000, dict.fromkeys(range(1, 6), 0)
    for draw in range(draws):
        for other in neighbours(range(6), 2, draw.to_bytes(4))[0]:
            seen[other] += 1
    # each of 5 others beside client 0 with chance 2 / 5
    assert all(abs(count - 0.4 * draws) < 5 * math.sqrt(draws * 0.24) for count in seen.values())


@pytest.mark.parametrize("k", [0, 1, 3, 6, 7, -2])
def test_degrees_no_ring_has_are_ours(k: int) -> None:
    with pytest.raises(ValueError, match="6 clients"):
        neighbours(range(6), k, b"")


@pytest.mark.parametrize("ids", [[1, 1, 2], [-1, 2, 3], [1, 2, 2**64]])
def test_ids_that_repeat_or_are_too_large_are_ours(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="distinct"):
        neighbours(ids, 2, b"")
