"""The smallest updates: low rank where it pays, dead-zone quantisation, context-adaptive arithmetic coding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edge_runtime.config import key
from edge_runtime.updates.context.encoding import Update
from edge_runtime.updates.context.format import decode
from edge_runtime.updates.context.search import search
from edge_runtime.updates.delta import FloatVector, TensorLayout
from edge_runtime.updates.stage import Coder, Reader
from edge_runtime.updates.wire import envelope_bytes

MOST_SLACK = 0.1  # of the target that may be left unused
UNKNOWN_BITS = 1.0  # for how many bits to look for components where the bits are not given


@dataclass(frozen=True)
class Context(Coder):
    """At most `bits` bits per value, counting every byte of the payload, or as few as reach `nmse` where that is set.

    NMSE = sum (x - decoded)^2 / sum x^2. Where not even a payload of zeros keeps to `bits`, that one is sent.
    """

    name = "context"
    bits: float = key(0.25, above=0, high=16)
    nmse: float = key(0.0, low=0, below=1)

    @property
    def largest(self) -> float:
        return math.ldexp(1, 110)  # singular values are larger than the values that they come from

    def encode(self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator) -> bytes:
        update = Update(values, layout, UNKNOWN_BITS if self.nmse else self.bits)
        if self.nmse:
            return search(update, "nmse", self.nmse, MOST_SLACK).body
        # The fewer bytes there are, the more each of them is worth, and the less time it takes to try another step.
        slack = min(MOST_SLACK, 0.03 + 0.2 * self.bits)
        whole = self.bits * layout.size / 8
        return search(update, "nbytes", max(1.0, whole - envelope_bytes((self.name,), int(whole))), slack).body

    def decode(self, reader: Reader, layout: TensorLayout, out: FloatVector | None) -> FloatVector:
        return decode(reader, layout, out)
