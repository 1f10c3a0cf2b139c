"""One round of secure aggregation in a fresh process: what is asked, what is measured, and whose time it is.

`secagg_ours.py` and `secagg_flower.py` each take a Round as one argument of JSON and print Figures as one line of it.
All of a round's clients and its server share the process; a Meter keeps their CPU time apart. Whoever drops does so
after sharing its keys, before its masked input: both sides finish such a round.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from processes import HERE, ONE_THREAD, StepError

CLIP = 8.0  # Flower's default range of a value
FLOWER_LEVELS = 2**22  # and its default number of levels in it
T = TypeVar("T")
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Round:
    """Parameters of both sides; `neighbours` 0 = everybody. `floats`: clients start from floats, not whole numbers."""

    clients: int
    values: int
    neighbours: int
    threshold: int
    drops: int
    bits: int = 32
    prg: str = "chacha20"
    floats: bool = False

    @property
    def dropped(self) -> frozenset[int]:
        """Spread over the cohort, so that each has survivors among its neighbours."""
        return frozenset(index * self.clients // self.drops for index in range(self.drops))


@dataclass(frozen=True, slots=True)
class Figures:
    """CPU seconds and bytes of one round; of the clients, medians over those who stayed to the end.

    signatures: the part of the time that made and verified signatures.
    steps: CPU seconds of one client and of the server by what they dealt with.
    """

    client_s: float
    server_s: float
    client_signatures_s: float
    server_signatures_s: float
    upload_bytes: float
    download_bytes: float
    steps: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(slots=True)
class Meter:
    """CPU time and bytes of a round, by role.

    While it runs, work that is wrapped by `as_signature` is counted on its own too.
    """

    server: Counter[str] = field(default_factory=Counter)
    clients: dict[int, Counter[str]] = field(default_factory=dict)
    sent: Counter[int] = field(default_factory=Counter)
    received: Counter[int] = field(default_factory=Counter)
    signatures: Counter[int] = field(default_factory=Counter)  # by client; the server is -1
    _now: int = -1

    def as_signature(self, work: Callable[..., T]) -> Callable[..., T]:
        def counted(*arguments: object) -> T:
            return _timed(self.signatures, self._now, work, *arguments)

        return counted

    def of_server(self, step: str, work: Callable[..., T], *arguments: object) -> T:
        self._now = -1
        return _timed(self.server, step, work, *arguments)

    def of_client(self, client: int, step: str, work: Callable[..., T], *arguments: object) -> T:
        self._now = client
        return _timed(self.clients.setdefault(client, Counter()), step, work, *arguments)

    def figures(self, dropped: frozenset[int]) -> Figures:
        stayed = sorted(self.clients.keys() - dropped)
        own = [self.clients[client] for client in stayed]
        steps = {step: statistics.median(counter[step] for counter in own) for step in own[0]}
        return Figures(
            statistics.median(sum(counter.values()) for counter in own),
            sum(self.server.values()),
            statistics.median(self.signatures[client] for client in stayed),
            self.signatures[-1],
            statistics.median(self.sent[client] for client in stayed),
            statistics.median(self.received[client] for client in stayed),
            {"client": steps, "server": dict(self.server)},
        )


def _timed(counter: Counter[K], step: K, work: Callable[..., T], *arguments: object) -> T:
    began = time.process_time()
    result = work(*arguments)
    counter[step] += time.process_time() - began
    return result


def levels(client: int, values: int) -> NDArray[np.int64]:
    """A client's update on Flower's grid: its rounding, random elsewhere, leaves these as they are."""
    return np.random.default_rng(client).integers(0, FLOWER_LEVELS, values)


def floats(client: int, values: int) -> NDArray[np.float32]:
    """The same as numbers in -CLIP to CLIP; 22 bits are exact in float32."""
    return (levels(client, values) * (2 * CLIP / FLOWER_LEVELS) - CLIP).astype(np.float32)


def play(side: str, asked: Round, repeats: int = 1) -> Figures:
    """Medians over rounds in fresh processes of `secagg_SIDE.py`, one thread each.

    Raises:
        StepError: it failed, or its sum was not the exact one.

    """
    rounds = [_play_once(side, asked) for _ in range(repeats)]
    first = rounds[0]
    steps = {
        role: {step: statistics.median(one.steps[role][step] for one in rounds) for step in steps}
        for role, steps in first.steps.items()
    }
    single = [one.name for one in fields(Figures) if one.name != "steps"]
    return Figures(**{name: statistics.median(getattr(one, name) for one in rounds) for name in single}, steps=steps)


def _play_once(side: str, asked: Round) -> Figures:
    quiet = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
    environment = {**os.environ, **quiet, **dict.fromkeys(ONE_THREAD, "1"), "PYTHONPATH": str(HERE.parent)}
    line = [sys.executable, "-W", "ignore", str(HERE / f"secagg_{side}.py"), json.dumps(asdict(asked))]
    done = subprocess.run(line, check=False, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        said = [one for one in done.stderr.splitlines() if one.strip()]
        raise StepError(said[-1].strip() if said else f"ended with {done.returncode}")
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def answer(argument: str, run: Callable[[Round], Figures]) -> None:
    """What a child process does: play the round it was asked for and print its figures."""
    run(Round(clients=5, values=10, neighbours=4, threshold=3, drops=1))  # what is loaded and looked up once
    print(json.dumps(asdict(run(Round(**json.loads(argument))))))
