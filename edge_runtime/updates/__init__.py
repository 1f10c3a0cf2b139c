"""Packing model updates: tensor layouts, the wire format and the codecs. A leaf: numpy and the native core."""

from edge_runtime.updates.delta import TensorLayout
from edge_runtime.updates.pipeline import CODECS, Codec, make_codec
from edge_runtime.updates.wire import STYPE

__all__ = ["CODECS", "STYPE", "Codec", "TensorLayout", "make_codec"]
