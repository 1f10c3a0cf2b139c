"""The reference trainer: PyTorch underneath, on a server or any machine that has room for it.

All parameters are views of one flat tensor and all gradients views of another. Loading a model is one copy, an
optimizer step is a handful of calls whatever the number of layers, and because every optimizer here works element
by element, the arithmetic is exactly that of the per-tensor form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import losses, optimizers
from edge_runtime.errors import ConfigError, MissingPackageError
from edge_runtime.losses import LOG_VARIANCES
from edge_runtime.train import loop
from edge_runtime.train.batches import Array, Batch, Inputs, Targets
from edge_runtime.train.loop import State
from edge_runtime.train.metrics import Evaluation, Metric

try:
    import torch

    from edge_runtime.train import torch_losses, torch_optimizers
    from edge_runtime.train.torch_qat import Rounding
except ImportError as error:
    raise MissingPackageError("TorchTrainer needs PyTorch: pip install 'hedgerow[server]'") from error


class TorchTrainer:
    """`LocalTrainer` for a `torch.nn.Module` on the CPU.

    Args:
        module: used in place; its parameters are re-pointed into one flat tensor.
        loss, optimizer: descriptions from `edge_runtime.losses` and `edge_runtime.optimizers`. The log-variances of a
            learned `MultiTask` are trained along and kept in `snapshot()`, but are no part of `state_dict()`; they
            start again from zero when weights are loaded.
        proximal_mu: FedProx's mu; adds mu (w - w_loaded) to the gradient (Li et al. 2020, equation 2).
        clip_value, clip_norm: bounds of each element of the gradient, and of the norm of it all; 0 for none. They come
            after the proximal term and SCAFFOLD's correction and before the optimizer, elements first.
        qat_bits, qat_activations: as `edge_runtime.build` takes them; see `torch_qat.py`.
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
        clip_value: float = 0.0,
        clip_norm: float = 0.0,
        qat_bits: int | Mapping[str, int] = 0,
        qat_activations: bool = True,
        threads: int = 1,
        seed: int = 0,
    ) -> None:
        for name, bound in (("clip_value", clip_value), ("clip_norm", clip_norm)):
            if not 0 <= bound < float("inf"):
                raise ConfigError(f"{name} = {bound}: must be >= 0, and 0 for no clipping")
        torch.set_num_threads(threads)
        self.reseed(seed)
        self.module = module
        if not module.training:
            module.train()
        self._call = Rounding(module, qat_bits, activations=qat_activations) if qat_bits else module
        self._modes = [(part, part.training) for part in module.modules()]
        self.lr_scale = 1.0
        self._loss = loss or losses.CrossEntropy()
        self._terms = losses.terms(self._loss)
        self._optimizer = optimizer or optimizers.SGD()
        self._proximal_mu, self._clip_value, self._clip_norm = proximal_mu, clip_value, clip_norm
        learned = isinstance(self._loss, losses.MultiTask) and self._loss.learned
        self._log_variances = torch.nn.Parameter(torch.zeros(len(self._terms))) if learned else None
        self._trained = _trained_parameters(module)
        if self._log_variances is not None:
            self._trained[LOG_VARIANCES] = self._log_variances
        self._weights, self._gradients = _flatten(self._trained)
        self._moments: torch_optimizers.State
        self._correction: torch.Tensor | None
        self._restart()

    @property
    def steps(self) -> int:
        return self._steps

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        own = self.module.state_dict()
        if state.keys() != own.keys():
            odd = sorted(state.keys() ^ own.keys())
            raise ValueError(f"state_dict differs from the model's in {len(odd)} names, first {odd[0]}")
        for name, tensor in own.items():
            if tuple(tensor.shape) != state[name].shape:
                raise ValueError(f"tensor {name} has shape {state[name].shape}, the model's has {tuple(tensor.shape)}")
        with torch.no_grad():
            for name in self._own_names():
                own[name].numpy()[...] = state[name]
            if self._log_variances is not None:
                self._log_variances.zero_()
        self._restart()

    def state_dict(self) -> State:
        return {name: tensor.numpy().copy() for name, tensor in self.module.state_dict().items()}

    def _own_names(self) -> list[str]:
        """Names of the state_dict, but of tied tensors only the first one."""
        first = {name for name, _ in [*self.module.named_parameters(), *self.module.named_buffers()]}
        return [name for name in self.module.state_dict() if name in first]

    def buffer_names(self) -> set[str]:
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        return self.module.state_dict().keys() - parameters.keys()

    def moving_names(self) -> list[str]:
        moving = {name for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        # A layer in evaluation mode leaves its buffers alone; of others it is not known which ones they move.
        for (prefix, part), (_, training) in zip(self.module.named_modules(), self._modes, strict=True):
            if training:
                own = part.named_buffers(prefix, recurse=False)
                moving |= {name for name, buffer in own if buffer.is_floating_point()}
        return [name for name in self._own_names() if name in moving]

    def reseed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also visits every kind of GPU, 50x as long

    def set_correction(self, correction: Mapping[str, Array]) -> None:
        for name, array in correction.items():
            if name not in self._trained:
                raise ValueError(f"a correction for {name}, which is no trained parameter")
            if array.shape != tuple(self._trained[name].shape):
                raise ValueError(
                    f"the correction for {name} has shape {array.shape}, not {tuple(self._trained[name].shape)}"
                )
        flat = torch.zeros_like(self._weights)
        for name, view in _views(flat, self._trained):
            if name in correction:
                view.numpy()[...] = correction[name]
        self._correction = flat

    def snapshot(self) -> State:
        return {name: tensor.detach().numpy().copy() for name, tensor in self._parts().items()}

    def restore(self, snapshot: Mapping[str, Array]) -> None:
        count = snapshot.get("steps")
        if count is None or count.shape or count.dtype != np.int64 or int(count) < 0:
            raise ConfigError("the snapshot does not fit this trainer: it holds no step count")
        moments = torch_optimizers.moment_names(self._optimizer) if count else ()
        before = self._moments, self._correction
        self._moments = {name: torch.zeros_like(self._weights) for name in moments}
        self._correction = torch.zeros_like(self._weights) if "correction" in snapshot else None
        try:
            own = self._parts()
            _check_parts(own, snapshot)
            torch.default_generator.set_state(torch.from_numpy(np.array(snapshot["random"])))
        except (RuntimeError, TypeError, ConfigError) as error:
            self._moments, self._correction = before
            raise ConfigError(f"the snapshot does not fit this trainer: {str(error).splitlines()[0]}") from None
        for name, tensor in own.items():
            tensor.detach().numpy()[...] = snapshot[name]
        self._steps = int(count)

    def step(self, x: Inputs, y: Targets) -> float:
        self._back_to_training()
        self._gradients.zero_()
        loss = self._loss_of(self._forward(x), y)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves this method untyped
        if self._proximal_mu:
            self._gradients.add_(self._weights - self._anchor, alpha=self._proximal_mu)
        if self._correction is not None:
            self._gradients.add_(self._correction)
        torch_optimizers.clip(self._gradients, self._clip_value, self._clip_norm)
        torch_optimizers.step(
            self._optimizer, self._moments, self._steps, self._weights, self._gradients, self.lr_scale
        )
        self._steps += 1
        return float(loss.detach())

    fit = loop.fit

    def _back_to_training(self) -> None:
        """Every layer in the mode in which it was to be trained: a frozen batch norm stays frozen."""
        if not self.module.training:
            for part, training in self._modes:
                part.training = training

    @torch.inference_mode()
    def evaluate(self, batches: Iterable[Batch], metrics: Sequence[Metric | str] | None = None) -> dict[str, float]:
        self.module.eval()
        evaluation = Evaluation(self._loss, metrics)
        for x, y in batches:
            output = self._forward(x)
            evaluation.add(float(self._loss_of(output, y)), _arrays(output), y)
        return evaluation.figures()

    @torch.inference_mode()
    def predict(self, x: Inputs) -> Any:
        self.module.eval()
        return _arrays(self._forward(x))

    def _restart(self) -> None:
        self._anchor = self._weights.clone() if self._proximal_mu else self._weights
        self._moments, self._correction = {}, None
        self._steps = 0

    def _parts(self) -> dict[str, torch.Tensor]:
        """All tensors that a continued training depends on; those of the random state and the step count are copies."""
        parts: dict[str, torch.Tensor] = {f"state/{name}": tensor for name, tensor in self.module.named_parameters()}
        parts |= {f"state/{name}": tensor for name, tensor in self.module.named_buffers()}
        parts |= {f"moments/{name}": tensor for name, tensor in self._moments.items()}
        if self._log_variances is not None:
            parts[LOG_VARIANCES] = self._log_variances
        if self._proximal_mu:
            parts["anchor"] = self._anchor
        if self._correction is not None:
            parts["correction"] = self._correction
        return parts | {"steps": torch.tensor(self._steps), "random": torch.default_generator.get_state()}

    def _forward(self, x: Inputs) -> Any:
        return self._call(*map(_tensor, x)) if isinstance(x, tuple) else self._call(_tensor(x))

    def _loss_of(self, output: torch.Tensor | Sequence[torch.Tensor], y: Targets) -> torch.Tensor:
        outputs = (output,) if isinstance(output, torch.Tensor) else tuple(output)
        targets = y if isinstance(y, tuple) else (y,)
        wanted = 1 + max(term.output for term in self._terms)
        if len(outputs) != wanted or len(targets) != len(self._terms):
            raise ValueError(
                f"{type(self._loss).__name__} takes {wanted} outputs and {len(self._terms)} targets, "
                f"the model gave {len(outputs)} and the batch {len(targets)}"
            )
        total: Any = 0.0
        for number, (term, target) in enumerate(zip(self._terms, targets, strict=True)):
            z = outputs[term.output]
            value = torch_losses.mean_loss(term.loss, z, torch_losses.fitted(term.loss, z, _tensor(target)))
            value = value if term.weight == 1 else term.weight * value
            if self._log_variances is not None:
                s = self._log_variances[number]
                value = torch.exp(-s) * value + s
            total = total + value if number else value
        return total  # type: ignore[no-any-return]  # a tensor, for there is at least one term


def _tensor(array: Array) -> torch.Tensor:
    # PyTorch warns of arrays that it could not write to, such as those of a file opened for reading.
    return torch.from_numpy(np.require(array, requirements="W"))


def _arrays(output: torch.Tensor | Sequence[torch.Tensor]) -> Any:
    return output.numpy() if isinstance(output, torch.Tensor) else tuple(tensor.numpy() for tensor in output)


def _check_parts(own: Mapping[str, torch.Tensor], snapshot: Mapping[str, NDArray[np.generic]]) -> None:
    if own.keys() != snapshot.keys():
        odd = sorted(own.keys() ^ snapshot.keys())
        raise ConfigError(f"their parts differ in {len(odd)} names, first {odd[0]}")
    for name, tensor in own.items():
        array = snapshot[name]
        if array.shape != tuple(tensor.shape) or array.dtype != tensor.detach().numpy().dtype:
            raise ConfigError(f"{name} is {array.dtype} {array.shape}, not {tensor.dtype} {tuple(tensor.shape)}")


def _trained_parameters(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(f"parameter {name} is {parameter.dtype}; only float32 models are trained")
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ValueError("the model has no trainable parameter")
    return trained


def _flatten(trained: Mapping[str, torch.nn.Parameter]) -> tuple[torch.Tensor, torch.Tensor]:
    """Re-point every parameter and its gradient into two flat float32 tensors, and return those."""
    weights = torch.cat([_channels_last(parameter.detach()).reshape(-1) for parameter in trained.values()])
    gradients = torch.zeros_like(weights)
    views = dict(_views(weights, trained)), dict(_views(gradients, trained))
    for name, parameter in trained.items():
        parameter.data, parameter.grad = views[0][name], views[1][name]
    return weights, gradients


def _views(flat: torch.Tensor, trained: Mapping[str, torch.nn.Parameter]) -> Iterable[tuple[str, torch.Tensor]]:
    """Each parameter's place in a flat tensor, in the parameter's own shape."""
    offset = 0
    for name, parameter in trained.items():
        span = flat[offset : offset + parameter.numel()]
        yield name, _channels_first(span.view(_channels_last(parameter).shape))
        offset += parameter.numel()


# Convolution weights (O, I, kh, kw) are kept as (O, kh, kw, I): oneDNN then runs a LeNet step in 12 % less time.
def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor


def _channels_first(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor
