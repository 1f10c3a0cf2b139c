"""Learning-rate schedules by name: frozen descriptions whose `factor(step)` multiplies the optimizer's learning rate.

A step is an optimizer step within a `fit`, or a round, counted from 0; past its last step a schedule holds its last
factor. The numbers are those of `torch.optim.lr_scheduler`. `ReduceOnPlateau` follows a measured figure instead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from edge_runtime.errors import ConfigError

Range = tuple[float, float]
STEPS: Range = (1, 10**12)
# The smallest useful share stands in for "above 0".
SHARE: Range = (1e-12, 1.0)
FROM_ZERO: Range = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Constant:
    """The factor `scale` at every step."""

    RANGES: ClassVar[Mapping[str, Range]] = {"scale": (0.0, 1e6)}
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check(self)

    def factor(self, step: int) -> float:
        return self.scale


@dataclass(frozen=True, slots=True)
class Step:
    """gamma^floor(step / every)."""

    RANGES: ClassVar[Mapping[str, Range]] = {"every": STEPS, "gamma": SHARE}
    every: int = 30
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _check(self)

    def factor(self, step: int) -> float:
        return float(self.gamma ** (step // self.every))


@dataclass(frozen=True, slots=True)
class Exponential:
    """gamma^step."""

    RANGES: ClassVar[Mapping[str, Range]] = {"gamma": SHARE}
    gamma: float = 0.95

    def __post_init__(self) -> None:
        _check(self)

    def factor(self, step: int) -> float:
        return float(self.gamma**step)


@dataclass(frozen=True, slots=True)
class Cosine:
    """floor + (1 - floor) (1 + cos(pi step / steps)) / 2, without restarts; Loshchilov & Hutter 2017, equation 5."""

    RANGES: ClassVar[Mapping[str, Range]] = {"steps": STEPS, "floor": FROM_ZERO}
    steps: int = 100
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check(self)

    def factor(self, step: int) -> float:
        return _cosine(1.0, self.floor, min(step / self.steps, 1.0))


@dataclass(frozen=True, slots=True)
class Linear:
    """A straight line from `start` at step 0 to `end` at step `steps`."""

    RANGES: ClassVar[Mapping[str, Range]] = {"start": FROM_ZERO, "end": FROM_ZERO, "steps": STEPS}
    start: float = 1.0
    end: float = 0.0
    steps: int = 100

    def __post_init__(self) -> None:
        _check(self)

    def factor(self, step: int) -> float:
        return _line(self.start, self.end, min(step / self.steps, 1.0))


@dataclass(frozen=True, slots=True)
class Polynomial:
    """(1 - step / steps)^power."""

    RANGES: ClassVar[Mapping[str, Range]] = {"steps": STEPS, "power": (0.0, 100.0)}
    steps: int = 100
    power: float = 1.0

    def __post_init__(self) -> None:
        _check(self)

    def factor(self, step: int) -> float:
        return float((1 - min(step / self.steps, 1.0)) ** self.power)


@dataclass(frozen=True, slots=True)
class OneCycle:
    """Up from 1 / div to 1 and down to 1 / (div final_div) by half cosines; Smith & Topin 2018.

    The optimizer's learning rate is the peak, reached after the share `rise` of the steps. Momentum is left alone.
    """

    RANGES: ClassVar[Mapping[str, Range]] = {
        "steps": STEPS,
        "rise": FROM_ZERO,
        "div": (1.0, 1e9),
        "final_div": (1.0, 1e9),
    }
    steps: int = 100
    rise: float = 0.3
    div: float = 25.0
    final_div: float = 1e4

    def __post_init__(self) -> None:
        _check(self)

    def factor(self, step: int) -> float:
        # The last of `steps` steps is number steps - 1, and PyTorch counts both phases in these units.
        peak, last = self.rise * self.steps - 1, self.steps - 1
        if step <= peak:
            return _cosine(1 / self.div, 1.0, step / peak if peak > 0 else 1.0)
        return _cosine(1.0, 1 / (self.div * self.final_div), min((step - peak) / (last - peak), 1.0) if last else 0.0)


@dataclass(frozen=True, slots=True)
class Warmup:
    """A line from `start` to 1 over `steps` steps, then `after`, which counts its own steps from 0."""

    RANGES: ClassVar[Mapping[str, Range]] = {"steps": STEPS, "start": FROM_ZERO}
    steps: int = 10
    start: float = 0.1
    after: Constant | Step | Exponential | Cosine | Linear | Polynomial | OneCycle = field(default_factory=Constant)

    def __post_init__(self) -> None:
        _check(self)
        if not isinstance(self.after, _AFTER_WARMUP):
            raise ConfigError(f"warmup.after cannot be a {type(self.after).__name__}")

    def factor(self, step: int) -> float:
        if step < self.steps:
            return _line(self.start, 1.0, step / self.steps)
        return self.after.factor(step - self.steps)


@dataclass(frozen=True, slots=True)
class ReduceOnPlateau:
    """Multiplies the factor by gamma, down to floor, when `metric` has not improved for more than `patience` epochs.

    An improvement is larger than the share `threshold` of the best value so far (`relative`), or than `threshold`
    itself. After a reduction `cooldown` epochs are not counted. `metric` is a validation figure; without validation
    "loss" is the epoch's mean training loss. `start()` gives the state that follows one training.
    """

    RANGES: ClassVar[Mapping[str, Range]] = {
        "gamma": (1e-12, 1 - 1e-12),
        "patience": (0, 10**9),
        "threshold": (0.0, 1e6),
        "cooldown": (0, 10**9),
        "floor": FROM_ZERO,
    }
    metric: str = "loss"
    mode: str = "min"
    gamma: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    relative: bool = True
    cooldown: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check(self)
        if self.mode not in ("min", "max"):
            raise ConfigError(f"reduce_on_plateau.mode = {self.mode!r}: must be one of min, max")

    def start(self) -> Plateau:
        return Plateau(self)

    def improves(self, value: float, best: float) -> bool:
        margin = self.threshold * best if self.relative else self.threshold
        return value < best - margin if self.mode == "min" else value > best + margin


@dataclass(slots=True)
class Plateau:
    """What `ReduceOnPlateau` has seen so far."""

    schedule: ReduceOnPlateau
    factor: float = 1.0
    best: float | None = None
    bad: int = 0
    cooldown: int = 0

    def observe(self, value: float) -> float:
        """Take in one epoch's figure; returns the factor from here on. NaN is no improvement."""
        rule = self.schedule
        # A first NaN must not become the best value, against which nothing would ever improve.
        if not math.isnan(value) and (self.best is None or rule.improves(value, self.best)):
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.cooldown:
            self.cooldown, self.bad = self.cooldown - 1, 0
        if self.bad > rule.patience:
            self.cooldown, self.bad = rule.cooldown, 0
            self.factor = max(self.factor * rule.gamma, rule.floor)
        return self.factor

    def as_dict(self) -> dict[str, float | int | None]:
        return {"factor": self.factor, "best": self.best, "bad": self.bad, "cooldown": self.cooldown}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `as_dict` gave."""
        try:
            best = state["best"]
            self.factor, self.best = float(state["factor"]), None if best is None else float(best)
            self.bad, self.cooldown = int(state["bad"]), int(state["cooldown"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the state of reduce_on_plateau is malformed: {error!r}") from None


StepSchedule = Constant | Step | Exponential | Cosine | Linear | Polynomial | OneCycle | Warmup
Schedule = StepSchedule | ReduceOnPlateau
_AFTER_WARMUP = (Constant, Step, Exponential, Cosine, Linear, Polynomial, OneCycle)

SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "exponential": Exponential,
    "linear": Linear,
    "one_cycle": OneCycle,
    "polynomial": Polynomial,
    "reduce_on_plateau": ReduceOnPlateau,
    "step": Step,
    "warmup": Warmup,
}
NAMES: dict[type[Schedule], str] = {cls: name for name, cls in SCHEDULES.items()}


def as_dict(schedule: Schedule) -> dict[str, Any]:
    """Plain JSON values: the schedule's name and its arguments."""
    arguments = {item.name: getattr(schedule, item.name) for item in dataclasses.fields(schedule)}
    if isinstance(schedule, Warmup):
        arguments["after"] = as_dict(schedule.after)
    return {"name": NAMES[type(schedule)], **arguments}


def from_dict(plain: Mapping[str, Any]) -> Schedule:
    """The inverse of `as_dict`.

    Raises:
        ConfigError: an unknown name or argument, or a value of another type or outside its range.

    """
    if not isinstance(plain, Mapping) or not isinstance(plain.get("name"), str):
        raise ConfigError("a schedule must be a table with a name")
    name, arguments = plain["name"], {key: value for key, value in plain.items() if key != "name"}
    if name not in SCHEDULES:
        raise ConfigError(f"schedule {name!r}: must be one of {', '.join(SCHEDULES)}")
    unknown = arguments.keys() - {item.name for item in dataclasses.fields(SCHEDULES[name])}
    if unknown:
        raise ConfigError(f"schedule {name} has no argument {min(map(str, unknown))!r}")
    after = arguments.get("after")
    if isinstance(after, Mapping):
        # Looked at before the descent, so that a deeply nested table costs one level and not the stack.
        if after.get("name") == "warmup":
            raise ConfigError("warmup.after cannot be a Warmup")
        arguments["after"] = from_dict(after)
    return SCHEDULES[name](**arguments)


def _line(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _check(schedule: Any) -> None:
    """Every argument has its default's type, and lies in its range."""
    name = NAMES[type(schedule)]
    for item in dataclasses.fields(schedule):
        value = getattr(schedule, item.name)
        if item.default is not dataclasses.MISSING:
            kind = type(item.default)
            fits = type(value) is kind or (kind is float and type(value) is int)
            if not fits:
                raise ConfigError(f"{name}.{item.name} = {value!r}: must be {kind.__name__}")
        low, high = schedule.RANGES.get(item.name, (-math.inf, math.inf))
        if item.name in schedule.RANGES and not low <= value <= high:
            raise ConfigError(f"{name}.{item.name} = {value!r}: must be >= {low:g} and <= {high:g}")
