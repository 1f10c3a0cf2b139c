"""Cutting examples into batches, whatever keeps the examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.engine.philox import Shuffle
from edge_runtime.errors import ConfigError

Array = NDArray[np.generic]
# One array, or a tuple of them for a model with several inputs or outputs, or a loss with several targets.
Inputs = Array | tuple[Array, ...]
Targets = Array | tuple[Array, ...]
Batch = tuple[Array, Targets]
Index = NDArray[np.integer] | slice


class Transform(Protocol):
    """What a batch's inputs go through, with the batch's own generator; None where the batches have none."""

    # Spelled as a class, for an alias would load numpy.random, 6 MiB, also where nothing is random.
    def __call__(self, x: Array, rng: np.random.Generator | None) -> Array: ...


def row_count(x: Inputs) -> int:
    """How many examples a batch's inputs hold."""
    return len(x[0] if isinstance(x, tuple) else x)


class Rows(Protocol):
    """Anything that holds examples and gives out any few of them."""

    def __len__(self) -> int: ...

    def take(self, index: Index) -> Batch:
        """The inputs and targets of these rows, as arrays in memory."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs and targets with one row per example: x (N, ...), y (N, ...)."""

    x: Array
    y: Array

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"{len(self.x)} inputs but {len(self.y)} targets")

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: Index) -> Examples:
        return Examples(self.x[index], self.y[index])

    def take(self, index: Index) -> Batch:
        return self.x[index], self.y[index]


@dataclass(frozen=True, slots=True)
class MultiExamples:
    """Inputs with several targets each: x (N, ...), and every array of y (N, ...)."""

    x: Array
    y: tuple[Array, ...]

    def __post_init__(self) -> None:
        for target in self.y:
            if len(self.x) != len(target):
                raise ValueError(f"{len(self.x)} inputs but {len(target)} targets")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Index) -> Batch:
        return self.x[index], tuple(target[index] for target in self.y)


@dataclass(frozen=True, slots=True)
class Subset:
    """The rows that `index` lists, in that order and as often as it names them; nothing is copied."""

    source: Rows
    index: NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.index)

    def take(self, index: Index) -> Batch:
        return self.source.take(self.index[index])


@dataclass(frozen=True, slots=True)
class Batches:
    """Examples in batches, any number of times over; the last batch of a pass may be short.

    With a generator every pass follows a new `rng.permutation(N)`, without one the rows' own order. The inputs of each
    batch go through `transforms`, whose random numbers depend on the generator's state at the start of the pass and on
    the batch's number in it alone: a pass that is taken up in the middle gives the very same batches.
    """

    examples: Rows
    batch_size: int
    rng: np.random.Generator | Shuffle | None = None
    transforms: tuple[Transform, ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size}: must be >= 1")

    def __iter__(self) -> Iterator[Batch]:
        return self.starting_at(0)

    def starting_at(self, first: int) -> Iterator[Batch]:
        """One pass without its first `first` batches, which are not even read."""
        count = len(self.examples)
        order = None if self.rng is None else self.rng.permutation(count)
        # Drawn only where it is used, so that the passes without transforms follow the permutations alone.
        entropy = int(self.rng.integers(2**63)) if self.rng is not None and self.transforms else None
        for number, start in enumerate(range(0, count, self.batch_size)):
            if number >= first:
                rows = slice(start, min(start + self.batch_size, count))
                x, y = self.examples.take(np.arange(rows.start, rows.stop) if order is None else order[rows])
                own = np.random.default_rng([entropy, number]) if entropy is not None else None
                for transform in self.transforms:
                    x = transform(x, own)
                yield x, y

    def state(self) -> dict[str, Any]:
        """In plain JSON, what the passes from here on depend on besides the examples themselves."""
        state = {"rows": len(self.examples), "batch_size": self.batch_size}
        return state if self.rng is None else {**state, "rng": _plain(self.rng.bit_generator.state)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state()` gave.

        Raises:
            ConfigError: it came from other batches, or is malformed.

        """
        own = self.state()
        for name in ("rows", "batch_size"):
            if state.get(name) != own[name]:
                raise ConfigError(
                    f"the checkpoint was made with {name} = {state.get(name)}, these batches have {own[name]}"
                )
        if ("rng" in state) != (self.rng is not None):
            raise ConfigError(
                "of the checkpoint's batches and these, only one shuffles: give both a generator or neither"
            )
        if self.rng is not None:
            try:
                self.rng.bit_generator.state = state["rng"]
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise ConfigError(f"the checkpoint's generator state does not fit: {error}") from None


def _plain(value: Any) -> Any:
    """Generator states in JSON types; some generators keep arrays, which their setters also take as lists."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
