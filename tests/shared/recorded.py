"""Run directories as the server leaves them, written through its own run store: for tests of what reads them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from server.run_store import Checkpoint, RunStore, Sighting

SETTINGS: dict[str, Any] = {
    "seed": 1, "data.name": "digits", "data.clients": 12, "model.name": "digits_cnn", "train.epochs": 1,
    "server.rounds": 20, "server.cohort": 8, "server.strategy": "fedavg", "server.deadline_s": 60.0,
}  # fmt: skip
GIB = 1 << 30


class Recorded:
    """A run that is written event by event. While it is open, this process is the one that trains: it is running."""

    def __init__(
        self, directory: Path, settings: Mapping[str, Any] | None = None, warnings: Sequence[str] = ()
    ) -> None:
        self.store = RunStore(directory)
        self.settings = {**SETTINGS, **(settings or {})}
        self._round = 0
        self.store.append("run_started", self.settings)
        facts = {"parameters": 1234, "warnings": list(warnings), "protection": "", "evaluated_on": "held-out data"}
        self.store.append("run_facts", facts)

    def __enter__(self) -> Recorded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.close()

    def plan(self, asked: Sequence[str] = ("1", "2", "3"), goal: int = 2) -> None:
        """The next round begins."""
        self._round += 1
        told = {"asked": list(asked), "goal": goal, "mode": "sync", "deadline_s": 3600.0}
        self.store.append("round_planned", told, self._round)

    def tell(self, kind: str, **data: Any) -> None:
        """An event of the round in progress."""
        self.store.append(kind, data, self._round or None)

    def close_round(self, **figures: Any) -> None:
        """The round in progress is over; begins it first if none is."""
        last = self.store.last_checkpoint()
        if (last is not None and last.round == self._round) or self._round == 0:
            self.plan()
        number = self._round
        row = {
            "round": number, "loss": 2.3 * math.exp(-number / 6), "accuracy": 0.97 - 0.8 * math.exp(-number / 5),
            "clients": 8 - number % 3, "dropped": number % 3, "failures": [], "applied": True, "unchanged": None,
            "train_loss": 2.1 * math.exp(-number / 5), "uplink_bytes": 40_000 + 900 * (number % 5),
            "uplink_bits_per_parameter": 32.0, "downlink_bytes": 61_000, "epsilon": None,
            "seconds": 0.8 + 0.1 * (number % 4), "dropped_in": None, "clip": None,
        }  # fmt: skip
        names = Checkpoint(number, self.store.keep(b"state %d" % number), self.store.keep_model(b"model %d" % number))
        self.store.close_round(number, row | figures, names)

    def finish(self, **final: Any) -> None:
        self.store.append("run_finished", {"accuracy": 0.95, "loss": 0.2, "seconds": 20.0, "parameters": 1234, **final})

    def devices(self, count: int, **data: Any) -> None:
        """That many devices were just heard of."""
        self.store.seen(Sighting(1000 + n, time.time() - n, device(n) | data) for n in range(count))


def device(n: int) -> dict[str, Any]:
    """What is known of device n; one in five may not train."""
    why_not = "on battery" if n % 5 == 0 else ""
    report = {
        "name": f"pi-{n:05d}", "version": "0.1.0", "arch": "aarch64", "isa": "neon", "memory_budget": GIB // 4,
        "memory_available": GIB // 2, "rss": GIB // 16 + n * 1000, "rss_peak": GIB // 8 + n * 1000,
        "temperature_c": 40.0 + n % 40, "throttled": n % 9 == 0, "under_voltage": n % 17 == 0,
        "power": "battery" if why_not else "mains", "metered": False, "eligible": not why_not, "why_not": why_not,
        "retry_s": None,
    }  # fmt: skip
    return {
        "report": report, "eligible": not why_not, "why_not": why_not, "retry_s": None, "rounds": n % 30,
        "dropped": n % 4, "late": n % 3, "declined": n % 2, "last_reason": "no reply within 60 s" if n % 4 else "",
        "dropped_in": {}, "running": 3 + n % 2, "seconds": 2.0 + n % 7,
    }  # fmt: skip
