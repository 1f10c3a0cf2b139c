"""Layouts, the envelope and how stages make a codec: the very same tensors, round and codec, or PeerError."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edge_runtime.errors import ConfigError, NumericsError, PeerError
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


def test_float64_weights_beyond_float32_are_refused_by_name() -> None:
    with pytest.raises(NumericsError, match="tensor w holds NaN or infinite"):
        CODEC.encode({"v": np.ones(2), "w": np.array([1e300])})


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


@given(shapes, st.data())
def test_a_subset_keeps_shapes_and_order(tensors: dict[str, tuple[int, ...]], data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(sorted(tensors)))) if tensors else set()
    layout = TensorLayout.of(tensors)
    assert layout.subset(chosen) == TensorLayout.of({name: tensors[name] for name in tensors if name in chosen})
    with pytest.raises(ValueError, match="not in the layout"):
        layout.subset({*chosen, "a name that is too long to be drawn"})


@given(shapes)
def test_every_value_is_in_the_tensor_that_name_at_gives(tensors: dict[str, tuple[int, ...]]) -> None:
    layout = TensorLayout.of(tensors)
    flat = np.arange(layout.size, dtype=np.float32)
    views = layout.views(flat)
    for index in range(layout.size):
        assert index in views[layout.name_at(index)]
    spans = [(int(view.flat[0]), int(view.flat[-1]) + 1) for view in views.values() if view.size]
    assert list(layout.spans()) == spans
    for outside in (-1, layout.size):
        with pytest.raises(IndexError):
            layout.name_at(outside)


def test_views_refuse_a_vector_of_another_size() -> None:
    with pytest.raises(ValueError, match="11 values does not hold this layout's 12"):
        TensorLayout.of(BASE).views(np.zeros(11, np.float32))


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_is_made_under_its_own_name_and_ends_with_a_coder(name: str) -> None:
    assert make_codec(name).names in {(name,), (name, "float32")}


@pytest.mark.parametrize(
    ("given_names", "names"),
    [
        ("topk", ("topk", "float32")),
        ("topk,int8", ("topk", "int8")),
        (" randk , uniform ", ("randk", "uniform")),
        (["randk", "topk", "stc"], ("randk", "topk", "stc")),
        (("float16",), ("float16",)),
    ],
)
def test_codecs_are_named_by_text_or_by_list(given_names: str | list[str], names: tuple[str, ...]) -> None:
    assert make_codec(given_names).names == names


@pytest.mark.parametrize(
    ("names", "options", "why"),
    [
        ("flaot32", {}, r"'flaot32': must be one of float32, float16, .*hadamard"),
        ("", {}, r"'': must be one of"),
        ("topk,,int8", {}, r"'': must be one of"),
        ("int8,topk", {}, r"'int8,topk': must be transforms"),
        ("float16,int8", {}, r"'float16,int8': must be transforms"),
        ("float32", {"bits": 4}, "codec float32 has no option bits; it has none"),
        ("topk,uniform", {"bit": 4}, "codec topk,uniform has no option bit; its options are bits, fraction"),
        ("uniform", {"bits": 9}, "bits = 9: must be a whole number >= 1 and <= 8"),
        ("uniform", {"bits": 2.0}, r"bits = 2\.0: must be a whole number"),
        ("uniform", {"bits": True}, "bits = True: must be a whole number"),
        ("hadamard", {"bits": 5}, "bits = 5: must be a whole number >= 1 and <= 4"),
        ("hadamard", {"unbiased": 1}, "unbiased = 1: must be true or false"),
        ("topk", {"fraction": 0.0}, r"fraction = 0\.0: must be a finite number > 0 and <= 1"),
        ("randk", {"fraction": 1.01}, r"fraction = 1\.01: must be"),
        ("stc", {"fraction": float("nan")}, "fraction = nan: must be"),
    ],
)
def test_a_codec_that_cannot_be_made_is_refused_by_name_and_range(
    names: str, options: dict[str, float], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        make_codec(names, **options)


def test_an_empty_list_of_codecs_sends_float32() -> None:
    assert make_codec([]).names == ("float32",)


def test_an_option_reaches_every_stage_that_has_it() -> None:
    layout = TensorLayout.of({"w": (100,)})
    payload = make_codec("topk,stc", fraction=0.5).encode_vector(np.arange(1, 101, dtype=np.float32), layout)
    decoded = make_codec("topk,stc").decode_vector(payload, layout)
    assert np.count_nonzero(decoded) == 25


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


@given(st.integers(0, 2**63 - 1), st.binary(max_size=3))
def test_varints_are_read_as_packed_in_the_fewest_bytes(number: int, after: bytes) -> None:
    packed = wire.pack_varint(number)
    assert wire.unpack_varint(memoryview(b"." + packed + after), 1) == (number, 1 + len(packed))
    assert len(packed) == max(1, -(-number.bit_length() // 7))


@pytest.mark.parametrize("number", [-1, 2**63])
def test_numbers_that_no_varint_holds_are_our_own_error(number: int) -> None:
    with pytest.raises(ValueError, match="varint"):
        wire.pack_varint(number)


def test_a_codec_of_one_short_name_costs_at_most_32_bytes() -> None:
    body = bytes(2 * 10**8)
    assert len(wire.pack(("context",), bytes(8), 2**32 - 1, body)) <= len(body) + 32


@pytest.mark.parametrize("codecs", [(), ("",), ("x" * 33,), ("x",) * 9, ("café",)])
def test_codec_names_that_do_not_fit_the_envelope_are_our_own_error(codecs: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"codec|ascii"):
        wire.pack(codecs, bytes(8), 0, b"")


def test_a_decoded_update_is_a_view_of_the_payload() -> None:
    layout = TensorLayout.of({"w": (1000,)})
    payload = CODEC.encode_vector(np.ones(1000, np.float32), layout)
    vector = CODEC.decode_vector(payload, layout)
    assert np.shares_memory(vector, np.frombuffer(payload, np.uint8))


def test_a_decoded_update_is_written_into_a_buffer_where_there_is_one() -> None:
    layout, buffer = TensorLayout.of({"w": (3,)}), np.full(3, np.nan, np.float32)
    payload = CODEC.encode_vector(np.arange(3, dtype=np.float32), layout)
    assert CODEC.decode_vector(payload, layout, out=buffer) is buffer
    assert buffer.tolist() == [0, 1, 2]


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
