"""`.hedgerow` files from anywhere.

The invariant: whatever stands in a file, opening it either raises ArtefactError (or BudgetError, within the bound that
the caller sets), or gives a model whose inferences stay inside its arena, end, and raise nothing but EdgeRuntimeError
and ValueError. Memory stays in proportion to the file until the arena is made, and that is within the bound.

Runs without PyTorch: the models to start from are files (tests/golden/tiny_models.py makes them).
"""

from __future__ import annotations

import copy
import json
import warnings
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.deploy.run.engine import EngineBackend
from edge_runtime.deploy.run.engine_file import OPS, decode
from edge_runtime.errors import ArtefactError, BudgetError, EdgeRuntimeError

GOLDEN = Path(__file__).parents[1] / "golden"
SOUND = {path.stem: path.read_bytes() for path in sorted(GOLDEN.glob("*.hedgerow"))}
NAMES = sorted(SOUND)
LARGEST_ARENA = 1 << 16  # that is run here
FILES = 10_000


def opened(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[8:16], "little")
    return json.loads(data[64 : 64 + length]), data[64 + length + -length % 64 :]


def sealed(header: Any, blob: bytes = b"") -> bytes:
    """A file whose prelude and checksum are right, whatever its header says."""
    text = header if isinstance(header, bytes) else json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    body = text + bytes(-len(text) % 64) + blob
    return b"HEDGEINF" + len(text).to_bytes(8, "little") + zlib.crc32(body).to_bytes(4, "little") + bytes(44) + body


HEADERS = {name: opened(data) for name, data in SOUND.items()}


def outcome(data: bytes) -> str:
    """Whether it is "refused", too "large" to run here, or "ran"; anything that breaks the invariant fails the test."""
    try:
        backend = EngineBackend(data, max_memory=LARGEST_ARENA)
    except ArtefactError:
        return "refused"
    except BudgetError:
        return "large"
    x = np.zeros(backend.input.shape, np.float32 if backend.input.dtype == "f32" else np.int64)
    block = backend.arena.base
    end = backend.arena.ctypes.data - block.ctypes.data + backend.arena.nbytes
    block[end:] = 0xA5
    before = block[: end - backend.arena.nbytes].copy()
    for given_x in (x, x + 1):
        try:
            assert backend.predict(given_x).shape == backend.output.shape
        except (EdgeRuntimeError, ValueError):
            continue
    assert (block[end:] == 0xA5).all(), "something was written behind the arena"
    assert (block[: len(before)] == before).all(), "something was written before the arena"
    return "ran"


@pytest.mark.parametrize("name", NAMES)
def test_the_sound_models_run(name: str) -> None:
    assert outcome(SOUND[name]) == "ran"
    assert sealed(*opened(SOUND[name])) == SOUND[name]


# Damage on the way.


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_cut_short_or_longer_is_refused(name: str) -> None:
    data = SOUND[name]
    for end in (*range(130), *range(130, len(data), 61), len(data) - 1):
        with pytest.raises(ArtefactError):
            decode(data[:end])
    for more in (b"\0", b"\0" * 64, data):
        with pytest.raises(ArtefactError):
            decode(data + more)


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_is_found_wherever_it_is(name: str) -> None:
    data = SOUND[name]
    for place in {*range(64), *range(64, len(data), 13), len(data) - 1}:
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(ArtefactError):
            decode(bytes(damaged))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    for content in (data, b"HEDGEINF" + data, sealed(data)):
        with pytest.raises(ArtefactError):
            decode(content)


@pytest.mark.parametrize("nesting", ["[" * 100_000, '{"a":' * 100_000, "[" * 500 + "]" * 500, "9" * 5000])
def test_deep_or_long_json_is_refused(nesting: str) -> None:
    assert outcome(sealed(nesting.encode())) == "refused"
    text = json.dumps(HEADERS[NAMES[0]][0])
    assert outcome(sealed(text.replace('"output":', f'"output":{nesting},"was":').encode())) == "refused"


# A checksum that holds over a header that does not.

EDGES = [
    0,
    1,
    -1,
    2,
    3,
    4,
    8,
    63,
    64,
    100,
    127,
    128,
    -128,
    -129,
    255,
    4096,
    2**31 - 1,
    2**31,
    2**32,
    2**62,
    2**63,
    2**64,
]
OTHERS = [
    *EDGES, *EDGES, 10**400, 0.5, -0.5, 1e-320, 1e308, float("nan"), float("inf"), None, True, False, "", "x", "f32",
    "i64", "s8", "s4", "s2", "i32", "\ud800", "a\0b", "x" * 300, [], {}, [0], [[]], [0] * 300, [1] * 9, *sorted(OPS),
]  # fmt: skip


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, one in inner for path in paths(one, (*at, key)))]


PATHS = {name: [path for path in paths(header) if path] for name, (header, _) in HEADERS.items()}


def parent_of(header: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        header = header[key]
    return header


def changed(name: str, rng: np.random.Generator) -> bytes:
    """The model with one to three places of its header changed, and at times a byte of its constants."""
    header, blob = copy.deepcopy(HEADERS[name])
    tops = sorted({path[0] for path in PATHS[name]})
    for _ in range(rng.integers(1, 4)):
        # First a key of the header, then a place below it: else nearly all places are numbers of ops.
        top = tops[rng.integers(len(tops))]
        below = [path for path in PATHS[name] if path[0] == top]
        path, other = (below[rng.integers(len(below))] for _ in range(2))
        try:
            place, old = parent_of(header, path), parent_of(header, path)[path[-1]]
            match rng.integers(6):
                case 0 | 1:
                    place[path[-1]] = OTHERS[rng.integers(len(OTHERS))]
                case 2:
                    place[path[-1]] = old + int(rng.integers(-70, 70))
                case 3:
                    place[path[-1]] = copy.deepcopy(parent_of(header, other)[other[-1]])
                case 4:
                    place.insert(path[-1], copy.deepcopy(old))
                case 5:
                    del place[path[-1]]
        except (KeyError, IndexError, TypeError, AttributeError):
            continue
    content = bytearray(blob)
    if rng.integers(4) == 0:
        content[rng.integers(len(content))] = rng.integers(256)
    return sealed(header, bytes(content))


@pytest.mark.parametrize("name", NAMES)
def test_hostile_files_are_refused_or_harmless(name: str) -> None:
    rng = np.random.default_rng(NAMES.index(name))
    found: Counter[str] = Counter()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of NumPy, about numbers that hostile constants give
        for _ in range(-(-FILES // len(NAMES))):
            found[outcome(changed(name, rng))] += 1
    assert found["ran"] > 100, "too few of these files get as far as the core"
    assert found["refused"] > 100


@pytest.mark.parametrize("name", NAMES)
def test_hostile_numbers_of_ops_are_refused_or_harmless(name: str) -> None:
    rng = np.random.default_rng(NAMES.index(name))
    found: Counter[str] = Counter()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(500):
            header, blob = copy.deepcopy(HEADERS[name])
            for _ in range(rng.integers(1, 4)):
                op = header["ops"][rng.integers(len(header["ops"]))]
                part = op[rng.integers(1, 4)]
                if not part:
                    continue
                slot = rng.integers(len(part))
                if isinstance(part[slot], str):
                    continue
                near = part[slot] + int(rng.integers(-4, 5))
                part[slot] = near if rng.integers(3) else OTHERS[rng.integers(2 * len(EDGES))]
            found[outcome(sealed(header, blob))] += 1
    assert found["ran"] > 10


def put(name: str, path: tuple[Any, ...], value: Any) -> bytes:
    header, blob = copy.deepcopy(HEADERS[name])
    parent_of(header, path)[path[-1]] = value
    return sealed(header, blob)


IMAGE, TOKENS = "tiny_image", "tiny_tokens"
NAMED = {
    "activations beyond the limit": (IMAGE, ("activation_bytes",), 1 << 33),
    "no activations": (IMAGE, ("activation_bytes",), 0),
    "an input behind the activations": (IMAGE, ("input", 3), 10**6),
    "an input at an odd place": (IMAGE, ("input", 3), 2),
    "an input of no known dtype": (IMAGE, ("input", 1), "f64"),
    "an output of a dim that is 0": (IMAGE, ("output", 2), [0, 3]),
    "an output of huge dims": (IMAGE, ("output", 2), [1 << 20, 1 << 20]),
    "an op of training": (IMAGE, ("ops", 0, 0), "sgd"),
    "an op that is a list": (IMAGE, ("ops", 0, 0), ["copy"]),
    "a constant that is not there": (IMAGE, ("ops", 1, 1, 1), "gone"),
    "a constant where the input belongs": (IMAGE, ("ops", 1, 1), ["x"] * 5),
    "a layer without its constants": (IMAGE, ("ops", 1, 1), [0, 64]),
    "a layer without its sizes": (IMAGE, ("ops", 1, 2), []),
    "a layer of other sizes than its weight": (IMAGE, ("ops", 1, 2, 4), 5),
    "a constant of no known dtype": (IMAGE, ("constants", 0, 1), "f16"),
    "a constant of more elements than bytes": (IMAGE, ("constants", 0, 2), [1 << 20]),
    "a constant that lies on the one before": (IMAGE, ("constants", 1, 3), 0),
    "a constant behind the file": (IMAGE, ("constants", 0, 3), 1 << 20),
    "a scale that is not there": (TOKENS, ("constants", 0, 4), "gone"),
    "two constants of one name": (IMAGE, ("constants", 1, 0), HEADERS["tiny_image"][0]["constants"][0][0]),
    "another version": (IMAGE, ("version",), 2),
}  # fmt: skip


@pytest.mark.parametrize("what", NAMED)
def test_this_is_refused(what: str) -> None:
    assert outcome(put(*NAMED[what])) == "refused"


def test_a_weight_that_the_kernels_do_not_take_is_refused() -> None:
    header, blob = HEADERS[IMAGE]
    place = next(one[3] for one in header["constants"] if one[0] == "stem.weight")
    assert outcome(sealed(header, blob[:place] + b"\x80" + blob[place + 1 :])) == "refused"


def test_the_golden_files_are_those_that_the_sources_make() -> None:
    pytest.importorskip("torch")
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("tiny_models", GOLDEN / "tiny_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.make() == {f"{name}.hedgerow": data for name, data in SOUND.items()}, (
        "run tests/golden/tiny_models.py"
    )
