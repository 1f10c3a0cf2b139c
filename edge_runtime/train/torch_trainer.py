"""The reference trainer: PyTorch underneath, on a server or any machine that has room for it.

All parameters are views of one flat tensor and all gradients views of another. Loading a model is one copy, an
optimizer step is a handful of calls whatever the number of layers, and because every optimizer here works element
by element, the arithmetic is exactly that of the per-tensor form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_runtime import losses, optimizers
from edge_runtime.errors import MissingPackageError
from edge_runtime.train.trainer import Callback, History, State

try:
    import torch
    from torch.nn import functional

    from edge_runtime.train import torch_optimizers
except ImportError as error:
    raise MissingPackageError("TorchTrainer needs PyTorch: pip install 'hedgerow[server]'") from error

if TYPE_CHECKING:
    from edge_runtime.train.batches import Batch


class TorchTrainer:
    """`Trainer` for a `torch.nn.Module` on the CPU.

    Args:
        module: used in place; its parameters are re-pointed into one flat tensor.
        loss, optimizer: descriptions from `edge_runtime.losses` and `edge_runtime.optimizers`.
        proximal_mu: FedProx's mu; adds mu (w - w_loaded) to the gradient (Li et al. 2020, equation 2).
        threads: PyTorch's intra-op threads, a setting of the whole process.
        seed: for dropout.

    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        loss: losses.Loss | None = None,
        optimizer: optimizers.Optimizer | None = None,
        proximal_mu: float = 0.0,
        threads: int = 1,
        seed: int = 0,
    ) -> None:
        torch.set_num_threads(threads)
        self.reseed(seed)
        self.module = module
        self._loss = loss or losses.CrossEntropy()
        self._optimizer = optimizer or optimizers.SGD()
        self._proximal_mu = proximal_mu
        self._weights, self._gradients = _flatten_parameters(module)
        self._restart()

    def load_state_dict(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        own = self.module.state_dict()
        if state.keys() != own.keys():
            odd = sorted(state.keys() ^ own.keys())
            raise ValueError(f"state_dict differs from the model's in {len(odd)} names, first {odd[0]}")
        for name, tensor in own.items():
            if tuple(tensor.shape) != state[name].shape:
                raise ValueError(f"tensor {name} has shape {state[name].shape}, the model's has {tuple(tensor.shape)}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.numpy()[...] = state[name]
        self._restart()

    def state_dict(self) -> State:
        return {name: tensor.numpy().copy() for name, tensor in self.module.state_dict().items()}

    def buffer_names(self) -> set[str]:
        return self.module.state_dict().keys() - dict(self.module.named_parameters()).keys()

    def reseed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also visits every kind of GPU, 50x as long

    def step(self, x: NDArray[np.generic], y: NDArray[np.generic]) -> float:
        if not self.module.training:
            self.module.train()
        self._gradients.zero_()
        output = self.module(torch.from_numpy(x))
        loss = self._loss_of(output, self._fitted(output, y))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves this method untyped
        if self._proximal_mu:
            self._gradients.add_(self._weights - self._anchor, alpha=self._proximal_mu)
        torch_optimizers.step(self._optimizer, self._moments, self._steps, self._weights, self._gradients)
        self._steps += 1
        return float(loss.detach())

    def fit(self, batches: Iterable[Batch], epochs: int = 1, callbacks: Iterable[Callback] = ()) -> History:
        history = History()
        callbacks = list(callbacks)
        for _ in range(epochs):
            for x, y in batches:
                history.losses.append(self.step(x, y))
                history.examples += len(x)
                for callback in callbacks:
                    callback(len(history.losses) - 1, history.losses[-1])
        return history

    @torch.inference_mode()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        self.module.eval()
        count, total, correct, targets = 0, 0.0, 0, 0
        classes = isinstance(self._loss, losses.CrossEntropy)
        for x, y in batches:
            output = self.module(torch.from_numpy(x))
            target = self._fitted(output, y)
            total += len(x) * float(self._loss_of(output, target))
            count += len(x)
            if classes:
                correct += int((output.argmax(-1) == target).sum())
                targets += target.numel()
        if not count:
            raise ValueError("evaluate was given no examples")
        return {"loss": total / count} | ({"accuracy": correct / targets} if classes else {})

    @torch.inference_mode()
    def predict(self, x: NDArray[np.generic]) -> NDArray[np.float32]:
        self.module.eval()
        output: NDArray[np.float32] = self.module(torch.from_numpy(x)).numpy()
        return output

    def _restart(self) -> None:
        self._anchor = self._weights.clone()
        self._moments: torch_optimizers.State = {}
        self._steps = 0

    def _fitted(self, output: torch.Tensor, y: NDArray[np.generic]) -> torch.Tensor:
        """The targets in the shape and dtype that the loss needs beside `output`; never left to broadcasting."""
        target = torch.from_numpy(y)
        classes = isinstance(self._loss, losses.CrossEntropy)
        if classes and target.is_floating_point():
            raise ValueError(f"cross_entropy needs whole-number classes, the targets are {target.dtype}")
        wanted = output.shape[:-1] if classes else output.shape
        if target.shape != wanted:
            narrower, wider = target.shape == (*wanted, 1), wanted == (*target.shape, 1)
            if not (narrower or wider):
                raise ValueError(f"targets {tuple(target.shape)} do not fit the model's output {tuple(output.shape)}")
            target = target.reshape(wanted)
        return target if classes else target.to(output.dtype)

    def _loss_of(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        match self._loss:
            case losses.CrossEntropy(label_smoothing):
                classes = output.shape[-1]
                return functional.cross_entropy(
                    output.reshape(-1, classes), target.reshape(-1), label_smoothing=label_smoothing
                )
            case losses.BCEWithLogits():
                return functional.binary_cross_entropy_with_logits(output, target)
            case losses.MSE():
                return functional.mse_loss(output, target)
            case losses.L1():
                return functional.l1_loss(output, target)
            case losses.Huber(delta):
                return functional.huber_loss(output, target, delta=delta)


def _flatten_parameters(module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Re-point every trainable parameter and its gradient into two flat float32 tensors, and return those."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(f"parameter {name} is {parameter.dtype}; only float32 models are trained")
    if not parameters:
        raise ValueError("the model has no trainable parameter")
    weights = torch.cat([_channels_last(parameter.detach()).reshape(-1) for parameter in parameters])
    gradients = torch.zeros_like(weights)
    offset = 0
    for parameter in parameters:
        span = slice(offset, offset + parameter.numel())
        stored = _channels_last(parameter).shape
        parameter.data = _channels_first(weights[span].view(stored))
        parameter.grad = _channels_first(gradients[span].view(stored))
        offset = span.stop
    return weights, gradients


# Convolution weights (O, I, kh, kw) are kept as (O, kh, kw, I): oneDNN then runs a LeNet step in 12 % less time.
def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor


def _channels_first(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor
