"""The parts of a run, as its settings ask for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from edge_runtime import plugins
from edge_runtime.errors import ConfigError
from edge_runtime.secagg.keys import parse_public_keys
from edge_runtime.train.batches import Examples
from edge_runtime.train.config import DATASETS
from edge_runtime.train.sources import DataSource
from edge_runtime.updates import TensorLayout
from edge_runtime.updates.versions import Versions
from server.buffered import BufferedGather
from server.central import Central
from server.config import ServerConfig, counting_of
from server.distributed import Distributed
from server.ftrl import Ftrl
from server.gather import Gather, PlainGather
from server.link import Link
from server.local import Local
from server.private import NoPrivacy, Privacy
from server.publish import DeltaModels, WholeModels
from server.secagg_driver import SecureGather
from server.sum_plan import SummedUpdates, SumPlanner

PRIVACY: Mapping[str, Callable[[ServerConfig, int], Privacy]] = {
    "none": NoPrivacy,
    "central": Central,
    "distributed": Distributed,
    "ftrl": Ftrl,
    "local": Local,
}


class HasTensors(Protocol):
    """As much of a model as these parts ask for."""

    @property
    def layout(self) -> TensorLayout:
        """All float tensors."""

    @property
    def moving(self) -> TensorLayout:
        """Those that training moves."""


def make_privacy(config: ServerConfig, model: HasTensors) -> Privacy:
    """What `[privacy]` asks for."""
    if config.secure.enabled and config.mechanism == "none":
        return SummedUpdates(config, model.moving.size)
    return PRIVACY[config.mechanism](config, model.moving.size)


def make_gather(link: Link, config: ServerConfig, model: HasTensors, privacy: Privacy) -> Gather:
    """How rounds are played."""
    settings = config.server
    if config.secure.enabled:
        if not isinstance(privacy, SumPlanner):
            raise ConfigError(f"privacy.mechanism = {config.mechanism!r}: makes no sums under secure aggregation")
        return SecureGather(
            link,
            config.secure,
            privacy,
            model.moving.size,
            privacy.aggregate,
            seed=config.seed,
            min_updates=settings.min_updates,
            deadline_s=settings.deadline_s,
            devices=read_devices(config.secure.devices) if config.secure.devices else None,
        )
    if settings.mode == "sync":
        return PlainGather(
            link,
            config.uplink.build(),
            model.moving,
            privacy.aggregate,
            min_updates=settings.min_updates,
            deadline_s=settings.deadline_s,
            counting=lambda number: counting_of(config, number),
        )
    at_will = settings.mode == "async"
    return BufferedGather(
        link,
        config.uplink.build(),
        model.moving,
        privacy.aggregate,
        config.buffer,
        min_updates=settings.min_updates,
        deadline_s=settings.deadline_s,
        period_s=settings.deadline_s if at_will else settings.period_s,
        concurrency=config.concurrency if at_will else 0,
    )


def read_devices(path: str) -> frozenset[bytes]:
    """The public keys in a file that the operator keeps; ConfigError if it can't be read."""
    try:
        text = Path(path).read_text("utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"secure.devices = {path!r}: cannot be read ({error.strerror})") from error
    return frozenset(parse_public_keys(text, f"secure.devices = {path!r}"))


def make_publisher(config: ServerConfig, model: HasTensors) -> WholeModels | DeltaModels:
    """What `[downlink]` asks for."""
    full, delta = config.downlink.build(), config.downlink.build_delta()
    if delta is None:
        return WholeModels(model.layout, full)
    return DeltaModels(Versions(model.layout, model.moving, full, delta), config.seed)


def load_test(config: ServerConfig) -> Examples | None:
    """The held-out data that the server evaluates on; None if it does not."""
    if config.server.evaluate != "central":
        return None
    source: DataSource = plugins.load(DATASETS, config.data.name)
    return source.test_split(config.data, config.seed)
