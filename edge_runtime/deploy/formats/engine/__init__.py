"""Hedgerow's own model file, `.hedgerow`: what `run/engine.py` runs."""

from __future__ import annotations

from edge_runtime.deploy.formats.engine.encode import encode
from edge_runtime.deploy.formats.engine.lower import lower
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.quantised import QuantisedModel

__all__ = ["write_engine"]


def write_engine(model: FloatModel | QuantisedModel, *, batch: int = 1) -> bytes:
    """The file of a model for `batch` rows at a time; 0 is 1, for a runner cuts any batch to what its file takes.

    Nodes that compute in integers become integer ops, on int8 activations with the channels last; all others stay
    float32, with conversions between. Weights with a grid are stored as integers either way.

    Raises:
        UnsupportedOpError: an op that the native core does not have.

    """
    quantised = model if isinstance(model, QuantisedModel) else QuantisedModel(model, {})
    return encode(lower(quantised, batch or 1))
