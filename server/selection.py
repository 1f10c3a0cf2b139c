"""Who of the devices that may be asked is asked: policies that learn from what became of those asked before.

Each is deterministic in the run's seed, the round and what it has learned. Every policy may have a floor under it, so
that nobody is passed over for good.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from server.checkpoint import Stateful, Tree
from server.rounds import DECLINED, LATE, TAKEN, Outcome
from server.sampling import SeededDraws
from server.selection_config import SelectionConfig

CUT_OFF = 0.95  # of the score of the last that would be taken: who reaches it is drawn by chance (Oort's c)
OUTLIERS = 95.0  # the percentile at which utilities are clipped
MAX_LOSS = 1e6  # what is more than that is a device's word for it, and sums of it must stay finite
TIMES_MIDDLE = 10.0  # and at so many times the median
CONFIDENCE = 0.1
RECENT = 0.2  # weight of the present round in how often a device is online
_PURPOSE = 0x5E1EC7


class Selection(Stateful, Protocol):
    """One rule by which cohorts are chosen."""

    def choose(self, nodes: Sequence[int], size: int, number: int) -> list[int]:
        """`size` of these nodes (all, if there are fewer) for this round, in ascending order.

        May be asked again in one round, for more.
        """

    def learn(self, number: int, outcomes: Iterable[Outcome]) -> None:
        """What became of those asked in this round."""


class _Draws:
    """Random numbers that follow from (seed, round, how many draws the round has had before)."""

    def __init__(self, seed: int) -> None:
        self._seed, self._number, self._count = seed, 0, 0

    def rng(self, number: int) -> np.random.Generator:
        self._count = self._count + 1 if number == self._number else 0
        self._number = number
        return np.random.default_rng([self._seed, number, _PURPOSE, self._count])


class Uniform:
    """Everyone with the same chance, whatever became of them before."""

    def __init__(self, seed: int) -> None:
        self._draws = SeededDraws(seed)

    def choose(self, nodes: Sequence[int], size: int, number: int) -> list[int]:
        return self._draws.choose(nodes, size, number)

    def learn(self, number: int, outcomes: Iterable[Outcome]) -> None:
        """There is nothing to learn."""

    def state(self) -> Tree:
        return {}

    def restore(self, state: Tree) -> None:
        """There is nothing to restore."""


@dataclass(slots=True)
class _Presence:
    """How often a device was there to be asked (a mean in which old rounds fade), and how often it came to the end."""

    online: float = 0.0
    round: int = 0  # in which it was there last
    asked: int = 0
    taken: int = 0


class Availability:
    """Devices that are there most of the time and rarely drop out have the better chance.

    A device's weight is the share of late rounds in which it could be asked, times the share of its rounds that it came
    to the end of (with one good and one bad round beforehand). A cohort is drawn by these weights without replacement
    (Efraimidis and Spirakis 2006).
    """

    def __init__(self, seed: int) -> None:
        self._draws = _Draws(seed)
        self._known: dict[int, _Presence] = {}

    def choose(self, nodes: Sequence[int], size: int, number: int) -> list[int]:
        pool = sorted(nodes)
        for node in pool:
            self._present(self._known.setdefault(node, _Presence(round=number - 1)), number)
        weights = [self._known[node].online * _reliability(self._known[node]) for node in pool]
        return _draw(pool, weights, size, self._draws.rng(number))

    def learn(self, number: int, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.end != DECLINED:
                _count(self._known.setdefault(outcome.node, _Presence()), outcome)

    def state(self) -> Tree:
        rows = {node: (one.online, one.round, one.asked, one.taken) for node, one in self._known.items()}
        return {"known": _table(rows, 4)}

    def restore(self, state: Tree) -> None:
        self._known = {
            node: _Presence(online, int(number), int(asked), int(taken))
            for node, (online, number, asked, taken) in _rows(state["known"])
        }

    def _present(self, one: _Presence, number: int) -> None:
        if one.round < number:
            one.online = one.online * (1 - RECENT) ** (number - one.round) + RECENT
            one.round = number


@dataclass(slots=True)
class _Measured:
    """What is known of a device that was asked; of one that never came to the end `taken` is 0."""

    examples: int = 0
    loss: float = 0.0
    seconds: float = math.nan
    headroom: float = math.nan
    round: int = 0  # in which it was taken last
    tried: int = 0  # times that it was asked and did not decline
    asked: int = 0  # of these, those that it was not late
    taken: int = 0

    @property
    def utility(self) -> float:
        return self.examples * min(abs(self.loss), MAX_LOSS)


class Utility:
    """Oort (Lai, Zhu, Madhyastha, Chowdhury, OSDI 2021): devices whose data teach the model most per second of waiting.

    The statistical utility of a device is |B| sqrt(mean of loss^2) over its examples B. What devices report is one
    mean loss, so its square stands for the mean of squares, of which it is the least. Utilities are clipped at their
    95th percentile, or at ten times their median, and scaled to 1, and sqrt(0.1 ln R / L) is added in round R for a
    device last measured in round L. One that takes t seconds, more than the preferred T, counts (T / t)^slowness, one
    with less memory left than training takes as much less again; all by how often it came to the end of its rounds. T
    is a percentile of all times, which a pacer raises when utility dries up. A share of the cohort explores devices
    that were never measured.
    """

    def __init__(self, settings: SelectionConfig, seed: int) -> None:
        self._settings, self._draws = settings, _Draws(seed)
        self._known: dict[int, _Measured] = {}
        self._pace = settings.pace
        self._gains: deque[float] = deque(maxlen=2 * settings.pace_window)
        self._rounds = 0  # learned from

    def choose(self, nodes: Sequence[int], size: int, number: int) -> list[int]:
        pool, rng = sorted(nodes), self._draws.rng(number)
        size = min(size, len(pool))
        measured = [node for node in pool if node in self._known and self._known[node].taken]
        fresh = [node for node in pool if node not in self._known]
        explored = _draw(fresh, [1.0] * len(fresh), round(self.exploration(number) * size), rng)
        best = self._best(measured, size - len(explored), number, rng)
        rest = sorted(set(pool).difference(explored, best, measured))
        # To ask those again that never came to the end is no exploration: they fill what is left.
        filling = _draw(rest, [self._promise(node) for node in rest], size - len(explored) - len(best), rng)
        return sorted([*explored, *best, *filling])

    def learn(self, number: int, outcomes: Iterable[Outcome]) -> None:
        gained, heard = 0.0, False
        for outcome in outcomes:
            heard = True
            if outcome.end == DECLINED:
                continue
            one = self._known.setdefault(outcome.node, _Measured())
            _count(one, outcome)
            one.tried += 1
            one.headroom = one.headroom if outcome.headroom is None else outcome.headroom
            if outcome.end == TAKEN:
                one.examples, one.loss, one.round = outcome.examples, outcome.loss or 0.0, number
                one.seconds = math.nan if outcome.seconds is None else outcome.seconds
                gained += one.utility
            elif outcome.seconds is not None:
                one.seconds = max(outcome.seconds, 0.0 if math.isnan(one.seconds) else one.seconds)
        if heard:
            self._step_pacer(gained)

    def exploration(self, number: int) -> float:
        """The share of this round's cohort that goes to devices never measured, while there are any."""
        settings = self._settings
        return max(settings.exploration_min, settings.exploration * settings.exploration_decay ** (number - 1))

    def scores(self, nodes: Sequence[int], number: int) -> NDArray[np.float64]:
        """Of devices that were measured; shape (len(nodes),)."""
        known = [self._known[node] for node in nodes]
        everyone = np.array([one.utility for one in self._known.values() if one.taken])
        most = _most(everyone)
        gain = np.minimum([one.utility for one in known], most) / (most or 1.0)
        last = np.maximum([one.round for one in known], 1)
        scores = gain + np.sqrt(CONFIDENCE * math.log(max(number, 1)) / last)
        seconds, headroom = (np.array([getattr(one, name) for one in known]) for name in ("seconds", "headroom"))
        with np.errstate(divide="ignore", invalid="ignore"):
            speed = np.fmin(self.preferred_s / seconds, 1.0)  # unknown: counts in full
        slowness = self._settings.slowness
        scores *= speed**slowness * np.fmin(headroom, 1.0) ** slowness
        scored: NDArray[np.float64] = scores * [_reliability(one) for one in known]
        return scored

    @property
    def preferred_s(self) -> float:
        """T: who is as fast as that counts in full."""
        times = [one.seconds for one in self._known.values() if one.taken and not math.isnan(one.seconds)]
        return float(np.percentile(times, self._pace)) if times else math.inf

    def state(self) -> Tree:
        rows = {
            node: (one.examples, one.loss, one.seconds, one.headroom, one.round, one.tried, one.asked, one.taken)
            for node, one in self._known.items()
        }
        pacer = {"pace": self._pace, "gains": list(self._gains), "rounds": self._rounds}
        return {"known": _table(rows, 8), "pacer": pacer}

    def restore(self, state: Tree) -> None:
        self._known = {
            node: _Measured(int(examples), loss, seconds, headroom, *map(int, counts))
            for node, (examples, loss, seconds, headroom, *counts) in _rows(state["known"])
        }
        self._pace, self._rounds = state["pacer"]["pace"], state["pacer"]["rounds"]
        self._gains = deque(state["pacer"]["gains"], maxlen=2 * self._settings.pace_window)

    def _best(self, nodes: Sequence[int], size: int, number: int, rng: np.random.Generator) -> list[int]:
        """Drawn by score from those that come near the last who would be taken by score alone."""
        if not size or not nodes:
            return []
        scores = self.scores(nodes, number)
        last = np.sort(scores)[-min(size, len(nodes))]
        near = np.flatnonzero(scores >= CUT_OFF * last)
        return _draw([nodes[at] for at in near.tolist()], scores[near].tolist(), size, rng)

    def _promise(self, node: int) -> float:
        """The weight of a device that was never measured; one that was asked and failed counts for less."""
        one = self._known.get(node)
        return 1.0 if one is None else 1.0 / (1 + one.tried)

    def _step_pacer(self, gained: float) -> None:
        window = self._settings.pace_window
        self._gains.append(gained)
        self._rounds += 1
        if self._rounds % window == 0 and len(self._gains) == 2 * window:
            before, after = list(self._gains)[:window], list(self._gains)[window:]
            if math.fsum(before) > math.fsum(after):
                self._pace = min(100.0, self._pace + self._settings.pace_step)


@dataclass(slots=True)
class _Turn:
    """When a device was asked last (at first: when it was first there), counted in draws, and how often."""

    last: int
    asked: int = 0


class Floor:
    """A policy of which a share of every cohort, rounded up, goes to those who have waited longest.

    Of N devices, one that can always be asked is asked again after at most floor((N - 1) / m) + 1 draws, where m of
    each draw go by waiting: whoever is preferred to it has waited longer, and stands behind it from then on. So does
    who comes new. Of those who have waited as long, the ones asked least often come first.
    """

    def __init__(self, policy: Selection, share: float, seed: int) -> None:
        self._policy, self._share, self._seed = policy, share, seed
        self._turns: dict[int, _Turn] = {}
        self._draw = 0

    def choose(self, nodes: Sequence[int], size: int, number: int) -> list[int]:
        pool = sorted(nodes)
        size = min(size, len(pool))
        waiting = self._longest(pool, math.ceil(self._share * size))
        rest = self._policy.choose([node for node in pool if node not in waiting], size - len(waiting), number)
        self._draw += 1
        for node in (chosen := sorted([*waiting, *rest])):
            self._turns[node].last = self._draw
            self._turns[node].asked += 1
        return chosen

    def learn(self, number: int, outcomes: Iterable[Outcome]) -> None:
        self._policy.learn(number, outcomes)

    def state(self) -> Tree:
        rows = {node: (turn.last, turn.asked) for node, turn in self._turns.items()}
        return {"policy": self._policy.state(), "turns": _table(rows, 2), "draw": self._draw}

    def restore(self, state: Tree) -> None:
        self._policy.restore(state["policy"])
        self._turns = {node: _Turn(int(last), int(asked)) for node, (last, asked) in _rows(state["turns"])}
        self._draw = state["draw"]

    def _longest(self, pool: Sequence[int], size: int) -> set[int]:
        lots = np.random.default_rng([self._seed, self._draw, _PURPOSE]).random(len(pool))
        turns = [self._turns.setdefault(node, _Turn(self._draw)) for node in pool]
        order = sorted(range(len(pool)), key=lambda at: (turns[at].last, turns[at].asked, lots[at]))
        return {pool[at] for at in order[:size]}


_POLICIES: Mapping[str, Callable[[SelectionConfig, int], Selection]] = {
    "uniform": lambda _, seed: Uniform(seed),
    "availability": lambda _, seed: Availability(seed),
    "utility": Utility,
}


def make_selection(settings: SelectionConfig, seed: int) -> Selection:
    """What `[selection]` asks for."""
    policy = _POLICIES[settings.policy](settings, seed)
    return Floor(policy, settings.floor, seed) if settings.floor else policy


def _count(one: _Presence | _Measured, outcome: Outcome) -> None:
    """Who was late did not fail: others were faster."""
    one.asked += outcome.end != LATE
    one.taken += outcome.end == TAKEN


def _reliability(one: _Presence | _Measured) -> float:
    return (one.taken + 1) / (one.asked + 2)


def _most(utilities: NDArray[np.float64]) -> float:
    """What utilities are clipped at; in a small fleet the percentile alone would be what one device claims."""
    if not utilities.size:
        return 0.0
    most, middle = float(np.percentile(utilities, OUTLIERS)), float(np.percentile(utilities, 50, method="lower"))
    return min(most, TIMES_MIDDLE * middle) if middle else most


def _draw(pool: Sequence[int], weights: Sequence[float], size: int, rng: np.random.Generator) -> list[int]:
    """`size` of them without replacement, by weight, in ascending order; weights of 0 come last."""
    waits = rng.exponential(size=len(pool)) / np.maximum(weights, 1e-300)
    return sorted(pool[at] for at in np.argsort(waits, kind="stable")[: max(size, 0)].tolist())


def _table(rows: Mapping[int, Sequence[float]], width: int) -> Tree:
    """Nodes and their figures as two arrays."""
    figures = np.array(list(rows.values()), np.float64).reshape(len(rows), width)
    return {"nodes": np.array(list(rows), np.uint64), "figures": figures}


def _rows(table: Tree) -> Iterable[tuple[int, list[float]]]:
    return zip(table["nodes"].tolist(), table["figures"].tolist(), strict=True)
