"""What clients keep for themselves, as far as the server knows it: control variates, and layers of their own.

Pure: no network, no clock. A client that has answered holds values of its own layers, so only others are sent those
that they start from. A control variate moves with an update that is counted; whether it was, its client is told with
the next message. So the sum here is that of the control variates which clients go on from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.updates.versions import Parcel
from server.checkpoint import Tree

Beside = dict[str, int | bytes]


class Control:
    """SCAFFOLD's c, the mean over all clients of their c_i, times the clients' learning rate; of `size` values.

    Karimireddy et al. 2020, algorithm 1: c += |S| / N mean(delta c_i). N are the clients ever seen, whose c_i are zero
    before they take part; so c is the mean also when N grows, as it may from one move to the next.
    """

    def __init__(self, size: int) -> None:
        self._sum, self.value = np.zeros(size), np.zeros(size, np.float32)
        self._met: set[str] = set()
        self._counted: dict[str, int] = {}
        self._lasting: set[str] = set()

    @property
    def size(self) -> int:
        return self._sum.size

    def meet(self, nodes: Iterable[int]) -> None:
        """These clients can take part."""
        self._met.update(map(str, nodes))

    def learn(self, node: int, *, lasts: bool) -> None:
        """Whether this client finds its control variate again when the run goes on as another Flower run."""
        (self._lasting.add if lasts else self._lasting.discard)(str(node))

    def counted(self, node: int) -> int:
        """The last round of this client's that counts; 0 for none."""
        return self._counted.get(str(node), 0)

    def move(self, number: int, clients: Collection[str], mean: NDArray[np.float64]) -> bool:
        """Count these clients' deltas in this round, of which `mean` is the mean.

        False, and none counts, if c would not be finite: deltas can each be finite and still overflow float32.
        """
        met = self._met.union(clients)
        total = self._sum + len(clients) * mean
        if not np.all(np.abs(total) <= float(np.finfo(np.float32).max) * len(met)):
            return False
        self._sum, self._met = total, met
        self.value = (total / max(len(met), 1)).astype(np.float32)
        self._counted.update(dict.fromkeys(clients, number))
        return True

    def forget_nodes(self) -> None:
        """Go on as another Flower run. Where most clients have lost their c_i, all start again from zero, as does c.

        Where most have theirs they go on; c then keeps the share of those that were lost, which nobody knows.
        """
        if 2 * len(self._counted.keys() & self._lasting) > len(self._counted):
            return
        self._sum, self.value = np.zeros_like(self._sum), np.zeros_like(self.value)
        self._met.clear()
        self._counted.clear()

    def state(self) -> Tree:
        return {
            "sum": self._sum,
            "value": self.value,
            "met": sorted(self._met),
            "counted": dict(sorted(self._counted.items())),
            "lasting": sorted(self._lasting),
        }

    def restore(self, state: Tree) -> None:
        self._sum, self.value = state["sum"], state["value"]
        self._met, self._counted = set(state["met"]), dict(state["counted"])
        self._lasting = set(state["lasting"])


class Keeping:
    """What stands beside the model in each client's message. `initial` are the values that personal layers start from.

    Without either nothing does, and nothing is remembered.
    """

    def __init__(self, initial: bytes, control: Control | None) -> None:
        self._initial, self._control = initial, control
        self._holding: set[int] = set()

    def address(self, parcels: Mapping[int, Parcel]) -> dict[int, Parcel]:
        """Each node's parcel with what is for it alone; nodes that are sent the same share one object."""
        made: dict[tuple[Any, ...], Parcel] = {}
        return {node: self._addressed(node, parcel, made) for node, parcel in parcels.items()}

    def learn(self, node: int, answered: bool, *, lasts: bool | None = None) -> None:
        """A node has answered a message with a model; an error may be that it lost what it held.

        `lasts`: whether it finds what it keeps again when the run goes on as another Flower run; None: not said.
        """
        if self._initial:
            (self._holding.add if answered else self._holding.discard)(node)
        if self._control is not None and lasts is not None:
            self._control.learn(node, lasts=lasts)

    def forget_nodes(self) -> None:
        """Go on as another Flower run: who has values of its own layers goes on from them, but not all may have any."""
        self._holding.clear()
        if self._control is not None:
            self._control.forget_nodes()

    def state(self) -> Tree:
        return {"holding": [str(node) for node in sorted(self._holding)]}  # Flower's ids pass 2^63

    def restore(self, state: Tree) -> None:
        self._holding = set(map(int, state["holding"]))

    def _addressed(self, node: int, parcel: Parcel, made: dict[tuple[Any, ...], Parcel]) -> Parcel:
        beside: Beside = {}
        if self._initial and node not in self._holding:
            beside["personal"] = self._initial
        if self._control is not None and (counted := self._control.counted(node)):
            beside["control-round"] = counted
        if not beside:
            return parcel
        key = (id(parcel), *sorted(beside.items()))
        return made.setdefault(key, replace(parcel, beside=beside))
