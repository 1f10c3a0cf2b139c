"""Every schedule against `torch.optim.lr_scheduler`, and its plain form there and back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from edge_runtime import schedules
from edge_runtime.errors import ConfigError

STEPS = 80
LR = 0.3

Make = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
PAIRS: dict[str, tuple[schedules.StepSchedule, Make]] = {
    "constant": (schedules.Constant(0.5), lambda o: lr_scheduler.LambdaLR(o, lambda _: 0.5)),
    "step": (schedules.Step(7, 0.6), lambda o: lr_scheduler.StepLR(o, 7, 0.6)),
    "exponential": (schedules.Exponential(0.9), lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
    "cosine": (schedules.Cosine(STEPS, 0.1), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, 0.1 * LR)),
    "linear": (schedules.Linear(0.2, 0.9, 50), lambda o: lr_scheduler.LinearLR(o, 0.2, 0.9, 50)),
    "polynomial": (schedules.Polynomial(60, 1.7), lambda o: lr_scheduler.PolynomialLR(o, 60, 1.7)),
    "one_cycle": (
        schedules.OneCycle(STEPS),
        lambda o: lr_scheduler.OneCycleLR(o, LR, STEPS, cycle_momentum=False),
    ),
    "one_cycle-odd": (
        schedules.OneCycle(STEPS, 0.41, 7.0, 30.0),
        lambda o: lr_scheduler.OneCycleLR(
            o, LR, STEPS, pct_start=0.41, div_factor=7.0, final_div_factor=30.0, cycle_momentum=False
        ),
    ),
    "warmup": (
        schedules.Warmup(9, 0.05, schedules.Cosine(STEPS)),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.05, 1.0, 9), lr_scheduler.CosineAnnealingLR(o, STEPS)], [9]
        ),
    ),
}


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)


@pytest.mark.parametrize(("ours", "make"), PAIRS.values(), ids=PAIRS.keys())
def test_every_factor_is_pytorchs(ours: schedules.StepSchedule, make: Make) -> None:
    sgd = optimizer()
    scheduler = make(sgd)
    for step in range(STEPS):
        assert LR * ours.factor(step) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12, abs=1e-15), step
        sgd.step()
        if step < STEPS - 1:
            scheduler.step()


def test_every_schedule_has_its_reference_here() -> None:
    assert {type(ours) for ours, _ in PAIRS.values()} | {schedules.ReduceOnPlateau} == set(schedules.SCHEDULES.values())


@pytest.mark.parametrize("ours", [ours for ours, _ in PAIRS.values()], ids=PAIRS.keys())
def test_a_factor_far_past_the_end_is_finite_and_never_negative(ours: schedules.StepSchedule) -> None:
    for step in (10**4, 10**9, 10**15):
        assert 0 <= ours.factor(step) <= 1
    if isinstance(ours, schedules.Cosine | schedules.Linear | schedules.Polynomial | schedules.OneCycle):
        assert ours.factor(10**9) == ours.factor(ours.steps)


@given(
    values=st.lists(st.floats(-10, 10) | st.just(math.nan), min_size=1, max_size=60),
    mode=st.sampled_from(["min", "max"]),
    gamma=st.sampled_from([0.1, 0.5, 0.9]),
    patience=st.integers(0, 4),
    threshold=st.sampled_from([0.0, 1e-4, 0.3]),
    relative=st.booleans(),
    cooldown=st.integers(0, 3),
    floor=st.sampled_from([0.0, 0.2]),
)
@settings(max_examples=150, deadline=None)
def test_plateau_is_pytorchs(
    values: list[float],
    mode: str,
    gamma: float,
    patience: int,
    threshold: float,
    relative: bool,
    cooldown: int,
    floor: float,
) -> None:
    ours = schedules.ReduceOnPlateau("loss", mode, gamma, patience, threshold, relative, cooldown, floor).start()
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(
        sgd, mode, gamma, patience, threshold, "rel" if relative else "abs", cooldown, floor, eps=0.0
    )
    for value in values:
        theirs.step(value)
        assert ours.observe(value) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12)


@given(values=st.lists(st.floats(0, 3), max_size=40), cut=st.integers(0, 40))
def test_a_plateau_goes_on_from_its_plain_state(values: list[float], cut: int) -> None:
    rule = schedules.ReduceOnPlateau(patience=1, cooldown=1, gamma=0.5)
    whole, first, second = rule.start(), rule.start(), rule.start()
    for value in values[:cut]:
        first.observe(value)
    second.load(json.loads(json.dumps(first.as_dict())))
    for value in values[cut:]:
        second.observe(value)
    for value in values:
        whole.observe(value)
    assert second == whole


EVERY = [ours for ours, _ in PAIRS.values()] + [schedules.ReduceOnPlateau("accuracy", "max", 0.3, relative=False)]


@pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: type(schedule).__name__)
def test_a_schedule_comes_back_from_its_json(schedule: schedules.Schedule) -> None:
    assert schedules.from_dict(json.loads(json.dumps(schedules.as_dict(schedule)))) == schedule


@pytest.mark.parametrize("cls", schedules.SCHEDULES.values(), ids=schedules.SCHEDULES)
def test_a_name_alone_is_a_schedule(cls: type[schedules.Schedule]) -> None:
    assert schedules.from_dict({"name": schedules.NAMES[cls]}) == cls()


@pytest.mark.parametrize(
    ("plain", "text"),
    [
        ({}, "a table with a name"),
        ([], "a table with a name"),
        ({"name": "stepp"}, "must be one of constant"),
        ({"name": "step", "evry": 3}, "no argument 'evry'"),
        ({"name": "step", "every": 0}, r"step.every = 0: must be >= 1"),
        ({"name": "step", "every": 2.5}, "must be int"),
        ({"name": "step", "every": True}, "must be int"),
        ({"name": "exponential", "gamma": math.nan}, "exponential.gamma = nan"),
        ({"name": "exponential", "gamma": 1.5}, "exponential.gamma = 1.5"),
        ({"name": "exponential", "gamma": "0.5"}, "must be float"),
        ({"name": "reduce_on_plateau", "mode": "up"}, "must be one of min, max"),
        ({"name": "warmup", "after": 3}, "cannot be a int"),
        ({"name": "warmup", "after": {"name": "reduce_on_plateau"}}, "cannot be a ReduceOnPlateau"),
        ({"name": "warmup", "after": {"name": "warmup", "after": {"name": "step"}}}, "cannot be a Warmup"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(plain: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        schedules.from_dict(plain)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_malformed_plateau_state_is_refused() -> None:
    plateau = schedules.ReduceOnPlateau().start()
    for state in ({}, {**plateau.as_dict(), "bad": "x"}, {**plateau.as_dict(), "best": [1]}):
        with pytest.raises(ConfigError, match="malformed"):
            plateau.load(state)


def test_rounds_can_be_the_steps() -> None:
    factors = np.array(
        [schedules.Warmup(2, 0.5, schedules.Step(2, 0.1)).factor(round_number) for round_number in range(6)]
    )
    np.testing.assert_allclose(factors, [0.5, 0.75, 1, 1, 0.1, 0.1])
