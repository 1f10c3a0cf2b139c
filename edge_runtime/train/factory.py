"""From settings to a ready model or trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edge_runtime import plugins
from edge_runtime.errors import ConfigError, MissingPackageError
from edge_runtime.train.config import MODELS, ModelConfig, TrainConfig
from edge_runtime.train.loop import LocalTrainer

if TYPE_CHECKING:
    import torch


def make_module(model: ModelConfig, seed: int) -> torch.nn.Module:
    """The PyTorch module that `model` names, its weights drawn from `seed`."""
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError("this model needs PyTorch: pip install 'hedgerow[server]'") from error
    make: Callable[[], torch.nn.Module]
    make = plugins.load_entry(model.entry) if model.entry else plugins.load(MODELS, model.name)
    torch.manual_seed(seed)
    module = make()
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(f"model.entry = {model.entry!r}: must return a torch.nn.Module, not {type(module).__name__}")
    return module


def make_trainer(model: ModelConfig, train: TrainConfig, *, proximal_mu: float = 0.0, seed: int = 0) -> LocalTrainer:
    """The trainer that `train` names for the model that `model` names."""
    from edge_runtime.train.torch_trainer import TorchTrainer

    return TorchTrainer(
        make_module(model, seed),
        loss=train.build_loss(),
        optimizer=train.optimizer.build(),
        proximal_mu=proximal_mu,
        seed=seed,
    )
