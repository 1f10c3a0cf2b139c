"""What clients sign and hash: each statement has its own label, so that no signature serves for another."""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from edge_runtime.secagg import graph, keys
from edge_runtime.secagg.config import RoundConfig
from edge_runtime.secagg.messages import Advertise

_ADVERT = b"hedgerow secagg 1 advertise"
_SURVIVORS = b"hedgerow secagg 1 survivors"
_SEED = b"hedgerow secagg 1 seed"


def sign_advert(device: keys.DeviceKey, agreed: RoundConfig, client: int, mask_key: bytes, channel_key: bytes) -> bytes:
    """The device's word that these two public keys are its own in this round, of these settings, on this model."""
    return device.sign(_ADVERT, *_advert(agreed, client, mask_key, channel_key))


def verify_advert(device: bytes, agreed: RoundConfig, client: int, advert: Advertise) -> None:
    """Return if the device of that public key made this advert for this round.

    Raises:
        PeerError: it did not.

    """
    keys.verify(device, advert.signature, _ADVERT, *_advert(agreed, client, advert.mask_key, advert.channel_key))


def _advert(agreed: RoundConfig, client: int, mask_key: bytes, channel_key: bytes) -> tuple[bytes, ...]:
    ids = struct.pack("<QIQ", agreed.run, agreed.round, client)
    return ids, agreed.digest, agreed.model_hash, mask_key, channel_key


def transcript(agreed: RoundConfig, adverts: Mapping[int, bytes]) -> bytes:
    """A hash of the settings and of every advert, in order of id: two clients with the same one saw the same round."""
    listed = (struct.pack("<Q", client) + adverts[client] for client in sorted(adverts))
    return hashlib.sha256(agreed.digest + b"".join(listed)).digest()


def topology(agreed: RoundConfig, present: Iterable[int], transcript: bytes) -> graph.Neighbours:
    """Every client's neighbours. Drawn from the transcript, so that no one side chooses them."""
    ids = sorted(present)
    return graph.neighbours(ids, agreed.degree(len(ids)), transcript)


def share_index(owner: int, neighbours: Sequence[int], holder: int) -> int:
    """Which share of the owner's secrets the holder has: its place, from 1, among the neighbours and the owner itself.

    `neighbours` ascend, and the holder is the owner or one of them. In a complete graph the index is the same for every
    owner, so all secrets are rebuilt with one set of coefficients.
    """
    return 1 + bisect_left(neighbours, holder) + (owner < holder)


def survivors_digest(transcript: bytes, survivors: Iterable[int], dropped: Iterable[int]) -> bytes:
    """A hash of who is in the sum and whose masks come off it."""
    parts = (b"".join(struct.pack("<Q", client) for client in sorted(group)) for group in (survivors, dropped))
    return hashlib.sha256(keys.statement(_SURVIVORS, transcript, *parts)).digest()


def sign_survivors(device: keys.DeviceKey, digest: bytes) -> bytes:
    """The device's word that this is the list it was shown."""
    return device.sign(_SURVIVORS, digest)


def verify_survivors(device: bytes, digest: bytes, signature: bytes) -> None:
    """Return if the device of that public key was shown the same list.

    Raises:
        PeerError: it was not.

    """
    keys.verify(device, signature, _SURVIVORS, digest)


def commit_seed(seed: keys.Secret, transcript: bytes, client: int) -> bytes:
    """What binds a client to its seed without showing it."""
    return keys.commitment(seed, _SEED, transcript, struct.pack("<Q", client))
