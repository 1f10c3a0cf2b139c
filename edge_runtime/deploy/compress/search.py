"""The most accurate model whose files are small enough: a search over levers, with the model itself as the teacher.

Sizes depend on shapes and bits alone, so they are had before any training: for each combination of rank, bits and
ranking, the smallest share of channels is cut with which every file fits. Those candidates are trained for a short
while and the better ones for longer (successive halving; Jamieson and Talwalkar 2016). All choices are made on a
validation part of the training examples; the held-out ones are used once, on the model that was chosen. Training
examples that the original has seen flatter it, and so the accuracies on that part are to be compared, not believed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.compress.channels import channel_groups, prune_channels
from edge_runtime.deploy.compress.finetune import Tuning, finetune, teacher_logits
from edge_runtime.deploy.compress.low_rank import Spectrum, factored, spectra
from edge_runtime.deploy.compress.scores import Scores, magnitude, taylor
from edge_runtime.deploy.exporter import Prepared, prepare, write
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.quantise import quantise
from edge_runtime.deploy.graph.rounding import predict_rounded
from edge_runtime.errors import ConfigError, EdgeRuntimeError, UnsupportedOpError
from edge_runtime.train.batches import Batches, Examples
from edge_runtime.train.metrics import accuracy
from edge_runtime.train.splits import hold_out

VALIDATION = 0.15  # share of the training examples that judges candidates
STEPS = 64  # of the share of channels that is cut
MOST_CUT = 60 / STEPS
CALIBRATION_ROWS = 200
ENERGIES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6)  # 1: layers stay as they are
BITS = (8, 4)


@dataclass(frozen=True, slots=True)
class Goal:
    """What a released model must be.

    Attributes:
        target_bytes: most that the file of each format may have.
        formats: of the files.
        precision: "int8" or "fp32".
        batch: that the files take; None for each format's own.
        max_drop: points of accuracy that it may be below the original in float32.

    """

    target_bytes: int
    formats: tuple[str, ...] = ("onnx",)
    precision: str = "int8"
    batch: int | None = None
    max_drop: float = 1.0


@dataclass(frozen=True, slots=True)
class Levers:
    """One combination: the share of channels cut, how they are ranked, the energy that is kept, bits of weights."""

    cut: float = 0.0
    ranked: str = "taylor"  # or "magnitude"
    together: bool = False
    energy: float = 1.0
    bits: int = 8

    @property
    def untouched(self) -> bool:
        """Whether this is the original, exported as any model is."""
        return self.cut == 0 and self.energy == 1 and self.bits in (0, 8)

    def __str__(self) -> str:
        parts = [f"{self.bits}-bit weights"] if self.bits else []
        if self.cut:
            over = "all layers" if self.together else "each layer"
            parts.append(f"{self.cut:.0%} of channels cut by {self.ranked} over {over}")
        if self.energy < 1:
            parts.append(f"rank for {self.energy:.0%} of energy")
        return ", ".join(parts) or "as it is"


@dataclass(frozen=True, slots=True)
class Tried:
    """A row of the search's table. `accuracy` is on validation examples, with rounding; None if it was not trained."""

    levers: Levers
    parameters: int
    nbytes: int
    accuracy: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to.

    Attributes:
        model, levers: what was chosen, ready to be exported with `levers.bits`.
        tried: every combination, in order.
        original_accuracy, accuracy: of the original in float32, and of the chosen one as it is released, on held-out
            examples.

    """

    model: FloatModel
    levers: Levers
    tried: tuple[Tried, ...]
    original_accuracy: float
    accuracy: float

    @property
    def drop(self) -> float:
        """Points of accuracy lost."""
        return 100 * (self.original_accuracy - self.accuracy)


class SearchError(EdgeRuntimeError):
    """Nothing that was tried is small and accurate enough; `tried` says what came closest."""

    def __init__(self, text: str, tried: Sequence[Tried]) -> None:
        super().__init__(text)
        self.tried = tuple(tried)


@dataclass(frozen=True, slots=True)
class Effort:
    """Rounds of training: epochs of each, and how many candidates take part; the last also without a teacher."""

    epochs: tuple[int, ...] = (1, 3, 12)
    survivors: tuple[int, ...] = (16, 4, 2)
    seed: int = 0


def search(
    model: FloatModel,
    train: Examples,
    test: Examples,
    goal: Goal,
    effort: Effort = Effort(),
    say: Callable[[Tried], None] = lambda tried: None,
) -> Found:
    """The best model of at most `goal.target_bytes`.

    Args:
        model: folded and trained, of classes.
        train: for training and for choosing.
        test: held out, read once at the end.
        goal: what to reach.
        effort: how long to try.
        say: told every row of the table as it comes.

    Raises:
        SearchError: nothing fits, or the best that fits has lost more than `goal.max_drop` on held-out examples.
        ConfigError: the examples are of no classes.

    """
    return _Search(model, train, test, goal, effort, say).run()


@dataclass(slots=True)
class _Candidate:
    levers: Levers
    model: FloatModel
    nbytes: int
    accuracy: float = 0.0
    start: FloatModel | None = None  # before its last training, which was done as `tuning` says
    tuning: Tuning | None = None


class _Search:
    """The search in progress; `run` reads top-down."""

    def __init__(
        self,
        model: FloatModel,
        train: Examples,
        test: Examples,
        goal: Goal,
        effort: Effort,
        say: Callable[[Tried], None],
    ) -> None:
        _classes(train)
        self._model, self._test, self._goal, self._effort, self._say = model, test, goal, effort, say
        labels = _classes(train) if train.y.ndim == 1 else None
        fitting, judging = hold_out(len(train), VALIDATION, np.random.default_rng(effort.seed), labels)
        self._train_all = train
        self._fit, self._judge = train.rows(np.sort(fitting)), train.rows(np.sort(judging))
        self._calibration = [self._fit.x[start : start + 50] for start in range(0, CALIBRATION_ROWS, 50)]
        self._calibration = [one for one in self._calibration if len(one)]
        self._teacher = teacher_logits(model, self._fit.x)
        self._scores: dict[str, Scores] = {
            "taylor": taylor(model, Batches(self._fit.rows(slice(2000)), 50)),
            "magnitude": magnitude(model),
        }
        self._can_cut = not all(group.blocked for group in channel_groups(model))
        self._cuts: dict[Any, tuple[FloatModel, Mapping[str, Spectrum]]] = {}
        self._tried: list[Tried] = []

    def run(self) -> Found:
        candidates = self._candidates()
        if not candidates:
            return self._nothing()
        if whole := next((one for one in candidates if one.levers.untouched), None):
            self._note(Tried(whole.levers, whole.model.parameters, whole.nbytes, None, "fits as it is"))
            return self._released(whole)
        for epochs, survivors in zip(self._effort.epochs, self._effort.survivors, strict=True):
            candidates = sorted(candidates, key=lambda one: -one.accuracy)[:survivors]
            for one in candidates:
                self._train(one, epochs)
        best = max(candidates, key=lambda one: one.accuracy)
        return self._released(self._refitted(best)) if best.accuracy >= 0 else self._nothing()

    def _nothing(self) -> Found:
        sized = [one for one in self._tried if one.nbytes]
        if not sized:
            raise SearchError(f"no file can be written: {self._tried[0].note}", self._tried)
        least = min(sized, key=lambda one: one.nbytes)
        raise SearchError(
            f"no model fits in {self._goal.target_bytes:,} bytes: the least is {least.nbytes:,} ({least.levers}); "
            f"raise the target, or start from a smaller model",
            self._tried,
        )

    # Which combinations fit.

    def _candidates(self) -> list[_Candidate]:
        """For every combination the one that cuts least and fits; those that come to the same model are one."""
        found: dict[Any, _Candidate] = {}
        for start in self._combinations():
            one = self._least_cut(start)
            if one is not None:
                ranking = (start.ranked, start.together) if one.levers.cut else None
                shapes = tuple((name, w.shape) for name, w in one.model.weights.items())
                found.setdefault((start.bits, ranking, shapes), one)
        # Those that keep most parameters first: without training, nothing else tells them apart.
        return sorted(found.values(), key=lambda one: -one.model.parameters)

    def _combinations(self) -> Iterator[Levers]:
        bits = BITS if self._goal.precision == "int8" else (0,)
        cuts: list[tuple[str, bool]] = [("taylor", True), ("taylor", False), ("magnitude", False)]
        for one, energy, (ranked, together) in itertools.product(bits, ENERGIES, cuts if self._can_cut else cuts[:1]):
            yield Levers(0.0, ranked, together, energy, one)

    def _least_cut(self, start: Levers) -> _Candidate | None:
        """The least share of channels with which all files fit, by bisection; if there is none, a row says why."""
        low, high = -1, STEPS if self._can_cut else 1
        best: _Candidate | None = None
        while high - low > 1:
            step = (low + high) // 2 if best or low >= 0 else 0
            levers = dataclasses.replace(start, cut=step / STEPS)
            if levers.cut > MOST_CUT:
                high = step
                continue
            try:
                model = self._applied(levers)
                nbytes = self._nbytes(model, levers.bits)
            except UnsupportedOpError as error:
                self._note(Tried(levers, self._model.parameters, 0, None, f"refused: {error}"))
                return best
            if nbytes <= self._goal.target_bytes:
                best, high = _Candidate(levers, model, nbytes), step
            else:
                low = step
                smallest = Tried(levers, model.parameters, nbytes, None, "does not fit")
        if best is None:
            self._note(smallest)
        return best

    def _applied(self, levers: Levers) -> FloatModel:
        model, known = self._cut(levers.cut, levers.ranked, levers.together)
        return factored(model, energy=levers.energy, known=known) if levers.energy < 1 else model

    def _cut(self, cut: float, ranked: str, together: bool) -> tuple[FloatModel, Mapping[str, Spectrum]]:
        """The model without these channels, and what it takes to factor it; energies and bits share both."""
        key = (cut, ranked, together) if cut else ()
        if key not in self._cuts:
            model = self._model
            if cut:
                model = prune_channels(model, cut, scores=self._scores[ranked], together=together)
            self._cuts[key] = (model, spectra(model))
        return self._cuts[key]

    def _prepared(self, model: FloatModel, bits: int) -> Prepared:
        precision = self._goal.precision
        return prepare(model, None, self._calibration, precision=precision, weight_bits=bits or 8)

    def _nbytes(self, model: FloatModel, bits: int) -> int:
        """Of the largest file, about: equal numbers are written once, so which ones stand in it makes a difference."""
        ranges = {name: (-1.0 - place, 1.0) for place, name in enumerate(model.graph.values)}  # no two scales alike
        ready = quantise(model, ranges, weight_bits=bits) if bits else model
        return max(len(write(ready, name, self._goal.batch)) for name in self._goal.formats)

    def _real_nbytes(self, model: FloatModel, bits: int) -> int:
        """Of the largest file, with the numbers that it will have."""
        prepared, goal = self._prepared(model, bits), self._goal
        ready = prepared.quantised or prepared.float_model
        return max(len(write(ready, name, goal.batch)) for name in goal.formats)

    # How good they are.

    def _train(self, one: _Candidate, epochs: int) -> None:
        """Train a candidate on; of the ways to do it, the one that is best after it stays.

        A candidate is never judged untrained beside a trained one: the original has most likely seen the validation
        examples, and what has been trained least remembers them best.
        """
        one.start, one.accuracy = one.model, -1.0
        for tuning in self._tunings(one, epochs):
            tuned = finetune(one.start, self._fit, tuning, teacher=self._teacher if tuning.alpha else None)
            nbytes = self._real_nbytes(tuned, one.levers.bits)
            right = accuracy(self._predict(tuned, one.levers.bits, self._judge.x), _classes(self._judge))
            if nbytes > self._goal.target_bytes:
                self._note(Tried(one.levers, tuned.parameters, nbytes, right, "does not fit"))
            elif right > one.accuracy:
                one.accuracy, one.model, one.nbytes, one.tuning = right, tuned, nbytes, tuning
        if one.tuning is not None and one.accuracy >= 0:
            note = f"{epochs} epochs {_way(one.tuning)}"
            self._note(Tried(one.levers, one.model.parameters, one.nbytes, one.accuracy, note))

    def _refitted(self, one: _Candidate) -> _Candidate:
        """The chosen one, its last training done again on all training examples."""
        assert one.start is not None
        assert one.tuning is not None
        teacher = teacher_logits(self._model, self._train_all.x) if one.tuning.alpha else None
        model = finetune(one.start, self._train_all, one.tuning, teacher=teacher)
        nbytes = self._real_nbytes(model, one.levers.bits)
        if nbytes > self._goal.target_bytes:
            return one
        self._note(Tried(one.levers, model.parameters, nbytes, None, "chosen, trained on all examples"))
        return dataclasses.replace(one, model=model, nbytes=nbytes)

    def _tunings(self, one: _Candidate, epochs: int) -> Iterator[Tuning]:
        last = epochs == self._effort.epochs[-1]
        lr = 2e-3 if last else 1e-3
        rounded = one.levers.bits if one.levers.bits and one.levers.bits < 8 else 0
        for alpha in (0.5, 0.0) if last else (0.5,):
            yield Tuning(
                epochs, lr=lr, alpha=alpha, weight_bits=rounded, activations=bool(rounded), seed=self._effort.seed
            )

    def _predict(self, model: FloatModel, bits: int, x: NDArray[np.generic]) -> NDArray[np.float32]:
        """What the released file will say."""
        prepared = self._prepared(model, bits)
        if prepared.quantised is None:
            return predict(prepared.float_model, x)
        return predict_rounded(prepared.quantised, x)

    def _released(self, one: _Candidate) -> Found:
        """The chosen one, if it also holds on what nothing was chosen by."""
        original = accuracy(predict(self._model, self._test.x), _classes(self._test))
        right = accuracy(self._predict(one.model, one.levers.bits, self._test.x), _classes(self._test))
        found = Found(one.model, one.levers, tuple(self._tried), original, right)
        if found.drop > self._goal.max_drop:
            raise SearchError(
                f"the best model of at most {self._goal.target_bytes:,} bytes ({one.levers}) is right on "
                f"{100 * right:.1f} % of held-out examples, {found.drop:.1f} points below the original's "
                f"{100 * original:.1f} %, and {self._goal.max_drop:g} may be lost; raise one of the two",
                self._tried,
            )
        return found

    def _note(self, row: Tried) -> None:
        self._tried.append(row)
        self._say(row)


def _classes(examples: Examples) -> NDArray[np.integer]:
    if examples.y.dtype.kind not in "iu":
        raise ConfigError(f"a size is searched for models of classes; the targets are {examples.y.dtype}")
    return examples.y.astype(np.int64)


def _way(tuning: Tuning) -> str:
    words = ["with the original as teacher" if tuning.alpha else "from labels"]
    if tuning.weight_bits:
        words.append("and rounding")
    return " ".join(words)
