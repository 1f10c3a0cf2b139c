"""What each node is sent of the model: the whole of it, or deltas from the version that it is known to hold.

The loop is closed: a delta says how the server's weights differ from what the nodes hold, not from what the weights
were before. What one delta loses to its codec is so a part of the next. Pure: no network, no clock.
"""

from __future__ import annotations

import numpy as np

from edge_runtime.updates import Codec, TensorLayout
from edge_runtime.updates.delta import FloatVector
from edge_runtime.updates.versions import MAX_DELTAS, Chain, Delta, Parcel, Versions, model_hash, model_id
from server.checkpoint import Tree


class WholeModels:
    """Every node is sent the whole model, every time; nothing has to be known about any of them."""

    def __init__(self, layout: TensorLayout, codec: Codec) -> None:
        self._layout, self._codec = layout, codec
        self._parcel = Parcel(b"")

    def publish(self, weights: FloatVector, round_number: int) -> None:
        """Let `parcel` give these weights, for this round."""
        self._parcel = Parcel(self._codec.encode_vector(weights, self._layout, round_number=round_number))

    @property
    def values(self) -> FloatVector:
        """What nodes have once they have decoded it."""
        return self._codec.decode_vector(self._parcel.content, self._layout)

    def parcel(self, node: int) -> Parcel:
        """What that node is to be sent; one object for all that are sent the same."""
        return self._parcel

    def learn(self, node: int, held: bytes) -> None:
        """A node has said which version it holds; empty: none, or it is not known."""

    def state(self) -> Tree:
        """Nothing: what is sent follows from the weights."""
        return {}

    def restore(self, state: Tree) -> None:
        """There is nothing to restore."""

    def forget_nodes(self) -> None:
        """There is nothing to forget."""


class DeltaModels:
    """A node that is known to hold a version is sent the deltas from there on, while they are smaller than the whole.

    What a node holds is known from its own answers alone. A node leaves a version only for a later one of the chain,
    so one that was asked and fell silent can still use whatever starts from where it last said it was.
    """

    def __init__(self, versions: Versions, seed: int) -> None:
        self._versions, self._seed = versions, seed
        self._source: FloatVector | None = None  # the weights that the current version is of
        self._restored = b""  # their hash, from a run's being resumed to the first time that anything is published
        self._values: FloatVector
        self._newest = Chain(b"", ())  # from the oldest version that is still worth a delta to the current one
        self._round = self._whole_bytes = 0
        self._held: dict[int, bytes] = {}
        self._parcels: dict[bytes, Parcel] = {}  # of this round, by the version they start from; empty: whole

    @property
    def values(self) -> FloatVector:
        """The current version, bit for bit what every node holds that has all of the chain."""
        return self._values

    @property
    def model_id(self) -> bytes:
        return self._newest.end

    def publish(self, weights: FloatVector, round_number: int) -> None:
        """As `WholeModels.publish`, but the same array as the last time is no new version."""
        self._round, self._parcels = round_number, {}
        if self._restored:
            self._source = weights if model_hash(weights) == self._restored else weights.copy()
            self._restored = b""
        if self._source is None:
            self._values = self._versions.on_grid(weights)
            self._newest = Chain(model_id(self._values), ())
            self._whole_bytes = len(self._whole().content)
        elif weights is not self._source:
            self._advance(weights)
        self._source = weights

    def parcel(self, node: int) -> Parcel:
        held = self._held.get(node, b"")
        deltas = self._newest.after(held)
        if deltas is None:
            return self._parcels.get(b"") or self._parcels.setdefault(b"", self._whole())
        if held not in self._parcels:
            self._parcels[held] = Parcel(Chain(held, deltas).pack(), False, self.model_id)
        return self._parcels[held]

    def learn(self, node: int, held: bytes) -> None:
        self._held[node] = held

    def forget_nodes(self) -> None:
        """Go on as another Flower run: what nodes now hold is not known, and not all of them hold anything."""
        self._held = {}

    def state(self) -> Tree:
        source = self._restored if self._source is None else model_hash(self._source)
        if not source:
            return {}
        return {
            "source": source,
            "values": self._values,
            "chain": self._newest.pack(),
            "whole_bytes": self._whole_bytes,
            "held": {str(node): held.hex() for node, held in self._held.items()},
        }

    def restore(self, state: Tree) -> None:
        if not state:
            return
        self._restored, self._values, self._whole_bytes = state["source"], state["values"], state["whole_bytes"]
        self._newest = Chain.unpack(state["chain"])
        self._held = {int(node): bytes.fromhex(held) for node, held in state["held"].items()}

    def _whole(self) -> Parcel:
        rules = self._versions
        content = rules.full.encode_vector(self._values, rules.layout, round_number=self._round)
        return Parcel(content, True, self.model_id)

    def _advance(self, weights: FloatVector) -> None:
        """The next version, and the delta that leads to it from the last one."""
        seed = int(np.random.SeedSequence([self._seed, self._round]).generate_state(1)[0])
        payload = self._versions.write_delta(self._values, weights, round_number=self._round, seed=seed)
        self._values = self._versions.advance(self._values, payload)
        reached = model_id(self._values)
        if reached == self.model_id:
            return  # the codec found nothing worth a byte
        chain = self._newest.then(Delta(reached, payload))
        while chain.nbytes >= self._whole_bytes or len(chain.deltas) > MAX_DELTAS:
            chain = chain.without_first()
        self._newest = chain
