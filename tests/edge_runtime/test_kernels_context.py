"""The native coder of integer planes against its plain Python form, and the product of thin matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array

from edge_runtime.errors import PeerError
from edge_runtime.kernels import context_reference, native
from edge_runtime.kernels.context import (
    LEVEL_UNIT,
    MAX_MAGNITUDE,
    MAX_NUMBER,
    PlaneDecoder,
    PlaneEncoder,
    PlaneForm,
    decode_levels,
    low_rank_product,
)
from edge_runtime.kernels.context_reference import ReferenceDecoder, ReferenceEncoder

small, any_size = st.integers(-2, 2), st.integers(-MAX_MAGNITUDE, MAX_MAGNITUDE)


@st.composite
def planes(draw: st.DrawFn) -> tuple[PlaneForm, np.ndarray]:
    rows, columns = draw(st.integers(0, 6)), draw(st.integers(0, 12))
    values = draw(st.sampled_from([small, st.integers(-40, 40), any_size]))
    q = draw(any_array(np.int16, (rows, columns), elements=values))
    empty = draw(any_array(np.bool_, rows))
    q[empty] = 0
    classes = draw(st.none() | any_array(np.uint8, rows, elements=st.integers(0, 31)))
    taps = draw(st.just((0,) * 5) | st.tuples(*[st.integers(-16, 16)] * 5))
    lag = draw(st.just(0) | st.integers(3, 14))
    return PlaneForm(rows, columns, draw(st.integers(0, 1)), lag, taps, classes), q


numbers = st.lists(st.tuples(st.integers(0, 15), st.just(0) | st.integers(0, 50) | st.integers(0, MAX_NUMBER)))


def encoded(content: list[tuple[PlaneForm, np.ndarray]], listed: list[tuple[int, int]]) -> bytes:
    encoder = PlaneEncoder(1 << 16)
    for slot, value in listed:
        encoder.put_numbers(slot, value)
    for form, q in content:
        chosen = encoder.put_plane(form, q.astype(np.float32), 0, 1, 1)
        np.testing.assert_array_equal(chosen, q)
    encoder.end()
    return encoder.data()


LARGEST = np.array([[MAX_MAGNITUDE, -MAX_MAGNITUDE, MAX_MAGNITUDE, 1]], np.int16)
AGAINST = PlaneForm(1, 4, 1, 0, (-16, 0, 0, 0, 0))  # predicts the furthest from what comes


@given(st.lists(planes(), max_size=3), numbers)
@example([(AGAINST, LARGEST)], [(0, MAX_NUMBER), (15, 0)])
def test_both_coders_write_the_same_bytes_and_read_each_others(
    content: list[tuple[PlaneForm, np.ndarray]], listed: list[tuple[int, int]]
) -> None:
    data = encoded(content, listed)
    reference = ReferenceEncoder()
    for slot, value in listed:
        reference.put_number(slot, value)
    for form, q in content:
        reference.put_plane(form, q)
    assert data == reference.end()

    decoder, slow = PlaneDecoder(data), ReferenceDecoder(data)
    for slot, value in listed:
        assert decoder.number(slot, MAX_NUMBER, "number") == value == slow.number(slot, 0)
    for form, q in content:
        np.testing.assert_array_equal(decoder.plane(form), q)
        np.testing.assert_array_equal(slow.plane(form, None), q)
    decoder.end()
    slow.end()


@given(st.binary(max_size=60), st.lists(planes(), min_size=1, max_size=3))
def test_of_any_bytes_both_decoders_make_the_same(data: bytes, content: list[tuple[PlaneForm, np.ndarray]]) -> None:
    decoder, slow = PlaneDecoder(data), ReferenceDecoder(data)
    for form, _ in content:
        try:
            expected = slow.plane(form, None)
        except PeerError:
            with pytest.raises(PeerError, match="beyond 32767"):
                decoder.plane(form)
            return
        np.testing.assert_array_equal(decoder.plane(form), expected)
    try:
        slow.end()
    except PeerError:
        with pytest.raises(PeerError, match="missing or left over"):
            decoder.end()
    else:
        decoder.end()


def test_what_follows_a_stream_is_refused() -> None:
    q = np.random.default_rng(0).integers(-9, 10, (20, 20), np.int16)
    data = encoded([(PlaneForm(20, 20), q)], [])
    for damaged in (data + b"\0", data + b"1", data + b"12345"):
        decoder = PlaneDecoder(damaged)
        np.testing.assert_array_equal(decoder.plane(PlaneForm(20, 20)), q)
        with pytest.raises(PeerError, match="missing or left over"):
            decoder.end()


def test_a_number_above_its_bound_is_refused() -> None:
    data = encoded([], [(3, 8)])
    with pytest.raises(PeerError, match="rank must be at most 7"):
        PlaneDecoder(data).number(3, 7, "rank")


def test_structure_is_cheap_and_noise_costs_its_entropy() -> None:
    rng = np.random.default_rng(1)
    form = PlaneForm(100, 100)
    noise = rng.integers(0, 2, (100, 100)).astype(np.int16)
    stripes = np.zeros((100, 100), np.int16)
    stripes[:, ::7] = noise[:, ::7]
    assert 10_000 / 8 < len(encoded([(form, noise)], [])) < 1.04 * 2.0 * 10_000 / 8  # a bit, and a sign that learns
    assert len(encoded([(form, stripes)], [])) < 0.45 * 10_000 / 8
    assert len(encoded([(form, np.zeros_like(noise))], [])) < 8


def test_lambda_is_what_a_bit_is_worth() -> None:
    x = np.random.default_rng(2).laplace(0, 0.6, (64, 200)).astype(np.float32)
    bits, errors = {}, {}
    for lambda_ in (0, 0.1, 0.2, 0.4):
        encoder = PlaneEncoder(1 << 16)
        q = encoder.put_plane(PlaneForm(64, 200), x, lambda_, 1, 1)
        bits[lambda_], errors[lambda_] = 8 * encoder.end(), float(np.sum((x - q) ** 2))
    assert errors[0] == pytest.approx(float(np.sum((x - np.rint(x)) ** 2)))
    for lambda_ in (0.1, 0.2, 0.4):
        assert bits[lambda_] < 0.95 * bits[0]
        assert errors[lambda_] + lambda_ * bits[lambda_] < 0.99 * (errors[0] + lambda_ * bits[0])


@given(any_array(np.int16, 20, elements=any_size), st.integers(32, 96), st.integers(32, 96))
def test_levels(q: np.ndarray, d1: int, d2: int) -> None:
    size = np.abs(q.astype(np.int64))
    level = np.where(size == 0, 0, np.where(size == 1, d1, LEVEL_UNIT * (size - 1) + d2))
    expected = (np.sign(q) * level).astype(np.float32) * np.float32(0.3)
    np.testing.assert_array_equal(decode_levels(q, d1, d2, 0.3), expected)


@pytest.mark.parametrize("isa", native.isas())
@given(st.integers(0, 40), st.integers(0, 70), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_products_are_summed_in_order_on_every_isa(isa: str, rows: int, columns: int, rank: int, seed: int) -> None:
    native.select_isa(isa)
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rank, rows), np.float32)
    b = rng.standard_normal((rank, columns), np.float32)
    out = np.full((rows, columns), np.nan, np.float32)
    low_rank_product(a, b, out)
    expected = np.zeros_like(out)
    for k in range(rank):
        expected = expected + a[k][:, None] * b[k][None]
    np.testing.assert_array_equal(out, expected)


def test_the_reference_has_the_native_tables_values() -> None:
    # That 65536 / (1 + exp(-i / 4)) rounds the same with any libm shows nowhere else.
    assert context_reference.SIGMOID[:5] == [32768, 36843, 40793, 44511, 47911]
