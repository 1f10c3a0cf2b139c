"""Teachers and students: from one model, or from a federation that sends what its models say instead of their weights.

Federated distillation: every client says its logits on public inputs without labels; their mean teaches the server's
model (FedDF, Lin et al. 2020), and may teach the clients' own (FedMD, Li and Wang 2019), each of an architecture of its
own. A round costs a client inputs times classes numbers, whatever the size of its model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_runtime.deploy.compress.finetune import Tuning, finetune, teacher_logits
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.fold import fold
from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.train.batches import Array, Examples

if TYPE_CHECKING:
    import torch

LARGEST_LOGIT = 1e4  # that a peer may send: e^1e4 against 1 is certainty already


def student(model: FloatModel | torch.nn.Module, example: Array) -> FloatModel:
    """`model` as something to teach: a PyTorch module is captured with its weights, and batch norms are folded."""
    if isinstance(model, FloatModel):
        return fold(model)
    from edge_runtime.deploy.graph.captured import captured_model  # it takes torch, which a FloatModel does not

    return fold(captured_model(model, example))


def distil(
    pupil: FloatModel,
    teacher: FloatModel | Array,
    x: Array,
    tuning: Tuning | None = None,
) -> FloatModel:
    """`pupil` taught to say what `teacher` says of inputs x, which need no labels: KL at temperature T alone."""
    logits = teacher_logits(teacher, x)
    return finetune(
        pupil, Examples(x, logits), dataclasses.replace(tuning or Tuning(epochs=3), alpha=1.0), teacher=logits
    )


def mean_logits(
    said: Sequence[Array],
    weights: Sequence[float] | None = None,
    *,
    like: tuple[int, ...] | None = None,
    centred: bool = False,
) -> NDArray[np.float32]:
    """The clients' mean: Lin et al. 2020, equation 3 (AVGLOGITS), with a weight for each client, equal if None.

    A client that has few classes is sure, of every input, that it is one of them, and plain means are then of little
    use. `centred` takes away from each client's logits their mean over the inputs, class by class: what it says of a
    class whatever the input. That is logit adjustment (Menon et al. 2021, equation 9) with a prior that nobody has to
    tell; it supposes that the public inputs have all classes about equally often.

    Args:
        said: of each client, logits (inputs, ..., classes).
        weights: >= 0, such as its number of examples.
        like: the shape that all must have; that of the first if None.
        centred: for clients whose classes differ.

    Raises:
        PeerError: a client's logits are of another shape, not finite, or beyond +-1e4; names the client by its place.
        ConfigError: no clients, or weights that have no mean.

    """
    if not said:
        raise ConfigError("no client has sent logits")
    shares = np.ones(len(said)) if weights is None else np.asarray(weights, np.float64)
    if shares.shape != (len(said),) or not np.isfinite(shares).all() or shares.min() < 0 or not shares.sum() > 0:
        raise ConfigError(f"weights of {len(said)} clients must be finite, >= 0 and not all 0")
    shape = like or np.shape(said[0])
    total = np.zeros(shape)
    for place, (one, share) in enumerate(zip(said, shares / shares.sum(), strict=True)):
        logits = checked_logits(one, shape, f"client {place}")
        total += share * (logits - logits.mean(tuple(range(logits.ndim - 1))) if centred else logits)
    return total.astype(np.float32)


def checked_logits(logits: Array, shape: tuple[int, ...], who: str) -> NDArray[np.float32]:
    """A peer's logits, if they are usable; PeerError says why not."""
    if np.shape(logits) != shape or np.asarray(logits).dtype.kind != "f":
        raise PeerError(f"{who}: its logits are {np.asarray(logits).dtype} {np.shape(logits)}, not floats {shape}")
    said = np.asarray(logits, np.float32)
    if not np.abs(said).max(initial=0.0) <= LARGEST_LOGIT:  # also where one is NaN
        raise PeerError(f"{who}: its logits are not finite, or beyond {LARGEST_LOGIT:g}")
    return said
