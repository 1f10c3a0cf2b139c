"""`hedgerow build` and `hedgerow explain`: a model to a Program, and what the plan costs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import losses, optimizers
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from edge_runtime.program.program import Program


def build_command(parser: argparse.ArgumentParser) -> None:
    """Plan the training of a model and write it to a Program file, which a device runs without PyTorch."""
    _model_arguments(parser)
    parser.add_argument("--out", metavar="FILE", help="Program file to write (default: the model's name + .program)")
    parser.set_defaults(run=_build)


def explain_command(parser: argparse.ArgumentParser) -> None:
    """Show what a plan keeps and recomputes, and memory against time, for a model or a Program file."""
    _model_arguments(parser)
    parser.set_defaults(run=_explain)


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        help="package.module:function or file.py:function that makes it, or a registered name; or FILE.program",
    )
    parser.add_argument("--input", default="", metavar="SHAPE", help='one example, as "1x28x28", or "64 int64"')
    parser.add_argument("--loss", default="cross_entropy", choices=sorted(losses.LOSSES))
    parser.add_argument("--optimizer", default="sgd", choices=sorted(optimizers.OPTIMIZERS))
    parser.add_argument("--lr", type=float, help="learning rate (default: the optimizer's)")
    parser.add_argument("--momentum", type=float, help="of sgd or rmsprop")
    parser.add_argument("--weight-decay", type=float)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, help="rows that go through at once (default: the planner's choice)")
    parser.add_argument("--memory-budget", metavar="BYTES", help='such as "8 MiB"; all of training has to fit in it')
    parser.add_argument("--trainable", help='names or patterns with commas, or "auto" (default: all)')
    parser.add_argument("--lora-rank", type=int, default=0, help="of adapters on linear and 1x1 layers (default: none)")
    parser.add_argument("--qat-bits", type=int, default=0, help="of weights while training (default: float32)")
    parser.add_argument("--clip-norm", type=float, default=0.0, help="bound of the gradients' common norm")
    parser.add_argument("--seed", type=int, default=0, help="for the model's initial weights")


def _build(options: argparse.Namespace) -> int:
    program = _program(options)
    name = options.model.rpartition(":")[2] if ":" in options.model else Path(options.model).stem
    path = program.save(options.out or f"{name}.program")
    size = path.stat().st_size
    sys.stdout.write(f"{program.explain()}\n{path}: {size} bytes\n")
    return 0


def _explain(options: argparse.Namespace) -> int:
    if options.model.endswith(".program"):
        from edge_runtime.program.program import Program

        sys.stdout.write(Program.load(options.model).explain())
    else:
        sys.stdout.write(_program(options).explain())
    return 0


def _program(options: argparse.Namespace) -> Program:
    from edge_runtime.building import build
    from edge_runtime.train.config import ModelConfig
    from edge_runtime.train.factory import example_of, module_named

    if options.model.endswith(".program"):
        raise ConfigError(f"{options.model} is a Program already; hedgerow explain shows it")
    if options.model.endswith((".py", ".pt", ".pth", ".pt2")):
        raise ConfigError(f"{options.model}: name the function that makes the model, as file.py:function")
    if not options.input:
        raise ConfigError('--input is missing: the shape of one example, such as "1x28x28", or "64 int64" for tokens')
    example = example_of(ModelConfig(input=options.input))
    module = module_named(options.model, options.seed)
    names = [name.strip() for name in (options.trainable or "").split(",") if name.strip()]
    return build(
        module,
        example,
        loss=options.loss,
        optimizer=_optimizer(options),
        batch_size=options.batch_size,
        memory_budget=options.memory_budget,
        trainable="auto" if names == ["auto"] else names or None,
        lora_rank=options.lora_rank,
        qat_bits=options.qat_bits,
        micro_batch=options.micro_batch,
        clip_norm=options.clip_norm,
    )


def _optimizer(options: argparse.Namespace) -> optimizers.Optimizer:
    kind = optimizers.OPTIMIZERS[options.optimizer]
    given = {name: getattr(options, name) for name in ("lr", "momentum", "weight_decay")}
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except TypeError as error:
        raise ConfigError(f"--optimizer {options.optimizer} has no momentum") from error
