"""Which channels of a graph can go, and what goes with each: the rows, columns and biases of the layers on its way.

A channel is followed from the layer that makes it to those that read it. Where two meet (a residual addition, a
per-channel product, a depthwise convolution) they become one set; where one cannot be followed, its set is blocked,
with the reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.ir.graph import Node, Shape


@dataclass(frozen=True, slots=True)
class Run:
    """Channels of one set along a dim, each `inner` elements wide."""

    group: int
    inner: int = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Where channels lie in a value: along dim `axis`, run after run."""

    axis: int
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Use:
    """Dim `axis` of a weight belongs to the channels of `runs`; it `makes` them where its layer's output has them."""

    weight: str
    axis: int
    runs: tuple[Run, ...]
    makes: bool


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that must stay or go together.

    Attributes:
        layers: names of the weights that make them.
        size: how many there are.
        blocked: why they cannot be pruned; empty if they can.

    """

    layers: tuple[str, ...]
    size: int
    blocked: str


@dataclass(slots=True)
class Channels:
    """What following a model's channels has found. Sets are numbers; `resolved` says what has become of them since."""

    model: FloatModel
    layouts: dict[str, Layout] = field(default_factory=dict)  # of values; one without channels has none
    uses: list[Use] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    blocked: dict[int, str] = field(default_factory=dict)
    _parent: list[int] = field(default_factory=list)
    _parts: dict[int, tuple[int, int]] = field(default_factory=dict)  # of a set that was cut in two

    @classmethod
    def of(cls, model: FloatModel) -> Channels:
        channels = cls(model)
        shared = Counter(name for node in model.graph.nodes for name in node.inputs if name in model.weights)
        for node in model.graph.nodes:
            RULES.get(node.op, _unknown)(channels, node)
        for name in model.graph.outputs:
            channels.block(name, "they are the model's output")
        for use in channels.uses:
            if shared[use.weight] > 1:
                channels.block_runs(use.runs, f"{use.weight} is used by {shared[use.weight]} nodes")
        return channels

    def groups(self) -> dict[int, ChannelGroup]:
        """All sets, by number, in the order of the graph."""
        layers: dict[int, list[str]] = {}
        for use in self.uses:
            if use.makes and self.model.weights[use.weight].ndim >= 2:
                for run in self.resolved(use.runs):
                    layers.setdefault(run.group, []).append(use.weight)
        return {
            group: ChannelGroup(tuple(dict.fromkeys(names)), self.sizes[group], self.blocked.get(group, ""))
            for group, names in layers.items()
        }

    def resolved(self, runs: Sequence[Run]) -> Iterator[Run]:
        """The same runs, by the sets that there are now: some have been joined with others since, or cut in two."""
        for run in runs:
            group = self._find(run.group)
            if group in self._parts:
                yield from self.resolved([Run(part, run.inner) for part in self._parts[group]])
            else:
                yield Run(group, run.inner)

    def _find(self, group: int) -> int:
        while self._parent[group] != group:
            group = self._parent[group]
        return group

    def indices(self, runs: Sequence[Run], kept: Mapping[int, NDArray[np.intp]]) -> NDArray[np.intp]:
        """Places along a dim laid out as `runs` that stay when of each set the channels `kept` do."""
        parts, start = [np.zeros(0, np.intp)], 0
        for run in self.resolved(runs):
            channels = kept.get(run.group, np.arange(self.sizes[run.group]))
            parts.append(start + (channels[:, None] * run.inner + np.arange(run.inner)).ravel())
            start += self.sizes[run.group] * run.inner
        return np.concatenate(parts)

    def width(self, runs: Sequence[Run], kept: Mapping[int, NDArray[np.intp]]) -> int:
        return len(self.indices(runs, kept))

    # What rules call.

    def shape(self, name: str) -> Shape:
        return self.model.graph.values[name].shape

    def new(self, size: int) -> Run:
        self._parent.append(len(self._parent))
        self.sizes.append(size)
        return Run(self._parent[-1])

    def use(self, weight: str, axis: int, runs: tuple[Run, ...], *, makes: bool = False) -> None:
        """`weight` has these channels along `axis`; if it is no weight, but computed, nothing can follow it."""
        if weight in self.model.weights:
            self.uses.append(Use(weight, axis, runs, makes))
        else:
            self.block_runs(runs, f"{weight} is computed, not a weight")

    def join(self, a: Layout, b: Layout) -> bool:
        """Make the sets of two layouts one, cutting those of which a part meets; False if they do not lie alike."""
        met = 0
        while True:
            first, second = list(self.resolved(a.runs))[met:], list(self.resolved(b.runs))[met:]
            if not first or not second:
                return not first and not second
            one, other = first[0], second[0]
            if one.inner != other.inner:
                return False
            size = min(self.sizes[one.group], self.sizes[other.group])
            long = [run.group for run in (one, other) if self.sizes[run.group] > size]
            if long:
                self._cut(long[0], size)
                continue
            kept, gone = sorted((one.group, other.group))
            self._parent[gone] = kept
            if reason := self.blocked.get(gone):
                self.blocked.setdefault(kept, reason)
            met += 1

    def _cut(self, group: int, size: int) -> None:
        self._parts[group] = (self.new(size).group, self.new(self.sizes[group] - size).group)
        if reason := self.blocked.get(group):
            self.blocked.update(dict.fromkeys(self._parts[group], reason))

    def block(self, name: str, reason: str) -> None:
        if name in self.layouts:
            self.block_runs(self.layouts[name].runs, reason)

    def block_runs(self, runs: Sequence[Run], reason: str) -> None:
        for run in self.resolved(runs):
            self.blocked.setdefault(run.group, reason)

    def refuse(self, node: Node, why: str) -> None:
        """Nothing that goes into `node` can be pruned."""
        where = f" at {node.source}" if node.source else ""
        for name in node.inputs:
            self.block(name, f"{node.op} {node.outputs[0]}{where} {why}")

    def pass_on(self, node: Node, layout: Layout | None) -> None:
        if layout is not None:
            self.layouts.update(dict.fromkeys(node.outputs, layout))


Rule = Callable[[Channels, Node], None]
RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register


def _unknown(channels: Channels, node: Node) -> None:
    channels.refuse(node, "mixes channels")


@rule("relu", "relu6", "gelu", "sigmoid", "silu", "tanh", "exp", "scale", "clip", "detach", "max_pool2d", "avg_pool2d")
def _element(channels: Channels, node: Node) -> None:
    """Each channel for itself; pools too, whose windows are over later dims."""
    layout = channels.layouts.get(node.inputs[0])
    if layout is not None and "pool" in node.op and layout.axis > 1:
        channels.refuse(node, "pools over channels")
        return
    channels.pass_on(node, layout)


@rule("softmax")
def _softmax(channels: Channels, node: Node) -> None:
    layout = channels.layouts.get(node.inputs[0])
    if layout is not None and node.attributes["dim"] % len(channels.shape(node.inputs[0])) == layout.axis:
        channels.refuse(node, "is over channels")
        return
    channels.pass_on(node, layout)


@rule("conv2d")
def _conv2d(channels: Channels, node: Node) -> None:
    x, w, *bias = node.inputs
    layout, groups = channels.layouts.get(x), node.attributes["groups"]
    outputs = channels.shape(w)[0]
    if layout is not None and layout.axis != 1:
        channels.refuse(node, "reads channels as positions")
        layout = None
    if groups > 1:
        if groups != outputs or channels.shape(w)[1] != 1 or layout is None:
            channels.refuse(node, f"has {groups} groups")
            return
        for name, axis in ((w, 0), *((one, 0) for one in bias)):  # depthwise: out as in
            channels.use(name, axis, layout.runs, makes=True)
        channels.pass_on(node, layout)
        return
    if layout is not None:
        channels.use(w, 1, layout.runs)
    made = (channels.new(outputs),)
    for name in (w, *bias):
        channels.use(name, 0, made, makes=True)
    channels.pass_on(node, Layout(1, made))


@rule("linear")
def _linear(channels: Channels, node: Node) -> None:
    x, w, *bias = node.inputs
    last = len(channels.shape(x)) - 1
    if (layout := channels.layouts.get(x)) is not None:
        if layout.axis == last:
            channels.use(w, 1, layout.runs)
        else:
            channels.refuse(node, "reads channels as rows")
    made = (channels.new(channels.shape(w)[0]),)
    for name in (w, *bias):
        channels.use(name, 0, made, makes=True)
    channels.pass_on(node, Layout(last, made))


@rule("batch_norm_apply")
def _batch_norm(channels: Channels, node: Node) -> None:
    if (layout := channels.layouts.get(node.inputs[0])) is None:
        return
    if layout.axis != 1:
        channels.refuse(node, "is over another dim")
        return
    for name in node.inputs[1:]:
        channels.use(name, 0, layout.runs)
    channels.pass_on(node, layout)


@rule("add", "mul")
def _together(channels: Channels, node: Node) -> None:
    """Element by element: channels that meet become one set; a weight with one number per channel goes along."""
    shapes = [channels.shape(name) for name in node.inputs]
    rank = len(channels.shape(node.outputs[0]))
    placed: list[tuple[str, Layout | None, int, int]] = []  # name, layout, its axis in the result, its own shift
    for name, shape in zip(node.inputs, shapes, strict=True):
        shift = rank - len(shape)
        layout = channels.layouts.get(name)
        placed.append((name, layout, layout.axis + shift if layout else -1, shift))
    known = [one for one in placed if one[1] is not None]
    if not known:
        return
    _, first, axis, _ = known[0]
    assert first is not None
    result = Layout(axis, first.runs)
    for (name, layout, own, shift), shape in zip(placed, shapes, strict=True):
        along = axis - shift
        if layout is not None:
            fits = own == axis and channels.join(result, layout)
        elif along < 0 or shape[along] == 1:
            fits = True  # one number for all channels
        else:
            fits = name in channels.model.weights
            if fits:
                channels.use(name, along, result.runs)
        if not fits:
            channels.refuse(node, f"meets {name}, whose channels are not those of the other side")
            return
    channels.pass_on(node, result)


@rule("mean", "sum")
def _mean(channels: Channels, node: Node) -> None:
    if (layout := channels.layouts.get(node.inputs[0])) is None:
        return
    dims = node.attributes["dims"]
    if layout.axis in dims:
        channels.refuse(node, "is over channels")
        return
    gone = 0 if node.attributes["keepdim"] else sum(dim < layout.axis for dim in dims)
    channels.pass_on(node, Layout(layout.axis - gone, layout.runs))


@rule("transpose")
def _transpose(channels: Channels, node: Node) -> None:
    if (layout := channels.layouts.get(node.inputs[0])) is not None:
        channels.pass_on(node, Layout(node.attributes["order"].index(layout.axis), layout.runs))


@rule("slice", "pad")
def _slice(channels: Channels, node: Node) -> None:
    layout = channels.layouts.get(node.inputs[0])
    if layout is not None and node.attributes["dim"] == layout.axis:
        channels.refuse(node, "cuts between channels" if node.op == "slice" else "adds channels")
        return
    channels.pass_on(node, layout)


@rule("cat")
def _cat(channels: Channels, node: Node) -> None:
    layouts = [channels.layouts.get(name) for name in node.inputs]
    found = [one for one in layouts if one is not None]
    if not found:
        return
    axis, dim = found[0].axis, node.attributes["dim"]
    if len({one.axis for one in found}) > 1 or (len(found) < len(layouts) and dim != axis):
        channels.refuse(node, "joins values whose channels lie differently")
    elif dim != axis:
        if all(channels.join(found[0], one) for one in found[1:]):
            channels.pass_on(node, found[0])
        else:
            channels.refuse(node, "joins values of different channels")
    else:
        runs: list[Run] = []
        for name, layout in zip(node.inputs, layouts, strict=True):
            if layout is not None:
                runs += layout.runs
            else:  # a part without channels, such as the model's input, stays whole
                run = channels.new(channels.shape(name)[axis])
                channels.block_runs((run,), f"{name} has fixed channels")
                runs.append(run)
        channels.pass_on(node, Layout(axis, tuple(runs)))


@rule("reshape")
def _reshape(channels: Channels, node: Node) -> None:
    """Channels may be flattened together with the dims behind them, and taken apart again."""
    if (layout := channels.layouts.get(node.inputs[0])) is None:
        return
    before, after = channels.shape(node.inputs[0]), channels.shape(node.outputs[0])
    for axis in range(len(after)):
        if math.prod(after[:axis]) != math.prod(before[: layout.axis]) or after[axis] == 1:
            continue
        if after[axis] % before[layout.axis] == 0:
            by = after[axis] // before[layout.axis]
            channels.pass_on(node, Layout(axis, tuple(Run(run.group, run.inner * by) for run in layout.runs)))
            return
        by, rest = divmod(before[layout.axis], after[axis])
        if not rest and all(run.inner % by == 0 for run in layout.runs):
            channels.pass_on(node, Layout(axis, tuple(Run(run.group, run.inner // by) for run in layout.runs)))
            return
    channels.refuse(node, "mixes channels with dims before them")


for _op in ("zeros", "expand"):
    RULES[_op] = _unknown
