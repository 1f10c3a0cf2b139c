"""Sharing: any t shares give the secret back, fewer say nothing; the tables against arithmetic on single bits."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import PeerError
from edge_runtime.secagg.fields import gf256, gf65536
from edge_runtime.secagg.shamir import Combiner, combine, split

PRIME = 2**521 - 1
SECRETS = st.binary(min_size=16, max_size=40)


def seeded(seed: int) -> random.Random:
    return random.Random(seed)


def times(a: int, b: int) -> int:
    """The product in GF(2^8), a bit at a time."""
    product = 0
    for bit in range(8):
        product ^= (a << bit) * (b >> bit & 1)
    for bit in range(14, 7, -1):
        product ^= (0x11B << bit - 8) * (product >> bit & 1)
    return product


def wide_times(a: int, b: int) -> int:
    """The product in GF(2^16): (a0 + a1 y)(b0 + b1 y) with y^2 = y + 0x20, multiplied out and reduced."""
    (a1, a0), (b1, b0) = divmod(a, 256), divmod(b, 256)
    constant, linear, square = times(a0, b0), times(a0, b1) ^ times(a1, b0), times(a1, b1)
    return (constant ^ times(square, 0x20)) | (linear ^ square) << 8


class IntegerShamir:
    """The textbook's scheme over the integers mod a prime: what any such scheme must do with a set of holders."""

    def __init__(self, secret: bytes, shares: int, threshold: int, rng: random.Random) -> None:
        polynomial = [int.from_bytes(secret), *(rng.randrange(PRIME) for _ in range(threshold - 1))]
        self.size = len(secret)
        self.shares = {x: sum(c * x**j for j, c in enumerate(polynomial)) % PRIME for x in range(1, shares + 1)}

    def rebuild(self, holders: tuple[int, ...]) -> int:
        total = 0
        for i in holders:
            others = [j for j in holders if j != i]
            top, bottom = np.prod([*others, 1], dtype=object), np.prod([*(j - i for j in others), 1], dtype=object)
            total += self.shares[i] * int(top) * pow(int(bottom), -1, PRIME)
        return total % PRIME


@given(SECRETS, st.integers(1, 12), st.data())
def test_case_34_a_set_of_holders_rebuilds_just_when_it_does_over_the_integers(
    secret: bytes, n: int, data: st.DataObject
) -> None:
    t = data.draw(st.integers(1, n))
    holders = tuple(data.draw(st.sets(st.integers(1, n), min_size=1)))
    rng = seeded(data.draw(st.integers(0, 99)))
    shares = dict(enumerate(split(secret, n, t, rng.randbytes), start=1))
    oracle = IntegerShamir(secret, n, t, rng)
    rebuilds = Combiner(holders).combine(shares) == secret
    assert rebuilds == (oracle.rebuild(holders) == int.from_bytes(secret)) == (len(holders) >= t)


def test_case_34_every_set_of_t_holders_rebuilds() -> None:
    secret = bytes(range(64))
    shares = dict(enumerate(split(secret, 9, 4), start=1))
    for holders in combinations(shares, 4):
        assert combine({i: shares[i] for i in holders}, 4) == secret


@pytest.mark.parametrize("secret", [0, 1, 0xA7])
def test_case_34_one_share_of_two_is_uniform_over_all_coefficients(secret: int) -> None:
    every = bytes(range(256))
    for share in split(bytes([secret]) * 256, 255, 2, lambda count: every[:count]):
        assert np.bincount(np.frombuffer(share, np.uint8), minlength=256).tolist() == [1] * 256


@pytest.mark.parametrize("secret", [0, 1, 0xA7])
def test_case_34_two_shares_of_three_are_uniform_over_all_coefficients(secret: int) -> None:
    first, second = np.divmod(np.arange(65536), 256)
    every = np.concatenate([first, second]).astype(np.uint8).tobytes()
    shares = split(bytes([secret]) * 65536, 6, 3, lambda count: every[:count])
    for one, other in combinations([np.frombuffer(share, np.uint8).astype(np.int64) for share in shares], 2):
        assert np.bincount(one * 256 + other, minlength=65536).tolist() == [1] * 65536


@given(SECRETS, st.integers(1, 255), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=30)
def test_a_share_is_the_polynomial_at_its_index(secret: bytes, n: int, t: int, seed: int) -> None:
    t = min(t, n)
    drawn = seeded(seed).randbytes((t - 1) * len(secret))
    shares = split(secret, n, t, lambda count: drawn[:count])
    coefficients = [secret, *(drawn[j * len(secret) : (j + 1) * len(secret)] for j in range(t - 1))]
    for index in {1, n, 1 + seed % n}:
        expected = bytearray(len(secret))
        power = 1
        for row in coefficients:
            expected = bytearray(e ^ times(power, c) for e, c in zip(expected, row, strict=True))
            power = times(power, index)
        assert shares[index - 1] == bytes(expected)


def test_products_in_the_small_field() -> None:
    a = np.arange(256)
    expected = [[times(i, j) for j in range(256)] for i in range(256)]
    assert gf256().multiply(a[:, np.newaxis], a).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 65535)), min_size=1, max_size=50))
def test_products_in_the_large_field(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs).T
    assert gf65536().multiply(a, b).tolist() == [wide_times(i, j) for i, j in pairs]


def test_the_large_field_has_an_inverse_for_all_but_zero() -> None:
    field = gf65536()
    powers = field.exp[: field.order]
    assert sorted(powers.tolist()) == list(range(1, 65536))


@pytest.mark.parametrize("holders", [range(1, 6), range(251, 261), [1, 255, 256, 300, 7], range(296, 301)])
def test_more_than_255_shares(holders: list[int]) -> None:
    secret = seeded(1).randbytes(64)
    shares = dict(enumerate(split(secret, 300, 5, seeded(2).randbytes), start=1))
    assert Combiner(holders).combine(shares) == secret
    assert {len(share) for share in shares.values()} == {64}


def test_the_most_shares() -> None:
    shares = split(b"ab", 65535, 3)
    assert combine({1: shares[0], 40000: shares[39999], 65535: shares[65534]}, 3) == b"ab"


@given(st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=9), st.integers(0, 99))
def test_secrets_of_the_same_holders_are_rebuilt_in_one_call(secrets: list[bytes], seed: int) -> None:
    rng = seeded(seed)
    shared = [split(secret, 7, 3, rng.randbytes) for secret in secrets]
    joined = {i: b"".join(shares[i - 1] for shares in shared) for i in (2, 5, 7)}
    assert Combiner((7, 2, 5)).combine(joined) == b"".join(secrets)


def test_a_changed_share_changes_the_secret() -> None:
    secret = bytes(32)
    shares = dict(enumerate(split(secret, 5, 3), start=1))
    shares[2] = bytes([shares[2][0] ^ 1]) + shares[2][1:]
    assert combine(shares, 3) != secret
    assert combine({i: share for i, share in shares.items() if i != 2}, 3) == secret


def test_shares_of_one_secret_differ_from_call_to_call() -> None:
    assert split(bytes(32), 3, 2) != split(bytes(32), 3, 2)


@pytest.mark.parametrize(
    ("secret", "n", "t"), [(b"s", 3, 0), (b"s", 3, 4), (b"s", 0, 0), (b"s", 65536, 2), (b"odd", 256, 2), (b"", 3, 2)]
)
def test_bad_arguments_are_ours(secret: bytes, n: int, t: int) -> None:
    with pytest.raises(ValueError, match=r"shares|shared"):
        split(secret, n, t)


def test_a_source_that_gives_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="gave 2 bytes of 4"):
        split(b"ab", 3, 3, lambda count: bytes(count // 2))


@pytest.mark.parametrize("indices", [[], [0, 1], [1, 1], [-3], [65536]])
def test_indices_out_of_range_are_ours(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="indices"):
        Combiner(indices)


@pytest.mark.parametrize("shares", [{1: b"ab"}, {}])
def test_too_few_shares_are_ours(shares: Mapping[int, bytes]) -> None:
    with pytest.raises(ValueError, match="rebuild the secret"):
        combine(shares, 2)
    with pytest.raises(ValueError, match="no share of index"):
        Combiner((1, 2)).combine(shares)


@pytest.mark.parametrize("shares", [{1: b"ab", 2: b"a"}, {1: b"", 2: b""}, {1: b"odd", 300: b"odd"}])
def test_shares_that_belong_to_no_secret_are_the_peers(shares: Mapping[int, bytes]) -> None:
    with pytest.raises(PeerError):
        combine(shares, 2)
