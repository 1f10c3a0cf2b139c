"""Who shares masks and secrets with whom, and how many shares rebuild a secret: SecAgg+ (Bell et al., CCS 2020).

Of n clients C = floor(corrupt n) lend the server what they see and D = floor(drop n) drop out. Each client has k
neighbours: k / 2 on either side of a ring in random order. Their numbers among k neighbours are hypergeometric, and
the conditions, each for all n clients at once (section 3 of the paper), are

    privacy       n P[Hyp(n - 1, C, k) >= t] < 2^-40               nobody has t corrupt neighbours
    correctness   n P[Hyp(n - 1, n - 1 - D, k) <= t - 1] < 2^-20   everybody keeps t live neighbours
    connection    n prod_{i < k/2} (C + D - i) / (n - i) < 2^-40   no k / 2 corrupt or dropped in a row cut the ring
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

from edge_runtime.errors import ConfigError

COMPLETE_UP_TO = 200  # clients; so far a complete graph costs little, and nobody has to be trusted to draw a ring
MAX_CLIENTS = 65536  # a secret has at most 65,535 shares


class Degree(NamedTuple):
    """Neighbours of a client, and how many of their shares rebuild its secrets."""

    k: int
    t: int


def choose_neighbours(
    n: int,
    corrupt: float,
    drop: float,
    *,
    privacy_bits: int = 40,
    correctness_bits: int = 20,
    malicious_server: bool = False,
) -> Degree:
    """The smallest even k from 4, with the smallest t >= 2, that meets the conditions; else the complete graph.

    Args:
        n: clients of the cohort, 2 to 65,536.
        corrupt: greatest share of clients that collude with the server, as the decimal it is printed as.
        drop: greatest share of clients that drop out, likewise.
        privacy_bits: a bound of 2^-bits on the failure of privacy and of connection.
        correctness_bits: a bound of 2^-bits on too few shares.
        malicious_server: also 2 t > k + 1 + `corrupt_neighbours`: k neighbours and the client itself hold shares. A
            server that lies about who dropped out asks some holders for one secret of a client and the rest for the
            other; only corrupt ones answer both times. The ring's order must then not be the server's choice.

    Raises:
        ConfigError: an argument is out of range, or not even the complete graph keeps t live neighbours.

    """
    corrupted, dropped = _counts(n, corrupt, drop)
    for k in range(4, n, 2):
        most = _most_corrupt(n, corrupted, k, privacy_bits)
        t = max(most + 1, _quorum(k + 1, most) if malicious_server else 2)
        if _keeps_enough(n, dropped, k, t, correctness_bits) and _stays_whole(n, corrupted + dropped, k, privacy_bits):
            return Degree(k, t)
    return complete_graph(n, corrupt, drop, malicious_server=malicious_server)


def corrupt_neighbours(n: int, corrupt: float, k: int, *, privacy_bits: int = 40) -> int:
    """The most neighbours of any one client that may be corrupt, but with a chance below 2^-privacy_bits; k = n - 1: C.

    It is what a client's `Policy.corrupt` says of a ring; its `min_clients` then says how many the cohort has.

    Raises:
        ConfigError: as `choose_neighbours`.

    """
    corrupted, _ = _counts(n, corrupt, 0)
    return corrupted if k == n - 1 else _most_corrupt(n, corrupted, k, privacy_bits)


def complete_graph(n: int, corrupt: float, drop: float, *, malicious_server: bool = False) -> Degree:
    """Degree n - 1 and t = C + 1, at least 2 if so many stay; for a malicious server t = floor((n + C) / 2) + 1.

    No chance is left: exactly the C corrupt hold shares, and at least n - 1 - D others of a client stay.

    Raises:
        ConfigError: as `choose_neighbours`.

    """
    corrupted, dropped = _counts(n, corrupt, drop)
    live = n - 1 - dropped
    t = _quorum(n, corrupted) if malicious_server else max(corrupted + 1, min(2, live))
    if live < t:
        raise ConfigError(
            f"of {n} clients {corrupted} may be corrupt and {dropped} drop out: a secret needs {t} shares and may keep "
            f"{max(live, 0)}; take more clients, or allow fewer to be corrupt or drop out"
        )
    return Degree(n - 1, t)


class Neighbours(Mapping[int, tuple[int, ...]]):
    """The neighbours of each client of a ring, ascending; worked out when first asked for: a client asks for k of n."""

    def __init__(self, ring: Sequence[int], k: int) -> None:
        self._ring, self._k = ring, k
        self._place = {client: i for i, client in enumerate(ring)}
        self._known: dict[int, tuple[int, ...]] = {}

    def __getitem__(self, client: int) -> tuple[int, ...]:
        if client not in self._known:
            n, place, before = len(self._ring), self._place[client], self._k // 2
            near = (self._ring[(place + step) % n] for step in range(-before, self._k - before + 1) if step)
            self._known[client] = tuple(sorted(near))
        return self._known[client]

    def joins(self, present: Collection[int]) -> bool:
        """Whether those present are one part of the graph. Of each part by itself, masks cancel and the sum is open.

        Two of them in a row on the ring are neighbours unless k / 2 or more are gone between them: it is one part
        unless it is cut so twice.
        """
        if self._k == len(self._ring) - 1:
            return True
        places = [place for place, client in enumerate(self._ring) if client in present]
        around = zip(places, [*places[1:], *(place + len(self._ring) for place in places[:1])], strict=True)
        return sum(after - before > self._k // 2 for before, after in around) < 2

    def __iter__(self) -> Iterator[int]:
        return iter(self._ring)

    def __len__(self) -> int:
        return len(self._ring)


def neighbours(ids: Iterable[int], k: int, seed: bytes) -> Neighbours:
    """The neighbours of each id: everybody else for k = n - 1, or k / 2 on either side of a ring.

    The ring's order is that of SHA-256(seed, id as 8 bytes little-endian). This is Harary's graph H_{k,n}: the fewest
    edges that stay connected when any k - 1 clients go.

    Args:
        ids: distinct, 0 to 2^64 - 1, at least two.
        k: n - 1, or even and 2 to n - 2.
        seed: both sides draw the same ring from it.

    Raises:
        ValueError: an argument is out of range.

    """
    everyone = sorted(ids)
    n = len(everyone)
    if len(set(everyone)) != n or (n and not 0 <= everyone[0] <= everyone[-1] < 2**64):
        raise ValueError("ids of clients are distinct and of 0 to 2^64 - 1")
    if n >= 2 and k == n - 1:
        return Neighbours(everyone, k)
    if not 2 <= k < n or k % 2:
        raise ValueError(f"of {n} clients each has {n - 1} neighbours, or an even number of 2 to {n - 2}; got {k}")
    ring = sorted(everyone, key=lambda client: hashlib.sha256(seed + client.to_bytes(8, "little")).digest())
    return Neighbours(ring, k)


def _counts(n: int, corrupt: float, drop: float) -> tuple[int, int]:
    if not 2 <= n <= MAX_CLIENTS:
        raise ConfigError(f"a cohort has 2 to {MAX_CLIENTS} clients, got {n}")
    for name, share in (("corrupt", corrupt), ("drop", drop)):
        if not 0 <= share < 1:
            raise ConfigError(f"the share {name} is 0 or more and less than 1, got {share}")
    # floor(0.29 * 100) is 28 in floats
    return math.floor(Fraction(str(corrupt)) * n), math.floor(Fraction(str(drop)) * n)


def _most_corrupt(n: int, corrupted: int, k: int, bits: int) -> int:
    """Smallest m with n P[Hyp(n - 1, C, k) > m] < 2^-bits."""
    ways = _ways(n - 1, corrupted, k)
    limit, tail = math.comb(n - 1, k), 0
    for m in range(k, 0, -1):
        tail += ways[m]
        if n * tail << bits >= limit:
            return m
    return 0


def _keeps_enough(n: int, dropped: int, k: int, t: int, bits: int) -> bool:
    """Whether n P[Hyp(n - 1, n - 1 - D, k) <= t - 1] < 2^-bits."""
    return n * sum(_ways(n - 1, n - 1 - dropped, k)[:t]) << bits < math.comb(n - 1, k)


def _stays_whole(n: int, gone: int, k: int, bits: int) -> bool:
    """Whether n prod_{i < h} (C + D - i) / (n - i) < 2^-bits for h = k / 2, or C + D < k, too few to cut it twice."""
    h = k // 2
    return gone < k or n * math.perm(gone, h) << bits < math.perm(n, h)


def _quorum(holders: int, corrupt: int) -> int:
    """The smallest t with 2 t > holders + corrupt: two sets of t holders have an honest one in common."""
    return (holders + corrupt) // 2 + 1


def _ways(population: int, marked: int, draws: int) -> list[int]:
    """How many of the possible draws have 0, 1, ..., `draws` marked: C(marked, i) C(others, draws - i)."""
    others = population - marked
    chosen = list(accumulate(range(draws), lambda c, i: c * (marked - i) // (i + 1), initial=1))
    rest = list(accumulate(range(draws), lambda c, i: c * (others - i) // (i + 1), initial=1))
    return [c * r for c, r in zip(chosen, reversed(rest), strict=True)]
