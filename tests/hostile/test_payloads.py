"""Bytes from a peer.

The invariant: for any bytes at all, `decode_vector` either returns a float32 vector of the layout's size or raises
PeerError with one short printable line. It raises nothing else, no warning either, and its memory and time are bounded
by the layout: nothing is allocated by a length that the bytes name.
"""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.errors import PeerError
from edge_runtime.updates import CODECS, Codec, TensorLayout, golomb, make_codec, wire

LAYOUT = TensorLayout.of({"conv.weight": (2, 1, 2, 2), "conv.bias": (2,), "scale": (), "empty": (0, 3)})
CODEC = make_codec("float32")
VALID = CODEC.encode_vector(np.linspace(-1, 1, LAYOUT.size, dtype=np.float32), LAYOUT, round_number=5)
HEADER_BYTES = len(VALID) - 4 * LAYOUT.size


def refusal(payload: bytes) -> str | None:
    """The PeerError's text, or None for an accepted payload; whatever breaks the invariant fails the test."""
    try:
        vector = CODEC.decode_vector(payload, LAYOUT, round_number=5)
    except PeerError as error:
        return str(error)
    assert vector.shape == (LAYOUT.size,)
    assert vector.dtype == np.float32
    return None


def envelope(names: list[bytes], body: bytes) -> bytes:
    """A payload built from the table in wire.py alone, as a peer might who does not share our checks."""
    listed = b"".join(bytes([len(name)]) + name for name in names)
    header = wire.MAGIC + bytes([len(names)]) + listed + struct.pack("<8sIB", LAYOUT.digest, 5, len(body))
    return header + bytes(-len(header) % 4) + body


codec_names = st.lists(
    st.text(st.characters(codec="ascii"), min_size=1, max_size=32).map(str.encode), min_size=1, max_size=8
)


def test_the_valid_payload_is_accepted() -> None:
    assert refusal(VALID) is None


@given(st.binary(max_size=200))
@example(b"")
def test_any_bytes(payload: bytes) -> None:
    refusal(payload)


@given(st.binary(max_size=200))
@example(b"")
def test_any_bytes_after_the_magic(rest: bytes) -> None:
    refusal(wire.MAGIC + rest)


@given(st.lists(st.binary(min_size=1, max_size=32), min_size=1, max_size=8), st.binary(max_size=120))
def test_any_codec_names(names: list[bytes], rest: bytes) -> None:
    listed = b"".join(bytes([len(name)]) + name for name in names)
    refusal(wire.MAGIC + bytes([len(names)]) + listed + rest)


@given(codec_names)
@example([b"float32"])
def test_well_formed_envelopes_of_any_codec(names: list[bytes]) -> None:
    assert (refusal(envelope(names, VALID[HEADER_BYTES:])) is None) is (names == [b"float32"])


@given(codec_names)
def test_a_refusal_is_one_short_line_that_is_safe_to_log(names: list[bytes]) -> None:
    text = refusal(envelope(names, VALID[HEADER_BYTES:])) or ""
    assert text.isprintable(), "a peer's control characters reach the log"
    assert len(text) < 500


@given(st.binary(max_size=100))
def test_any_body_in_a_right_envelope(body: bytes) -> None:
    assert (refusal(envelope([b"float32"], body)) is None) is (len(body) == 4 * LAYOUT.size)


def test_every_truncation_is_refused() -> None:
    for length in range(len(VALID)):
        assert refusal(VALID[:length]), length


@given(st.binary(min_size=1, max_size=64))
def test_trailing_bytes_are_refused(extra: bytes) -> None:
    assert refusal(VALID + extra)


def test_every_flipped_bit_is_refused_in_the_header_and_taken_for_a_value_in_the_body() -> None:
    for bit in range(8 * len(VALID)):
        flipped = bytearray(VALID)
        flipped[bit // 8] ^= 1 << bit % 8
        assert (refusal(bytes(flipped)) is None) is (bit // 8 >= HEADER_BYTES), bit


@given(st.data())
def test_spliced_payloads(data: st.DataObject) -> None:
    cut, again = data.draw(st.integers(0, len(VALID))), data.draw(st.integers(0, len(VALID)))
    refusal(VALID[:cut] + data.draw(st.binary(max_size=20)) + VALID[again:])


@contextmanager
def peak_below(limit_bytes: int) -> Iterator[None]:
    """Python and NumPy together allocate less than this inside the block, at any time."""
    tracemalloc.start()
    try:
        yield
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < limit_bytes


@pytest.mark.parametrize("length", [2**31, 2**40, 2**63 - 1])
def test_a_huge_length_is_refused_without_allocating_it(length: int) -> None:
    offset = 4 + 1 + 8 + 8 + 4
    payload = VALID[:offset] + wire.pack_varint(length) + VALID[HEADER_BYTES:]
    with peak_below(1 << 20):
        assert refusal(payload)


@pytest.mark.parametrize("varint", ["80", "8000", "b800", "ff" * 9, "ff" * 9 + "01", "80" * 8 + "00"])
def test_a_length_in_another_than_the_shortest_form_is_refused(varint: str) -> None:
    offset = 4 + 1 + 8 + 8 + 4
    header = VALID[:offset] + bytes.fromhex(varint)
    assert refusal(header + bytes(-len(header) % 4) + VALID[HEADER_BYTES:])


# ---- every codec: 10,000 mutated payloads

CHAINS = ["topk,int8", "randk,uniform", "topk,hadamard"]
MUTATIONS = 10_000
SMALL = TensorLayout.of({"conv.weight": (4, 3, 2), "bias": (4,), "scale": (), "empty": (0, 3), "out": (3, 5)})
Mutation = Callable[[random.Random, bytearray, bytes], bytearray]


def truncate(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


def flip_bits(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def splice(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    cut, again = rng.randrange(len(data) + 1), rng.randrange(len(other) + 1)
    return data[:cut] + other[again:]


def overwrite(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice([1, 2, 4, 8, len(data)]))
    fill = rng.choice([b"\x00", b"\xff", b"\x80", b"\x7f"]) * (stop - start)
    data[start:stop] = fill if rng.random() < 0.5 else rng.randbytes(stop - start)
    return data


def edit_varint(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    at, old = rng.randrange(len(data) + 1), rng.randint(0, 3)
    number = rng.choice([0, 1, SMALL.size, SMALL.size + 1, rng.getrandbits(7), rng.getrandbits(rng.randint(8, 63))])
    data[at : at + old] = wire.pack_varint(number)
    return data


def extend(rng: random.Random, data: bytearray, other: bytes) -> bytearray:
    return data + rng.randbytes(rng.randint(1, 300))


MUTATE: list[Mutation] = [truncate, flip_bits, splice, overwrite, edit_varint, extend]


def mutated(codec: Codec, rng: random.Random) -> Iterator[bytes]:
    """Damaged payloads: half of them in a right envelope, so that the codec's own reader sees what is wrong."""
    scales = (1e-40, 1e-3, 1.0, 1e4)
    values = np.random.default_rng(1).standard_normal((len(scales), SMALL.size)) * np.array(scales)[:, None]
    valid = [codec.encode_vector(row, SMALL, round_number=5, seed=3) for row in values.astype(np.float32)]
    valid.append(codec.encode_vector(np.zeros(SMALL.size, np.float32), SMALL, round_number=5))
    bodies = [bytes(wire.unpack(payload).body) for payload in valid]
    for _ in range(MUTATIONS):
        repack = rng.random() < 0.5
        sources = bodies if repack else valid
        data, other = bytearray(rng.choice(sources)), rng.choice(sources)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            data = rng.choice(MUTATE)(rng, data, other) if data else bytearray(other)
        yield wire.pack(codec.names, SMALL.digest, 5, bytes(data)) if repack else bytes(data)


@pytest.mark.parametrize("names", [*CODECS, *CHAINS])
def test_mutated_payloads(names: str) -> None:
    codec = make_codec(names)
    payloads = list(mutated(codec, random.Random(names)))
    accepted = 0
    with peak_below(1 << 18):
        for payload in payloads:
            try:
                vector = codec.decode_vector(payload, SMALL, round_number=5)
            except PeerError as error:
                text = str(error)
                assert text.isprintable()
                assert len(text) < 500
            else:
                assert vector.shape == (SMALL.size,)
                assert vector.dtype == np.float32
                accepted += 1
    assert 0 < accepted < MUTATIONS / 2, "the mutations are too strong, or the checks too weak, to show anything"


# ---- claims that would cost memory or time

LARGE = TensorLayout.of({"w": (1 << 18,)})


@pytest.mark.parametrize("names", [*CODECS, *CHAINS])
@pytest.mark.parametrize("fill", [b"\x00", b"\x01", b"\x7f", b"\xff"])
def test_a_body_far_longer_than_any_update_costs_no_more_than_the_layout_allows(names: str, fill: bytes) -> None:
    codec = make_codec(names)
    payload = wire.pack(codec.names, LARGE.digest, 0, fill * 50_000_000)
    with peak_below(100 * LARGE.size), suppress(PeerError):
        codec.decode_vector(payload, LARGE)


@pytest.mark.parametrize("names", ["topk", "stc", "randk"])
@pytest.mark.parametrize("count", [LARGE.size, LARGE.size + 1, 2**40, 2**63 - 1])
def test_a_count_of_values_that_are_not_there_is_refused(names: str, count: int) -> None:
    codec = make_codec(names)
    seed = bytes(4) if names == "randk" else b""
    with peak_below(100 * LARGE.size), pytest.raises(PeerError):
        codec.decode_vector(wire.pack(codec.names, LARGE.digest, 0, seed + wire.pack_varint(count) + b"\x00"), LARGE)


def one_position(rice: int, remainder: bytes, quotient: bytes, size: int = 100) -> bytes:
    """An stc payload of one position, written by hand from the table in golomb.py."""
    body = bytes([1, rice]) + remainder + quotient + struct.pack("<f", 2.0) + b"\x01"
    return wire.pack(("stc",), TensorLayout.of({"w": (size,)}).digest, 0, body)


def test_a_position_written_by_hand_is_read() -> None:
    vector = make_codec("stc").decode_vector(one_position(4, b"\x03", b"\x04"), TensorLayout.of({"w": (100,)}))
    assert np.flatnonzero(vector).tolist() == [2 * 16 + 3]
    assert vector[35] == -2


@pytest.mark.parametrize(
    ("rice", "remainder", "quotient", "why"),
    [
        (8, b"\x03", b"\x01", "Rice parameter"),
        (4, b"\x13", b"\x04", "bits are set after the last"),
        (4, b"\x03", b"\x0c", "bits are set after the last quotient"),
        (4, b"\x04", b"\x40", "position 100 is past the last of 100 values"),
        (4, b"\x03", b"\x80", "quotients"),
    ],
    ids=["rice", "remainder padding", "quotient padding", "past the end", "far past the end"],
)
def test_positions_that_are_not_what_we_would_write_are_refused(
    rice: int, remainder: bytes, quotient: bytes, why: str
) -> None:
    with pytest.raises(PeerError, match=why):
        make_codec("stc").decode_vector(one_position(rice, remainder, quotient), TensorLayout.of({"w": (100,)}))


def body_of(names: str, values: list[float], **options: float) -> tuple[Codec, TensorLayout, bytearray]:
    codec, layout = make_codec(names, **options), TensorLayout.of({"w": (len(values),)})
    payload = codec.encode_vector(np.array(values, np.float32), layout)
    return codec, layout, bytearray(wire.unpack(payload).body)


@pytest.mark.parametrize(
    ("names", "at", "field", "why"),
    [
        ("int8", 0, b"\xff\x7f\x00", "int8 scales"),  # a denormal
        ("int8", 0, b"\x00\x80\x7f", "int8 scales"),  # infinity
        ("int8", 0, b"\x00\x80\xbf", "int8 scales"),  # -1
        ("int8", 3, b"\x80", "int8 values must be -127 to 127"),
        ("int4", 3, b"\x08", "int4 values must be -7 to 7"),
        ("uniform", 0, b"\x00", "bits of uniform is 0"),
        ("uniform", 0, b"\x09", "bits of uniform is 9"),
        ("uniform", 1, struct.pack("<2f", 1, 0.5), "from low to high"),
        ("uniform", 1, struct.pack("<2f", float("nan"), 0.5), "finite"),
        ("uniform", 1, struct.pack("<2f", 0, float("inf")), "finite"),
        ("signsgd", 0, struct.pack("<f", -1), "magnitudes of signsgd"),
        ("signsgd", 0, struct.pack("<f", float("nan")), "magnitudes of signsgd"),
        ("signsgd", 4, b"\xff", "bits are set after the last"),
        ("hadamard", 4, b"\x05", "bits of hadamard is 5"),
        ("hadamard", 5, b"\x03", "rotations of hadamard is 3"),
        ("hadamard", 6, struct.pack("<f", float("inf")), "scales of hadamard"),
        ("hadamard", 6, struct.pack("<f", 3e38), "scales of hadamard"),
        ("randk", 4, b"\x05", "number of values is 5"),
    ],
)
def test_fields_out_of_their_range_are_refused_by_name(names: str, at: int, field: bytes, why: str) -> None:
    codec, layout, body = body_of(names, [0.5, -1.0, 0.25])
    body[at : at + len(field)] = field
    with pytest.raises(PeerError, match=why):
        codec.decode_vector(wire.pack(codec.names, layout.digest, 0, bytes(body)), layout)


@pytest.mark.parametrize("names", [*CODECS, *CHAINS])
def test_one_byte_more_or_less_is_refused(names: str) -> None:
    codec, layout, body = body_of(names, [0.5, -1.0, 0.25, 0.125, 3.0])
    for wrong in (body[:-1], body + b"\x00"):
        with pytest.raises(PeerError):
            codec.decode_vector(wire.pack(codec.names, layout.digest, 0, bytes(wrong)), layout)


def test_positions_that_fill_a_layout_cost_a_bounded_multiple_of_it() -> None:
    every = golomb.encode_positions(np.arange(LARGE.size, dtype=np.uint32), LARGE.size)
    codec = make_codec("stc")
    payload = wire.pack(codec.names, LARGE.digest, 0, every + struct.pack("<f", 1.0) + bytes(LARGE.size // 8))
    with peak_below(100 * LARGE.size):
        assert (codec.decode_vector(payload, LARGE) == 1).all()
