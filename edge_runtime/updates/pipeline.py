"""Codecs: ordered stages, each with an encode half for the sender and a decode half for the receiver.

Zero or more transforms (`topk`, `randk`), then one coder; where a list ends without a coder, float32 writes the values.
`encode`/`decode` speak `{name: array}`; `encode_vector`/`decode_vector` speak the flat vector of a layout and are
what client and server call, so that a decoded float32 update is a view of the received bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.config import from_flat
from edge_runtime.errors import ConfigError, NumericsError, PeerError
from edge_runtime.kernels import int8, native
from edge_runtime.updates import wire
from edge_runtime.updates.context.codec import Context
from edge_runtime.updates.delta import FloatVector, TensorLayout
from edge_runtime.updates.floats import BFloat16, Float16, Float32
from edge_runtime.updates.quantize import Int4, Int8, Uniform
from edge_runtime.updates.rotate import Hadamard
from edge_runtime.updates.sparsify import RandK, TopK
from edge_runtime.updates.stage import LARGEST, Coder, Reader, Spread, Stage, Transform, in_turn
from edge_runtime.updates.ternary import STC, SignSGD

# A new codec is one class in a module of its own, and one line here.
CODECS: dict[str, type[Stage]] = {
    stage.name: stage
    for stage in (
        Float32,
        Float16,
        BFloat16,
        Int8,
        Int4,
        Uniform,
        TopK,
        RandK,
        SignSGD,
        STC,
        Hadamard,
        Context,
    )
}


class Codec:
    """One way to write a model's values as bytes: made by `make_codec`."""

    def __init__(self, transforms: Sequence[Transform], coder: Coder) -> None:
        self._transforms, self._coder = tuple(transforms), coder
        self._stages: tuple[Stage, ...] = (*self._transforms, coder)
        self._largest = min(stage.largest for stage in self._stages)

    @property
    def names(self) -> tuple[str, ...]:
        """The stages' names in order, as every payload states them."""
        return tuple(stage.name for stage in self._stages)

    @property
    def unbiased(self) -> bool:
        """Whether the mean of what is decoded, over many seeds, is what was encoded."""
        return all(stage.unbiased for stage in self._stages)

    def encode_vector(
        self, values: FloatVector, layout: TensorLayout, *, round_number: int = 0, seed: int = 0
    ) -> bytes:
        """Payload bytes of a float32 vector of shape (layout.size,). `seed` drives stochastic stages.

        Raises:
            NumericsError: a value is NaN, infinite, or larger than the codec can write; the text names its tensor.

        """
        values = np.ascontiguousarray(values, np.float32)
        if values.shape != (layout.size,):
            raise ValueError(f"a vector of shape {values.shape} does not hold this layout's {layout.size} values")
        self._check(values, layout)
        rng = np.random.default_rng(seed)
        digest, pieces = layout.digest, []
        for transform in self._transforms:
            side, values, layout = transform.apply(values, layout, rng)
            pieces.append(side)
        body = self._coder.encode(values, layout, rng)
        return wire.pack(self.names, digest, round_number, b"".join((*pieces, body)) if pieces else body)

    def decode_vector(
        self,
        payload: bytes | memoryview,
        layout: TensorLayout,
        *,
        round_number: int | None = None,
        out: FloatVector | None = None,
        spread: Spread = in_turn,
    ) -> FloatVector:
        """The vector that `encode_vector` was given, or its quantised likeness: `out` itself where it is given.

        Without `out` it may be a read-only view of the payload. Memory and time are bounded by the layout.

        Args:
            payload: bytes from anywhere.
            layout: the tensors that it must hold.
            round_number: the round that it must belong to; None for any.
            out: contiguous, writable float32 of shape (layout.size,); undefined after an error.
            spread: what does the parts of it that can be done side by side; the values are the same.

        Raises:
            PeerError: malformed bytes, another codec, other tensors, or another round than `round_number`.

        """
        if out is not None and not _fits(out, layout.size):
            raise ValueError(f"out must be contiguous, writable float32 of shape ({layout.size},)")
        envelope = wire.unpack(payload)
        if envelope.codecs != self.names:
            raise PeerError(
                f"payload is encoded as {'+'.join(envelope.codecs)}, this round uses {'+'.join(self.names)}"
            )
        if envelope.layout != layout.digest:
            raise PeerError(
                f"payload's tensors ({envelope.layout.hex()}) are not the model's ({layout.digest.hex()}):"
                " one is missing, is of another shape, or belongs to another model"
            )
        if round_number is not None and envelope.round != round_number:
            raise PeerError(f"payload belongs to round {envelope.round}, this is round {round_number}")
        reader = Reader(envelope.body, spread)
        restores = []
        for transform in self._transforms:
            layout, restore = transform.read(reader, layout)
            restores.append(restore)
        with np.errstate(over="ignore", invalid="ignore"):  # a hostile scale may overflow: who sums checks
            vector = self._coder.decode(reader, layout, None if restores else out)
            reader.end()
            while restores:
                restore = restores.pop()
                vector = restore(vector, None if restores else out)
        return vector

    def encode(self, delta: Mapping[str, NDArray[np.generic]], seed: int = 0) -> bytes:
        """Payload bytes of `{name: float array}`; errors as `encode_vector`."""
        layout = TensorLayout.of(dict(delta))
        return self.encode_vector(layout.flatten(delta), layout, seed=seed)

    def decode(
        self, payload: bytes, like: Mapping[str, NDArray[np.generic] | tuple[int, ...]]
    ) -> dict[str, FloatVector]:
        """`{name: float32 array}` for the names and shapes of `like`; PeerError on anything malformed."""
        layout = TensorLayout.of(like)
        return layout.views(self.decode_vector(payload, layout))

    def _check(self, values: FloatVector, layout: TensorLayout) -> None:
        if not native.all_finite(values):
            name = layout.name_at(int(np.argmin(np.isfinite(values))))
            raise NumericsError(
                f"tensor {name} holds NaN or infinite values, as diverged training does;"
                " a lower learning rate or clip_norm helps"
            )
        if self._largest < LARGEST and values.size:
            low, high = int8.row_range(values.reshape(1, -1))
            if max(-low[0], high[0]) > self._largest:
                at = int(np.argmax(np.abs(values) > self._largest))
                raise NumericsError(
                    f"tensor {layout.name_at(at)} holds {values[at]:g}, beyond the {self._largest:g} that"
                    f" {'+'.join(self.names)} can write; float32 and bfloat16 have the range"
                )


def make_codec(names: str | Sequence[str], **options: Any) -> Codec:
    """The codec of these stages: one name, a list with commas, or a sequence of names.

    Options are given to every stage that has them.

    >>> make_codec("float16").names
    ('float16',)

    Raises:
        ConfigError: an unknown name, stages in another order than transforms and one coder, an option that no stage
            has, or a value out of its range.

    """
    listed = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    for name in listed:
        if name not in CODECS:
            raise ConfigError(f"codec = {name!r}: must be one of {', '.join(CODECS)}")
    kinds = [CODECS[name] for name in listed]
    if not kinds or not issubclass(kinds[-1], Coder):
        kinds.append(Float32)
    taken = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    if unknown := sorted(set(options) - taken):
        has = f"its options are {', '.join(sorted(taken))}" if taken else "it has none"
        raise ConfigError(f"codec {','.join(listed)} has no option {', '.join(unknown)}; {has}")
    stages = []
    for kind in kinds:
        own = {field.name for field in dataclasses.fields(kind)}
        stages.append(from_flat(kind, {name: value for name, value in options.items() if name in own}))
    *transforms, coder = stages
    before = [stage for stage in transforms if isinstance(stage, Transform)]
    if len(before) != len(transforms) or not isinstance(coder, Coder):
        raise ConfigError(f"codec = {','.join(listed)!r}: must be transforms such as topk, then at most one coder")
    return Codec(before, coder)


def _fits(out: FloatVector, size: int) -> bool:
    flags = out.flags
    return out.dtype == np.float32 and out.shape == (size,) and flags.c_contiguous and flags.aligned and flags.writeable
