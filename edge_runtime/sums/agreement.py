"""What a round of secure aggregation is told of its encoder and of the work, and what a client makes of it.

A client's policy is asked about the texts, and it computes with the packed encoder: each must say what the other says.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, TypedDict

from edge_runtime.errors import PeerError
from edge_runtime.secagg.config import RoundConfig
from edge_runtime.secagg.keys import statement
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


def work_hash(model_hash: bytes, task: Mapping[str, Any], program: bytes) -> bytes:
    """32 bytes that stand for all that clients make their updates of but their data: model, task, Program.

    A round is agreed on under it (its `model_hash`). Were the model alone bound, a server could send one client the
    task, and all others one with a learning rate of next to nothing: the sum would be that client's update. `task` is
    flat, of numbers and texts.
    """
    settings = json.dumps(dict(task), sort_keys=True).encode()
    return hashlib.sha256(statement(b"hedgerow secagg 1 work", model_hash, settings, program)).digest()


def agreed_encoder(agreed: RoundConfig, size: int) -> SumEncoder:
    """The round's encoder, for updates of `size` values.

    Raises:
        PeerError: malformed, for another model, not what the round's texts say, or of noise that weights would undo, or
            if values could be more than the round takes: who must leave a round for its update's sake tells of it.

    """
    settings = agreed.settings
    encoder = SumEncoder.parse(settings.encoding)
    if encoder.size != size:
        raise PeerError(f"the round sums updates of {encoder.size} values, this model's have {size}")
    if encoder.count != agreed.count:
        raise PeerError(f"the round sums {agreed.count} values, its encoder makes {encoder.count}")
    if texts_of(encoder) != {"clip": settings.clip, "noise": settings.noise, "encoding": settings.encoding}:
        raise PeerError(f"clip {settings.clip!r} and noise {settings.noise!r} are not those of the round's encoder")
    if encoder.noise and settings.max_weight:
        raise PeerError("a round with noise has weights, which would let one client's update outgrow the others' noise")
    if (largest := _largest(encoder, agreed)) > agreed.max_abs:
        raise PeerError(f"the round takes values of up to {agreed.max_abs}, its encoder makes them up to {largest:g}")
    return encoder


def _largest(encoder: SumEncoder, agreed: RoundConfig) -> float:
    """Of the magnitudes that a client hands to the protocol, whatever its update is."""
    if agreed.settings.wrap:
        return float(1 << agreed.settings.bits - 1)
    return math.inf if encoder.noise else max(encoder.value_max or math.floor(encoder.l2), encoder.vote)
