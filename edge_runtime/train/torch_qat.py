"""Rounding in place for a `torch.nn.Module`: `passes/fake_quant.py` in PyTorch's own core ops, for the torch trainer.

Weights of layers are rounded on their way into a forward pass, so the module keeps its tensors and their names.
Activations are rounded, in training mode, where they enter a convolution, linear or recurrent layer, and where they
leave the module: a module does not say where a block ends, as a graph does, so what two branches add is not rounded
before it is added.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edge_runtime.ir.grids import bits_by_weight

_ENTERED = (nn.Conv2d, nn.Linear, nn.GRU, nn.LSTM)
_SMALLEST = torch.finfo(torch.float32).tiny


def round_weight(w: Tensor, bits: int) -> Tensor:
    """`w` on a symmetric grid for each of its rows; its gradient is that of the result."""
    most = 2 ** (bits - 1) - 1
    top = w.detach().abs().reshape(len(w), -1).amax(1) / most
    scale = torch.where(top > _SMALLEST, top, torch.ones_like(top))
    zero = torch.zeros(len(w), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(w, scale, zero, 0, -most, most)


def round_activation(x: Tensor, bits: int = 8) -> Tensor:
    """`x` on one grid over its range and 0; its gradient is that of the result. Tokens stay as they are."""
    if not x.is_floating_point():
        return x
    low, high = (bound.double() for bound in x.detach().aminmax())
    low, high = low.clamp(max=0), high.clamp(min=0)
    bottom = -(2 ** (bits - 1))
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale > _SMALLEST, scale, torch.ones_like(scale))
    # An infinite scale has no integer zero point; what it rounds is not finite, and so neither is the loss.
    zero = torch.nan_to_num((bottom - low / scale).round(), bottom).clamp(bottom, -bottom - 1)
    return torch.fake_quantize_per_tensor_affine(x, scale.float(), zero.int(), bottom, -bottom - 1)


class Rounding:
    """Calls `module` with its weights rounded to `bits`: one number, or by weight name, 8 for those not there."""

    def __init__(self, module: nn.Module, bits: int | Mapping[str, int], *, activations: bool) -> None:
        self._module, self._activations = module, activations
        self._bits = _bits(module, bits)

    def __call__(self, *inputs: Tensor) -> Any:
        parameters = dict(self._module.named_parameters())
        rounded = {name: round_weight(parameters[name], bits) for name, bits in self._bits.items()}
        if not (self._activations and self._module.training):
            return functional_call(self._module, rounded, inputs)
        with contextlib.ExitStack() as hooks:  # for this call alone: the module is the user's
            for layer in self._module.modules():
                if isinstance(layer, _ENTERED):
                    hooks.enter_context(layer.register_forward_pre_hook(_enter))
            output = functional_call(self._module, rounded, inputs)
        return round_activation(output) if isinstance(output, Tensor) else tuple(map(round_activation, output))


def _enter(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (round_activation(inputs[0]), *inputs[1:])


def _bits(module: nn.Module, asked: int | Mapping[str, int]) -> dict[str, int]:
    """Of each weight of a layer; of tied ones, the name that the module's parameters have it by."""
    names = []
    known = {id(one): name for name, one in module.named_parameters()}
    for layer in module.modules():
        match layer:
            case nn.Conv2d() | nn.Linear() | nn.Embedding():
                own = [layer.weight]
            case nn.GRU() | nn.LSTM():
                own = [one for name, one in layer.named_parameters() if name.startswith("weight_")]
            case _:
                own = []
        names += [known[id(one)] for one in own]
    return bits_by_weight(names, asked, "qat_bits")
