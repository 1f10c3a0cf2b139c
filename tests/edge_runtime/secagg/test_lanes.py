"""Lanes: sums of packed words against sums of Python integers, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError
from edge_runtime.secagg.lanes import Lanes

WIDTHS = (8, 10, 12, 16, 20, 32)
each_width = pytest.mark.parametrize("bits", WIDTHS)


def word(lane_values: list[int], bits: int) -> int:
    return sum(value << bits * j for j, value in enumerate(lane_values)) % 2**64


@each_width
@given(st.data())
def test_words_are_the_formula_in_big_integers(bits: int, data: st.DataObject) -> None:
    top = 2 ** (bits - 1)
    values = data.draw(st.lists(st.integers(-top, top - 1), max_size=30))
    lanes = Lanes(bits, len(values))
    words = lanes.pack(np.array(values, np.int64))
    in_each = [values[i : i + lanes.per_word] for i in range(0, len(values), lanes.per_word)]
    assert words.tolist() == [word(lane_values, bits) for lane_values in in_each]
    assert len(words) == lanes.words
    assert lanes.unpack(words).tolist() == values


@each_width
@given(st.data())
def test_sums_of_words_unpack_to_sums_of_values(bits: int, data: st.DataObject) -> None:
    n, count = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 25))
    top = (2 ** (bits - 1) - 1) // n
    corners = st.sampled_from([-top, top, 0, -1, 1])
    vector = st.lists(corners | st.integers(-top, top), min_size=count, max_size=count)
    vectors = [data.draw(vector) for _ in range(n)]
    lanes = Lanes(bits, count)
    assert lanes.fits(n, top)
    total = np.zeros(lanes.words, np.uint64)
    for values in vectors:
        total += lanes.pack(np.array(values, np.int64))
    assert lanes.unpack(total).tolist() == [sum(column) for column in zip(*vectors, strict=True)]


@pytest.mark.parametrize("bits", range(2, 65))
def test_every_width_over_many_words(bits: int) -> None:
    lanes = Lanes(bits, 20001)
    top = lanes.max_value
    values = np.random.default_rng(bits).integers(-top - 1, top, lanes.count, np.int64, endpoint=True)
    values[:2] = -top - 1, top
    words = lanes.pack(values)
    last = (lanes.words - 1) * lanes.per_word
    assert words[-1] == word(values[last:].tolist(), bits)
    np.testing.assert_array_equal(lanes.unpack(words), values)


@each_width
def test_case_26_what_fits_is_exact_and_one_more_is_refused(bits: int) -> None:
    lanes = Lanes(bits, 2 * (64 // bits) + 1)
    n, max_abs, max_weight = 3, 2, (2 ** (bits - 1) - 1) // 6
    assert lanes.fits(n, max_abs, max_weight)
    assert not lanes.fits(n, max_abs, max_weight + 1)
    assert not lanes.fits(1, 0, lanes.max_value + 1)  # weights ride in a lane of their own
    for sign in (1, -1):
        one = lanes.pack(np.full(lanes.count, sign * max_abs * max_weight))
        total = one + one + one
        assert lanes.unpack(total).tolist() == [sign * n * max_abs * max_weight] * lanes.count


@each_width
@given(st.data())
def test_case_26_a_forced_wrap_stays_in_its_lane_but_for_one(bits: int, data: st.DataObject) -> None:
    lanes = Lanes(bits, 3 * (64 // bits))
    place = data.draw(st.integers(0, lanes.count - 1))
    sign = data.draw(st.sampled_from([1, -1]))
    quiet = 2 ** (bits - 1) // 2 - 1
    values = st.lists(st.integers(-quiet, quiet), min_size=lanes.count, max_size=lanes.count)
    first, second = (np.array(data.draw(values)) for _ in range(2))
    first[place], second[place] = sign * lanes.max_value, sign * lanes.max_value
    assert not lanes.fits(2, lanes.max_value)
    got = lanes.unpack(lanes.pack(first) + lanes.pack(second))
    off = got - (first + second)
    assert off[place] == -sign * 2**bits
    off[place] = 0
    above = place + 1 if (place + 1) % lanes.per_word else None
    if above is not None:
        assert off[above] == sign
        off[above] = 0
    assert not off.any()


@each_width
def test_case_26_values_beyond_their_lane_are_refused_or_wrapped_and_counted(bits: int) -> None:
    lanes = Lanes(bits, 4)
    top = 2 ** (bits - 1)
    for beyond in (top, -top - 1):
        values = np.array([0, 1, beyond, -1])
        with pytest.raises(ValueError, match=f"lanes of {bits} bits"):
            lanes.pack(values)
        wrapped, count = lanes.wrap(values)
        assert wrapped.tolist() == [0, 1, -top if beyond > 0 else top - 1, -1]
        assert count == 1
        np.testing.assert_array_equal(lanes.unpack(lanes.pack(wrapped)), wrapped)


@pytest.mark.parametrize(
    ("bits", "wire_bits"), [(8, 8), (10, 64 / 6), (12, 12.8), (13, 16), (16, 16), (20, 64 / 3), (32, 32), (33, 64)]
)
def test_bits_on_the_wire(bits: int, wire_bits: float) -> None:
    lanes = Lanes(bits, 1_000_000)
    assert lanes.wire_bits == pytest.approx(wire_bits)
    assert lanes.words * 64 == pytest.approx(lanes.count * wire_bits, rel=1e-5)


@pytest.mark.parametrize("lanes", [(1, 4), (65, 4), (16, -1)])
def test_bad_lanes_are_config_errors(lanes: tuple[int, int]) -> None:
    with pytest.raises(ConfigError):
        Lanes(*lanes)


@pytest.mark.parametrize("array", [np.zeros(4, np.float64), np.zeros(3, np.int64), np.zeros((2, 2), np.int64)])
def test_other_arrays_are_refused(array: NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match="int64 of shape"):
        Lanes(16, 4).pack(array)
    with pytest.raises(ValueError, match="uint64 of shape"):
        Lanes(16, 4).unpack(array)  # type: ignore[arg-type]


def test_a_view_of_every_second_value_packs() -> None:
    values = np.arange(-10, 10)
    np.testing.assert_array_equal(Lanes(12, 10).pack(values[::2]), Lanes(12, 10).pack(values[::2].copy()))
