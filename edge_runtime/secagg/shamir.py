"""Shamir's sharing of a secret byte string (CACM 1979): any `threshold` shares give it back, fewer say nothing of it.

Each byte s of the secret has a polynomial p(x) = s + c_1 x + ... + c_{t-1} x^{t-1} over GF(2^8), its c_j uniform and
independent; share i is p(i), for i = 1, 2, ... Up to 255 shares; beyond, and up to 65,535, the same over pairs of
bytes in GF(2^16). At 0, by Lagrange,

    s = sum_i L_i p(i),   L_i = prod_{j != i} j / (j - i).

A share alone does not tell which field made it, and need not: GF(2^16) is built on GF(2^8) (`fields.py`), so for
indices up to 255 the L_i are bytes and both fields give the same secret.

A changed share changes the secret unnoticed. Whoever rebuilds checks the result against a public value.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import PeerError
from edge_runtime.secagg.fields import Field, gf256, gf65536

MAX_SHARES = 65535


def split(secret: bytes, shares: int, threshold: int, random: Callable[[int], bytes] = os.urandom) -> list[bytes]:
    """Shares of the secret's length; the i-th of the list belongs to index i + 1.

    Args:
        secret: at least one byte; an even number if shares > 255.
        shares: at most 65,535.
        threshold: how many rebuild the secret, 1 <= threshold <= shares. With 1 every share is the secret.
        random: gives that many uniform bytes. Anything but a secure source gives the secret away.

    Raises:
        ValueError: an argument is out of range, or `random` gave another number of bytes.

    """
    if not 1 <= threshold <= shares <= MAX_SHARES:
        raise ValueError(f"1 <= threshold <= shares <= {MAX_SHARES}, got threshold {threshold} of {shares} shares")
    field = _field(shares)
    if problem := _unfit(len(secret), field):
        raise ValueError(f"a secret {problem}")
    drawn = random((threshold - 1) * len(secret))
    if len(drawn) != (threshold - 1) * len(secret):
        raise ValueError(f"the source of randomness gave {len(drawn)} bytes of {(threshold - 1) * len(secret)}")
    constant = np.frombuffer(secret, field.dtype)
    # The leading coefficient may be zero too: only when all are uniform do t - 1 shares say nothing.
    coefficients = np.frombuffer(drawn, field.dtype).reshape(threshold - 1, constant.size)
    log_x = field.log[1 : shares + 1, np.newaxis]
    values: NDArray[Any] = np.zeros((shares, constant.size), field.dtype)
    for coefficient in coefficients[::-1]:  # Horner's rule, for all x at once
        values = field.exp[field.log[values ^ coefficient] + log_x]
    return [share.tobytes() for share in values ^ constant]


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret, from the `threshold` shares of lowest index; the keys are the indices.

    Raises:
        ValueError: fewer shares than the threshold, or an index out of 1 to 65,535.
        PeerError: shares of different lengths.

    """
    if not 1 <= threshold <= len(shares):
        raise ValueError(f"{threshold} shares rebuild the secret, {len(shares)} are there")
    return Combiner(sorted(shares)[:threshold]).combine(shares)


class Combiner:
    """Rebuilds secrets from the shares of fixed indices. The Lagrange coefficients are worked out once.

    Bytes are shared one by one, so several secrets with the same holders can be rebuilt in one call: join each
    holder's shares, and cut the result apart.
    """

    def __init__(self, indices: Iterable[int]) -> None:
        self.indices = tuple(indices)
        x = np.array(self.indices, np.int64)
        if x.ndim != 1 or not x.size or x.min() < 1 or x.max() > MAX_SHARES or np.unique(x).size != x.size:
            raise ValueError(f"share indices are distinct and of 1 to {MAX_SHARES}, got {_some(self.indices)}")
        self._field = _field(int(x.max()))
        self._log_coefficients = _log_lagrange_at_zero(x, self._field)[:, np.newaxis]

    def combine(self, shares: Mapping[int, bytes]) -> bytes:
        """The secret from these indices' shares; others in the mapping are not looked at.

        Raises:
            ValueError: a share is missing.
            PeerError: shares of different lengths, or of odd length though an index is above 255.

        """
        if missing := [index for index in self.indices if index not in shares]:
            raise ValueError(f"no share of index {_some(missing)}")
        length = len(shares[self.indices[0]])
        if other := [index for index in self.indices if len(shares[index]) != length]:
            raise PeerError(
                f"share {other[0]} has {len(shares[other[0]])} bytes, share {self.indices[0]} has {length}; "
                "shares of one secret have one length"
            )
        field = self._field
        if problem := _unfit(length, field):
            raise PeerError(f"a share {problem}")
        words = np.frombuffer(b"".join(shares[index] for index in self.indices), field.dtype)
        terms = field.exp[field.log[words.reshape(len(self.indices), -1)] + self._log_coefficients]
        return bytes(np.bitwise_xor.reduce(terms, axis=0).tobytes())


def _field(largest_index: int) -> Field:
    return gf256() if largest_index <= 255 else gf65536()


def _unfit(length: int, field: Field) -> str | None:
    if length < 1 or length % field.dtype.itemsize:
        return f"of {length} bytes cannot be shared; beyond 255 shares the number of bytes is even, and it is never 0"
    return None


def _log_lagrange_at_zero(x: NDArray[np.int64], field: Field) -> NDArray[np.intp]:
    """Logarithms of L_i = prod_{j != i} x_j / (x_j + x_i)."""
    log_x = field.log[x]
    sums = np.empty(x.size, np.intp)
    for rows in np.array_split(np.arange(x.size), 1 + x.size**2 // 2**20):  # so that memory stays bounded
        differences = field.log[x[rows, np.newaxis] ^ x]
        differences[np.arange(rows.size), rows] = 0
        sums[rows] = log_x.sum() - log_x[rows] - differences.sum(axis=1)
    logs: NDArray[np.intp] = sums % field.order
    return logs


def _some(indices: Iterable[int]) -> str:
    listed = [str(index) for index in indices]
    return ", ".join(listed[:8]) + (f" … ({len(listed)})" if len(listed) > 8 else "")
