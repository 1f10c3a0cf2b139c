"""One client's work in one round, without network: weights and a task in, a delta and figures out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from clients.exchange import Tensors, round_seeds
from edge_runtime.errors import PeerError
from edge_runtime.train.batches import Batches, Examples
from edge_runtime.train.config import RoundTask
from edge_runtime.train.history import History
from edge_runtime.train.loop import LocalTrainer, State
from edge_runtime.train.parts import CONTROL, Parts
from edge_runtime.train.steps import round_factor, step_weight
from edge_runtime.updates.delta import FloatVector
from edge_runtime.updates.versions import gather

EVALUATION_BATCH = 256


def _nothing() -> FloatVector:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class Own:
    """What a client keeps from round to round: its own layers' values, and its control variate c_i times the lr."""

    personal: FloatVector = field(default_factory=_nothing)
    control: FloatVector = field(default_factory=_nothing)


@dataclass(frozen=True, slots=True)
class LocalUpdate:
    """The delta w_local - w_global of the tensors that move, how many examples made it, and the mean training loss.

    Under SCAFFOLD the control variate's delta stands behind that of the weights. `personal` are the values of the
    client's own layers after training.
    """

    delta: FloatVector
    examples: int
    loss: float
    steps: int = 0
    personal: FloatVector = field(default_factory=_nothing)


class Workbench:
    """A trainer with the tensors of its model; built once per process and used for many rounds."""

    def __init__(self, trainer: LocalTrainer, *, personal: Sequence[str] = (), control: bool = False) -> None:
        self.trainer = trainer
        self.initial: State = trainer.state_dict()
        self._buffers = trainer.buffer_names()
        self.parts = Parts.of(self.initial, trainer.moving_names(), self._buffers, personal=personal, control=control)
        self.tensors = Tensors(self.parts.down, self.parts.up, self.parts.control.size)

    def train(
        self, task: RoundTask, weights: FloatVector, examples: Examples, client: int, own: Own | None = None
    ) -> LocalUpdate:
        """Train from the global model for `task.train.epochs` epochs, the learning rate as the schedule says.

        All randomness comes from (task.seed, round, client), so a round can be replayed on any machine.
        """
        own, parts = own or Own(), self.parts
        model, server_control = weights[: parts.shared.size], weights[parts.shared.size :]
        self._load(model, own)
        if task.control:
            self._correct(server_control, own.control, task.train.optimizer.lr)
        history = self._fit(task, examples, client)
        state = self.trainer.state_dict()
        delta = parts.moving.flatten(state)
        delta -= gather(model, parts.shared, parts.moving)
        if task.control:
            delta = np.concatenate((delta, self._control_delta(task, delta, server_control, len(history.losses))))
        if task.normalise:
            self._normalise(task, delta, len(history.losses))
        personal = parts.personal.flatten(state)
        return LocalUpdate(delta, len(examples), history.mean_loss, len(history.losses), personal)

    def evaluate(self, weights: FloatVector, examples: Examples, own: Own | None = None) -> dict[str, float]:
        """Loss and accuracy on this client's examples: of the global model, with the client's own layers."""
        self._load(weights[: self.parts.shared.size], own or Own())
        return self.trainer.evaluate(Batches(examples, EVALUATION_BATCH))

    def tune(
        self, task: RoundTask, weights: FloatVector, examples: Examples, held: Examples, client: int, own: Own
    ) -> dict[str, float]:
        """Loss and accuracy on `held` after training the model on `examples`, with this client's own layers."""
        self._load(weights[: self.parts.shared.size], own)
        self._fit(task, examples, client)
        return self.trainer.evaluate(Batches(held, EVALUATION_BATCH))

    def _fit(self, task: RoundTask, examples: Examples, client: int) -> History:
        order, dropout, _ = round_seeds(task, client)
        self.trainer.reseed(int(dropout.generate_state(1)[0]))
        batches = Batches(examples, task.train.batch_size, np.random.default_rng(order))
        self.trainer.lr_scale = round_factor(task)
        schedule = task.train.schedule.build() if task.train.schedule.over == "steps" else None
        return self.trainer.fit(batches, task.train.epochs, schedule=schedule)

    def _load(self, weights: FloatVector, own: Own) -> None:
        # Integer counters start each round as built: they must not carry one client's history to the next.
        parts = self.parts
        personal = parts.personal.views(own.personal) if parts.personal.size else {}
        self.trainer.load_state_dict({**self.initial, **parts.shared.views(weights), **personal})

    def _correct(self, server: FloatVector, own: FloatVector, lr: float) -> None:
        """Add c - c_i to every gradient (Karimireddy et al. 2020, algorithm 1, line 10); both come times the lr."""
        correction = (server - own) / np.float32(lr)
        views = self.parts.control.views(correction)
        self.trainer.set_correction({name.removeprefix(CONTROL): view for name, view in views.items()})

    def _control_delta(self, task: RoundTask, delta: FloatVector, server: FloatVector, steps: int) -> FloatVector:
        """The c_i+ - c_i of option II, -c + (x - y) / (K lr), times the lr; K is what the steps add up to."""
        factor = round_factor(task)
        if not factor:
            return np.zeros_like(server)  # a learning rate of 0 tells nothing of gradients
        parts = self.parts
        trained = [name.removeprefix(CONTROL) for name, _ in parts.control.shapes]
        moved = gather(delta, parts.moving, parts.moving.subset(trained))
        return -server - moved / np.float32(factor * step_weight(task, steps))

    def _normalise(self, task: RoundTask, delta: FloatVector, steps: int) -> None:
        """Divide by |a|_1 (Wang et al. 2020, equation 6); running statistics are no sums of gradients."""
        weight = np.float32(step_weight(task, steps))
        for name, view in self.parts.moving.views(delta).items():
            if name not in self._buffers:
                view /= weight


def own_layers(bench: Workbench, kept: FloatVector | None, sent: bytes) -> FloatVector:
    """The values of a client's own layers: as it kept them, else as the message has them, which are those of the start.

    Raises:
        PeerError: neither has them.

    """
    layout = bench.parts.personal
    if kept is not None or not layout.size:
        return kept if kept is not None else _nothing()
    if len(sent) != 4 * layout.size:
        raise PeerError("this node holds no values of personal.layers, and the message does not bring them")
    values = np.frombuffer(sent, "<f4").astype(np.float32)
    if not np.isfinite(values).all():
        raise PeerError("the message's values of personal.layers are not finite")
    return values
