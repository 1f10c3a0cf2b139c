"""Training a deployed model's graph with the engine: what a lever has cost is mostly won back in an epoch or two."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge_runtime.building import build_graph
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.errors import ConfigError
from edge_runtime.ir.builder import Builder
from edge_runtime.ir.graph import Graph
from edge_runtime.ir.verify import verify
from edge_runtime.losses import CrossEntropy, Distillation, KLDivergence, Loss
from edge_runtime.optimizers import Adam, Optimizer
from edge_runtime.passes.fake_quant import with_fake_quant
from edge_runtime.schedules import Cosine
from edge_runtime.train.batches import Array, Batches, Examples, MultiExamples, Rows
from edge_runtime.train.trainer import Trainer

MASK = "/mask"  # of a pruned weight: 1 where it may move


@dataclasses.dataclass(frozen=True, slots=True)
class Tuning:
    """How a model is trained again.

    Attributes:
        epochs, batch_size: passes over the examples, and rows of a step.
        lr: of Adam, falling to 0 along a cosine.
        temperature: T of distillation; Hinton et al. 2015.
        alpha: weight of the teacher's word against the labels'; with 1 labels are not read.
        keep_zeros: weights that are exactly zero stay so, which keeps a pruned model pruned.
        weight_bits: 2 to 8: round weights on the way forward, to so many bits, as the exported model will; 0 for not.
        activations: whether activations are rounded too, to 8 bits; needs weight_bits.
        seed: for the order of the examples.

    """

    epochs: int = 1
    batch_size: int = 32
    lr: float = 1e-3
    temperature: float = 3.0
    alpha: float = 0.7
    keep_zeros: bool = True
    weight_bits: int | Mapping[str, int] = 0
    activations: bool = False
    seed: int = 0


def finetune(
    model: FloatModel,
    examples: Examples,
    tuning: Tuning | None = None,
    *,
    teacher: FloatModel | Array | None = None,
    loss: Loss | None = None,
    threads: int | None = None,
) -> FloatModel:
    """The same graph with weights trained on `examples`; nothing but NumPy and the native core is used.

    Args:
        model: without batch norm (`graph.fold`), whose statistics would stay as they are.
        examples: inputs (N, ...) and their targets.
        tuning: how; `Tuning()` if None.
        teacher: a model, or its logits for these very inputs, to learn from beside the labels (Hinton et al. 2015).
        loss: of the labels; cross-entropy if None. With a teacher it is cross-entropy.
        threads: as `Trainer` has it.

    """
    tuning = tuning or Tuning()
    if teacher is not None and loss is not None and not isinstance(loss, CrossEntropy):
        raise ConfigError(f"a teacher of classes goes with cross_entropy, not with {type(loss).__name__}")
    rows, spec = _task(examples, tuning, teacher, loss)
    order = Batches(rows, tuning.batch_size, np.random.default_rng(tuning.seed))
    steps = tuning.epochs * math.ceil(len(examples) / tuning.batch_size)
    trainer = _trainer(model, spec, Adam(lr=tuning.lr), tuning, threads)
    trainer.fit(order, tuning.epochs, schedule=Cosine(max(steps, 1)))
    trained = trainer.state_dict()
    return model.with_weights({name: np.asarray(trained[name], np.float32) for name in model.weights})


def teacher_logits(teacher: FloatModel | Array, x: Array) -> NDArray[np.float32]:
    """What `teacher` says of x; given logits as they are, if they are of as many rows."""
    if isinstance(teacher, FloatModel):
        return predict(teacher, x)
    if len(teacher) != len(x):
        raise ConfigError(f"the teacher's logits are for {len(teacher)} examples, there are {len(x)}")
    return np.asarray(teacher, np.float32)


def _task(
    examples: Examples, tuning: Tuning, teacher: FloatModel | Array | None, loss: Loss | None
) -> tuple[Rows, Loss]:
    """What each step reads, and what it makes small."""
    if teacher is None:
        return examples, loss or CrossEntropy()
    logits = teacher_logits(teacher, examples.x)
    if tuning.alpha == 1:
        return Examples(examples.x, logits), KLDivergence(tuning.temperature)
    smoothing = loss.label_smoothing if isinstance(loss, CrossEntropy) else 0.0
    spec = Distillation(tuning.alpha, tuning.temperature, smoothing)
    return MultiExamples(examples.x, (examples.y, logits)), spec


def _trainer(model: FloatModel, loss: Loss, optimizer: Optimizer, tuning: Tuning, threads: int | None) -> Trainer:
    masks = {
        f"{name}{MASK}": (w != 0).astype(np.float32)
        for name, w in model.weights.items()
        if tuning.keep_zeros and w.ndim >= 2 and not w.all()
    }

    def forward(rows: int) -> Graph:
        graph = model.at(rows)
        if tuning.weight_bits:
            graph = with_fake_quant(graph, tuning.weight_bits, tuning.activations)
        return with_masks(graph, [name.removesuffix(MASK) for name in masks])

    program = build_graph(
        forward,
        {**model.weights, **masks},
        loss=loss,
        optimizer=optimizer,
        batch_size=tuning.batch_size,
        trainable=list(model.weights),
    )
    return Trainer(program, threads=threads, seed=tuning.seed)


def with_masks(graph: Graph, names: list[str]) -> Graph:
    """The graph with each of these weights multiplied by a state tensor NAME/mask wherever it is read.

    The product's gradient is zero where the mask is, so a weight that is zero there gets no update but zero from any
    optimizer that scales gradients or their moments.
    """
    b = Builder(dataclasses.replace(graph, nodes=()))
    masked = {}
    for name in names:
        b.hint = f"{name}.masked"
        masked[name] = b.emit("mul", name, b.state(f"{name}{MASK}", graph.values[name].shape))
    for node in graph.nodes:
        b.append(node, tuple(masked.get(name, name) for name in node.inputs), graph.values)
    return verify(b.finish(graph.outputs))
