"""Codecs: an encode half for the sender and a decode half for the receiver, chosen by name.

`encode`/`decode` speak `{name: array}`; `encode_vector`/`decode_vector` speak the flat vector of a layout and are
what client and server call, so that a decoded float32 update is a view of the received bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.updates import wire
from edge_runtime.updates.delta import FloatVector, TensorLayout


class Codec(ABC):
    """One way to write a model's values as bytes."""

    name: ClassVar[str]

    @abstractmethod
    def _encode_body(
        self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator
    ) -> bytes | memoryview: ...

    @abstractmethod
    def _decode_body(self, body: memoryview, layout: TensorLayout) -> FloatVector:
        """Float32 vector of shape (layout.size,), which may be a read-only view; PeerError on malformed bytes."""

    def encode_vector(
        self, values: FloatVector, layout: TensorLayout, *, round_number: int = 0, seed: int = 0
    ) -> bytes:
        """Payload bytes of a float32 vector of shape (layout.size,). `seed` drives stochastic codecs."""
        body = self._encode_body(values, layout, np.random.default_rng(seed))
        return wire.pack((self.name,), layout.digest, round_number, body)

    def decode_vector(self, payload: bytes, layout: TensorLayout, *, round_number: int | None = None) -> FloatVector:
        """The vector that `encode_vector` was given, or its quantised likeness.

        Raises:
            PeerError: malformed bytes, another codec, other tensors, or another round than `round_number`.

        """
        envelope = wire.unpack(payload)
        if envelope.codecs != (self.name,):
            raise PeerError(f"payload is encoded as {'+'.join(envelope.codecs)}, this round uses {self.name}")
        if envelope.layout != layout.digest:
            raise PeerError(
                f"payload's tensors ({envelope.layout.hex()[:8]}) are not the model's ({layout.digest.hex()[:8]}):"
                " one is missing, is of another shape, or belongs to another model"
            )
        if round_number is not None and envelope.round != round_number:
            raise PeerError(f"payload belongs to round {envelope.round}, this is round {round_number}")
        return self._decode_body(envelope.body, layout)

    def encode(self, delta: Mapping[str, NDArray[np.generic]], seed: int = 0) -> bytes:
        """Payload bytes of `{name: float array}`."""
        layout = TensorLayout.of(dict(delta))
        return self.encode_vector(layout.flatten(delta), layout, seed=seed)

    def decode(
        self, payload: bytes, like: Mapping[str, NDArray[np.generic] | tuple[int, ...]]
    ) -> dict[str, FloatVector]:
        """`{name: float32 array}` for the names and shapes of `like`; PeerError on anything malformed."""
        layout = TensorLayout.of(like)
        return layout.views(self.decode_vector(payload, layout))


class Float32Codec(Codec):
    """The values as they are: 4 bytes each, little-endian."""

    name = "float32"

    def _encode_body(self, values: FloatVector, layout: TensorLayout, rng: np.random.Generator) -> memoryview:
        return np.ascontiguousarray(values, "<f4").data.cast("B")

    def _decode_body(self, body: memoryview, layout: TensorLayout) -> FloatVector:
        if len(body) != 4 * layout.size:
            raise PeerError(
                f"float32 body has {len(body)} bytes, the model's {layout.size} values take {4 * layout.size}"
            )
        # A view, unless the payload itself came to lie at an odd address.
        return np.require(np.frombuffer(body, "<f4"), requirements="A")


CODECS: dict[str, Callable[..., Codec]] = {Float32Codec.name: Float32Codec}


def make_codec(name: str, **options: Any) -> Codec:
    """The codec of that name; `options` are its settings (none for float32)."""
    if name not in CODECS:
        raise ConfigError(f"codec = {name!r}: must be one of {', '.join(CODECS)}")
    try:
        return CODECS[name](**options)
    except TypeError:
        raise ConfigError(f"codec {name} has no option {', '.join(options)}") from None
