"""Philox4x32-10, a counter-based random number generator (Salmon et al. 2011), and row orders made with it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[Any]  # uint64; NumPy types its arithmetic with Python numbers otherwise


def philox4x32(counter: list[Words], key: tuple[int, int], rounds: int = 10) -> list[Words]:
    """The four output words, as uint64 arrays below 2^32, for four such arrays (section 3.3 of the paper)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 % 2**32,
            (product0 >> 32) ^ c3 ^ k1,
            product0 % 2**32,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


class Shuffle:
    """A new random order of the rows for every pass, for `Batches(examples, batch_size, Shuffle(seed))`.

    `numpy.random.default_rng(seed)` would do as well, but loading it costs a device 6 MiB.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self._drawn = seed % 2**64, 0

    @property
    def state(self) -> dict[str, int]:
        """In plain JSON, what all further orders depend on."""
        return {"shuffle": self._seed, "drawn": self._drawn}

    @state.setter
    def state(self, state: dict[str, int]) -> None:
        seed, drawn = int(state["shuffle"]), int(state["drawn"])
        if not (0 <= seed < 2**64 and 0 <= drawn < 2**63):
            raise ValueError("not a state of Shuffle")
        self._seed, self._drawn = seed, drawn

    @property
    def bit_generator(self) -> Shuffle:
        """Where `Batches` looks for `state`, as in NumPy's generators."""
        return self

    def permutation(self, count: int) -> NDArray[np.intp]:
        """0 .. count - 1 in random order: that of `count` 64-bit random numbers."""
        return np.argsort(self._words(count), kind="stable")

    def integers(self, high: int) -> int:
        """One number from 0 to high - 1, `high` a power of two up to 2^64."""
        return int(self._words(1)[0]) % high

    def _words(self, count: int) -> Words:
        seed, drawn = self._seed, self._drawn
        self._drawn += 1
        places = np.arange(count, dtype=np.uint64)
        turn = [np.full(count, word, np.uint64) for word in (drawn % 2**32, drawn >> 32)]
        low, high, _, _ = philox4x32([places % 2**32, places >> 32, *turn], (seed % 2**32, seed >> 32))
        return (high << 32) | low
