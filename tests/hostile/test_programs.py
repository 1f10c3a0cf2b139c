"""Programs from anywhere.

The invariant: whatever stands in a Program's file, reading it and making a trainer of it either raises ProgramError, or
gives a trainer whose steps and predictions stay inside its arena, end, and raise nothing but EdgeRuntimeError and
ValueError. Memory stays in proportion to the file, until a trainer is made; that takes the arena the file asks for, if
it is within the bound that the caller set.

Runs without PyTorch: the Programs to start from are files (tests/golden/tiny.py makes them).
"""

from __future__ import annotations

import contextlib
import copy
import json
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edge_runtime as er
from edge_runtime.engine.session import POISON, Session
from edge_runtime.errors import EdgeRuntimeError, ProgramError

GOLDEN = Path(__file__).parents[1] / "golden"
SOUND = {path.stem: path.read_bytes() for path in sorted(GOLDEN.glob("*.program"))}
NAMES = sorted(SOUND)
LARGEST_ARENA = 1 << 22  # that is run here; what is larger has tests of its own


def opened(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[8:16], "little")
    return json.loads(data[64 : 64 + length]), data[64 + length + -length % 64 :]


def sealed(header: Any, blob: bytes = b"") -> bytes:
    """A file whose prelude and checksum are right, whatever its header says; NaN is written as Python does."""
    text = header if isinstance(header, bytes) else json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    body = text + bytes(-len(text) % 64) + blob
    return b"HEDGEPRG" + len(text).to_bytes(8, "little") + zlib.crc32(body).to_bytes(4, "little") + bytes(44) + body


def outcome(data: bytes) -> str:
    """Whether it is "refused", too "large" to run here, or "ran"; anything that breaks the invariant fails the test."""
    try:
        program = er.Program.from_bytes(data)
    except ProgramError:
        return "refused"
    if program.arena_bytes > LARGEST_ARENA:
        return "large"
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of NumPy, about numbers that hostile scalars give
        try:
            session = Session(program, poison=True)
            trainer = er.Trainer(program, session=session)
        except ProgramError:
            return "refused"
        for batch in (*GIVEN, *fitting(program)):
            for use in (trainer.step, lambda x, y: trainer.evaluate([(x, y)]), lambda x, _: trainer.predict(x)):
                with contextlib.suppress(EdgeRuntimeError, ValueError):
                    use(*batch)
        trainer.load_state_dict(trainer.state_dict())
        trainer.restore(trainer.snapshot())
    guard = session._guarded[program.arena_bytes :]
    assert bytes(guard) == expected_guard(program.arena_bytes), "something was written behind the arena"
    return "ran"


def expected_guard(arena_bytes: int) -> bytes:
    words = np.full(arena_bytes // 4 + 20, POISON, np.uint32).view(np.uint8)
    end = (arena_bytes + 64) // 4 * 4
    return bytes(words[arena_bytes:end]) + bytes(arena_bytes + 64 - end)


RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((4, 1, 4, 4)).astype(np.float32), RNG.integers(0, 3, 4)
TOKENS = RNG.integers(0, 5, (3, 3))
GIVEN = [IMAGES, (TOKENS, (TOKENS, RNG.standard_normal((3, 3, 2)).astype(np.float32)))]


def fitting(program: er.Program) -> list[Any]:
    """A batch in the shapes that the Program itself asks for."""
    arrays: dict[bool, list[Any]] = {True: [], False: []}
    scalars = ("rows", "random", "lr", "corrections", "share")
    for one in program.phases[0].inputs:
        if one.name not in scalars and not one.name.startswith("norm.") and one.shape:
            ones = np.ones(one.shape, np.int64 if one.dtype == "i64" else np.float32)
            arrays[one.name.startswith("target.")].append(ones)
    if not arrays[False] or not arrays[True]:
        return []
    return [tuple(tuple(found) if len(found) > 1 else found[0] for found in (arrays[False], arrays[True]))]


@pytest.mark.parametrize("name", NAMES)
def test_the_sound_programs_run(name):
    assert outcome(SOUND[name]) == "ran"
    assert sealed(*opened(SOUND[name])) == SOUND[name]


# Damage on the way.


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_cut_short_or_longer_is_refused(name):
    data = SOUND[name]
    length = int.from_bytes(data[8:16], "little")
    borders = [0, 1, 7, 8, 15, 16, 19, 20, 63, 64, 65, 63 + length, 64 + length, 65 + length, len(data) - 1]
    for end in {*borders, *range(0, len(data), 97)}:
        with pytest.raises(ProgramError):
            er.Program.from_bytes(data[:end])
    for more in (b"\0", b"\0" * 64, data):
        with pytest.raises(ProgramError):
            er.Program.from_bytes(data + more)


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_is_found_wherever_it_is(name):
    data = SOUND[name]
    for place in {*range(64), *range(64, len(data), 61), len(data) - 1}:
        for bit in (0, 3, 7):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises(ProgramError):
                er.Program.from_bytes(bytes(damaged))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data):
    for content in (data, b"HEDGEPRG" + data, sealed(data)):
        with pytest.raises(ProgramError):
            er.Program.from_bytes(content)


# A checksum that holds over a header that does not.

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_any_json_is_refused(value):
    assert outcome(sealed(value)) == "refused"
    _, blob = opened(SOUND[NAMES[0]])
    assert outcome(sealed(json.dumps(value).encode() * 3, blob)) == "refused"


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, one in inner for path in paths(one, (*at, key)))]


HEADERS = {name: opened(data) for name, data in SOUND.items()}
PATHS = {name: [path for path in paths(header) if path] for name, (header, _) in HEADERS.items()}
TOP = {name: sorted({path[0] for path in found}) for name, found in PATHS.items()}


def parent_of(header: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        header = header[key]
    return header


EDGES = [0, 1, -1, 2, 3, 4, 7, 8, 63, 64, 100, 255, 4096, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64, -(2**63)]
NUMBERS = st.sampled_from([*EDGES, 10**400, 0.5, 1.5, -0.5, 1e-320, 1e308, float("nan"), float("inf"), -float("inf")])
DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
OTHERS = st.sampled_from(
    [None, True, False, "", "x", "rows", "fill", "relu", "step", "weight", "anchor", "a/anchor", "f32", "i64", "\ud800",
     "fill\0x", "x" * 2000, [], {}, [0], [[]], [0] * 300, {"name": "MSE"}, {"name": "Adam"}, {"name": []}, DEEP]
)  # fmt: skip


CHANGES = st.one_of(
    st.tuples(st.just("put"), st.one_of(NUMBERS, OTHERS)),
    st.tuples(st.just("add"), st.sampled_from([-64, -8, -4, -1, 1, 4, 8, 64, 0.5])),
    st.tuples(st.sampled_from(["drop", "double"]), st.none()),
    st.tuples(st.just("repeat"), st.integers(0, 3)),
)


@st.composite
def hostile_changes(draw) -> tuple[str, list[tuple[tuple[Any, ...], str, Any]]]:
    """A sound Program's name, and what to do to one to three places of its header."""
    name = draw(st.sampled_from(NAMES))
    found = []
    for _ in range(draw(st.integers(1, 3))):
        # First a key of the header, then a place below it: else nearly all places are numbers of ops.
        top = draw(st.sampled_from(TOP[name]))
        below = [path for path in PATHS[name] if path[0] == top]
        path = draw(st.sampled_from(below))
        if draw(st.integers(0, 4)) == 0:
            found.append((path, "copy", draw(st.sampled_from(below))))
        else:
            found.append((path, *draw(CHANGES)))
    return name, found


def apply(header: Any, path: tuple[Any, ...], change: str, value: Any) -> None:
    """Make one change, where it fits what is there by now."""
    try:
        place = parent_of(header, path)
        old = place[path[-1]]
        if change == "put":
            place[path[-1]] = value
        elif change == "add":
            place[path[-1]] = old + value
        elif change == "drop":
            del place[path[-1]]
        elif change == "double":
            place.insert(path[-1], copy.deepcopy(old))
        elif change == "repeat":
            place[path[-1]] = old * value
        else:
            place[path[-1]] = copy.deepcopy(parent_of(header, value)[value[-1]])
    except (KeyError, IndexError, TypeError, AttributeError):
        return


@settings(max_examples=700, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hostile_changes())
def test_a_hostile_header_is_refused_or_harmless(hostile):
    name, changes = hostile
    header, blob = copy.deepcopy(HEADERS[name])
    for change in changes:
        apply(header, *change)
    outcome(sealed(header, blob))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(NAMES), st.data())
def test_hostile_numbers_of_ops_are_refused_or_harmless(name, data):
    header, blob = copy.deepcopy(HEADERS[name])
    phase = data.draw(st.sampled_from(header["phases"]))
    for _ in range(data.draw(st.integers(1, 4))):
        op = data.draw(st.sampled_from(phase["ops"]))
        part = data.draw(st.sampled_from([2, 2, 3, 3, 4, 5]))
        if not op[part]:
            continue
        slot = data.draw(st.integers(0, len(op[part]) - 1))
        near = st.integers(-70, 70).map(lambda by, old=op[part][slot]: old + by)
        inside = st.integers(-1, header["arena_bytes"]).map(lambda at: at // 4 * 4)
        op[part][slot] = data.draw(st.one_of(near, inside, NUMBERS) if part != 4 else NUMBERS)
    outcome(sealed(header, blob))


def changed(name: str, *changes: tuple[tuple[Any, ...], Any]) -> bytes:
    header, blob = copy.deepcopy(HEADERS[name])
    for path, value in changes:
        parent_of(header, path)[path[-1]] = value
    return sealed(header, blob)


IMAGE, TOKEN = "tiny_images", "tiny_tokens"
NAMED = {
    "a loss that is a list": (IMAGE, ("loss",), []),
    "a loss without a name": (IMAGE, ("loss",), {}),
    "an optimizer that is a list": (IMAGE, ("optimizer",), []),
    "counters that are a list": (IMAGE, ("counters",), []),
    "a report that is a list": (IMAGE, ("report",), []),
    "an arena of a tebibyte": (IMAGE, ("arena_bytes",), 2**40 + 1),
    "an unknown op": (IMAGE, ("phases", 0, "ops", 0, 0), "launch"),
    "an op's name with an end in it": (IMAGE, ("phases", 0, "ops", 0, 0), "conv2d\0x"),
    "an op of too few buffers": (IMAGE, ("phases", 0, "ops", 0, 2), [0]),
    "an op of too many buffers": (IMAGE, ("phases", 0, "ops", 0, 2), [0] * 21),
    "an op at a node that is not there": (IMAGE, ("phases", 0, "ops", 0, 1), 10**6),
    "a state tensor behind the state": (IMAGE, ("state", 0, 3), 10**6),
    "a state tensor at an odd place": (IMAGE, ("state", 0, 3), 2),
    "an initial tensor behind the file": (IMAGE, ("initial", 0, 1), 10**6),
    "an initial tensor of no state": (IMAGE, ("initial", 0, 0), "gone"),
    "a target of no dims": (IMAGE, ("phases", 0, "inputs", 4, 2), []),
    "an input of no dims": (IMAGE, ("phases", 0, "inputs", 0, 2), []),
    "a loss output of no dims": (IMAGE, ("phases", 0, "outputs", 0, 2), []),
    "a learning rate that is no number": (IMAGE, ("optimizer", "lr"), float("nan")),
    "a learning rate beyond all numbers": (IMAGE, ("optimizer", "lr"), 10**400),
    "a beta of 1": (TOKEN, ("optimizer", "beta1"), 1),
    "a beta of 2": (TOKEN, ("optimizer", "beta2"), 2),
    "a temperature of 0": (IMAGE, ("loss",), {"name": "KLDivergence", "temperature": 0}),
    "a loss in a loss in a loss": (
        TOKEN, ("loss", "losses", 0), {"name": "MultiTask", "losses": [{"name": "MSE"}], "weights": [], "learned": True}
    ),
    "an anchor of nothing": (TOKEN, ("state", 0, 4), "anchor"),
    "a batch of more rows than its phases take": (IMAGE, ("batch_size",), 2**31),
    "a phase of another batch": (IMAGE, ("phases", 0, "batch"), 2**31),
    "a name that is no text": (IMAGE, ("state", 0, 0), "\ud800"),
}  # fmt: skip


@pytest.mark.parametrize("what", NAMED)
def test_this_is_refused_or_harmless(what):
    name, path, value = NAMED[what]
    outcome(changed(name, (path, value)))


def test_two_tensors_of_one_name_are_refused():
    state = HEADERS[IMAGE][0]["state"]
    assert outcome(changed(IMAGE, (("state", 1), state[0]))) == "refused"


def test_an_anchor_of_a_weight_that_is_not_there_is_refused():
    place = next(i for i, one in enumerate(HEADERS[TOKEN][0]["state"]) if one[4] == "anchor")
    assert outcome(changed(TOKEN, (("state", place, 0), "gone/anchor"))) == "refused"


def test_a_tensor_that_is_named_twice_in_a_phase_is_refused_or_harmless():
    inputs = HEADERS[IMAGE][0]["phases"][0]["inputs"]
    outcome(changed(IMAGE, (("phases", 0, "inputs"), inputs + inputs)))


def test_a_program_whose_batch_is_larger_than_its_phases_is_refused():
    with pytest.raises(ProgramError, match="no step is for 100 rows"):
        er.Program.from_bytes(changed(IMAGE, (("batch_size",), 100)))


# Memory and time.


@pytest.mark.parametrize("nesting", ["[" * 100_000, '{"a":' * 100_000, "[" * 500 + "]" * 500, "9" * 5000])
def test_deep_or_long_json_is_refused(nesting):
    assert outcome(sealed(nesting.encode())) == "refused"
    text = json.dumps(HEADERS[IMAGE][0], sort_keys=True, separators=(",", ":"))
    assert outcome(sealed(text.replace('"loss":', f'"deep":{nesting},"loss":').encode())) == "refused"


BOUNDED = """
import resource, sys
import numpy as np
import edge_runtime as er
from edge_runtime.kernels import native
native.isas()
resource.setrlimit(resource.RLIMIT_AS, (limit := 1 << 30, limit))
refused = []
for path in sys.argv[1:]:
    try:
        er.Trainer(er.Program.load(path)).step(np.ones((2, 1, 4, 4), np.float32), np.array([0, 1]))
        refused.append("ran")
    except (er.EdgeRuntimeError, ValueError) as error:
        refused.append(type(error).__name__)
print(*refused)
"""


def test_an_arena_larger_than_the_memory_is_refused_and_not_a_crash(tmp_path):
    """In a process that may have one GiB: asking for more must be an error of ours, and cost nothing before."""
    cases = {
        "arena": changed(IMAGE, (("arena_bytes",), 2**39)),
        "state": changed(IMAGE, (("arena_bytes",), 2**39), (("state_bytes",), 2**38)),
        "long lists": changed(IMAGE, (("state_dict_order",), ["x"] * 200_000)),
        "many ops": changed(IMAGE, (("phases", 0, "ops"), HEADERS[IMAGE][0]["phases"][0]["ops"] * 3000)),
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", BOUNDED, *(str(tmp_path / name) for name in cases)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    words = ran.stdout.split()
    assert words[:3] == ["ProgramError"] * 3
    # A second pass over the ops may find that the first has written over its classes.
    assert words[3] in ("ran", "ProgramError", "NumericsError", "ValueError")


def test_a_caller_can_bound_the_arena_before_anything_is_believed():
    data = SOUND[IMAGE]
    needed = er.Program.from_bytes(data).arena_bytes
    assert er.Program.from_bytes(data, max_arena_bytes=needed).arena_bytes == needed
    with pytest.raises(ProgramError, match=f"{needed}"):
        er.Program.from_bytes(data, max_arena_bytes=needed - 1)
