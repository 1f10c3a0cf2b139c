"""Structured pruning: whole channels go, with all rows and columns on their way: the model is really smaller."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.compress.channel_groups import ChannelGroup, Channels
from edge_runtime.deploy.compress.prune import check_fraction, fitting
from edge_runtime.deploy.compress.rebuild import rebuilt
from edge_runtime.deploy.compress.scores import Scores, magnitude
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.errors import ConfigError, UnsupportedOpError
from edge_runtime.ir.graph import Node


def channel_groups(model: FloatModel) -> list[ChannelGroup]:
    """The sets of channels that stay or go together, and why some cannot go."""
    return list(Channels.of(model).groups().values())


def prune_channels(
    model: FloatModel,
    fraction: float | Mapping[str, float],
    *,
    scores: Scores | None = None,
    together: bool = False,
    multiple: int = 1,
) -> FloatModel:
    """The model without the channels of lowest score.

    A channel's score is the sum over all weights and biases that make it: of |w| (Li et al. 2017, "Pruning filters for
    efficient convnets") or of (w dL/dw)^2 (Molchanov et al. 2019), as `scores` says. A channel whose rows and biases
    are zero, and that meets only activations with f(0) = 0 on its way, can go without any output changing.

    Args:
        model: of any graph; sets of channels that cannot be followed are left whole.
        fraction: 0 to 1, of the channels of every set; or of those that the named weights make (patterns with `*`), all
            others being left whole.
        scores: `scores.magnitude` if None, or `scores.taylor`.
        together: rank the channels of all sets together, each score divided by its set's mean; at most 90 % of one go.
        multiple: keep a multiple of this many where that is not more than there are.

    Raises:
        UnsupportedOpError: a named weight whose channels cannot be followed, or no set that can; says why.
        ConfigError: a fraction outside its range, or a name of no weight that makes channels.

    """
    channels = Channels.of(model)
    wanted = _wanted(channels.groups(), fraction)
    points = _points(channels, magnitude(model) if scores is None else scores, wanted)
    counts = _counts_together(points, wanted) if together else _counts_alone(points, wanted)
    kept = {}
    for group, one in points.items():
        count = min(len(one), max(multiple, -(-counts[group] // multiple) * multiple))
        while count % model.batch == 0 and count < len(one):
            count += 1  # that number stands for the batch
        kept[group] = np.sort(np.argsort(-one, kind="stable")[:count])
    return _cut(channels, kept)


def _wanted(groups: Mapping[int, ChannelGroup], fraction: float | Mapping[str, float]) -> dict[int, float]:
    """The fraction that goes, of each set that loses any."""
    if not isinstance(fraction, Mapping):
        check_fraction(fraction)
        free = [group for group, one in groups.items() if not one.blocked]
        if not free:
            reasons = "; ".join(f"{', '.join(one.layers)}: {one.blocked}" for one in groups.values())
            raise UnsupportedOpError(f"no channels can be pruned ({reasons or 'the model has none'})")
        return dict.fromkeys(free, fraction)
    wanted: dict[int, float] = {}
    layers = [name for one in groups.values() for name in one.layers]
    for pattern, part in fraction.items():
        check_fraction(part)
        names = fitting([pattern], layers)
        for group, one in groups.items():
            if not set(names) & set(one.layers):
                continue
            if one.blocked:
                raise UnsupportedOpError(f"channels of {', '.join(one.layers)} cannot be pruned: {one.blocked}")
            if wanted.setdefault(group, part) != part:
                raise ConfigError(f"{', '.join(one.layers)} stay or go together; give them one fraction")
    return wanted


def _points(channels: Channels, scores: Scores, wanted: Mapping[int, float]) -> dict[int, NDArray[np.float64]]:
    """Of every set in `wanted`, a score for each channel."""
    points = {group: np.zeros(channels.sizes[group]) for group in wanted}
    for use in channels.uses:
        if not use.makes:
            continue
        start = 0
        score = np.asarray(scores[use.weight], np.float64)
        along = score.reshape(len(score), -1).sum(1)
        for run in channels.resolved(use.runs):
            width = channels.sizes[run.group] * run.inner
            if run.group in points:
                points[run.group] += along[start : start + width].reshape(-1, run.inner).sum(1)
            start += width
    return points


def _counts_alone(points: Mapping[int, NDArray[np.float64]], wanted: Mapping[int, float]) -> dict[int, int]:
    """How many channels of each set stay when each has its own fraction."""
    return {group: max(1, len(one) - round(wanted[group] * len(one))) for group, one in points.items()}


def _counts_together(points: Mapping[int, NDArray[np.float64]], wanted: Mapping[int, float]) -> dict[int, int]:
    """How many channels of each set stay when all are ranked together."""
    if len(set(wanted.values())) > 1:
        raise ConfigError("ranked together, all sets have one fraction")
    scaled = np.concatenate([one / max(float(one.mean()), 1e-30) for one in points.values()])
    owner = np.concatenate([np.full(len(one), group) for group, one in points.items()])
    share = next(iter(wanted.values()))
    gone = owner[np.argsort(scaled, kind="stable")[: round(share * len(scaled))]]
    return {g: max(len(one) - int((gone == g).sum()), -(-len(one) // 10)) for g, one in points.items()}


def _cut(channels: Channels, kept: Mapping[int, NDArray[np.intp]]) -> FloatModel:
    model = channels.model
    weights: dict[str, NDArray[Any]] = dict(model.weights)
    for use in channels.uses:
        weights[use.weight] = np.take(weights[use.weight], channels.indices(use.runs, kept), use.axis)
    return rebuilt(model, [_fitted(channels, node, kept) for node in model.graph.nodes], weights)


def _fitted(channels: Channels, node: Node, kept: Mapping[int, NDArray[np.intp]]) -> Node:
    """`node` with the attributes that say how many channels there are."""
    layout = channels.layouts.get(node.outputs[0]) if node.outputs else None
    if layout is None:
        return node
    width = channels.width(layout.runs, kept)
    match node.op:
        case "reshape":
            shape = list(node.attributes["shape"])
            shape[layout.axis] = width
            return dataclasses.replace(node, attributes={**node.attributes, "shape": tuple(shape)})
        case "conv2d" if node.attributes["groups"] > 1:
            return dataclasses.replace(node, attributes={**node.attributes, "groups": width})
        case _:
            return node
