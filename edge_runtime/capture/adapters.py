"""Low-rank adapters on a module's linear and 1x1 convolution layers (LoRA, Hu et al. 2021, arXiv 2106.09685).

y = base(x) + (alpha / r) B(A x) with A (r, in) Kaiming-uniform and B (out, r) zero at the start: the model starts as it
was. The base's weight rests; A and B, r (in + out) numbers in place of in x out, are what trains and travels.

Which layers get adapters
    Every linear layer and every ungrouped 1x1 convolution but the last linear layer, which classifies: it is small, and
    a low rank there costs most (fine-tuning libraries leave it out too). A layer with r (in + out) >= in x out has none
    either: they would be larger than it, and could express no more. Both train in full. So does a layer whose weight is
    tied to another's, which merging would move too, or which PyTorch's own composite layers read past its `forward`.

What trains beside them
    All that would without adapters, except the weights that have them: biases, norms, embeddings, larger kernels. The
    paper, which starts from trained models, rests those as well. From random weights that hardly learns: the 40 rounds
    of `hedgerow simulate mnist` end at 95.9 % (61,706 numbers train), with `--set train.lora_rank=4` at 93.4 % (6,522),
    and as in the paper with the last layer in full, `--set train.trainable=f3.*` besides, at 70.8 % (3,746).
    `trainable` names other tensors in their place.

What it saves
    Numbers on the wire, and of the arena the gradient and the moments of every weight at rest. Not activations: A's
    gradient needs the layer's input as W's does. So a model of large weights trains in less (LeNet at batch 8 in 0.64
    of the arena), one of large activations (MobileNetV2) in as much.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_runtime.adapters import LORA_A, LORA_B
from edge_runtime.config import names_that_fit
from edge_runtime.errors import ConfigError


class AdaptedLinear(nn.Linear):
    """A linear layer with adapters; its other tensors keep their names."""

    lora_A: nn.Parameter  # noqa: N815 - as in the paper and its authors' library
    lora_B: nn.Parameter  # noqa: N815
    lora_scale: float

    def forward(self, x: Tensor) -> Tensor:
        inner = self.lora_scale * functional.linear(x, self.lora_A)
        return super().forward(x) + functional.linear(inner, self.lora_B)


class AdaptedConv2d(nn.Conv2d):
    """A 1x1 convolution with adapters; A moves over the input as the layer does, B leaves places as they are."""

    lora_A: nn.Parameter  # noqa: N815
    lora_B: nn.Parameter  # noqa: N815
    lora_scale: float

    def forward(self, x: Tensor) -> Tensor:
        inner = self.lora_scale * functional.conv2d(x, self.lora_A, None, self.stride, self.padding)
        return super().forward(x) + functional.conv2d(inner, self.lora_B)


def with_adapters(
    module: nn.Module, rank: int, alpha: float | None = None, trainable: Sequence[str] | str | None = None
) -> nn.Module:
    """A copy of `module` with adapters, in which exactly what is to train requires a gradient.

    Args:
        module: stays as it is.
        rank: r, of every adapter.
        alpha: None for the rank, which leaves B A unscaled.
        trainable: names or patterns of what trains beside the adapters; None or "auto" for what the head of this file
            says.

    Raises:
        ConfigError: no layer can have adapters of this rank, or a name that fits no parameter.

    """
    module = copy.deepcopy(module)
    layers = [layer for layer in _candidates(module) if _is_worth_it(layer, rank)]
    if not layers:
        raise ConfigError(
            f"lora_rank = {rank}: the model has no linear or 1x1 convolution layer, its last linear one aside, that "
            f"adapters of this rank are smaller than; use a lower rank, or 0 to train it in full"
        )
    for layer in layers:
        _adapt(layer, rank, rank if alpha is None else alpha)
    if trainable is not None and trainable != "auto":
        parameters = dict(module.named_parameters(remove_duplicate=False))
        module.requires_grad_(False)
        for name in names_that_fit(trainable, list(parameters)):
            parameters[name].requires_grad_()
    for layer in layers:
        layer.lora_A.requires_grad_()
        layer.lora_B.requires_grad_()
    return module


def _candidates(module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    uses = Counter(id(one) for part in module.modules() for one in part._parameters.values())
    last = next((part for part in reversed(list(module.modules())) if type(part) is nn.Linear), None)
    read_past = set(_read_past_forward(module))
    return [
        part
        for part in module.modules()
        # A subclass may compute anything, and a weight that is no parameter of the layer is computed from others.
        if (type(part) is nn.Linear or (type(part) is nn.Conv2d and _is_pointwise(part)))
        and part is not last
        and part not in read_past
        and uses[id(part._parameters.get("weight"))] == 1
    ]


def _read_past_forward(module: nn.Module) -> Iterator[nn.Module]:
    """Layers in PyTorch's own composite ones, such as `TransformerEncoderLayer`, whose fast path takes the weights."""
    for parent in module.modules():
        if type(parent).__module__.startswith("torch.nn.") and not type(parent).__module__.endswith(".container"):
            yield from parent.children()


def _is_pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"


def _is_worth_it(layer: nn.Linear | nn.Conv2d, rank: int) -> bool:
    outputs, inputs = layer.weight.shape[:2]
    return rank * (outputs + inputs) < outputs * inputs


def _adapt(layer: Any, rank: int, alpha: float) -> None:
    """Turn the layer into its adapted form in place: the same object, so hooks, mode and further uses of it stay."""
    outputs, inputs, *ones = layer.weight.shape
    down = nn.Parameter(torch.empty(rank, inputs, *ones))
    nn.init.kaiming_uniform_(down, a=5**0.5)  # as PyTorch draws a layer's own weight: +- 1 / sqrt(in)
    layer.__class__ = AdaptedLinear if isinstance(layer, nn.Linear) else AdaptedConv2d
    layer.register_parameter(LORA_A, down)
    layer.register_parameter(LORA_B, nn.Parameter(torch.zeros(outputs, rank, *ones)))
    layer.lora_scale = alpha / rank
    layer.weight.requires_grad_(False)
