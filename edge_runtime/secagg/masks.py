"""Masks: the keystream of a cipher, added to or subtracted from words mod 2^64.

mask[i] = the i-th 8 bytes, little-endian, of ChaCha20 (RFC 8439, block counter from 0) or AES-CTR (NIST SP 800-38A,
counter block from 0) over zeros. Nonce and counter start at zero always: a key is good for one stream and no more.

ChaCha20 is fast on every device. AES-CTR is twice as fast with AES instructions and 5 to 10 times slower without, so
a cohort uses it only if all of it has them; both ends of a pair need the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError

KEY_BYTES = 32
CHUNK_WORDS = 2**14  # 128 KiB: the keystream is still in the L2 cache when it is added

_START = bytes(16)
_ZEROS = bytes(8 * CHUNK_WORDS)
_SLACK_WORDS = 2  # older versions of `cryptography` want room for a block more than they write

Prg = Callable[[bytes, bytes], CipherContext]


def _chacha20(key: bytes, start: bytes = _START) -> CipherContext:
    return Cipher(ChaCha20(key, start), None).encryptor()


def _aes_256_ctr(key: bytes, start: bytes = _START) -> CipherContext:
    return Cipher(AES(key), CTR(start)).encryptor()


def _aes_128_ctr(key: bytes, start: bytes = _START) -> CipherContext:
    return Cipher(AES(key[:16]), CTR(start)).encryptor()


DEFAULT_PRG = "chacha20"
# Name -> the stream of a key of 32 bytes (AES-128 uses the first 16) from a counter block of 16.
PRGS: Mapping[str, Prg] = MappingProxyType(
    {"chacha20": _chacha20, "aes-256-ctr": _aes_256_ctr, "aes-128-ctr": _aes_128_ctr}
)


def apply_masks(
    words: NDArray[np.uint64], *, add: Iterable[bytes] = (), subtract: Iterable[bytes] = (), prg: str = DEFAULT_PRG
) -> None:
    """`words += sum of mask(key) over add - sum over subtract` in place, mod 2^64, in one pass over the words.

    Args:
        words: contiguous, writable uint64 vector.
        add: keys of 32 secret bytes each, used for no other stream.
        subtract: likewise.
        prg: a name of `PRGS`.

    Raises:
        ConfigError: no such `prg`.
        ValueError: another kind of array, or a key of another length.

    """
    if prg not in PRGS:
        raise ConfigError(f"no mask PRG {prg!r}; there are {', '.join(PRGS)}")
    if words.dtype != np.dtype("<u8") or words.ndim != 1 or not words.flags.c_contiguous or not words.flags.writeable:
        raise ValueError(f"words are a contiguous writable uint64 vector, got {words.dtype} of shape {words.shape}")
    streams: list[tuple[CipherContext, np.ufunc]] = [(_stream(key, prg), np.add) for key in add]
    streams += [(_stream(key, prg), np.subtract) for key in subtract]
    mask = np.empty(min(CHUNK_WORDS, words.size) + _SLACK_WORDS, np.uint64)
    zeros, out = memoryview(_ZEROS), mask.data.cast("B")
    for first in range(0, words.size, CHUNK_WORDS):
        part = words[first : first + CHUNK_WORDS]
        plain, keystream = zeros[: part.nbytes], mask[: part.size]
        for stream, apply in streams:
            stream.update_into(plain, out)
            apply(part, keystream, out=part)


def _stream(key: bytes, prg: str) -> CipherContext:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a mask key has {KEY_BYTES} bytes, got {len(key)}")
    return PRGS[prg](key, _START)
