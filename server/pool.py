"""The devices that rounds are played with; and what a run does when there are too few of them.

    too few can be asked, or round after round brings too few updates  ->  the run pauses, and tries again
    that lasts for `server.patience_s`                                  ->  the run ends; it can be resumed

So it is when the run begins, and so when it goes on. Every wait is bounded, and the operator's order to stop ends it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from edge_runtime.errors import RunError
from server.checkpoint import Tree
from server.config import StrategyConfig
from server.events import Event, RunContinued, RunPaused
from server.fleet import Fleet
from server.link import Link
from server.rounds import RoundResult

SLICE_S = 2.0  # the operator is heard so often
FIRST_TRY_S, LAST_TRY_S = 5.0, 60.0  # between two tries; each wait is twice the one before
LEAST_S = 0.1  # no wait is shorter: one of 1e-13 s moves no clock, and would be waited for ever


class Pool:
    """Finds who may be asked. `log` takes events for the run's log, `why_stop` is the operator's word."""

    def __init__(
        self,
        link: Link,
        fleet: Fleet,
        settings: StrategyConfig,
        log: Callable[[str, Mapping[str, Any], int], None],
        emit: Callable[[Event], None],
        why_stop: Callable[[], str | None],
    ) -> None:
        self._link, self._fleet, self._settings = link, fleet, settings
        self._log, self._emit, self._why_stop = log, emit, why_stop
        self._dry_s: float | None = None  # by the link's clock: since when nothing came; None: something did
        self._waited_s = 0.0  # of that, for a clock that stands still
        self._tries = 0  # since then
        self._last = ""  # why the last round brought too little
        self._paused = False
        self._new = True  # nobody was asked yet: a whole cohort is waited for, which may be about to join

    def now(self, wanted: int, needs: int = 0) -> list[int]:
        """Who may be asked, once `wanted` are online, or at the deadline, however few those are."""
        return self._find(wanted, needs, self._settings.deadline_s)

    def enough(self, number: int, needs: int = 0) -> list[int]:
        """Who may be asked in this round to train what takes `needs` bytes; at least as many as a round needs.

        Whatever it is, and at once, when the operator has asked the run to stop.

        Raises:
            RunError: too few for all of `server.patience_s`.

        """
        least = self._settings.min_updates
        if self._tries > 1:  # rounds in a row that brought too little
            self._pause(number, self._last, None)
        nodes = self.now(self._settings.cohort if self._new else least, needs)
        self._new = False
        while len(nodes) < least and not self._why_stop():
            self._dry()
            online = self._link.nodes()
            self._pause(number, self._shortage(online, len(nodes)), self._fleet.next_s(online))
            nodes = self._find(least, needs, 0.0)
        if self._paused and not self._why_stop():
            self._paused = False
            self._log("run_continued", {}, number)
            self._emit(RunContinued(number))
        return nodes

    def settle(self, result: RoundResult) -> None:
        """A round was played."""
        if len(result.clients) >= self._settings.min_updates:
            self._dry_s, self._waited_s, self._tries = None, 0.0, 0
            return
        self._dry()
        reasons = Counter(failure.reason for failure in [*result.failures, *result.declined])
        often = f"; most often: {reasons.most_common(1)[0][0]}" if reasons else ""
        self._last = f"the last {'rounds' if self._tries > 1 else 'round'} brought too few updates{often}"

    def state(self) -> Tree:
        """Where waiting can be taken up again as if it had not been interrupted; a real run has its patience anew."""
        if not self._link.replays:
            return {}
        waited = {"dry_s": self._dry_s, "waited_s": self._waited_s, "tries": self._tries, "last": self._last}
        return {**waited, "new": self._new}

    def restore(self, state: Tree) -> None:
        if not state:
            return
        self._dry_s, self._waited_s, self._tries = state["dry_s"], state["waited_s"], state["tries"]
        self._last, self._new = state["last"], state["new"]

    def _find(self, wanted: int, needs: int, within_s: float) -> list[int]:
        nodes = self._link.wait_for_nodes(wanted, within_s, self._why_stop)
        return self._fleet.eligible(nodes, needs)

    def _dry(self) -> None:
        self._tries += 1
        self._dry_s = self._link.clock() if self._dry_s is None else self._dry_s

    def _pause(self, number: int, reason: str, next_s: float | None) -> None:
        """Wait for the next try; RunError if patience is at its end."""
        assert self._dry_s is not None
        patience_s = self._settings.patience_s
        left_s = patience_s - max(self._link.clock() - self._dry_s, self._waited_s)
        if left_s < LEAST_S:
            raise RunError(
                f"round {number}: for {patience_s:g} s (server.patience_s) {reason}; "
                "when devices are back, run.resume = true goes on after the last closed round"
            )
        if not self._paused:
            self._paused = True
            until_s = datetime.now(UTC).timestamp() + left_s
            self._log("run_paused", {"reason": reason, "until_s": until_s}, number)
            self._emit(RunPaused(number, reason, left_s))
        wait_s = min(FIRST_TRY_S * 2 ** min(self._tries - 1, 10), LAST_TRY_S)
        if next_s is not None:
            wait_s = min(wait_s, next_s)
        self._wait(max(LEAST_S, min(wait_s, left_s)))

    def _wait(self, seconds: float) -> None:
        while seconds > 0 and not self._why_stop():
            part = min(seconds, SLICE_S)
            self._link.pause(part)
            self._waited_s += part
            seconds -= part

    def _shortage(self, online: Collection[int], eligible: int) -> str:
        text = f"{eligible} devices can be asked, {self._settings.min_updates} are needed (server.min_updates)"
        if not online:
            return f"{text}: none is online"
        reasons = ", ".join(f"{count} {why}" for why, count in self._fleet.why_not(online).most_common(3))
        return f"{text}: {len(online)} online" + (f", of which {reasons}" if reasons else "")
