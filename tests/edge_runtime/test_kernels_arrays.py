"""Quantising, bit packing, masks and largest magnitudes: each ISA's kernels against NumPy, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array

from edge_runtime.errors import NumericsError
from edge_runtime.kernels import native
from edge_runtime.kernels.arrays import (
    count_at_least,
    dequantize,
    kth_magnitude,
    mask_add,
    mask_subtract,
    pack_bits,
    packed_bytes,
    quantize,
    requantize,
    row_range,
    take_at_least,
    top_k,
    unpack_bits,
)

ISAS = native.isas()
LENGTHS, OFFSETS = st.integers(0, 100), st.integers(0, 9)
INFINITY = float("inf")
# Where rounding, saturation and the order of floats have their corners.
CORNERS = np.array(
    [
        *(0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 0.49999997, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.5, -127.5),
        *(-128.5, 128, -129, 255.5, 256, 257, -256, 8388607.5, 1e9, -1e9, 2.0**31, 3.4e38, -3.4e38),
        *(INFINITY, -INFINITY, np.nan),
    ],
    np.float32,
)

each_isa = pytest.mark.parametrize("isa", ISAS)


@pytest.fixture(autouse=True, scope="module")
def _selected_isa_is_put_back() -> Iterator[None]:
    before = native.selected_isa()
    yield
    native.select_isa(before)


def floats_of(patterns: np.ndarray) -> np.ndarray:
    return patterns.astype(np.uint32).view(np.float32)


# Any bits at all, and numbers of a size that rounds rather than saturates.
any_floats = st.builds(
    lambda a, offset: a[offset:],
    st.one_of(
        any_array(np.uint32, LENGTHS, elements=st.integers(0, 2**32 - 1)).map(floats_of),
        any_array(np.float32, LENGTHS, elements=st.floats(-300, 300, width=32)),
        any_array(np.float32, LENGTHS, elements=st.sampled_from(CORNERS)),
    ),
    OFFSETS,
)
not_nan = any_floats.map(lambda x: np.where(np.isnan(x), np.float32(1), x))
scales = st.floats(2**-20, 2**20, width=32).map(np.float32)


def saturate(t: np.ndarray, zero_point: object) -> np.ndarray:
    t = np.where(np.isnan(t), 0, np.rint(t))
    return np.clip(np.clip(t, -1e6, 1e6).astype(np.int64) + zero_point, -128, 127).astype(np.int8)


# quantize


@each_isa
@given(x=any_floats, scale=scales, zero_point=st.integers(-128, 127))
@example(x=CORNERS, scale=np.float32(1), zero_point=0)
@example(x=CORNERS, scale=np.float32(1), zero_point=-128)
@example(x=CORNERS, scale=np.float32(1e-40), zero_point=127)
def test_quantize_rounds_to_even_and_saturates(isa: str, x: np.ndarray, scale: np.float32, zero_point: int) -> None:
    native.select_isa(isa)
    with np.errstate(all="ignore"):
        expected = saturate(x / scale, zero_point)
    np.testing.assert_array_equal(quantize(x, float(scale), zero_point), expected)


@each_isa
def test_quantize_takes_every_tie_to_even(isa: str) -> None:
    native.select_isa(isa)
    halves = np.arange(-140, 140, dtype=np.float32) + np.float32(0.5)
    q = quantize(halves, 1.0)
    inside = abs(halves) < 127
    assert (q[inside] % 2 == 0).all()
    np.testing.assert_array_equal(q, saturate(halves, 0))


@each_isa
def test_nan_becomes_a_real_zero(isa: str) -> None:
    native.select_isa(isa)
    x = floats_of(np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF] * 9))
    assert not dequantize(quantize(x, 0.1, 57), 0.1, 57).any()


@each_isa
@given(rows=st.integers(0, 5), columns=st.integers(0, 40), seed=st.integers(0, 99))
def test_each_row_has_its_own_scale_and_zero_point(isa: str, rows: int, columns: int, seed: int) -> None:
    native.select_isa(isa)
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 50, (rows, columns)).astype(np.float32)
    scale = rng.uniform(0.1, 2, rows).astype(np.float32)
    zero = rng.integers(-128, 128, rows, np.int8)
    q = quantize(x, scale, zero)
    np.testing.assert_array_equal(q, saturate(x / scale[:, None], zero[:, None].astype(np.int64)))
    expected = (q.astype(np.float32) - zero[:, None]) * scale[:, None]
    assert dequantize(q, scale, zero).tobytes() == expected.tobytes()


@each_isa
def test_dequantize_then_quantize_is_the_identity(isa: str) -> None:
    native.select_isa(isa)
    q = np.arange(-128, 128).astype(np.int8)
    for zero_point in (-128, -1, 0, 127):
        np.testing.assert_array_equal(quantize(dequantize(q, 0.037, zero_point), 0.037, zero_point), q)


@each_isa
@given(x=any_floats)
def test_row_range_is_numpys(isa: str, x: np.ndarray) -> None:
    native.select_isa(isa)
    rows = np.stack([x, x[::-1], np.zeros_like(x)])
    if x.size == 0:
        with pytest.raises(ValueError, match="no columns"):
            row_range(rows)
        return
    low, high = row_range(rows)
    np.testing.assert_array_equal(low, rows.min(1))
    np.testing.assert_array_equal(high, rows.max(1))


@each_isa
@pytest.mark.parametrize("pattern", [0x7F800001, 0xFF800001, 0x7FC00000, 0xFFFFFFFF])
def test_row_range_shows_a_nan_wherever_it_stands(isa: str, pattern: int) -> None:
    native.select_isa(isa)
    for n in range(1, 40):
        x = np.ones((n, n), np.float32)
        x.view(np.uint32)[np.arange(n), np.arange(n)] = pattern
        low, high = row_range(x)
        assert np.isnan(low).all()
        assert np.isnan(high).all()


int32s = st.one_of(
    st.integers(-(2**31), 2**31 - 1), st.integers(-2000, 2000), st.sampled_from([-(2**31), 2**31 - 1, 0, 2**24 + 1])
)


@each_isa
@pytest.mark.parametrize("axis", [0, 1])
@given(data=st.data(), rows=st.integers(0, 4), columns=st.integers(0, 40), zero_point=st.integers(-128, 127))
def test_requantize_is_float32_arithmetic(
    isa: str, axis: int, data: st.DataObject, rows: int, columns: int, zero_point: int
) -> None:
    native.select_isa(isa)
    sums = data.draw(any_array(np.int32, (rows, columns), elements=int32s))
    n = sums.shape[axis]
    multiplier = data.draw(any_array(np.float32, n, elements=st.floats(-2, 2, width=32)))
    bias = data.draw(st.one_of(st.none(), any_array(np.int32, n, elements=int32s)))
    across = (slice(None), None) if axis == 0 else (None, slice(None))
    total = sums.astype(np.int64) + (0 if bias is None else bias[across].astype(np.int64))
    expected = saturate(total.astype(np.int32).astype(np.float32) * multiplier[across], zero_point)
    np.testing.assert_array_equal(requantize(sums, multiplier, zero_point, bias, axis), expected)


@pytest.mark.parametrize("scale", [0.0, -1.0, INFINITY, np.nan, 1e-60, 1e60, np.zeros(2, np.float32)])
def test_a_scale_that_is_no_positive_number_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        quantize(np.ones((2, 3), np.float32), scale)
    with pytest.raises(ValueError, match="scale"):
        dequantize(np.ones((2, 3), np.int8), scale)


@pytest.mark.parametrize(
    ("scale", "zero_point"),
    [
        (np.ones(3, np.float32), 0),
        (np.ones(2), 0),
        (1.0, 128),
        (1.0, -129),
        (1.0, np.zeros(2, np.int32)),
        (1.0, np.zeros(1, np.int8)),
    ],
    ids=["other length", "float64", "high", "low", "int32", "short"],
)
def test_scales_and_zero_points_of_another_kind_are_refused(scale: float, zero_point: int) -> None:
    with pytest.raises(ValueError, match=r"scale|zero_point"):
        quantize(np.ones((2, 3), np.float32), scale, zero_point)


def test_requantize_refuses_what_it_cannot_do() -> None:
    sums, multiplier = np.zeros((2, 3), np.int32), np.ones(3, np.float32)
    for wrong in (
        {"sums": np.zeros((2, 3))},
        {"sums": np.zeros(3, np.int32)},
        {"sums": np.zeros((3, 2), np.int32).T},
        {"multiplier": np.ones(2, np.float32)},
        {"multiplier": np.ones(3)},
        {"multiplier": np.array([1, np.nan, 1], np.float32)},
        {"bias": np.zeros(2, np.int32)},
        {"bias": np.zeros(3, np.int64)},
        {"zero_point": 128},
        {"axis": 2},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            requantize(**{"sums": sums, "multiplier": multiplier, **wrong})


# pack_bits


def stream(values: np.ndarray, width: int) -> bytes:
    bits = (values[:, None].astype(np.uint64) >> np.arange(width, dtype=np.uint64)) & np.uint64(1)
    return np.packbits(bits.astype(np.uint8).ravel(), bitorder="little").tobytes()


@each_isa
@pytest.mark.parametrize(("dtype", "widest"), [(np.uint8, 8), (np.uint32, 32)])
@given(data=st.data(), offset=OFFSETS)
def test_bits_are_packed_densely_and_come_back(
    isa: str, dtype: type, widest: int, data: st.DataObject, offset: int
) -> None:
    native.select_isa(isa)
    width = data.draw(st.integers(1, widest))
    values = data.draw(any_array(dtype, LENGTHS, elements=st.integers(0, 2**widest - 1)))[offset:]
    kept = values & dtype(2**width - 1)
    packed = pack_bits(values, width)
    assert packed.tobytes() == stream(kept, width)
    assert packed.size == packed_bytes(values.size, width)
    back = unpack_bits(packed, values.size, width, dtype)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, kept)
    np.testing.assert_array_equal(unpack_bits(packed.tobytes(), values.size, width, dtype), kept)


@each_isa
@pytest.mark.parametrize("width", range(1, 33))
def test_bytes_that_end_early_or_late_are_refused(isa: str, width: int) -> None:
    native.select_isa(isa)
    for n in (0, 1, 7, 8, 9, 33):
        data = pack_bits(np.zeros(n, np.uint32), width)
        for length in {len(data) - 1, len(data) + 1, 0, 2 * len(data)} - {len(data), -1}:
            with pytest.raises(ValueError, match=f"take {len(data)} bytes, got {length}"):
                unpack_bits(np.zeros(length, np.uint8), n, width)


def test_bits_after_the_last_value_are_refused() -> None:
    assert unpack_bits(b"\xff\x03", 2, 5).tolist() == [31, 31]
    with pytest.raises(ValueError, match="after the last"):
        unpack_bits(b"\xff\x07", 2, 5)


@pytest.mark.parametrize("n", [-1, 2**59 + 1, 2**64, 2**70])
def test_a_count_that_no_array_has_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="count"):
        unpack_bits(b"", n, 3)


@pytest.mark.parametrize(
    ("dtype", "width"), [(np.uint8, 0), (np.uint8, 9), (np.uint32, 0), (np.uint32, 33), (np.int8, 4)]
)
def test_a_width_or_dtype_that_does_not_fit_is_refused(dtype: type, width: int) -> None:
    with pytest.raises(ValueError, match="uint8 of 1 to 8 bits"):
        pack_bits(np.zeros(4, dtype), width)
    with pytest.raises(ValueError, match="uint8 of 1 to 8 bits"):
        unpack_bits(b"", 0, width, dtype)


def test_packing_and_unpacking_need_memory_in_order() -> None:
    with pytest.raises(ValueError, match="values must"):
        pack_bits(np.zeros(8, np.uint8)[::2], 4)
    with pytest.raises(ValueError, match="data must"):
        unpack_bits(np.zeros(8, np.uint8)[::2], 8, 4)


# masks

PAIRS = [(np.uint64, np.uint64), (np.uint32, np.uint32), (np.uint64, np.uint32)]


@each_isa
@pytest.mark.parametrize(("wide", "narrow"), PAIRS)
@given(n=LENGTHS, offset=OFFSETS, seed=st.integers(0, 99))
def test_masks_are_added_and_taken_off_modulo_the_word(
    isa: str, wide: type, narrow: type, n: int, offset: int, seed: int
) -> None:
    native.select_isa(isa)
    rng = np.random.default_rng(seed)
    top = np.iinfo(wide).max
    around = rng.integers(0, top, n + offset + 9, wide, endpoint=True)
    acc = around[offset : offset + n]
    mask = rng.integers(0, np.iinfo(narrow).max, n, narrow, endpoint=True)
    acc[: n // 2] = top  # so that it wraps
    before = around.copy()
    expected = around.copy()
    expected[offset : offset + n] += mask
    mask_add(acc, mask)
    np.testing.assert_array_equal(around, expected)
    mask_subtract(acc, mask)
    np.testing.assert_array_equal(around, before)
    mask_subtract(acc, mask)
    expected[offset : offset + n] = before[offset : offset + n] - mask
    np.testing.assert_array_equal(around, expected)


@pytest.mark.parametrize("add", [mask_add, mask_subtract])
def test_masks_of_another_kind_are_refused(add: object) -> None:
    assert callable(add)
    words = np.zeros(4, np.uint64)
    locked = np.zeros(4, np.uint64)
    locked.flags.writeable = False
    for acc, mask in (
        (words, np.zeros(4, np.int64)),
        (words.view(np.int64), words.copy()),
        (np.zeros(4, np.uint32), np.zeros(4, np.uint64)),
        (words, np.zeros(3, np.uint64)),
        (words, np.zeros((2, 2), np.uint64)),
        (words, np.zeros(8, np.uint64)[::2]),
        (words, words),
        (words, words.view(np.uint32)[:4]),
        (locked, np.zeros(4, np.uint64)),
        (words, np.zeros(4, ">u8")),
    ):
        with pytest.raises(ValueError, match=r"acc|mask"):
            add(acc, mask)


# largest magnitudes


@each_isa
@given(x=any_floats, threshold=st.floats(0, width=32, allow_nan=False))
@example(x=CORNERS, threshold=0.0)
@example(x=CORNERS, threshold=INFINITY)
def test_count_at_least_is_numpys(isa: str, x: np.ndarray, threshold: float) -> None:
    native.select_isa(isa)
    assert count_at_least(x, threshold) == np.count_nonzero(abs(x) >= np.float32(threshold))


def first_largest(x: np.ndarray, k: int) -> np.ndarray:
    return np.sort(np.argsort(-abs(x.astype(np.float64)), kind="stable")[:k])


@each_isa
@given(x=not_nan, share=st.floats(0, 1))
@example(x=CORNERS[:-1], share=0.5)
@example(x=np.ones(99, np.float32), share=0.5)
@example(x=np.tile(np.array([3, -3, 2], np.float32), 33), share=0.2)
def test_top_k_are_exactly_the_first_largest(isa: str, x: np.ndarray, share: float) -> None:
    native.select_isa(isa)
    k = int(share * x.size)
    indices, values = top_k(x, k)
    np.testing.assert_array_equal(indices, first_largest(x, k))
    assert values.tobytes() == x[indices].tobytes()
    if k:
        assert kth_magnitude(x, k) == np.sort(abs(x))[-k]


@each_isa
@pytest.mark.parametrize("n", [1, 63, 64, 65, 65535, 65536, 65537, 200_000])
def test_top_k_of_long_vectors(isa: str, n: int) -> None:
    native.select_isa(isa)
    x = np.random.default_rng(n).normal(0, 1, n).astype(np.float32)
    for k in {1, n // 100, n // 2, n} - {0}:
        np.testing.assert_array_equal(top_k(x, k)[0], first_largest(x, k))


@each_isa
@given(x=any_floats, threshold=st.floats(0, width=32, allow_nan=False), share=st.floats(0, 1))
def test_take_at_least_fills_up_with_the_first_ties(isa: str, x: np.ndarray, threshold: float, share: float) -> None:
    native.select_isa(isa)
    k = int(share * x.size)
    larger, ties = (np.flatnonzero(kept)[:k] for kept in (abs(x) > threshold, abs(x) == threshold))
    expected = np.sort(np.concatenate([larger, ties[: k - len(larger)]]))
    indices, values = take_at_least(x, threshold, k)
    np.testing.assert_array_equal(indices, expected)
    assert values.tobytes() == x[expected].tobytes()


@each_isa
@pytest.mark.parametrize("pattern", [0x7F800001, 0xFFC00000])
def test_a_nan_has_no_place_among_magnitudes(isa: str, pattern: int) -> None:
    native.select_isa(isa)
    for n in range(1, 40):
        x = np.ones(n, np.float32)
        x.view(np.uint32)[n // 2] = pattern
        with pytest.raises(NumericsError, match="NaN"):
            kth_magnitude(x, 1)
        assert n // 2 not in take_at_least(x, 0.0, n)[0]
        assert len(top_k(x, 0)[0]) == 0


@pytest.mark.parametrize("k", [-1, 0, 5])
def test_a_k_out_of_range_is_refused(k: int) -> None:
    x = np.ones(4, np.float32)
    with pytest.raises(ValueError, match="1 to 4"):
        kth_magnitude(x, k)
    if k:
        with pytest.raises(ValueError, match=r"1 to 4|0 to the size"):
            top_k(x, k)
        with pytest.raises(ValueError, match="0 to the size"):
            take_at_least(x, 1.0, k)


@pytest.mark.parametrize("threshold", [-1.0, np.nan])
def test_a_threshold_below_zero_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        count_at_least(np.ones(4, np.float32), threshold)
    with pytest.raises(ValueError, match="threshold"):
        take_at_least(np.ones(4, np.float32), threshold, 2)


@pytest.mark.parametrize("x", [np.ones(4), np.ones(8, np.float32)[::2], np.ones(4, ">f4")])
def test_magnitudes_need_contiguous_float32(x: np.ndarray) -> None:
    for call in (lambda: count_at_least(x, 1.0), lambda: kth_magnitude(x, 1), lambda: take_at_least(x, 1.0, 1)):
        with pytest.raises(ValueError, match="float32"):
            call()
    with pytest.raises(ValueError, match="float32"):
        quantize(x, 1.0)
    with pytest.raises(ValueError, match="float32"):
        row_range(x.reshape(1, -1))
