"""`Trainer`: trains a Program on this machine, with no PyTorch and no memory but the Program's arena."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.engine.cores import allowed_cores
from edge_runtime.engine.session import Session
from edge_runtime.errors import ConfigError, NumericsError, ProgramError
from edge_runtime.kernels import native
from edge_runtime.kernels.native import MAX_THREADS
from edge_runtime.losses import CLASS_LOSSES, CrossEntropy, KLDivergence, MultiTask, denominator, terms
from edge_runtime.optimizers import Adam, AdamW
from edge_runtime.program.program import Phase, Program, Tensor
from edge_runtime.train import loop
from edge_runtime.train.batches import Array, Batch, Inputs, Targets, row_count
from edge_runtime.train.loop import State
from edge_runtime.train.metrics import Evaluation, Metric

MAX_RATE = 1e30  # a float32 holds it
Scalars = dict[str, float | tuple[float, ...]]


class Trainer:
    """`LocalTrainer` for a Program.

    Args:
        program: what to run; its initial weights are loaded.
        threads: that share each op's work; None for one on every core that this process may use. Results are the same
            bits with any number. A step runs without the GIL, so trainers in several Python threads run side by side.
        seed: for dropout.
        check_numerics: keep a copy of the state before every step, and on a NaN or an infinity restore it and name the
            op that made it; costs the state's bytes once more.
        session: the arena to run in, with its own threads; a poisoned one shows reads of what was never written.

    Raises:
        ProgramError: an op of the Program is malformed or reaches outside its arena.

    """

    def __init__(
        self,
        program: Program,
        *,
        threads: int | None = None,
        seed: int = 0,
        check_numerics: bool = False,
        session: Session | None = None,
    ) -> None:
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise ConfigError(f"threads = {threads}: must be 1 to {MAX_THREADS}")
        self.program = program
        self.lr_scale = 1.0
        self._check_numerics = check_numerics
        self._loss, self._terms = program.loss, terms(program.loss)
        self._session = session or Session(program, threads=threads or allowed_cores())
        self._tensors = {one.tensor.name: one for one in program.state}
        self._outputs = 1 + max(term.output for term in self._terms)
        self._by_kind: dict[str, list[Phase]] = {}
        for phase in sorted(program.phases, key=lambda phase: phase.batch):
            self._by_kind.setdefault(phase.kind, []).append(phase)
        self._predict = self._by_kind["predict"][0]
        # Of each phase that takes examples: the inputs that hold them, and the targets.
        self._data = {id(phase): _data(phase) for phase in program.phases if phase.kind != "update"}
        self._check_inputs()
        for name, content in program.initial.items():
            self._view(name)[...] = content
        self._counters = dict(program.counters)
        self._restart()
        self.reseed(seed)

    @property
    def steps(self) -> int:
        return self._steps

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        own = self.program.state_dict_order
        if state.keys() != set(own):
            odd = sorted(state.keys() ^ set(own))
            raise ValueError(f"state_dict differs from the model's in {len(odd)} names, first {odd[0]}")
        for name in own:
            shape = () if name in self._counters else self._tensors[self._own(name)].tensor.shape
            if np.shape(state[name]) != shape:
                raise ValueError(f"tensor {name} has shape {np.shape(state[name])}, the model's has {shape}")
        for name in own:
            if name in self._counters:
                self._counters[name] = int(state[name])
            elif name not in self.program.aliases:
                self._view(name)[...] = state[name]
        self._restart()

    def state_dict(self) -> State:
        return {
            name: np.array(self._counters[name]) if name in self._counters else self._view(self._own(name)).copy()
            for name in self.program.state_dict_order
        }

    def buffer_names(self) -> set[str]:
        return {name for name, one in self._tensors.items() if one.role == "buffer"} | set(self._counters)

    def moving_names(self) -> list[str]:
        # The log-variances of a learned loss move too, but are no part of the state_dict.
        return [name for name in self.program.state_dict_order if (one := self._tensors.get(name)) and one.trained]

    def reseed(self, seed: int) -> None:
        self._seed = seed % 2**63

    def set_correction(self, correction: Mapping[str, Array]) -> None:
        wanted = {name for name, one in self._tensors.items() if one.trained and one.role == "weight"}
        correction = {self._own(name): array for name, array in correction.items()}
        for name, array in correction.items():
            if name not in wanted:
                raise ValueError(f"a correction for {name}, which is no trained parameter")
            if f"{name}/correction" not in self._tensors:
                raise ConfigError("this Program has no room for corrections; build it with correction=True")
            if array.shape != self._tensors[name].tensor.shape:
                raise ValueError(
                    f"the correction for {name} has shape {array.shape}, not {self._tensors[name].tensor.shape}"
                )
        for name in wanted:
            if f"{name}/correction" in self._tensors:
                self._view(f"{name}/correction")[...] = correction.get(name, np.float32(0))

    def snapshot(self) -> State:
        parts: State = {name: self._view(name).copy() for name in self._tensors}
        parts |= {f"counter/{name}": np.array(value) for name, value in self._counters.items()}
        return parts | {"steps": np.array(self._steps), "random": np.array(self._seed)}

    def restore(self, snapshot: Mapping[str, Array]) -> None:
        own = self.snapshot()
        if own.keys() != snapshot.keys():
            odd = sorted(own.keys() ^ snapshot.keys())
            raise ConfigError(f"the snapshot does not fit this trainer: {len(odd)} names differ, first {odd[0]}")
        for name, array in own.items():
            if snapshot[name].shape != array.shape or snapshot[name].dtype != array.dtype:
                given = f"{snapshot[name].dtype} {snapshot[name].shape}"
                raise ConfigError(f"the snapshot does not fit this trainer: {name} is {given}")
        if int(snapshot["steps"]) < 0:
            raise ConfigError("the snapshot does not fit this trainer: its step count is negative")
        for name in self._tensors:
            self._view(name)[...] = snapshot[name]
        self._counters = {name: int(snapshot[f"counter/{name}"]) for name in self._counters}
        self._steps, self._seed = int(snapshot["steps"]), int(snapshot["random"])

    def step(self, x: Inputs, y: Targets) -> float:
        """One optimizer step on one batch of at most `program.batch_size` rows; returns its mean loss before it.

        Raises:
            ValueError: shapes or dtypes do not fit the Program, or a token or class is outside its table.
            NumericsError: NaN or infinity in the data or the loss, before any weight has moved; or in a gradient, when
                those that were updated before it have, unless `check_numerics` is on, which restores them all.

        """
        rows = row_count(x)
        if not 1 <= rows <= self.program.batch_size:
            raise ValueError(
                f"a batch of {rows} rows, the Program is for 1 to {self.program.batch_size}; pass smaller batches, or "
                f"build it with a larger batch_size"
            )
        phase = self._training_phase(rows)
        inputs = self._fitted_inputs(phase, x, rows)
        targets = self._fitted_targets(phase, y, rows)
        scalars = self._scalars(targets)
        before = self._session.state.copy() if self._check_numerics else None
        try:
            loss = self._run_batch(phase, [*inputs, *targets], rows, scalars)
            if before is not None and not np.all(np.isfinite(self._session.state.view(np.float32))):
                raise NumericsError("a weight or a moment is NaN or infinite after its update")
        except NumericsError as error:
            if before is None:
                raise NumericsError(f"step {self._steps}: {error}") from None
            raise self._located(error, before, phase, [*inputs, *targets], rows, scalars) from None
        except BaseException:
            if before is not None:
                self._session.state[...] = before
            raise
        self._steps += 1
        for name, count in self.program.counted.items():
            self._counters[name] += count
        return loss

    fit = loop.fit

    def evaluate(self, batches: Iterable[Batch], metrics: Sequence[Metric | str] | None = None) -> dict[str, float]:
        evaluation = Evaluation(self._loss, metrics)
        for x, y in batches:
            targets = self._fitted_targets(self._predict, y, row_count(x))
            outputs, loss = self._forward(x, targets)
            evaluation.add(loss, outputs[0] if len(outputs) == 1 else tuple(outputs), y)
        return evaluation.figures()

    def predict(self, x: Inputs) -> Any:
        outputs, _ = self._forward(x, None)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    # The steps of a step.

    def _training_phase(self, rows: int) -> Phase:
        if "accumulate" in self._by_kind:
            return self._by_kind["accumulate"][0]
        return next(phase for phase in self._by_kind["step"] if phase.batch >= rows)

    def _scalars(self, targets: Sequence[Array]) -> Scalars:
        """Learning rate, Adam's corrections, and for each term of the loss one over what it is divided by."""
        optimizer, t = self.program.optimizer, self._steps + 1
        if not abs(optimizer.lr * self.lr_scale) < MAX_RATE:
            raise ConfigError(f"the learning rate is {optimizer.lr:g} times lr_scale = {self.lr_scale:g}: not finite")
        scalars: Scalars = {"lr": optimizer.lr * self.lr_scale}
        if isinstance(optimizer, Adam | AdamW):
            scalars["corrections"] = (1 / (1 - optimizer.beta1**t), 1 / (1 - optimizer.beta2**t) ** 0.5)
        return scalars | self._norms(targets)

    def _norms(self, targets: Sequence[Array]) -> Scalars:
        sums = (denominator(term.loss, target) for term, target in zip(self._terms, targets, strict=True))
        return {f"norm.{k}": 1 / total if total > 0 else 0.0 for k, total in enumerate(sums)}

    def _run_batch(self, phase: Phase, arrays: Sequence[Array], rows: int, scalars: Scalars) -> float:
        loss = 0.0
        if phase.kind == "accumulate":
            self._clear("gradient")  # a step that failed half-way has left some
        for first in range(0, rows, phase.batch):
            scalars |= self._write(phase, arrays, first, min(first + phase.batch, rows), rows)
            self._session.run(phase, scalars)
            loss += float(self._session.view(phase.outputs[-1])[0])
        for update in self._by_kind.get("update", ()):
            self._session.run(update, scalars)
        return loss

    def _write(self, phase: Phase, arrays: Sequence[Array], first: int, last: int, rows: int) -> Scalars:
        """Put rows first .. last - 1 of the batch into the arena, zeros behind them and where there is no data."""
        count = last - first
        for place, tensor in enumerate(chain(*self._data[id(phase)])):
            view, filled = self._session.view(tensor), 0
            if place < len(arrays):
                repeat = tensor.shape[0] // phase.batch
                filled = count * repeat
                view[:filled] = arrays[place][first * repeat : last * repeat]
            view[filled:] = 0
        random = (self._seed, self._steps, first)
        return {"rows": float(count), "share": count / rows, "random": random}

    def _located(
        self,
        error: NumericsError,
        before: NDArray[np.uint8],
        phase: Phase,
        arrays: Sequence[Array],
        rows: int,
        scalars: Scalars,
    ) -> NumericsError:
        """The same error with the op that made the value; the state is as it was before the step."""
        where = ""
        self._session.state[...] = before
        for first in range(0, rows, phase.batch):
            if not where:
                scalars |= self._write(phase, arrays, first, min(first + phase.batch, rows), rows)
                where = self._session.first_not_finite(phase, scalars)
        for update in self._by_kind.get("update", ()):
            where = where or self._session.first_not_finite(update, scalars)
        self._session.state[...] = before
        return NumericsError(f"step {self._steps}: {error}; the first such value is made by {where or 'an unknown op'}")

    def _forward(self, x: Inputs, targets: Sequence[Array] | None) -> tuple[list[NDArray[np.float32]], float]:
        """Outputs for all rows of x, in as many runs as it takes, and the mean loss against `targets`."""
        phase, rows = self._predict, row_count(x)
        if not rows:
            raise ValueError("there are no rows to predict")
        inputs = self._fitted_inputs(phase, x, rows)
        scalars = self._norms(targets) if targets is not None else {f"norm.{k}": 0.0 for k in range(len(self._terms))}
        arrays = [*inputs, *(targets or ())]
        parts: list[list[NDArray[np.float32]]] = [[] for _ in phase.outputs[:-1]]
        loss = 0.0
        for first in range(0, rows, phase.batch):
            last = min(first + phase.batch, rows)
            scalars |= self._write(phase, arrays, first, last, rows)
            self._session.run(phase, scalars)
            loss += float(self._session.view(phase.outputs[-1])[0])
            for part, tensor in zip(parts, phase.outputs, strict=False):
                part.append(self._session.view(tensor)[: (last - first) * (tensor.shape[0] // phase.batch)].copy())
        return [np.concatenate(part) for part in parts], loss

    # What goes in, checked.

    def _check_inputs(self) -> None:
        """Every phase must have the inputs that a step writes, in the shapes that the loss says."""
        for phase in self.program.phases:
            if phase.kind == "update":
                continue
            inputs, targets = self._data[id(phase)]
            rows = [*inputs, *targets, *phase.outputs[:-1]]
            whole = all(tensor.shape and tensor.shape[0] % phase.batch == 0 for tensor in rows)
            kinds = ["i64" if isinstance(term.loss, CLASS_LOSSES) else "f32" for term in self._terms]
            outputs = self._outputs + 1 if phase.kind == "predict" else 1
            whole = whole and len(phase.outputs) == outputs and phase.outputs[-1].shape == (1,)
            if [one.dtype for one in targets] != kinds or not whole or phase.outputs[-1].dtype != "f32":
                raise ProgramError(f"phase {phase.kind} does not fit the Program's loss")

    def _fitted_inputs(self, phase: Phase, x: Inputs, rows: int) -> list[Array]:
        wanted, _ = self._data[id(phase)]
        given = x if isinstance(x, tuple) else (x,)
        if len(given) != len(wanted):
            raise ValueError(f"{len(given)} inputs, the model takes {len(wanted)}")
        return [self._fitted_input(phase, tensor, array, rows) for tensor, array in zip(wanted, given, strict=True)]

    def _fitted_input(self, phase: Phase, tensor: Tensor, values: Any, rows: int) -> Array:
        array = np.asarray(values)
        shape = (rows * (tensor.shape[0] // phase.batch), *tensor.shape[1:])
        if array.shape != shape:
            raise ValueError(f"input {tensor.name} has shape {array.shape}, the model takes {shape} for {rows} rows")
        if tensor.dtype == "i64":
            if array.dtype.kind not in "iu":
                raise ValueError(f"input {tensor.name} must be whole numbers, it is {array.dtype}")
            return array
        if array.dtype.kind not in "fiub":
            raise ValueError(f"input {tensor.name} must be numbers, it is {array.dtype}")
        data: NDArray[np.float32] = np.ascontiguousarray(array, np.float32)
        if not native.all_finite(data):
            row = int(np.argmax(~np.isfinite(data).reshape(len(data), -1).all(1)))
            raise NumericsError(f"step {self._steps}: NaN or infinity in the data, input {tensor.name}, row {row}")
        return data

    def _fitted_targets(self, phase: Phase, y: Targets, rows: int) -> list[Array]:
        given = y if isinstance(y, tuple) else (y,)
        _, wanted = self._data[id(phase)]
        if len(given) != len(wanted):
            raise ValueError(
                f"{type(self._loss).__name__} takes {len(wanted)} targets, the batch has {len(given)}"
                if isinstance(self._loss, MultiTask) or len(wanted) > 1
                else f"the loss takes one target, the batch has {len(given)}"
            )
        fitted = []
        for k, (tensor, array) in enumerate(zip(wanted, given, strict=True)):
            fitted.append(self._fitted_target(k, (rows * tensor.shape[0] // phase.batch, *tensor.shape[1:]), array))
        return fitted

    def _fitted_target(self, k: int, shape: tuple[int, ...], values: Any) -> Array:
        loss, array = self._terms[k].loss, np.asarray(values)
        classes = isinstance(loss, CLASS_LOSSES)
        if classes and array.dtype.kind not in "iu":
            name = "cross_entropy" if isinstance(loss, CrossEntropy) else "focal"
            raise ValueError(f"{name} needs whole-number classes, the targets are {array.dtype}")
        if array.shape not in (shape, (*shape, 1)) and shape != (*array.shape, 1):
            raise ValueError(f"targets {array.shape} do not fit the model's output, which wants {shape}")
        if classes:
            return array.reshape(shape)
        data: NDArray[np.float32] = np.ascontiguousarray(array.reshape(shape), np.float32)
        if not native.all_finite(data):
            what = "teacher's logits" if isinstance(loss, KLDivergence) else "targets"
            raise NumericsError(f"step {self._steps}: NaN or infinity in the {what}")
        return data

    def _own(self, name: str) -> str:
        """The name that a tensor of the module has here."""
        return self.program.aliases.get(name, name)

    def _view(self, name: str) -> NDArray[Any]:
        return self._session.view(self._tensors[name].tensor)

    def _restart(self) -> None:
        """Fresh local training from the weights as they are now."""
        for name, one in self._tensors.items():
            if one.role == "anchor":
                self._view(name)[...] = self._view(name.removesuffix("/anchor"))
        self._clear("moment", "correction", "gradient", "variance")
        self._steps = 0

    def _clear(self, *roles: str) -> None:
        for name, one in self._tensors.items():
            if one.role in roles:
                self._view(name)[...] = 0


def _data(phase: Phase) -> tuple[list[Tensor], list[Tensor]]:
    """The inputs that hold examples, in the model's order, and their targets."""
    named = ("rows", "random", "lr", "corrections", "share")
    found = [one for one in phase.inputs if one.name not in named and not one.name.startswith("norm.")]
    targets = [one for one in found if one.name.startswith("target.")]
    return [one for one in found if one not in targets], targets
