"""Figures about predictions, gathered batch by batch: what is kept does not grow with the number of examples.

Class metrics take logits (..., C) and whole-number targets (...), and skip targets equal to `ignore_index`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime import losses
from edge_runtime.errors import ConfigError
from edge_runtime.train.batches import Array, Targets

Floats = NDArray[np.floating[Any]]
IGNORE = -100


def accuracy(logits: Floats, targets: NDArray[np.integer]) -> float:
    """Share of targets that are the largest logit; logits (..., C), targets (...). 0.0 when there are none."""
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"logits {logits.shape} do not fit targets {targets.shape}")
    return float(np.mean(logits.argmax(-1) == targets)) if targets.size else 0.0


def agreement(a: Floats, b: Floats) -> float:
    """Share of rows in which two sets of logits (..., C) have the same largest entry."""
    return accuracy(a, b.argmax(-1))


class Metric(Protocol):
    """Something to measure over the batches of one evaluation."""

    def reset(self) -> None:
        """Forget all batches."""

    def update(self, output: Any, target: Any) -> None:
        """Take in the model's output for one batch and the batch's targets."""

    def figures(self) -> dict[str, float]:
        """The figures over all batches since `reset`, by name."""


@dataclass(slots=True)
class Accuracy:
    """Share of targets among the `k` largest logits; 0.0 when no target counts.

    Of equal logits the first is the largest for k = 1; for larger k they all count for the target.
    """

    k: int = 1
    ignore_index: int = IGNORE
    _hits: int = field(default=0, init=False)
    _count: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"accuracy.k = {self.k}: must be >= 1")

    def reset(self) -> None:
        self._hits = self._count = 0

    def update(self, output: Floats, target: NDArray[np.integer]) -> None:
        logits, classes = counted(output, target, self.ignore_index)
        if self.k == 1:
            hits = logits.argmax(-1) == classes
        else:
            own = np.take_along_axis(logits, classes[:, None], -1)
            # NaN logits are larger than nothing, so a broken model must be kept from hitting every target.
            hits = ((logits > own).sum(-1) < self.k) & np.isfinite(own[:, 0])
        self._hits += int(hits.sum())
        self._count += len(classes)

    def figures(self) -> dict[str, float]:
        name = "accuracy" if self.k == 1 else f"top{self.k}_accuracy"
        return {name: self._hits / self._count if self._count else 0.0}


@dataclass(slots=True)
class ConfusionMatrix:
    """`matrix[i, j]` counts the targets i that were predicted as j: (C, C), int64; (0, 0) before the first batch.

    It is read from the object; in an evaluation's figures it has none.
    """

    ignore_index: int = IGNORE
    matrix: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64), init=False)

    def reset(self) -> None:
        self.matrix = np.zeros((0, 0), np.int64)

    def update(self, output: Floats, target: NDArray[np.integer]) -> None:
        logits, classes = counted(output, target, self.ignore_index)
        width = logits.shape[-1]
        if not len(self.matrix):
            self.matrix = np.zeros((width, width), np.int64)
        pairs = classes.astype(np.int64) * width + logits.argmax(-1)
        self.matrix += np.bincount(pairs, minlength=width * width).reshape(width, width)

    def figures(self) -> dict[str, float]:
        return {}


AVERAGES = ("macro", "micro", "weighted", "none")


@dataclass(slots=True)
class PrecisionRecallF1:
    """Precision TP / (TP + FP), recall TP / (TP + FN) and F1 = 2 TP / (2 TP + FP + FN), as scikit-learn has them.

    `average` is macro (mean over classes), micro (from summed counts), weighted (mean by true count) or none (per
    class, as `precision_3`). Macro and weighted means are over the classes that occur as target or prediction. A
    quotient 0 / 0 counts as `zero_division`, which is also the value of all three when no target counts.
    """

    average: str = "macro"
    zero_division: float = 0.0
    ignore_index: int = IGNORE
    confusion: ConfusionMatrix = field(default_factory=ConfusionMatrix, init=False)

    def __post_init__(self) -> None:
        if self.average not in AVERAGES:
            raise ConfigError(f"average = {self.average!r}: must be one of {', '.join(AVERAGES)}")
        self.confusion = ConfusionMatrix(self.ignore_index)

    def reset(self) -> None:
        self.confusion.reset()

    def update(self, output: Floats, target: NDArray[np.integer]) -> None:
        self.confusion.update(output, target)

    def figures(self) -> dict[str, float]:
        matrix = self.confusion.matrix
        hits, predicted, true = np.diag(matrix), matrix.sum(0), matrix.sum(1)
        if self.average == "micro":
            hits, predicted, true = (np.array([count.sum()]) for count in (hits, predicted, true))
        elif self.average != "none":
            seen = (predicted + true) > 0
            hits, predicted, true = hits[seen], predicted[seen], true[seen]
        table = {
            "precision": self._quotient(hits, predicted),
            "recall": self._quotient(hits, true),
            "f1": self._quotient(2 * hits, predicted + true),
        }
        if self.average == "none":
            return {f"{name}_{c}": float(value) for name, row in table.items() for c, value in enumerate(row)}
        weights = true if self.average == "weighted" else np.ones(len(true))
        if not weights.sum():
            return dict.fromkeys(table, self.zero_division)
        return {name: float(np.average(row, weights=weights)) for name, row in table.items()}

    def _quotient(self, part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.where(whole > 0, part / np.maximum(whole, 1), self.zero_division)


@dataclass(slots=True)
class MeanSquaredError:
    """Mean of (z - y)^2 over all elements; NaN when there are none."""

    _sum: float = field(default=0.0, init=False)
    _count: int = field(default=0, init=False)

    def reset(self) -> None:
        self._sum, self._count = 0.0, 0

    def update(self, output: Floats, target: Array) -> None:
        self._sum += float(np.square(residual(output, target)).sum())
        self._count += output.size

    def figures(self) -> dict[str, float]:
        return {"mse": self._sum / self._count if self._count else float("nan")}


@dataclass(slots=True)
class MeanAbsoluteError:
    """Mean of |z - y| over all elements; NaN when there are none."""

    _sum: float = field(default=0.0, init=False)
    _count: int = field(default=0, init=False)

    def reset(self) -> None:
        self._sum, self._count = 0.0, 0

    def update(self, output: Floats, target: Array) -> None:
        self._sum += float(np.abs(residual(output, target)).sum())
        self._count += output.size

    def figures(self) -> dict[str, float]:
        return {"mae": self._sum / self._count if self._count else float("nan")}


@dataclass(slots=True)
class Part:
    """A metric of one output and one target where there are tuples of them; its figures' names get `suffix`."""

    metric: Metric
    output: int = 0
    target: int = 0
    suffix: str = ""

    def reset(self) -> None:
        self.metric.reset()

    def update(self, output: Any, target: Any) -> None:
        self.metric.update(
            output[self.output] if isinstance(output, tuple) else output,
            target[self.target] if isinstance(target, tuple) else target,
        )

    def figures(self) -> dict[str, float]:
        return {name + self.suffix: value for name, value in self.metric.figures().items()}


# Metrics that a name can ask for; those of classes are given the loss's ignore_index.
CLASS_METRICS: dict[str, Callable[[int], Metric]] = {
    "accuracy": lambda ignore: Accuracy(ignore_index=ignore),
    "top5_accuracy": lambda ignore: Accuracy(5, ignore),
    "f1_macro": lambda ignore: PrecisionRecallF1("macro", ignore_index=ignore),
    "f1_micro": lambda ignore: PrecisionRecallF1("micro", ignore_index=ignore),
    "f1_weighted": lambda ignore: PrecisionRecallF1("weighted", ignore_index=ignore),
}
VALUE_METRICS: dict[str, Callable[[], Metric]] = {"mae": MeanAbsoluteError, "mse": MeanSquaredError}


class Evaluation:
    """Loss and metrics of one evaluation; what both trainers' `evaluate` fills batch by batch.

    Args:
        loss: what the model was trained with; says which targets are classes.
        metrics: objects, which are reset and may be read afterwards, or names from `CLASS_METRICS` and `VALUE_METRICS`,
            which stand for one metric for each output that they fit. None is accuracy wherever targets are classes.

    """

    def __init__(self, loss: losses.Loss, metrics: Sequence[Metric | str] | None = None) -> None:
        self._loss = loss
        self._metrics = list(_metrics(loss, metrics))
        for metric in self._metrics:
            metric.reset()
        self._total = self._weight = 0.0
        self._rows = 0

    def add(self, loss: float, output: Any, target: Targets) -> None:
        """One batch: its mean loss, the model's output and the targets, as arrays or tuples of arrays."""
        rows = len(output[0] if isinstance(output, tuple) else output)
        weight = _weight(self._loss, target, rows)
        # A batch in which no target counts has loss 0, and must not pull the mean towards it.
        self._total += weight * loss
        self._weight += weight
        self._rows += rows
        for metric in self._metrics:
            metric.update(output, target)

    def figures(self) -> dict[str, float]:
        """`loss`, the mean over all targets that count (0.0 when none does), and the metrics' figures.

        A loss of several terms is averaged over rows.

        Raises:
            ValueError: there was no example at all.

        """
        if not self._rows:
            raise ValueError("evaluate was given no examples")
        figures = {"loss": self._total / self._weight if self._weight else 0.0}
        for metric in self._metrics:
            found = metric.figures()
            if twice := figures.keys() & found.keys():
                raise ConfigError(
                    f"two metrics give a figure called {min(twice)!r}; wrap one in Part(metric, suffix=...)"
                )
            figures |= found
        return figures


def counted(output: Floats, target: NDArray[np.integer], ignore_index: int) -> tuple[Floats, NDArray[np.integer]]:
    """Logits (n, C) and classes (n,) of the targets that count; a column of classes (..., 1) is one class a row."""
    if not np.issubdtype(target.dtype, np.integer):
        raise ValueError(f"class metrics need whole-number targets, these are {target.dtype}")
    if target.shape not in (output.shape[:-1], (*output.shape[:-1], 1)):
        raise ValueError(f"targets {target.shape} do not fit the model's output {output.shape}")
    logits, classes = output.reshape(-1, output.shape[-1]), target.reshape(-1)
    counts = classes != ignore_index
    if not counts.all():
        logits, classes = logits[counts], classes[counts]
    if classes.size and not (classes.min() >= 0 and classes.max() < logits.shape[-1]):
        raise ValueError(f"targets hold classes {classes.min()} to {classes.max()}, the model has {logits.shape[-1]}")
    return logits, classes


def residual(output: Floats, target: Array) -> NDArray[np.float64]:
    """Output - target in float64; only a trailing axis of length 1 may be missing on one side."""
    if target.shape not in (output.shape, (*output.shape, 1)) and output.shape != (*target.shape, 1):
        raise ValueError(f"targets {target.shape} do not fit the model's output {output.shape}")
    difference: NDArray[np.float64] = output.astype(np.float64) - target.reshape(output.shape).astype(np.float64)
    return difference


def _metrics(loss: losses.Loss, metrics: Sequence[Metric | str] | None) -> Iterable[Metric]:
    wanted = ("accuracy",) if metrics is None else metrics
    for item in wanted:
        if not isinstance(item, str):
            yield item
            continue
        if item not in CLASS_METRICS and item not in VALUE_METRICS:
            raise ConfigError(f"metric {item!r}: must be one of {', '.join([*CLASS_METRICS, *VALUE_METRICS])}")
        found = list(_named(item, loss))
        if not found and metrics is not None:
            raise ConfigError(f"metric {item!r} does not fit the targets of {type(loss).__name__}")
        yield from found


def _named(name: str, loss: losses.Loss) -> Iterable[Metric]:
    """The metric of that name for every term of the loss whose targets it fits."""
    several = isinstance(loss, losses.MultiTask)
    for number, term in enumerate(losses.terms(loss)):
        if isinstance(term.loss, losses.CLASS_LOSSES) and name in CLASS_METRICS:
            metric = CLASS_METRICS[name](term.loss.ignore_index)
        elif isinstance(term.loss, losses.MSE | losses.L1 | losses.Huber) and name in VALUE_METRICS:
            metric = VALUE_METRICS[name]()
        else:
            continue
        # A name that says how classes are averaged is in the figures' names too.
        average = f"_{name.removeprefix('f1_')}" if name.startswith("f1_") else ""
        yield Part(metric, term.output, number, f"{average}_{number}" if several else average)


def _weight(loss: losses.Loss, target: Targets, rows: int) -> float:
    """What a batch counts for in the mean loss."""
    return float(rows) if isinstance(target, tuple) else losses.denominator(losses.terms(loss)[0].loss, target)
