"""From the graph's nodes to TFLite operators.

A value that has a `Quant` is rounded as soon as it is made, and its readers see the integers, or these as float32.
"""

from __future__ import annotations

import numpy as np

from edge_runtime.deploy.formats.tflite.layout import plain
from edge_runtime.deploy.formats.tflite.site import ROWS, Site
from edge_runtime.deploy.formats.tflite.values import Values
from edge_runtime.deploy.graph.blocks import blocks
from edge_runtime.deploy.graph.quantised import QuantisedModel
from edge_runtime.engine.reference import FORWARD

INPUT, OUTPUT = "input", "output"


def written(quantised: QuantisedModel, rows: int, *, any_batch: bool) -> bytes:
    """The file for `rows` rows, or with those as an example."""
    values = Values(quantised.model, quantised.quants, rows, any_batch=any_batch)
    first = _first(values)
    for block in blocks(values.graph, values.quants):
        _write(Site(values, block.node, block.act, block.output), values)
    return values.file.finish([first], [_last(values, first)])


def _first(values: Values) -> int:
    name = values.graph.inputs[0]
    shape, kind = values.shapes[name], values.kind(name)
    order = plain(len(shape))
    tensor = values.file.tensor(shape, kind, values.quants.get(name), INPUT, values.signature(name, order))
    values.hold(name, kind, order, tensor)
    return tensor


def _write(site: Site, values: Values) -> None:
    """Operators; or, where all that the node reads is known, a constant."""
    node, known = site.node, values.constants
    if all(name in known for name in node.inputs) and len(node.outputs) == 1:
        made = np.asarray(FORWARD[node.op](*(known[name] for name in node.inputs), **node.attributes), np.float32)
        known[site.output] = FORWARD[site.act](made) if site.act else made
        return
    if node.op not in ROWS:
        raise site.refuse(f"TFLite has no {node.op}")
    ROWS[node.op].write(site)
    site.finish()


def _last(values: Values, first: int) -> int:
    """The model's output, in its own order, with its name."""
    name = values.graph.outputs[0]
    kind, order = values.kind(name), plain(len(values.shapes[name]))
    tensor = values.read(name, kind, order)
    if tensor == first or name in values.constants:
        tensor = values.reshaped(name, kind, order, tensor)
    return values.file.rename(tensor, OUTPUT, values.signature(name, order))
