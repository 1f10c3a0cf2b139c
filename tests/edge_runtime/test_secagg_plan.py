"""A plan keeps what it promises: no wrap without noise, rare wraps with it, and inflation as published."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import edge_runtime as er
from edge_runtime.errors import ConfigError
from edge_runtime.secagg.lanes import Lanes
from edge_runtime.secagg.plan import BLOCK, WIDTHS, padded_size, plan_bits
from edge_runtime.updates.sparsify import kept_count as share_of


def gaussian(multiplier: float, size: int, clip: float = 1.0) -> Callable[[float], float]:
    """Noise for the length of rounded vectors: sqrt((sc)^2 + d/4 + sc + sqrt(d)/2) at most, by Kairouz et al."""

    def noise_std(scale: float) -> float:
        length, d = scale * clip, padded_size(size)
        rounded = math.sqrt(length**2 + d / 4 + length + math.sqrt(d) / 2)
        return multiplier * min(length + math.sqrt(d), rounded)

    return noise_std


@settings(deadline=None)
@given(st.integers(2, 5000), st.integers(1, 10**6), st.integers(1, 10), st.integers(0, 50), st.floats(0.01, 1))
def test_without_noise_the_narrowest_lane_that_cannot_wrap(
    clients: int, size: int, value_bits: int, max_weight: int, fraction: float
) -> None:
    """The round's own check is the judge, for this width and for the next narrower one."""
    plan = plan_bits(
        clients=clients, size=size, clip=2.0, value_bits=value_bits, max_weight=max_weight, fraction=fraction
    )
    assert plan.kept == share_of(padded_size(size), fraction)
    assert (plan.wrap, plan.noise_std, plan.inflation) == (False, 0.0, 1.0)

    def config(bits: int) -> er.secagg.RoundConfig:
        agreed = er.secagg.Config(bits=bits, max_abs=plan.value_max, max_weight=max_weight)
        return agreed.for_round(run=0, round_number=1, clients=clients, count=plan.kept)

    agreed = config(plan.bits)
    assert plan.bits_per_parameter == pytest.approx(agreed.lanes.wire_bits * agreed.lanes.count / size)
    if plan.bits > WIDTHS[0]:
        with pytest.raises(ConfigError):
            config(WIDTHS[WIDTHS.index(plan.bits) - 1])


@pytest.mark.parametrize(
    ("clients", "size", "value_bits", "fraction", "bits", "wire"),
    [
        (100, 9610, 4, 0.25, 12, 3.24),
        (100, 9610, 1, 1.0, 8, 8.1),
        (100, 9610, 4, 1.0, 12, 12.96),
        (10, 9610, 4, 1, 8, 8.1),
    ],
)
def test_bits_of_a_parameter_on_the_wire(
    clients: int, size: int, value_bits: int, fraction: float, bits: int, wire: float
) -> None:
    plan = plan_bits(clients=clients, size=size, clip=2.0, value_bits=value_bits, fraction=fraction)
    assert plan.bits == bits
    assert plan.bits_per_parameter == pytest.approx(wire, abs=0.01)


def test_the_grid_ends_at_four_standard_deviations_of_a_rotated_update() -> None:
    plan = plan_bits(clients=10, size=5 * BLOCK, clip=3.0, value_bits=5)
    assert plan.value_max == 15
    assert plan.value_max / plan.scale == pytest.approx(4 * 3.0 / math.sqrt(5 * BLOCK))


# Noise over the central Gaussian's at equal epsilon and delta; the multiplier is that epsilon's, by Renyi divergence.
PUBLISHED = [
    (100, 2**20, 1.171, {14: 1.047, 16: 1.003, 18: 1.001}),  # epsilon 5: 100 of 3,400 clients, 1,500 rounds
    (100, 2**20, 0.848, {14: 1.024, 16: 1.002, 18: 1.001}),  # epsilon 10
    (100, 2**20, 0.927, {14: 1.029, 16: 1.002, 18: 1.001}),  # epsilon 2: 100 of 10,000, 500 rounds
    (100, 2**20, 0.580, {12: 1.24, 14: 1.011, 16: 1.001}),  # epsilon 8
    (100, 2**17, 0.927, {12: 1.066, 14: 1.004, 16: 1.001}),
    (100, 2**17, 0.580, {12: 1.027, 14: 1.002, 16: 1.000}),
    (1000, 2**20, 0.721, {14: 1.050, 16: 1.004, 18: 1.001}),
    (100, 2**15, 0.680, {10: 1.235, 12: 1.014, 14: 1.002, 16: 1.001}),  # epsilon 5
]


@pytest.mark.parametrize(("clients", "size", "multiplier", "ratios"), PUBLISHED)
def test_inflation_by_width(clients: int, size: int, multiplier: float, ratios: dict[int, float]) -> None:
    for bits, ratio in ratios.items():
        plan = plan_bits(clients=clients, size=size, clip=1.0, bits=bits, noise_std=gaussian(multiplier, size))
        assert plan.inflation == pytest.approx(ratio, abs=0.006)
        assert (plan.bits, plan.wrap, plan.value_max) == (bits, True, 0)


@pytest.mark.parametrize(("clients", "size", "multiplier", "bits"), [(100, 2**20, 1.171, 10), (1000, 2**20, 0.721, 10)])
def test_a_lane_without_room_is_refused_and_the_next_one_named(
    clients: int, size: int, multiplier: float, bits: int
) -> None:
    with pytest.raises(ConfigError, match=r"take 1[26] bits") as caught:
        plan_bits(clients=clients, size=size, clip=1.0, bits=bits, noise_std=gaussian(multiplier, size))
    assert "\n" not in str(caught.value)
    named = 12 if "12 bits" in str(caught.value) else 16
    plan_bits(clients=clients, size=size, clip=1.0, bits=named, noise_std=gaussian(multiplier, size))


plans = st.tuples(st.integers(2, 2000), st.integers(1, 2**22), st.floats(0.2, 8), st.floats(1e-3, 1e3))


@settings(deadline=None)
@given(plans, st.sampled_from(WIDTHS), st.floats(2, 8))
def test_the_scale_is_the_largest_that_leaves_the_headroom(
    chosen: tuple[int, int, float, float], bits: int, headroom: float
) -> None:
    clients, size, multiplier, clip = chosen
    noise_std = gaussian(multiplier, size, clip)
    try:
        plan = plan_bits(clients=clients, size=size, clip=clip, bits=bits, noise_std=noise_std, headroom=headroom)
    except ConfigError:
        assume(False)

    def deviation(scale: float) -> float:
        return math.sqrt((scale * clients * clip) ** 2 / padded_size(size) + clients / 4 + noise_std(scale) ** 2)

    half_lane = 2.0 ** (bits - 1) / headroom
    assert deviation(plan.scale) <= half_lane * (1 + 1e-9)
    finest = plan.scale * clip >= 15.9 * math.sqrt(padded_size(size))
    assert finest or deviation(plan.scale * 1.002) > half_lane
    assert plan.noise_std == noise_std(plan.scale)
    assert plan.inflation >= 0.9999
    if finest:
        assert plan.inflation < 1 + 0.002 + clients / (8 * plan.noise_std**2)


@settings(deadline=None)
@given(plans)
def test_a_chosen_width_is_the_narrowest_that_is_good_enough(chosen: tuple[int, int, float, float]) -> None:
    clients, size, multiplier, clip = chosen
    noise_std = gaussian(multiplier, size, clip)

    def inflation(bits: int) -> float:
        try:
            return plan_bits(clients=clients, size=size, clip=clip, bits=bits, noise_std=noise_std).inflation
        except ConfigError:
            return math.inf

    plan = plan_bits(clients=clients, size=size, clip=clip, noise_std=noise_std)
    assert plan.inflation == inflation(plan.bits)
    assert all(inflation(width) > 1.05 for width in WIDTHS if width < plan.bits)
    if plan.inflation > 1.05:
        assert plan.inflation == min(map(inflation, WIDTHS))


@pytest.mark.parametrize("headroom", [2.5, 3.0, 4.0])
def test_sums_wrap_as_rarely_as_planned(headroom: float) -> None:
    """All clients send one update at the clip, the most that a sum can hold: P(|N| > headroom) of the values wrap."""
    clients, size, bits = 50, 2**18, 12
    noise_std = gaussian(0.5, size)
    plan = plan_bits(clients=clients, size=size, clip=1.0, bits=bits, noise_std=noise_std, headroom=headroom)
    encoder = er.sums.SumEncoder(size, 1.0, plan.scale, 3)
    rng = np.random.default_rng(0)
    rotated = encoder._rotation.apply(rng.normal(size=size))
    rotated *= plan.scale / np.linalg.norm(rotated)
    whole = np.floor(rotated)
    rounded = clients * whole + rng.binomial(clients, rotated - whole)
    total = np.rint(rounded + rng.normal(size=rounded.size) * plan.noise_std).astype(np.int64)
    _, wrapped = Lanes(bits, total.size).wrap(total)
    expected = total.size * math.erfc(headroom / math.sqrt(2))
    assert abs(wrapped - expected) < 5 * math.sqrt(expected) + 0.02 * expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"clients": 0}, "clients = 0"),
        ({"clients": 2.0}, r"clients = 2\.0"),
        ({"size": 0}, "size"),
        ({"size": 2**31}, "size"),
        ({"clip": 0.0}, "clip"),
        ({"clip": math.nan}, "clip = nan"),
        ({"fraction": 1.5}, "at most 1"),
        ({"fraction": 0.0}, "fraction"),
        ({"headroom": math.inf}, "headroom"),
        ({"value_bits": 0}, "value_bits"),
        ({"bits": 1}, "bits = 1"),
        ({"bits": 33}, "bits = 33"),
        ({"bits": 8, "clients": 100}, "more bits, fewer value_bits, or a smaller cohort"),
        ({"bits": 16, "max_weight": 10**4}, "smaller max_weight"),
        ({"clients": 65_535, "value_bits": 16, "max_weight": 2}, r"bits = 32.*take fewer value_bits"),
        ({"noise_std": gaussian(1.0, 1000), "max_weight": 3}, "take max_weight = 0"),
        ({"noise_std": lambda _: math.nan}, "noise_std"),
        ({"noise_std": lambda _: 0.0}, "noise_std"),
        ({"noise_std": lambda _: 1e12}, "less noise"),
        ({"noise_std": gaussian(1.0, 1000), "bits": 4}, "take 8 bits"),
        ({"noise_std": gaussian(1.0, 1000), "bits": 8, "clients": 20_000}, "take 10 bits"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line_that_helps(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        plan_bits(**{"clients": 10, "size": 1000, "clip": 1.0} | changes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
