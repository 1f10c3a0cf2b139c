"""Uniform words from a ChaCha20 keystream, and the tables they are looked up in: what every noise sampler draws with.

A key makes one vector of noise: 32 bytes from the operating system, used once, told to nobody. Its samples come in
chunks, and each chunk has as many streams of words as its sampler asks for; no two share keystream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError

Words = NDArray[np.uint64]
Samples = NDArray[np.int64]
Source = Callable[[int, int], Words]  # of one chunk: (stream, count) -> that stream's first words

KEY_BYTES = 32
CHUNK = 1 << 15  # words at once: 256 KiB of keystream stay in the L2 cache
_ZEROS = bytes(8 * CHUNK)


def in_chunks(count: int, key: bytes, draw: Callable[[int, Source], Samples]) -> Samples:
    """`count` samples, made by `draw(size, source)` chunk by chunk; the same key gives the same samples."""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"noise key: must be {KEY_BYTES} bytes, not {len(key)}; take them from os.urandom")
    samples = np.empty(count, np.int64)
    for chunk, start in enumerate(range(0, count, CHUNK)):
        part = samples[start : start + CHUNK]
        part[:] = draw(part.size, partial(keystream, key, chunk))
    return samples


def keystream(key: bytes, chunk: int, stream: int, count: int) -> Words:
    """The first `count` <= CHUNK words of one stream of one chunk; both stand in the nonce."""
    words = np.empty(count, "<u8")
    nonce = bytes(8) + chunk.to_bytes(4, "little") + stream.to_bytes(4, "little")
    encryptor = Cipher(ChaCha20(key, nonce), mode=None).encryptor()
    encryptor.update_into(memoryview(_ZEROS)[: words.nbytes], words.data.cast("B"))
    return words


class Lookup:
    """Rising entries below 2^128; `find` says how many of them a 128-bit word reaches.

    The upper 64 bits decide by binary search, but for one word in some 2^64 / entries that meets an entry's own upper
    half; only there the lower 64 bits are asked for. The search does not run in constant time.
    """

    __slots__ = ("_high", "_low")

    def __init__(self, entries: Iterable[int]) -> None:
        whole = list(entries)
        self._high = np.array([entry >> 64 for entry in whole], np.uint64)
        self._low = np.array([entry & (1 << 64) - 1 for entry in whole], np.uint64)

    @property
    def entries(self) -> list[int]:
        return [int(high) << 64 | int(low) for high, low in zip(self._high, self._low, strict=True)]

    def find(self, upper: Words, lower: Callable[[], Words]) -> Samples:
        """The number of entries <= 2^64 `upper` + `lower()`; `lower` is asked only if it matters."""
        reached = np.searchsorted(self._high, upper, side="right")
        undecided = np.flatnonzero(self._high[np.maximum(reached, 1) - 1] == upper)
        if undecided.size:
            second = lower()
            first_equal = np.searchsorted(self._high, upper, side="left")
            for i in undecided:
                equal = self._low[first_equal[i] : reached[i]]
                reached[i] = first_equal[i] + np.searchsorted(equal, second[i], side="right")
        return reached
