"""Dense bits, sums of masks and the largest magnitudes: each ISA's kernels against NumPy, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array

from edge_runtime.errors import NumericsError
from edge_runtime.kernels import native
from edge_runtime.kernels.vectors import (
    count_at_least,
    kth_magnitude,
    mask_add,
    mask_subtract,
    pack_bits,
    packed_bytes,
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
