"""Between float32, int32 and int8: each ISA's kernels against NumPy, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array

from edge_runtime.kernels import native
from edge_runtime.kernels.int8 import dequantize, quantize, requantize, row_range

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
scales = st.floats(2**-20, 2**20, width=32).map(np.float32)


def saturate(t: np.ndarray, zero_point: object) -> np.ndarray:
    t = np.where(np.isnan(t), 0, np.rint(t))
    return np.clip(np.clip(t, -1e6, 1e6).astype(np.int64) + zero_point, -128, 127).astype(np.int8)


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


@pytest.mark.parametrize("x", [np.ones(4), np.ones(8, np.float32)[::2], np.ones(4, ">f4")])
def test_another_kind_of_array_is_refused(x: np.ndarray) -> None:
    with pytest.raises(ValueError, match="x must be contiguous, aligned float32"):
        quantize(x, 1.0)
    with pytest.raises(ValueError, match="x must be contiguous, aligned float32"):
        row_range(x.reshape(1, -1))
    with pytest.raises(ValueError, match="q must be contiguous, aligned int8"):
        dequantize(x, 1.0)
