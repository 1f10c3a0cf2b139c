"""Secure aggregation: the server learns a sum of masked updates and nothing of a single one.

SecAgg+ (Bell et al., CCS 2020; double masking of Bonawitz et al., CCS 2017), without I/O, clock or thread of its own.
A leaf: numpy and `cryptography`, each loaded with the name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime.secagg.client import Client as Client
    from edge_runtime.secagg.config import Config as Config
    from edge_runtime.secagg.config import Policy as Policy
    from edge_runtime.secagg.config import RoundConfig as RoundConfig
    from edge_runtime.secagg.device import Contribution as Contribution
    from edge_runtime.secagg.device import Device as Device
    from edge_runtime.secagg.device import Packed as Packed
    from edge_runtime.secagg.graph import choose_neighbours as choose_neighbours
    from edge_runtime.secagg.graph import neighbours as neighbours
    from edge_runtime.secagg.keys import DeviceKey as DeviceKey
    from edge_runtime.secagg.lanes import Lanes as Lanes
    from edge_runtime.secagg.masks import PRGS as PRGS
    from edge_runtime.secagg.plan import BitPlan as BitPlan
    from edge_runtime.secagg.plan import plan_bits as plan_bits
    from edge_runtime.secagg.server import Outcome as Outcome
    from edge_runtime.secagg.server import Server as Server
    from edge_runtime.secagg.simulate import simulate_round as simulate_round
    from edge_runtime.secagg.transitions import PHASES as PHASES

# Each module with the public names that it holds.
_NAMES = {
    "client": ("Client",),
    "config": ("Config", "Policy", "RoundConfig"),
    "device": ("Contribution", "Device", "Packed"),
    "graph": ("choose_neighbours", "neighbours"),
    "keys": ("DeviceKey",),
    "lanes": ("Lanes",),
    "masks": ("PRGS",),
    "plan": ("BitPlan", "plan_bits"),
    "server": ("Outcome", "Server"),
    "simulate": ("simulate_round",),
    "transitions": ("PHASES",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"edge_runtime.secagg.{_HOME[name]}"), name)
    raise AttributeError(f"module 'edge_runtime.secagg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
