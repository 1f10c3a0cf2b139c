"""What a lever has done: size, compressibility and accuracy of a model before and after it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.exporter import prepare
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.rounding import predict_rounded
from edge_runtime.train.batches import Array
from edge_runtime.train.metrics import accuracy, agreement


@dataclass(frozen=True, slots=True)
class Figures:
    """One model.

    Attributes:
        parameters, nonzero: float32 numbers of the folded model; those that are not 0.
        int8_bytes: of the INT8 file, by format.
        zlib_bytes: of the INT8 weights, compressed (level 9): what an update over the air would carry.
        accuracy, int8_accuracy: shares of right classes, in float32 and with INT8's rounding.

    """

    parameters: int
    nonzero: int
    int8_bytes: Mapping[str, int]
    zlib_bytes: int
    accuracy: float
    int8_accuracy: float


@dataclass(frozen=True, slots=True)
class Change:
    """A model before and after a lever; `agreement` is the share of inputs for which both say the same class."""

    before: Figures
    after: Figures
    agreement: float


def before_after(
    before: FloatModel,
    after: FloatModel,
    x: Array,
    y: NDArray[np.integer],
    *,
    calibration: Sequence[NDArray[np.generic]],
    formats: Sequence[str] = ("onnx",),
    weight_bits: int | Mapping[str, int] = 8,
) -> Change:
    """Measure both on inputs x (N, ...) with classes y (N, ...). Ranges come from `calibration`.

    `weight_bits` are those of `after`; `before` has 8.
    """
    first = _figures(before, x, y, calibration, formats, 8)
    second = _figures(after, x, y, calibration, formats, weight_bits)
    return Change(first, second, agreement(predict(after, x), predict(before, x)))


def _figures(
    model: FloatModel,
    x: Array,
    y: NDArray[np.integer],
    calibration: Sequence[NDArray[np.generic]],
    formats: Sequence[str],
    weight_bits: int | Mapping[str, int],
) -> Figures:
    prepared = prepare(model, None, list(calibration), weight_bits=weight_bits)
    folded, quantised = prepared.float_model, prepared.quantised
    assert quantised is not None
    integers = [
        quantised.integers(name).astype(np.int8 if quantised.quants[name].bits <= 8 else np.int32).tobytes()
        for name in folded.weights
        if name in quantised.quants
    ]
    floats = [w.tobytes() for name, w in folded.weights.items() if name not in quantised.quants]
    return Figures(
        parameters=folded.parameters,
        nonzero=sum(int(np.count_nonzero(w)) for w in folded.weights.values()),
        int8_bytes={name: len(prepared.contents(name)["int8"]) for name in formats},
        zlib_bytes=len(zlib.compress(b"".join([*integers, *floats]), 9)),
        accuracy=accuracy(predict(folded, x), y),
        int8_accuracy=accuracy(predict_rounded(quantised, x), y),
    )


def as_json(change: Change) -> dict[str, Any]:
    """Plain values, for reports."""

    def plain(one: Figures) -> dict[str, Any]:
        return {name: getattr(one, name) for name in Figures.__slots__} | {"int8_bytes": dict(one.int8_bytes)}

    return {"before": plain(change.before), "after": plain(change.after), "agreement": change.agreement}
