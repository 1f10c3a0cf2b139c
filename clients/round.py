"""One client's work in one round, without network: weights and a task in, a delta and figures out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clients.exchange import Tensors, round_seeds
from edge_runtime.train.batches import Batches, Examples
from edge_runtime.train.config import RoundTask
from edge_runtime.train.loop import LocalTrainer, State
from edge_runtime.updates import TensorLayout
from edge_runtime.updates.delta import FloatVector
from edge_runtime.updates.versions import gather

EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True)
class LocalUpdate:
    """The delta w_local - w_global of the tensors that move, how many examples made it, and the mean training loss."""

    delta: FloatVector
    examples: int
    loss: float


class Workbench:
    """A trainer with the tensors of its model; built once per process and used for many rounds."""

    def __init__(self, trainer: LocalTrainer) -> None:
        self.trainer = trainer
        self.initial: State = trainer.state_dict()
        layout = TensorLayout.of(self.initial)
        self.tensors = Tensors(layout, layout.subset(trainer.moving_names()))

    def train(self, task: RoundTask, weights: FloatVector, examples: Examples, client: int) -> LocalUpdate:
        """Train from the global model for `task.train.epochs` epochs, the learning rate as the schedule says.

        All randomness comes from (task.seed, round, client), so a round can be replayed on any machine.
        """
        order, dropout, _ = round_seeds(task, client)
        self._load(weights)
        self.trainer.reseed(int(dropout.generate_state(1)[0]))
        batches = Batches(examples, task.train.batch_size, np.random.default_rng(order))
        schedule = task.train.schedule.build()
        by_round = task.train.schedule.over == "rounds"
        self.trainer.lr_scale = schedule.factor(task.round - 1) if by_round else 1.0
        history = self.trainer.fit(batches, task.train.epochs, schedule=None if by_round else schedule)
        delta = self.tensors.moving.flatten(self.trainer.state_dict())
        delta -= gather(weights, self.tensors.layout, self.tensors.moving)
        return LocalUpdate(delta, len(examples), history.mean_loss)

    def evaluate(self, weights: FloatVector, examples: Examples) -> dict[str, float]:
        """Loss and accuracy of the global model on this client's examples."""
        self._load(weights)
        return self.trainer.evaluate(Batches(examples, EVALUATION_BATCH))

    def _load(self, weights: FloatVector) -> None:
        # Integer counters start each round as built: they must not carry one client's history to the next.
        self.trainer.load_state_dict({**self.initial, **self.tensors.layout.views(weights)})
