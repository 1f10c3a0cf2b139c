"""What a run may tell and what it has told: the privacy ledger, on disk before anything is made of what it paid for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_runtime.errors import ConfigError
from edge_runtime.privacy import Ledger, noise_for
from edge_runtime.privacy.ledger import Event, event_to_json, next_line
from edge_runtime.privacy.running import RunningEpsilon
from server.protection_config import PrivacyConfig
from server.run_store import RunStore

LEDGER = "privacy.ledger"
SPENT = "privacy_spent"  # the kind of the run's events that repeat it
_ROOM = 1e-6  # of epsilon: more than two ways of composing the same events differ by


class Budget:
    """The run's ledger against its (epsilon, delta). With a `limit` of 0 all is let through, and counted."""

    def __init__(self, limit: float, delta: float, earlier: Ledger = Ledger()) -> None:  # noqa: B008 - frozen
        self.limit, self.delta = limit, delta
        self._running, self._earlier = RunningEpsilon.of(earlier, delta), len(earlier.events)
        self._digest = earlier.digest  # of all that is spent; kept, for to find it anew takes every event
        self._next: tuple[RunningEpsilon, float] | None = None  # with the event that was asked about last, and epsilon
        self._store: RunStore | None = None
        self.epsilon = self._running.epsilon

    @classmethod
    def of(cls, settings: PrivacyConfig) -> Budget:
        """What `[privacy]` says, with the earlier run's ledger where one is named."""
        earlier = read_ledger(Path(settings.ledger)) if settings.ledger else Ledger()
        return cls(settings.epsilon, settings.delta, earlier)

    @property
    def ledger(self) -> Ledger:
        return self._running.ledger

    def noise_for(self, event: Callable[[float], Event], low: float = 0.05, high: float = 16384.0) -> float:
        """The least noise x in low..high with which `event(x)`, all that the run will tell, still fits.

        Raises:
            ConfigError: what is spent leaves too little, or no noise is enough.

        """
        if self.epsilon >= self.limit:
            raise ConfigError(
                f"privacy.epsilon = {self.limit}: {self.epsilon:.4g} is spent already, in the ledger that this run "
                "continues; allow a larger one, or end here"
            )
        try:
            return noise_for(self.limit * (1 - _ROOM), self.delta, event, self.ledger, low, high)
        except ConfigError as error:
            raise ConfigError(f"[privacy] {error}") from error

    def after(self, event: Event) -> float:
        """The epsilon that all would have come to, with this event as well."""
        return self._after(event)[1]

    def why_not(self, event: Event) -> str | None:
        """Why this event may not happen; None if it may."""
        if not self.limit or (would_be := self.after(event)) <= self.limit:
            return None
        return (
            f"the privacy budget is spent: one more round would bring epsilon from {self.epsilon:.4g} to "
            f"{would_be:.4g}, above privacy.epsilon = {self.limit:g} (at delta {self.delta:g})"
        )

    @property
    def own(self) -> tuple[Event, ...]:
        """What this run has spent itself, before it was resumed and since."""
        return self.ledger.events[self._earlier :]

    def open(self, store: RunStore) -> None:
        """From here on the ledger stands in the run directory, beginning with the earlier run's lines.

        Where it stands there already, all of it counts: also what was spent in a round that was never closed.

        Raises:
            ConfigError: that ledger was altered, or did not begin with the earlier run's.

        """
        self._store = store
        before, path = self.ledger, store.directory / LEDGER
        if path.is_file():
            found = read_ledger(path)
            # Shorter: that run was killed before it had written so much as the earlier lines.
            if len(found.events) >= len(before.events):
                if found.events[: len(before.events)] != before.events:
                    raise ConfigError(
                        f"{path}: does not begin with the ledger that privacy.ledger names; restore that one as it was"
                    )
                self._running, self._digest = RunningEpsilon.of(found, self.delta), found.digest
                self._next, self.epsilon = None, self._running.epsilon
        store.write(LEDGER, self.ledger.to_json().encode())  # without a last line that was cut off
        for event in self.own[len(store.events(SPENT)) :]:
            self._tell(event, None)

    def spend(self, event: Event, round_number: int | None = None) -> None:
        """Enter an event. It is on the disk when this returns: only then may what it paid for be used.

        Raises:
            RunError: the ledger cannot be written.

        """
        grown, epsilon = self._after(event)
        line, digest = next_line(self._digest, event)
        if self._store is not None:
            self._store.append_line(LEDGER, line)
        self._running, self._next, self.epsilon, self._digest = grown, None, epsilon, digest
        if self._store is not None:
            self._tell(event, round_number)

    def figures(self) -> dict[str, Any]:
        """What closes a run: epsilon (None for infinite) at delta, the limit, and what tells the ledger apart."""
        epsilon = self.epsilon if math.isfinite(self.epsilon) else None
        return {
            "epsilon": epsilon,
            "delta": self.delta,
            "limit": self.limit or None,
            "ledger_digest": self._digest,
        }

    def _tell(self, event: Event, round_number: int | None) -> None:
        """Log what was just spent."""
        assert self._store is not None
        entry = json.loads(event_to_json(event))
        told = {"epsilon": self.epsilon if math.isfinite(self.epsilon) else None, "delta": self.delta}
        self._store.append(SPENT, entry | told | {"digest": self._digest}, round_number)

    def _after(self, event: Event) -> tuple[RunningEpsilon, float]:
        if self._next is None or self._next[0].ledger.events[-1] != event:
            grown = self._running.append(event)
            self._next = grown, grown.epsilon
        return self._next


def read_ledger(path: Path) -> Ledger:
    """The ledger of an earlier run; a directory is that run's.

    A last line without its end was being written when that run was killed: what it was to pay for was never used, and
    it is left out unless it is whole. Where the run's own run.json stands beside it, the digest in there is looked for,
    so that lines cut off the end are missed.

    Raises:
        ConfigError: no such file, or it is not as that run wrote it.

    """
    path = path / LEDGER if path.is_dir() else path
    try:
        text = path.read_text("utf-8")
        record = path.with_name("run.json")
        final = json.loads(record.read_text("utf-8")).get("final") if record.is_file() else None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"privacy.ledger = {str(path)!r}: cannot be read ({reason})") from error
    whole = text[: text.rfind("\n") + 1]
    try:
        try:
            ledger = Ledger.from_json(text)
        except ConfigError:
            if whole == text:
                raise
            ledger = Ledger.from_json(whole)
        if digest := ((final or {}).get("privacy") or {}).get("ledger_digest"):
            ledger = Ledger.from_json(ledger.to_json(), digest)
    except ConfigError as error:
        raise ConfigError(f"privacy.ledger = {str(path)!r}: {error}") from error
    return ledger
