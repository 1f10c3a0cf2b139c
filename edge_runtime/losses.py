"""Losses by name: frozen descriptions that every trainer turns into its own arithmetic.

All are means: over the targets that count, each by its class weight, for the losses over classes; over every element
for the regression losses. A batch in which no target counts has loss 0 and gradient 0. Logits are float32 of shape
(B, C) or (B, T, C); class targets are int64 of shape (B,) or (B, T).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """-sum_c q_c w_c log softmax(z)_c with q = (1 - s) onehot(y) + s/C; Szegedy et al. 2016, section 7.

    `class_weights` holds w, one per class (all 1 when empty); targets equal to `ignore_index` are masked out.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    ignore_index: int = -100


@dataclass(frozen=True, slots=True)
class Focal:
    """-w_y (1 - p_y)^gamma log p_y with p = softmax(z), averaged as cross-entropy; Lin et al. 2017, equation 5."""

    gamma: float = 2.0
    class_weights: tuple[float, ...] = ()
    ignore_index: int = -100


@dataclass(frozen=True, slots=True)
class KLDivergence:
    """T^2 KL(softmax(t/T) || softmax(z/T)), the target being a teacher's logits t like z; Hinton et al. 2015."""

    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Distillation:
    """alpha KLDivergence(temperature) + (1 - alpha) CrossEntropy; targets are classes and a teacher's logits."""

    alpha: float = 0.5
    temperature: float = 2.0
    label_smoothing: float = 0.0


@dataclass(frozen=True, slots=True)
class BCEWithLogits:
    """max(z, 0) - z y + log(1 + exp(-|z|)), the overflow-free form of binary cross-entropy."""


@dataclass(frozen=True, slots=True)
class MSE:
    """(z - y)^2."""


@dataclass(frozen=True, slots=True)
class L1:
    """|z - y|."""


@dataclass(frozen=True, slots=True)
class Huber:
    """r^2/2 for |r| <= delta, else delta (|r| - delta/2), with r = z - y; Huber 1964."""

    delta: float = 1.0


SingleLoss = CrossEntropy | Focal | KLDivergence | BCEWithLogits | MSE | L1 | Huber


@dataclass(frozen=True, slots=True)
class MultiTask:
    """sum_k w_k L_k, loss k between output k of the model and target k; model and targets are tuples of that length.

    `weights` are all 1 when empty. With `learned`, L = sum_k exp(-s_k) w_k L_k + s_k, and the s_k, zero at first, are
    trained along as the state tensor "loss.log_variances" (homoscedastic uncertainty; Kendall et al. 2018, equation 7
    with s = log sigma^2, up to the factor 1/2).
    """

    losses: tuple[SingleLoss, ...]
    weights: tuple[float, ...] = ()
    learned: bool = False

    def __post_init__(self) -> None:
        if not self.losses or len(self.weights) not in (0, len(self.losses)):
            raise ValueError(f"MultiTask has {len(self.losses)} losses and {len(self.weights)} weights")


Loss = SingleLoss | Distillation | MultiTask
CLASS_LOSSES = (CrossEntropy, Focal)
LOG_VARIANCES = "loss.log_variances"  # the state tensor of a learned MultiTask


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of a loss: `weight` times the mean of `loss` between output `output` of the model and its target."""

    loss: SingleLoss
    output: int = 0
    weight: float = 1.0


def terms(loss: Loss) -> tuple[Term, ...]:
    """The summands of `loss`, in the order of its targets."""
    match loss:
        case Distillation(alpha, temperature, label_smoothing):
            return (Term(CrossEntropy(label_smoothing), 0, 1 - alpha), Term(KLDivergence(temperature), 0, alpha))
        case MultiTask(losses, weights):
            return tuple(Term(one, k, weights[k] if weights else 1.0) for k, one in enumerate(losses))
        case _:
            return (Term(loss),)


def denominator(loss: SingleLoss, target: NDArray[np.generic]) -> float:
    """What the sum of a loss over these targets is divided by: how many count, each by its class weight."""
    import numpy as np  # not above: the descriptions in this file are read where there are no arrays

    match loss:
        case CrossEntropy() | Focal():
            counted = target[target != loss.ignore_index]
            if loss.class_weights and np.all((counted >= 0) & (counted < len(loss.class_weights))):
                return float(np.asarray(loss.class_weights)[counted].sum())
            return float(counted.size)
        case KLDivergence():
            return float(target.size / target.shape[-1])
        case _:
            return float(target.size)


def checked(loss: Loss) -> Loss:
    """The same loss, if all its numbers are in the range in which it is defined.

    Raises:
        ConfigError: names the loss, the number and the range.

    """
    if isinstance(loss, MultiTask):
        for part in loss.losses:
            if not isinstance(part, SingleLoss):
                raise ConfigError(f"MultiTask: {str(part)[:60]} is no single loss, such as MSE()")
            checked(part)
    for item in dataclasses.fields(loss):
        value = getattr(loss, item.name)
        low, high, open_ = _RANGES.get(item.name, (0.0, 1e30, False))
        for one in value if isinstance(value, tuple) else (value,):
            number = isinstance(one, int | float) and not isinstance(one, bool) and item.name in _RANGES
            if number and not (low < one <= high if open_ else low <= one <= high):
                bounds = f"{'>' if open_ else '>='} {low:g} and <= {high:g}"
                raise ConfigError(f"{type(loss).__name__}: {item.name} = {one}: must be {bounds}")
        if item.name in ("class_weights", "weights") and not isinstance(value, tuple):
            raise ConfigError(f"{type(loss).__name__}: {item.name} must be a tuple of numbers")
    return loss


# What each number may be: from, to, and whether the lower end is left out.
_RANGES = {
    "label_smoothing": (0.0, 1.0, False),
    "class_weights": (0.0, 1e30, False),
    "gamma": (0.0, 1e3, False),
    "temperature": (0.0, 1e6, True),
    "alpha": (0.0, 1.0, False),
    "delta": (0.0, 1e30, True),
    "weights": (0.0, 1e30, False),
}


def to_json(loss: Loss) -> dict[str, Any]:
    """Plain values that `from_json` makes the same loss of."""
    fields = {item.name: getattr(loss, item.name) for item in dataclasses.fields(loss)}
    if isinstance(loss, MultiTask):
        fields["losses"] = [to_json(one) for one in loss.losses]
    return {"name": type(loss).__name__, **fields}


def from_json(text: Mapping[str, Any]) -> Loss:
    """The loss that `to_json` wrote; ValueError or TypeError where it is none."""
    fields = dict(text) if isinstance(text, Mapping) else {}
    kinds = {kind.__name__: kind for kind in (*SingleLoss.__args__, Distillation, MultiTask)}
    kind = kinds.get(str(fields.pop("name", "")))
    parts = fields.pop("losses", [])
    lists = {key: fields.pop(key) for key in ("class_weights", "weights") if key in fields}
    numbers = [*fields.values(), *(one for values in lists.values() for one in values)]
    if kind is None or not all(isinstance(one, int | float) and abs(one) < 1e30 for one in numbers):
        raise ValueError(f"no loss {str(text)[:80]}")
    lists = {key: tuple(values) for key, values in lists.items()}
    if kind is not MultiTask:
        return checked(kind(**fields, **lists))
    if any(isinstance(part, Mapping) and part.get("name") in ("Distillation", "MultiTask") for part in parts):
        raise ValueError("a MultiTask loss has single losses only")
    singles: Any = tuple(from_json(part) for part in parts)
    return checked(MultiTask(singles, **fields, **lists))


# Those that a name alone, or a scenario's keys, can make.
LOSSES: dict[str, type[SingleLoss]] = {
    "bce_with_logits": BCEWithLogits,
    "cross_entropy": CrossEntropy,
    "focal": Focal,
    "huber": Huber,
    "l1": L1,
    "mse": MSE,
}
