"""The `.tflite` writer: from the graph straight to a FlatBuffer, without TensorFlow.

The file takes what the PyTorch module takes: images are (B, C, H, W), and the file itself turns them to TFLite's own
(B, H, W, C), for nothing where C is 1. Input and output are int8 where they have a grid; their tensors say which.
"""

from __future__ import annotations

import importlib

from edge_runtime.deploy.formats.tflite.writer import written
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.quantised import QuantisedModel

for _rows in ("elementwise", "layers", "sequences", "shapes", "sums"):
    importlib.import_module(f"{__name__}.rows_{_rows}")


def write_tflite(model: FloatModel | QuantisedModel, *, batch: int = 1) -> bytes:
    """The bytes of a `.tflite` file; the same model gives the same bytes.

    Args:
        model: folded for the smallest and fastest file; a batch norm that is left over is written all the same.
        batch: rows that the file takes; 0 for any, which its runtime then has to be told (`resize_tensor_input`).

    Raises:
        UnsupportedOpError: an op or a shape that TFLite cannot hold; the text names it, and the line that made it.

    """
    quantised = model if isinstance(model, QuantisedModel) else QuantisedModel(model, {})
    return written(quantised, batch or 1, any_batch=not batch)
