"""Robust aggregation: Flower's and NumPy's figures, what a minority of liars can do to them, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.server.strategy.aggregate import aggregate_krum, aggregate_median, aggregate_trimmed_avg
from flwr.serverapp.strategy.multikrum import select_multikrum
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.errors import ConfigError, PeerError, RunError
from server import robust
from server.protection_config import AGGREGATORS, RobustConfig
from server.robust import make_aggregate
from simulations.runner import simulate
from simulations.scenario import Scenario, load_scenario

ROBUST = AGGREGATORS[1:]
LARGEST = float(np.finfo(np.float32).max)
D = 5
ordinary = st.floats(-10, 10, width=32)
anything = st.one_of(st.floats(-LARGEST, LARGEST, width=32), st.sampled_from([1e30, -1e30, LARGEST, -LARGEST]))


def aggregate(rows: Any, config: RobustConfig) -> Any:
    total = make_aggregate(config, len(rows[0]))
    for k, row in enumerate(rows):
        total.add(np.asarray(row, np.float32), 1 + k)
    return total.mean()


def cohort(n: int, size: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(0.1, 1, (n, size)).astype(np.float32)


def flowers(rows: Any) -> list[tuple[list[Any], int]]:
    """As a list of clients with two tensors each, all of one example."""
    return [([row[:3], row[3:]], 1) for row in rows]


@pytest.mark.parametrize("n", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("size", [4, robust.BLOCK + 3])
def test_the_median_is_flowers_and_numpys(n: int, size: int) -> None:
    rows = cohort(n, size)
    found = aggregate(rows, RobustConfig("median"))
    np.testing.assert_array_equal(found, np.median(rows.astype(np.float64), axis=0))
    np.testing.assert_allclose(found, np.concatenate(aggregate_median(flowers(rows))), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("trim", [0.0, 0.1, 0.25, 0.49])
@pytest.mark.parametrize("n", [1, 4, 9, 20])
def test_the_trimmed_mean_is_flowers(n: int, trim: float) -> None:
    rows = cohort(n, robust.BLOCK + 3)
    theirs = np.concatenate(aggregate_trimmed_avg(flowers(rows), trim))
    np.testing.assert_allclose(aggregate(rows, RobustConfig("trimmed_mean", trim=trim)), theirs, rtol=1e-5, atol=1e-6)


@given(st.integers(0, 49), st.integers(1, 1000))
def test_a_share_of_hundredths_cuts_as_many_as_it_says(hundredths: int, n: int) -> None:
    cut = RobustConfig("trimmed_mean", trim=hundredths / 100).cut(n)
    assert cut == n * hundredths // 100
    assert 2 * cut < n


def test_liars_as_many_as_the_trim_are_all_cut_off() -> None:
    rows = np.repeat(np.float32([[0], [1]]), [71, 29], axis=0)
    assert aggregate(rows, RobustConfig("trimmed_mean", byzantine=29, trim=0.29)) == [0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("n", "bad"), [(3, 0), (5, 1), (9, 3), (12, 2)])
def test_krum_and_multi_krum_choose_as_flower_does(n: int, bad: int, seed: int) -> None:
    rows = cohort(n, robust.BLOCK + 3 if seed == 0 else 7, seed)
    krum = aggregate(rows, RobustConfig("krum", byzantine=bad))
    np.testing.assert_array_equal(krum, np.concatenate(aggregate_krum(flowers(rows), bad, 0)))
    several = aggregate(rows, RobustConfig("multi_krum", byzantine=bad))
    theirs = np.concatenate(aggregate_krum(flowers(rows), bad, n - bad - 2))
    np.testing.assert_allclose(several, theirs, rtol=1e-5, atol=1e-6)
    replies = [
        RecordDict({"a": ArrayRecord({"w": Array(row)}), "m": MetricRecord({"k": k})}) for k, row in enumerate(rows)
    ]
    chosen = [int(reply["m"]["k"]) for reply in select_multikrum(replies, bad, n - bad - 2)]
    np.testing.assert_allclose(several, rows[chosen].mean(axis=0, dtype=np.float64), rtol=1e-9, atol=1e-12)


@given(hnp.arrays(np.float32, (6, D), elements=ordinary), st.sampled_from([1.0, 1e30]))
def test_distances_are_those_of_the_differences(rows: Any, huge: float) -> None:
    rows[0] *= np.float32(huge)
    exact = rows.astype(np.float64)
    expected = np.square(exact[:, None] - exact).sum(axis=2)
    found = robust.squared_distances(list(rows))
    largest = np.maximum.outer(*[np.square(exact).sum(axis=1)] * 2)
    assert (np.abs(found - expected) <= 1e-14 * largest).all()


honest_and_bad = st.integers(1, 9).flatmap(
    lambda honest: st.integers(0, honest - 1).flatmap(
        lambda bad: st.tuples(
            hnp.arrays(np.float32, (honest, D), elements=ordinary),
            hnp.arrays(np.float32, (bad, D), elements=anything),
            st.randoms(use_true_random=False),
        )
    )
)


def shuffled(honest: Any, bad: Any, random: Any) -> Any:
    rows = [*honest, *bad]
    random.shuffle(rows)
    return rows


@given(honest_and_bad)
def test_a_minority_cannot_move_the_median_out_of_the_honest_range(case: Any) -> None:
    honest, bad, random = case
    found = aggregate(shuffled(honest, bad, random), RobustConfig("median", byzantine=len(bad)))
    assert (honest.min(axis=0) <= found).all()
    assert (found <= honest.max(axis=0)).all()


@given(honest_and_bad)
def test_a_minority_within_the_trim_cannot_move_the_trimmed_mean_out_of_the_honest_range(case: Any) -> None:
    honest, bad, random = case
    rows = shuffled(honest, bad, random)
    trim = float(Fraction(-(-1000 * len(bad) // len(rows)), 1000))  # the share of bad ones, rounded up
    found = aggregate(rows, RobustConfig("trimmed_mean", byzantine=len(bad), trim=trim))
    slack = 1e-12 * np.abs(honest).max()
    assert (honest.min(axis=0) - slack <= found).all()
    assert (found <= honest.max(axis=0) + slack).all()


@given(
    st.integers(0, 4),
    st.integers(0, 3),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["apart", "together", "opposite", "huge"]),
)
def test_krum_takes_honest_updates_when_those_are_near_each_other(bad: int, more: int, seed: int, attack: str) -> None:
    """Honest ones within 0.1 of a centre, liars 10 away from it: apart, all at one place, mirrored, or huge."""
    rng = np.random.default_rng(seed)
    n = 2 * bad + 3 + more
    centre = rng.normal(size=D)
    honest = centre + rng.uniform(-0.04, 0.04, (n - bad, D))
    away = rng.normal(size=(bad, D))
    away *= 10 / np.linalg.norm(away, axis=1, keepdims=True)
    lies = {
        "apart": centre + away,
        "together": centre + np.repeat(away[:1], bad, axis=0),
        "opposite": centre + away * np.where(np.arange(bad) % 2, 1, -1)[:, None],
        "huge": 1e29 * away,
    }[attack]
    rows = rng.permutation(np.concatenate([honest, lies]).astype(np.float32))
    krum = aggregate(rows, RobustConfig("krum", byzantine=bad))
    assert (krum == honest.astype(np.float32)).all(axis=1).any()
    several = aggregate(rows, RobustConfig("multi_krum", byzantine=bad))
    assert np.linalg.norm(several - centre) < 0.1


@given(honest_and_bad, st.floats(0.01, 100))
def test_a_bound_holds_what_each_can_do(case: Any, bound: float) -> None:
    honest, bad, random = case
    n = len(honest) + len(bad)
    found = aggregate(shuffled(honest, bad, random), RobustConfig("norm_bound", byzantine=len(bad), norm=bound))
    norms = np.linalg.norm(honest.astype(np.float64), axis=1)
    scaled = honest * np.minimum(1, bound / np.maximum(norms, 1e-300))[:, None]
    assert np.linalg.norm(found - scaled.sum(axis=0) / n) <= len(bad) * bound / n * (1 + 1e-9) + 1e-9


@given(honest_and_bad)
def test_the_median_norm_is_a_bound_that_a_minority_cannot_raise(case: Any) -> None:
    honest, bad, random = case
    found = aggregate(shuffled(honest, bad, random), RobustConfig("norm_bound", byzantine=len(bad)))
    largest = np.linalg.norm(honest.astype(np.float64), axis=1).max()
    assert np.linalg.norm(found) <= largest * (1 + 1e-9)


@pytest.mark.parametrize("aggregator", ROBUST)
@pytest.mark.parametrize("norm", [0.0, 1.5])
def test_neither_order_nor_claimed_examples_count(aggregator: str, norm: float) -> None:
    config = RobustConfig(aggregator, byzantine=2, norm=norm)
    rows = cohort(11, 40)
    for seed in range(5):
        again = aggregate(np.random.default_rng(seed).permutation(rows), config)
        np.testing.assert_allclose(again, aggregate(rows, config), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("aggregator", AGGREGATORS)
@pytest.mark.parametrize("norm", [0.0, 1.5])
def test_what_is_no_update_is_refused_and_leaves_no_trace(aggregator: str, norm: float) -> None:
    total = make_aggregate(RobustConfig(aggregator, norm=norm), 4)
    rows = cohort(5, 4)
    for row in rows:
        total.add(row, 2)
        for bad in (np.nan, np.inf, -np.inf):
            with pytest.raises(PeerError, match="NaN or infinite"):
                total.add(np.array([0, 0, bad, 0], np.float32), 2)
        with pytest.raises(PeerError, match="examples"):
            total.add(row, 0)
    assert (total.count, total.total_weight) == (5, 10)
    np.testing.assert_array_equal(total.mean(), aggregate_alike(rows, RobustConfig(aggregator, norm=norm)))


def aggregate_alike(rows: Any, config: RobustConfig) -> Any:
    total = make_aggregate(config, rows.shape[1])
    for row in rows:
        total.add(row, 2)
    return total.mean()


@pytest.mark.parametrize("aggregator", ROBUST)
def test_an_update_is_kept_and_not_the_buffer_it_came_in(aggregator: str) -> None:
    rows, buffer = cohort(7, 30), np.empty(30, np.float32)
    total = make_aggregate(RobustConfig(aggregator), 30)
    for row in rows:
        buffer[:] = row
        total.add(buffer, 1)
    buffer[:] = 0
    np.testing.assert_array_equal(total.mean(), aggregate(rows, RobustConfig(aggregator)))


@pytest.mark.parametrize("aggregator", ROBUST)
@pytest.mark.parametrize("norm", [0.0, 1.5])
def test_memory_is_the_updates_and_little_more(aggregator: str, norm: float) -> None:
    n, size = 24, 400_000
    row = cohort(1, size)[0]
    tracemalloc.start()
    total = make_aggregate(RobustConfig(aggregator, norm=norm), size)
    for _ in range(n):
        total.add(row, 1)
    total.mean()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held = 0 if aggregator == "norm_bound" and norm else 4 * n * size
    assert peak < held + 2 * 8 * size + 8 * n * robust.BLOCK + (4 << 20)


@pytest.mark.parametrize(
    ("config", "least"),
    [
        (RobustConfig("median", byzantine=2), 5),
        (RobustConfig("trimmed_mean", byzantine=2, trim=0.4), 5),
        (RobustConfig("norm_bound", byzantine=2), 5),
        (RobustConfig("norm_bound", byzantine=2, norm=1.0), 5),
        (RobustConfig("krum", byzantine=2), 7),
        (RobustConfig("multi_krum", byzantine=2), 7),
        (RobustConfig("krum"), 3),
        (RobustConfig("median"), 1),
    ],
)
def test_fewer_updates_than_the_rule_needs_have_no_mean(config: RobustConfig, least: int) -> None:
    assert np.isfinite(aggregate(cohort(least, 3), config)).all()
    total = make_aggregate(config, 3)
    for row in cohort(least - 1, 3):
        total.add(row, 1)
    with pytest.raises(RunError, match=rf"of {least - 1} good updates .* needs {least} of them"):
        total.mean()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ("robust.aggregator=krum robust.byzantine=3", r"server\.cohort = 8: .*'krum': .* needs 9 of them"),
        ("robust.aggregator=multi_krum robust.byzantine=3", r"needs 9 of them"),
        ("robust.aggregator=median robust.byzantine=4", r"needs 9 of them"),
        ("robust.aggregator=trimmed_mean robust.byzantine=2", r"trim = 0\.2 cuts 1 off at each end.*trim >= 2/8"),
        ("robust.byzantine=1", r"robust\.byzantine = 1: must be 0 for a mean.*median"),
        (
            "robust.aggregator=median robust.byzantine=2 secure.enabled=true secure.groups=4",
            r"secure\.groups = 4: .*needs 5 of them",
        ),
        ("faults.poison=0.2 uplink.codec=int8", r"faults\.poison = 0\.2: .*float32"),
        ("faults.poison=0.2 secure.enabled=true", r"faults\.poison = 0\.2: .*secure\.enabled = false"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(overrides: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_scenario("digits", overrides.split())


def run(out: Path, *overrides: str) -> tuple[Scenario, dict[str, Any]]:
    settings = load_scenario("digits", [*overrides, f"run.out={out}", "deploy.formats="])
    simulate(settings)
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return settings, record


def test_a_round_with_too_few_for_the_rule_says_so_and_leaves_the_model(tmp_path: Path) -> None:
    krum = ["robust.aggregator=krum", "robust.byzantine=2", "faults.dropout=0.2", "server.rounds=6"]
    krum.append("server.over_selection=1")  # no spares for those who drop out
    _, record = run(tmp_path / "run", *krum)
    few = [row for row in record["rounds"] if 4 <= row["clients"] < 7]
    assert {row["applied"] for row in record["rounds"]} == {True, False}
    for row in record["rounds"]:
        assert row["applied"] == (row["clients"] >= 7)
    for row in few:
        assert (
            row["unchanged"]
            == f"of {row['clients']} good updates there is no krum: robust.byzantine = 2 needs 7 of them"
        )


def test_one_in_five_turning_its_updates_round_breaks_the_mean_and_not_the_others(tmp_path: Path) -> None:
    """4 of 20 clients send -10 times their update. Digits split evenly; guessing is right in 10 % of cases."""
    attack = ["data.partition=iid", "server.cohort=20", "faults.poison=0.2"]

    def accuracy(name: str, *overrides: str) -> float:
        settings, record = run(tmp_path / name, *attack, "server.rounds=10", *overrides)
        assert len(settings.faults.poisoners(settings.seed, 20)) == 4
        return float(record["final"]["accuracy"])

    assert accuracy("mean") < 0.3
    for name in ("median", "trimmed_mean", "multi_krum"):
        assert accuracy(name, f"robust.aggregator={name}", "robust.byzantine=4") > 0.7
