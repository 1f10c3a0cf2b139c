"""Optimizers by name: frozen descriptions with PyTorch's arguments and PyTorch's arithmetic.

g is the mean gradient of the batch; with FedProx the trainer has added mu (w - w_round) to it before it comes here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_runtime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SGD:
    """u = momentum u + g + weight_decay w; w -= lr u (Nesterov: w -= lr (g + momentum u)); Sutskever et al. 2013."""

    lr: float = 0.05
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True)
class Adam:
    """Kingma & Ba 2015, algorithm 1, with bias correction; weight decay is added to the gradient."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay, w -= lr weight_decay w; Loshchilov & Hutter 2019."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01


@dataclass(frozen=True, slots=True)
class RMSprop:
    """v = alpha v + (1 - alpha) g^2; w -= lr g / (sqrt(v) + eps); Tieleman & Hinton 2012."""

    lr: float = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True)
class Adagrad:
    """v += g^2; w -= lr g / (sqrt(v) + eps); Duchi et al. 2011."""

    lr: float = 1e-2
    eps: float = 1e-10
    weight_decay: float = 0.0


def to_json(optimizer: Optimizer) -> dict[str, Any]:
    """Plain values that `from_json` makes the same optimizer of."""
    return {"name": type(optimizer).__name__, **dataclasses.asdict(optimizer)}


def from_json(text: Mapping[str, Any]) -> Optimizer:
    """The optimizer that `to_json` wrote; ValueError or TypeError where it is none."""
    fields = dict(text) if isinstance(text, Mapping) else {}
    kind = OPTIMIZERS.get(str(fields.pop("name", "")).lower())
    if kind is None or any(not isinstance(value, int | float) for value in fields.values()):
        raise ValueError(f"no optimizer {str(text)[:80]}")
    return checked(kind(**fields))


def checked(optimizer: Optimizer) -> Optimizer:
    """The same optimizer, if all its numbers are in the range in which its rule is defined.

    Raises:
        ConfigError: names the number and the range.

    """
    for item in dataclasses.fields(optimizer):
        value = getattr(optimizer, item.name)
        if not 0 <= value < 1e30:  # false for NaN; whole numbers from JSON may be larger than any float
            raise ConfigError(f"optimizer: {item.name} = {str(value)[:20]}: must be a finite number >= 0")
        if item.name in ("beta1", "beta2") and value >= 1:
            raise ConfigError(f"optimizer: {item.name} = {value}: must be < 1")
    if isinstance(optimizer, SGD) and optimizer.nesterov and not optimizer.momentum:
        raise ConfigError("optimizer: nesterov = True: needs momentum > 0")
    return optimizer


Optimizer = SGD | Adam | AdamW | RMSprop | Adagrad

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adagrad": Adagrad,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "sgd": SGD,
}
