"""Losses by name: frozen descriptions that every trainer turns into its own arithmetic.

All are means over the examples of a batch (over every element for the regression losses). Logits are float32
of shape (B, C) or (B, T, C); class targets are int64 of shape (B,) or (B, T).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """-sum_c q_c log softmax(z)_c with q = (1 - s) onehot(y) + s/C; Szegedy et al. 2016, section 7."""

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


Loss = CrossEntropy | BCEWithLogits | MSE | L1 | Huber

LOSSES: dict[str, type[Loss]] = {
    "bce_with_logits": BCEWithLogits,
    "cross_entropy": CrossEntropy,
    "huber": Huber,
    "l1": L1,
    "mse": MSE,
}
