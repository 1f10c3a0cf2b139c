r"""From an update to whole numbers that a sum of clients may be made of, and back from the sum.

    clip -> rotate -> keep shared coordinates -> scale -> round at random -> append the vote -> add the noise share

What is public is equal for all clients of a round, and nothing of it depends on a client's data: so the sum of encoded
vectors means the sum of updates, and can be taken under masks. With noise the order is what privacy rests on: whatever
x is, the vector is at most `l2` long when the noise, a whole number too, is added.

`pack` writes, little-endian:

    offset  bytes  field
    0       1      version, 1
    1       8      size
    9       8 + 8  clip, scale: float64
    25      8      seed
    33      8      value_max
    41      8      fraction: float64
    49      8      vote
    57      1 + n  noise kind in ASCII, after its length; empty without noise
    ...     1 + n  noise parameter, likewise
"""

from __future__ import annotations

import math
import struct
import sys
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.privacy.clipping import LARGEST, clip_by_norm, conditional_round, is_within, l1_bound, l2_bound
from edge_runtime.privacy.ledger import SHARES
from edge_runtime.privacy.noise import table
from edge_runtime.privacy.pmf import exact_parameter
from edge_runtime.secagg.plan import MAX_SIZE, kept_count, padded_size
from edge_runtime.sums.rotation import Rotation

Vector = NDArray[np.float64]
Values = NDArray[np.int64]

VERSION = 1
_FIXED = struct.Struct("<BQddQQdQ")
_WHOLE = {"size": (1, MAX_SIZE), "seed": (0, 2**64 - 1), "value_max": (0, 2**31), "vote": (0, 2**31)}
_MOST = sys.float_info.max
_ABOVE = 1 + 2.0**-50  # more than what float rounding takes off a bound


@dataclass(frozen=True, slots=True)
class NoiseShare:
    """One client's noise in every value: a row of `privacy.noise`, and its sigma or mu as exact decimal text."""

    kind: str
    parameter: str

    def __post_init__(self) -> None:
        if self.kind not in SHARES:
            raise ConfigError(f"noise share {self.kind!r}: must be one of {', '.join(SHARES)}")
        if not self.parameter.isascii():
            raise ConfigError(f"noise share {self.parameter!r}: must be a decimal number in ASCII")
        exact_parameter(self.kind, self.parameter)


@dataclass(frozen=True)
class SumEncoder:
    """How a client's update becomes whole numbers; equal for all clients of a round, and public.

    size: values of the update.
    clip: of its L2 norm.
    scale: whole numbers per unit.
    seed: of this round's rotation and of the coordinates that travel; 64 bits.
    value_max: rounded values are cut to +-value_max; 0 = rounded within `l2` instead, as noise needs it.
    fraction: share of the rotated coordinates that travel.
    vote: one more value of +-vote says whether the norm was within the clip (privacy.AdaptiveClip); 0 = none.
    noise: this client's share of the sum's noise.
    """

    size: int
    clip: float
    scale: float
    seed: int
    value_max: int = 0
    fraction: float = 1.0
    vote: int = 0
    noise: NoiseShare | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _WHOLE.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ConfigError(f"sum encoder {name} = {value!r}: must be a whole number >= {low} and <= {high}")
        for name in ("clip", "scale", "fraction"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value <= _MOST:
                raise ConfigError(f"sum encoder {name} = {value!r}: must be a finite number > 0")
            object.__setattr__(self, name, float(value))
        if self.fraction > 1:
            raise ConfigError(f"sum encoder fraction = {self.fraction}: must be > 0 and <= 1")
        if not 0 < self.clip * self.scale <= LARGEST:
            raise ConfigError(
                f"sum encoder scale * clip = {self.scale * self.clip}: must be above 0 and at most 2^30; "
                "lower the scale"
            )
        if self.noise and self.value_max:
            raise ConfigError(
                f"sum encoder value_max = {self.value_max}: values under noise are not cut but bounded together; "
                "take value_max = 0"
            )

    @property
    def padded(self) -> int:
        """Coordinates of the rotated update: whole blocks."""
        return padded_size(self.size)

    @property
    def kept(self) -> int:
        """Coordinates that travel."""
        return kept_count(self.size, self.fraction)

    @property
    def count(self) -> int:
        """Values of an encoded vector."""
        return self.kept + bool(self.vote)

    @property
    def kept_clip(self) -> float:
        """The clip of the coordinates that travel, so that noise need not cover the length that stays behind.

        A share p of k rotated coordinates has the length sqrt(p) |x| (1 +- sqrt((1 - p) / 2k)), near enough; twice
        that deviation is let through, and the few vectors that pass it are shortened to it.
        """
        share = self.kept / self.padded
        return self.clip * min(1.0, math.sqrt(share) * (1 + math.sqrt(2 * (1 - share) / self.kept)))

    @property
    def l2(self) -> float:
        """No vector is longer than this before its noise, vote included."""
        values = self._l2_of_values
        return math.hypot(values, self.vote) * _ABOVE if self.vote else values

    @property
    def l1(self) -> float:
        """Nor do its magnitudes add up to more than this, vote included."""
        values = l1_bound(self._l2_of_values, self.kept)
        if self.value_max:
            values = min(values, float(self.kept * self.value_max))
        return (values + self.vote) * _ABOVE

    @property
    def _l2_of_values(self) -> float:
        if not self.value_max:
            return l2_bound(self.scale, self.kept_clip, self.kept)
        root = math.sqrt(self.kept)  # each value moves by less than 1 when it is rounded
        return min(self.scale * self.clip + root, self.value_max * root) * _ABOVE

    @cached_property
    def _rotation(self) -> Rotation:
        return Rotation(self.seed, self.size, self.kept)

    def encode(self, x: NDArray[np.floating], rng: np.random.Generator, noise_key: bytes | None = None) -> Values:
        """The whole numbers of an update of shape (size,), its noise share among them: int64 of shape (count,).

        Args:
            x: the update.
            rng: for the rounding alone; privacy rests on the bound and the noise.
            noise_key: 32 bytes from os.urandom, used once and told to nobody; needed where there is a noise share.

        Raises:
            NumericsError: x holds NaN or infinity.
            ConfigError: another shape, or no noise key where there is a noise share.

        """
        if x.shape != (self.size,):
            raise ConfigError(f"an update of shape {x.shape}: this round's encoder takes ({self.size},)")
        if self.noise and noise_key is None:
            raise ConfigError("noise_key is missing: this round's updates carry noise; give 32 bytes of os.urandom")
        y = self._rotation.apply(clip_by_norm(x, self.clip))
        values = np.empty(self.count, np.int64)
        if self.value_max:
            values[: self.kept] = np.clip(_rounded(y * self.scale, rng), -self.value_max, self.value_max)
        else:
            values[: self.kept] = conditional_round(y, self.scale, self.kept_clip, rng)
        if self.vote:
            values[self.kept] = self.vote if is_within(x, self.clip) else -self.vote
        if self.noise and noise_key is not None:
            values += table(self.noise.kind, self.noise.parameter).sample(self.count, noise_key)
        return values

    def decode(self, total: Values, clients: float) -> tuple[Vector, float | None]:
        """The mean update, shape (size,), of a sum of `clients` encoded vectors (or of their weights' sum).

        And the sum of the votes, each +1 or -1, with its noise; None where there are none.

        Raises:
            ConfigError: another shape, or no clients.

        """
        if total.shape != (self.count,):
            raise ConfigError(f"a sum of shape {total.shape}: this round's encoder makes ({self.count},)")
        if not 0 < clients < math.inf:
            raise ConfigError(f"clients = {clients}: a mean needs a number above 0")
        y = total[: self.kept] / (self.scale * (self.kept / self.padded) * clients)
        return self._rotation.undo(y), float(total[self.kept]) / self.vote if self.vote else None

    def pack(self) -> bytes:
        """At most 256 bytes; equal encoders have equal bytes."""
        noise = (self.noise.kind, self.noise.parameter) if self.noise else ("", "")
        texts = b"".join(bytes([len(text)]) + text.encode("ascii") for text in noise)
        numbers = (self.size, self.clip, self.scale, self.seed, self.value_max, self.fraction, self.vote)
        return _FIXED.pack(VERSION, *numbers) + texts

    @classmethod
    def parse(cls, data: bytes) -> SumEncoder:
        """The encoder that these bytes say. Allocates nothing by the sizes that they name.

        Raises:
            PeerError: malformed, of another version, out of range, or not the canonical bytes.

        """
        try:
            version, size, clip, scale, seed, value_max, fraction, vote = _FIXED.unpack_from(data)
            if version != VERSION:
                raise PeerError(f"sum encoder of version {version}; this side speaks {VERSION}")
            kind, at = _text(data, _FIXED.size)
            parameter, _ = _text(data, at)
            noise = NoiseShare(kind, parameter) if kind else None
            parsed = cls(size, clip, scale, seed, value_max, fraction, vote, noise)
        except (struct.error, IndexError, UnicodeDecodeError, ConfigError) as error:
            raise PeerError(f"sum encoder of {len(data)} bytes: {error}") from None
        if parsed.pack() != data:
            raise PeerError(f"sum encoder of {len(data)} bytes is not in its canonical form")
        return parsed


def _rounded(scaled: Vector, rng: np.random.Generator) -> Values:
    """Each value up or down to a whole number at random, so that its mean is the value."""
    below = np.floor(scaled)
    return (below + (rng.random(scaled.shape) < scaled - below)).astype(np.int64)


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + data[at]
    return data[at + 1 : end].decode("ascii"), end
