"""From a captured forward pass to a training step: loss, gradients, and the update of every trained weight.

Scalars that change from step to step are inputs of the graph: `rows` and `random` (see `ir/builder.py`), `norm.K` (one
over what term K of the loss is divided by), `share` (this micro-batch's part of the batch), `lr` and `corrections`
(Adam's, of its moments).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.builder import Builder
from edge_runtime.ir.graph import Graph
from edge_runtime.ir.verify import verify
from edge_runtime.losses import (
    L1,
    LOG_VARIANCES,
    MSE,
    BCEWithLogits,
    CrossEntropy,
    Distillation,
    Focal,
    Huber,
    KLDivergence,
    Loss,
    MultiTask,
    SingleLoss,
    terms,
)
from edge_runtime.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from edge_runtime.passes.autodiff import emit_backward


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: what to make small, with which rule, and which weights.

    Attributes:
        trainable: names of the state tensors to update.
        proximal_mu: FedProx's mu; adds mu (w - w_loaded) to each gradient (Li et al. 2020, equation 2).
        correction: whether SCAFFOLD's c - c_i is added to each gradient (Karimireddy et al. 2020, equation 3).
        clip_value, clip_norm: bounds of each gradient's elements, and of the norm of all together; 0 for none. They
            come after the two terms above and before the optimizer.

    """

    loss: Loss
    optimizer: Optimizer
    trainable: tuple[str, ...]
    proximal_mu: float = 0.0
    correction: bool = False
    clip_value: float = 0.0
    clip_norm: float = 0.0


def training_step(forward: Graph, recipe: Recipe, batch: int) -> tuple[Graph, int]:
    """One whole step for `batch` rows, and the number of its forward nodes.

    Every weight is updated as soon as its gradient is whole, except that a norm over all gradients has to wait for the
    last. A loss that is not finite stops the step before it has changed any state.
    """
    b, loss, boundary = _loss_of(forward, recipe, batch)
    updates = _Updates(b, recipe)
    emit_backward(b, loss, updates.wanted, updates.on_gradient)
    updates.finish()
    return verify(b.finish([loss])), boundary


def accumulation_step(forward: Graph, recipe: Recipe, batch: int) -> tuple[Graph, int]:
    """Like `training_step`, but for a part of a batch: gradients are added to the state tensors NAME/gradient."""
    b, loss, boundary = _loss_of(forward, recipe, batch)

    def accumulate(name: str, g: str) -> None:
        total = b.state(f"{name}/gradient", b.shape(name))
        b.emit_all("accumulate", total, g, writes=(total,))

    emit_backward(b, loss, _wanted(recipe), accumulate)
    return verify(b.finish([loss])), boundary


def accumulated_update(accumulation: Graph, recipe: Recipe) -> Graph:
    """The update from each NAME/gradient of an `accumulation_step`, which are zero again afterwards."""
    b = Builder()
    shapes = {n: accumulation.values[n].shape for n in _wanted(recipe) if f"{n}/gradient" in accumulation.state}
    updates = _Updates(b, recipe)
    totals = [b.state(f"{name}/gradient", shape) for name, shape in shapes.items()]
    for name, total in zip(shapes, totals, strict=True):
        b.state(name, shapes[name])
        updates.on_gradient(name, total)
    updates.finish()
    for total in totals:
        b.emit_all("clear", total, writes=(total,))
    return verify(b.finish([]))


def evaluation(forward: Graph, recipe: Recipe, batch: int) -> Graph:
    """The forward pass and its loss: the model's outputs, then one float."""
    b = Builder(forward, batch=batch)
    b.hint = "loss"
    loss = emit_loss(b, recipe.loss, forward.outputs)
    return verify(b.finish([*forward.outputs, loss]))


def gradient_graph(forward: Graph, recipe: Recipe, batch: int) -> Graph:
    """The loss and, as further outputs, the gradient of each tensor of `recipe.trainable`: for measuring and tests."""
    b, loss, _ = _loss_of(forward, recipe, batch)
    gradients: dict[str, str] = {}
    emit_backward(b, loss, _wanted(recipe), gradients.__setitem__)
    for name in recipe.trainable:  # one that the loss does not depend on
        if name not in gradients:
            gradients[name] = b.emit("zeros", shape=b.shape(name))
    return verify(b.finish([loss, *(gradients[name] for name in recipe.trainable)]))


def _wanted(recipe: Recipe) -> tuple[str, ...]:
    learned = isinstance(recipe.loss, MultiTask) and recipe.loss.learned
    return (*recipe.trainable, LOG_VARIANCES) if learned else recipe.trainable


def _loss_of(forward: Graph, recipe: Recipe, batch: int) -> tuple[Builder, str, int]:
    """The forward pass with its loss, checked to be finite before any state moves."""
    moving = [node for node in forward.nodes if node.op == "running_stats"]
    still = tuple(node for node in forward.nodes if node.op != "running_stats")
    b = Builder(Graph(forward.values, forward.inputs, forward.state, still, forward.outputs), batch=batch)
    b.hint = "loss"
    loss = emit_loss(b, recipe.loss, forward.outputs)
    b.emit_all("check_finite", loss)
    boundary = len(b.nodes)
    for node in moving:
        b.emit_all(node.op, *node.inputs, writes=node.writes, **node.attributes)
    return b, loss, boundary


def emit_loss(b: Builder, loss: Loss, outputs: Sequence[str]) -> str:
    """Nodes for `loss` of a model's outputs against the inputs `target.K`; returns the name of one float."""
    parts = terms(loss)
    if len(outputs) != 1 + max(part.output for part in parts):
        raise UnsupportedOpError(
            f"{type(loss).__name__} is for {1 + max(part.output for part in parts)} outputs, the model has "
            f"{len(outputs)}; combine losses with MultiTask, or return fewer"
        )
    learned = isinstance(loss, MultiTask) and loss.learned
    variances = b.state(LOG_VARIANCES, (len(parts),)) if learned else ""
    total = ""
    for k, part in enumerate(parts):
        value = _term(b, part.loss, outputs[part.output], k)
        if part.weight != 1 or isinstance(loss, Distillation):
            value = b.emit("scale", value, by=part.weight, plus=0.0)
        if learned:
            s = b.emit("slice", variances, dim=0, start=k, stop=k + 1)
            precise = b.emit("mul", b.emit("exp", b.emit("scale", s, by=-1.0, plus=0.0)), value)
            value = b.emit("add", precise, b.emit("mul", s, b.input("share", (1,))))
        total = b.emit("add", total, value) if total else value
    return total


def _term(b: Builder, loss: SingleLoss, z: str, k: int) -> str:
    shape = b.shape(z)
    norm, rows = b.input(f"norm.{k}", (1,)), b.rows()
    if shape[0] % b.batch:
        raise UnsupportedOpError(f"output {z} has shape {shape}, which does not start with the batch of {b.batch}")
    match loss:
        case CrossEntropy() | Focal():
            if len(shape) > 3:
                raise UnsupportedOpError(
                    f"{type(loss).__name__} takes logits (B, classes) or (B, T, classes), the output is {shape}; "
                    f"permute classes to the end and flatten the dims between"
                )
            if len(shape) < 2:
                raise UnsupportedOpError(f"{type(loss).__name__} needs logits (B, ..., classes), the output is {shape}")
            if len(loss.class_weights) not in (0, shape[-1]):
                raise UnsupportedOpError(f"{len(loss.class_weights)} class weights for {shape[-1]} classes")
            target = b.input(f"target.{k}", shape[:-1], "i64")
            weights = [b.state(f"loss.class_weights.{k}", shape[-1:])] if loss.class_weights else []
            common: dict[str, Any] = {"batch": b.batch, "ignore_index": loss.ignore_index}
            if isinstance(loss, Focal):
                return b.emit("focal", z, target, rows, norm, *weights, **common, gamma=loss.gamma)
            return b.emit("cross_entropy", z, target, rows, norm, *weights, **common, smoothing=loss.label_smoothing)
        case KLDivergence(temperature):
            target = b.input(f"target.{k}", shape)
            return b.emit("distill", z, target, rows, norm, batch=b.batch, temperature=temperature)
        case _:
            delta = loss.delta if isinstance(loss, Huber) else 0.0
            target = b.input(f"target.{k}", shape)
            return b.emit("pair_loss", z, target, rows, norm, batch=b.batch, delta=delta, kind=_PAIR_LOSSES[type(loss)])


_PAIR_LOSSES: dict[type[SingleLoss], str] = {
    BCEWithLogits: "bce_with_logits",
    Huber: "huber",
    L1: "l1",
    MSE: "mse",
}


class _Updates:
    """Emits what happens to each gradient: extra terms, clipping, the optimizer's rule."""

    def __init__(self, b: Builder, recipe: Recipe) -> None:
        self._b, self._recipe = b, recipe
        self.wanted = _wanted(recipe)
        self._waiting: list[tuple[str, str]] = []

    def on_gradient(self, name: str, g: str) -> None:
        b, recipe = self._b, self._recipe
        if name != LOG_VARIANCES:
            if recipe.proximal_mu:
                g = b.emit("proximal", g, name, b.state(f"{name}/anchor", b.shape(name)), mu=recipe.proximal_mu)
            if recipe.correction:
                g = b.emit("add", g, b.state(f"{name}/correction", b.shape(name)))
        if recipe.clip_value:
            b.emit_all("check_finite", g)  # which clipping would hide
            g = b.emit("clip", g, low=-recipe.clip_value, high=recipe.clip_value)
        if recipe.clip_norm:
            self._waiting.append((name, g))
        else:
            emit_update(b, recipe.optimizer, name, g)

    def finish(self) -> None:
        """Where gradients had to wait for their common norm, the updates."""
        if not self._waiting:
            return
        b, total = self._b, ""
        b.hint = "gradient_norm"
        for _, g in self._waiting:
            squares = b.emit("square_sum", g)
            total = b.emit("add", total, squares) if total else squares
        factor = b.emit("clip_scale", total, max_norm=self._recipe.clip_norm)
        for name, g in self._waiting:
            emit_update(b, self._recipe.optimizer, name, b.emit("mul", g, factor))


def emit_update(b: Builder, optimizer: Optimizer, name: str, g: str) -> None:
    """The node that moves weight `name` along gradient `g`; moments are state tensors NAME/MOMENT."""
    lr = b.input("lr", (1,))

    def moment(kind: str) -> str:
        return b.state(f"{name}/{kind}", b.shape(name))

    moments: tuple[str, ...]
    inputs: tuple[str, ...]
    rule: dict[str, Any]
    match optimizer:
        case SGD():
            moments = (moment("velocity"),) if optimizer.momentum else ()
            rule = {"momentum": optimizer.momentum, "nesterov": optimizer.nesterov}
            inputs = (name, g, lr, *moments)
        case Adam() | AdamW():
            moments = (moment("m"), moment("v"))
            rule = {"beta1": optimizer.beta1, "beta2": optimizer.beta2, "eps": optimizer.eps}
            rule["decoupled"] = isinstance(optimizer, AdamW)
            inputs = (name, g, *moments, lr, b.input("corrections", (2,)))
        case RMSprop():
            moments = (moment("v"), moment("velocity")) if optimizer.momentum else (moment("v"),)
            rule = {"alpha": optimizer.alpha, "eps": optimizer.eps, "momentum": optimizer.momentum}
            inputs = (name, g, moments[0], lr, *moments[1:])
        case Adagrad():
            moments = (moment("v"),)
            rule = {"eps": optimizer.eps}
            inputs = (name, g, *moments, lr)
    op = "adam" if isinstance(optimizer, AdamW) else type(optimizer).__name__.lower()
    b.emit_all(op, *inputs, writes=(name, *moments), weight_decay=optimizer.weight_decay, **rule)
