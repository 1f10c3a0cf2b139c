"""A client's half of the exchange with the server: the model that a message brings, the update that an answer takes.

Both of our own app and of `update_codec_mod`. The codecs are those that the task names.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clients.state import ClientState
from edge_runtime.errors import PeerError
from edge_runtime.train.config import RoundTask
from edge_runtime.updates import TensorLayout
from edge_runtime.updates.delta import FloatVector
from edge_runtime.updates.versions import Chain, Parcel, Versions, model_id


@dataclass(frozen=True, slots=True)
class Tensors:
    """The float tensors of a model, and those of them that training moves: what an update holds.

    The last `control` values of both are SCAFFOLD's control variate.
    """

    layout: TensorLayout
    moving: TensorLayout
    control: int = 0


def receive_model(task: RoundTask, sent: Parcel, tensors: Tensors, state: ClientState) -> FloatVector:
    """The model's values, of shape (layout.size,), which may be read-only.

    Where the server sends deltas, this version is what the node holds from here on, whatever becomes of the round.

    Raises:
        PeerError: malformed bytes, another model or round, or deltas from a version that this node does not hold.

    """
    full, delta = task.downlink.build(), task.downlink.build_delta()
    if delta is None:
        if not sent.whole:
            raise PeerError("the message brings deltas, but its task names no codec for them")
        return full.decode_vector(sent.content, tensors.layout, round_number=task.round)
    if sent.whole:
        held, values = b"", full.decode_vector(sent.content, tensors.layout, round_number=task.round)
    else:
        versions = Versions(tensors.layout, tensors.moving, full, delta)
        held, values = state.anchor(tensors.layout) or (b"", np.empty(0, np.float32))
        values = _follow(versions, Chain.unpack(sent.content), held, values)
    if model_id(values) != sent.model_id:
        raise PeerError(f"the message's model is not {sent.model_id.hex()}, as it says, but {model_id(values).hex()}")
    if held != sent.model_id:
        state.keep_anchor(tensors.layout, sent.model_id, values)
    return values


def _follow(versions: Versions, chain: Chain, held: bytes, values: FloatVector) -> FloatVector:
    """The held version, moved by what of the chain comes after it."""
    deltas = chain.after(held)
    if deltas is None:
        raise PeerError(
            f"the message's deltas start from model {chain.start.hex()}, this node holds {held.hex() or 'none'}: "
            "it needs the whole model"
        )
    for one in deltas:
        values = versions.advance(values, one.payload)
    return values


def encode_update(task: RoundTask, delta: FloatVector, tensors: Tensors, state: ClientState, client: int) -> bytes:
    """The payload of `delta`, of shape (moving.size,).

    With error feedback (Seide et al. 2014; Karimireddy et al. 2019), e = residual + delta is encoded, and what decoding
    does not give back of e is the residual of the next round. It is kept before the answer leaves: an answer that gets
    lost takes what it says along. A round that is asked for again is answered without the residual, and leaves none:
    which of the answers counts is not known here. So part of a delta may be lost, and none is ever counted twice.
    A control variate needs no residual: its next delta is from what was sent of it, see `sent_control`.

    Raises:
        NumericsError: the delta holds NaN or infinite values; names the tensor.

    """
    codec, moving = task.uplink.build(), tensors.moving
    seed = int(round_seeds(task, client)[2].generate_state(1)[0])
    if not task.uplink.error_feedback:
        return codec.encode_vector(delta, moving, round_number=task.round, seed=seed)
    residual = state.residual(moving, task.round)
    wanted = delta if residual is None else delta + residual
    payload = codec.encode_vector(wanted, moving, round_number=task.round, seed=seed)
    left = np.zeros_like(delta) if residual is None else wanted - codec.decode_vector(payload, moving)
    left[moving.size - tensors.control :] = 0
    state.keep_residual(moving, task.round, left)
    return payload


def sent_control(task: RoundTask, payload: bytes, tensors: Tensors) -> FloatVector:
    """What the server reads in the update of how the control variate moved.

    The client moves its own by just that: so the server's stays the mean of its clients' whatever the codec loses, and
    what it lost is a part of the next delta.
    """
    return task.uplink.build().decode_vector(payload, tensors.moving)[tensors.moving.size - tensors.control :]


def round_seeds(task: RoundTask, client: int) -> list[np.random.SeedSequence]:
    """Independent seeds for a client's order of examples, dropout and codec in one round, the same on any machine."""
    return np.random.SeedSequence([task.seed, task.round, client]).spawn(3)
