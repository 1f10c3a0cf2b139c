"""Codecs on tensors of any shape: what comes back, how far off it may be, and what is refused before it is sent."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edge_runtime.errors import NumericsError, PeerError
from edge_runtime.updates import CODECS, TensorLayout, golomb, make_codec
from edge_runtime.updates.delta import FloatVector
from edge_runtime.updates.stage import CHUNK, Reader, Task

CHAINS = ["topk,int8", "topk,hadamard", "randk,uniform", "randk,topk,float16"]
NAMES = [*CODECS, *CHAINS]
few_examples = settings(max_examples=20)  # where every codec takes its turn
SMALLEST = 2.0**-149  # the least float32 above 0
FLOAT16_MAX, FLOAT32_MAX = 65504.0, float(np.finfo(np.float32).max)

Model = dict[str, np.ndarray]


@st.composite
def models(draw: st.DrawFn, largest: float = FLOAT16_MAX, least: float = 0.0) -> Model:
    """`{name: float32 array}`: scalars, empty tensors, zeros of both signs, denormals and far outliers among them."""
    shapes = draw(st.dictionaries(st.text(max_size=4), array_shapes(min_dims=0, min_side=0, max_side=6), max_size=4))
    low = max(least, SMALLEST)
    magnitude = st.floats(low, largest, width=32) | st.floats(low, min(low * 2**24, largest), width=32)
    number = st.sampled_from([0.0, -0.0]) | magnitude | magnitude.map(lambda value: -value)
    return {name: draw(arrays(np.float32, shape, elements=number)) for name, shape in shapes.items()}


def there_and_back(names: str, model: Model, seed: int = 0, **options: float) -> Model:
    codec = make_codec(names, **options)
    return codec.decode(codec.encode(model, seed=seed), like=model)


def flat(model: Model) -> FloatVector:
    return TensorLayout.of(model).flatten(model)


def channels(tensor: np.ndarray) -> np.ndarray:
    """The tensor as channels x values: shape[0] rows, or one for less than two axes."""
    return tensor.reshape(tensor.shape[0] if tensor.ndim > 1 else 1, -1) if tensor.size else tensor.reshape(0, 1)


# ---- every codec


@pytest.mark.parametrize("names", NAMES)
@few_examples
@given(model=models(), seed=st.integers(0, 2**63 - 1))
def test_what_comes_back_has_the_tensors_that_went_and_is_finite(names: str, model: Model, seed: int) -> None:
    back = there_and_back(names, model, seed)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in back.items()} == {
        name: (tensor.shape, np.float32) for name, tensor in model.items()
    }
    assert all(np.isfinite(tensor).all() for tensor in back.values())


@pytest.mark.parametrize("names", NAMES)
@few_examples
@given(model=models(), seed=st.integers(0, 2**32 - 1))
def test_equal_seeds_make_equal_bytes_and_decoding_into_a_buffer_equal_values(
    names: str, model: Model, seed: int
) -> None:
    layout, codec = TensorLayout.of(model), make_codec(names)
    payload = codec.encode_vector(flat(model), layout, seed=seed)
    assert codec.encode_vector(flat(model), layout, seed=seed) == payload
    out = np.full(layout.size, np.nan, np.float32)
    assert codec.decode_vector(payload, layout, out=out) is out
    assert out.tobytes() == codec.decode_vector(payload, layout).tobytes()


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize(
    "shapes",
    [{}, {"a": ()}, {"a": (0,)}, {"a": (0, 3), "b": (4, 0)}, {"a": (1,), "b": (), "c": (2, 0, 5), "d": (3, 1, 1)}],
    ids=["none", "scalar", "empty", "empties", "mixed"],
)
def test_small_and_empty_tensors_of_zeros_come_back_as_zeros(names: str, shapes: dict[str, tuple[int, ...]]) -> None:
    model = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    back = there_and_back(names, model)
    assert {name: tensor.shape for name, tensor in back.items()} == shapes
    assert all(not tensor.any() for tensor in back.values())


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "at"), [("conv.weight", 0), ("conv.weight", 5), ("scale", 0), ("out.bias", 1)])
def test_nan_and_infinity_are_refused_with_their_tensors_name(names: str, bad: float, name: str, at: int) -> None:
    shapes = {"conv.weight": (2, 3), "none": (0, 2), "scale": (), "out.bias": (2,)}
    model = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    model[name].flat[at] = bad
    with pytest.raises(NumericsError, match=f"tensor {name} holds NaN or infinite values"):
        make_codec(names).encode(model)


@pytest.mark.parametrize("names", NAMES)
@few_examples
@given(model=models(largest=FLOAT32_MAX))
def test_what_is_too_large_is_refused_with_its_tensors_name_and_all_else_comes_back_finite(
    names: str, model: Model
) -> None:
    try:
        back = there_and_back(names, model)
    except NumericsError as error:
        name = str(error).split(" holds ")[0].removeprefix("tensor ")
        assert np.abs(model[name]).max() > 1000
    else:
        assert all(np.isfinite(tensor).all() for tensor in back.values())


@pytest.mark.parametrize("names", NAMES)
def test_a_vector_or_a_buffer_of_another_size_is_our_own_error(names: str) -> None:
    layout, codec = TensorLayout.of({"a": (3,)}), make_codec(names)
    with pytest.raises(ValueError, match="does not hold this layout's 3 values"):
        codec.encode_vector(np.zeros(4, np.float32), layout)
    payload = codec.encode_vector(np.zeros(3, np.float32), layout)
    for out in (np.zeros(4, np.float32), np.zeros(3), np.zeros(6, np.float32)[::2]):
        with pytest.raises(ValueError, match="out must be"):
            codec.decode_vector(payload, layout, out=out)


# ---- floats and integers: an error bound per value


@given(models())
def test_float32_keeps_every_bit(model: Model) -> None:
    assert flat(there_and_back("float32", model)).tobytes() == flat(model).tobytes()


@given(models())
def test_float16_is_within_half_a_unit_in_the_last_place(model: Model) -> None:
    x, y = flat(model).astype(np.float64), flat(there_and_back("float16", model)).astype(np.float64)
    assert (np.abs(x - y) <= np.maximum(np.abs(x) * 2.0**-11, 2.0**-25)).all()


@given(models(largest=float.fromhex("0x1.fep127")))
def test_bfloat16_is_the_nearest_there_is(model: Model) -> None:
    x, y = flat(model), flat(there_and_back("bfloat16", model))
    assert not (y.view(np.uint32) & 0xFFFF).any()
    bits, wide = y.view(np.uint32), x.astype(np.float64)
    off = np.abs(wide - y)
    for step, there in ((1 << 16, bits & 0x7FFFFFFF < 0x7F7F0000), (-(1 << 16), bits & 0x7FFFFFFF > 0)):
        neighbour = (bits[there].astype(np.int64) + step).astype(np.uint32).view(np.float32)
        assert (off[there] <= np.abs(wide[there] - neighbour)).all()


@pytest.mark.parametrize("value", [65504.01, -65505.0, 1e9])
def test_float16_refuses_what_would_be_infinite_and_names_the_tensor(value: float) -> None:
    model = {"small": np.ones(3, np.float32), "large": np.array([1, value], np.float32)}
    for names in ("float16", "topk,float16"):
        with pytest.raises(NumericsError, match=r"tensor large holds .* beyond the 65504"):
            make_codec(names).encode(model)


@pytest.mark.parametrize(("name", "peak"), [("int8", 127), ("int4", 7)])
@given(model=models(largest=FLOAT32_MAX))
def test_integers_are_within_half_a_step_of_their_channels_largest_value(name: str, peak: int, model: Model) -> None:
    back = there_and_back(name, model)
    for key, tensor in model.items():
        x, y = channels(tensor).astype(np.float64), channels(back[key]).astype(np.float64)
        step = np.maximum(np.abs(x).max(axis=1, keepdims=True) / peak * (1 + 2.0**-15), 2.0**-126)
        assert (np.abs(x - y) <= step / 2 * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8", "int4"])
@given(model=models())
def test_what_was_decoded_encodes_to_itself(name: str, model: Model) -> None:
    once = there_and_back(name, model)
    assert flat(there_and_back(name, once)).tobytes() == flat(once).tobytes()


@pytest.mark.parametrize("name", ["int8", "int4", "bfloat16"])
@given(model=models(largest=FLOAT32_MAX))
def test_what_was_decoded_encodes_to_itself_up_to_the_largest_floats(name: str, model: Model) -> None:
    assume(not model or max(np.abs(tensor).max(initial=0) for tensor in model.values()) < float.fromhex("0x1.fep127"))
    once = there_and_back(name, model)
    assert flat(there_and_back(name, once)).tobytes() == flat(once).tobytes()


@given(models(largest=FLOAT32_MAX), st.integers(1, 8), st.integers(0, 2**32))
def test_uniform_gives_one_of_the_two_levels_around_each_value(model: Model, bits: int, seed: int) -> None:
    back = there_and_back("uniform", model, seed, bits=bits)
    for name, tensor in model.items():
        if tensor.size:
            low, high = float(tensor.min()), float(tensor.max())
            step = (high - low) / ((1 << bits) - 1)
            rounding = max(abs(low), abs(high)) * 2.0**-23 + SMALLEST
            off = np.abs(tensor.astype(np.float64) - back[name])
            assert (off <= step + rounding).all()
            assert back[name].min() >= low
            assert back[name].max() <= high


# ---- sparse and ternary


@given(models(), st.floats(0.01, 1))
def test_topk_keeps_the_largest_as_they_are_and_nothing_else(model: Model, fraction: float) -> None:
    x, y = flat(model), flat(there_and_back("topk", model, fraction=fraction))
    kept = y != 0
    assert y[kept].tobytes() == x[kept].tobytes()
    assert kept.sum() == min(max(1, round(fraction * x.size)) if x.size else 0, (x != 0).sum())
    if 0 < kept.sum() < x.size:
        assert np.abs(x[kept]).min() >= np.abs(x[~kept]).max()


@given(models(), st.floats(0.01, 1), st.integers(0, 2**32))
def test_randk_gives_a_value_scaled_up_or_zero(model: Model, fraction: float, seed: int) -> None:
    x, y = flat(model), flat(there_and_back("randk", model, seed, fraction=fraction))
    if x.size:
        count = max(1, round(fraction * x.size))
        scaled = x * np.float32(x.size / count)
        kept = y != 0
        np.testing.assert_array_equal(y[kept], scaled[kept])
        assert kept.sum() <= count


@given(models(least=2.0**-100))
def test_signsgd_gives_signs_times_the_tensors_mean_magnitude(model: Model) -> None:
    for name, tensor in there_and_back("signsgd", model).items():
        mean = np.abs(model[name].astype(np.float64)).mean() if tensor.size else 0
        np.testing.assert_allclose(tensor, np.where(model[name] < 0, -mean, mean), rtol=1e-6)


@given(models(least=2.0**-100), st.floats(0.01, 1))
def test_stc_is_topk_with_one_magnitude(model: Model, fraction: float) -> None:
    y, top = (flat(there_and_back(name, model, fraction=fraction)) for name in ("stc", "topk"))
    kept = top != 0
    assert not y[~kept].any()
    np.testing.assert_array_equal(np.sign(y[kept]), np.sign(top[kept]))
    np.testing.assert_allclose(np.abs(y[kept]), np.abs(top[kept].astype(np.float64)).mean() if kept.any() else 0, 1e-6)


@given(st.data())
def test_positions_come_back_and_their_bytes_are_bounded(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 2**32) | st.integers(1, 300))
    chosen = sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=60)))
    payload = golomb.encode_positions(np.array(chosen, np.uint32), size)
    reader = Reader(payload)
    assert golomb.decode_positions(reader, size).tolist() == chosen
    assert reader.remaining == 0
    if chosen:  # with r = floor(log2(mean gap)), quotients take at most 2^(1 + log2(mean gap) - r) bits each
        assert 8 * len(payload) <= len(chosen) * (math.log2(size / len(chosen)) + 2) + 8 * (5 + 1 + 2)


def test_random_positions_take_a_few_hundredths_of_a_bit_more_than_their_entropy() -> None:
    size, fraction = 1_000_000, 0.01
    chosen = np.flatnonzero(np.random.default_rng(0).random(size) < fraction).astype(np.uint32)
    entropy = -size * (fraction * math.log2(fraction) + (1 - fraction) * math.log2(1 - fraction))
    assert 8 * len(golomb.encode_positions(chosen, size)) / chosen.size == pytest.approx(
        entropy / chosen.size, abs=0.06
    )


# ---- rotated


@given(models(least=2.0**-40), st.integers(1, 4), st.integers(0, 2**32))
def test_biased_rotation_never_adds_to_the_error_of_sending_nothing(model: Model, bits: int, seed: int) -> None:
    x = flat(model).astype(np.float64)
    y = flat(there_and_back("hadamard", model, seed, bits=bits)).astype(np.float64)
    assert ((x - y) ** 2).sum() <= (x**2).sum() * (1 + 1e-4)


@given(st.integers(1, 20_000), st.integers(1, 4), st.integers(0, 2**32))
def test_unbiased_rotation_keeps_the_projection_onto_the_values(size: int, bits: int, seed: int) -> None:
    """EDEN's scale: <decode(x), x> = |x|^2 in every draw."""
    x = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    codec, layout = make_codec("hadamard", bits=bits, unbiased=True), TensorLayout.of({"x": (size,)})
    y = codec.decode_vector(codec.encode_vector(x, layout, seed=seed), layout)
    assert np.dot(x.astype(np.float64), y) == pytest.approx(np.dot(x.astype(np.float64), x), rel=1e-4)


# ---- several threads


@pytest.mark.parametrize("names", ["float32", "float16", "bfloat16", "int8", "int4", "uniform"])
def test_parts_decoded_side_by_side_and_backwards_are_the_same_bits(names: str) -> None:
    """The parts do not overlap, and together they are all: `out` starts as values that no payload holds."""
    codec = make_codec(names)
    shapes = {"wide": (3, CHUNK + 5), "long": (CHUNK // 3, 4), "flat": (2 * CHUNK + 1,), "none": (0, 4), "one": ()}
    layout = TensorLayout.of(shapes)
    x = np.random.default_rng(3).normal(0, 0.01, layout.size).astype(np.float32)
    payload = codec.encode_vector(x, layout, seed=1)

    def backwards(tasks: Iterable[Task]) -> None:
        with ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(task) for task in reversed(list(tasks))]:
                done.result()

    out = np.full(layout.size, np.nan, np.float32)
    codec.decode_vector(payload, layout, out=out, spread=backwards)
    assert out.tobytes() == codec.decode_vector(payload, layout).tobytes()


# ---- refusals


def test_codecs_do_not_read_each_other() -> None:
    layout = TensorLayout.of({"a": (5,)})
    x = np.linspace(-1, 1, 5, dtype=np.float32)
    payloads = {names: make_codec(names).encode_vector(x, layout) for names in NAMES}
    for ours in NAMES:
        for theirs, payload in payloads.items():
            if make_codec(ours).names != make_codec(theirs).names:
                with pytest.raises(PeerError, match="payload is encoded as"):
                    make_codec(ours).decode_vector(payload, layout)


# ---- context: a size that is kept to, an error that is reached


@pytest.mark.parametrize("kind", ["low rank", "noise", "sparse", "steps", "one value"])
@pytest.mark.parametrize("bits", [0.1, 0.5, 2.0])
def test_context_keeps_to_its_bits_and_uses_them(kind: str, bits: float) -> None:
    rng = np.random.default_rng(5)
    x = {
        "low rank": rng.standard_normal((96, 3)) @ rng.standard_normal((3, 160)) + rng.standard_normal((96, 160)) / 9,
        "noise": rng.laplace(size=(96, 160)),
        "sparse": rng.standard_normal((96, 160)) * (rng.random((96, 160)) < 0.1),
        "steps": np.sign(rng.standard_normal((96, 160))),
        "one value": np.pad([[1e20]], ((0, 95), (0, 159))),
    }[kind].astype(np.float32)
    payload = make_codec("context", bits=bits).encode({"w": x})
    y = make_codec("context").decode(payload, {"w": x})["w"]
    spent = 8 * len(payload) / x.size
    nmse = float(np.sum(np.square(x - y, dtype=np.float64)) / np.sum(np.square(x, dtype=np.float64)))
    assert spent <= bits
    # Rate-distortion theory knows nothing worse than Gaussian noise, 2^(-2 bits); signs lose half of that.
    assert nmse < 1.02 * 2**-spent
    assert spent > 0.7 * bits or nmse < 0.1


@pytest.mark.parametrize("nmse", [0.3, 0.03, 0.003])
def test_context_reaches_the_error_that_is_asked_for(nmse: float) -> None:
    rng = np.random.default_rng(6)
    model = {"w": rng.standard_normal((64, 4)) @ rng.standard_normal((4, 90)), "b": rng.standard_normal(64) / 9}
    payload = make_codec("context", nmse=nmse).encode(model)
    back = make_codec("context").decode(payload, model)
    lost = sum(float(np.sum((model[name] - back[name]) ** 2)) for name in model)
    share = lost / sum(float(np.sum(x**2)) for x in model.values())
    assert 0.6 * nmse < share <= nmse
