"""The phases of a client in one round: what each holds, takes, and answers.

    Invited -> Advertised -> Shared -> Masked -> Confirmed -> Ended

A phase is never changed: `receive` gives the next one. It raises PeerError for what is in place and wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

from edge_runtime.errors import PeerError
from edge_runtime.secagg import keys, masks, shamir
from edge_runtime.secagg import messages as m
from edge_runtime.secagg import transcript as t
from edge_runtime.secagg.config import RoundConfig
from edge_runtime.secagg.device import Device, Update
from edge_runtime.secagg.graph import Neighbours

_INDEX_BYTES = 4


@dataclass(frozen=True, slots=True, repr=False)
class Own:
    """What does not change while the client is in the round."""

    device: Device
    update: Update
    model_hash: bytes
    random: Callable[[int], bytes]


@dataclass(frozen=True, slots=True, repr=False)
class Ended:
    """Nothing is left: no secret, no input."""

    agreed: RoundConfig | None
    reason: str

    def receive(self, message: m.Message) -> tuple[Phase, m.Message]:
        raise PeerError("the round is over for this client")

    def wipe(self) -> None:
        """There is nothing to wipe."""


@dataclass(frozen=True, slots=True, repr=False)
class Invited:
    """It knows its device and its input, and no round yet."""

    own: Own
    agreed: None = None

    def receive(self, message: m.Setup) -> tuple[Advertised, m.Advertise]:
        """Check the settings against our own floor, then make keys for this round alone."""
        agreed, own, device = message.config, self.own, self.own.device
        device.policy.check_config(agreed)
        if agreed.model_hash != own.model_hash:
            raise PeerError("the round is about another model or task than this client has")
        if (agreed.run, agreed.round) in device.rounds_seen:
            raise PeerError(f"run {agreed.run} round {agreed.round}: this client took part in it before")
        device.rounds_seen.add((agreed.run, agreed.round))
        mask, channel = keys.KeyPair.generate(own.random), keys.KeyPair.generate(own.random)
        signature = t.sign_advert(device.key, agreed, device.id, mask.public, channel.public)
        advert = m.Advertise(mask.public, channel.public, signature)
        return Advertised(own, agreed, mask, channel, advert), advert

    def wipe(self) -> None:
        """No secret is made yet."""


@dataclass(frozen=True, slots=True, repr=False)
class Advertised:
    """Its keys are known to the server."""

    own: Own
    agreed: RoundConfig
    mask: keys.KeyPair
    channel: keys.KeyPair
    advert: m.Advertise

    def receive(self, message: m.Roster) -> tuple[Shared, m.Shares]:
        """Verify everyone we are about to share with, then share the two secrets among them."""
        me, agreed = self.own.device.id, self.agreed
        transcript = t.transcript(agreed, message.adverts)
        graph = self._verified_graph(message.adverts, transcript)
        context = keys.Context(agreed.run, agreed.round, transcript)
        pair_keys: dict[int, keys.Secret] = {}
        channels: dict[int, keys.Channel] = {}
        for peer in graph[me]:
            advert = m.Advertise.split(message.adverts[peer])
            pair_keys[peer] = self.mask.derive(advert.mask_key, keys.MASK)
            channels[peer] = keys.Channel(self.channel.derive(advert.channel_key, keys.CHANNEL), context, me, peer)

        seed = keys.Secret.draw(self.own.random)
        secret = seed.reveal() + self.mask.secret().reveal()
        shares = shamir.split(secret, len(graph[me]) + 1, agreed.settings.threshold, self.own.random)
        sealed = {}
        for peer in graph[me]:
            index = t.share_index(me, graph[me], peer)
            sealed[peer] = channels[peer].seal(index.to_bytes(_INDEX_BYTES, "little") + shares[index - 1])
        # our own share: a survivor gives it like any other, so `threshold` clients in all are enough
        own_share = shares[t.share_index(me, graph[me], me) - 1]
        commitment = t.commit_seed(seed, transcript, me)
        self.wipe()
        phase = Shared(
            self.own, agreed, transcript, graph, frozenset(message.adverts), pair_keys, channels, seed,
            keys.Secret(own_share),
        )  # fmt: skip
        return phase, m.Shares(commitment, sealed)

    def _verified_graph(self, adverts: Mapping[int, bytes], transcript: bytes) -> Neighbours:
        me, agreed, device = self.own.device.id, self.agreed, self.own.device
        if adverts.get(me) != self.advert.joined:
            raise PeerError("this client's own keys are not in the roster as it sent them")
        if len(adverts) < max(agreed.settings.min_clients, device.policy.floor):
            raise PeerError(f"{len(adverts)} clients advertised, fewer than the round or this client asks for")
        device.policy.check_degree(agreed, agreed.degree(len(adverts)))
        public = {joined[at : at + m.KEY_BYTES] for joined in adverts.values() for at in (0, m.KEY_BYTES)}
        if len(public) != 2 * len(adverts):
            raise PeerError("two keys in the roster are the same")
        graph = t.topology(agreed, adverts, transcript)
        for peer in graph[me]:
            if peer not in device.enrolled:
                raise PeerError(f"client {peer} is not enrolled here")
            try:
                t.verify_advert(device.enrolled[peer], agreed, peer, m.Advertise.split(adverts[peer]))
            except PeerError:
                raise PeerError(f"client {peer}: its signature is not under these keys, settings and model") from None
        return graph

    def wipe(self) -> None:
        """Forget both secret keys."""
        self.mask.wipe()
        self.channel.wipe()


@dataclass(frozen=True, slots=True, repr=False)
class Shared:
    """Its two secrets are in its neighbours' hands."""

    own: Own
    agreed: RoundConfig
    transcript: bytes
    graph: Neighbours
    present: frozenset[int]
    pair_keys: dict[int, keys.Secret]
    channels: dict[int, keys.Channel]
    seed: keys.Secret
    own_share: keys.Secret

    def receive(self, message: m.Routed) -> tuple[Masked, m.MaskedInput]:
        """Open what the neighbours sealed for us, then mask the input with the seed and each of their keys.

        A neighbour whose shares do not open is still masked against: it masks against us too, and only both cancel.
        """
        me, sharers = self.own.device.id, frozenset(message.sharers)
        peers = sharers.intersection(self.graph[me])
        if me not in sharers or not sharers <= self.present:
            raise PeerError("the list of those who shared leaves this client out, or holds one that never advertised")
        settings = self.agreed.settings
        floor = max(settings.threshold, settings.min_clients, self.own.device.policy.floor)
        if len(sharers) < floor:
            raise PeerError(f"{len(sharers)} clients shared, fewer than the {floor} that are asked for")
        if message.sealed.keys() != peers:
            raise PeerError("the shares that came are not those of this client's neighbours among those who shared")
        opened = {peer: self._open(peer, sealed) for peer, sealed in message.sealed.items()}
        held = {peer: share for peer, share in opened.items() if share is not None}
        if len(held) + 1 < settings.threshold:  # bound to the transcript: the others may have seen another roster
            raise PeerError(f"only {len(held)} neighbours' shares open; too few clients saw the same round as this one")

        words = self.own.update(self.agreed).words(self.agreed)
        masks.apply_masks(
            words,
            add=[self.seed.reveal(), *(self.pair_keys[peer].reveal() for peer in peers if me < peer)],
            subtract=[self.pair_keys[peer].reveal() for peer in peers if me > peer],
            prg=self.agreed.settings.prg,
        )
        held[me] = keys.Secret(self.own_share.reveal())
        self.wipe()
        phase = Masked(self.own, self.agreed, self.transcript, self.graph, peers, sharers, held)
        return phase, m.MaskedInput(words, tuple(peer for peer, share in opened.items() if share is None))

    def _open(self, peer: int, sealed: bytes) -> keys.Secret | None:
        try:
            content = self.channels[peer].open(sealed)
        except PeerError:
            return None
        index = int.from_bytes(content[:_INDEX_BYTES], "little")
        expected = t.share_index(peer, self.graph[peer], self.own.device.id)
        if index != expected or len(content) != _INDEX_BYTES + 2 * m.SHARE_BYTES:
            return None
        return keys.Secret(content[_INDEX_BYTES:])

    def wipe(self) -> None:
        """Forget the seed, the masks' keys and the channels."""
        for secret in (*self.pair_keys.values(), self.seed, self.own_share):
            secret.wipe()
        for channel in self.channels.values():
            channel.wipe()
        self.channels.clear()


@dataclass(frozen=True, slots=True, repr=False)
class Masked:
    """Its masked input is out; it holds its neighbours' shares and nothing of its own but one share."""

    own: Own
    agreed: RoundConfig
    transcript: bytes
    graph: Neighbours
    peers: frozenset[int]
    sharers: frozenset[int]
    held: dict[int, keys.Secret]

    def receive(self, message: m.Survivors) -> tuple[Confirmed | Ended, m.Confirm | m.Unmask]:
        """Check the list we are shown and sign it: from now on it is the only one we answer for."""
        survivors, dropped = frozenset(message.survivors), frozenset(message.dropped)
        if survivors & dropped:
            raise PeerError("a client is listed both as a survivor and as dropped: both its secrets were asked for")
        if survivors | dropped != self.sharers or self.own.device.id not in survivors:
            raise PeerError("survivors and dropped are not those who shared, with this client among the survivors")
        if len(survivors) < max(self.agreed.fewest_survivors, self.own.device.policy.floor):
            raise PeerError(f"{len(survivors)} survivors, fewer than the round or this client asks for")
        if not self.graph.joins(survivors):
            raise PeerError("the survivors fall into parts that share no mask: the sum of each would be open")
        digest = t.survivors_digest(self.transcript, survivors, dropped)
        confirmed = Confirmed(self.own, self.agreed, self.peers, survivors, digest, self.held)
        if not self.agreed.settings.consistency:
            return confirmed.unmask()
        return confirmed, m.Confirm(t.sign_survivors(self.own.device.key, digest))

    def wipe(self) -> None:
        """Forget the shares."""
        for secret in self.held.values():
            secret.wipe()


@dataclass(frozen=True, slots=True, repr=False)
class Confirmed:
    """It signed one list of survivors."""

    own: Own
    agreed: RoundConfig
    peers: frozenset[int]
    survivors: frozenset[int]
    digest: bytes
    held: dict[int, keys.Secret]

    def receive(self, message: m.Quorum) -> tuple[Ended, m.Unmask]:
        """Unmask once `threshold` clients, this one counted in, signed the same list.

        The server passes signatures on unverified: one that is wrong counts for nothing, and costs nobody the round.
        """
        if not message.signatures.keys() <= self.survivors & self.peers:
            raise PeerError("a signature is of a client that is no surviving neighbour")
        needed = self.agreed.settings.threshold - 1
        signed = islice(filter(self._signed, sorted(message.signatures.items())), needed)
        if (count := sum(1 for _ in signed)) < needed:
            raise PeerError(
                f"{count + 1} signed the list of survivors that this client was shown, {needed + 1} are needed; "
                "the others signed another list, or none"
            )
        return self.unmask()

    def _signed(self, peer_and_signature: tuple[int, bytes]) -> bool:
        peer, signature = peer_and_signature
        try:
            t.verify_survivors(self.own.device.enrolled[peer], self.digest, signature)
        except PeerError:
            return False
        return True

    def unmask(self) -> tuple[Ended, m.Unmask]:
        """A seed's share or a mask key's share of each client, never both."""
        seeds, mask_keys = {}, {}
        for owner, share in self.held.items():
            if owner in self.survivors:
                seeds[owner] = share.reveal()[: m.SHARE_BYTES]
            else:
                mask_keys[owner] = share.reveal()[m.SHARE_BYTES :]
        self.wipe()
        return Ended(self.agreed, "done"), m.Unmask(seeds, mask_keys)

    def wipe(self) -> None:
        """Forget the shares."""
        for secret in self.held.values():
            secret.wipe()


Phase = Invited | Advertised | Shared | Masked | Confirmed | Ended
