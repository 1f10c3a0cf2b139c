"""How fast simulated devices are, how fast their networks, and when they are online: the `[fleet]` table.

    an answer is due  latency + download + examples x passes x seconds_per_example / speed x jitter + upload  after its
    question, unless the device is offline before.

Everything follows from the run's seed, the device, the round and what travels; nothing is measured, so a run can be
repeated. Speeds and networks of real fleets have heavy tails, hence log-normal (FedScale's traces: Lai et al. 2022);
availability swings with the day (Bonawitz et al. 2019: 4 times as many at night as by day).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_runtime.config import key, parse_bytes
from edge_runtime.errors import ConfigError

EVALUATION_PASSES = 1 / 3  # forward alone, against forward and backward
_BITS_PER_KBPS_S = 1000.0


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """Devices in virtual time. By default nothing takes any time, and all devices are always there.

    `seconds_per_example` is what the median device takes to train on one example, once; `speed` says how devices
    differ: "lognormal" with deviation `speed_sigma` of the logarithm, or not at all; `jitter` is the same for one
    device from round to round. `uplink_kbps` and `downlink_kbps` are the median network's, 0 for no time at all, and
    `network_sigma` is how devices differ there. `online` is the mean share of devices that are there, `swing` how many
    times more are at the best hour of a day of `day_s` seconds than at the worst. `memory` lists sizes such as
    "512 KiB,8 MiB", of which each device has one, drawn evenly: what training may take there.
    """

    speed: str = key("", choices=("", "lognormal"))
    speed_sigma: float = key(1.0, low=0, high=4)
    jitter: float = key(0.0, low=0, high=4)
    seconds_per_example: float = key(0.0, low=0, high=3600)
    latency_s: float = key(0.0, low=0, high=3600)
    uplink_kbps: float = key(0.0, low=0, high=1e9)
    downlink_kbps: float = key(0.0, low=0, high=1e9)
    network_sigma: float = key(0.0, low=0, high=4)
    online: float = key(1.0, above=0, high=1)
    swing: float = key(1.0, low=1, high=100)
    day_s: float = key(86_400.0, above=0, high=1e9)
    memory: tuple[str, ...] = key(())

    def __post_init__(self) -> None:
        if self.online * (1 + self.amplitude) > 1 + 1e-9:
            raise ConfigError(
                f"fleet.online = {self.online:g}: must be <= {1 / (1 + self.amplitude):.3g} with fleet.swing = "
                f"{self.swing:g}, for no more than all devices can be online at the best hour"
            )
        for size in self.memory:
            parse_bytes(size, "fleet.memory")

    @property
    def amplitude(self) -> float:
        """a, where the share online is online x (1 + a cos(2 pi t / day))."""
        return (self.swing - 1) / (self.swing + 1)

    @property
    def moves(self) -> bool:
        """Whether anything takes time, or anybody is away at times."""
        return bool(
            self.seconds_per_example or self.latency_s or self.uplink_kbps or self.downlink_kbps or self.online < 1
        )


@dataclass(frozen=True, slots=True)
class Errand:
    """What one message has its device do: `passes` over its examples, in `round`, with these bytes on the way there."""

    node: int
    round: int
    passes: float
    down_bytes: int


class Traces:
    """The devices 0 .. clients-1 of one run. `examples(node)` is how many a device trains on."""

    def __init__(self, fleet: FleetConfig, seed: int, clients: int, examples: Callable[[int], int]) -> None:
        self._fleet, self._seed, self._clients, self._examples = fleet, seed, clients, examples
        self.moves = fleet.moves
        sigma = fleet.speed_sigma if fleet.speed else 0.0
        self._slowness = self._factors(sigma, 0x5BEED)
        self._network = self._factors(fleet.network_sigma, 0x7E7)
        self._ranks = lru_cache(maxsize=4)(self._draw_ranks)

    def work_s(self, errand: Errand) -> float:
        """Seconds from the question until the answer begins to travel."""
        fleet = self._fleet
        seconds = fleet.latency_s + self._travel(errand.node, errand.down_bytes, fleet.downlink_kbps)
        if fleet.seconds_per_example and errand.passes:
            jitter = 1.0
            if fleet.jitter:
                drawn = np.random.default_rng([self._seed, errand.round, errand.node, 0x717]).standard_normal()
                jitter = math.exp(fleet.jitter * drawn)
            work = self._examples(errand.node) * errand.passes * fleet.seconds_per_example
            seconds += work * self._slowness[errand.node] * jitter
        return seconds

    def upload_s(self, errand: Errand, up_bytes: int) -> float:
        """Seconds that so many bytes take from that device."""
        return self._travel(errand.node, up_bytes, self._fleet.uplink_kbps)

    def online(self, now_s: float) -> list[int]:
        """Who is online then, in ascending order."""
        if self._fleet.online >= 1:
            return list(range(self._clients))
        day, share = self._day(now_s)
        return [int(node) for node in np.flatnonzero(self._ranks(day) < share)]

    def leaves_s(self, node: int, now_s: float) -> float:
        """When that device, which is online now, is so no more; infinite if it stays."""
        fleet = self._fleet
        if fleet.online >= 1:
            return math.inf
        day = self._day(now_s)[0]
        while self._ranks(day)[node] < fleet.online * (1 - fleet.amplitude):  # even at the worst hour
            if self._ranks(day + 1)[node] >= fleet.online * (1 - fleet.amplitude):
                return (day + 0.5) * fleet.day_s
            day += 1
        # cos falls from 1 at the day's best hour, `day` x day_s, to -1 half a day later
        cosine = (self._ranks(day)[node] / fleet.online - 1) / fleet.amplitude if fleet.amplitude else 1.0
        return max(now_s, (day + math.acos(min(1.0, max(-1.0, cosine))) / math.tau) * fleet.day_s)

    def memory(self, node: int) -> str:
        """How much that device has for training; empty for no limit."""
        sizes = self._fleet.memory
        if not sizes:
            return ""
        return sizes[int(np.random.default_rng([self._seed, node, 0x3E3]).integers(len(sizes)))]

    def _day(self, now_s: float) -> tuple[int, float]:
        """Days go from one worst hour to the next, day 0 around the best hour at time 0; and the share online now."""
        fleet = self._fleet
        share = fleet.online * (1 + fleet.amplitude * math.cos(math.tau * now_s / fleet.day_s))
        return math.floor(now_s / fleet.day_s + 0.5), share

    def _draw_ranks(self, day: int) -> NDArray[np.float64]:
        """A device is online while its rank of the day is below the share that is."""
        return np.random.default_rng([self._seed, day, 0x0E]).random(self._clients)

    def _travel(self, node: int, nbytes: int, kbps: float) -> float:
        return 8 * nbytes / (_BITS_PER_KBPS_S * kbps) * float(self._network[node]) if kbps else 0.0

    def _factors(self, sigma: float, purpose: int) -> NDArray[np.float64]:
        """By which each device is slower than the median one."""
        drawn = np.random.default_rng([self._seed, self._clients, purpose]).standard_normal(self._clients)
        return np.exp(sigma * drawn)
