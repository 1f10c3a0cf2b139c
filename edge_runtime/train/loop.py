"""What every trainer does, whatever runs underneath, and the one training loop around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from edge_runtime.errors import ConfigError
from edge_runtime.schedules import Plateau, ReduceOnPlateau, Schedule
from edge_runtime.train.batches import Array, Batch, Batches, Inputs, Targets, row_count
from edge_runtime.train.checkpoint import Checkpoint, restore
from edge_runtime.train.history import Epoch, History
from edge_runtime.train.metrics import Metric

__all__ = ["Array", "Callback", "Epoch", "History", "LocalTrainer", "Loop", "State", "StepFunction", "fit"]

State = dict[str, Array]
# Called after every optimizer step with the step's number, from 0, and its loss.
StepFunction = Callable[[int, float], None]


class LocalTrainer(Protocol):
    """Trains one model on this machine. Arrays go in and out; names are those of the module's `state_dict()`.

    `lr_scale` multiplies the optimizer's learning rate from the next step on; it is the caller's to set (a schedule's
    factor, by round or by step), and loading weights leaves it alone.
    """

    lr_scale: float

    @property
    def steps(self) -> int:
        """Optimizer steps since the weights were loaded."""

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy weights in and start local training afresh.

        Optimizer state is cleared, and these weights become the anchor of a proximal term.

        Raises:
            ValueError: a tensor is missing, unknown, or of another shape.

        """

    def state_dict(self) -> State:
        """A copy of all weights and buffers."""

    def buffer_names(self) -> set[str]:
        """Names in `state_dict()` of running statistics and counters: moved by the forward pass, not by gradients."""

    def moving_names(self) -> list[str]:
        """Float tensors that a step may move, in the order of `state_dict()`: trained parameters, running statistics.

        Of a tensor with several names only the one that `load_state_dict` reads. All others stay as loaded.
        """

    def reseed(self, seed: int) -> None:
        """Restart the random numbers that training uses (dropout)."""

    def set_correction(self, correction: Mapping[str, Array]) -> None:
        """Add c - c_i to every gradient until weights are loaded again: SCAFFOLD, Karimireddy et al. 2020, equation 3.

        Names are those of trained parameters; one that is left out has no correction.

        Raises:
            ValueError: a name that is no trained parameter, or a tensor of another shape.

        """

    def snapshot(self) -> State:
        """A copy of all that exact continuation needs: weights, buffers, optimizer state, step count, random state."""

    def restore(self, snapshot: Mapping[str, Array]) -> None:
        """Continue from `snapshot`, bit for bit.

        Raises:
            ConfigError: it is another model's or another optimizer's; nothing has changed then.

        """

    def step(self, x: Inputs, y: Targets) -> float:
        """One optimizer step on one batch; returns its mean loss before the step."""

    def fit(
        self,
        batches: Iterable[Batch],
        epochs: int = 1,
        callbacks: Iterable[Callback | StepFunction] = (),
        *,
        schedule: Schedule | None = None,
        validation: Iterable[Batch] | None = None,
        metrics: Sequence[Metric | str] | None = None,
        resume: Checkpoint | None = None,
    ) -> History:
        """See `loop.fit`."""

    def evaluate(self, batches: Iterable[Batch], metrics: Sequence[Metric | str] | None = None) -> dict[str, float]:
        """Mean `loss` and the metrics' figures, with the model in evaluation mode.

        Without `metrics`: `accuracy` where targets are classes. See `metrics.Evaluation`.
        """

    def predict(self, x: Inputs) -> Any:
        """The model's output for x, float32, in evaluation mode; a tuple of arrays where it has several outputs."""


class Callback:
    """What a training calls at four points; a subclass overrides those that it needs.

    A hook may end training with `loop.stop(reason)`: no further step is made, and `on_end` still runs. An exception
    from a hook leaves `fit` at once.
    """

    # Callbacks that save checkpoints run after all others, so that these have seen the step that is saved.
    last: ClassVar[bool] = False

    def on_start(self, loop: Loop) -> None:
        """Before the first step, when a checkpoint has been taken up already."""

    def on_step(self, loop: Loop) -> None:
        """After every optimizer step: the newest loss is `loop.history.losses[-1]`."""

    def on_epoch(self, loop: Loop) -> None:
        """After every complete pass and its validation: its figures are `loop.history.epochs[-1]`."""

    def on_end(self, loop: Loop) -> None:
        """After the last step, however it came to be the last."""

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint must keep, in plain JSON values and arrays; None for nothing."""
        return None

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""


@dataclass(slots=True)
class Loop:
    """A training under way, as its callbacks see it."""

    trainer: LocalTrainer
    batches: Iterable[Batch]
    epochs: int
    callbacks: Sequence[Callback]
    schedule: Schedule | None = None
    history: History = field(default_factory=History)
    # Complete passes, and batches done in the current one.
    epoch: int = 0
    batch: int = 0
    # The caller's own factor; the schedule's is on top of it.
    base_scale: float = 1.0
    plateau: Plateau | None = None
    # The batches' generator at the start of the current pass.
    _order: Any = None

    def __post_init__(self) -> None:
        self.base_scale = self.trainer.lr_scale
        if isinstance(self.schedule, ReduceOnPlateau):
            self.plateau = self.schedule.start()

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return len(self.history.losses)

    def stop(self, reason: str) -> None:
        """End training after the callbacks of this step or epoch."""
        self.history.stopped = reason

    def order(self) -> Any:
        """What the batches' order depends on at the start of the current pass; None where that is unknown."""
        if self.batch:
            return self._order
        return self.batches.state() if isinstance(self.batches, Batches) else None

    def reorder(self, order: Any) -> None:
        """Let the current pass follow what `order()` gave."""
        if isinstance(self.batches, Batches):
            self.batches.restore(order)

    def run_epoch(self, validation: Iterable[Batch] | None, metrics: Sequence[Metric | str] | None) -> None:
        """The rest of the current pass, unless a callback stops it."""
        for x, y in self._rest_of_pass():
            self.trainer.lr_scale = self.base_scale * self._factor()
            self.history.losses.append(self.trainer.step(x, y))
            self.history.examples += row_count(x)
            self.batch += 1
            for callback in self.callbacks:
                callback.on_step(self)
            if self.history.stopped:
                return
        self._end_epoch({} if validation is None else self.trainer.evaluate(validation, metrics))

    def _rest_of_pass(self) -> Iterator[Batch]:
        if isinstance(self.batches, Batches):
            self._order = self.batches.state()
            return self.batches.starting_at(self.batch)
        rest = iter(self.batches)
        for _ in range(self.batch):
            next(rest, None)
        return rest

    def _end_epoch(self, figures: Mapping[str, float]) -> None:
        if not self.batch:
            raise ConfigError(
                f"no batches in epoch {self.epoch + 1}; give a list or Batches: a generator is used up after one pass"
            )
        losses = self.history.losses[self.step - self.batch :]
        mean = float(np.mean(losses)) if losses else float("nan")
        self.history.epochs.append(Epoch(mean, self.trainer.lr_scale, figures))
        if self.plateau is not None:
            self.plateau.observe(self.history.epochs[-1].figure(self.plateau.schedule.metric))
        self.epoch, self.batch = self.epoch + 1, 0
        for callback in self.callbacks:
            callback.on_epoch(self)

    def _factor(self) -> float:
        match self.schedule:
            case None:
                return 1.0
            case ReduceOnPlateau():
                assert self.plateau is not None
                return self.plateau.factor
            case schedule:
                return schedule.factor(self.step)


def fit(
    trainer: LocalTrainer,
    batches: Iterable[Batch],
    epochs: int = 1,
    callbacks: Iterable[Callback | StepFunction] = (),
    *,
    schedule: Schedule | None = None,
    validation: Iterable[Batch] | None = None,
    metrics: Sequence[Metric | str] | None = None,
    resume: Checkpoint | None = None,
) -> History:
    """`step` over all batches, `epochs` times.

    Args:
        trainer: whose step count and weights move.
        batches: gone through once an epoch; to be resumed, the same on every pass, or `Batches`.
        epochs: passes in all, those before a resumed checkpoint included.
        callbacks: `Callback`s, or functions of (step, loss).
        schedule: its factor at this fit's step, from 0, multiplies the learning rate, on top of `trainer.lr_scale`.
        validation: evaluated after every epoch with `metrics`.
        metrics: as in `LocalTrainer.evaluate`.
        resume: go on from here; the trainer and the other arguments must be as they were when it was taken.

    Raises:
        ConfigError: `resume` does not fit this training.

    """
    hooks = [callback if isinstance(callback, Callback) else _EachStep(callback) for callback in callbacks]
    loop = Loop(trainer, batches, epochs, sorted(hooks, key=lambda hook: hook.last), schedule)
    before = trainer.lr_scale
    try:
        if resume is not None:
            restore(loop, resume)
        for callback in loop.callbacks:
            callback.on_start(loop)
        while loop.epoch < epochs and not loop.history.stopped:
            loop.run_epoch(validation, metrics)
    finally:
        trainer.lr_scale = before
    for callback in loop.callbacks:
        callback.on_end(loop)
    return loop.history


class _EachStep(Callback):
    """A plain function in a callback's place."""

    def __init__(self, function: StepFunction) -> None:
        self._function = function

    def on_step(self, loop: Loop) -> None:
        self._function(loop.step - 1, loop.history.losses[-1])
