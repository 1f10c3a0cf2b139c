"""Bytes from a peer.

The invariant: for any bytes at all, `decode_vector` either returns a float32 vector of the layout's size or raises
PeerError with one short printable line. It raises nothing else, and allocates nothing by a length that the bytes name.
"""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.errors import PeerError
from edge_runtime.updates import TensorLayout, make_codec, wire

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


@pytest.mark.parametrize("length", [2**31, 2**40, 2**63 - 1])
def test_a_huge_length_is_refused_without_allocating_it(length: int) -> None:
    offset = 4 + 1 + 8 + 8 + 4
    payload = VALID[:offset] + wire.pack_varint(length) + VALID[HEADER_BYTES:]
    tracemalloc.start()
    try:
        assert refusal(payload)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20
