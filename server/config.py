"""The server's settings: the `[server]`, `[uplink]`, `[downlink]`, `[deploy]` and `[run]` tables of a scenario.

`[secure]`, `[privacy]` and `[robust]` stand in protection_config.py, `[buffer]` in buffer_config.py, `[compress]` in
compress.py, `[rollout]` in rollout_config.py, `[personal]` in personal_config.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from edge_runtime.config import key, pick, section
from edge_runtime.errors import ConfigError
from edge_runtime.train.config import (
    DataConfig,
    DownlinkConfig,
    ModelConfig,
    PersonalTask,
    RoundTask,
    TrainConfig,
    UplinkConfig,
)
from server.buffer_config import MODES, BufferConfig, check_mode
from server.compress import CompressConfig
from server.counting import Counting, check_strategy
from server.personal_config import PersonalConfig, check_personal
from server.protection_config import PrivacyConfig, RobustConfig, SecureConfig, check_robust, check_together
from server.rollout_config import RolloutConfig
from server.selection_config import SelectionConfig, check_selection
from server.strategy import STRATEGIES


@dataclass(frozen=True, slots=True)
class StrategyConfig:
    """Rounds, who takes part, and how the server moves the model. `lr` and below: see server/strategy.py.

    A round of mode "sync" asks `over_selection` times `cohort` nodes, and ends when `cohort` good updates have come;
    one of "semi_sync" then too, or after `period_s`; one of "async" is a buffer that has filled up. In all of them a
    node has `deadline_s` for its answer, and no round lasts longer. See docs/rounds.md.
    """

    rounds: int = key(30, low=1, high=1_000_000)
    cohort: int = key(10, low=1, high=1_000_000)
    mode: str = key("sync", choices=MODES)
    over_selection: float = key(1.3, low=1, high=10)
    period_s: float = key(30.0, above=0, high=604_800)
    strategy: str = key("fedavg", choices=tuple(STRATEGIES))
    min_updates: int = key(2, low=1, high=1_000_000)
    deadline_s: float = key(60.0, above=0, high=604_800)
    patience_s: float = key(3600.0, above=0, high=31_536_000)  # without enough devices; see server/pool.py
    evaluate: str = key("central", choices=("central", "clients", "none"))
    eval_every: int = key(1, low=1, high=1_000_000)
    workers: int = key(0, low=0, high=1024)  # simulation only: client processes, 0 = one per core
    lr: float = key(0.0, low=0, high=1000)  # 0 = the strategy's own: 1, or 0.02 for the adaptive ones
    momentum: float = key(0.9, low=0, below=1)
    beta1: float = key(0.9, low=0, below=1)
    beta2: float = key(0.99, low=0, below=1)
    tau: float = key(1e-3, above=0, high=1)
    proximal_mu: float = key(0.01, low=0, high=1000)

    def __post_init__(self) -> None:
        if self.min_updates > self.cohort:
            raise ConfigError(f"server.min_updates = {self.min_updates}: must be <= server.cohort ({self.cohort})")
        if self.mode == "semi_sync" and self.period_s > self.deadline_s:
            raise ConfigError(
                f"server.period_s = {self.period_s:g}: must be <= server.deadline_s ({self.deadline_s:g}), which is "
                "all the time that a node has"
            )

    @property
    def spares(self) -> int:
        """Nodes beyond the cohort that a synchronous round may ask; of a share as it is written: 1.3 x 10 is 13."""
        return math.ceil(Fraction(repr(self.over_selection)) * self.cohort) - self.cohort


@dataclass(frozen=True, slots=True)
class DeployConfig:
    """The artefact at the end of a run. `formats = ""` exports nothing.

    In the last `qat_rounds` rounds clients train with weights rounded to `qat_bits`, as `train.qat_bits` has them do in
    every round.
    """

    formats: tuple[str, ...] = key(("onnx", "tflite", "engine"), choices=("onnx", "tflite", "engine"))
    precision: str = key("int8", choices=("fp32", "int8"))
    calibration: int = key(200, low=1, high=100_000)  # held-out examples whose inputs give the ranges
    calibrate: str = key("minmax", choices=("minmax", "percentile", "entropy", "mse"))
    max_drop: float = key(1.0, low=0, high=100)  # points of accuracy below float32 with which a file is still released
    qat_rounds: int = key(0, low=0, high=1_000_000)  # last rounds that train with rounding in place
    qat_bits: int = key(8, low=2, high=8)


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """Where the run directory goes; empty = `runs/<UTC time>` in the current folder.

    With `resume` that directory holds a run, which goes on after its last closed round, with the settings that
    it began with. The model is kept as it was after each of the last `keep_models` rounds.
    """

    out: str = key("")
    resume: bool = key(False)
    keep_models: int = key(5, low=1, high=1_000_000)


@dataclass(frozen=True, slots=True)
class RegionConfig:
    """With a `socket` this server is that of a region, and serves the node that stands for it there. Empty: it is not.

    What is trained is then what the federation above asks for: docs/hierarchy.md has which settings still count.
    """

    socket: str = key("")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """All that `server.app` needs to know."""

    seed: int = key(1, low=0, high=2**31 - 1)
    data: DataConfig = section(DataConfig)
    model: ModelConfig = section(ModelConfig)
    train: TrainConfig = section(TrainConfig)
    server: StrategyConfig = section(StrategyConfig)
    selection: SelectionConfig = section(SelectionConfig)
    buffer: BufferConfig = section(BufferConfig)
    uplink: UplinkConfig = section(UplinkConfig)
    downlink: DownlinkConfig = section(DownlinkConfig)
    secure: SecureConfig = section(SecureConfig)
    privacy: PrivacyConfig = section(PrivacyConfig)
    robust: RobustConfig = section(RobustConfig)
    compress: CompressConfig = section(CompressConfig)
    deploy: DeployConfig = section(DeployConfig)
    rollout: RolloutConfig = section(RolloutConfig)
    personal: PersonalConfig = section(PersonalConfig)
    run: OutputConfig = section(OutputConfig)
    region: RegionConfig = section(RegionConfig)

    def __post_init__(self) -> None:
        if self.server.mode == "async" and self.buffer.size not in (0, self.server.cohort):
            # All that plans by the cohort, noise above all, plans by what one release of the model is made of.
            object.__setattr__(self, "server", dataclasses.replace(self.server, cohort=self.buffer.size))
        check_mode(self.server.mode, self.server.strategy, self.secure.enabled, self.privacy)
        if self.rollout.enabled and self.rollout.format not in self.deploy.formats:
            raise ConfigError(
                f"rollout.format = {self.rollout.format!r}: must be one of deploy.formats = "
                f"{','.join(self.deploy.formats)!r}"
            )
        check_together(self.secure, self.privacy, self.robust, self.uplink, self.server.evaluate)
        check_selection(self.selection, self.secure.enabled, self.mechanism)
        check_robust(self.robust, self.secure, self.server.cohort)
        check_strategy(
            self.server.strategy,
            STRATEGIES[self.server.strategy],
            self.task(1),
            self.uplink,
            protection=self.protection,
            aggregator=self.robust.aggregator,
        )
        check_personal(
            self.personal,
            protected=bool(self.protection),
            evaluate=self.server.evaluate,
            formats=self.deploy.formats,
            lora_rank=self.train.lora_rank,
        )
        if self.compress.lever and self.train.lora_rank:
            raise ConfigError(
                f"compress.lever = {self.compress.lever!r}: must be empty with a train.lora_rank; adapters are few "
                "numbers already, and the weights under them do not move"
            )
        if self.deploy.qat_rounds and self.train.lora_rank:
            raise ConfigError(
                f"deploy.qat_rounds = {self.deploy.qat_rounds}: must be 0 with a train.lora_rank; what a device rounds "
                "is the merged weight"
            )

    @property
    def mechanism(self) -> str:
        """How updates are made private: one of `protection_config.MECHANISMS`."""
        return self.privacy.chosen(self.secure.enabled)

    @property
    def spares(self) -> int:
        """Nodes beyond the cohort that a round asks, so that it need not wait for the slowest.

        None where noise is drawn for a sum: that every client moves it by one update at most is then shown for sums of
        all who were asked, and an update that takes another's place would count twice.
        """
        return self.server.spares if self.server.mode == "sync" and self.mechanism == "none" else 0

    @property
    def concurrency(self) -> int:
        """Nodes at work at any time in mode "async"."""
        return self.buffer.concurrency or 2 * self.server.cohort

    @property
    def protection(self) -> str:
        """What is done for the clients' data, in words; empty if nothing."""
        words = ["secure aggregation"] if self.secure.enabled else []
        if self.mechanism != "none":
            words.append(f"{self.mechanism} differential privacy")
        return ", ".join(words)

    @classmethod
    def from_run_config(cls, values: Mapping[str, Any]) -> ServerConfig:
        """From Flower's flat run config; keys of other rooms (`faults.*`) are left alone."""
        return pick(cls, values)

    def train_at(self, round_number: int) -> TrainConfig:
        """How clients train in this round: `train`, with rounding in place in the last `deploy.qat_rounds`."""
        if round_number <= self.server.rounds - self.deploy.qat_rounds:
            return self.train
        return dataclasses.replace(self.train, qat_bits=self.deploy.qat_bits)

    def task(self, round_number: int) -> RoundTask:
        """What clients are asked to do in this round."""
        strategy, personal = STRATEGIES[self.server.strategy], self.personal
        # Under protection nobody asks for figures on examples that were held out.
        holdout = personal.holdout if personal.enabled and not self.protection else 0.0
        return RoundTask(
            round=round_number,
            seed=self.seed,
            proximal_mu=self.server.proximal_mu if strategy.proximal else 0.0,
            control=strategy.control,
            normalise=strategy.normalised,
            personal=PersonalTask(personal.layers, holdout),
            data=self.data,
            model=self.model,
            train=self.train_at(round_number),
            uplink=self.uplink,
            downlink=self.downlink,
            per_client=bool(self.protection or strategy.control or strategy.normalised or personal.layers),
        )


def counting_of(config: ServerConfig, round_number: int) -> Counting:
    """How updates count in this round."""
    strategy = STRATEGIES[config.server.strategy]
    return Counting(strategy.control, config.task(round_number) if strategy.normalised else None)
