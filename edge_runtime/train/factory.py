"""From settings to a ready model, Program or trainer."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
import zlib
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime import plugins
from edge_runtime.errors import ConfigError, MemoryLimitError, MissingPackageError, PeerError, ProgramError
from edge_runtime.program.program import Program
from edge_runtime.train.batches import Array
from edge_runtime.train.config import MODELS, ModelConfig, TrainConfig
from edge_runtime.train.loop import LocalTrainer

if TYPE_CHECKING:
    import torch

# Without weights a Program is some tens of KB; as JSON it takes 25 times its size in memory while it is read.
MAX_PROGRAM_BYTES = 4 << 20


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


def module_named(text: str, seed: int) -> torch.nn.Module:
    """The module that a command line names: a registered name, `package.module:function` or `file.py:function`."""
    if text.endswith((".py", ".pt", ".pth", ".pt2")):
        raise ConfigError(f"{text}: name the function that makes the model, as file.py:function")
    file, colon, function = text.rpartition(":")
    if not colon:
        return make_module(ModelConfig(name=text), seed)
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # the user's own module usually stands in the folder they are in
    if not file.endswith(".py"):
        return make_module(ModelConfig(entry=text), seed)
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError("this model needs PyTorch: pip install 'hedgerow[server]'") from error
    make = _from_file(Path(file), function)
    torch.manual_seed(seed)
    try:
        module = make()
    except TypeError as error:
        raise ConfigError(f"{text}: {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(f"{text}: must return a torch.nn.Module, not {type(module).__name__}")
    return module


def _from_file(path: Path, function: str) -> Callable[[], torch.nn.Module]:
    """The function of that name in a Python file of the user's."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules[spec.name] = module  # where dataclasses and pickling look a class's module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, function, None)):
        raise ConfigError(f"{path}: has no function {function}")
    made: Callable[[], torch.nn.Module] = getattr(module, function)
    return made


def make_program(
    model: ModelConfig,
    train: TrainConfig,
    example: Array,
    *,
    proximal_mu: float = 0.0,
    correction: bool = False,
    seed: int = 0,
) -> Program:
    """What the engine trains: `model` for batches of rows like those of `example`, planned as `train` says."""
    return _cached_program(model, train, example.shape[1:], example.dtype.name, proximal_mu, correction, seed)


# A simulation asks for it twice: to see whether all fits together before the first round, and to train it.
@functools.lru_cache(maxsize=2)
def _cached_program(
    model: ModelConfig,
    train: TrainConfig,
    shape: tuple[int, ...],
    dtype: str,
    proximal_mu: float,
    correction: bool,
    seed: int,
) -> Program:
    from edge_runtime.building import build

    return build(
        make_module(model, seed),
        np.zeros((1, *shape), dtype),
        loss=train.build_loss(),
        optimizer=train.optimizer.build(),
        batch_size=train.batch_size,
        memory_budget=train.memory_budget or None,
        trainable=train.trainable_names(),
        lora_rank=train.lora_rank,
        lora_alpha=train.lora_alpha or None,
        micro_batch=train.micro_batch or None,
        proximal_mu=proximal_mu,
        correction=correction,
        clip_value=train.clip_value,
        clip_norm=train.clip_norm,
        qat_bits=train.qat_bits,
        qat_activations=train.qat_activations,
    )


def _freeze_others(module: torch.nn.Module, trainable: list[str] | str | None) -> None:
    """Leave a gradient to the parameters that `trainable` names; PyTorch has no budget, so "auto" is all."""
    if not isinstance(trainable, list):
        return
    parameters = dict(module.named_parameters(remove_duplicate=False))
    wanted: set[torch.nn.Parameter] = set()
    for pattern in trainable:
        fitting = [one for name, one in parameters.items() if fnmatchcase(name, pattern)]
        if not fitting:
            raise ConfigError(f"trainable = {pattern!r}: fits no parameter; there are {', '.join(parameters)}")
        wanted.update(fitting)
    for one in parameters.values():
        one.requires_grad_(one in wanted)


def example_of(model: ModelConfig) -> Array:
    """One row of the shape and dtype that `model.input` says.

    >>> example_of(ModelConfig(input="1x28x28")).shape
    (1, 1, 28, 28)
    """
    found = re.fullmatch(r"(\d{1,9}(?:x\d{1,9}){0,7})(?: (float32|int64))?", model.input.strip())
    if not found or any(int(n) < 1 for n in found[1].split("x")):
        raise ConfigError(f'model.input = {model.input!r}: must be a shape such as "1x28x28", or "64 int64" for tokens')
    return np.zeros((1, *map(int, found[1].split("x"))), found[2] or "float32")


def make_trainer(
    model: ModelConfig,
    train: TrainConfig,
    *,
    program: Program | None = None,
    proximal_mu: float = 0.0,
    correction: bool = False,
    seed: int = 0,
    threads: int = 1,
) -> LocalTrainer:
    """The trainer that `train` names: the engine for `program`, or PyTorch for the model that `model` names.

    With `correction` it has room for SCAFFOLD's.
    """
    if train.trainer == "engine":
        from edge_runtime.train.trainer import Trainer

        if program is None:
            program = make_program(
                model, train, example_of(model), proximal_mu=proximal_mu, correction=correction, seed=seed
            )
        return Trainer(program, threads=threads, seed=seed)

    from edge_runtime.train.torch_trainer import TorchTrainer

    module = make_module(model, seed)
    if train.lora_rank:
        from edge_runtime.capture.adapters import with_adapters

        module = with_adapters(module, train.lora_rank, train.lora_alpha or None, train.trainable_names())
    else:
        _freeze_others(module, train.trainable_names())
    return TorchTrainer(
        module,
        loss=train.build_loss(),
        optimizer=train.optimizer.build(),
        proximal_mu=proximal_mu,
        clip_value=train.clip_value,
        clip_norm=train.clip_norm,
        qat_bits=train.qat_bits,
        qat_activations=train.qat_activations,
        threads=threads,
        seed=seed,
    )


def pack_program(program: Program) -> bytes:
    """A Program as a server sends it beside the weights: without them, and compressed."""
    return zlib.compress(program.without_weights().to_bytes(), 9)


def unpack_program(data: bytes, max_arena_bytes: int | None = None) -> Program:
    """The Program that `pack_program` wrote.

    Raises:
        PeerError: it is malformed, or larger than 4 MiB.
        MemoryLimitError: it needs more than `max_arena_bytes` to train.

    """
    inflate = zlib.decompressobj()
    try:
        content = inflate.decompress(data, MAX_PROGRAM_BYTES)
        if not inflate.eof or inflate.unused_data:
            raise PeerError("the message's Program is cut off, or too large")
        program = Program.from_bytes(content)
    except (zlib.error, ProgramError) as error:
        raise PeerError(f"the message's Program: {error}") from error
    if max_arena_bytes is not None and program.arena_bytes > max_arena_bytes:
        needs = f"it needs {program.arena_bytes} bytes to train, {max_arena_bytes} are allowed"
        raise MemoryLimitError(f"the message's Program: {needs}")
    return program
