"""One client's work in one round, without network: weights and a task in, an encoded delta and figures out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_runtime.train.batches import Batches, Examples
from edge_runtime.train.config import RoundTask
from edge_runtime.train.loop import LocalTrainer, State
from edge_runtime.updates import TensorLayout, make_codec
from edge_runtime.updates.delta import FloatVector

EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True)
class LocalUpdate:
    """The encoded delta w_local - w_global, how many examples made it, and the mean training loss."""

    payload: bytes
    examples: int
    loss: float


class Workbench:
    """A trainer with the layout of its model; built once per process and used for many rounds."""

    def __init__(self, trainer: LocalTrainer) -> None:
        self.trainer = trainer
        self.initial: State = trainer.state_dict()
        self.layout = TensorLayout.of(self.initial)

    def train(self, task: RoundTask, model: bytes, examples: Examples, client: int) -> LocalUpdate:
        """Train from the global model for `task.train.epochs` epochs, the learning rate as the schedule says.

        All randomness comes from (task.seed, round, client), so a round can be replayed on any machine.

        Raises:
            PeerError: the model bytes are malformed or belong to another model or round.

        """
        weights = make_codec(task.downlink.codec).decode_vector(model, self.layout, round_number=task.round)
        seeds = np.random.SeedSequence([task.seed, task.round, client])
        order, dropout, codec = seeds.spawn(3)
        self._load(weights)
        self.trainer.reseed(int(dropout.generate_state(1)[0]))
        batches = Batches(examples, task.train.batch_size, np.random.default_rng(order))
        schedule = task.train.schedule.build()
        by_round = task.train.schedule.over == "rounds"
        self.trainer.lr_scale = schedule.factor(task.round - 1) if by_round else 1.0
        history = self.trainer.fit(batches, task.train.epochs, schedule=None if by_round else schedule)
        delta = self.layout.flatten(self.trainer.state_dict())
        delta -= weights
        payload = make_codec(task.uplink.codec).encode_vector(
            delta, self.layout, round_number=task.round, seed=int(codec.generate_state(1)[0])
        )
        return LocalUpdate(payload, len(examples), history.mean_loss)

    def evaluate(self, task: RoundTask, model: bytes, examples: Examples) -> dict[str, float]:
        """Loss and accuracy of the global model on this client's examples."""
        self._load(make_codec(task.downlink.codec).decode_vector(model, self.layout, round_number=task.round))
        return self.trainer.evaluate(Batches(examples, EVALUATION_BATCH))

    def _load(self, weights: FloatVector) -> None:
        # Integer counters start each round as built: they must not carry one client's history to the next.
        self.trainer.load_state_dict({**self.initial, **self.layout.views(weights)})
