"""The small signature check says what the library says: of right signatures, wrong ones, and odd ones."""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_runtime.deploy.trust.ed25519 import L, P, verify

SIZE = 32


def by_the_library(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def test_the_first_vectors_of_rfc_8032() -> None:
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    signature = bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )
    assert verify(public, signature, b"")
    assert not verify(public, signature, b"\0")


@settings(deadline=None, max_examples=60)
@given(secret=st.binary(min_size=SIZE, max_size=SIZE), message=st.binary(max_size=300))
def test_what_the_library_signs_is_taken(secret: bytes, message: bytes) -> None:
    private = Ed25519PrivateKey.from_private_bytes(secret)
    assert verify(private.public_key().public_bytes_raw(), private.sign(message), message)


@settings(deadline=None, max_examples=300)
@given(data=st.data(), secret=st.binary(min_size=SIZE, max_size=SIZE))
def test_one_changed_bit_is_refused(data: st.DataObject, secret: bytes) -> None:
    private = Ed25519PrivateKey.from_private_bytes(secret)
    message = b"version 7"
    parts = [bytearray(one) for one in (private.public_key().public_bytes_raw(), private.sign(message), message)]
    part = data.draw(st.sampled_from(parts))
    part[data.draw(st.integers(0, len(part) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert not verify(*map(bytes, parts))


EDGES = [0, 1, 2, P - 1, P, P + 1, L - 1, L, 2**255 - 1, 2**255, 2**255 + 1, 2**256 - 1]


@settings(deadline=None, max_examples=200)
@given(
    public=st.sampled_from(EDGES) | st.integers(0, 2**256 - 1),
    r=st.sampled_from(EDGES) | st.integers(0, 2**256 - 1),
    s=st.sampled_from(EDGES) | st.integers(0, 2**256 - 1),
)
@example(public=1, r=1, s=0)
@example(public=1, r=1, s=L)
def test_odd_keys_and_signatures_are_no_more_welcome_than_at_the_library(public: int, r: int, s: int) -> None:
    """Where the two differ, ours is the stricter: it takes no key that is written in a second way (5.1.3)."""
    key = public.to_bytes(SIZE, "little")
    signature = r.to_bytes(SIZE, "little") + s.to_bytes(SIZE, "little")
    ours, theirs = verify(key, signature, b"m"), by_the_library(key, signature, b"m")
    assert ours == theirs or (not ours and public % 2**255 >= P) or (not ours and public == 2**255 + 1)


def test_a_signature_cannot_be_made_into_another_one() -> None:
    private = Ed25519PrivateKey.from_private_bytes(b"7" * SIZE)
    public, signature = private.public_key().public_bytes_raw(), private.sign(b"m")
    other = int.from_bytes(signature[SIZE:], "little") + L
    assert not verify(public, signature[:SIZE] + other.to_bytes(SIZE, "little"), b"m")


@pytest.mark.parametrize("cut", [0, 1, 31, 32, 63, 65])
def test_signatures_and_keys_of_another_length(cut: int) -> None:
    private = Ed25519PrivateKey.from_private_bytes(b"7" * SIZE)
    public, signature = private.public_key().public_bytes_raw(), private.sign(b"m")
    assert not verify(public, (signature + b"\0")[:cut], b"m")
    assert not verify((public + b"\0")[: cut if cut != SIZE else 33], signature, b"m")
