"""The settings that say what a client trains and how: the `[data]`, `[model]`, `[train]` and link tables of a scenario.

They stand here because server and client both read them: the server sends them with every round, as a `RoundTask`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_runtime import losses, optimizers, plugins, schedules
from edge_runtime.config import key, section
from edge_runtime.errors import ConfigError
from edge_runtime.updates import CODECS, Codec, make_codec

DATASETS, MODELS = "hedgerow.datasets", "hedgerow.models"
# Codecs that give back the same bits when what they decoded is encoded again: a whole model may be written by them.
IDEMPOTENT = ("float32", "float16", "bfloat16", "int8")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Which examples, and how a simulation splits them among its clients."""

    name: str = key("mnist", choices=lambda: plugins.names(DATASETS))
    clients: int = key(50, low=1, high=1_000_000)
    partition: str = key("dirichlet", choices=("dirichlet", "iid", "natural", "shards"))
    alpha: float = key(0.3, above=0, high=1e6)
    shards_per_client: int = key(2, low=1, high=10_000)
    min_examples: int = key(2, low=1, high=1_000_000)
    holdout: float = key(0.2, above=0, below=1)
    path: str = key("")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A registered model by name, or the user's own function of no arguments as `entry = "module:function"`."""

    name: str = key("lenet", choices=lambda: plugins.names(MODELS))
    entry: str = key("")
    # Shape of one example, such as "1x28x28", or "64 int64" for tokens; empty: that of the held-out examples.
    input: str = key("")


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """Every optimizer's arguments; each optimizer reads its own."""

    name: str = key("sgd", choices=tuple(optimizers.OPTIMIZERS))
    lr: float = key(0.05, above=0, high=100)
    momentum: float = key(0.9, low=0, below=1)
    nesterov: bool = key(False)
    weight_decay: float = key(0.0, low=0, high=10)
    beta1: float = key(0.9, low=0, below=1)
    beta2: float = key(0.999, low=0, below=1)
    alpha: float = key(0.99, low=0, below=1)
    eps: float = key(1e-8, above=0, high=1)

    def __post_init__(self) -> None:
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ConfigError("train.optimizer.nesterov = True: must be false while train.optimizer.momentum is 0")

    def build(self) -> optimizers.Optimizer:
        """The optimizer of that name, with the arguments it has."""
        optimizer = optimizers.OPTIMIZERS[self.name]
        arguments = {item.name for item in dataclasses.fields(optimizer)}
        return optimizer(**{name: value for name, value in dataclasses.asdict(self).items() if name in arguments})


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """How the learning rate moves over rounds, or over the steps of one round; every schedule's arguments."""

    name: str = key(
        "constant", choices=("constant", "cosine", "exponential", "linear", "one_cycle", "polynomial", "step")
    )
    over: str = key("rounds", choices=("rounds", "steps"))
    warmup: int = key(0, low=0, high=1_000_000)
    steps: int = key(100, low=1, high=100_000_000)
    every: int = key(30, low=1, high=100_000_000)
    gamma: float = key(0.95, above=0, high=10)
    power: float = key(1.0, above=0, high=10)
    floor: float = key(0.0, low=0, high=1)
    end: float = key(0.0, low=0, high=10)

    def __post_init__(self) -> None:
        try:
            self.build()
        except ConfigError as error:
            raise ConfigError(f"train.schedule: {error}") from None

    def build(self) -> schedules.StepSchedule:
        """The schedule of that name, with the arguments it has."""
        kind = schedules.SCHEDULES[self.name]
        arguments = {item.name for item in dataclasses.fields(kind)}
        own: Any = kind(**{name: value for name, value in dataclasses.asdict(self).items() if name in arguments})
        return schedules.Warmup(self.warmup, after=own) if self.warmup else own


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Local training of one client in one round.

    The engine trains a Program that the server builds and sends, inside `memory_budget` (a text such as "8 MiB";
    empty for no limit). `trainable` names what is trained (empty: all; names or patterns with commas; "auto": all, or
    as many as the budget lets the engine train). With a `lora_rank`, low-rank adapters train in place of the weights of
    linear and 1x1 convolution layers, and `trainable` says what trains beside them; see `capture/adapters.py`. With
    `qat_bits`, forward passes round weights, and activations unless told otherwise; see `passes/fake_quant.py`.
    """

    trainer: str = key("engine", choices=("engine", "torch"))
    epochs: int = key(1, low=1, high=10_000)
    batch_size: int = key(32, low=1, high=1_000_000)
    memory_budget: str = key("")
    micro_batch: int = key(0, low=0, high=1_000_000)  # 0: the planner's choice
    trainable: str = key("")
    lora_rank: int = key(0, low=0, high=4096)  # 0: no adapters
    lora_alpha: float = key(0.0, low=0, high=1e6)  # 0: the rank
    loss: str = key("cross_entropy", choices=tuple(losses.LOSSES))
    label_smoothing: float = key(0.0, low=0, below=1)
    huber_delta: float = key(1.0, above=0, high=1e6)
    focal_gamma: float = key(2.0, low=0, high=100)
    clip_value: float = key(0.0, low=0, high=1e9)  # 0: off, also below
    clip_norm: float = key(0.0, low=0, high=1e9)
    qat_bits: int = key(0, low=0, high=8)
    qat_activations: bool = key(True)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    schedule: ScheduleConfig = section(ScheduleConfig)

    def __post_init__(self) -> None:
        if self.qat_bits == 1:
            raise ConfigError("train.qat_bits = 1: must be from 2 to 8, or 0 for off")
        if self.qat_bits and self.lora_rank:
            raise ConfigError(
                f"train.qat_bits = {self.qat_bits}: must be 0 with train.lora_rank = {self.lora_rank}; what a device "
                "rounds is the merged weight"
            )

    def trainable_names(self) -> list[str] | str | None:
        """`trainable` as `build` takes it."""
        names = [name.strip() for name in self.trainable.split(",") if name.strip()]
        return "auto" if names == ["auto"] else names or None

    def build_loss(self) -> losses.Loss:
        """The loss of that name, with the arguments it has."""
        match self.loss:
            case "cross_entropy":
                return losses.CrossEntropy(self.label_smoothing)
            case "huber":
                return losses.Huber(self.huber_delta)
            case "focal":
                return losses.Focal(self.focal_gamma)
            case _:
                return losses.LOSSES[self.loss]()


@dataclass(frozen=True, slots=True)
class UplinkConfig:
    """How a client writes its update: stages of `edge_runtime.updates`, in order, and their options.

    An option at 0 or false is the stage's own default. `error_feedback` keeps on the client what the codec lost of one
    update, and adds it to the next.
    """

    codec: tuple[str, ...] = key(("float32",), choices=tuple(CODECS))
    bits: float = key(0.0, low=0, high=32)
    nmse: float = key(0.0, low=0, high=1)
    fraction: float = key(0.0, low=0, high=1)
    unbiased: bool = key(False)
    error_feedback: bool = key(False)

    def __post_init__(self) -> None:
        codec = self.build()
        # What such a codec adds is noise of the update's own size: fed back, it would grow from round to round.
        if self.error_feedback and (codec.unbiased or "randk" in codec.names):
            raise ConfigError(
                f"uplink.error_feedback = True: must be false with {','.join(codec.names)}, an unbiased codec"
            )

    def build(self) -> Codec:
        """The codec of those stages, with the options that are set."""
        options = {"bits": self.bits, "nmse": self.nmse, "fraction": self.fraction, "unbiased": self.unbiased}
        return _build_codec("uplink", self.codec, options)


@dataclass(frozen=True, slots=True)
class DownlinkConfig:
    """How the server writes the model: whole by `codec`, and by `delta` to a client that holds an earlier version.

    Without `delta` every client is sent the whole model in every round. `bits`, `nmse` and `fraction` are options of
    the delta's stages, as in `UplinkConfig`.
    """

    codec: str = key("float32", choices=tuple(name for name in IDEMPOTENT if name in CODECS))
    delta: tuple[str, ...] = key((), choices=tuple(CODECS))
    bits: float = key(0.0, low=0, high=32)
    nmse: float = key(0.0, low=0, high=1)
    fraction: float = key(0.0, low=0, high=1)

    def __post_init__(self) -> None:
        self.build_delta()

    def build(self) -> Codec:
        """The codec of whole models."""
        return make_codec(self.codec)

    def build_delta(self) -> Codec | None:
        """The codec of deltas; None where there are none."""
        options = {"bits": self.bits, "nmse": self.nmse, "fraction": self.fraction}
        if self.delta:
            return _build_codec("downlink", self.delta, options, names="delta")
        if given := [name for name, value in options.items() if value]:
            raise ConfigError(f"downlink.{given[0]} = {options[given[0]]}: must be 0 while downlink.delta is empty")
        return None


def _build_codec(table: str, stages: tuple[str, ...], options: Mapping[str, float], names: str = "codec") -> Codec:
    """ConfigError in the scenario's own words: the key is TABLE.NAMES for the stages, TABLE.OPTION for an option."""
    given = {name: value for name, value in options.items() if value}
    # A scenario has one number for all stages; some take whole ones only.
    given |= {name: int(value) for name, value in given.items() if type(value) is float and value.is_integer()}
    try:
        return make_codec(stages, **given)
    except ConfigError as error:
        text = str(error).removeprefix("codec")
        raise ConfigError(f"{table}.{text if text == str(error) else names + text}") from None


@dataclass(frozen=True, slots=True)
class LocalPrivacy:
    """What a client does to its update before anyone sees it: clips it, rounds it, adds noise of its own.

    `scale` whole numbers make one unit; `noise` is the sigma of a rounded Gaussian in these, exact decimal text. With a
    `clip` of 0 the update leaves as it is.
    """

    clip: float = key(0.0, low=0, high=1e9)
    scale: float = key(0.0, low=0, high=1e18)
    noise: str = key("")

    def __post_init__(self) -> None:
        if self.clip:
            # Imported here, for `privacy` takes the cryptography package, and most tasks ask for none of it.
            from edge_runtime.privacy.clipping import l2_bound
            from edge_runtime.privacy.pmf import exact_parameter

            exact_parameter("rounded_gaussian", self.noise)
            l2_bound(self.scale, self.clip, 1)


@dataclass(frozen=True, slots=True)
class PersonalTask:
    """What a client keeps for itself: its own `layers`, and a share of its examples that it never trains on.

    With `tune`, the client trains the model as it was sent, with its own layers, and tells how good it is before and
    after, on that share. See docs/strategies.md.
    """

    layers: tuple[str, ...] = key(())
    holdout: float = key(0.0, low=0, below=1)  # 0: all examples are trained on
    tune: bool = key(False)


@dataclass(frozen=True, slots=True)
class RoundTask:
    """What a server asks of a client in one round; travels as flat keys beside the model.

    With `control`, model and update have SCAFFOLD's control variates behind them; with `normalise`, the update is
    divided by what its local steps add up to, as FedNova has it. `per_client`: every answer must be one client's
    own, for what is promised or counted is so for each. `run` is what clients keep their state under: it stays the same
    when the run goes on under another Flower run; 0: Flower's own id of the run.
    """

    run: int = key(0, low=0, high=2**63 - 1)
    round: int = key(1, low=1, high=2**31 - 1)
    seed: int = key(1, low=0, high=2**31 - 1)
    proximal_mu: float = key(0.0, low=0, high=1000)
    control: bool = key(False)
    normalise: bool = key(False)
    personal: PersonalTask = section(PersonalTask)
    data: DataConfig = section(DataConfig)
    model: ModelConfig = section(ModelConfig)
    train: TrainConfig = section(TrainConfig)
    uplink: UplinkConfig = section(UplinkConfig)
    downlink: DownlinkConfig = section(DownlinkConfig)
    local: LocalPrivacy = section(LocalPrivacy)
    per_client: bool = key(False)
