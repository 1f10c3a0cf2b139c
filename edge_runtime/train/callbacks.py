"""Callbacks that most trainings want: progress, early stopping, checkpoints, TensorBoard."""

from __future__ import annotations

import importlib
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TextIO

from edge_runtime.errors import ConfigError, MissingPackageError
from edge_runtime.train import checkpoint
from edge_runtime.train.loop import Callback, Loop, State


class Progress(Callback):
    """One line of plain text after every epoch, and after every `every` steps if that is above 0.

    Args:
        stream: standard error by default.
        clock: seconds, for the rate.

    """

    def __init__(
        self, stream: TextIO | None = None, *, every: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._every, self._clock = stream or sys.stderr, every, clock
        self._start, self._examples = 0.0, 0

    def on_start(self, loop: Loop) -> None:
        self._start, self._examples = self._clock(), loop.history.examples

    def on_step(self, loop: Loop) -> None:
        if self._every and loop.step % self._every == 0:
            self._say(loop, loop.epoch + 1, f"loss {loop.history.losses[-1]:.4f}")

    def on_epoch(self, loop: Loop) -> None:
        epoch = loop.history.epochs[-1]
        figures = "".join(f"  val {name} {value:.4f}" for name, value in epoch.validation.items())
        self._say(loop, loop.epoch, f"train loss {epoch.train_loss:.4f}{figures}")

    def on_end(self, loop: Loop) -> None:
        if loop.history.stopped:
            self._say(loop, loop.epoch, f"stopped: {loop.history.stopped}")

    def _say(self, loop: Loop, epoch: int, text: str) -> None:
        seconds = max(self._clock() - self._start, 1e-9)
        rate = (loop.history.examples - self._examples) / seconds
        line = f"epoch {epoch}/{loop.epochs}  step {loop.step}  {text}  lr x{loop.trainer.lr_scale:.3g}  {rate:.0f}/s"
        self._stream.write(line + "\n")
        self._stream.flush()


class _Best:
    """Keeps the best value of one of an epoch's figures; NaN is never better."""

    def __init__(self, metric: str, mode: str, min_delta: float) -> None:
        if mode not in ("min", "max"):
            raise ConfigError(f"mode = {mode!r}: must be one of min, max")
        if not min_delta >= 0:
            raise ConfigError(f"min_delta = {min_delta}: must be >= 0")
        self.metric, self._sign, self._min_delta = metric, 1 if mode == "min" else -1, min_delta
        self.value: float | None = None

    def improved(self, loop: Loop) -> bool:
        """Whether the last epoch is better by more than min_delta than the best before it; if so, it is the best."""
        value = loop.history.epochs[-1].figure(self.metric)
        first = self.value is None and not math.isnan(value)
        better = first or (self.value is not None and self._sign * (self.value - value) > self._min_delta)
        if better:
            self.value = value
        return better


class EarlyStopping(Callback):
    """Ends training after `patience` epochs in a row in which `metric` was not better by more than `min_delta`.

    Args:
        metric: a validation figure; "loss" is the training loss where nothing is validated.
        mode: whether smaller ("min") or larger ("max") is better.
        restore_best: put the trainer back, at the end, to where it was after its best epoch. Keeps one snapshot of it
            in memory, and in checkpoints.

    """

    def __init__(
        self,
        metric: str = "loss",
        *,
        patience: int = 3,
        min_delta: float = 0.0,
        mode: str = "min",
        restore_best: bool = False,
    ) -> None:
        if patience < 1:
            raise ConfigError(f"patience = {patience}: must be >= 1")
        self._best, self._patience, self._restore_best = _Best(metric, mode, min_delta), patience, restore_best
        self._bad = 0
        self._snapshot: State = {}

    def on_epoch(self, loop: Loop) -> None:
        if self._best.improved(loop):
            self._bad = 0
            if self._restore_best:
                self._snapshot = loop.trainer.snapshot()
            return
        self._bad += 1
        if self._bad >= self._patience:
            best = "never a number" if self._best.value is None else f"best {self._best.value:.6g}"
            loop.stop(f"{self._best.metric} did not improve for {self._bad} epochs ({best})")

    def on_end(self, loop: Loop) -> None:
        if self._snapshot:
            loop.trainer.restore(self._snapshot)

    def state(self) -> dict[str, Any]:
        arrays = {f"snapshot/{name}": array for name, array in self._snapshot.items()}
        return {"best": self._best.value, "bad": self._bad, **arrays}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._best.value, self._bad = state["best"], state["bad"]
        own = "snapshot/"
        self._snapshot = {name.removeprefix(own): array for name, array in state.items() if name.startswith(own)}


class BestCheckpoint(Callback):
    """Saves a checkpoint after every epoch that is the best so far."""

    last: ClassVar[bool] = True

    def __init__(
        self, path: str | os.PathLike[str], metric: str = "loss", *, mode: str = "min", min_delta: float = 0.0
    ) -> None:
        self._path, self._best = path, _Best(metric, mode, min_delta)

    def on_epoch(self, loop: Loop) -> None:
        if self._best.improved(loop):
            checkpoint.save(self._path, checkpoint.capture(loop))

    def state(self) -> dict[str, Any]:
        return {"best": self._best.value}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._best.value = state["best"]


class CheckpointEvery(Callback):
    """Saves a checkpoint after every `steps` optimizer steps, over the one before."""

    last: ClassVar[bool] = True

    def __init__(self, path: str | os.PathLike[str], steps: int) -> None:
        if steps < 1:
            raise ConfigError(f"steps = {steps}: must be >= 1")
        self._path, self._steps = path, steps

    def on_step(self, loop: Loop) -> None:
        if loop.step % self._steps == 0:
            checkpoint.save(self._path, checkpoint.capture(loop))


class TensorBoard(Callback):
    """Writes train/loss and train/lr_scale by step, and validation/NAME by epoch, for TensorBoard to show.

    A resumed training goes on in the same directory; what it does again replaces what stood there.

    Raises:
        MissingPackageError: neither tensorboardX nor PyTorch with tensorboard is installed.

    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._make_writer, self._directory = _summary_writer(), os.fspath(directory)
        self._writer: Any = None

    def on_start(self, loop: Loop) -> None:
        self._writer = self._make_writer(self._directory, purge_step=loop.step + 1)

    def on_step(self, loop: Loop) -> None:
        self._writer.add_scalar("train/loss", loop.history.losses[-1], loop.step)
        self._writer.add_scalar("train/lr_scale", loop.trainer.lr_scale, loop.step)

    def on_epoch(self, loop: Loop) -> None:
        for name, value in loop.history.epochs[-1].validation.items():
            self._writer.add_scalar(f"validation/{name}", value, loop.step)
        self._writer.flush()

    def on_end(self, loop: Loop) -> None:
        self._writer.close()


# The lighter first: tensorboardX needs only protobuf, PyTorch's needs PyTorch and all of tensorboard.
_WRITERS = ("tensorboardX", "torch.utils.tensorboard")


def _summary_writer() -> Any:
    for module in _WRITERS:
        try:
            return importlib.import_module(module).SummaryWriter
        except ImportError:
            continue
    raise MissingPackageError("TensorBoard files need tensorboardX: pip install tensorboardX")
