"""Ops that only move values; in whatever order their input lies, where that can be."""

from __future__ import annotations

import numpy as np

from edge_runtime.deploy.formats.tflite.layout import plain, transposed
from edge_runtime.deploy.formats.tflite.site import FIXED_BATCH, Site, row, same_grid


@row("reshape", integer=same_grid)
def _reshape(s: Site) -> None:
    s.is_reshaped()


@row("transpose", integer=same_grid)
def _transpose(s: Site) -> None:
    """The same tensor, in another order."""
    s.is_held(s.take(0, s.order(0)), transposed(s.order(0), s.a["order"]))


@row("detach", integer=same_grid)
def _detach(s: Site) -> None:
    s.is_held(s.take(0, s.order(0)), s.order(0))


@row("slice", integer=same_grid)
def _slice(s: Site) -> None:
    """A size of -1 is all there is: right for any batch."""
    order, dim = s.order(0), s.a["dim"]
    begin = [s.a["start"] if one == dim else 0 for one in order]
    size = [s.a["stop"] - s.a["start"] if one == dim else -1 for one in order]
    s.result("SLICE", [s.take(0, order), s.const(np.array(begin)), s.const(np.array(size))], order)


@row("pad", integer=same_grid)
def _pad(s: Site) -> None:
    order, dim = s.order(0), s.a["dim"]
    after = s.a["size"] - s.a["start"] - s.shape(0)[dim]
    borders = [(s.a["start"], after) if one == dim else (0, 0) for one in order]
    s.result("PAD", [s.take(0, order), s.const(np.array(borders))], order)


@row("cat", integer=same_grid)
def _cat(s: Site) -> None:
    values = [place for place in range(len(s.node.inputs)) if s.constant_input(place) is None]
    order = s.order(values[0])
    inputs = [s.take(place, order) for place in range(len(s.node.inputs))]
    s.result("CONCATENATION", inputs, order, axis=order.index(s.a["dim"]))


@row("expand")
def _expand(s: Site) -> None:
    """Times ones: right for any batch, unless it is the batch that is repeated."""
    rank, own = len(s.out_shape), len(s.shape(0))
    missing = rank - own
    if any(s.repeats(dim) and dim - missing not in s.batch_dims(0) for dim in range(rank)):
        raise s.refuse("TFLite cannot repeat a value for any batch", FIXED_BATCH)
    before = (1,) * missing + s.shape(0)
    order = s.order(0) if own == rank else plain(rank)
    factor = np.full([1 if before[dim] == s.out_shape[dim] else s.out_shape[dim] for dim in order], s.a["by"])
    s.result("MUL", [s.take(0, None if missing else order), s.const(factor)], order)
