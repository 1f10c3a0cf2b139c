"""What a device says of itself with every answer, and how the other side reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from edge_runtime.errors import PeerError

RECORD = "device"  # the Flower ConfigRecord that holds it
MAX_NAME, MAX_WORD, MAX_REASON = 64, 32, 200
MAX_BYTES = 1 << 50
COLDEST, HOTTEST = -100.0, 250.0  # degrees Celsius
MAX_RETRY_S = 7 * 86_400.0
POWER = ("", "mains", "battery")


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """A device as it was when it answered. What it can't tell is None, or empty.

    Sizes are in bytes: `memory_budget` is what its owner allows to training, `memory_available` what the system has
    left, `rss` and `rss_peak` what the process takes and has taken. `throttled` and `under_voltage` are of this moment.
    `retry_s` is in how many seconds a device that is not `eligible` may be asked again.
    """

    name: str = ""
    version: str = ""
    arch: str = ""
    isa: str = ""
    memory_budget: int | None = None
    memory_available: int | None = None
    rss: int | None = None
    rss_peak: int | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    under_voltage: bool | None = None
    power: str = ""
    metered: bool | None = None
    eligible: bool = True
    why_not: str = ""
    retry_s: float | None = None

    def record(self) -> dict[str, int | float | str | bool]:
        """As flat fields, without those that are not known. What was found is cut to what `parse_report` takes."""
        bounded = {name: _FIELDS[name].bounded(value) for name, value in asdict(self).items() if value is not None}
        return {name: value for name, value in bounded.items() if value not in ("", None)}

    def as_json(self) -> dict[str, Any]:
        """All fields, unknown ones too."""
        return asdict(self)

    def without_use(self) -> DeviceReport:
        """Without what training took, from which the size of a device's data might be told."""
        return replace(self, memory_available=None, rss=None, rss_peak=None)


def parse_report(record: Mapping[str, object]) -> DeviceReport:
    """Read `DeviceReport.record`'s fields; fields of other names are a later release's, and left alone.

    Raises:
        PeerError: one is of another type, out of range, too long, or not printable.

    """
    read: dict[str, Any] = {}
    for name, field in _FIELDS.items():
        if name not in record:
            continue
        value = record[name]
        if not field.admits(value):
            said = str(value) if type(value) in (int, float, bool) else type(value).__name__
            raise PeerError(f"device report: {name} = {said[:80]}: must be {field.text}")
        read[name] = value
    return DeviceReport(**read)


@dataclass(frozen=True, slots=True)
class _Field:
    """What a field may be, in words too; and what a device makes of a value that it found."""

    text: str
    admits: Callable[[object], bool]
    bounded: Callable[[Any], Any]


def _text(most: int) -> _Field:
    return _Field(
        f"printable text of at most {most} letters",
        lambda value: type(value) is str and len(value) <= most and value.isprintable(),
        lambda value: one_line(str(value), most),
    )


def _number(kind: type[int] | type[float], low: float, high: float) -> _Field:
    """A value out of range is none: a sensor that says -274 degrees says nothing."""

    def admits(value: object) -> bool:
        return type(value) is kind and math.isfinite(value) and low <= value <= high

    def bounded(value: Any) -> Any:
        found = kind(value) if math.isfinite(value) else value
        return found if admits(found) else None

    return _Field(f"{'a whole number' if kind is int else 'a number'} from {low:g} to {high:g}", admits, bounded)


def one_line(text: str, most: int = MAX_REASON) -> str:
    """The text as one printable line of at most so many letters."""
    letters = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * most])
    return " ".join(letters.split())[:most].rstrip()


_FLAG = _Field("true or false", lambda value: type(value) is bool, bool)
_SIZE = _number(int, 0, MAX_BYTES)
_POWER = _Field("mains or battery", POWER.__contains__, lambda value: value if value in POWER else "")

_FIELDS: Mapping[str, _Field] = {
    "name": _text(MAX_NAME),
    "version": _text(MAX_WORD),
    "arch": _text(MAX_WORD),
    "isa": _text(MAX_WORD),
    "memory_budget": _SIZE,
    "memory_available": _SIZE,
    "rss": _SIZE,
    "rss_peak": _SIZE,
    "temperature_c": _number(float, COLDEST, HOTTEST),
    "throttled": _FLAG,
    "under_voltage": _FLAG,
    "power": _POWER,
    "metered": _FLAG,
    "eligible": _FLAG,
    "why_not": _text(MAX_REASON),
    "retry_s": _number(float, 0, MAX_RETRY_S),
}
assert list(_FIELDS) == [field.name for field in fields(DeviceReport)]
