"""The global model: its weights as one vector, how a strategy moves them, and how good they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime import plugins
from edge_runtime.adapters import merge_adapters
from edge_runtime.errors import ConfigError, EdgeRuntimeError
from edge_runtime.kernels import native
from edge_runtime.program.program import Program
from edge_runtime.train.batches import Batches, Examples
from edge_runtime.train.config import DATASETS, RoundTask, TrainConfig
from edge_runtime.train.factory import example_of, make_program, make_trainer, pack_program
from edge_runtime.train.loop import LocalTrainer, State
from edge_runtime.train.parts import Parts
from edge_runtime.train.sources import DataSource
from edge_runtime.updates import TensorLayout
from edge_runtime.updates.delta import FloatVector
from edge_runtime.updates.versions import gather, replaced
from server.checkpoint import Tree
from server.compress import Pruning
from server.config import ServerConfig
from server.keeping import Control, Keeping
from server.strategy import STRATEGIES
from server.strategy import State as StrategyState

EVALUATION_BATCH = 256
SMALLEST_VARIANCE = 1e-6  # of a running variance under noise; a normalised layer divides by its root


def _example(config: ServerConfig, test: Examples | None) -> NDArray[np.generic]:
    """One row of what the model takes."""
    if config.model.input:
        return example_of(config.model)
    if test is None:
        source: DataSource = plugins.load(DATASETS, config.data.name)
        try:
            test = source.test_split(config.data, config.seed)
        except EdgeRuntimeError as error:
            raise ConfigError(
                f'model.input must say the shape of one example, such as "1x28x28": there is none here ({error})'
            ) from error
    return test.x[:1]


@dataclass(frozen=True, slots=True)
class _Way:
    """To train: the packed Program that clients are sent, if any, and the trainer that evaluates for the server."""

    program: bytes
    trainer: LocalTrainer
    arena_bytes: int  # that the Program takes


def _program(config: ServerConfig, task: RoundTask, example: NDArray[np.generic]) -> Program:
    return make_program(
        config.model,
        task.train,
        example,
        proximal_mu=task.proximal_mu,
        correction=task.control,
        seed=config.seed,
    )


def _way(config: ServerConfig, train: TrainConfig, example: NDArray[np.generic] | None) -> _Way:
    program = None
    if example is not None:
        program = _program(config, dataclasses.replace(config.task(1), train=train), example)
    trainer = make_trainer(config.model, train, program=program, seed=config.seed)
    return _Way(pack_program(program) if program else b"", trainer, program.arena_bytes if program else 0)


class GlobalModel:
    """Weights between rounds: of the float tensors of `parts.shared`, of which training moves those of `parts.moving`.

    `sent` is what clients are sent, of `layout`, and an update is of `moving`: both with SCAFFOLD's control variates
    behind the weights. Integer counters (batch norm's) stay as built, and so do clients' own layers.
    """

    def __init__(self, config: ServerConfig, test: Examples | None = None) -> None:
        self._strategy = STRATEGIES[config.server.strategy]
        self._settings = dataclasses.replace(config.server, lr=config.server.lr or self._strategy.default_lr)
        self._lora_rank, self._lora_alpha = config.train.lora_rank, config.train.lora_alpha
        self._config = config
        self._example = example = _example(config, test) if config.train.trainer == "engine" else None
        # Two where the last rounds round weights: both are made now, so that what cannot be shows before the first.
        self._ways = {train: _way(config, train, example) for train in map(config.train_at, (1, config.server.rounds))}
        self._trainer = self._ways[config.train_at(1)].trainer
        self._initial = self._trainer.state_dict()
        buffers = self._trainer.buffer_names()
        self.parts = parts = Parts.of(
            self._initial,
            self._trainer.moving_names(),
            buffers,
            personal=config.personal.layers,
            control=self._strategy.control,
        )
        if not parts.moving.size:
            layers = ",".join(config.personal.layers)
            raise ConfigError(f"personal.layers = {layers!r}: leaves nothing that clients learn together")
        self.layout, self.moving = parts.down, parts.up
        self.size = TensorLayout.of(self._initial).size
        self.weights = parts.shared.flatten(self._initial)
        self._strategy_state = self._strategy.init(parts.moving.size)
        self.control = Control(parts.control.size) if self._strategy.control else None
        self.keeping = Keeping(parts.personal.flatten(self._initial).astype("<f4").tobytes(), self.control)
        self._sent: tuple[FloatVector, FloatVector, FloatVector] | None = None
        self._is_buffer = self._mark(buffers)
        self._is_variance = self._mark({name for name in buffers if name.rpartition(".")[2] == "running_var"})
        self._noisy = config.mechanism != "none"
        self._pruning = Pruning(config.compress, parts.moving) if config.compress.lever else None

    @property
    def sent(self) -> FloatVector:
        """What clients are sent; the same array until the model moves."""
        if self.control is None:
            return self.weights
        weights, control = self.weights, self.control.value
        if self._sent is None or self._sent[0] is not weights or self._sent[1] is not control:
            self._sent = weights, control, np.concatenate((weights, control))
        return self._sent[2]

    def apply(
        self, delta: NDArray[np.float64], *, tau_eff: float = 1.0, number: int = 0, clients: Collection[str] = ()
    ) -> bool:
        """Move the weights by the mean client delta of the moving tensors, as the strategy says.

        Normalised deltas are multiplied with `tau_eff`. The control variate moves by the deltas of `clients` in round
        `number`. Running statistics are plainly averaged, and `[compress]` puts its zeros back. Returns False, and
        leaves model and strategy as they were, if the new weights would not be finite: deltas can each be finite and
        still overflow float32 here.
        """
        parts = self.parts
        delta, of_control = delta[: parts.moving.size], delta[parts.moving.size :]
        with np.errstate(over="ignore", invalid="ignore"):
            before = gather(self.weights, parts.shared, parts.moving)
            step = np.where(self._is_buffer, delta, delta * tau_eff) if tau_eff != 1 else delta
            state, moved = self._strategy.apply(self._settings, self._strategy_state, before, step)
            # An adaptive step on a running variance could make it negative.
            moved[self._is_buffer] = (before + delta).astype(np.float32)[self._is_buffer]
            if self._noisy:
                moved[self._is_variance] = np.maximum(moved[self._is_variance], SMALLEST_VARIANCE)
        if not native.all_finite(moved):
            return False
        if self.control is not None and not self.control.move(number, clients, of_control):
            return False
        self._strategy_state = state
        if self._pruning is not None:
            moved = self._pruning.apply(moved, step)
        if not np.array_equal(moved, before):  # else it stays the same array, by which a publisher knows it
            self.weights = replaced(self.weights, parts.shared, parts.moving, moved)
        return True

    def state(self) -> Tree:
        """Weights, and what the strategy and `[compress]` carry from round to round."""
        return {
            "weights": self.weights,
            "applied": self._strategy_state.applied,
            "moments": list(self._strategy_state.moments),
            "pruning": self._pruning.state() if self._pruning else {},
            "control": self.control.state() if self.control else {},
        }

    def restore(self, state: Tree) -> None:
        self.weights = state["weights"]
        self._strategy_state = StrategyState(state["applied"], tuple(state["moments"]))
        if self._pruning is not None:
            self._pruning.restore(state["pruning"])
        if self.control is not None:
            self.control.restore(state["control"])

    def state_dict(self) -> State:
        """All tensors under the module's own names, in its order; adapters are merged into the module's weights."""
        self._load(self._trainer)
        state = self._trainer.state_dict()
        return merge_adapters(state, alpha=self._lora_alpha or None) if self._lora_rank else state

    def program(self, round_number: int) -> bytes:
        """What clients are sent beside the weights in this round when the engine trains; else nothing."""
        return self._ways[self._config.train_at(round_number)].program

    def training_bytes(self, round_number: int) -> int:
        """What training takes of a device's memory budget in this round; 0 where the engine does not train."""
        return self._ways[self._config.train_at(round_number)].arena_bytes

    def program_for(self, task: RoundTask) -> bytes:
        """What clients are sent beside the weights for a task that is no round's; nothing unless the engine trains."""
        return pack_program(_program(self._config, task, self._example)) if self._example is not None else b""

    def head(self) -> list[str]:
        """The parameters of the last layer that trains."""
        buffers = self._trainer.buffer_names()
        trained = [name for name in self._trainer.moving_names() if name not in buffers]
        layer = trained[-1].rpartition(".")[0]
        return [name for name in trained if name.rpartition(".")[0] == layer]

    def evaluate(self, examples: Examples, round_number: int) -> Mapping[str, float]:
        """Loss and accuracy as this round trains: with rounded weights, where it rounds them."""
        trainer = self._ways[self._config.train_at(round_number)].trainer
        self._load(trainer)
        return trainer.evaluate(Batches(examples, EVALUATION_BATCH))

    def _load(self, trainer: LocalTrainer) -> None:
        trainer.load_state_dict({**self._initial, **self.parts.shared.views(self.weights)})

    def _mark(self, names: Set[str]) -> NDArray[np.bool_]:
        """Of the values that move, those of the tensors of these names."""
        flags = np.zeros(self.parts.moving.size, np.float32)
        for name, view in self.parts.moving.views(flags).items():
            view[...] = name in names
        return flags.astype(bool)
