"""A model update as whole numbers that can be summed: rotated, thinned out, rounded and noised alike by all clients.

Stands on `updates`, `secagg` and `privacy`, which know nothing of it. Each name loads its module on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime.sums.agreement import agreed_encoder as agreed_encoder
    from edge_runtime.sums.agreement import texts_of as texts_of
    from edge_runtime.sums.agreement import work_hash as work_hash
    from edge_runtime.sums.encoder import NoiseShare as NoiseShare
    from edge_runtime.sums.encoder import SumEncoder as SumEncoder
    from edge_runtime.sums.rotation import Rotation as Rotation

# Each module with the public names that it holds.
_NAMES = {
    "agreement": ("agreed_encoder", "texts_of", "work_hash"),
    "encoder": ("NoiseShare", "SumEncoder"),
    "rotation": ("Rotation",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"edge_runtime.sums.{_HOME[name]}"), name)
    raise AttributeError(f"module 'edge_runtime.sums' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
