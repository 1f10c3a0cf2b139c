"""A ledger says the same after a trip through text, and does not let itself be rewritten."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError
from edge_runtime.privacy import DistributedSum, Event, Ledger, MatrixMechanism, SampledGaussian
from edge_runtime.privacy.ledger import event_from_json, event_to_json

positive = st.floats(1e-9, 1e9)
rates = st.floats(1e-9, 1.0)
counts = st.integers(1, 10**9)
tiny = st.floats(0, 1e-20)
events = st.one_of(
    st.builds(SampledGaussian, positive, rates, counts, counts, tiny),
    st.builds(
        DistributedSum,
        st.sampled_from(["discrete_gaussian", "skellam"]),
        st.decimals("0.05", "16384", places=6).map(str),
        counts, positive, positive, counts, rates, counts, tiny,
    ),
    st.builds(MatrixMechanism, positive, positive, counts, counts, tiny),
)  # fmt: skip
ledgers = st.lists(events, max_size=6).map(lambda found: Ledger(tuple(found)))

SUM = DistributedSum("skellam", "93.97", shares=90, l2=135.6, l1=18382.5, dimension=32768, sampling_rate=0.01)
FILLED = Ledger((SampledGaussian(1.1, 0.01, 3), SUM, MatrixMechanism(8.0, 2.5, rounds=100), SUM))


@given(events)
def test_an_event_comes_back_from_json_equal(event: Event) -> None:
    assert event_from_json(event_to_json(event)) == event


@given(ledgers)
def test_a_ledger_comes_back_from_json_equal_with_the_same_digest(ledger: Ledger) -> None:
    again = Ledger.from_json(ledger.to_json(), digest=ledger.digest)
    assert again == ledger
    assert again.digest == ledger.digest


@given(ledgers, events)
def test_a_longer_ledger_starts_with_the_shorter_ones_text(ledger: Ledger, event: Event) -> None:
    longer = ledger.append(event)
    assert longer.events == (*ledger.events, event)
    assert longer.to_json().startswith(ledger.to_json())
    assert longer.digest != ledger.digest


def test_whole_numbers_for_fractions_do_not_change_the_text() -> None:
    assert Ledger((SampledGaussian(1, 1),)).to_json() == Ledger((SampledGaussian(1.0, 1.0),)).to_json()  # type: ignore[arg-type]


def test_events_and_ledger_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FILLED.events[0].rounds = 0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        FILLED.events = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        FILLED.events[0] = SUM  # type: ignore[index]
    before = FILLED.events
    FILLED.append(SUM)
    assert FILLED.events is before


def lines() -> list[str]:
    return FILLED.to_json().splitlines(keepends=True)


def test_an_altered_number_is_found() -> None:
    text = FILLED.to_json().replace('"shares": 90', '"shares": 95', 1)
    with pytest.raises(ConfigError, match="line 2: altered"):
        Ledger.from_json(text)


@pytest.mark.parametrize("without", [0, 1, 2])
def test_a_line_taken_out_is_found(without: int) -> None:
    kept = lines()
    del kept[without]
    with pytest.raises(ConfigError, match=f"line {without + 1}: altered"):
        Ledger.from_json("".join(kept))


def test_swapped_and_doubled_lines_are_found() -> None:
    first, second, third, fourth = lines()
    for text in (second + first + third + fourth, first + second + second + third + fourth):
        with pytest.raises(ConfigError, match="altered"):
            Ledger.from_json(text)


def test_a_cut_end_is_found_with_the_digest() -> None:
    cut = "".join(lines()[:3])
    assert Ledger.from_json(cut).events == FILLED.events[:3]
    with pytest.raises(ConfigError, match="lines are missing"):
        Ledger.from_json(cut, digest=FILLED.digest)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        '"sampled_gaussian"',
        "[" * 4000,
        "9" * 4000,
        " " * 5000,
        '{"event": "laplace"}',
        '{"event": ["sampled_gaussian"]}',
        '{"event": "sampled_gaussian"}',
        '{"event": "sampled_gaussian", "noise_multiplier": 0, "sampling_rate": 0.1}',
        '{"event": "sampled_gaussian", "noise_multiplier": NaN, "sampling_rate": 0.1}',
        '{"event": "sampled_gaussian", "noise_multiplier": 1e999, "sampling_rate": 0.1}',
        '{"event": "sampled_gaussian", "noise_multiplier": "1", "sampling_rate": 0.1}',
        '{"event": "sampled_gaussian", "noise_multiplier": 1, "sampling_rate": 1.5}',
        '{"event": "sampled_gaussian", "noise_multiplier": 1, "sampling_rate": 0.1, "rounds": 1.5}',
        '{"event": "sampled_gaussian", "noise_multiplier": 1, "sampling_rate": 0.1, "epsilon": 1}',
    ],
)
def test_hostile_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        event_from_json(text)
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="line 1"):
        Ledger.from_json(text + "\n")


def test_an_event_without_its_chain_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="altered"):
        Ledger.from_json(event_to_json(SUM))


def test_events_check_themselves_when_made() -> None:
    with pytest.raises(ConfigError, match="noise_multiplier = -1"):
        SampledGaussian(-1.0, 0.5)
    with pytest.raises(ConfigError, match="sigma"):
        dataclasses.replace(SUM, mechanism="discrete_gaussian", noise="0.001")
    with pytest.raises(ConfigError, match="mechanism"):
        dataclasses.replace(SUM, mechanism="gaussian")


def test_variation_is_that_of_every_sample_drawn() -> None:
    drawn = dataclasses.replace(SUM, sample_variation=1e-33, rounds=7)
    assert Ledger((drawn, drawn)).variation == pytest.approx(2 * 1e-33 * 90 * 32768 * 7)


def test_the_variance_of_a_sum_is_that_of_its_shares() -> None:
    assert SUM.variance == pytest.approx(90 * 93.97)
    assert dataclasses.replace(SUM, mechanism="discrete_gaussian", noise="3").variance == 90 * 9


def test_json_holds_plain_numbers_only() -> None:
    for line in lines():
        assert all(isinstance(value, int | float | str) for value in json.loads(line).values())
    with pytest.raises(ConfigError, match="finite number"):
        SampledGaussian(np.float32(1.0), 0.5)  # type: ignore[arg-type]
