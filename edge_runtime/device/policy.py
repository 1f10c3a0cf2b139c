"""What a device's owner asks of the moment before the device trains, and whether it is such a moment."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edge_runtime.config import parse_bytes, text_bytes
from edge_runtime.device.probe import Readings
from edge_runtime.errors import ConfigError

DAY_MIN = 24 * 60
# After how many seconds it is worth asking again.
RETRY_MEMORY_S, RETRY_HEAT_S, RETRY_POWER_S, RETRY_NETWORK_S = 60.0, 120.0, 300.0, 300.0
_SPAN = re.compile(r"(\d{1,2})(?::(\d{2}))?\s*-\s*(\d{1,2})(?::(\d{2}))?")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a device may train now; if not, why, and in how many seconds to ask again."""

    eligible: bool = True
    why_not: str = ""
    retry_s: float | None = None


@dataclass(frozen=True, slots=True)
class Hours:
    """A part of the day, in minutes after midnight; one that ends before it begins goes on past midnight."""

    begin: int
    end: int

    def wait_min(self, minute: float) -> float:
        """How long until it begins; 0 within it."""
        into = (minute - self.begin) % DAY_MIN
        return 0.0 if into < ((self.end - self.begin) % DAY_MIN or DAY_MIN) else DAY_MIN - into


@dataclass(frozen=True, slots=True)
class Policy:
    """The owner's conditions. What a condition asks about and the device can't tell counts as not met.

    `max_temperature` is in degrees Celsius (0: any), `min_memory` the bytes that the system must have left (0: any),
    `hours` the parts of the day, by the device's own clock, in which it may train (none: all).
    """

    only_on_mains: bool = False
    not_metered: bool = False
    max_temperature: float = 0.0
    min_memory: int = 0
    hours: tuple[Hours, ...] = ()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "node config") -> Policy:
        """Of the keys `only-on-mains`, `not-metered`, `max-temperature`, `min-memory` ("64 MiB") and `hours` ("22-6").

        Raises:
            ConfigError: one of them is of another type, or out of range; other keys are left alone.

        """
        hottest = values.get("max-temperature", 0)
        if type(hottest) not in (int, float) or not 0 <= hottest <= 150:
            raise ConfigError(f"{where}: max-temperature = {hottest!r}: must be degrees Celsius up to 150, 0 for any")
        return cls(
            only_on_mains=_flag(values, "only-on-mains", where),
            not_metered=_flag(values, "not-metered", where),
            max_temperature=float(hottest),
            min_memory=parse_bytes(str(values.get("min-memory", "")) or None, f"{where}: min-memory"),
            hours=parse_hours(str(values.get("hours", "")), f"{where}: hours"),
        )

    def judge(self, now: Readings, minute: float) -> Verdict:
        """At that minute after midnight. Of several reasons the one that lasts longest is told."""
        reasons = list(self._against(now, minute))
        if not reasons:
            return Verdict()
        retry_s, why_not = max(reasons)
        return Verdict(False, why_not, retry_s)

    def _against(self, now: Readings, minute: float) -> Iterator[tuple[float, str]]:
        if self.hours and (wait := min(hours.wait_min(minute) for hours in self.hours)):
            yield math.ceil(wait * 60), "out of its hours"
        if self.only_on_mains and now.power != "mains":
            yield RETRY_POWER_S, "on battery" if now.power else "cannot tell its power supply"
        if self.not_metered and now.metered:
            yield RETRY_NETWORK_S, "on a metered network"
        if limit := self.max_temperature:
            if now.temperature_c is None:
                yield RETRY_HEAT_S, "cannot tell its temperature"
            elif now.temperature_c > limit:
                yield RETRY_HEAT_S, f"too hot: {now.temperature_c:.0f} C, at most {limit:g}"
        if least := self.min_memory:
            if now.memory_available is None:
                yield RETRY_MEMORY_S, "cannot tell its free memory"
            elif now.memory_available < least:
                free = text_bytes(now.memory_available)
                yield RETRY_MEMORY_S, f"too little memory: {free} free, at least {text_bytes(least)}"


def parse_hours(text: str, what: str = "hours") -> tuple[Hours, ...]:
    """Parts of the day, joined by commas.

    >>> parse_hours("22-6, 12:30-13")
    (Hours(begin=1320, end=360), Hours(begin=750, end=780))

    Raises:
        ConfigError: it says no hours.

    """
    spans = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = _SPAN.fullmatch(part)
        begin, end = (60 * int(found[at]) + int(found[at + 1] or 0) for at in (1, 3)) if found else (-1, -1)
        if not (0 <= begin <= DAY_MIN and 0 <= end <= DAY_MIN):
            raise ConfigError(f"{what} = {text!r}: must be parts of the day, such as '22-6' or '12:30-13, 22-6'")
        spans.append(Hours(begin % DAY_MIN, end % DAY_MIN))
    return tuple(spans)


def _flag(values: Mapping[str, Any], name: str, where: str) -> bool:
    value = values.get(name, False)
    if type(value) is not bool:
        raise ConfigError(f"{where}: {name} = {value!r}: must be true or false")
    return value
