"""Every ISA's kernels against NumPy, bit for bit; and no array reaches them that they could not walk safely."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_runtime.kernels import native

ISAS = native.isas()
LENGTHS, OFFSETS = st.integers(0, 100), st.integers(0, 9)
GUARD = 9

each_isa = pytest.mark.parametrize("isa", ISAS)


@st.composite
def sums_and_updates(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Finite acc (n,) and x (n,), each at some offset into a larger array, so at any alignment that its type allows."""
    n = draw(LENGTHS)
    acc = draw(arrays(np.float64, n + draw(OFFSETS), elements=st.floats(-1e30, 1e30)))
    x = draw(arrays(np.float32, n + draw(OFFSETS), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
    return acc[len(acc) - n :], x[len(x) - n :]


def bits(values: np.ndarray) -> bytes:
    return values.tobytes()


def test_the_reference_is_always_there_and_comes_last() -> None:
    assert ISAS[-1] == "scalar"
    assert len(set(ISAS)) == len(ISAS)


def fresh_process(isa: str | None) -> subprocess.CompletedProcess[str]:
    """What a process of its own selects where HEDGEROW_ISA is `isa`; None for not set."""
    code = "from edge_runtime.kernels import native; print(native.selected_isa())"
    environment = {name: value for name, value in os.environ.items() if name != "HEDGEROW_ISA"}
    if isa is not None:
        environment["HEDGEROW_ISA"] = isa
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("isa", [None, ""])
def test_a_fresh_process_uses_the_best_isa(isa: str | None) -> None:
    assert fresh_process(isa).stdout.strip() == ISAS[0]


@each_isa
def test_the_environment_can_name_the_isa(isa: str) -> None:
    assert fresh_process(isa).stdout.strip() == isa


@pytest.mark.parametrize("isa", ["abacus", "AVX2", "scalar "])
def test_an_unknown_isa_in_the_environment_is_an_error_of_one_line(isa: str) -> None:
    fresh = fresh_process(isa)
    assert fresh.returncode == 1
    *_, error = fresh.stderr.splitlines()
    assert error == f"edge_runtime.errors.ConfigError: HEDGEROW_ISA is {isa!r}, and here are only {', '.join(ISAS)}"


def test_an_unknown_isa_is_refused_and_changes_nothing() -> None:
    before = native.selected_isa()
    with pytest.raises(ValueError, match="scalar"):
        native.select_isa("abacus")
    assert native.selected_isa() == before


@each_isa
@given(pair=sums_and_updates(), weight=st.floats(-1e9, 1e9))
def test_accumulate_is_numpys_multiply_and_add(isa: str, pair: tuple[np.ndarray, np.ndarray], weight: float) -> None:
    acc, x = pair
    expected = acc + x.astype(np.float64) * weight
    native.select_isa(isa)
    native.accumulate(acc, x, weight)
    assert bits(acc) == bits(expected)


@given(pair=sums_and_updates(), weight=st.floats(-1e9, 1e9))
def test_every_isa_accumulates_the_same_bits(pair: tuple[np.ndarray, np.ndarray], weight: float) -> None:
    acc, x = pair
    results = set()
    for isa in ISAS:
        total = acc.copy()
        native.select_isa(isa)
        native.accumulate(total, x, weight)
        results.add(bits(total))
    assert len(results) == 1


@each_isa
@given(n=LENGTHS, offset=OFFSETS)
def test_accumulate_writes_its_own_elements_only(isa: str, n: int, offset: int) -> None:
    acc = np.zeros(offset + n + GUARD)
    native.select_isa(isa)
    native.accumulate(acc[offset : offset + n], np.ones(n, np.float32), 2.0)
    assert np.flatnonzero(acc).tolist() == list(range(offset, offset + n))


@each_isa
def test_products_of_whole_weights_are_exact(isa: str) -> None:
    x = np.array([1 / 3, np.pi, 1e-30, 3e38] * 5, np.float32)
    acc = np.zeros(len(x))
    native.select_isa(isa)
    native.accumulate(acc, x, 2**29 - 1)
    for total, value in zip(acc, x, strict=True):
        assert int(total * 2.0**180) == int(float(value) * 2.0**180) * (2**29 - 1)


@each_isa
@given(
    x=arrays(np.uint32, LENGTHS, elements=st.integers(0, 2**32 - 1)).map(lambda a: a.view(np.float32)), offset=OFFSETS
)
def test_all_finite_agrees_with_numpy_on_any_bits(isa: str, x: np.ndarray, offset: int) -> None:
    native.select_isa(isa)
    assert native.all_finite(x[offset:]) == np.isfinite(x[offset:]).all()


@each_isa
@given(x=arrays(np.float32, LENGTHS, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_all_finite_passes_every_finite_float(isa: str, x: np.ndarray) -> None:
    native.select_isa(isa)
    assert native.all_finite(x)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 32_767, 32_768, 32_769, 200_003])
def test_threads_change_no_bit_of_a_sum(threads: int, n: int) -> None:
    rng, team = np.random.default_rng(n), native.Team(threads)
    acc, x = rng.normal(size=n + 3)[3:], rng.normal(size=n + 1).astype(np.float32)[1:]
    expected = acc + x.astype(np.float64) * 0.3
    native.accumulate(acc, x, 0.3, team)
    assert bits(acc) == bits(expected)


@pytest.mark.parametrize("threads", [2, 5])
@given(n=st.integers(1, 140_000), data=st.data(), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
@settings(max_examples=20)
def test_threads_see_one_bad_value_anywhere(threads: int, n: int, data: st.DataObject, bad: float) -> None:
    x, team = np.zeros(n, np.float32), native.Team(threads)
    assert native.all_finite(x, team)
    x[data.draw(st.integers(0, n - 1))] = bad
    assert not native.all_finite(x, team)


@each_isa
@pytest.mark.parametrize("pattern", [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF])
def test_all_finite_finds_one_bad_element_anywhere(isa: str, pattern: int) -> None:
    native.select_isa(isa)
    for n in range(1, 40):
        for position in range(n):
            x = np.full(n, np.finfo(np.float32).max)
            x.view(np.uint32)[position] = pattern
            assert not native.all_finite(x), (n, position)


@each_isa
@given(n=LENGTHS, offset=OFFSETS)
def test_all_finite_looks_at_its_own_elements_only(isa: str, n: int, offset: int) -> None:
    around = np.full(offset + n + GUARD, np.nan, np.float32)
    around[offset : offset + n] = 0
    native.select_isa(isa)
    assert native.all_finite(around[offset : offset + n])


def floats(n: int) -> np.ndarray:
    return np.ones(n, np.float32)


def misaligned(n: int, dtype: str) -> np.ndarray:
    itemsize = np.dtype(dtype).itemsize
    return np.zeros(n * itemsize + 1, np.uint8)[1:].view(dtype)


@pytest.mark.parametrize(
    "x",
    [
        np.ones(4),
        np.ones(4, np.int32),
        np.ones(4, np.float16),
        np.ones(4, ">f4"),
        floats(8)[::2],
        floats(4)[::-1],
        np.ones((4, 4), np.float32).T[:2],
        misaligned(4, "<f4"),
    ],
    ids=["float64", "int32", "float16", "big-endian", "strided", "reversed", "columns", "misaligned"],
)
def test_an_update_of_another_kind_is_refused(x: np.ndarray) -> None:
    with pytest.raises(ValueError, match="float32"):
        native.all_finite(x)
    with pytest.raises(ValueError, match="float32"):
        native.accumulate(np.zeros(x.size), x, 1.0)


@pytest.mark.parametrize(
    "acc",
    [floats(4), np.zeros(4, np.int64), np.zeros(4, ">f8"), np.zeros(8)[::2], misaligned(4, "<f8")],
    ids=["float32", "int64", "big-endian", "strided", "misaligned"],
)
def test_a_sum_of_another_kind_is_refused(acc: np.ndarray) -> None:
    with pytest.raises(ValueError, match="float64"):
        native.accumulate(acc, floats(4), 1.0)


@pytest.mark.parametrize(("acc_size", "x_size"), [(3, 4), (4, 3), (0, 1), (1, 0)])
def test_sizes_that_differ_are_refused(acc_size: int, x_size: int) -> None:
    with pytest.raises(ValueError, match=f"{acc_size} elements"):
        native.accumulate(np.zeros(acc_size), floats(x_size), 1.0)


def test_a_read_only_sum_is_refused_and_kept() -> None:
    acc = np.zeros(4)
    acc.flags.writeable = False
    with pytest.raises(ValueError, match="writable"):
        native.accumulate(acc, floats(4), 1.0)
    assert not acc.any()


def test_a_read_only_update_is_fine() -> None:
    x = np.frombuffer(floats(4).tobytes(), np.float32)
    acc = np.zeros(4)
    native.accumulate(acc, x, 1.5)
    assert acc.tolist() == [1.5] * 4


@pytest.mark.parametrize("start", [0, 2, 4])
def test_an_update_that_shares_memory_with_the_sum_is_refused(start: int) -> None:
    acc = np.zeros(4)
    shared = acc.view(np.float32)[start : start + 4]
    with pytest.raises(ValueError, match="apart"):
        native.accumulate(acc[: len(shared)], shared, 1.0)
