"""The losses of `edge_runtime.losses` in PyTorch operations; 0, with gradient 0, where no target counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edge_runtime import losses


def mean_loss(loss: losses.SingleLoss, output: Tensor, target: Tensor) -> Tensor:
    """Loss between an output and its `fitted` target."""
    match loss:
        case losses.CrossEntropy() | losses.Focal():
            return _class_loss(loss, output.reshape(-1, output.shape[-1]), target.reshape(-1))
        case losses.KLDivergence(temperature):
            # Not functional.kl_div's "batchmean", which divides by the first axis only.
            teacher, student = (functional.log_softmax(z / temperature, -1) for z in (target, output))
            rows = max(output.numel() // output.shape[-1], 1)
            return functional.kl_div(student, teacher, reduction="sum", log_target=True) * (temperature**2 / rows)
        case losses.BCEWithLogits():
            return functional.binary_cross_entropy_with_logits(output, target)
        case losses.MSE():
            return functional.mse_loss(output, target)
        case losses.L1():
            return functional.l1_loss(output, target)
        case losses.Huber(delta):
            return functional.huber_loss(output, target, delta=delta)


def fitted(loss: losses.SingleLoss, output: Tensor, target: Tensor) -> Tensor:
    """The targets in the shape and dtype that the loss needs beside `output`; never left to broadcasting.

    Raises:
        ValueError: they cannot be meant for this output.

    """
    classes = isinstance(loss, losses.CrossEntropy | losses.Focal)
    if isinstance(loss, losses.CrossEntropy | losses.Focal):
        if target.is_floating_point():
            name = "focal" if isinstance(loss, losses.Focal) else "cross_entropy"
            raise ValueError(f"{name} needs whole-number classes, the targets are {target.dtype}")
        if len(loss.class_weights) not in (0, output.shape[-1]):
            raise ValueError(f"{len(loss.class_weights)} class weights for a model with {output.shape[-1]} classes")
    wanted = output.shape[:-1] if classes else output.shape
    if target.shape != wanted:
        narrower, wider = target.shape == (*wanted, 1), wanted == (*target.shape, 1)
        if not (narrower or wider):
            raise ValueError(f"targets {tuple(target.shape)} do not fit the model's output {tuple(output.shape)}")
        target = target.reshape(wanted)
    return target.to(torch.int64 if classes else output.dtype)


def _class_loss(loss: losses.CrossEntropy | losses.Focal, logits: Tensor, classes: Tensor) -> Tensor:
    weights = torch.tensor(loss.class_weights, dtype=logits.dtype) if loss.class_weights else None
    counts = classes != loss.ignore_index
    if not (weights[classes[counts]] > 0 if weights is not None else counts).any():
        return logits[:0].sum()  # PyTorch divides 0 by 0 here
    match loss:
        case losses.CrossEntropy(label_smoothing, _, ignore_index):
            return functional.cross_entropy(
                logits, classes, weights, None, ignore_index, label_smoothing=label_smoothing
            )
        case losses.Focal(gamma):
            return _focal(gamma, logits[counts], classes[counts], weights)


def _focal(gamma: float, logits: Tensor, classes: Tensor, weights: Tensor | None) -> Tensor:
    log_p = functional.log_softmax(logits, -1).gather(-1, classes[:, None])[:, 0]
    # 1 - p without cancellation; kept off 0, where the slope of a power below 1 is infinite and its gradient NaN.
    rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    each = -log_p * rest**gamma
    if weights is None:
        return each.mean()
    own = weights[classes]
    return (own * each).sum() / own.sum()
