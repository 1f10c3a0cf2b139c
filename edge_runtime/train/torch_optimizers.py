"""Optimizer steps on one flat weight tensor, in PyTorch operations.

`torch.optim` gives the same numbers (a test holds them equal), but its first use imports torch's compiler: a second
of CPU and 70 MiB in every process. Each step here updates `w` in place and keeps its moments in `state`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_runtime.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

State = dict[str, Tensor]


def clip(g: Tensor, value: float, norm: float) -> None:
    """Clip `g` in place: every element to [-value, value], then the whole to the L2 norm `norm`; 0 leaves out either.

    The second is PyTorch's, g min(1, norm / (|g| + 1e-6)); Pascanu et al. 2013, algorithm 1.
    """
    if value:
        g.clamp_(-value, value)
    if norm:
        g.mul_((norm / (torch.linalg.vector_norm(g) + 1e-6)).clamp_(max=1.0))


def step(optimizer: Optimizer, state: State, steps: int, w: Tensor, g: Tensor, lr_scale: float = 1.0) -> None:
    """Update `w` with gradient `g` (overwritten); `steps` counts the steps taken before this one.

    `lr_scale` multiplies the learning rate, also where it scales AdamW's weight decay.
    """
    lr = optimizer.lr * lr_scale
    match optimizer:
        case SGD():
            _sgd(optimizer, lr, state, w, g)
        case AdamW():
            w.mul_(1 - lr * optimizer.weight_decay)
            _adam(optimizer, lr, state, steps, w, g)
        case Adam():
            g.add_(w, alpha=optimizer.weight_decay)
            _adam(optimizer, lr, state, steps, w, g)
        case RMSprop():
            _rmsprop(optimizer, lr, state, w, g)
        case Adagrad():
            g.add_(w, alpha=optimizer.weight_decay)
            total = _moment(state, "sum", w).addcmul_(g, g)
            w.addcdiv_(g, total.sqrt().add_(optimizer.eps), value=-lr)


def moment_names(optimizer: Optimizer) -> tuple[str, ...]:
    """What `state` holds after the first step."""
    match optimizer:
        case SGD(momentum=momentum):
            return ("velocity",) if momentum else ()
        case Adam() | AdamW():
            return ("m", "v")
        case RMSprop(momentum=momentum):
            return ("v", "velocity") if momentum else ("v",)
        case Adagrad():
            return ("sum",)


def _sgd(o: SGD, lr: float, state: State, w: Tensor, g: Tensor) -> None:
    if o.weight_decay:
        g.add_(w, alpha=o.weight_decay)
    if o.momentum:
        velocity = _moment(state, "velocity", w)
        torch.add(g, velocity, alpha=o.momentum, out=velocity)
        g = g.add_(velocity, alpha=o.momentum) if o.nesterov else velocity
    w.add_(g, alpha=-lr)


def _adam(o: Adam | AdamW, lr: float, state: State, steps: int, w: Tensor, g: Tensor) -> None:
    m = _moment(state, "m", w).lerp_(g, 1 - o.beta1)
    v = _moment(state, "v", w).mul_(o.beta2).addcmul_(g, g, value=1 - o.beta2)
    t = steps + 1
    scale = v.sqrt().div_((1 - o.beta2**t) ** 0.5).add_(o.eps)
    w.addcdiv_(m, scale, value=-lr / (1 - o.beta1**t))


def _rmsprop(o: RMSprop, lr: float, state: State, w: Tensor, g: Tensor) -> None:
    g.add_(w, alpha=o.weight_decay)
    scale = _moment(state, "v", w).mul_(o.alpha).addcmul_(g, g, value=1 - o.alpha).sqrt().add_(o.eps)
    if o.momentum:
        w.add_(_moment(state, "velocity", w).mul_(o.momentum).addcdiv_(g, scale), alpha=-lr)
    else:
        w.addcdiv_(g, scale, value=-lr)


def _moment(state: State, name: str, like: Tensor) -> Tensor:
    """The moment of that name, zero at first."""
    if name not in state:
        state[name] = torch.zeros_like(like)
    return state[name]
