"""What a round of secure aggregation is agreed on, and what a client asks of it before it takes part.

`Config` is chosen by the operator; `RoundConfig` is a Config made for one round, with canonical bytes whose hash every
signature and every ciphertext of that round is bound to; `Policy` is the client's own floor, which no server can lower.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.secagg.lanes import Lanes
from edge_runtime.secagg.masks import PRGS

VERSION = 1
MAX_CLIENTS = 65_535  # as many as GF(2^16) has shares
MAX_VALUES = 2**31
MAX_BITS = 32
TEXT_BYTES = 256  # of one text or bytes field of a Config
HASH_BYTES = 32
NO_MODEL = bytes(HASH_BYTES)

# the numbers of a round in their order on the wire; the texts follow, each with its length
_NUMBERS = struct.Struct("<BQIIQBIIIIqqBBI")
_SETTINGS = (
    "bits", "threshold", "neighbours", "min_clients", "min_survivors", "max_abs", "max_weight", "wrap", "consistency",
    "deadline_ms",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of secure aggregation that do not change from round to round.

    bits: of one lane; values are signed and summed modulo 2^bits.
    threshold: how many clients together can rebuild a secret of one client, itself counted in.
    neighbours: masks and shares go to so many other clients; 0 = to all (needed up to about 200 clients).
    min_clients, min_survivors: the round ends without a sum below them.
    max_abs: largest magnitude of one value; 0 = whatever cannot wrap with all clients at their largest.
    max_weight: 0 = no weights; else each client's values are multiplied by its weight, at most this.
    wrap: sums may wrap modulo 2^bits (noise is planned for it); else a config whose sums could wrap is refused.
    consistency: survivors sign who survived before any secret is revealed.
    clip, noise, encoding: what the encoder was told; only bound into the round, not used here.
    """

    bits: int = 16
    threshold: int = 2
    neighbours: int = 0
    min_clients: int = 2
    min_survivors: int = 0
    max_abs: int = 0
    max_weight: int = 0
    wrap: bool = False
    consistency: bool = True
    deadline_ms: int = 0
    prg: str = "chacha20"
    clip: str = ""
    noise: str = ""
    encoding: bytes = b""

    def __post_init__(self) -> None:
        bounds = {
            "bits": (2, MAX_BITS),
            "threshold": (1, MAX_CLIENTS),
            "neighbours": (0, MAX_CLIENTS),
            "min_clients": (2, MAX_CLIENTS),
            "min_survivors": (0, MAX_CLIENTS),
            "max_abs": (0, 2**31),
            "max_weight": (0, 2**31),
            "deadline_ms": (0, 2**32 - 1),
        }
        _check_numbers(self, bounds)
        if self.neighbours % 2:
            raise ConfigError(f"secagg neighbours = {self.neighbours}: must be even (half on each side), or 0 for all")
        if self.prg not in PRGS:
            raise ConfigError(f"secagg prg = {self.prg!r}: must be one of {', '.join(PRGS)}")
        for name in ("clip", "noise", "encoding"):
            value = getattr(self, name)
            raw = value.encode() if isinstance(value, str) else value
            if len(raw) > TEXT_BYTES:
                raise ConfigError(f"secagg {name} takes {len(raw)} bytes: at most {TEXT_BYTES}")

    def for_round(
        self, *, run: int, round_number: int, clients: int, count: int, model_hash: bytes = NO_MODEL
    ) -> RoundConfig:
        """The settings of one round of a cohort of `clients` that each hold `count` values.

        Raises:
            ConfigError: out of range, or sums could wrap.

        """
        return RoundConfig(self, run, round_number, clients, count, model_hash)


@dataclass(frozen=True)
class RoundConfig:
    """One round's public settings. Two rounds with the same `digest` are the same round."""

    settings: Config
    run: int
    round: int
    clients: int
    count: int
    model_hash: bytes = NO_MODEL
    lanes: Lanes = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        bounds = {
            "run": (0, 2**64 - 1),
            "round": (0, 2**32 - 1),
            "clients": (2, MAX_CLIENTS),
            "count": (1, MAX_VALUES),
        }
        _check_numbers(self, bounds)
        if len(self.model_hash) != HASH_BYTES:
            raise ConfigError(f"secagg model_hash has {len(self.model_hash)} bytes: must have {HASH_BYTES}")
        if self.max_abs == 0 or (not self.settings.wrap and not self.cannot_wrap):
            raise ConfigError(
                f"secagg bits = {self.settings.bits}: sums of {self.clients} clients with max_abs "
                f"{self.settings.max_abs or 1} and weights up to {self.max_weight} pass 2^{self.settings.bits - 1}; "
                "take more bits, a smaller max_abs or max_weight, or wrap=True if the noise plans for it"
            )
        object.__setattr__(self, "lanes", Lanes(self.settings.bits, self.count + bool(self.settings.max_weight)))

    @property
    def max_weight(self) -> int:
        """The largest factor of a value; 1 without weights."""
        return max(1, self.settings.max_weight)

    @property
    def max_abs(self) -> int:
        """The largest magnitude of one value before its weight."""
        return self.settings.max_abs or self._largest_sum // (self.clients * self.max_weight)

    @property
    def _largest_sum(self) -> int:
        return (1 << self.settings.bits - 1) - 1

    @property
    def cannot_wrap(self) -> bool:
        """Whether the sum is right with every client at its largest value and weight."""
        return self.clients * self.max_abs * self.max_weight <= self._largest_sum

    @property
    def fewest_survivors(self) -> int:
        """Below so many masked inputs no secret is revealed."""
        return max(self.settings.threshold, self.settings.min_clients, self.settings.min_survivors)

    def degree(self, present: int) -> int:
        """Neighbours of each of `present` clients."""
        others = present - 1
        return self.settings.neighbours if 0 < self.settings.neighbours < others else others

    @cached_property
    def canonical(self) -> bytes:
        """The one encoding of this round: equal settings have equal bytes."""
        s = self.settings
        numbers = _NUMBERS.pack(
            VERSION, self.run, self.round, self.clients, self.count, *(getattr(s, name) for name in _SETTINGS)
        )
        texts = (s.prg.encode(), s.clip.encode(), s.noise.encode(), s.encoding)
        return numbers + self.model_hash + b"".join(struct.pack("<H", len(text)) + text for text in texts)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of a label and the canonical bytes."""
        return hashlib.sha256(b"hedgerow secagg config" + self.canonical).digest()

    @classmethod
    def parse(cls, data: bytes) -> RoundConfig:
        """The round these bytes mean.

        Raises:
            PeerError: malformed, of another version, out of range, or not the canonical bytes.

        """
        try:
            numbers = _NUMBERS.unpack_from(data)
            version, run, round_number, clients, count, *settings = numbers
            if version != VERSION:
                raise PeerError(f"round config of version {version}; this side speaks {VERSION}")
            at = _NUMBERS.size + HASH_BYTES
            texts = []
            for _ in range(4):
                (length,) = struct.unpack_from("<H", data, at)
                texts.append(data[at + 2 : at + 2 + min(length, TEXT_BYTES)])
                at += 2 + length
            prg, clip, noise = (text.decode() for text in texts[:3])
            chosen = dict(zip(_SETTINGS, settings, strict=True))
            chosen |= {"wrap": bool(chosen["wrap"]), "consistency": bool(chosen["consistency"])}
            config = Config(**chosen, prg=prg, clip=clip, noise=noise, encoding=texts[3])
            parsed = cls(config, run, round_number, clients, count, data[_NUMBERS.size : _NUMBERS.size + HASH_BYTES])
        except (struct.error, UnicodeDecodeError, ConfigError) as error:
            raise PeerError(f"round config: {error}") from None
        if parsed.canonical != data:
            raise PeerError(f"round config of {len(data)} bytes is not in its canonical form")
        return parsed


@dataclass(frozen=True, slots=True)
class Policy:
    """The least a client asks of a round, kept on the device. Empty or None fields ask nothing.

    spare: how many of those who hold shares of a client, itself counted in, may drop when all that are invited come.
    corrupt: how many other clients of the cohort may work for the server; fewer than `threshold` of them can't
        rebuild a secret, and a sum has at least one more honest client in it than this one. With fewer neighbours
        than the cohort has clients: how many of one client's neighbours (`graph.corrupt_neighbours`), and `min_clients`
        keeps the cohort large.
    malicious_server: also ask for the consistency phase and 2 threshold > sharers + corrupt, so that no two answers
        to different survivor lists can both reach the threshold. At most about a third of the cohort may then drop.
    """

    min_threshold: int = 2
    min_clients: int = 3
    spare: int = 1
    corrupt: int = 0
    malicious_server: bool = False
    bits: frozenset[int] = frozenset()
    prgs: frozenset[str] = frozenset()
    max_clip: float | None = None
    noise: frozenset[str] = frozenset()
    max_values: int = 2**28

    @property
    def floor(self) -> int:
        """The fewest clients of a sum. Two honest ones at least: the corrupt ones know their own part of it."""
        return max(self.min_clients, self.corrupt + 2)

    def check_config(self, config: RoundConfig) -> None:
        """Refuse settings below this floor.

        Raises:
            PeerError: names the setting and the floor.

        """
        s = config.settings
        if s.threshold < self.min_threshold:
            raise PeerError(f"threshold {s.threshold} is below this client's floor of {self.min_threshold}")
        if s.threshold <= self.corrupt:
            raise PeerError(f"threshold {s.threshold} must be above the {self.corrupt} clients that may be corrupt")
        if min(config.clients, s.min_clients) < self.floor:
            raise PeerError(
                f"a cohort of {config.clients}, at least {s.min_clients}, is below this client's floor of "
                f"{self.floor} clients"
            )
        if config.count > self.max_values:
            raise PeerError(f"{config.count} values are more than this client's {self.max_values}")
        choices = {"bits": (s.bits, self.bits), "prg": (s.prg, self.prgs), "noise": (s.noise, self.noise)}
        for name, (value, allowed) in choices.items():
            if allowed and value not in allowed:
                raise PeerError(f"{name} {value!r} is none that this client accepts: {sorted(map(str, allowed))}")
        if self.max_clip is not None and not _at_most(s.clip, self.max_clip):
            raise PeerError(f"clip {s.clip!r} is not a number up to this client's {self.max_clip:g}")
        degree = config.degree(config.clients)
        if s.threshold > degree + 1 - self.spare:
            raise PeerError(
                f"threshold {s.threshold} is above the {degree} neighbours that hold shares: no drop allowed"
            )
        self.check_degree(config, degree)

    def check_degree(self, config: RoundConfig, degree: int) -> None:
        """Refuse a threshold that `degree` neighbours can't meet, or under which two quorums could disagree.

        Raises:
            PeerError: names the threshold and what it must be.

        """
        threshold = config.settings.threshold
        if threshold > degree + 1:
            raise PeerError(f"threshold {threshold} is above the {degree} neighbours that hold shares, and the client")
        if not self.malicious_server:
            return
        if not config.settings.consistency:
            raise PeerError("this client asks for the consistency phase, and the round has none")
        if 2 * threshold <= degree + 1 + self.corrupt:
            raise PeerError(
                f"threshold {threshold} lets two quorums of {degree + 1} sharers disagree; this client asks for more "
                f"than {(degree + 1 + self.corrupt) // 2}"
            )


# The loosest policy: whatever the operator of a simulation chose.
ANY_POLICY = replace(Policy(), min_threshold=1, min_clients=2, spare=0, max_values=MAX_VALUES)


def _check_numbers(settings: Config | RoundConfig, bounds: Mapping[str, tuple[int, int]]) -> None:
    for name, (low, high) in bounds.items():
        value = getattr(settings, name)
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(f"secagg {name} = {value!r}: must be a whole number >= {low} and <= {high}")


def _at_most(text: str, limit: float) -> bool:
    try:
        return 0 < float(text) <= limit
    except ValueError:
        return False
