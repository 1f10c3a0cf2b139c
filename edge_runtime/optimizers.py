"""Optimizers by name: frozen descriptions with PyTorch's arguments and PyTorch's arithmetic.

g is the mean gradient of the batch; with FedProx the trainer has added mu (w - w_round) to it before it comes here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
    kind = OPTIMIZERS.get(str(text["name"]).lower())
    fields = {key: value for key, value in text.items() if key != "name"}
    if kind is None or any(not isinstance(value, int | float) for value in fields.values()):
        raise ValueError(f"no optimizer {text['name']!r} with such numbers")
    return kind(**fields)


Optimizer = SGD | Adam | AdamW | RMSprop | Adagrad

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adagrad": Adagrad,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "sgd": SGD,
}
