"""What the inputs of a batch go through on their way to the model: standardising, and random augmentation.

Each is called with a batch's inputs (B, ...) and the batch's own generator, and gives new inputs of the same shape;
only one batch at a time is ever held twice. They are listed in `Batches(transforms=...)`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.errors import ConfigError
from edge_runtime.files import write_atomically
from edge_runtime.train.batches import Array


@dataclass(frozen=True, slots=True)
class Standardize:
    """(x - mean) / std along `axis` of a batch (axis 1: channels of images, features of rows); float32.

    A channel that never varies is only centred.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    axis: int = 1

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ConfigError(f"standardize has {len(self.mean)} means and {len(self.std)} standard deviations")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) < 0:
            raise ConfigError("standardize needs finite means and standard deviations >= 0")

    def __call__(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        if not -x.ndim <= self.axis < x.ndim or x.shape[self.axis] != len(self.mean):
            raise ValueError(f"standardize knows {len(self.mean)} channels on axis {self.axis}, the batch is {x.shape}")
        shape = [1] * x.ndim
        shape[self.axis] = len(self.mean)
        mean, std = (np.array(values, np.float32).reshape(shape) for values in (self.mean, self._divisors()))
        standard = x.astype(np.float32)
        standard -= mean
        standard /= std
        return standard

    def _divisors(self) -> list[float]:
        return [std or 1.0 for std in self.std]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"mean": list(self.mean), "std": list(self.std), "axis": self.axis}

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> Standardize:
        """The inverse of `as_dict`.

        Raises:
            ConfigError: it is nothing that `as_dict` gives.

        """
        try:
            mean, std = (tuple(map(float, plain[name])) for name in ("mean", "std"))
            return Standardize(mean, std, int(plain["axis"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"these are no means and standard deviations: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, whole or not at all."""
        write_atomically(path, [json.dumps(self.as_dict()).encode()])

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Standardize:
        """Read what `save` wrote."""
        try:
            return Standardize.from_dict(json.loads(Path(path).read_bytes()))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{os.fspath(path)}: {error}") from None


def fit_standardize(inputs: Iterable[Array], axis: int = 1) -> Standardize:
    """Mean and standard deviation (of the population) along `axis`, in one pass over parts of the data, in float64.

    The parts are merged as in Chan, Golub & LeVeque 1983, equation 2.1, so a large mean costs no digits.

    Raises:
        ValueError: no values, or parts with different numbers of channels.

    """
    count, mean, squares = 0, np.zeros(0), np.zeros(0)
    for x in inputs:
        rows = np.moveaxis(x, axis, -1).astype(np.float64).reshape(-1, x.shape[axis])
        if count and len(mean) != rows.shape[1]:
            raise ValueError(f"a part with {rows.shape[1]} channels after parts with {len(mean)}")
        if not len(rows):
            continue
        if not count:
            mean, squares = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
        part = rows.mean(0)
        rows -= part
        total = count + len(rows)
        squares += np.square(rows, out=rows).sum(0) + (part - mean) ** 2 * (count * len(rows) / total)
        mean += (part - mean) * (len(rows) / total)
        count = total
    if not count:
        raise ValueError("there is nothing to take means of")
    return Standardize(tuple(mean.tolist()), tuple(np.sqrt(squares / count).tolist()), axis)


@dataclass(frozen=True, slots=True)
class Flip:
    """Mirror each image (B, C, H, W), left to right and top to bottom, with these probabilities."""

    horizontal: float = 0.5
    vertical: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.horizontal <= 1 and 0 <= self.vertical <= 1):
            raise ConfigError(f"flip has the probabilities {self.horizontal} and {self.vertical}")

    def __call__(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        rng = _generator(rng, self)
        flipped = _images(x).copy()
        for axis, probability in ((-1, self.horizontal), (-2, self.vertical)):
            chosen = rng.random(len(x)) < probability
            flipped[chosen] = np.flip(flipped[chosen], axis)
        return flipped


@dataclass(frozen=True, slots=True)
class Crop:
    """Shift each image (B, C, H, W) by up to `padding` pixels each way; zeros come in at the edges."""

    padding: int = 4

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ConfigError(f"crop.padding = {self.padding}: must be >= 0")

    def __call__(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        rng = _generator(rng, self)
        height, width = _images(x).shape[-2:]
        pad = self.padding
        padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        cropped = np.empty_like(x)
        for row, (top, left) in enumerate(rng.integers(0, 2 * pad + 1, (len(x), 2))):
            cropped[row] = padded[row, :, top : top + height, left : left + width]
        return cropped


@dataclass(frozen=True, slots=True)
class Noise:
    """Add N(0, std^2) to every element; float32."""

    std: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.std < math.inf:
            raise ConfigError(f"noise.std = {self.std}: must be >= 0")

    def __call__(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        noise = _generator(rng, self).standard_normal(x.shape, np.float32)
        noise *= np.float32(self.std)
        noise += x.astype(np.float32, copy=False)
        return noise


def _generator(rng: np.random.Generator | None, transform: object) -> np.random.Generator:
    if rng is None:
        raise ValueError(f"{type(transform).__name__} is random and needs Batches(rng=...)")
    return rng


def _images(x: Array) -> Array:
    if x.ndim != 4:
        raise ValueError(f"images are (B, C, H, W), this batch is {x.shape}")
    return x
