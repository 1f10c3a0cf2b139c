"""Server optimizers: how the mean client delta moves the global model. Pure pairs of init and step.

Delta = mean over clients of (w_client - w), weighted by examples. FedAvg and FedProx: McMahan et al. 2017, Li et al.
2020; FedAvgM: Hsu et al. 2019; FedAdagrad, FedAdam, FedYogi: Reddi et al. 2021, algorithm 2, with Adam's bias
correction where Flower's FedAdam has it. State and arithmetic are float64, weights are float32.

Two are the clients' work as much as the server's: FedNova (Wang et al. 2020), whose step is FedAvg's with the clients'
normalised updates (`counting.py`), and SCAFFOLD (Karimireddy et al. 2020, option II; `keeping.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatVector = NDArray[np.float32]
Delta = NDArray[np.float64]
Moments = tuple[Delta, ...]


class Settings(Protocol):
    """The keys of `[server]` that strategies read."""

    @property
    def lr(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def tau(self) -> float: ...


@dataclass(frozen=True, slots=True)
class State:
    """What a strategy carries from round to round: rounds applied so far, and its moments, each of shape (n,)."""

    applied: int
    moments: Moments


@dataclass(frozen=True, slots=True)
class Strategy:
    """`step(settings, applied, moments, delta) -> (moments, update)` with `moment_count` moments that start at zero."""

    moment_count: int
    step: Callable[[Settings, int, Moments, Delta], tuple[Moments, Delta]]
    proximal: bool = False  # clients add FedProx's term
    control: bool = False  # clients correct their steps by SCAFFOLD's control variates, and count alike
    normalised: bool = False  # clients divide by what their steps add up to, as FedNova has it
    default_lr: float = 1.0  # adaptive steps are about lr per weight whatever the delta's size: they need a small one

    def init(self, size: int) -> State:
        return State(0, tuple(np.zeros(size) for _ in range(self.moment_count)))

    def apply(self, settings: Settings, state: State, weights: FloatVector, delta: Delta) -> tuple[State, FloatVector]:
        """The next state and float32 weights of shape (n,); the inputs are left as they are."""
        moments, update = self.step(settings, state.applied, state.moments, delta)
        return State(state.applied + 1, moments), (weights + update).astype(np.float32)


def _fedavg(s: Settings, applied: int, moments: Moments, delta: Delta) -> tuple[Moments, Delta]:
    return (), s.lr * delta


def _fedavgm(s: Settings, applied: int, moments: Moments, delta: Delta) -> tuple[Moments, Delta]:
    velocity = s.momentum * moments[0] + delta
    return (velocity,), s.lr * velocity


def _adaptive(s: Settings, m: Delta, v: Delta, lr: float) -> tuple[Moments, Delta]:
    return (m, v), lr * m / (np.sqrt(v) + s.tau)


def _fedadagrad(s: Settings, applied: int, moments: Moments, delta: Delta) -> tuple[Moments, Delta]:
    return _adaptive(s, delta, moments[1] + delta**2, s.lr)


def _fedadam(s: Settings, applied: int, moments: Moments, delta: Delta) -> tuple[Moments, Delta]:
    m = s.beta1 * moments[0] + (1 - s.beta1) * delta
    v = s.beta2 * moments[1] + (1 - s.beta2) * delta**2
    t = applied + 1
    return _adaptive(s, m, v, s.lr * np.sqrt(1 - s.beta2**t) / (1 - s.beta1**t))


def _fedyogi(s: Settings, applied: int, moments: Moments, delta: Delta) -> tuple[Moments, Delta]:
    m = s.beta1 * moments[0] + (1 - s.beta1) * delta
    v = moments[1] - (1 - s.beta2) * delta**2 * np.sign(moments[1] - delta**2)
    return _adaptive(s, m, v, s.lr)


STRATEGIES: dict[str, Strategy] = {
    "fedadagrad": Strategy(2, _fedadagrad, default_lr=0.02),
    "fedadam": Strategy(2, _fedadam, default_lr=0.02),
    "fedavg": Strategy(0, _fedavg),
    "fedavgm": Strategy(1, _fedavgm),
    "fednova": Strategy(0, _fedavg, normalised=True),
    "fednova_prox": Strategy(0, _fedavg, proximal=True, normalised=True),
    "fedprox": Strategy(0, _fedavg, proximal=True),
    "fedyogi": Strategy(2, _fedyogi, default_lr=0.02),
    "scaffold": Strategy(0, _fedavg, control=True),
}
