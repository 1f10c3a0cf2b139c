"""Settings as frozen dataclasses, read from flat `{"section.key": value}` mappings and checked key by key.

A scenario file, a Flower run config and a round's task message all carry the same flat keys; this is the one
reader for them. A field's bounds stand on the field (`key(32, low=1)`), so the error can quote them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, TypeVar

from edge_runtime.errors import ConfigError

Scalar = bool | int | float | str
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a value may be: a closed range (or open below, with `above`), or a fixed list of words."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Callable[[], Sequence[str]] | None = None

    def admits(self, value: Any) -> bool:
        if self.choices is not None:
            return value in self.choices()
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def text(self) -> str:
        if self.choices is not None:
            return "one of " + ", ".join(word or '""' for word in self.choices())
        parts = [
            f"{sign} {int(limit) if float(limit).is_integer() else limit}"
            for sign, limit in ((">=", self.low), (">", self.above), ("<=", self.high), ("<", self.below))
            if limit is not None
        ]
        return " and ".join(parts)


def key(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | Callable[[], Sequence[str]] | None = None,
) -> Any:
    """A config field with its default and what it may be."""
    words = choices if callable(choices) or choices is None else (lambda: choices)
    return field(default=default, metadata={"bounds": Bounds(low, high, above, below, words)})


def section(cls: type[T]) -> T:
    """A field that holds a nested config section; its keys are prefixed with the field's name and a dot."""
    return field(default_factory=cls)


def flatten(config: Any, prefix: str = "") -> dict[str, Scalar]:
    """`{"train.lr": 0.1, ...}` of a config dataclass; the inverse of `from_flat`. Word lists are joined by commas."""
    flat: dict[str, Scalar] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = ",".join(value) if isinstance(value, tuple) else value
    return flat


def flatten_tree(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables, as TOML gives them, to dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        table = isinstance(value, Mapping) and value  # an empty table stays, for `from_flat` to know its name or not
        flat |= flatten_tree(value, f"{prefix}{name}.") if table else {prefix + name: value}
    return flat


def from_flat(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build the config dataclass `cls` from dotted keys.

    Raises:
        ConfigError: a key is unknown, of the wrong type or out of bounds. The text gives key, value and range.

    """
    known = list(_keys(cls))
    for name in values:
        if name not in known:
            if any(other.startswith(f"{name}.") for other in known):
                if values[name] == {}:
                    continue
                raise ConfigError(
                    f"{name} = {_shown(values[name])}: is a table; give its keys, such as {name}.KEY = VALUE"
                )
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else "known sections: " + ", ".join(_sections(known))
            raise ConfigError(f"{name} = {values[name]!r}: no such key; {hint}")
    return _build(cls, values, "")


def pick(cls: type[T], values: Mapping[str, Any]) -> T:
    """`from_flat`, but keys that `cls` does not know are left alone: a mapping may serve several readers."""
    known = set(_keys(cls))
    return from_flat(cls, {name: value for name, value in values.items() if name in known})


def check(config: Any) -> None:
    """For a `__post_init__`: puts each field in its own type, or ConfigError, as `from_flat` does."""
    hints = _hints(typing.cast(Any, type(config)))
    for item in dataclasses.fields(config):
        bounds = item.metadata.get("bounds", Bounds())
        object.__setattr__(config, item.name, _checked(item.name, getattr(config, item.name), hints[item.name], bounds))


@cache
def _hints(cls: Any) -> dict[str, Any]:
    """A config class's field types; cached, because a client reads its task in every round."""
    return typing.get_type_hints(cls)


def _keys(cls: type) -> typing.Iterator[str]:
    hints = _hints(cls)
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from (f"{item.name}.{inner}" for inner in _keys(typing.cast(type, hints[item.name])))
        else:
            yield item.name


def _sections(known: Sequence[str]) -> list[str]:
    return sorted({name.partition(".")[0] for name in known})


def _build(cls: type[T], values: Mapping[str, Any], prefix: str) -> T:
    hints = _hints(typing.cast(Any, cls))
    fields: dict[str, Any] = {}
    for item in dataclasses.fields(typing.cast(Any, cls)):
        name, hint = prefix + item.name, hints[item.name]
        if dataclasses.is_dataclass(hint):
            fields[item.name] = _build(typing.cast(type, hint), values, name + ".")
        elif name in values:
            fields[item.name] = _checked(name, values[name], hint, item.metadata.get("bounds", Bounds()))
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{name} is missing; give it a value ({_type_text(hint)})")
    return cls(**fields)


def _checked(name: str, value: Any, hint: Any, bounds: Bounds) -> Any:
    """The value in the field's own type, or ConfigError."""
    words = typing.get_origin(hint) is tuple
    if words and isinstance(value, str):
        value = tuple(word.strip() for word in value.split(",") if word.strip())
    elif words and isinstance(value, list):
        value = tuple(value)
    elif hint is float and type(value) is int:
        value = _float(value)

    right_type = all(type(word) is str for word in value) if words and type(value) is tuple else type(value) is hint
    admitted = right_type and (all(map(bounds.admits, value)) if words else bounds.admits(value))
    if not admitted:
        allowed = " ".join(filter(None, (_type_text(hint), bounds.text())))
        raise ConfigError(f"{name} = {_shown(value)}: must be {allowed}")
    return value


def _float(value: int) -> float | int:
    """The whole number as a float; as it is, for the type check to refuse, when no float is that large."""
    try:
        return float(value)
    except OverflowError:
        return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _type_text(hint: Any) -> str:
    if isinstance(hint, types.GenericAlias):
        return "a list of words, each"
    return {int: "a whole number", float: "a finite number", bool: "true or false", str: "text,"}.get(hint, str(hint))


def names_that_fit(patterns: Sequence[str] | str, known: Sequence[str], what: str = "trainable") -> set[str]:
    """The parameters among `known` that `trainable`, or the key `what`, means: names, or patterns with `*`.

    >>> sorted(names_that_fit(["*.bias", "a.weight"], ["a.weight", "a.bias", "b.weight", "b.bias"]))
    ['a.bias', 'a.weight', 'b.bias']
    """
    wanted: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fitting = [name for name in known if fnmatchcase(name, pattern)]
        if not fitting:
            raise ConfigError(f"{what} = {pattern!r}: fits no parameter; there are {', '.join(known)}")
        wanted.update(fitting)
    return wanted


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def parse_bytes(budget: int | str | None, what: str = "memory_budget") -> int:
    """A budget in bytes; 0 for None. `what` it is a budget of, for the error.

    >>> parse_bytes("8 MiB"), parse_bytes("40 MB"), parse_bytes(1000), parse_bytes(None)
    (8388608, 40000000, 1000, 0)
    """
    if budget is None:
        return 0
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(budget))
    if not found or found[2].lower() not in _UNITS or float(found[1]) * _UNITS[found[2].lower()] < 1:
        raise ConfigError(f"{what} = {budget!r}: must be bytes, or a text such as '8 MiB' or '40 MB'")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def text_bytes(nbytes: int, digits: int = 1) -> str:
    """Bytes in the largest binary unit of which there is one.

    >>> text_bytes(1536), text_bytes(100)
    ('1.5 KiB', '100 bytes')
    """
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= size:
            return f"{nbytes / size:.{digits}f} {unit}"
    return f"{nbytes} bytes"
