"""Every ISA's INT8 product is NumPy's in int64; a packed matrix is only ever read by the kernels that it is for."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.kernels import native
from edge_runtime.kernels.int8 import GEMM_S8_EXACT_DEPTH, PackedS8, gemm_s8

GUARD = 9
each_isa = pytest.mark.parametrize("isa", native.isas())

# Around every tile's height and width and every step in k, and past the depth at which a strip is cut.
ROWS = st.integers(0, 19)
COLUMNS = st.one_of(st.integers(0, 35), st.integers(120, 140))
DEPTHS = st.one_of(st.integers(0, 40), st.integers(1022, 1042), st.integers(2047, 2050))


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a.astype(np.int64) @ b.astype(np.int64).T


def matrices(m: int, n: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(-128, 128, (m, k), np.int8), rng.integers(-128, 128, (n, k), np.int8)


@each_isa
@given(m=ROWS, n=COLUMNS, k=DEPTHS, seed=st.integers(0, 99))
def test_it_is_the_exact_product(isa: str, m: int, n: int, k: int, seed: int) -> None:
    a, b = matrices(m, n, k, seed)
    native.select_isa(isa)
    c = gemm_s8(a, PackedS8(b))
    assert c.dtype == np.int32
    np.testing.assert_array_equal(c, product(a, b))


@each_isa
@pytest.mark.parametrize("m", range(1, 18))
def test_every_height_meets_every_width(isa: str, m: int) -> None:
    native.select_isa(isa)
    for n in range(1, 26):
        a, b = matrices(m, n, 37, n)
        np.testing.assert_array_equal(gemm_s8(a, PackedS8(b)), product(a, b))


@each_isa
@pytest.mark.parametrize(("left", "right"), [(-128, -128), (-128, 127), (127, 127)])
@pytest.mark.parametrize("k", [1, 2, 31, 1024, 1025, 65536, GEMM_S8_EXACT_DEPTH])
def test_extremes_are_exact_up_to_the_stated_depth(isa: str, left: int, right: int, k: int) -> None:
    native.select_isa(isa)
    a, b = np.full((9, k), left, np.int8), np.full((13, k), right, np.int8)
    assert (gemm_s8(a, PackedS8(b)) == left * right * k).all()


def test_the_stated_depth_is_the_last_whose_sums_fit() -> None:
    assert 128 * 128 * GEMM_S8_EXACT_DEPTH <= 2**31 - 1 < 128 * 128 * (GEMM_S8_EXACT_DEPTH + 1)
    with pytest.raises(ValueError, match="131071"):
        PackedS8(np.zeros((1, GEMM_S8_EXACT_DEPTH + 1), np.int8))


@each_isa
@given(m=ROWS, n=COLUMNS, k=st.integers(0, 20), offset=st.integers(0, 3))
def test_it_writes_its_own_elements_only(isa: str, m: int, n: int, k: int, offset: int) -> None:
    native.select_isa(isa)
    a, b = matrices(m, n, k, 0)
    around = np.full(offset + m * n + GUARD, 7, np.int32)
    inside = around[offset : offset + m * n].reshape(m, n)
    assert gemm_s8(a, PackedS8(b), inside) is inside
    np.testing.assert_array_equal(inside, product(a, b))
    assert (around[:offset] == 7).all()
    assert (around[offset + m * n :] == 7).all()


@pytest.mark.parametrize("packer", native.isas())
@pytest.mark.parametrize("selected", native.isas())
def test_a_packed_matrix_keeps_to_its_own_isa(packer: str, selected: str) -> None:
    a, b = matrices(11, 29, 45, 3)
    native.select_isa(packer)
    packed = PackedS8(b)
    native.select_isa(selected)
    np.testing.assert_array_equal(gemm_s8(a, packed), product(a, b))


def test_a_packed_matrix_is_a_copy() -> None:
    a, b = matrices(3, 5, 7, 1)
    expected, packed = product(a, b), PackedS8(b)
    b[:] = 0
    np.testing.assert_array_equal(gemm_s8(a, packed), expected)


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_packed_matrix_stays_in_its_process(take: Callable[[object], object]) -> None:
    packed = PackedS8(np.ones((2, 3), np.int8))
    with pytest.raises(TypeError, match="pack the matrix where it is used"):
        take(packed)


def bytes_of(*shape: int) -> np.ndarray:
    return np.ones(shape, np.int8)


@pytest.mark.parametrize(
    "matrix",
    [
        np.ones((2, 4), np.uint8),
        np.ones((2, 4)),
        bytes_of(4, 2).T,
        bytes_of(2, 8)[:, ::2],
        bytes_of(8),
        bytes_of(2, 2, 2),
    ],
    ids=["uint8", "float64", "columns", "strided", "vector", "three axes"],
)
def test_another_kind_of_matrix_is_refused(matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^b must"):
        PackedS8(matrix)
    with pytest.raises(ValueError, match=r"^a must"):
        gemm_s8(matrix, PackedS8(bytes_of(3, 4)))


def test_a_depth_that_differs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"5 columns.*4"):
        gemm_s8(bytes_of(2, 5), PackedS8(bytes_of(3, 4)))


def read_only() -> np.ndarray:
    c = np.zeros((2, 3), np.int32)
    c.flags.writeable = False
    return c


@pytest.mark.parametrize(
    "out",
    [np.zeros((2, 3)), np.zeros((3, 2), np.int32), np.zeros(6, np.int32), np.zeros((3, 2), np.int32).T, read_only()],
    ids=["float64", "transposed shape", "flat", "columns", "read-only"],
)
def test_another_kind_of_output_is_refused(out: np.ndarray) -> None:
    with pytest.raises(ValueError, match="out must"):
        gemm_s8(bytes_of(2, 4), PackedS8(bytes_of(3, 4)), out)


def test_an_output_over_the_input_is_refused() -> None:
    c = np.zeros((2, 3), np.int32)
    with pytest.raises(ValueError, match="apart"):
        gemm_s8(c.view(np.int8).reshape(-1)[:8].reshape(2, 4), PackedS8(bytes_of(3, 4)), c)
