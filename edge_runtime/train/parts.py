"""Which of a model's float tensors travel, which stay with each client, and what SCAFFOLD sends beside them.

Server and clients make the same parts of the same model. A vector on the wire is the model's values and behind them,
under SCAFFOLD, those of a control variate: one payload, one codec, one layout.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.config import names_that_fit
from edge_runtime.updates.delta import TensorLayout

CONTROL = "control/"  # stands before the name of the tensor that a control variate is of


@dataclass(frozen=True)
class Parts:
    """Layouts of a model's float tensors, each in the model's own order.

    `shared` are those that the server sends, of which training moves `moving`. `personal` never leave a client.
    `control` are control variates, one for each trained parameter in `moving`; of size 0 without SCAFFOLD.
    """

    shared: TensorLayout
    moving: TensorLayout
    personal: TensorLayout
    control: TensorLayout

    @classmethod
    def of(
        cls,
        state: Mapping[str, NDArray[np.generic]],
        moving: Collection[str],
        buffers: Collection[str],
        *,
        personal: Sequence[str] = (),
        control: bool = False,
    ) -> Parts:
        """The parts of a model with these tensors, of which `moving` move and `buffers` are no parameters.

        Raises:
            ConfigError: a pattern of `personal` fits no tensor.

        """
        whole = TensorLayout.of(state)
        names = [name for name, _ in whole.shapes]
        kept = names_that_fit(personal, names, what="personal.layers")
        shared = whole.subset([name for name in names if name not in kept])
        moved = shared.subset([name for name in moving if name not in kept])
        learned = [(name, shape) for name, shape in moved.shapes if name not in buffers]
        variates = tuple((CONTROL + name, shape) for name, shape in learned) if control else ()
        return cls(shared, moved, whole.subset(kept), TensorLayout(variates))

    @property
    def down(self) -> TensorLayout:
        """What a server sends: the model, and its control variate."""
        return _joined(self.shared, self.control)

    @property
    def up(self) -> TensorLayout:
        """What a client sends: how the model moved, and how its control variate did."""
        return _joined(self.moving, self.control)


def _joined(first: TensorLayout, second: TensorLayout) -> TensorLayout:
    return TensorLayout(first.shapes + second.shapes) if second.shapes else first
