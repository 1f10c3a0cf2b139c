"""Layouts and codecs: what is decoded is what was encoded, for the very same tensors, round and codec, or PeerError."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.updates import CODECS, TensorLayout, make_codec, wire

CODEC = make_codec("float32")

shapes = st.dictionaries(st.text(max_size=8), array_shapes(min_dims=0, min_side=0, max_side=4), max_size=5)


@st.composite
def models(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """`{name: float32 array}` of any finite values, denormals and both zeros among them."""
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    return {name: draw(arrays(np.float32, shape, elements=finite)) for name, shape in draw(shapes).items()}


def assert_same_bits(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].shape == theirs[name].shape
        assert ours[name].tobytes() == theirs[name].tobytes()


@given(models())
def test_decode_gives_back_what_encode_was_given(model: dict[str, np.ndarray]) -> None:
    assert_same_bits(CODEC.decode(CODEC.encode(model), like=model), model)


@given(models())
def test_shapes_alone_are_enough_to_decode(model: dict[str, np.ndarray]) -> None:
    payload = CODEC.encode(model)
    assert_same_bits(CODEC.decode(payload, like={name: tensor.shape for name, tensor in model.items()}), model)


@given(models(), st.integers(0, 2**32 - 1))
def test_vectors_round_trip_within_their_round(model: dict[str, np.ndarray], number: int) -> None:
    layout = TensorLayout.of(model)
    flat = layout.flatten(model)
    payload = CODEC.encode_vector(flat, layout, round_number=number)
    assert CODEC.decode_vector(payload, layout, round_number=number).tobytes() == flat.tobytes()
    assert CODEC.decode_vector(payload, layout).tobytes() == flat.tobytes()


@given(models())
def test_flatten_and_views_are_inverse(model: dict[str, np.ndarray]) -> None:
    layout = TensorLayout.of(model)
    flat = layout.flatten(model)
    assert flat.shape == (layout.size,) == (sum(tensor.size for tensor in model.values()),)
    assert_same_bits(layout.views(flat), model)


def test_flatten_copies_and_views_do_not() -> None:
    model = {"w": np.zeros(2, np.float32), "b": np.float32(0).reshape(())}
    layout = TensorLayout.of(model)
    flat = layout.flatten(model)
    model["w"][0] = 5
    assert not flat.any()
    layout.views(flat)["b"][...] = 7
    assert flat.tolist() == [0, 0, 7]


def test_float64_weights_are_sent_as_float32() -> None:
    decoded = CODEC.decode(CODEC.encode({"w": np.array([1 / 3])}), like={"w": (1,)})
    assert decoded["w"].dtype == np.float32
    assert decoded["w"][0] == np.float32(1 / 3)


def test_integer_arrays_are_left_out() -> None:
    state = {"w": np.ones(2, np.float32), "steps": np.int64(3).reshape(()), "on": np.ones(1, bool)}
    assert TensorLayout.of(state) == TensorLayout.of({"w": (2,)})
    assert list(CODEC.decode(CODEC.encode(state), like=state)) == ["w"]


BASE = {"a": (2, 3), "b": (6,)}


@pytest.mark.parametrize(
    "other",
    [
        {"a": (2, 3), "c": (6,)},
        {"a": (3, 2), "b": (6,)},
        {"a": (6,), "b": (6,)},
        {"a": (2, 3), "b": (6, 1)},
        {"b": (6,), "a": (2, 3)},
        {"a": (2, 3)},
        {"a": (2, 3), "b": (6,), "c": (0,)},
        {"a": (2, 3), "b": ()},
        {},
    ],
    ids=["renamed", "transposed", "flattened", "unsqueezed", "reordered", "missing", "extra", "scalar", "none"],
)
def test_the_digest_tells_layouts_apart(other: dict[str, tuple[int, ...]]) -> None:
    ours, theirs = TensorLayout.of(BASE), TensorLayout.of(other)
    assert ours.digest != theirs.digest
    payload = CODEC.encode_vector(np.zeros(theirs.size, np.float32), theirs)
    with pytest.raises(PeerError, match="tensors"):
        CODEC.decode_vector(payload, ours)


@given(shapes, shapes)
def test_digests_agree_exactly_when_layouts_do(
    one: dict[str, tuple[int, ...]], two: dict[str, tuple[int, ...]]
) -> None:
    same = list(one.items()) == list(two.items())
    assert (TensorLayout.of(one).digest == TensorLayout.of(two).digest) is same


def test_flatten_names_the_tensor_that_is_missing_or_misshaped() -> None:
    layout = TensorLayout.of(BASE)
    with pytest.raises(ValueError, match="tensor b is missing"):
        layout.flatten({"a": np.zeros((2, 3))})
    with pytest.raises(ValueError, match=r"tensor a has shape \(3, 2\), the layout says \(2, 3\)"):
        layout.flatten({"a": np.zeros((3, 2)), "b": np.zeros(6)})


def test_views_refuse_a_vector_of_another_size() -> None:
    with pytest.raises(ValueError, match="11 values does not hold this layout's 12"):
        TensorLayout.of(BASE).views(np.zeros(11, np.float32))


def test_an_unknown_codec_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'flaot32': must be one of .*float32"):
        make_codec("flaot32")


def test_an_unknown_codec_option_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="float32 has no option bits; it has none"):
        make_codec("float32", bits=4)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_every_codec_is_made_under_its_own_name(name: str) -> None:
    assert make_codec(name).names[0] == name


def test_a_payload_of_another_round_is_refused() -> None:
    layout = TensorLayout.of({"w": (1,)})
    payload = CODEC.encode_vector(np.ones(1, np.float32), layout, round_number=3)
    with pytest.raises(PeerError, match="round 3, this is round 4"):
        CODEC.decode_vector(payload, layout, round_number=4)


def test_a_payload_of_another_codec_is_refused() -> None:
    layout = TensorLayout.of({"w": (1,)})
    payload = wire.pack(("float32", "zip"), layout.digest, 0, bytes(4))
    with pytest.raises(PeerError, match=r"float32\+zip, this round uses float32"):
        CODEC.decode_vector(payload, layout)


@pytest.mark.parametrize("nbytes", [0, 3, 5, 8])
def test_a_body_of_another_length_is_refused(nbytes: int) -> None:
    layout = TensorLayout.of({"w": (1,)})
    with pytest.raises(PeerError, match=f"{nbytes} bytes"):
        CODEC.decode_vector(wire.pack(("float32",), layout.digest, 0, bytes(nbytes)), layout)


# Written by hand from the table at the top of wire.py; the digest is `sha256sum` of the layout's JSON, cut to 8 bytes.
GOLDEN = bytes.fromhex(
    "48475202"  # magic, version 2
    "01"  # one codec
    "07666c6f61743332"  # its name: 7 bytes, float32
    "78d25b676d9a1950"  # of [["w",[2],"float32"],["b",[],"float32"]]
    "03000000"  # round 3
    "0c"  # body of 12 bytes
    "0000"  # up to byte 28
    "0000803f000000c0000000bf"  # 1.0, -2.0, -0.5
)
GOLDEN_MODEL = {"w": np.array([1.0, -2.0], np.float32), "b": np.float32(-0.5).reshape(())}


def test_the_wire_format_is_the_golden_one() -> None:
    layout = TensorLayout.of(GOLDEN_MODEL)
    assert CODEC.encode_vector(layout.flatten(GOLDEN_MODEL), layout, round_number=3) == GOLDEN


def test_the_golden_payload_is_read() -> None:
    layout = TensorLayout.of(GOLDEN_MODEL)
    assert CODEC.decode_vector(GOLDEN, layout, round_number=3).tolist() == [1.0, -2.0, -0.5]


visible_ascii = st.characters(min_codepoint=33, max_codepoint=126)
names = st.lists(st.text(visible_ascii, min_size=1, max_size=32), min_size=1, max_size=8).map(tuple)


@given(codecs=names, digest=st.binary(min_size=8, max_size=8), number=st.integers(0, 2**32 - 1), body=st.binary())
def test_every_envelope_is_read_as_packed_with_its_body_aligned(
    codecs: tuple[str, ...], digest: bytes, number: int, body: bytes
) -> None:
    payload = wire.pack(codecs, digest, number, body)
    read = wire.unpack(payload)
    assert (read.codecs, read.layout, read.round, bytes(read.body)) == (codecs, digest, number, body)
    assert (len(payload) - len(body)) % 4 == 0


@pytest.mark.parametrize("codecs", [(), ("",), ("x" * 33,), ("x",) * 9, ("café",)])
def test_codec_names_that_do_not_fit_the_envelope_are_our_own_error(codecs: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"codec|ascii"):
        wire.pack(codecs, bytes(8), 0, b"")


def test_a_decoded_update_is_a_view_of_the_payload() -> None:
    layout = TensorLayout.of({"w": (1000,)})
    payload = CODEC.encode_vector(np.ones(1000, np.float32), layout)
    vector = CODEC.decode_vector(payload, layout)
    assert np.shares_memory(vector, np.frombuffer(payload, np.uint8))


def test_a_payload_at_an_odd_address_is_decoded_to_an_aligned_vector() -> None:
    layout = TensorLayout.of({"w": (3,)})
    payload = memoryview(b"." + CODEC.encode_vector(np.arange(3, dtype=np.float32), layout))[1:]
    vector = CODEC.decode_vector(payload, layout)
    assert vector.flags.aligned
    assert vector.tolist() == [0, 1, 2]


def test_values_are_little_endian_floats_of_four_bytes() -> None:
    layout = TensorLayout.of({"w": (3,)})
    values = [1e-45, -3.5e38 / 2, 0.1]
    payload = CODEC.encode_vector(np.array(values, np.float32), layout)
    assert payload.endswith(struct.pack("<3f", *values))
