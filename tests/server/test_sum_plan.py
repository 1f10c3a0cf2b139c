"""What a cohort under secure aggregation is promised, and what is refused before a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_runtime.config import from_flat
from edge_runtime.errors import ConfigError
from edge_runtime.secagg import Policy, choose_neighbours
from edge_runtime.sums import agreed_encoder
from server.config import ServerConfig
from server.parts import read_devices
from server.protection_config import SecureConfig
from server.rounds import RoundResult
from server.sum_plan import SummedUpdates, choose_degree, group_sizes, round_seed

SIZE = 1000


def config(**settings: Any) -> ServerConfig:
    return from_flat(ServerConfig, {"secure.enabled": True, "server.cohort": 10, **settings})


@given(
    clients=st.integers(2, 200),
    dropout=st.sampled_from([0.0, 0.1, 0.2, 0.29, 0.33]),
    corrupt=st.sampled_from([0.0, 0.1, 0.2, 0.33]),
    malicious=st.booleans(),
)
def test_a_threshold_is_above_the_corrupt_and_within_those_who_stay(
    clients: int, dropout: float, corrupt: float, malicious: bool
) -> None:
    secure = SecureConfig(dropout=dropout, corrupt=corrupt, malicious_server=malicious, min_clients=2)
    try:
        k, t = choose_degree(secure, clients)
    except ConfigError:
        gone = math.floor(dropout * clients + 1e-9) + math.floor(corrupt * clients + 1e-9)
        assert clients - gone < clients // 2 + 1 or clients < 8
        return
    bad, lost = math.floor(corrupt * clients + 1e-9), math.floor(dropout * clients + 1e-9)
    assert k == clients - 1
    assert bad < t <= clients - lost
    assert t >= 2
    assert not malicious or 2 * t > clients + bad, "two quorums share an honest client"


@given(st.integers(4, 200), st.booleans())
def test_clients_accept_the_settings_that_are_chosen_by_default(clients: int, malicious: bool) -> None:
    """The floor that a node has if its owner says nothing, and the one that fears the server."""
    settings = config(**{"server.cohort": clients, "server.min_updates": 1, "secure.malicious_server": malicious})
    plan = SummedUpdates(settings, SIZE).sum_plan(3, clients)
    agreed = plan.settings.for_round(run=1, round_number=3, clients=clients, count=plan.encoder.count)
    Policy(malicious_server=malicious).check_config(agreed)
    assert agreed.cannot_wrap
    assert agreed_encoder(agreed, SIZE) == plan.encoder


def test_beyond_two_hundred_clients_the_graph_is_sparse() -> None:
    secure = SecureConfig()
    assert choose_degree(secure, 200).k == 199
    assert choose_degree(secure, 500) == choose_neighbours(500, 0.1, 0.2, malicious_server=True)
    assert choose_degree(secure, 500).k < 499


@given(st.integers(2, 300), st.integers(1, 20), st.integers(2, 10))
def test_groups_are_even_and_hold_everybody(clients: int, groups: int, least: int) -> None:
    assume(clients >= groups * least)
    sizes = group_sizes(clients, SecureConfig(groups=groups, min_clients=least))
    assert sum(sizes) == clients
    assert len(sizes) == groups
    assert least <= min(sizes) <= max(sizes) <= min(sizes) + 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"secure.threshold": 9}, r"secure\.threshold = 9: 9 of 10 clients must stay to the end"),
        ({"secure.threshold": 5}, r"secure\.threshold = 5: must be >= 6"),
        ({"secure.dropout": 0.6}, r"secure\.dropout = 0\.6 leaves 4; raise server\.cohort"),
        ({"secure.min_clients": 9}, r"secure\.min_clients = 9: 10 clients are in a sum and 2 may drop out"),
        ({"secure.groups": 4, "robust.aggregator": "median"}, r"secure\.groups = 4: 10 clients do not make groups"),
        ({"secure.bits": 8}, r"^\[secure\] bits = 8: sums of 10 clients"),
        ({"secure.neighbours": 4}, r"secure\.neighbours = 4: fewer than all are not safe"),
    ],
)
def test_what_a_cohort_cannot_promise_is_refused_before_the_run(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SummedUpdates(config(**settings), SIZE)


def test_a_list_of_devices_that_cannot_be_read_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"secure\.devices = '/none': cannot be read"):
        read_devices("/none")
    (tmp_path / "devices").write_text("ab" * 32 + "\n# one more\n" + "zz" * 32 + "\n")
    with pytest.raises(ConfigError, match="line 3 is no public key"):
        read_devices(str(tmp_path / "devices"))


def settled(planner: SummedUpdates, norms: np.ndarray, rounds: int) -> list[float]:
    """The clips over so many rounds of clients with these norms."""
    clips = []
    for number in range(1, rounds + 1):
        clips.append(planner.sum_plan(number, norms.size).encoder.clip)
        votes = float(np.where(norms <= clips[-1], 1, -1).sum())
        names = tuple(map(str, range(norms.size)))
        planner.settle(number, RoundResult(number, np.zeros(1), names, (), None, 0, None, votes=votes))
    return clips


@pytest.mark.parametrize("scale", [0.01, 3.0, 200.0])
def test_the_clip_finds_the_largest_norms_from_afar(scale: float) -> None:
    norms = scale * np.linspace(0.5, 1.5, 10)
    clips = settled(SummedUpdates(config(), SIZE), norms, 80)
    assert all(scale < clip < 2.5 * scale for clip in clips[-10:])
    few = settled(SummedUpdates(config(), SIZE), 3.0 * np.linspace(0.5, 1.5, 10), 4)
    assert few[-1] > 2.5, "and it does so in a few rounds where it is not far"


def test_a_clip_that_is_given_stays_and_takes_no_votes() -> None:
    plan = SummedUpdates(config(**{"privacy.clip": 2.5}), SIZE).sum_plan(1, 10)
    assert (plan.encoder.clip, plan.encoder.vote, plan.settings.clip) == (2.5, 0, "2.5")


def test_rounds_rotate_differently_and_alike_for_all() -> None:
    assert len({round_seed(seed, number) for seed in range(10) for number in range(10)}) == 100
    assert round_seed(1, 2) == round_seed(1, 2)
