"""No table of ops and no arena contents, whoever wrote them, lead the native core outside its arena or bring it down.

Arenas here lie against a page that may not be touched, at one end and then at the other, so that reads outside end
the process as surely as writes do.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import ProgramError
from edge_runtime.kernels import native
from edge_runtime.kernels.native import MAX_BUFFERS, MAX_FLOATS, MAX_INTS, OP_DTYPE, NativeProgram, Status

Array = np.ndarray[Any, Any]
ISAS = native.isas()


class Case(NamedTuple):
    """A sound op: its buffers as (elements, bytes each), and its numbers."""

    buffers: list[tuple[int, int]]
    ints: list[int] = []  # noqa: RUF012  never changed
    floats: list[float] = []  # noqa: RUF012


def f(elements: int) -> tuple[int, int]:
    return elements, 4


def packed(blocks: int, weights: int) -> tuple[int, int]:
    """A constant of integers/packed.h: `weights` for each of a block's channels, after a bias and a multiplier."""
    return blocks * 16 * (weights + 8) // 64, 64


ROWS, ONE = (1, 8), f(1)
WINDOW_S8 = [3, 2, 2, 1, 1, 1, 5, 7, -100, 100]  # to 3 x 7 places
CONV = [2, 4, 5, 6, 2, 3, 2, 2, 1, 1, 1, 2]  # to 3 x 7 places
MAX_POOL = [2, 5, 6, 3, 2, 2, 2, 1, 1]  # to 3 x 4
GRU = [2, 3, 4, 5]
GRU_INPUTS = [f(24), f(10), f(60), f(75)]
LSTM_INPUTS = [f(24), f(10), f(10), f(80), f(100)]
CLASSES = [f(12), (4, 8), f(3), ROWS, ONE]

CASES: dict[str, Case] = {
    "fill": Case([f(9)], [9], [1.5]),
    "copy": Case([f(24), f(26)], [4, 2, 4, 6, *[0] * 4, 1, 4, *[0] * 4, 6, 1, *[0] * 4, 0, 2], [0.5]),
    "reduce": Case([f(24), f(4)], [2, 6, 4, *[0] * 4, 0, 1, *[0] * 4], [1]),
    "binary": Case([f(24), f(6), f(24)], [1, 2, 4, 6, *[0] * 4, 6, 1, *[0] * 4, 0, 1, *[0] * 4, 2]),
    "unary": Case([f(11), f(11)], [2, 11], [0, 1]),
    "unary_grad": Case([f(11)] * 3, [2, 11]),
    "fake_quant": Case([f(12), ROWS, f(12)], [12, 4, 8]),
    "fake_quant_weight": Case([f(12), f(12)], [3, 4, 2]),
    "linear": Case([f(12), f(20), f(5), f(15)], [3, 5, 4, 1]),
    "linear_dx": Case([f(15), f(20), f(12)], [3, 5, 4]),
    "linear_dw": Case([f(15), f(12), f(20)], [3, 5, 4]),
    "conv2d": Case([f(240), f(24), f(2), f(84)], [*CONV, 1]),
    "conv2d_dx": Case([f(84), f(24), f(240)], CONV),
    "conv2d_dw": Case([f(84), f(240), f(24)], CONV),
    "max_pool2d": Case([f(60), f(24), (24, 1)], MAX_POOL),
    "max_pool2d_grad": Case([f(24), (24, 1), f(60)], MAX_POOL),
    "avg_pool2d": Case([f(60), f(12)], [2, 5, 6, 3, 2, 2, 2]),
    "avg_pool2d_grad": Case([f(12), f(60)], [2, 5, 6, 3, 2, 2, 2]),
    "batch_norm": Case([f(60), f(3), f(3), ROWS, f(60), f(3), f(3)], [4, 3, 5, 2, 2], [1e-5]),
    "batch_norm_apply": Case([f(60), f(3), f(3), f(3), f(3), f(60)], [4, 3, 5, 1], [1e-5]),
    "batch_norm_grad": Case([f(60), f(60), f(3), f(3), f(3), ROWS, f(60), f(3), f(3)], [4, 3, 5, 2, 1], [1e-5]),
    "running_stats": Case([f(3), f(3), ROWS, f(3), f(3)], [4, 3, 5, 2], [0.1]),
    "group_norm": Case([f(60), f(6), f(6), f(60), f(6), f(6)], [2, 6, 5, 3], [1e-5]),
    "group_norm_grad": Case([f(60), f(60), f(6), f(6), f(6), f(60), f(6), f(6)], [2, 6, 5, 3]),
    "layer_norm": Case([f(27), f(9), f(9), f(27), f(3), f(3)], [3, 9], [1e-5]),
    "layer_norm_grad": Case([f(27), f(27), f(9), f(3), f(3), f(27), f(9), f(9)], [3, 9]),
    "embedding": Case([f(15), (4, 8), f(12)], [5, 3, 4]),
    "embedding_grad": Case([f(12), (4, 8), f(15)], [5, 3, 4]),
    "attention": Case([f(30), f(42), f(28), f(20), f(10), f(7)], [2, 5, 7, 3, 2, 1], [0.5]),
    "attention_grad": Case(
        [f(20), f(30), f(42), f(28), f(20), f(10), f(30), f(42), f(28), f(14)], [2, 5, 7, 3, 2, 1], [0.5]
    ),
    "softmax": Case([f(30), f(30)], [2, 5, 3]),
    "softmax_grad": Case([f(30), f(30), f(30)], [2, 5, 3]),
    "gru": Case([*GRU_INPUTS, f(15), f(15), f(30), f(10), f(120), f(30)], GRU),
    "gru_gates": Case([*GRU_INPUTS, f(15), f(15), f(30), f(120), f(30)], GRU),
    "gru_grad": Case([f(30), f(10), *GRU_INPUTS, f(30), f(120), *GRU_INPUTS, f(15), f(15), f(120), f(10)], GRU),
    "lstm": Case([*LSTM_INPUTS, f(20), f(20), f(30), f(10), f(10), f(120), f(30), f(40)], GRU),
    "lstm_gates": Case([*LSTM_INPUTS, f(20), f(20), f(30), f(120), f(30), f(40)], GRU),
    "lstm_grad": Case(
        [f(30), f(10), f(10), *LSTM_INPUTS, f(30), f(120), f(30), *LSTM_INPUTS, f(20), f(20), f(120), f(20)], GRU
    ),
    "dropout": Case([f(13), (3, 8), f(13)], [13, 2, 5], [0.5]),
    "cross_entropy": Case([*CLASSES, ONE], [4, 3, 2, -100], [0.1]),
    "cross_entropy_grad": Case([ONE, *CLASSES, f(12)], [4, 3, 2, -100], [0.1]),
    "focal": Case([*CLASSES, ONE], [4, 3, 2, -100], [2]),
    "focal_grad": Case([ONE, *CLASSES, f(12)], [4, 3, 2, -100], [2]),
    "pair_loss": Case([f(12), f(12), ROWS, ONE, ONE], [2, 12, 3], [1]),
    "pair_loss_grad": Case([ONE, f(12), f(12), ROWS, ONE, f(12)], [2, 12, 3], [1]),
    "distill": Case([f(12), f(12), ROWS, ONE, ONE], [4, 3, 2], [2]),
    "distill_grad": Case([ONE, f(12), f(12), ROWS, ONE, f(12)], [4, 3, 2], [2]),
    "sgd": Case([f(13), f(13), f(13), ONE], [13, 1], [0.9, 0.1]),
    "adam": Case([f(13), f(13), f(13), f(13), ONE, f(2)], [13, 1], [0.9, 0.99, 1e-8, 0.1]),
    "rmsprop": Case([f(13), f(13), f(13), f(13), ONE], [13], [0.9, 1e-8, 0.9, 0.1]),
    "adagrad": Case([f(13), f(13), f(13), ONE], [13], [1e-8, 0.1]),
    "proximal": Case([f(13), f(13), f(13), f(13)], [13], [0.1]),
    "square_sum": Case([f(13), ONE], [13]),
    "clip_scale": Case([ONE, ONE], [], [1]),
    "check_finite": Case([f(13)], [13]),
    "quantize_s8": Case([f(30), (30, 1)], [2, 3, 5, -4], [0.1]),
    "dequantize_s8": Case([(30, 1), f(30)], [2, 3, 5, -4], [0.1]),
    "conv2d_s8": Case([(180, 1), packed(2, 3 * 16), (126, 1)], [2, 5, 6, 3, 3, *WINDOW_S8]),
    "depthwise_s8": Case([(180, 1), packed(1, 12), (126, 1)], [2, 5, 6, 3, *WINDOW_S8]),
    "linear_s8": Case([(12, 1), packed(1, 8), (15, 1)], [3, 5, 4, 2, -100, 100]),
    "add_s8": Case([(19, 1)] * 3, [19, 1, 2, 3, -100, 100], [0.5, 0.25]),
    "mul_s8": Case([(19, 1)] * 3, [19, 1, 2, 3, -100, 100], [0.5]),
    "max_pool_s8": Case([(180, 1), (72, 1)], [2, 5, 6, 3, 3, 2, 2, 2, 1, 1, -100, 100]),
    "avg_pool_s8": Case([(180, 1), (36, 1)], [2, 5, 6, 3, 3, 2, 2, 2, 1, 2, -100, 100], [0.5]),
    "lookup_s8": Case([(19, 1), (256, 1), (19, 1)], [19]),
}  # fmt: skip
OPTIONAL = {
    "attention": [5], "attention_grad": [9], "linear": [2], "conv2d": [2], "layer_norm": [1, 2],
    "layer_norm_grad": [2, 6, 7], "gru": [4, 5], "gru_gates": [4, 5],
    "lstm": [5, 6], "lstm_gates": [5, 6], "cross_entropy": [2],
    "cross_entropy_grad": [3], "focal": [2], "focal_grad": [3], "sgd": [2], "rmsprop": [3],
}  # fmt: skip

each_op = pytest.mark.parametrize("name", CASES)


class Pages:
    """Memory between two pages that nobody may touch."""

    LENGTH = 4 * mmap.PAGESIZE

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, self.LENGTH + 2 * mmap.PAGESIZE)
        self._bytes = np.frombuffer(self._map, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for page in (self._bytes.ctypes.data, self._bytes.ctypes.data + mmap.PAGESIZE + self.LENGTH):
            assert libc.mprotect(page, mmap.PAGESIZE, 0) == 0

    def arena(self, nbytes: int, *, at_end: bool) -> Array:
        start = mmap.PAGESIZE + (self.LENGTH - nbytes if at_end else 0)
        return self._bytes[start : start + nbytes]


PAGES = Pages()


def lay_out(name: str) -> tuple[Array, int]:
    """The op with its buffers one after the other, and where they end, rounded to what an arena is aligned to."""
    case, op, end = CASES[name], np.zeros(1, OP_DTYPE), 0
    op["code"] = native.op_code(name)
    op["buffers"] = -1
    for slot, (elements, item) in enumerate(case.buffers):
        end = -(-end // item) * item
        op["buffers"][0, slot] = end
        end += elements * item
    op["ints"][0, : len(case.ints)] = case.ints
    op["floats"][0, : len(case.floats)] = case.floats
    return op, end


def rounded(nbytes: int) -> int:
    return -(-nbytes // native.ARENA_ALIGNMENT) * native.ARENA_ALIGNMENT


JUNK = [0, -1, -5, 1, 2, 255, 2**31, 2**60, -(2**60), 2**63 - 1, -(2**63)]
JUNK_FLOATS = [0.0, 1.0, -1.0, 1e4, -1e4, 3e38, 1e-40, np.nan, np.inf, -np.inf]


def fill_with_junk(arena: Array, rng: np.random.Generator) -> None:
    """All of one kind, or any bytes: ids, indices, counts and numbers that nobody has checked."""
    kind = rng.integers(4)
    if kind == 0:
        arena.view(np.int64)[:] = rng.choice(np.array(JUNK), len(arena) // 8)
    elif kind == 1:
        arena.view(np.float32)[:] = rng.choice(np.array(JUNK_FLOATS, np.float32), len(arena) // 4)
    elif kind == 2:
        arena.view(np.int64)[:] = rng.choice(np.array(JUNK))
    else:
        arena[:] = rng.integers(0, 256, len(arena), np.uint8)


def run_on_junk(program: NativeProgram, nbytes: int, rng: np.random.Generator) -> None:
    for at_end in (True, False):
        arena = PAGES.arena(nbytes, at_end=at_end)
        fill_with_junk(arena, rng)
        status, op = program.run(arena, 0, 1)
        assert Status(status) is not Status.NO_ARENA
        assert op == (-1 if status == Status.OK else 0)


def test_every_op_has_a_case() -> None:
    codes = {native.op_code(name) for name in CASES}
    assert codes == set(range(len(CASES)))
    op, _ = lay_out("fill")
    op["code"] = len(CASES)
    with pytest.raises(ProgramError, match="unknown code"):
        NativeProgram(op, 1024)


def test_an_unknown_op_has_no_code() -> None:
    with pytest.raises(ProgramError, match="transmogrify"):
        native.op_code("transmogrify")


@each_op
def test_an_arena_that_just_holds_the_buffers_is_enough(name: str) -> None:
    op, end = lay_out(name)
    NativeProgram(op, end)
    with pytest.raises(ProgramError, match="op 0: a buffer ends past the arena"):
        NativeProgram(op, end - 1)


@each_op
@pytest.mark.parametrize("isa", ISAS)
def test_junk_in_the_arena_is_harmless(isa: str, name: str) -> None:
    native.select_isa(isa)
    op, end = lay_out(name)
    nbytes = rounded(end)
    for slot, (_, item) in enumerate(CASES[name].buffers):  # up to the last byte
        op["buffers"][0, slot] += (nbytes - end) // max(8, item) * max(8, item)
    program, rng = NativeProgram(op, nbytes), np.random.default_rng(0)
    for _ in range(40):
        run_on_junk(program, nbytes, rng)


@each_op
def test_a_buffer_is_optional_only_where_it_is_said_to_be(name: str) -> None:
    for slot in range(len(CASES[name].buffers)):
        op, end = lay_out(name)
        op["buffers"][0, slot] = -1
        if slot in OPTIONAL.get(name, []):
            run_on_junk(NativeProgram(op, rounded(end)), rounded(end), np.random.default_rng(slot))
        else:
            with pytest.raises(ProgramError, match="missing"):
                NativeProgram(op, end)


@each_op
@pytest.mark.parametrize("offset", [-(2**63), -8, -2, 1, 2**31, 2**62, 2**63 - 8, 2**63 - 1])
def test_a_buffer_in_the_wrong_place_is_refused(name: str, offset: int) -> None:
    for slot, (_, item) in enumerate(CASES[name].buffers):
        op, _ = lay_out(name)
        op["buffers"][0, slot] = offset
        if offset == 1 and item == 1:
            continue
        with pytest.raises(ProgramError, match="op 0: a buffer"):
            NativeProgram(op, 4096)


@each_op
def test_what_an_op_does_not_use_must_be_empty(name: str) -> None:
    case = CASES[name]
    for field, first, most in (
        ("buffers", len(case.buffers), MAX_BUFFERS),
        ("ints", len(case.ints), MAX_INTS),
        ("floats", len(case.floats), MAX_FLOATS),
    ):
        for place in range(first, most):
            op, end = lay_out(name)
            op[field][0, place] = 8
            with pytest.raises(ProgramError, match="does not use"):
                NativeProgram(op, end + 64)
    op, end = lay_out(name)
    op["reserved"] = 1
    with pytest.raises(ProgramError, match="reserved"):
        NativeProgram(op, end)


@each_op
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_float_that_is_not_finite_is_refused(name: str, bad: float) -> None:
    for place in range(len(CASES[name].floats)):
        op, end = lay_out(name)
        op["floats"][0, place] = bad
        with pytest.raises(ProgramError, match="not finite"):
            NativeProgram(op, end)


@each_op
@pytest.mark.parametrize("value", [-(2**63), -1, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1])
def test_a_huge_or_negative_int_is_refused_or_harmless(name: str, value: int) -> None:
    for place in range(len(CASES[name].ints)):
        op, end = lay_out(name)
        op["ints"][0, place] = value
        try:
            program = NativeProgram(op, rounded(end))
        except ProgramError:
            continue
        run_on_junk(program, rounded(end), np.random.default_rng(place))


@pytest.mark.parametrize(
    ("name", "place", "value", "why"),
    [
        ("conv2d", 11, 3, "not a multiple"),
        ("conv2d", 4, 3, "multiple of groups"),
        ("conv2d", 5, 30, "larger than the padded image"),
        ("conv2d", 7, 2**28 + 1, "too large"),
        ("conv2d", 9, 2**28 + 1, "out of range"),
        ("max_pool2d", 3, 128, "255"),
        ("max_pool2d", 7, 2, "half the window"),
        ("avg_pool2d", 3, 6, "larger than the padded image"),
        ("batch_norm", 3, 3, "not a multiple"),
        ("cross_entropy", 2, 3, "not a multiple"),
        ("unary", 0, 9, "kind"),
        ("batch_norm_grad", 4, 2, "switch"),
        ("copy", 0, 2, "1, 4 or 8"),
        ("copy", 1, 7, "rank"),
        ("copy", 8, -1, "stride"),
        ("copy", 18, 5, "stride"),
        ("copy", 20, -1, "negative"),
        ("reduce", 7, 2, "contiguous"),
        ("reduce", 3, 9, "extent"),
        ("binary", 0, 2, "kind"),
        ("linear", 0, 0, "extent"),
        ("conv2d_s8", 13, 128, "byte"),
        ("conv2d_s8", 13, 101, "above the highest"),
        ("conv2d_s8", 5, 2**17, "more products"),
        ("conv2d_s8", 3, 2**15, "more products"),
        ("conv2d_s8", 5, 30, "larger than the padded image"),
        ("linear_s8", 2, 2**17, "more products"),
        ("depthwise_s8", 4, 2000, "2048"),
        ("max_pool_s8", 8, 2, "half the window"),
        ("avg_pool_s8", 4, 2**23, "too many places"),
        ("add_s8", 1, -129, "byte"),
    ],
)
def test_the_reason_is_given(name: str, place: int, value: int, why: str) -> None:
    op, _ = lay_out(name)
    op["ints"][0, place] = value
    with pytest.raises(ProgramError, match=f"op 0: .*{why}"):
        NativeProgram(op, 4096)


def test_a_copy_that_would_take_for_ever_is_refused() -> None:
    op, _ = lay_out("copy")
    op["ints"][0, 1:20] = [6, *[2**20] * 6, *[0] * 12]
    with pytest.raises(ProgramError, match="larger than the arena"):
        NativeProgram(op, 4096)


NUMBERS = st.one_of(
    st.integers(-2, 12),
    st.integers(0, 600).map(lambda n: 4 * n),
    st.sampled_from(JUNK),
    st.integers(-(2**63), 2**63 - 1),
)


@st.composite
def hostile_ops(draw: st.DrawFn) -> Array:
    """A sound op in which something is not; most often among what it uses, so that some are taken all the same."""
    name = draw(st.sampled_from(sorted(CASES)))
    case, (op, _) = CASES[name], lay_out(name)

    def place(used: int, most: int) -> int:
        anywhere = draw(st.integers(0, 9)) == 0 or used == 0
        return draw(st.integers(0, (most if anywhere else used) - 1))

    for _ in range(draw(st.integers(1, 4))):
        match draw(st.sampled_from(["buffers", "buffers", "ints", "ints", "floats", "header"])):
            case "header":
                op["code"] = draw(st.one_of(st.integers(-1, 70), st.integers(-(2**31), 2**31 - 1)))
                op["reserved"] = draw(st.sampled_from([0, 0, 1, -1]))
            case "buffers":
                op["buffers"][0, place(len(case.buffers), MAX_BUFFERS)] = draw(NUMBERS)
            case "ints":
                op["ints"][0, place(len(case.ints), MAX_INTS)] = draw(NUMBERS)
            case "floats":
                op["floats"][0, place(len(case.floats), MAX_FLOATS)] = draw(st.floats())
    return op


@settings(max_examples=1500, deadline=None)
@given(op=hostile_ops(), isa=st.sampled_from(ISAS), seed=st.integers(0, 99))
def test_a_hostile_op_is_refused_or_harmless(op: Array, isa: str, seed: int) -> None:
    native.select_isa(isa)
    try:
        program = NativeProgram(op, 4096)
    except ProgramError:
        return
    run_on_junk(program, 4096, np.random.default_rng(seed))


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_small_numbers_that_are_all_drawn_are_refused_or_harmless(data: st.DataObject) -> None:
    """Odd windows, strides and groups that a mutated op seldom reaches."""
    name = data.draw(st.sampled_from(sorted(CASES)))
    op, _ = lay_out(name)
    used = len(CASES[name].buffers)
    op["buffers"][0, :used] = [8 * n for n in data.draw(st.lists(st.integers(0, 400), min_size=used, max_size=used))]
    count = len(CASES[name].ints)
    op["ints"][0, :count] = data.draw(st.lists(st.integers(0, 6), min_size=count, max_size=count))
    try:
        program = NativeProgram(op, 8192)
    except ProgramError:
        return
    native.select_isa(data.draw(st.sampled_from(ISAS)))
    run_on_junk(program, 8192, np.random.default_rng(0))


@given(raw=st.binary(min_size=OP_DTYPE.itemsize, max_size=OP_DTYPE.itemsize), arena_bytes=st.integers(0, 4096))
def test_any_bytes_are_refused_or_harmless(raw: bytes, arena_bytes: int) -> None:
    try:
        program = NativeProgram(np.frombuffer(raw, OP_DTYPE), arena_bytes)
    except ProgramError:
        return
    run_on_junk(program, rounded(arena_bytes), np.random.default_rng(0))


def three_fills() -> Array:
    ops = np.concatenate([lay_out("fill")[0] for _ in range(3)])
    ops["buffers"][:, 0] = [0, 64, 128]
    ops["floats"][:, 0] = [1, 2, 3]
    return ops


def test_a_range_of_ops_is_run() -> None:
    program, arena = NativeProgram(three_fills(), 192), PAGES.arena(192, at_end=True)
    arena[:] = 0
    assert program.run(arena, 1, 1) == (Status.OK, -1)
    assert arena.view(np.float32)[[0, 16, 32]].tolist() == [0, 2, 0]
    assert program.run(arena, 0, 3) == (Status.OK, -1)
    assert arena.view(np.float32)[[0, 16, 32]].tolist() == [1, 2, 3]
    assert program.run(arena, 3, 0) == (Status.OK, -1)


@pytest.mark.parametrize(
    ("first", "count"), [(-1, 1), (0, 4), (3, 1), (4, 0), (1, -1), (2**62, 2**62), (1, 2**63 - 1), (-(2**63), 0)]
)
def test_a_range_that_is_not_the_programs_runs_nothing(first: int, count: int) -> None:
    program, arena = NativeProgram(three_fills(), 192), PAGES.arena(192, at_end=True)
    arena[:] = 0
    assert program.run(arena, first, count) == (Status.NO_ARENA, -1)
    assert not arena.any()


def test_a_run_stops_at_the_first_op_that_fails() -> None:
    check, _ = lay_out("check_finite")
    ops = three_fills()
    ops[1] = check[0]
    arena = PAGES.arena(192, at_end=True)
    arena[:] = 0
    arena[3] = arena[2] = 0xFF
    ops["buffers"][0, 0] = 64
    assert NativeProgram(ops, 192).run(arena, 0, 3) == (Status.NOT_FINITE, 1)
    assert arena.view(np.float32)[16] == 1
    assert not arena[128:].any()


def test_the_op_that_is_not_sound_is_named() -> None:
    ops = three_fills()
    ops["ints"][2, 0] = 0
    with pytest.raises(ProgramError, match=r"^op 2: an extent is out of range$"):
        NativeProgram(ops, 192)


def test_a_program_keeps_a_copy_of_its_ops() -> None:
    ops = three_fills()
    program = NativeProgram(ops, 192)
    ops["buffers"][:] = 2**40
    assert program.run(PAGES.arena(192, at_end=True), 0, 3) == (Status.OK, -1)


def test_a_table_with_gaps_is_read_as_it_stands() -> None:
    every_other = np.repeat(three_fills(), 2)[::2]
    arena = PAGES.arena(192, at_end=True)
    assert NativeProgram(every_other, 192).run(arena, 0, 3) == (Status.OK, -1)
    assert arena.view(np.float32)[[0, 16, 32]].tolist() == [1, 2, 3]


def test_no_ops_are_a_program_too() -> None:
    program = NativeProgram(np.zeros(0, OP_DTYPE), 0)
    assert program.run(PAGES.arena(64, at_end=True), 0, 0) == (Status.OK, -1)
    assert program.run(PAGES.arena(64, at_end=True), 0, 1) == (Status.NO_ARENA, -1)


@pytest.mark.parametrize("ops", [np.zeros(3), np.zeros((1, 1), OP_DTYPE), np.zeros((), OP_DTYPE)])
def test_a_table_of_another_kind_is_refused(ops: Array) -> None:
    with pytest.raises(ProgramError, match="OP_DTYPE"):
        NativeProgram(ops, 64)


@pytest.mark.parametrize("arena_bytes", [-1, 2**63, 2**64 + 64])
def test_an_arena_of_no_such_size_is_refused(arena_bytes: int) -> None:
    with pytest.raises(ProgramError, match="arena_bytes"):
        NativeProgram(three_fills(), arena_bytes)


def test_an_arena_of_another_kind_is_refused() -> None:
    program, arena = NativeProgram(three_fills(), 192), PAGES.arena(512, at_end=False)
    read_only = arena.view()
    read_only.flags.writeable = False
    for bad in (arena.view(np.int8), arena.view(np.float32), arena[::2], read_only, arena[:128], arena[32:], arena[1:]):
        with pytest.raises(ValueError, match="arena"):
            program.run(bad, 0, 3)
