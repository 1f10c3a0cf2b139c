"""Hedgerow's device runtime: everything a small device needs to train, pack its update and run the model.

Importing it costs numpy at most; each name below loads its module on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime import deploy, losses, optimizers, updates
    from edge_runtime.errors import ConfigError, EdgeRuntimeError, MissingPackageError, PeerError, UnsupportedOpError
    from edge_runtime.losses import L1, MSE, BCEWithLogits, CrossEntropy, Huber
    from edge_runtime.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop
    from edge_runtime.train.torch_trainer import TorchTrainer
    from edge_runtime.train.trainer import History, Trainer

__version__ = "0.1.0"

_HOME = {
    "ConfigError": "errors",
    "EdgeRuntimeError": "errors",
    "MissingPackageError": "errors",
    "PeerError": "errors",
    "UnsupportedOpError": "errors",
    "BCEWithLogits": "losses",
    "CrossEntropy": "losses",
    "Huber": "losses",
    "L1": "losses",
    "MSE": "losses",
    "Adagrad": "optimizers",
    "Adam": "optimizers",
    "AdamW": "optimizers",
    "RMSprop": "optimizers",
    "SGD": "optimizers",
    "TorchTrainer": "train.torch_trainer",
    "History": "train.trainer",
    "Trainer": "train.trainer",
}
_SUBPACKAGES = ("deploy", "losses", "optimizers", "updates")

__all__ = [  # noqa: RUF022 - grouped by room
    "ConfigError", "EdgeRuntimeError", "MissingPackageError", "PeerError", "UnsupportedOpError",
    "BCEWithLogits", "CrossEntropy", "Huber", "L1", "MSE",
    "Adagrad", "Adam", "AdamW", "RMSprop", "SGD",
    "History", "TorchTrainer", "Trainer",
    "deploy", "losses", "optimizers", "updates",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"edge_runtime.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"edge_runtime.{_HOME[name]}"), name)
    raise AttributeError(f"module 'edge_runtime' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
