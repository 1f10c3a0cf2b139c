"""How much of a gradient local steps add up to: FedNova's normalising factor, and the K of SCAFFOLD.

After tau steps of SGD a client has moved by -lr (a_1 g_1 + ... + a_tau g_tau), where a depends on momentum and the
proximal term alone (Wang et al. 2020, section 4.1). Its sum |a|_1 is tau for plain SGD,
(tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho) with momentum rho, and (1 - (1 - lr mu)^tau) / (lr mu) with FedProx's
mu.
"""

from __future__ import annotations

import numpy as np

from edge_runtime.errors import ConfigError
from edge_runtime.train.config import RoundTask


def most_steps(examples: int, task: RoundTask) -> int:
    """Optimizer steps of one client in one round: all of its batches, in every epoch."""
    return -(-examples // task.train.batch_size) * task.train.epochs


def step_weight(task: RoundTask, steps: int) -> float:
    """|a|_1 of so many steps in this round.

    >>> from edge_runtime.train.config import OptimizerConfig, TrainConfig
    >>> plain = RoundTask(train=TrainConfig(optimizer=OptimizerConfig(momentum=0.0)))
    >>> step_weight(plain, 7), round(step_weight(RoundTask(), 7), 6)
    (7.0, 23.046721)
    """
    optimizer = task.train.optimizer
    lr = optimizer.lr * round_factor(task)
    m, nesterov, pull = optimizer.momentum, optimizer.nesterov, lr * task.proximal_mu
    # What gradients of 1 come to, over (velocity v, distance from the start in units of lr, 1):
    # g = 1 - pull distance, v' = m v + g, and the step is v', or with Nesterov's momentum g + m v'. A power of one
    # matrix, for the number of steps is a client's word.
    gradient, velocity = np.array([0, -pull, 1]), np.array([m, -pull, 1])
    moved = gradient + m * velocity if nesterov else velocity
    step = np.stack([velocity, np.array([0, 1, 0]) + moved, np.array([0, 0, 1])])
    return float((np.linalg.matrix_power(step, steps) @ np.array([0, 0, 1]))[1])


def round_factor(task: RoundTask) -> float:
    """What the schedule makes of the learning rate in this round."""
    schedule = task.train.schedule
    return schedule.build().factor(task.round - 1) if schedule.over == "rounds" else 1.0


def check_linear(strategy: str, task: RoundTask) -> None:
    """ConfigError where a client's steps do not add gradients up with weights known beforehand."""
    train, optimizer = task.train, task.train.optimizer
    if optimizer.name != "sgd":
        raise ConfigError(
            f"train.optimizer.name = {optimizer.name!r}: must be sgd with server.strategy = {strategy!r}, whose theory "
            "is of steps that add gradients up; an adaptive one rescales them"
        )
    if train.schedule.over == "steps" and train.schedule != type(train.schedule)(over="steps"):
        raise ConfigError(
            f'train.schedule.over = "steps": must be "rounds" with server.strategy = {strategy!r}, which counts the '
            "steps of a round alike"
        )
    if optimizer.lr * task.proximal_mu >= 1:
        raise ConfigError(
            f"server.proximal_mu = {task.proximal_mu:g}: times train.optimizer.lr = {optimizer.lr:g} must be below 1 "
            f"with server.strategy = {strategy!r}"
        )
