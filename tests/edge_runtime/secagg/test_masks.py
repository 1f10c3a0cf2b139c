"""Masks: published answers, uniformity, and that what is added comes off again."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError
from edge_runtime.secagg.lanes import Lanes
from edge_runtime.secagg.masks import CHUNK_WORDS, PRGS, apply_masks

KEYS = st.binary(min_size=32, max_size=32)
each_prg = pytest.mark.parametrize("prg", PRGS)

# RFC 8439 appendix A.1, vectors 1 to 4: key, block counter, keystream block. Their nonces are zero.
RFC_8439 = (
    (
        bytes(32),
        0,
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
    ),
    (
        bytes(32),
        1,
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
    ),
    (
        bytes(31) + b"\1",
        1,
        "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
        "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
    ),
    (
        b"\0\xff" + bytes(30),
        2,
        "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
        "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
    ),
)
# NIST SP 800-38A, F.5.1 and F.5.5: key, ciphertext of PLAIN from the counter block f0f1...ff.
PLAIN = (
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
SP_800_38A = {
    "aes-128-ctr": (
        "2b7e151628aed2a6abf7158809cf4f3c",
        "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"
        "5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee",
    ),
    "aes-256-ctr": (
        "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6",
    ),
}
# AES of the zero block under the zero key: the first block of that key's mask.
ZERO_BLOCK = {"aes-128-ctr": "66e94bd4ef8a2c3b884cfa59ca342b2e", "aes-256-ctr": "dc95c078a2408989ad48a21492842087"}


def mask(key: bytes, words: int, prg: str) -> NDArray[np.uint64]:
    total = np.zeros(words, np.uint64)
    apply_masks(total, add=[key], prg=prg)
    return total


@pytest.mark.parametrize(("key", "block", "stream"), RFC_8439)
def test_case_31_rfc_8439(key: bytes, block: int, stream: str) -> None:
    assert mask(key, 8 * (block + 1), "chacha20")[8 * block :].astype("<u8").tobytes().hex() == stream


@pytest.mark.parametrize("prg", SP_800_38A)
def test_case_31_nist_sp_800_38a(prg: str) -> None:
    key, expected = SP_800_38A[prg]
    stream = PRGS[prg](bytes.fromhex(key).ljust(32, b"\0"), bytes(range(0xF0, 0x100)))
    assert stream.update(bytes.fromhex(PLAIN)).hex() == expected
    assert mask(bytes(32), 2, prg).astype("<u8").tobytes().hex() == ZERO_BLOCK[prg]


@each_prg
def test_case_31_each_bit_of_the_key_changes_half_the_mask(prg: str) -> None:
    key, words = random.Random(5).randbytes(32), 512
    before = mask(key, words, prg)
    for bit in range(128 if prg == "aes-128-ctr" else 256):
        flipped = (int.from_bytes(key, "little") ^ 1 << bit).to_bytes(32, "little")
        changed = np.unpackbits((mask(flipped, words, prg) ^ before).view(np.uint8)).mean()
        assert abs(changed - 0.5) < 6 * 0.5 / math.sqrt(64 * words), bit


def chi_square_sigmas(counts: NDArray[np.int64]) -> float:
    """How many standard deviations the chi-square of these counts is from that of a uniform draw (Wilson-Hilferty)."""
    freedom, expected = counts.size - 1, counts.sum() / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    spread = 2 / (9 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread))


def test_the_chi_square_sees_a_bias_of_four_percent() -> None:
    rng, even, biased = np.random.default_rng(1), np.full(256, 512), np.repeat([532, 492], 128)
    assert abs(chi_square_sigmas(rng.poisson(even))) < 4.5
    assert chi_square_sigmas(rng.poisson(biased)) > 4.5


@each_prg
def test_case_32_a_masked_vector_of_zeros_is_uniform_in_every_byte(prg: str) -> None:
    masked = mask(random.Random(6).randbytes(32), 2**17, prg).astype("<u8").view(np.uint8).reshape(-1, 8)
    for position in range(8):
        assert abs(chi_square_sigmas(np.bincount(masked[:, position], minlength=256))) < 4.5, position


@each_prg
@pytest.mark.parametrize("bits", [8, 10, 12, 16, 20, 32])
def test_case_32_a_masked_vector_of_zeros_is_uniform_in_every_lane(prg: str, bits: int) -> None:
    lanes = Lanes(bits, 2**15 * (64 // bits))
    masked = lanes.pack(np.zeros(lanes.count, np.int64))
    apply_masks(masked, add=[random.Random(7).randbytes(32)], prg=prg)
    values = lanes.unpack(masked).reshape(-1, lanes.per_word)
    for lane in range(lanes.per_word):
        high = (values[:, lane] >> bits - 6) + 32
        assert abs(chi_square_sigmas(np.bincount(high, minlength=64))) < 4.5, lane


@each_prg
@given(st.integers(0, 40), KEYS, st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_adding_then_subtracting_gives_the_words_back(prg: str, words: int, key: bytes, seed: int) -> None:
    before = np.random.default_rng(seed).integers(0, 2**64, words, np.uint64)
    masked = before.copy()
    apply_masks(masked, add=[key], prg=prg)
    assert words == 0 or not np.array_equal(masked, before)
    apply_masks(masked, subtract=[key], prg=prg)
    np.testing.assert_array_equal(masked, before)


@each_prg
def test_chunks_join_to_one_stream(prg: str) -> None:
    key, words = random.Random(8).randbytes(32), 2 * CHUNK_WORDS + 3
    whole = np.frombuffer(PRGS[prg](key, bytes(16)).update(bytes(8 * words)), "<u8")
    np.testing.assert_array_equal(mask(key, words, prg), whole)


@each_prg
def test_masks_of_pairs_cancel_in_the_sum(prg: str) -> None:
    rng = random.Random(9)
    clients, words = range(5), CHUNK_WORDS + 5
    keys = {(u, v): rng.randbytes(32) for u in clients for v in clients if u < v}
    inputs = np.random.default_rng(9).integers(0, 2**64, (len(clients), words), np.uint64)
    total = np.zeros(words, np.uint64)
    for client in clients:
        masked = inputs[client].copy()
        add = [key for (u, _), key in keys.items() if u == client]
        apply_masks(masked, add=add, subtract=(key for (_, v), key in keys.items() if v == client), prg=prg)
        assert not np.array_equal(masked, inputs[client])
        total += masked
    np.testing.assert_array_equal(total, inputs.sum(axis=0, dtype=np.uint64))


def test_streams_of_different_ciphers_differ() -> None:
    assert len({mask(bytes(32), 4, prg).tobytes() for prg in PRGS}) == len(PRGS)


def test_bad_arguments_are_ours_and_change_nothing() -> None:
    words = np.zeros(4, np.uint64)
    frozen = np.zeros(4, np.uint64)
    frozen.flags.writeable = False
    with pytest.raises(ConfigError, match=r"'rc4'; there are chacha20"):
        apply_masks(words, add=[bytes(32)], prg="rc4")
    with pytest.raises(ValueError, match="32 bytes, got 16"):
        apply_masks(words, add=[bytes(32), bytes(16)])
    for bad in (words.astype(np.int64), words.astype(np.float64), words.reshape(2, 2), words[::2], frozen):
        with pytest.raises(ValueError, match="uint64 vector"):
            apply_masks(bad, add=[bytes(32)])  # type: ignore[arg-type]
    assert not words.any()


def test_an_error_does_not_show_the_key() -> None:
    key = bytes(range(65, 65 + 31))
    with pytest.raises(ValueError, match="31") as error:
        apply_masks(np.zeros(1, np.uint64), add=[key])
    assert key.decode() not in str(error.value)
    assert key.hex() not in str(error.value)
