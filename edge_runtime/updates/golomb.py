"""Ascending positions as Golomb-Rice coded gaps: the entropy of a random choice to within a few hundredths of a bit.

A gap g (how many positions are skipped) is g >> r in unary, and its r lowest bits (Golomb 1966; Rice and Plaunt 1971;
for sparse updates: Sattler et al. 2019, arXiv:1903.02891, algorithm 3). Each kind of field is a section of its own, so
that both sides work on whole vectors:

    count      varint, 0 to the number of values; where it is 0, nothing follows
    r          1 byte, 0 to the bit length of size // count
    remainders r bits each, packed as pack_bits.h says
    quotients  that many 0 bits and a 1 bit each, packed likewise; zero bits fill the last byte
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import PeerError
from edge_runtime.kernels import vectors
from edge_runtime.updates import wire
from edge_runtime.updates.stage import Reader

Positions = NDArray[np.int64]


def encode_positions(positions: NDArray[np.uint32], size: int) -> bytes:
    """The bytes of strictly ascending positions below `size` <= 2^32."""
    count = wire.pack_varint(positions.size)
    if not positions.size:
        return count
    gaps = _skipped(positions.astype(np.int64))
    r = min(range(_largest_r(size, gaps.size) + 1), key=lambda r: r * gaps.size + int((gaps >> r).sum()))
    remainders = vectors.pack_bits((gaps & (1 << r) - 1).astype(np.uint32), r).tobytes() if r else b""
    ends = np.cumsum((gaps >> r) + 1) - 1
    quotients = np.zeros(int(ends[-1]) + 1, np.uint8)
    quotients[ends] = 1
    return b"".join((count, bytes([r]), remainders, vectors.pack_bits(quotients, 1).tobytes()))


def decode_positions(reader: Reader, size: int) -> Positions:
    """Strictly ascending positions below `size`; PeerError on anything else."""
    count = reader.varint("number of positions", 0, size)
    if not count:
        return np.empty(0, np.int64)
    r = reader.byte("Rice parameter", 0, _largest_r(size, count))
    remainders = reader.bits("remainders of positions", count, r) if r else np.zeros(count, np.uint8)
    # `size` bounds the sum of the quotients, and so the bits that are looked at.
    most = count + (size - count >> r)
    bits = np.unpackbits(np.frombuffer(reader.peek((most + 7) // 8), np.uint8), bitorder="little")
    ends = np.flatnonzero(bits[:most])[:count]
    if ends.size < count:
        raise PeerError(f"quotients of positions end after {ends.size} of {count}, or reach past the last value")
    used = int(ends[-1]) + 1
    reader.take((used + 7) // 8, "quotients of positions")
    if bits[used : (used + 7) // 8 * 8].any():
        raise PeerError("bits are set after the last quotient of positions")
    gaps = _skipped(ends) << r | remainders
    positions = np.cumsum(gaps + 1) - 1  # no overflow: remainders sum to at most count * 2^r <= 2 * size
    if positions[-1] >= size:
        raise PeerError(f"position {positions[-1]} is past the last of {size} values")
    return positions


def _skipped(ascending: Positions) -> Positions:
    """How many numbers are skipped before each of these, from 0 on."""
    gaps = ascending.copy()
    gaps[1:] -= ascending[:-1] + 1
    return gaps


def _largest_r(size: int, count: int) -> int:
    """No larger r can be the best: beyond log2(mean gap) + 1, one more bit of remainder saves less than one."""
    return min(32, (size // count).bit_length())
