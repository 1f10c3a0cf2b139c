"""A client's part of a round as bytes, to outlive the process between two messages.

    version u8 | phase u8 | length of the config u16 | the round's config | fields as in `_FORMS` | SHA-256, first 16

They hold secrets in the open: memory of the node is the place for them, for the round alone. The checksum tells damage,
not malice: whoever can write these bytes has the node. Channels come back with their one message sealed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from edge_runtime.errors import PeerError
from edge_runtime.secagg import keys
from edge_runtime.secagg import messages as m
from edge_runtime.secagg import transcript as t
from edge_runtime.secagg.config import HASH_BYTES, RoundConfig
from edge_runtime.secagg.phases import Advertised, Confirmed, Ended, Invited, Masked, Own, Phase, Shared

VERSION = 2
CHECKSUM_BYTES = 16
_HEAD = struct.Struct("<BBH")
_SECRETS = 2 * m.SHARE_BYTES  # a share of the seed and one of the mask key, or both secrets
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Form:
    """How a phase is written: its fields, what they are in that phase, and the phase that they make."""

    kind: type[Any]
    fields: Mapping[str, m.Field]
    take: Callable[[Any], Values]
    make: Callable[[Own, RoundConfig, Values], Phase]


def _revealed(secrets: Mapping[int, keys.Secret]) -> dict[int, bytes]:
    return {client: secret.reveal() for client, secret in secrets.items()}


def _secrets(revealed: Mapping[int, bytes]) -> dict[int, keys.Secret]:
    return {client: keys.Secret(content) for client, content in revealed.items()}


def _take_advertised(phase: Advertised) -> Values:
    pairs = {"mask": phase.mask.secret().reveal(), "channel": phase.channel.secret().reveal()}
    return {**pairs, "advert": phase.advert.joined}


def _make_advertised(own: Own, agreed: RoundConfig, values: Values) -> Advertised:
    mask, channel = (keys.KeyPair(keys.Secret(values[name])) for name in ("mask", "channel"))
    advert = m.Advertise.split(values["advert"])
    if (mask.public, channel.public) != (advert.mask_key, advert.channel_key):
        raise PeerError("its keys are not those that it advertised")
    return Advertised(own, agreed, mask, channel, advert)


def _take_shared(phase: Shared) -> Values:
    return {
        "transcript": phase.transcript,
        "present": tuple(phase.present),
        "pair_keys": _revealed(phase.pair_keys),
        "channels": {peer: channel.secret().reveal() for peer, channel in phase.channels.items()},
        "seed": phase.seed.reveal(),
        "own_share": phase.own_share.reveal(),
    }


def _make_shared(own: Own, agreed: RoundConfig, values: Values) -> Shared:
    me, present = own.device.id, frozenset(values["present"])
    graph = t.topology(agreed, present, values["transcript"])
    if me not in graph or not set(graph[me]) == values["pair_keys"].keys() == values["channels"].keys():
        raise PeerError("its keys are not those of its neighbours")
    context = keys.Context(agreed.run, agreed.round, values["transcript"])
    channels = {
        peer: keys.Channel(keys.Secret(key), context, me, peer, sealed=True) for peer, key in values["channels"].items()
    }
    pair_keys, seed, own_share = _secrets(values["pair_keys"]), keys.Secret(values["seed"]), values["own_share"]
    return Shared(own, agreed, values["transcript"], graph, present, pair_keys, channels, seed, keys.Secret(own_share))


def _take_masked(phase: Masked) -> Values:
    return {
        "transcript": phase.transcript,
        "present": tuple(phase.graph),
        "peers": tuple(phase.peers),
        "sharers": tuple(phase.sharers),
        "held": _revealed(phase.held),
    }


def _make_masked(own: Own, agreed: RoundConfig, values: Values) -> Masked:
    peers, sharers = frozenset(values["peers"]), frozenset(values["sharers"])
    _check_held(own, values["held"], peers, sharers)
    graph = t.topology(agreed, values["present"], values["transcript"])
    return Masked(own, agreed, values["transcript"], graph, peers, sharers, _secrets(values["held"]))


def _take_confirmed(phase: Confirmed) -> Values:
    return {
        "digest": phase.digest,
        "peers": tuple(phase.peers),
        "survivors": tuple(phase.survivors),
        "held": _revealed(phase.held),
    }


def _make_confirmed(own: Own, agreed: RoundConfig, values: Values) -> Confirmed:
    peers, survivors = frozenset(values["peers"]), frozenset(values["survivors"])
    _check_held(own, values["held"], peers, survivors | peers)
    return Confirmed(own, agreed, peers, survivors, values["digest"], _secrets(values["held"]))


def _check_held(own: Own, held: Mapping[int, bytes], peers: frozenset[int], known: frozenset[int]) -> None:
    if own.device.id not in known or not peers <= known or not held.keys() <= peers | {own.device.id}:
        raise PeerError("it holds shares of clients that are not its neighbours in this round")


_HASH, _SECRET = m.fixed(HASH_BYTES), m.fixed(m.KEY_BYTES)
_FORMS: Mapping[int, _Form] = MappingProxyType(
    {
        1: _Form(
            Advertised,
            {"mask": _SECRET, "channel": _SECRET, "advert": m.fixed(2 * m.KEY_BYTES + m.SIGNATURE_BYTES)},
            _take_advertised,
            _make_advertised,
        ),
        2: _Form(
            Shared,
            {
                "transcript": _HASH,
                "present": m.ids(),
                "pair_keys": m.pairs(m.KEY_BYTES),
                "channels": m.pairs(m.KEY_BYTES),
                "seed": _SECRET,
                "own_share": m.fixed(_SECRETS),
            },
            _take_shared,
            _make_shared,
        ),
        3: _Form(
            Masked,
            {
                "transcript": _HASH,
                "present": m.ids(),
                "peers": m.ids(),
                "sharers": m.ids(),
                "held": m.pairs(_SECRETS),
            },
            _take_masked,
            _make_masked,
        ),
        4: _Form(
            Confirmed,
            {"digest": _HASH, "peers": m.ids(), "survivors": m.ids(), "held": m.pairs(_SECRETS)},
            _take_confirmed,
            _make_confirmed,
        ),
        5: _Form(
            Ended,
            m.Abort.FIELDS,
            lambda phase: {"reason": phase.reason},
            lambda _, agreed, values: Ended(agreed, values["reason"]),
        ),
    }
)
_INVITED = 0  # nothing is agreed on yet, and there is nothing to write; an Ended client may not have been further


def pack(phase: Phase) -> bytes:
    """The bytes of a phase."""
    if isinstance(phase, Invited):
        return _checked(_HEAD.pack(VERSION, _INVITED, 0))
    number, form = next((number, form) for number, form in _FORMS.items() if form.kind is type(phase))
    config, values = phase.agreed.canonical if phase.agreed else b"", form.take(phase)
    body = b"".join(spec.write(values[name]) for name, spec in form.fields.items())
    return _checked(_HEAD.pack(VERSION, number, len(config)) + config + body)


def unpack(data: bytes, own: Own) -> Phase:
    """The phase that was packed, of the same client.

    Raises:
        PeerError: damaged, of another version, or of another client.

    """
    content = data[:-CHECKSUM_BYTES]
    if len(content) < _HEAD.size or _checked(content) != data:
        raise PeerError("a saved round is damaged")
    version, number, length = _HEAD.unpack_from(content)
    if version != VERSION or not (number == _INVITED or number in _FORMS):
        raise PeerError(f"a saved round of version {version}, phase {number}; this side knows version {VERSION}")
    if number == _INVITED:
        if len(content) > _HEAD.size:
            raise PeerError("a saved round that has not begun has something in it")
        return Invited(own)
    body = memoryview(content)[_HEAD.size :]
    agreed = RoundConfig.parse(bytes(body[:length])) if length else None
    form, body, values = _FORMS[number], body[length:], {}
    if agreed is None and form.kind is not Ended:
        raise PeerError("a saved round does not say which round")
    try:
        for name, spec in form.fields.items():
            values[name], body = spec.read(body, agreed)
        if body:
            raise PeerError(f"{len(body)} bytes follow its last field")
        return form.make(own, agreed, values)  # type: ignore[arg-type]  # only Ended takes None
    except (ValueError, PeerError) as error:
        raise PeerError(f"a saved round, {form.kind.__name__}: {error}") from None


def _checked(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()[:CHECKSUM_BYTES]
