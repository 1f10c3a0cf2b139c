"""Which slot runs, and what the device will never go below: one small file, replaced in one move."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from edge_runtime.errors import ArtefactError
from edge_runtime.files import write_atomically

STATE = "state.json"
_MAX_BYTES = 4096


class Trust(Enum):
    """How far the current slot has come."""

    SWITCHED = "switched"  # not yet tested where it stands
    ON_TRIAL = "on trial"  # works; its health window is open
    CONFIRMED = "confirmed"


@dataclass(frozen=True, slots=True)
class State:
    """`floor` and `serial` are the highest version and release key serial seen; `time_s` the latest signed time."""

    current: str | None = None
    previous: str | None = None
    trust: Trust = Trust.CONFIRMED
    starts: int = 0
    floor: int = 0
    serial: int = 0
    time_s: int = 0

    @property
    def named(self) -> set[str]:
        """The slots that must stay."""
        return {name for name in (self.current, self.previous) if name}


def read_state(path: Path) -> State:
    """The state of that file, or a new device's if there is none.

    Raises:
        ArtefactError: it is damaged.

    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return State()
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return _state(json.loads(content))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ArtefactError(f"{path}: is damaged; remove the folder {path.parent} and install again") from error


def write_state(path: Path, state: State) -> None:
    """Replace it. After a power loss it is the old one or the new one."""
    content = json.dumps(asdict(state) | {"trust": state.trust.value}, sort_keys=True) + "\n"
    write_atomically(path, [content.encode()])


def _state(values: Mapping[str, Any]) -> State:
    if values.keys() != {field.name for field in fields(State)}:
        raise ValueError("has other fields")
    names = [values["current"], values["previous"]]
    numbers = [values[name] for name in ("starts", "floor", "serial", "time_s")]
    if any(name is not None and (type(name) is not str or "/" in name or name in ("", ".", "..")) for name in names):
        raise ValueError("names no slot")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("counts must be whole numbers")
    return State(**{**values, "trust": Trust(values["trust"])})


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of that file; the kernel lets go of it when the process ends, however it ends.

    Raises:
        ArtefactError: another process holds it, and `wait` is false.

    """
    import fcntl

    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ArtefactError(f"{path.parent}: another installer is at work here") from None
        yield
