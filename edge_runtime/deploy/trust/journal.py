"""What happened to a device's models: one JSON line an event, the newest last."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

JOURNAL, OLD_JOURNAL = "journal.jsonl", "journal.1.jsonl"
MAX_BYTES = 1 << 18


def append_event(folder: Path, time_s: float, event: str, **about: Any) -> None:
    """Add a line. A full disk loses the line, never the roll-back that it tells of."""
    line = json.dumps({"time": int(time_s), "event": event, **about}, sort_keys=True) + "\n"
    path = folder / JOURNAL
    with suppress(OSError):
        if path.exists() and path.stat().st_size > MAX_BYTES:
            path.replace(folder / OLD_JOURNAL)
        with path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events kept, the newest last; a line that a power loss cut is left out."""
    events = []
    for name in (OLD_JOURNAL, JOURNAL):
        with suppress(OSError):
            for line in (folder / name).read_text("utf-8", "replace").splitlines():
                with suppress(ValueError):
                    event = json.loads(line)
                    events += [event] if isinstance(event, dict) else []
    return events
