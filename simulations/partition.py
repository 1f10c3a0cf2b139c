"""Splitting one data set among clients: every partitioner takes labels or users and returns index arrays.

Seeded and pure. Each row goes to exactly one client; a client with fewer than `min_examples` rows is an error
(Dirichlet first draws again). The Dirichlet form is that of Hsu et al. 2019, shards are McMahan et al. 2017's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError
from edge_runtime.train.config import DataConfig

Rows = NDArray[np.intp]
DIRICHLET_DRAWS = 100


def iid(count: int, clients: int, rng: np.random.Generator) -> list[Rows]:
    """Rows shuffled and cut into parts whose sizes differ by one at most."""
    return np.array_split(rng.permutation(count), clients)


def dirichlet(labels: NDArray[np.integer], clients: int, alpha: float, rng: np.random.Generator) -> list[Rows]:
    """Each class is shared out by a draw from Dirichlet(alpha): the smaller alpha, the fewer classes a client sees."""
    parts: list[list[Rows]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(clients, alpha))
        cuts = np.floor(np.cumsum(shares)[:-1] * len(rows)).astype(np.intp)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


def shards(labels: NDArray[np.integer], clients: int, per_client: int, rng: np.random.Generator) -> list[Rows]:
    """Rows sorted by class, cut into clients x per_client shards; each client gets `per_client` of them at random."""
    order = np.argsort(labels, kind="stable")
    pieces = np.array_split(order, clients * per_client)
    dealt = rng.permutation(len(pieces)).reshape(clients, per_client)
    return [np.concatenate([pieces[shard] for shard in hand]) for hand in dealt]


def natural(users: NDArray[np.integer], clients: int, rng: np.random.Generator) -> list[Rows]:
    """All rows of one user to one client, never a user split; `clients` users drawn when there are more."""
    chosen = np.sort(rng.permutation(np.unique(users))[:clients])
    return [np.flatnonzero(users == user) for user in chosen]


def partition(
    labels: NDArray[np.integer], users: NDArray[np.integer] | None, data: DataConfig, seed: int
) -> list[Rows]:
    """The row indices of each of `data.clients` clients, as `data` says.

    Raises:
        ConfigError: the set has no users, or too few rows or users, or a part would be smaller than `min_examples`.

    """
    rng = np.random.default_rng([seed, 0x5EED])
    if data.clients * data.min_examples > len(labels):
        raise ConfigError(
            f"data.clients = {data.clients}: with data.min_examples = {data.min_examples} must be <= "
            f"{len(labels) // data.min_examples}, the set has {len(labels)} training rows"
        )
    match data.partition:
        case "iid":
            return _checked(data, lambda: iid(len(labels), data.clients, rng))
        case "dirichlet":
            return _checked(data, lambda: dirichlet(labels, data.clients, data.alpha, rng), DIRICHLET_DRAWS)
        case "shards":
            return _checked(data, lambda: shards(labels, data.clients, data.shards_per_client, rng))
        case _:
            if users is None:
                raise ConfigError(
                    f"data.partition = 'natural': the set {data.name} has no users; use dirichlet, iid or shards"
                )
            if (there := len(np.unique(users))) < data.clients:
                raise ConfigError(f"data.clients = {data.clients}: must be <= {there}, the users of {data.name}")
            return _checked(data, lambda: natural(users, data.clients, rng))


def _checked(data: DataConfig, draw: Callable[[], list[Rows]], tries: int = 1) -> list[Rows]:
    """The first of `tries` draws in which every client has enough rows."""
    for _ in range(tries):
        parts = draw()
        smallest = min(map(len, parts))
        if smallest >= data.min_examples:
            return parts
    raise ConfigError(
        f"data.min_examples = {data.min_examples}: the {data.partition} split leaves a client with {smallest} rows;"
        " lower it, use fewer clients, or raise data.alpha"
    )
