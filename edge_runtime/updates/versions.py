"""A model that changes version by version, and two ends that must hold the same bits of it.

A version P is written whole by the codec `full`, or reached from the version before by a `delta` payload:

    P_t = grid(P_{t-1} + decode(delta payload))        grid(x) = full.decode(full.encode(x))

`full` is idempotent, so a whole payload of P_t decodes to exactly P_t: whoever was sent the model whole and whoever
followed every delta hold equal values, and equal ids.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edge_runtime.errors import NumericsError, PeerError
from edge_runtime.updates.delta import FloatVector, TensorLayout
from edge_runtime.updates.pipeline import Codec

ID_BYTES = 8
MAX_DELTAS = 256  # in one chain; each costs its receiver a pass over the model
CHAIN_STYPE = "hedgerow.deltas.v1"  # how Flower labels the one opaque Array that carries a chain
_LENGTH = struct.Struct("<I")


def model_hash(values: FloatVector) -> bytes:
    """The SHA-256 over the values as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(values, "<f4").data).digest()


def model_id(values: FloatVector) -> bytes:
    """The first 8 bytes of the `model_hash`."""
    return model_hash(values)[:ID_BYTES]


def gather(values: FloatVector, layout: TensorLayout, part: TensorLayout) -> FloatVector:
    """The values of `part`'s tensors out of a vector of `layout`: a copy, unless the two are the same."""
    return values if part.shapes == layout.shapes else part.flatten(layout.views(values))


def replaced(values: FloatVector, layout: TensorLayout, part: TensorLayout, new: FloatVector) -> FloatVector:
    """A vector of `layout` like `values`, but with `part`'s tensors out of `new`: `new` itself, if that is all."""
    if part.shapes == layout.shapes:
        return new
    whole = values.copy()
    places = layout.views(whole)
    for name, tensor in part.views(new).items():
        places[name][...] = tensor
    return whole


@dataclass(frozen=True, slots=True)
class Versions:
    """How one version follows another; the same at both ends. Only the tensors of `moving` are in a delta."""

    layout: TensorLayout
    moving: TensorLayout
    full: Codec
    delta: Codec

    def on_grid(self, values: FloatVector) -> FloatVector:
        """The nearest model that a whole payload can say."""
        return self.full.decode_vector(self.full.encode_vector(values, self.layout), self.layout)

    def write_delta(self, old: FloatVector, new: FloatVector, *, round_number: int, seed: int) -> bytes:
        """The payload that leads from `old` towards `new`."""
        difference = gather(new, self.layout, self.moving) - gather(old, self.layout, self.moving)
        return self.delta.encode_vector(difference, self.moving, round_number=round_number, seed=seed)

    def advance(self, old: FloatVector, payload: bytes | memoryview) -> FloatVector:
        """The version after `old`.

        Raises:
            PeerError: the payload is malformed, or leads to values that no model has.

        """
        step = self.delta.decode_vector(payload, self.moving)
        with np.errstate(over="ignore", invalid="ignore"):
            moved = gather(old, self.layout, self.moving) + step
        try:
            return self.on_grid(replaced(old, self.layout, self.moving, moved))
        except NumericsError as error:
            raise PeerError(f"a delta leads to a model that cannot be: {error}") from None


@dataclass(frozen=True, slots=True)
class Parcel:
    """The model as one receiver is sent it: a whole payload, or a packed `Chain`; and the id of the version that it is.

    The id is empty where versions are not told apart, and the model is always sent whole. `beside` is for this receiver
    alone: small values by their names in the message.
    """

    content: bytes
    whole: bool = True
    model_id: bytes = b""
    beside: Mapping[str, int | bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delta:
    """A payload, and the id of the version that it leads to."""

    to: bytes
    payload: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Chain:
    """Deltas one after another, the first one from the version `start`.

    As bytes: start (8), then for each delta the id it leads to (8), the payload's length (u32, little-endian), payload.
    """

    start: bytes
    deltas: tuple[Delta, ...]

    @property
    def end(self) -> bytes:
        """The version that the last delta leads to."""
        return self.deltas[-1].to if self.deltas else self.start

    @property
    def nbytes(self) -> int:
        """Length of what `pack` writes."""
        return ID_BYTES + sum(ID_BYTES + _LENGTH.size + len(one.payload) for one in self.deltas)

    def then(self, delta: Delta) -> Chain:
        return Chain(self.start, (*self.deltas, delta))

    def after(self, held: bytes) -> tuple[Delta, ...] | None:
        """What a holder of that version still has to apply: nothing, if it holds the last; None if it is not here."""
        ids = [self.start, *(delta.to for delta in self.deltas)]
        if held not in ids:
            return None
        return self.deltas[len(ids) - 1 - ids[::-1].index(held) :]

    def without_first(self) -> Chain:
        return Chain(self.deltas[0].to, self.deltas[1:])

    def pack(self) -> bytes:
        framed = (part for one in self.deltas for part in (one.to, _LENGTH.pack(len(one.payload)), one.payload))
        return b"".join((self.start, *framed))

    @classmethod
    def unpack(cls, data: bytes) -> Chain:
        """What `pack` wrote; payloads are views of `data`. Raises PeerError on anything else."""
        view, at = memoryview(data), ID_BYTES
        deltas: list[Delta] = []
        while at < len(view) and len(deltas) < MAX_DELTAS:
            head = at + ID_BYTES + _LENGTH.size
            if head > len(view):
                raise PeerError(f"a chain of deltas ends inside the head of delta {len(deltas)}")
            (nbytes,) = _LENGTH.unpack_from(view, head - _LENGTH.size)
            if nbytes > len(view) - head:
                raise PeerError(f"delta {len(deltas)} of a chain takes {nbytes} bytes, {len(view) - head} are there")
            deltas.append(Delta(bytes(view[at : at + ID_BYTES]), view[head : head + nbytes]))
            at = head + nbytes
        if at != len(view):
            raise PeerError(f"a chain of deltas is cut short, or longer than {MAX_DELTAS}")
        return cls(bytes(view[:ID_BYTES]), tuple(deltas))
