"""Hedgerow's device runtime: everything a small device needs to train, pack its update and run the model.

Importing it costs the standard library at most; each name below loads its module on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime import deploy as deploy
    from edge_runtime import losses as losses
    from edge_runtime import optimizers as optimizers
    from edge_runtime import privacy as privacy
    from edge_runtime import schedules as schedules
    from edge_runtime import secagg as secagg
    from edge_runtime import sums as sums
    from edge_runtime import updates as updates
    from edge_runtime.adapters import merge_adapters as merge_adapters
    from edge_runtime.building import build as build
    from edge_runtime.building import build_graph as build_graph
    from edge_runtime.engine.philox import Shuffle as Shuffle
    from edge_runtime.errors import BudgetError as BudgetError
    from edge_runtime.errors import ConfigError as ConfigError
    from edge_runtime.errors import EdgeRuntimeError as EdgeRuntimeError
    from edge_runtime.errors import MissingPackageError as MissingPackageError
    from edge_runtime.errors import NumericsError as NumericsError
    from edge_runtime.errors import PeerError as PeerError
    from edge_runtime.errors import ProgramError as ProgramError
    from edge_runtime.errors import UnsupportedOpError as UnsupportedOpError
    from edge_runtime.losses import L1 as L1
    from edge_runtime.losses import MSE as MSE
    from edge_runtime.losses import BCEWithLogits as BCEWithLogits
    from edge_runtime.losses import CrossEntropy as CrossEntropy
    from edge_runtime.losses import Distillation as Distillation
    from edge_runtime.losses import Focal as Focal
    from edge_runtime.losses import Huber as Huber
    from edge_runtime.losses import KLDivergence as KLDivergence
    from edge_runtime.losses import MultiTask as MultiTask
    from edge_runtime.optimizers import SGD as SGD
    from edge_runtime.optimizers import Adagrad as Adagrad
    from edge_runtime.optimizers import Adam as Adam
    from edge_runtime.optimizers import AdamW as AdamW
    from edge_runtime.optimizers import RMSprop as RMSprop
    from edge_runtime.program.program import Program as Program
    from edge_runtime.train.batches import Batches as Batches
    from edge_runtime.train.batches import Examples as Examples
    from edge_runtime.train.batches import MultiExamples as MultiExamples
    from edge_runtime.train.callbacks import BestCheckpoint as BestCheckpoint
    from edge_runtime.train.callbacks import CheckpointEvery as CheckpointEvery
    from edge_runtime.train.callbacks import EarlyStopping as EarlyStopping
    from edge_runtime.train.callbacks import Progress as Progress
    from edge_runtime.train.callbacks import TensorBoard as TensorBoard
    from edge_runtime.train.checkpoint import Checkpoint as Checkpoint
    from edge_runtime.train.loop import Callback as Callback
    from edge_runtime.train.loop import History as History
    from edge_runtime.train.mapped import MappedExamples as MappedExamples
    from edge_runtime.train.metrics import Accuracy as Accuracy
    from edge_runtime.train.metrics import ConfusionMatrix as ConfusionMatrix
    from edge_runtime.train.metrics import PrecisionRecallF1 as PrecisionRecallF1
    from edge_runtime.train.splits import cross_validate as cross_validate
    from edge_runtime.train.splits import hold_out as hold_out
    from edge_runtime.train.splits import k_fold as k_fold
    from edge_runtime.train.splits import oversample as oversample
    from edge_runtime.train.torch_trainer import TorchTrainer as TorchTrainer
    from edge_runtime.train.trainer import Trainer as Trainer
    from edge_runtime.train.transforms import Crop as Crop
    from edge_runtime.train.transforms import Flip as Flip
    from edge_runtime.train.transforms import Noise as Noise
    from edge_runtime.train.transforms import Standardize as Standardize
    from edge_runtime.train.transforms import fit_standardize as fit_standardize

__version__ = "0.1.0"

_SUBPACKAGES = ("deploy", "losses", "optimizers", "privacy", "schedules", "secagg", "sums", "updates")

# Each module with the public names that it holds.
_NAMES = {
    "adapters": ("merge_adapters",),
    "building": ("build", "build_graph"),
    "engine.philox": ("Shuffle",),
    "errors": (
        "BudgetError", "ConfigError", "EdgeRuntimeError", "MissingPackageError", "NumericsError", "PeerError",
        "ProgramError", "UnsupportedOpError",
    ),
    "losses": (
        "BCEWithLogits", "CrossEntropy", "Distillation", "Focal", "Huber", "KLDivergence", "L1", "MSE", "MultiTask",
    ),
    "optimizers": ("Adagrad", "Adam", "AdamW", "RMSprop", "SGD"),
    "program.program": ("Program",),
    "train.batches": ("Batches", "Examples", "MultiExamples"),
    "train.callbacks": ("BestCheckpoint", "CheckpointEvery", "EarlyStopping", "Progress", "TensorBoard"),
    "train.checkpoint": ("Checkpoint",),
    "train.loop": ("Callback", "History"),
    "train.mapped": ("MappedExamples",),
    "train.metrics": ("Accuracy", "ConfusionMatrix", "PrecisionRecallF1"),
    "train.splits": ("cross_validate", "hold_out", "k_fold", "oversample"),
    "train.torch_trainer": ("TorchTrainer",),
    "train.trainer": ("Trainer",),
    "train.transforms": ("Crop", "Flip", "Noise", "Standardize", "fit_standardize"),
}  # fmt: skip
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_HOME, *_SUBPACKAGES])


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"edge_runtime.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"edge_runtime.{_HOME[name]}"), name)
    raise AttributeError(f"module 'edge_runtime' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
