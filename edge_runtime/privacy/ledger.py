"""What was released, as frozen events in a ledger that only grows. Events say what happened; an accountant judges.

As text, one JSON object a line: {"event": name, fields..., "chain": c}, c = SHA-256 of the line before's c and this
line's event. So a changed, dropped or swapped line is found when the text is read; a cut end, when `digest` is at hand.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass
from typing import Any

from edge_runtime.config import check, from_flat, key
from edge_runtime.errors import ConfigError
from edge_runtime.privacy.pmf import exact_parameter

_START = hashlib.sha256(b"hedgerow privacy ledger 1").hexdigest()
_LONGEST_LINE = 4096  # characters


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """`rounds` sums over clients sampled independently with probability `sampling_rate`, under Gaussian noise.

    `noise_multiplier` is sigma over what one client can move the sum by (L2). The noise is `rounded_gaussian` on whole
    numbers: the Gaussian mechanism's output, rounded. Claim a rate below 1 only where the server does sample so.
    """

    noise_multiplier: float = key(MISSING, above=0)
    sampling_rate: float = key(MISSING, above=0, high=1)
    rounds: int = key(1, low=1)
    dimension: int = key(1, low=1)
    sample_variation: float = key(0.0, low=0, high=1)  # TableSampler.total_variation, of one value's noise

    def __post_init__(self) -> None:
        check(self)

    @property
    def variation(self) -> float:
        """Total variation between this event's outputs and those of exact noise: at most this."""
        return self.sample_variation * self.dimension * self.rounds


SHARES = ("discrete_gaussian", "skellam")  # noise in shares, of whose sum the privacy is known


@dataclass(frozen=True, slots=True)
class DistributedSum:
    """`rounds` sums of whole-number vectors to each of which its client added noise: `shares` noise shares in all.

    `noise` is one share's exact parameter: sigma of a discrete Gaussian, mu (the variance) of a Skellam. Count as
    shares those of clients whose vectors are in the sum, less the colluders assumed among them. `l2` and `l1` bound
    one vector.
    """

    mechanism: str = key(MISSING, choices=SHARES)
    noise: str = key(MISSING)
    shares: int = key(MISSING, low=1)
    l2: float = key(MISSING, above=0)
    l1: float = key(MISSING, above=0)
    dimension: int = key(MISSING, low=1)
    sampling_rate: float = key(1.0, above=0, high=1)
    rounds: int = key(1, low=1)
    sample_variation: float = key(0.0, low=0, high=1)

    def __post_init__(self) -> None:
        check(self)
        exact_parameter(self.mechanism, self.noise)

    @property
    def variation(self) -> float:
        return self.sample_variation * self.dimension * self.shares * self.rounds

    @property
    def variance(self) -> float:
        """Of the noise in one coordinate of one sum; a discrete Gaussian's own is a little below its sigma^2."""
        parameter = float(self.noise)
        return self.shares * (parameter**2 if self.mechanism == "discrete_gaussian" else parameter)


@dataclass(frozen=True, slots=True)
class MatrixMechanism:
    """A whole run of DP-FTRL: the sums of all `rounds` released under correlated Gaussian noise, as one release.

    The noise is `noise_multiplier` times the clip for each value of the encoded stream, and `sensitivity` how far one
    client, in all rounds that it may join, can move that stream (L2, in clips): `matrix.Strategy` gives both. No
    sampling is claimed, but that each client kept to the rounds that `sensitivity` was computed for.
    """

    noise_multiplier: float = key(MISSING, above=0)
    sensitivity: float = key(MISSING, above=0)
    rounds: int = key(MISSING, low=1)
    dimension: int = key(1, low=1)
    sample_variation: float = key(0.0, low=0, high=1)

    def __post_init__(self) -> None:
        check(self)

    @property
    def variation(self) -> float:
        return self.sample_variation * self.dimension * self.rounds


Event = SampledGaussian | DistributedSum | MatrixMechanism

EVENTS: Mapping[str, type[Event]] = {
    "sampled_gaussian": SampledGaussian,
    "distributed_sum": DistributedSum,
    "matrix_mechanism": MatrixMechanism,
}
_NAMES = {cls: name for name, cls in EVENTS.items()}


def event_to_json(event: Event) -> str:
    """One line, keys sorted; `event_from_json` gives back an equal event."""
    return json.dumps({"event": _NAMES[type(event)], **asdict(event)}, sort_keys=True, allow_nan=False)


def event_from_json(text: str) -> Event:
    """ConfigError if it is not one of `EVENTS` with its fields in their ranges."""
    return _event(_table(text))


@dataclass(frozen=True, slots=True)
class Ledger:
    """All events so far, oldest first. Frozen: `append` gives a longer ledger, nothing takes an event out."""

    events: tuple[Event, ...] = ()

    def append(self, event: Event) -> Ledger:
        return Ledger((*self.events, event))

    @property
    def variation(self) -> float:
        return math.fsum(event.variation for event in self.events)

    @property
    def digest(self) -> str:
        """The last line's chain value. Kept elsewhere, it shows that no line was cut off the end."""
        chain = _START
        for event in self.events:
            chain = _link(chain, event)
        return chain

    def to_json(self) -> str:
        """The ledger's text; a longer ledger's text starts with it."""
        lines, chain = [], _START
        for event in self.events:
            line, chain = next_line(chain, event)
            lines.append(line)
        return "".join(lines)

    @classmethod
    def from_json(cls, text: str, digest: str | None = None) -> Ledger:
        """The ledger that `to_json` wrote. ConfigError if a line was altered, or `digest` is given and not its own."""
        events: list[Event] = []
        chain = _START
        for number, line in enumerate(text.splitlines(), 1):
            try:
                fields = _table(line)
                stated = fields.pop("chain", None)
                event = _event(fields)
            except ConfigError as error:
                raise ConfigError(f"privacy ledger, line {number}: {error}") from None
            chain = _link(chain, event)
            if stated != chain:
                raise ConfigError(f"privacy ledger, line {number}: altered, or out of its place; restore the ledger")
            events.append(event)
        if digest is not None and digest != chain:
            raise ConfigError(f"privacy ledger, after line {len(events)}: lines are missing; restore the ledger")
        return cls(tuple(events))


def next_line(chain: str, event: Event) -> tuple[str, str]:
    """The line that `event` adds to the text of a ledger of digest `chain`, and the digest of the longer ledger."""
    chain = _link(chain, event)
    return json.dumps({**json.loads(event_to_json(event)), "chain": chain}, sort_keys=True) + "\n", chain


def _link(chain: str, event: Event) -> str:
    return hashlib.sha256(f"{chain} {event_to_json(event)}".encode()).hexdigest()


def _table(text: str) -> dict[str, Any]:
    if len(text) > _LONGEST_LINE:
        raise ConfigError(f"an event of {len(text)} characters; at most {_LONGEST_LINE} are read")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ConfigError(f"not a JSON object: {text[:40]!r}")
    return fields


def _event(fields: dict[str, Any]) -> Event:
    name = fields.pop("event", None)
    if not isinstance(name, str) or name not in EVENTS:
        raise ConfigError(f"event = {name!r}: must be one of {', '.join(EVENTS)}")
    return from_flat(EVENTS[name], fields)
