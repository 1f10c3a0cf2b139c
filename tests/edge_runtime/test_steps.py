"""What local steps add up to: the paper's closed forms, and how far a real optimizer moves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.config import from_flat
from edge_runtime.errors import ConfigError
from edge_runtime.train.config import RoundTask
from edge_runtime.train.steps import check_linear, most_steps, step_weight


def task(**settings: object) -> RoundTask:
    return from_flat(RoundTask, {"train.optimizer.momentum": 0.0, **settings})


@given(steps=st.integers(1, 300), rho=st.floats(0.01, 0.95))
def test_momentum_is_as_the_paper_has_it(steps: int, rho: float) -> None:
    closed = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert step_weight(task(**{"train.optimizer.momentum": rho}), steps) == pytest.approx(closed, rel=1e-9)


@given(steps=st.integers(1, 300), lr=st.floats(1e-3, 0.5), mu=st.floats(1e-3, 1.5))
def test_the_proximal_term_is_as_the_paper_has_it(steps: int, lr: float, mu: float) -> None:
    closed = (1 - (1 - lr * mu) ** steps) / (lr * mu)
    assert step_weight(task(**{"train.optimizer.lr": lr}, proximal_mu=mu), steps) == pytest.approx(closed, rel=1e-9)


@pytest.mark.parametrize("nesterov", [False, True])
def test_all_together_is_how_far_pytorch_moves_along_a_gradient_of_one(nesterov: bool) -> None:
    lr, mu, rho = 0.2, 0.3, 0.7
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=lr, momentum=rho, nesterov=nesterov)
    asked = {"optimizer.lr": lr, "optimizer.momentum": rho, "optimizer.nesterov": nesterov}
    settings = {f"train.{name}": value for name, value in asked.items()}
    for steps in range(1, 30):
        weight.grad = torch.ones_like(weight) + mu * weight.detach()
        optimizer.step()
        assert step_weight(task(**settings, proximal_mu=mu), steps) == pytest.approx(-weight.item() / lr, rel=1e-12)


def test_a_schedule_over_rounds_counts_where_the_pull_depends_on_it() -> None:
    settings = {"train.optimizer.lr": 0.5, "train.schedule.name": "exponential", "train.schedule.gamma": 0.1}
    late = task(**settings, round=3, proximal_mu=1.0)
    assert step_weight(late, 5) == pytest.approx((1 - (1 - 0.005) ** 5) / 0.005)
    assert step_weight(task(**settings, round=3), 5) == pytest.approx(5)


def test_a_claim_of_many_steps_costs_no_time() -> None:
    assert step_weight(task(), 2**40) == pytest.approx(2.0**40)


def test_most_steps_are_all_batches_of_all_epochs() -> None:
    assert most_steps(33, task(**{"train.batch_size": 16, "train.epochs": 2})) == 6


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"train.optimizer.name": "adam"}, "train.optimizer.name"),
        ({"train.schedule.over": "steps", "train.schedule.name": "cosine"}, "train.schedule.over"),
        ({"train.optimizer.lr": 2.0, "proximal_mu": 0.5}, "server.proximal_mu"),
    ],
)
def test_steps_that_cannot_be_counted_are_refused(settings: dict[str, object], named: str) -> None:
    check_linear("fednova", task(**{"train.schedule.over": "steps"}))
    with pytest.raises(ConfigError, match=named):
        check_linear("fednova", task(**settings))
