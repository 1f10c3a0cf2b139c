"""What the owner of a device says about it, in Flower's node config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_runtime.config import parse_bytes
from edge_runtime.errors import ConfigError
from edge_runtime.kernels.native import MAX_THREADS


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Where this client's examples come from, and which model entry it is willing to run.

    Either `data-path` names a local file or folder, or `partition-id` and `num-partitions` (Flower's own names) make
    this node one client of a simulated split of a registered data set, read from `dataset-path` if it is a file.
    `memory-budget`, a text such as "8 MiB", is the most that training may take here; a Program that needs more is
    refused. `threads` is how many of its cores training may use; 0 for all that the process may use. `state-path`, a
    folder of this node's own, lets what codecs remember survive a restart; see clients/state.py.
    """

    data_path: str = ""
    partition: int = -1
    partitions: int = 0
    model_entry: str = ""
    dataset_path: str = ""
    memory_budget: int = 0  # bytes; 0 for no limit
    threads: int = 0

    @classmethod
    def from_node_config(cls, values: Mapping[str, Any]) -> NodeConfig:
        config = cls(
            data_path=str(values.get("data-path", "")),
            partition=whole(values, "partition-id", -1),
            partitions=whole(values, "num-partitions", 0),
            dataset_path=str(values.get("dataset-path", "")),
            model_entry=str(values.get("model-entry", "")),
            memory_budget=parse_bytes(str(values.get("memory-budget", "")) or None),
            threads=whole(values, "threads", 0),
        )
        if not 0 <= config.threads <= MAX_THREADS:
            raise ConfigError(f"node config: threads = {config.threads}: must be 0 (all) to {MAX_THREADS}")
        if not config.data_path and not 0 <= config.partition < config.partitions:
            raise ConfigError(
                f"node config: give data-path, or partition-id from 0 to num-partitions - 1 "
                f"(partition-id = {config.partition}, num-partitions = {config.partitions})"
            )
        return config


def whole(values: Mapping[str, Any], name: str, default: int) -> int:
    """A key that must be a whole number; ConfigError if it is none."""
    value = values.get(name, default)
    if type(value) is not int:
        raise ConfigError(f"node config: {name} = {value!r}: must be a whole number")
    return value
