"""The `.hedgerow` file: what is written is read back, to the bit; hostile files are in tests/hostile/test_models.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_runtime.deploy.formats.engine import layout
from edge_runtime.deploy.formats.engine.encode import encode, floats, small, words
from edge_runtime.deploy.run import engine
from edge_runtime.deploy.run.engine_file import Constant, EngineModel, EngineOp, Port, decode, elements, stored_bytes
from edge_runtime.errors import ArtefactError

GOLDEN = sorted((Path(__file__).parents[2] / "golden").glob("*.hedgerow"))
SHAPES = hnp.array_shapes(max_dims=4, max_side=9)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_file_is_read_and_written_again_to_the_bit(path: Path) -> None:
    assert encode(decode(path.read_bytes())) == path.read_bytes()


@given(st.data(), st.integers(2, 8), SHAPES)
def test_small_integers_come_back_from_as_few_bytes_as_they_take(
    data: st.DataObject, bits: int, shape: tuple[int, ...]
) -> None:
    top = 2 ** (bits - 1) - 1
    content = data.draw(hnp.arrays(np.int8, shape, elements=st.integers(-top - 1, top)))
    one = small("w", content, bits)
    np.testing.assert_array_equal(elements(one), content)
    stored = {2: 2, 3: 4, 4: 4}.get(bits, 8)
    assert len(one.content) == stored_bytes(one.dtype, content.size) == -(-content.size * stored // 8)


def test_other_constants_come_back() -> None:
    numbers = np.array([1.5, -0.0, 3e38], np.float32)
    np.testing.assert_array_equal(elements(floats("x", numbers)), numbers)
    whole = np.array([[2**31 - 1], [-(2**31)]])
    np.testing.assert_array_equal(elements(words("x", whole)), whole)


@given(hnp.arrays(np.int32, st.tuples(*[st.integers(1, 5)] * 4)))
def test_an_element_lies_where_the_strides_say(content: np.ndarray) -> None:
    channels = content.shape[1]
    flat = layout.arranged(content, channels).reshape(-1)
    steps = layout.strides(channels, content.shape)
    for index in np.ndindex(*content.shape):
        assert flat[int(np.dot(index, steps))] == content[index]


def test_a_model_of_nothing_is_a_file_and_another_version_is_refused() -> None:
    port = Port("x", "f32", (1, 4), 0)
    model = EngineModel(port, port, 64, {}, ())
    file = encode(model)
    assert decode(file) == model
    with pytest.raises(ArtefactError, match="damaged"):
        decode(file.replace(b'"version":1', b'"version":2'))


@pytest.mark.parametrize(("scales", "fits"), [([2.0], True), ([2.0, 3.0], False)])
def test_a_scaled_number_without_dims_has_one_scale_or_is_refused(scales: list[float], fits: bool) -> None:
    port = Port("x", "f32", (1, 4), 0)
    constants = {"s": floats("s", np.float32(scales)), "w": Constant("w", "s8", (), b"\1", "s")}
    file = encode(EngineModel(port, port, 64, constants, ()))
    if fits:
        assert decode(file).constants["w"].shape == ()
    else:
        with pytest.raises(ArtefactError, match="no scale that fits"):
            decode(file)


def test_layers_that_share_weights_are_counted_before_there_is_memory_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a few KB that would take 130."""
    monkeypatch.setattr(engine, "MAX_ARENA_BYTES", 1 << 15)
    port, multiplier = Port("x", "f32", (1, 1), 0), floats("m", np.ones(1, np.float32))
    biases = [words(f"b{i}", np.zeros(1, np.int32)) for i in range(16)]
    constants = {one.name: one for one in (small("w", np.ones((1, 512), np.int8), 2), multiplier, *biases)}
    ops = tuple(EngineOp("linear_s8", (0, "w", one.name, "m", 512), (1, 1, 512, 0, -128, 127)) for one in biases)
    found = EngineModel(port, port, 576, constants, ops)
    engine.EngineBackend(encode(replace(found, ops=ops[:2])))
    with pytest.raises(ArtefactError, match="once unpacked"):
        engine.EngineBackend(encode(found))
