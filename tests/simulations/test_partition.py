"""Partitioners: every row goes to one client, the same seed gives the same split, and alpha sets the skew."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError
from edge_runtime.train.config import DataConfig
from simulations.partition import Rows, dirichlet, partition

Labels = NDArray[np.int64]
BY_ROW = ("iid", "dirichlet", "shards")
SEEDS = st.integers(0, 2**31 - 1)


def labels() -> st.SearchStrategy[Labels]:
    return arrays(np.int64, st.integers(1, 120), elements=st.integers(0, 5))


@st.composite
def splits(draw: st.DrawFn, names: tuple[str, ...] = BY_ROW) -> DataConfig:
    return DataConfig(
        partition=draw(st.sampled_from(names)),
        clients=draw(st.integers(1, 12)),
        alpha=draw(st.floats(1e-3, 1e4)),
        shards_per_client=draw(st.integers(1, 4)),
        min_examples=draw(st.integers(1, 6)),
    )


def attempt(labels: Labels, users: Labels | None, data: DataConfig, seed: int) -> list[Rows] | None:
    """The split, or None if the settings were refused; any other error is a failure."""
    try:
        return partition(labels, users, data, seed)
    except ConfigError:
        return None


def equal(a: list[Rows], b: list[Rows]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@settings(deadline=None)
@given(labels(), splits(), SEEDS)
def test_every_row_goes_to_exactly_one_client(labels: Labels, data: DataConfig, seed: int) -> None:
    parts = attempt(labels, None, data, seed)
    assume(parts is not None)
    assert parts is not None
    assert len(parts) == data.clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert min(map(len, parts)) >= data.min_examples


@settings(deadline=None)
@given(labels(), splits(), SEEDS)
def test_the_same_seed_gives_the_same_split(labels: Labels, data: DataConfig, seed: int) -> None:
    first, again = attempt(labels, None, data, seed), attempt(labels, None, data, seed)
    assume(first is not None)
    assert first is not None
    assert again is not None
    assert equal(first, again)


@pytest.mark.parametrize("name", BY_ROW)
def test_another_seed_gives_another_split(name: str) -> None:
    data = DataConfig(partition=name, clients=5, alpha=1.0)
    rows = np.arange(500) % 10
    assert not equal(partition(rows, None, data, 1), partition(rows, None, data, 2))


@settings(deadline=None)
@given(labels(), splits(("iid",)), SEEDS)
def test_iid_parts_are_equal_in_size_and_refused_only_when_they_must_be(
    labels: Labels, data: DataConfig, seed: int
) -> None:
    parts = attempt(labels, None, data, seed)
    assert (parts is None) == (len(labels) // data.clients < data.min_examples)
    if parts is not None:
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(deadline=None)
@given(labels(), splits(("shards",)), SEEDS)
def test_a_client_has_so_many_shards_and_each_spans_few_classes(labels: Labels, data: DataConfig, seed: int) -> None:
    parts = attempt(labels, None, data, seed)
    assume(parts is not None)
    assert parts is not None
    longest = -(-len(labels) // (data.clients * data.shards_per_client))
    smallest_class = min(np.bincount(labels)[np.unique(labels)])
    classes_per_shard = 1 + -(-longest // smallest_class)
    for part in parts:
        assert len(part) <= data.shards_per_client * longest
        assert len(np.unique(labels[part])) <= data.shards_per_client * classes_per_shard


def test_shards_of_whole_classes_hold_one_class_each() -> None:
    rows = np.repeat(np.arange(10), 40)
    parts = partition(rows, None, DataConfig(partition="shards", clients=20, shards_per_client=2), 4)
    assert {len(part) for part in parts} == {20}
    assert max(len(np.unique(rows[part])) for part in parts) == 2


@settings(deadline=None)
@given(arrays(np.int64, st.integers(1, 120), elements=st.integers(3, 14)), splits(("natural",)), SEEDS)
def test_natural_never_splits_a_user(users: Labels, data: DataConfig, seed: int) -> None:
    parts = attempt(np.zeros_like(users), users, data, seed)
    assume(parts is not None)
    assert parts is not None
    assert len(parts) == data.clients
    owners = [np.unique(users[part]) for part in parts]
    assert all(len(owner) == 1 for owner in owners)
    assert len({int(owner[0]) for owner in owners}) == data.clients
    for part, owner in zip(parts, owners, strict=True):
        assert np.array_equal(np.sort(part), np.flatnonzero(users == owner[0]))
        assert len(part) >= data.min_examples


def test_natural_draws_its_users_by_the_seed() -> None:
    users = np.repeat(np.arange(50), 4)
    data = DataConfig(partition="natural", clients=10)

    def chosen(seed: int) -> list[int]:
        return [int(users[part[0]]) for part in partition(np.zeros(200, np.int64), users, data, seed)]

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)
    assert {user for seed in range(60) for user in chosen(seed)} == set(range(50))


def test_natural_needs_users_and_enough_of_them() -> None:
    rows = np.zeros(100, np.int64)
    with pytest.raises(ConfigError, match="has no users; use dirichlet, iid or shards"):
        partition(rows, None, DataConfig(partition="natural", clients=3), 1)
    with pytest.raises(ConfigError, match=r"data\.clients = 6: must be <= 5"):
        partition(rows, np.arange(100) % 5, DataConfig(partition="natural", clients=6), 1)


@pytest.mark.parametrize("name", [*BY_ROW, "natural"])
def test_too_many_clients_are_refused_with_the_range(name: str) -> None:
    data = DataConfig(partition=name, clients=26, min_examples=4)
    with pytest.raises(ConfigError, match=r"data\.clients = 26: .*must be <= 25\b"):
        partition(np.arange(100) % 10, np.arange(100), data, 1)


@pytest.mark.parametrize(
    ("data", "users"),
    [
        (DataConfig(partition="dirichlet", clients=10, alpha=1e-3, min_examples=5), None),
        (DataConfig(partition="natural", clients=4, min_examples=10), np.repeat(np.arange(4), [30, 30, 31, 9])),
        (DataConfig(partition="shards", clients=33, shards_per_client=3, min_examples=3), None),
    ],
    ids=lambda value: value.partition if isinstance(value, DataConfig) else "",
)
def test_min_examples_is_kept_or_refused(data: DataConfig, users: Labels | None) -> None:
    rows = np.zeros(100, np.int64)
    refused = 0
    for seed in range(5):
        parts = attempt(rows, users, data, seed)
        refused += parts is None
        assert parts is None or min(map(len, parts)) >= data.min_examples
    if data.partition != "shards":
        assert refused == 5
        with pytest.raises(ConfigError, match=r"data\.min_examples = .* leaves a client with \d+ rows"):
            partition(rows, users, data, 0)


def test_dirichlet_draws_again_until_min_examples_is_kept() -> None:
    rows = np.arange(400) % 4
    data = DataConfig(partition="dirichlet", clients=6, alpha=0.5, min_examples=20)
    single = [min(map(len, dirichlet(rows, 6, 0.5, np.random.default_rng(seed)))) for seed in range(20)]
    kept = [min(map(len, partition(rows, None, data, seed))) for seed in range(20)]
    assert min(single) < 20
    assert min(kept) >= 20


def label_entropy(labels: Labels, part: Rows) -> float:
    """Entropy in nats of the class histogram of one client."""
    shares = np.bincount(labels[part], minlength=10) / len(part)
    return float(-sum(share * np.log(share) for share in shares if share))


def mean_entropy(labels: Labels, data: DataConfig, seeds: int = 8) -> float:
    parts = [part for seed in range(seeds) for part in partition(labels, None, data, seed)]
    return float(np.mean([label_entropy(labels, part) for part in parts]))


def test_skew_grows_as_alpha_falls() -> None:
    rows = np.arange(4000) % 10
    entropies = [
        mean_entropy(rows, DataConfig(partition="dirichlet", clients=10, alpha=alpha))
        for alpha in (1000.0, 10.0, 1.0, 0.3, 0.05)
    ]
    assert all(before > after + 0.02 for before, after in pairwise(entropies))
    assert entropies[0] > np.log(10) - 0.05
    assert entropies[-1] < 0.8


def test_sizes_spread_as_alpha_falls() -> None:
    rows = np.arange(4000) % 10

    def spread(alpha: float) -> float:
        data = DataConfig(partition="dirichlet", clients=10, alpha=alpha)
        return float(np.mean([np.std([*map(len, partition(rows, None, data, seed))]) for seed in range(8)]))

    assert spread(0.1) > spread(1.0) > spread(100.0)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 20.0])
def test_dirichlet_shares_have_the_distributions_mean_and_variance(alpha: float) -> None:
    """Dirichlet(alpha 1_K): mean 1/K, variance (1/K)(1 - 1/K)/(K alpha + 1); within 5 standard errors of 600 draws."""
    clients, count, draws = 5, 2000, 600
    rows = np.zeros(count, np.int64)
    rng = np.random.default_rng(11)
    shares = np.array([[len(part) / count for part in dirichlet(rows, clients, alpha, rng)] for _ in range(draws)])
    variance = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert np.abs(shares.mean(0) - 1 / clients).max() < 5 * np.sqrt(variance / draws) + 1 / count
    np.testing.assert_allclose(shares.var(0), variance, rtol=0.35)


@pytest.mark.parametrize("alpha", [1e-300, 1e-12, 1e6])
def test_dirichlet_stands_the_ends_of_alphas_range(alpha: float) -> None:
    rows = np.arange(100) % 5
    parts = dirichlet(rows, 4, alpha, np.random.default_rng(0))
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(100))


@pytest.mark.parametrize("name", BY_ROW)
def test_labels_need_not_start_at_zero_or_be_sorted(name: str) -> None:
    rows = np.array([7, -3, 1000] * 20)
    parts = partition(rows, None, DataConfig(partition=name, clients=4, alpha=5.0), 1)
    assert sorted(np.concatenate(parts)) == list(range(60))


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_no_client_is_favoured(name: str) -> None:
    """Over 300 seeds each client holds row 0 about equally often: 60 expected, 5 sigma is 35."""
    rows = np.zeros(100, np.int64)
    data = DataConfig(partition=name, clients=5, alpha=10.0)
    holders = [
        next(client for client, part in enumerate(partition(rows, None, data, seed)) if 0 in part)
        for seed in range(300)
    ]
    assert np.abs(np.bincount(holders, minlength=5) - 60).max() <= 35
