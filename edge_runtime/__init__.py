"""Hedgerow's device runtime: everything a small device needs to train, pack its update and run the model.

Importing it costs numpy at most; each name below loads its module on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime import deploy, losses, optimizers, updates
    from edge_runtime.building import build
    from edge_runtime.errors import (
        BudgetError,
        ConfigError,
        EdgeRuntimeError,
        MissingPackageError,
        NumericsError,
        PeerError,
        ProgramError,
        UnsupportedOpError,
    )
    from edge_runtime.losses import (
        L1,
        MSE,
        BCEWithLogits,
        CrossEntropy,
        Distillation,
        Focal,
        Huber,
        KLDivergence,
        MultiTask,
    )
    from edge_runtime.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop
    from edge_runtime.program.program import Program
    from edge_runtime.train.loop import History
    from edge_runtime.train.torch_trainer import TorchTrainer
    from edge_runtime.train.trainer import Trainer

__version__ = "0.1.0"

_HOME = {
    "build": "building",
    "Program": "program.program",
    "Trainer": "train.trainer",
    "BudgetError": "errors",
    "NumericsError": "errors",
    "ProgramError": "errors",
    "Distillation": "losses",
    "Focal": "losses",
    "KLDivergence": "losses",
    "MultiTask": "losses",
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
    "History": "train.loop",
}
_SUBPACKAGES = ("deploy", "losses", "optimizers", "updates")

__all__ = [  # noqa: RUF022 - grouped by room
    "build", "Program", "Trainer",
    "BudgetError", "ConfigError", "EdgeRuntimeError", "MissingPackageError", "NumericsError", "PeerError",
    "ProgramError", "UnsupportedOpError",
    "BCEWithLogits", "CrossEntropy", "Distillation", "Focal", "Huber", "KLDivergence", "L1", "MSE", "MultiTask",
    "Adagrad", "Adam", "AdamW", "RMSprop", "SGD",
    "History", "TorchTrainer",
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
