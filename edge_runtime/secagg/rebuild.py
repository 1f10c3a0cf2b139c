"""Rebuilding a client's secret from its neighbours' shares, some of which may be wrong.

A rebuilt secret is believed only if it matches what its owner published: the commitment to its seed, or its public
key. If it does not, other subsets are tried; once one fits, every other share is tested against it, which names the
holders of wrong ones, and they are left out from then on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from edge_runtime.errors import PeerError, RunError
from edge_runtime.secagg import keys
from edge_runtime.secagg import transcript as t
from edge_runtime.secagg.shamir import Combiner

TRIES = 256  # subsets of one secret's shares, so that wrong shares cost bounded time
S = TypeVar("S")


class Rebuilder:
    """Rebuilds the secrets of one round; `culprits` grows as wrong shares are found."""

    def __init__(
        self, threshold: int, graph: Mapping[int, tuple[int, ...]], transcript: bytes, culprits: set[int]
    ) -> None:
        self._threshold, self._graph, self._transcript = threshold, graph, transcript
        self._culprits = culprits
        self._combiners: dict[tuple[int, ...], Combiner] = {}

    def seed(self, owner: int, shares: Mapping[int, bytes], commitment: bytes) -> keys.Secret:
        """The seed of `owner` from its holders' shares.

        Raises:
            RunError: no subset that was tried gives the seed it committed to.

        """

        def check(content: bytes) -> keys.Secret | None:
            seed = keys.Secret(content)
            return seed if t.commit_seed(seed, self._transcript, owner) == commitment else None

        return self._rebuild(owner, shares, check)

    def mask_key(self, owner: int, shares: Mapping[int, bytes], public: bytes) -> keys.KeyPair:
        """The mask key pair of `owner` from its holders' shares.

        Raises:
            RunError: no subset that was tried gives the secret of its public key.

        """

        def check(content: bytes) -> keys.KeyPair | None:
            try:
                return keys.KeyPair.restore(content, public)
            except PeerError:
                return None

        return self._rebuild(owner, shares, check)

    def _rebuild(self, owner: int, shares: Mapping[int, bytes], check: Callable[[bytes], S | None]) -> S:
        holders = sorted(shares.keys() - self._culprits)
        if len(holders) < self._threshold:
            raise RunError(
                f"{len(holders)} shares of a secret of client {owner}, {self._threshold} are needed; no sum is made"
            )
        neighbours = self._graph[owner]
        indices = {holder: t.share_index(owner, neighbours, holder) for holder in holders}
        by_index = {indices[holder]: shares[holder] for holder in holders}
        for subset in self._subsets(owner, holders):
            chosen = [indices[holder] for holder in subset]
            content = self._combine(chosen, by_index)
            if (secret := check(content)) is not None:
                if subset != holders[: self._threshold]:  # the first choice failed: somebody gave a wrong share
                    others = set(holders) - set(subset)
                    wrong = {h for h in others if self._combine([*chosen[1:], indices[h]], by_index) != content}
                    self._culprits |= wrong
                return secret
        raise RunError(
            f"the shares of client {owner} give no secret that fits what it published: too many are wrong, or it "
            "shared something else; no sum is made"
        )

    def _combine(self, chosen: Sequence[int], by_index: Mapping[int, bytes]) -> bytes:
        key = tuple(chosen)
        if key not in self._combiners:
            if len(self._combiners) > TRIES:
                self._combiners.clear()
            self._combiners[key] = Combiner(key)
        return self._combiners[key].combine(by_index)

    def _subsets(self, owner: int, holders: list[int]) -> Iterator[list[int]]:
        """Of `threshold` holders: the first ones, windows that leave out any one of them, then others at random."""
        threshold, count = self._threshold, len(holders)
        yield holders[:threshold]
        if count == threshold:
            return
        for start in range(1, min(count, TRIES // 2)):
            yield sorted((holders * 2)[start : start + threshold])
        # not secret: only so that a fixed pattern of wrong shares can't foil every try
        draw = random.Random(self._transcript + owner.to_bytes(8, "little"))  # noqa: S311
        for _ in range(TRIES // 2):
            yield sorted(draw.sample(holders, threshold))
