"""Keys: published answers, both ends agree, a changed bit is refused, and nothing secret is ever shown."""

from __future__ import annotations

import base64
import copy
import hashlib
import hmac
import io
import logging
import pickle
import pprint
import traceback
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import PeerError
from edge_runtime.secagg.keys import (
    CHANNEL,
    MASK,
    TAG_BYTES,
    Channel,
    Context,
    DeviceKey,
    KeyPair,
    Secret,
    check_public,
    commitment,
    statement,
    verify,
)

# RFC 7748 section 6.1
ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
ALICE_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
AGREED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
# RFC 8032 section 7.1, test 1
DEVICE = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
DEVICE_PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")

# Points of order 1, 2, 4 and 8 of Curve25519 and its twist (RFC 7748 section 6.1 and its security considerations).
LOW_ORDER = (
    bytes(32),
    b"\1" + bytes(31),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
)
CONTEXT = Context(run=7, round=3, transcript=bytes(range(32)))
KEY = bytes(range(100, 132))


def hkdf(agreed: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, no salt, one block."""
    extracted = hmac.digest(bytes(32), agreed, "sha256")
    return hmac.digest(extracted, info + b"\1", "sha256")


def ends(context: Context = CONTEXT, key: bytes = KEY) -> tuple[Channel, Channel]:
    return Channel(Secret(key), context, 1, 2), Channel(Secret(key), context, 2, 1)


def test_rfc_7748_and_rfc_5869() -> None:
    alice, bob = KeyPair(Secret(ALICE)), KeyPair(Secret(BOB))
    assert (alice.public, bob.public) == (ALICE_PUBLIC, BOB_PUBLIC)
    assert X25519PrivateKey.from_private_bytes(ALICE).exchange(X25519PublicKey.from_public_bytes(BOB_PUBLIC)) == AGREED
    for label in (MASK, CHANNEL):
        expected = hkdf(AGREED, label + min(ALICE_PUBLIC, BOB_PUBLIC) + max(ALICE_PUBLIC, BOB_PUBLIC))
        assert alice.derive(BOB_PUBLIC, label).reveal() == bob.derive(ALICE_PUBLIC, label).reveal() == expected
    assert alice.derive(BOB_PUBLIC, MASK) != alice.derive(BOB_PUBLIC, CHANNEL)


def test_rfc_8032() -> None:
    key = DeviceKey(Secret(DEVICE))
    assert key.public == DEVICE_PUBLIC
    assert key.secret().reveal() == DEVICE


@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_point_of_low_order_is_the_peers_error(point: bytes) -> None:
    with pytest.raises(PeerError, match="low order"):
        KeyPair.generate().derive(point, MASK)


@pytest.mark.parametrize("point", [*LOW_ORDER, (2**255 - 18).to_bytes(32, "little")])
@pytest.mark.parametrize("top_bit", [0, 128])
def test_weak_keys_are_known_without_a_secret(point: bytes, top_bit: int) -> None:
    weak = point[:31] + bytes([point[31] | top_bit])
    for refuse in (check_public, lambda public: KeyPair.generate().derive(public, MASK)):
        with pytest.raises(PeerError, match="low order"):
            refuse(weak)


near_the_ends = st.builds(
    lambda start, step: (start + step).to_bytes(32, "little"),
    st.sampled_from([0, 2**255 - 20, 2**255]),
    st.integers(0, 19),
)


@given(st.binary(min_size=32, max_size=32) | near_the_ends)
def test_a_key_passes_the_check_just_when_it_can_be_used(key: bytes) -> None:
    def refused(check: Callable[[bytes], object]) -> bool:
        try:
            check(key)
        except PeerError:
            return True
        return False

    pair = KeyPair.generate()
    assert refused(check_public) == refused(lambda public: pair.derive(public, MASK))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_public_key_of_another_length_is_the_peers_error(length: int) -> None:
    with pytest.raises(PeerError, match="32 bytes"):
        KeyPair.generate().derive(bytes(length), MASK)


def test_a_rebuilt_key_must_be_the_advertised_one() -> None:
    pair = KeyPair.generate()
    secret = pair.secret().reveal()
    assert KeyPair.restore(secret, pair.public).derive(BOB_PUBLIC, MASK) == pair.derive(BOB_PUBLIC, MASK)
    for wrong in (secret[:-1], b"", bytes(b ^ 0x55 for b in secret)):
        with pytest.raises(PeerError, match="share was wrong"):
            KeyPair.restore(wrong, pair.public)


@given(st.binary(max_size=200))
def test_a_channel_carries_a_message_each_way(message: bytes) -> None:
    one, two = ends()
    there, back = one.seal(message), two.seal(message)
    assert (two.open(there), one.open(back)) == (message, message)
    assert len(there) == len(message) + TAG_BYTES
    assert there != back


def test_the_nonce_of_a_channel_is_its_sender() -> None:
    ids = (1).to_bytes(8, "little") + (2).to_bytes(8, "little")
    fields = (7).to_bytes(8, "little") + (3).to_bytes(8, "little") + ids, CONTEXT.transcript
    bound = statement(b"hedgerow secagg 1 sealed", *fields)
    assert ends()[0].seal(b"share") == ChaCha20Poly1305(KEY).encrypt(bytes(4) + ids[:8], b"share", bound)


def test_case_33_a_key_and_nonce_are_used_once() -> None:
    one, _ = ends()
    one.seal(b"share")
    with pytest.raises(ValueError, match="already sealed"):
        one.seal(b"another")


def test_case_33_two_rounds_with_the_same_message_share_nothing() -> None:
    sealed, keys = set(), set()
    for _ in range(50):
        one, two = KeyPair.generate(), KeyPair.generate()
        for label in (MASK, CHANNEL):
            keys.add(one.derive(two.public, label).reveal())
        keys |= {one.public, two.public, Secret.draw().reveal()}
        sealed.add(Channel(one.derive(two.public, CHANNEL), CONTEXT, 1, 2).seal(bytes(64)))
    assert len(keys) == 250
    assert len(sealed) == 50


@given(st.integers(0, 8 * (5 + TAG_BYTES) - 1))
def test_a_changed_bit_is_the_peers_error(bit: int) -> None:
    one, two = ends()
    changed = bytearray(one.seal(b"share"))
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PeerError, match="client 1"):
        two.open(bytes(changed))


@given(st.integers(0, 5 + TAG_BYTES - 1))
def test_a_shortened_message_is_the_peers_error(length: int) -> None:
    one, two = ends()
    with pytest.raises(PeerError, match="client 1"):
        two.open(one.seal(b"share")[:length])


@pytest.mark.parametrize(
    "receiver",
    [
        Channel(Secret(KEY), Context(8, 3, CONTEXT.transcript), 2, 1),
        Channel(Secret(KEY), Context(7, 4, CONTEXT.transcript), 2, 1),
        Channel(Secret(KEY), Context(7, 3, bytes(32)), 2, 1),
        Channel(Secret(KEY), CONTEXT, 3, 1),
        Channel(Secret(KEY), CONTEXT, 2, 3),
        Channel(Secret(KEY), CONTEXT, 1, 2),
        Channel(Secret(bytes(32)), CONTEXT, 2, 1),
    ],
    ids=["run", "round", "transcript", "destination", "source", "its own way back", "key"],
)
def test_a_message_is_bound_to_its_run_round_transcript_and_ends(receiver: Channel) -> None:
    with pytest.raises(PeerError):
        receiver.open(ends()[0].seal(b"share"))


@pytest.mark.parametrize(("own", "peer"), [(1, 1), (-1, 2), (1, 2**64)])
def test_channels_between_impossible_ends_are_ours(own: int, peer: int) -> None:
    with pytest.raises(ValueError, match="ids"):
        Channel(Secret(KEY), CONTEXT, own, peer)


@pytest.mark.parametrize("context", [(-1, 0, bytes(32)), (0, 2**64, bytes(32)), (0, 0, bytes(31))])
def test_impossible_contexts_are_ours(context: tuple[int, int, bytes]) -> None:
    with pytest.raises(ValueError, match="transcript"):
        Context(*context)


def test_a_signature_holds_for_its_device_label_and_fields_alone() -> None:
    key, other = DeviceKey.generate(), DeviceKey.generate()
    signature = key.sign(b"advertise", b"run", b"keys")
    verify(key.public, signature, b"advertise", b"run", b"keys")
    refused: list[tuple[bytes, bytes, bytes, tuple[bytes, ...]]] = [
        (other.public, signature, b"advertise", (b"run", b"keys")),
        (key.public, signature, b"consistency", (b"run", b"keys")),
        (key.public, signature, b"advertise", (b"runk", b"eys")),
        (key.public, signature, b"advertise", (b"run", b"keys", b"")),
        (key.public, signature[:-1], b"advertise", (b"run", b"keys")),
        (key.public, bytes(64), b"advertise", (b"run", b"keys")),
        (key.public[:-1], signature, b"advertise", (b"run", b"keys")),
        (b"", b"", b"advertise", ()),
    ]
    for public, signed, label, fields in refused:
        with pytest.raises(PeerError, match="signature"):
            verify(public, signed, label, *fields)


@given(*[st.lists(st.binary(max_size=5), min_size=1, max_size=4)] * 2)
def test_no_two_lists_make_one_statement(one: list[bytes], other: list[bytes]) -> None:
    assert (statement(*one) == statement(*other)) == (one == other)


def test_a_commitment_binds_to_the_secret_and_its_fields() -> None:
    secret = Secret(KEY)
    expected = hashlib.sha256(statement(b"self mask", b"7", KEY)).digest()
    assert commitment(secret, b"self mask", b"7") == expected
    others = {commitment(Secret.draw(), b"self mask", b"7"), commitment(secret, b"self mask", b"8")}
    assert expected not in others


def test_randomness_is_an_argument() -> None:
    given_bytes: Callable[[int], bytes] = lambda count: ALICE[:count]  # noqa: E731
    assert KeyPair.generate(given_bytes).public == ALICE_PUBLIC
    assert Secret.draw(given_bytes).reveal() == ALICE
    with pytest.raises(ValueError, match="gave 31 bytes"):
        DeviceKey.generate(lambda count: ALICE[: count - 1])


def test_what_was_wiped_is_gone() -> None:
    secret, pair = Secret(KEY), KeyPair.generate()
    held = secret._bytes
    secret.wipe()
    pair.wipe()
    assert not any(held)
    for use in (secret.reveal, pair.secret, lambda: pair.derive(BOB_PUBLIC, MASK)):
        with pytest.raises(ValueError, match="wiped"):
            use()


GUARDED = {
    "Secret": (Secret(KEY), KEY),
    "KeyPair": (KeyPair(Secret(KEY)), KEY),
    "DeviceKey": (DeviceKey(Secret(KEY)), KEY),
    "Channel": (ends()[0], KEY),
}
each_guarded = pytest.mark.parametrize(("thing", "hidden"), GUARDED.values(), ids=GUARDED)


def forms(secret: bytes) -> list[str]:
    """How 32 bytes may stand in a text, in part: eight bytes are enough to find them."""
    part = secret[8:16]
    escaped, listed = repr(part)[2:-1], str(list(part))[1:-1]
    return [
        part.hex(),
        part.hex().upper(),
        escaped,
        listed,
        part.decode("latin-1"),
        base64.b64encode(secret)[12:20].decode(),
    ]


@each_guarded
def test_secrets_show_nothing(thing: object, hidden: bytes) -> None:
    log = io.StringIO()
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(log))
    logger.error("%s %r %s", thing, thing, {"key": [thing]})
    texts = [repr(thing), str(thing), f"{thing} {thing!r} {thing!a}", pprint.pformat([thing]), log.getvalue()]
    for text in texts:
        assert type(thing).__name__ in text
        assert not any(form in text for form in forms(hidden))
    assert not hasattr(thing, "__dict__")


@each_guarded
def test_secrets_are_neither_pickled_nor_copied(thing: object, hidden: bytes) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="not pickled") as error:
            pickle.dumps([thing], protocol)
        assert not any(form in str(error.value) for form in forms(hidden))
    for duplicate in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled or copied"):
            duplicate(thing)


def test_a_text_with_a_secret_in_it_would_be_seen() -> None:
    for text in (repr(KEY), KEY.hex(), str(list(KEY)), base64.b64encode(KEY).decode()):
        assert any(form in text for form in forms(KEY))


def test_secrets_compare_and_do_not_hash() -> None:
    assert Secret(KEY) == Secret(KEY) != Secret(ALICE)
    assert Secret(KEY) != KEY
    with pytest.raises(TypeError):
        hash(Secret(KEY))


def test_errors_show_no_secret() -> None:
    pair, (one, two) = KeyPair(Secret(KEY)), ends()
    one.seal(b"")
    failures: list[Callable[[], object]] = [
        lambda: pair.derive(bytes(32), MASK),
        lambda: pair.restore(KEY, BOB_PUBLIC),
        lambda: two.open(b"x" * 40),
        lambda: one.seal(KEY),
        lambda: Secret.draw(lambda count: KEY[1:]),
    ]
    for failure in failures:
        with pytest.raises((PeerError, ValueError)) as error:
            failure()
        text = "".join(traceback.format_exception(error.value))
        assert not any(form in text for form in forms(KEY))
