"""What a round of secure aggregation is told of its encoder, and the encoder that a client makes of it.

A client's policy is asked about the texts, and it computes with the packed encoder: each must say what the other says.
"""

from __future__ import annotations

from typing import TypedDict

from edge_runtime.errors import PeerError
from edge_runtime.secagg.config import RoundConfig
from edge_runtime.sums.encoder import SumEncoder


class Texts(TypedDict):
    """The fields of a `secagg.Config` that are about the encoder."""

    clip: str
    noise: str
    encoding: bytes


def texts_of(encoder: SumEncoder) -> Texts:
    """The clip as the shortest decimal that is it; the noise as its kind and parameter, empty without."""
    noise = f"{encoder.noise.kind} {encoder.noise.parameter}" if encoder.noise else ""
    return {"clip": repr(encoder.clip), "noise": noise, "encoding": encoder.pack()}


def agreed_encoder(agreed: RoundConfig, size: int) -> SumEncoder:
    """The round's encoder, for updates of `size` values.

    Raises:
        PeerError: malformed, for another model, or not what the round's texts say.

    """
    settings = agreed.settings
    encoder = SumEncoder.parse(settings.encoding)
    if encoder.size != size:
        raise PeerError(f"the round sums updates of {encoder.size} values, this model's have {size}")
    if encoder.count != agreed.count:
        raise PeerError(f"the round sums {agreed.count} values, its encoder makes {encoder.count}")
    if texts_of(encoder) != {"clip": settings.clip, "noise": settings.noise, "encoding": settings.encoding}:
        raise PeerError(f"clip {settings.clip!r} and noise {settings.noise!r} are not those of the round's encoder")
    return encoder
