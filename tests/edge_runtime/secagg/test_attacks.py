"""What a hostile server, client or network tries costs that client its part or ends the round: it never opens an input.

The names hold the numbers of the fault and attack cases. Attacks are made on the link between the real roles, or by a
server played by hand, and end in what each role says and sends.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

import edge_runtime as er
from edge_runtime.secagg import keys
from edge_runtime.secagg import messages as m
from edge_runtime.secagg import transcript as t
from edge_runtime.secagg.client import Client
from edge_runtime.secagg.config import Config, Policy, RoundConfig
from edge_runtime.secagg.device import Contribution
from edge_runtime.secagg.server import DeadlinePassed, Received
from edge_runtime.secagg.simulate import ANY_POLICY, Fleet, enrol, make_fleet

SETUP, ADVERTISE, ROSTER, SHARES, ROUTED, MASKED, SURVIVORS, CONFIRM, QUORUM, UNMASK, ABORT = range(1, 12)
Change = Callable[[object, int], object]


def make_inputs(n: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(n)
    return {client: rng.integers(-50, 51, 5) for client in range(n)}


def build(n: int = 6, threshold: int = 4, policy: Policy = ANY_POLICY, round_number: int = 1, **settings) -> Fleet:
    agreed = Config(threshold=threshold, **settings).for_round(run=1, round_number=round_number, clients=n, count=5)
    contributions = {client: Contribution(values) for client, values in make_inputs(n).items()}
    return make_fleet(contributions, agreed, enrol(list(contributions), policy))


def assert_exact(fleet: Fleet, survivors) -> None:
    outcome = fleet.server.outcome
    assert outcome.aborted is None
    assert outcome.survivors == set(survivors)
    inputs = make_inputs(len(fleet.clients))
    np.testing.assert_array_equal(outcome.sum, sum(inputs[client] for client in survivors))


def assert_aborted(fleet: Fleet) -> None:
    outcome = fleet.server.outcome
    assert outcome.aborted
    assert outcome.sum is None
    assert outcome.survivors == frozenset()
    assert {client.phase for client in fleet.clients.values()} == {"Ended"}


def changing(fleet: Fleet, kind: int, change: Change, only: set[int] | None = None, sent: list[int] | None = None):
    """A link that changes messages of one kind, and notes the kinds of what clients send."""

    def link(from_server: bool, client: int, data: bytes) -> bytes:
        if sent is not None and not from_server:
            sent.append(data[1])
        if data[1] != kind or (only is not None and client not in only):
            return data
        changed = change(m.decode(data, fleet.agreed), client)
        return changed if isinstance(changed, bytes) else m.encode(changed, fleet.agreed)

    return link


def flip(data: bytes, at: int = -1) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def advert(joined: bytes, **changes: bytes) -> bytes:
    fields = m.Advertise.split(joined)
    kept = {name: getattr(fields, name) for name in ("mask_key", "channel_key", "signature")}
    return m.Advertise(**(kept | changes)).joined


def up_to(fleet: Fleet, kind: int) -> dict[int, bytes]:
    """Play the round until the server sends messages of this kind; they are handed over, not delivered."""
    sends = fleet.server.start()
    while sends[0].data[1] != kind:
        answers = [(s.client, a) for s in sends for a in fleet.clients[s.client].receive(s.data)]
        sends = [s for client, a in answers for s in fleet.server.receive(Received(client, a))]
    return {send.client: send.data for send in sends}


# 9, 10, 11: what is asked at unmask


def test_case_09_both_secrets_of_one_client_in_one_request() -> None:
    for consistency in (True, False):
        fleet = build(consistency=consistency)
        for client, data in up_to(fleet, SURVIVORS).items():
            listed = m.decode(data, fleet.agreed)
            greedy = m.Survivors(listed.survivors, ((client + 1) % 6,))
            with pytest.raises(er.PeerError, match="both"):
                fleet.clients[client].receive(m.encode(greedy, fleet.agreed))
            assert fleet.clients[client].phase == "Ended"
            with pytest.raises(er.PeerError):
                fleet.clients[client].receive(data)  # not even the right one any more


@pytest.mark.parametrize("consistency", [True, False])
def test_case_10_a_client_answers_one_list_once(consistency: bool) -> None:
    fleet = build(consistency=consistency)
    honest = up_to(fleet, SURVIVORS)
    other = m.encode(m.Survivors((0, 1, 2, 3), (4, 5)), fleet.agreed)
    for client in (0, 1, 2, 3):
        (answer,) = fleet.clients[client].receive(honest[client])
        assert answer[1] == (CONFIRM if consistency else UNMASK)
        before = fleet.clients[client].phase
        for again in (other, honest[client]):
            with pytest.raises(er.PeerError, match="no place"):
                fleet.clients[client].receive(again)
        assert fleet.clients[client].phase == before


def test_case_10_a_quorum_for_another_list_is_refused() -> None:
    fleet = build()
    up_to(fleet, SURVIVORS)
    first = m.encode(m.Survivors((0, 1, 2, 3, 4), (5,)), fleet.agreed)
    second = m.encode(m.Survivors((0, 1, 2, 3), (4, 5)), fleet.agreed)
    signatures = {}
    for client in range(5):
        (answer,) = fleet.clients[client].receive(first if client in (0, 4) else second)
        signatures[client] = m.decode(answer, fleet.agreed).signature
    quorum = m.Quorum({client: signatures[client] for client in (1, 2, 3, 4)})
    with pytest.raises(er.PeerError, match="another list"):
        fleet.clients[0].receive(m.encode(quorum, fleet.agreed))
    assert fleet.clients[0].phase == "Ended"


def test_case_10_an_unmask_answer_holds_one_secret_of_each_client() -> None:
    fleet = build()
    answers = []
    link = changing(fleet, UNMASK, lambda message, _: answers.append(message) or message)
    drop = lambda s, c, d: None if not s and c == 5 and d[1] == MASKED else link(s, c, d)  # noqa: E731
    fleet.run(drop)
    assert_exact(fleet, range(5))
    assert len(answers) == 5
    for message in answers:
        assert set(message.seeds) == set(range(5))
        assert set(message.mask_keys) == {5}


def test_case_11_different_survivors_to_each_half() -> None:
    fleet = build(8, 5)
    up_to(fleet, SURVIVORS)
    lists = [m.Survivors(tuple(range(8)), ()), m.Survivors((0, 1, 2, 3, 4), (5, 6, 7))]
    halves = [{4, 5, 6, 7}, {0, 1, 2, 3}]
    signatures = {}
    for shown, half in zip(lists, halves, strict=True):
        for client in half:
            (answer,) = fleet.clients[client].receive(m.encode(shown, fleet.agreed))
            signatures[client] = m.decode(answer, fleet.agreed).signature
    for shown, half in zip(lists, halves, strict=True):
        for client in half:
            theirs = {peer: signatures[peer] for peer in half - {client}}
            everyones = {peer: signatures[peer] for peer in set(shown.survivors) - {client}}
            tried = copy.copy(fleet.clients[client]._phase)
            with pytest.raises(er.PeerError, match="are needed"):
                tried.receive(m.Quorum(theirs))
            with pytest.raises(er.PeerError, match="another list"):
                fleet.clients[client].receive(m.encode(m.Quorum(everyones), fleet.agreed))
            assert fleet.clients[client].phase == "Ended"


@pytest.mark.parametrize(
    ("survivors", "dropped", "why"),
    [
        ((1, 2, 3, 4, 5), (0,), "this client among the survivors"),
        ((0, 1, 2, 3, 4), (), "not those who shared"),
        ((0, 1, 2, 3, 4, 5, 6), (), "not those who shared"),
        ((0, 1, 2, 3, 4, 5), (6,), "not those who shared"),
        ((0, 1, 2), (3, 4, 5), "3 survivors, fewer"),
    ],
)
def test_case_11_a_list_of_survivors_that_is_not_of_this_round(survivors, dropped, why: str) -> None:
    fleet = build(7, 4)
    link = lambda s, c, d: None if not s and c == 6 and d[1] == SHARES else d  # noqa: E731
    change = changing(fleet, SURVIVORS, lambda _, __: m.Survivors(survivors, dropped), only={0})
    fleet.run(lambda s, c, d: change(s, c, d) if link(s, c, d) else None)
    assert [str(error) for client, error in fleet.refused if client == 0 and why in str(error)]
    assert_exact(fleet, range(6))  # the five others go on
    assert fleet.server.outcome.dropped["consistency"] == (0,)


@pytest.mark.parametrize(
    ("sharers", "why"),
    [
        ((1, 2, 3, 4, 5), "leaves this client out"),
        ((0, 1, 2, 3, 4, 6), "never advertised"),
        ((0, 1, 2), "3 clients shared, fewer"),
    ],
)
def test_case_12_a_list_of_sharers_that_is_not_of_this_round(sharers, why: str) -> None:
    fleet, sent = build(6, 4), []

    def other(message: m.Routed, client: int) -> m.Routed:
        return m.Routed(sharers, {peer: sealed for peer, sealed in message.sealed.items() if peer in sharers})

    link = changing(fleet, ROUTED, other, only={0}, sent=sent)
    fleet.run(link)
    assert [str(error) for client, error in fleet.refused if client == 0 and why in str(error)]
    assert sent.count(MASKED) == 5
    assert_exact(fleet, range(1, 6))


def test_a_quorum_signed_by_strangers_is_refused() -> None:
    fleet = build()
    quorums = up_to(fleet, QUORUM)
    signed = m.decode(quorums[0], fleet.agreed).signatures
    for signatures in (dict(list(signed.items())[:2]), signed | {0: signed[1]}, signed | {77: signed[1]}):
        tried = copy.copy(fleet.clients[0]._phase)
        with pytest.raises(er.PeerError, match=r"are needed|no surviving neighbour"):
            tried.receive(m.Quorum(signatures))


# 12 to 15: keys


def test_case_12_different_rosters_to_each_half() -> None:
    fleet = build(8, 5)
    rosters = up_to(fleet, ROSTER)
    adverts = m.decode(rosters[0], fleet.agreed).adverts
    # all the signatures are right; half of the clients see a cohort without client 7
    smaller = m.Roster({client: joined for client, joined in adverts.items() if client != 7})
    shares = {}
    for client in range(8):
        shown = m.Roster(adverts) if client in (4, 5, 6, 7) else smaller
        (answer,) = fleet.clients[client].receive(m.encode(shown, fleet.agreed))
        shares[client] = m.decode(answer, fleet.agreed).sealed
    for client in range(7):
        inbound = {peer: shares[peer][client] for peer in range(7) if peer != client}
        with pytest.raises(er.PeerError, match="saw the same round"):
            fleet.clients[client].receive(m.encode(m.Routed(tuple(range(7)), inbound), fleet.agreed))
        assert fleet.clients[client].phase == "Ended"


@pytest.mark.parametrize("field", ["mask_key", "channel_key", "signature"])
def test_case_13_a_key_or_signature_swapped_by_the_server(field: str) -> None:
    fleet, sent = build(), []
    mitm = keys.KeyPair.generate().public
    forged = {"signature": bytes(64)} if field == "signature" else {field: mitm}

    def swap(message: m.Roster, client: int) -> m.Roster:
        victim = (client + 1) % 6
        return m.Roster(message.adverts | {victim: advert(message.adverts[victim], **forged)})

    fleet.run(changing(fleet, ROSTER, swap, sent=sent))
    assert_aborted(fleet)
    assert set(sent) == {ADVERTISE}
    assert all("its signature is not under" in str(error) for _, error in fleet.refused)


def test_case_13_a_device_that_is_not_enrolled() -> None:
    fleet, sent = build(), []
    stranger = keys.DeviceKey.generate()
    pairs = [keys.KeyPair.generate().public for _ in range(2)]
    signed = m.Advertise(*pairs, t.sign_advert(stranger, fleet.agreed, 6, *pairs)).joined

    def add(message: m.Roster, client: int) -> m.Roster:
        adverts = {peer: joined for peer, joined in message.adverts.items() if peer != (client + 1) % 6}
        return m.Roster(adverts | {6: signed})

    fleet.run(changing(fleet, ROSTER, add, sent=sent))
    assert_aborted(fleet)
    assert set(sent) == {ADVERTISE}
    assert all("not enrolled" in str(error) for _, error in fleet.refused)


def test_case_13_an_advert_with_a_forged_signature_costs_its_client_alone() -> None:
    fleet = build()
    forge = lambda message, _: m.Advertise(message.mask_key, message.channel_key, bytes(64))  # noqa: E731
    fleet.run(changing(fleet, ADVERTISE, forge, only={2}))
    assert_exact(fleet, [0, 1, 3, 4, 5])


@pytest.mark.parametrize(("forgers", "aborted"), [({2}, False), ({2, 3}, False), ({2, 3, 4}, True)])
def test_case_13_a_forged_signature_under_the_survivors_counts_for_nothing(forgers: set[int], aborted: bool) -> None:
    """Six clients, four of whom must have signed: two forgers cost nothing, three the round."""
    fleet = build()
    fleet.run(changing(fleet, CONFIRM, lambda *_: m.Confirm(bytes(64)), only=forgers))
    if aborted:
        assert_aborted(fleet)
        assert all("another list, or none" in str(error) for _, error in fleet.refused)
    else:
        assert_exact(fleet, range(6))


def test_case_14_own_key_altered() -> None:
    fleet, sent = build(), []

    def alter(message: m.Roster, client: int) -> m.Roster:
        return m.Roster(message.adverts | {client: advert(message.adverts[client], mask_key=bytes(range(32)))})

    fleet.run(changing(fleet, ROSTER, alter, sent=sent))
    assert_aborted(fleet)
    assert set(sent) == {ADVERTISE}
    assert all("own keys" in str(error) for _, error in fleet.refused)


@pytest.mark.parametrize("field", ["mask_key", "channel_key"])
def test_case_14_a_key_that_is_already_anothers(field: str) -> None:
    """Rightly signed by the client that copies it: the server refuses the copy, and clients a roster that holds it."""
    fleet = build()
    rosters = up_to(fleet, ROSTER)
    adverts = m.decode(rosters[0], fleet.agreed).adverts
    split = {client: m.Advertise.split(joined) for client, joined in adverts.items()}
    fields = {name: getattr(split[3], name) for name in ("mask_key", "channel_key")} | {field: split[2].mask_key}
    signature = t.sign_advert(fleet.devices[3].key, fleet.agreed, 3, *fields.values())
    copied = m.Advertise(**fields, signature=signature)
    with pytest.raises(er.PeerError, match="two keys in the roster"):
        fleet.clients[0].receive(m.encode(m.Roster(adverts | {3: copied.joined}), fleet.agreed))
    assert fleet.clients[0].phase == "Ended"

    fleet = build()
    first: dict[str, bytes] = {}

    def copy_first(message: m.Advertise, client: int) -> m.Advertise:
        if client == 2:
            first["key"] = message.mask_key
            return message
        both = {"mask_key": message.mask_key, "channel_key": message.channel_key} | {field: first["key"]}
        return m.Advertise(**both, signature=t.sign_advert(fleet.devices[3].key, fleet.agreed, 3, *both.values()))

    fleet.run(changing(fleet, ADVERTISE, copy_first, only={2, 3}))
    assert_exact(fleet, [0, 1, 2, 4, 5])


def test_case_14_an_id_twice_and_itself_as_a_neighbour() -> None:
    fleet = build()
    rosters = up_to(fleet, ROSTER)
    data = bytearray(rosters[0])
    item = 8 + 128
    data[20 + item : 20 + 2 * item] = data[20 : 20 + item]  # the second client's entry becomes the first's
    with pytest.raises(er.PeerError, match="each once"):
        fleet.clients[0].receive(bytes(data))
    adverts = m.decode(rosters[0], fleet.agreed).adverts
    for degree in (0, 2, 4):
        agreed = Config(threshold=2, neighbours=degree).for_round(run=1, round_number=1, clients=6, count=5)
        assert all(client not in near for client, near in t.topology(agreed, adverts, bytes(32)).items())

    fleet = build()
    routed = m.decode(up_to(fleet, ROUTED)[0], fleet.agreed)
    with pytest.raises(er.PeerError, match="not those of this client's neighbours"):
        fleet.clients[0].receive(
            m.encode(m.Routed(routed.sharers, {**routed.sealed, 0: routed.sealed[1]}), fleet.agreed)
        )


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
@pytest.mark.parametrize("field", ["mask_key", "channel_key"])
def test_case_15_points_of_low_order(point: bytes, field: str) -> None:
    def weak(fleet: Fleet, message: m.Advertise, client: int) -> m.Advertise:
        both = {"mask_key": message.mask_key, "channel_key": message.channel_key} | {field: point}
        signature = t.sign_advert(fleet.devices[client].key, fleet.agreed, client, *both.values())
        return m.Advertise(**both, signature=signature)

    fleet = build()  # the server refuses that client, the others finish
    fleet.run(changing(fleet, ADVERTISE, lambda message, client: weak(fleet, message, client), only={2}))
    assert_exact(fleet, [0, 1, 3, 4, 5])
    assert any("low order" in str(error) for _, error in fleet.refused)

    fleet, sent = build(), []  # a server that lets it pass gets no shares

    def pass_on(message: m.Roster, _: int) -> m.Roster:
        return m.Roster(message.adverts | {2: weak(fleet, m.Advertise.split(message.adverts[2]), 2).joined})

    fleet.run(changing(fleet, ROSTER, pass_on, only={0, 1, 3, 4, 5}, sent=sent))
    assert_aborted(fleet)
    assert sent.count(SHARES) == 1  # of client 2 itself, who sees its own key unchanged


# 16 to 19: messages and shares


@pytest.mark.parametrize("kind", [ADVERTISE, SHARES, MASKED, CONFIRM, UNMASK])
@pytest.mark.parametrize("relabel", [False, True])
def test_case_16_replays_of_an_earlier_round(kind: int, relabel: bool) -> None:
    """Refused by the header; where a forger writes the new round's header, by what is signed and sealed."""
    fleet = build()
    recorded = {}

    def record(from_server: bool, client: int, data: bytes) -> bytes:
        if not from_server and client == 2:
            recorded[data[1]] = data
        return data

    fleet.run(record)
    agreed = Config(threshold=4).for_round(run=1, round_number=2, clients=6, count=5)
    later = make_fleet({c: Contribution(v) for c, v in make_inputs(6).items()}, agreed, fleet.devices)
    header = m.encode(m.Abort(""), agreed)[2:16]

    def replay(from_server: bool, client: int, data: bytes) -> bytes:
        if from_server or client != 2 or data[1] != kind:
            return data
        return recorded[kind][:2] + header + recorded[kind][16:] if relabel else recorded[kind]

    outcome = later.run(replay)
    if not relabel:
        assert any("another round" in str(error) for _, error in later.refused)
        assert_exact(later, [0, 1, 3, 4, 5] if kind in (ADVERTISE, SHARES, MASKED) else range(6))
    elif kind == ADVERTISE:  # signed for the other round
        assert any("not by the device" in str(error) for _, error in later.refused)
        assert outcome.aborted is None
    elif kind == CONFIRM:  # likewise: nobody counts it, and there are enough without
        assert_exact(later, range(6))
    elif kind == SHARES:  # sealed for the other round: nobody opens them, its secrets can't be rebuilt
        assert_aborted(later)
        assert "client 2" in outcome.aborted
    elif kind == UNMASK:
        assert_exact(later, range(6))
        assert outcome.culprits == {2}


def test_case_16_the_same_round_is_not_joined_twice() -> None:
    fleet = build()
    fleet.run()
    again = Client(fleet.devices[0], lambda _: Contribution(make_inputs(6)[0]))
    with pytest.raises(er.PeerError, match="took part"):
        again.receive(m.encode(m.Setup(fleet.agreed), None))


def test_case_17_ciphertexts_that_do_not_open_cost_one_share_each() -> None:
    def spoil(message: m.Routed, client: int) -> m.Routed:
        first, second, *_ = sorted(message.sealed)
        changed = {first: flip(message.sealed[first])} if client % 2 else {
            first: message.sealed[second], second: message.sealed[first]
        }  # fmt: skip
        return m.Routed(message.sharers, {**message.sealed, **changed})

    fleet = build(8, 4)
    unopened = {}
    link = changing(fleet, ROUTED, spoil, only={3, 6})

    def watch(from_server: bool, client: int, data: bytes) -> bytes | None:
        if not from_server and data[1] == MASKED:
            unopened[client] = m.decode(data, fleet.agreed).unopened
        if not from_server and client == 0 and data[1] == MASKED:
            return None  # and its mask key is to be rebuilt without the two
        return link(from_server, client, data)

    fleet.run(watch)
    assert_exact(fleet, range(1, 8))
    assert {client: len(peers) for client, peers in unopened.items() if peers} == {3: 1, 6: 2}


def test_case_17_a_truncated_ciphertext_costs_its_sender() -> None:
    fleet = build()
    fleet.run(changing(fleet, SHARES, lambda message, _: m.encode(message, fleet.agreed)[:-7], only={2}))
    assert_exact(fleet, [0, 1, 3, 4, 5])


@pytest.mark.parametrize("change", ["fewer", "stranger", "itself"])
def test_case_18_shares_for_others_than_its_neighbours(change: str) -> None:
    def alter(message: m.Shares, client: int) -> m.Shares:
        sealed = dict(message.sealed)
        one = sealed.pop(0) if change == "fewer" else sealed[0]
        extra = {"fewer": {}, "stranger": {77: one}, "itself": {client: one}}[change]
        return m.Shares(message.commitment, sealed | extra)

    fleet = build()
    fleet.run(changing(fleet, SHARES, alter, only={2}))
    assert_exact(fleet, [0, 1, 3, 4, 5])


def resealing(fleet: Fleet, attacker: int, alter: Callable[[int, bytes], bytes]):
    """A link on which one client seals altered contents: it knows its own channel keys."""
    derived: dict[int, keys.Secret] = {}
    state: dict[str, object] = {}

    def link(from_server: bool, client: int, data: bytes) -> bytes:
        if client != attacker:
            return data
        if from_server and data[1] == ROSTER:
            adverts = m.decode(data, fleet.agreed).adverts
            state["transcript"] = t.transcript(fleet.agreed, adverts)
            for peer, joined in adverts.items():
                if peer != attacker:
                    pair = fleet.clients[attacker]._phase.channel
                    derived[peer] = pair.derive(m.Advertise.split(joined).channel_key, keys.CHANNEL)
        if not from_server and data[1] == SHARES:
            message, sealed = m.decode(data, fleet.agreed), {}
            context = keys.Context(1, 1, state["transcript"])
            for peer, secret in derived.items():
                peers_end = keys.Channel(secret, context, peer, attacker)
                content = peers_end.open(message.sealed[peer])
                sealed[peer] = keys.Channel(secret, context, attacker, peer).seal(alter(peer, content))
            return m.encode(m.Shares(message.commitment, sealed), fleet.agreed)
        return data

    return link


@pytest.mark.parametrize("how", ["index", "duplicate"])
def test_case_18_a_share_with_another_index(how: str) -> None:
    def alter(peer: int, content: bytes) -> bytes:
        if peer in (0, 1):
            return (200 if how == "index" else 4).to_bytes(4, "little") + content[4:]
        return content

    fleet = build(7, 4)
    fleet.run(resealing(fleet, 2, alter))
    assert_exact(fleet, range(7))  # two say that it did not open; five others hold the right ones

    fleet = build(7, 4)
    fleet.run(resealing(fleet, 2, lambda _, content: b"\xff" + content[1:]))
    assert_aborted(fleet)
    assert "client 2" in fleet.server.outcome.aborted


def test_case_18_a_share_of_another_length_is_refused_with_its_message() -> None:
    fleet = build()
    short = lambda message, _: m.encode(message, fleet.agreed)[:-1]  # noqa: E731
    fleet.run(changing(fleet, UNMASK, short, only={2}))
    assert_exact(fleet, range(6))


@pytest.mark.parametrize("change", ["missing", "stranger", "both"])
def test_case_18_shares_that_were_not_asked_for(change: str) -> None:
    def alter(message: m.Unmask, _: int) -> m.Unmask:
        seeds = dict(message.seeds)
        if change == "missing":
            seeds.pop(0)
        if change == "stranger":
            seeds[99] = bytes(32)
        return m.Unmask(seeds, {1: bytes(32)} if change == "both" else message.mask_keys)

    fleet = build()
    fleet.run(changing(fleet, UNMASK, alter, only={2}))
    assert_exact(fleet, range(6))
    assert fleet.server.outcome.dropped["unmask"] == (2,)


@pytest.mark.parametrize("liars", [{2}, {0}, {0, 5}])
@pytest.mark.parametrize("dropped", [False, True])
def test_case_19_wrong_shares_are_found_and_their_holders_named(liars: set[int], dropped: bool) -> None:
    def lie(message: m.Unmask, _: int) -> m.Unmask:
        return m.Unmask(
            {owner: flip(share) for owner, share in message.seeds.items()},
            {owner: flip(share, 0) for owner, share in message.mask_keys.items()},
        )

    fleet = build(8, 4)
    link = changing(fleet, UNMASK, lie, only=liars)
    fleet.run(lambda s, c, d: None if dropped and not s and c == 7 and d[1] == MASKED else link(s, c, d))
    assert_exact(fleet, range(7) if dropped else range(8))
    assert fleet.server.outcome.culprits == liars


@pytest.mark.parametrize("secret", ["seeds", "mask_keys"])
def test_case_19_one_wrong_share_of_one_secret(secret: str) -> None:
    def lie(message: m.Unmask, _: int) -> m.Unmask:
        shares = {"seeds": dict(message.seeds), "mask_keys": dict(message.mask_keys)}
        owner = max(shares[secret])
        shares[secret][owner] = flip(shares[secret][owner])
        return m.Unmask(**shares)

    fleet = build(7, 5)
    link = changing(fleet, UNMASK, lie, only={1})
    fleet.run(lambda s, c, d: None if not s and c == 6 and d[1] == MASKED else link(s, c, d))
    assert_exact(fleet, range(6))
    assert fleet.server.outcome.culprits == {1}


def test_case_19_too_many_wrong_shares_end_the_round_without_a_sum() -> None:
    fleet = build(6, 4)
    lie = lambda message, _: m.Unmask({o: flip(s) for o, s in message.seeds.items()}, {})  # noqa: E731
    fleet.run(changing(fleet, UNMASK, lie, only={0, 1, 2}))
    assert_aborted(fleet)
    assert "too many are wrong" in fleet.server.outcome.aborted
    assert fleet.server.outcome.opened == set(range(6)), "a server that works with one of the liars has the sum"


def test_case_11_survivors_in_parts_would_open_the_sum_of_each() -> None:
    """On a ring of 12 with two neighbours each, the server says that those beside a pair are gone."""
    fleet = build(12, 2, Policy(), neighbours=2, min_clients=3)
    up_to(fleet, SURVIVORS)
    graph = t.topology(fleet.agreed, fleet.clients, fleet.clients[0]._phase.transcript)
    ring = list(graph)
    gone = {ring[0], ring[3]}
    listed = m.encode(m.Survivors(tuple(set(ring) - gone), tuple(gone)), fleet.agreed)
    for client in set(ring) - gone:
        with pytest.raises(er.PeerError, match="fall into parts"):
            fleet.clients[client].receive(listed)


def test_neighbours_that_drop_around_some_survivors_end_the_round() -> None:
    fleet = build(12, 2, neighbours=2)
    gone: set[int] = set()

    def link(from_server: bool, client: int, data: bytes) -> bytes | None:
        if from_server and data[1] == ROUTED and not gone:
            ring = list(t.topology(fleet.agreed, fleet.clients, fleet.clients[client]._phase.transcript))
            gone.update((ring[0], ring[3]))
        return None if client in gone else data

    fleet.run(link)
    assert fleet.server.outcome.aborted
    assert "share no masks" in fleet.server.outcome.aborted
    assert fleet.server.outcome.sum is None


# 20 to 24: settings, order, form


@pytest.mark.parametrize(
    ("policy", "settings", "why"),
    [
        (Policy(min_threshold=5), {}, "floor of 5"),
        (Policy(), {"threshold": 6}, "above the 5 neighbours"),
        (Policy(), {"threshold": 3, "neighbours": 2}, "above the 2 neighbours"),
        (Policy(corrupt=4), {}, "4 clients that may be corrupt"),
        (Policy(min_clients=7), {}, "floor of 7"),
        (Policy(min_clients=4), {"min_clients": 3}, "floor of 4"),
        (Policy(malicious_server=True), {"threshold": 3}, "two quorums"),
        (Policy(malicious_server=True), {"consistency": False}, "consistency"),
        (Policy(bits=frozenset({16, 21})), {"bits": 32}, "bits 32"),
        (Policy(prgs=frozenset({"chacha20"})), {"prg": "aes-128-ctr"}, "prg"),
        (Policy(max_clip=1.0), {"clip": "2.5"}, "clip"),
        (Policy(max_clip=1.0), {"clip": "nan"}, "clip"),
        (Policy(max_clip=1.0), {}, "clip"),
        (Policy(noise=frozenset({"skellam 5"})), {"noise": "skellam 1"}, "noise"),
        (Policy(max_values=4), {}, "5 values"),
    ],
)
def test_case_20_settings_below_the_clients_floor(policy: Policy, settings, why: str) -> None:
    fleet = build(6, settings.pop("threshold", 4), policy, **{"min_clients": 3, **settings})
    setup = m.encode(m.Setup(fleet.agreed), None)
    with pytest.raises(er.PeerError, match=why):
        fleet.clients[0].receive(setup)
    assert fleet.clients[0].phase == "Ended"
    assert_aborted_after(fleet)


def assert_aborted_after(fleet: Fleet) -> None:
    fleet.run()
    assert_aborted(fleet)


def test_case_20_a_cohort_that_shrinks_below_the_floor() -> None:
    policy = Policy(min_clients=5)
    fleet, sent = build(6, 3, policy, min_clients=5), []
    fleet.run(changing(fleet, ROSTER, lambda r, _: m.Roster(dict(list(r.adverts.items())[:4])), sent=sent))
    assert_aborted(fleet)
    assert set(sent) == {ADVERTISE}


@pytest.mark.parametrize(
    "settings", [{"bits": 32}, {"threshold": 3}, {"clip": "9"}, {"prg": "aes-128-ctr"}, {"max_abs": 1}, {"noise": "no"}]
)
def test_case_21_settings_changed_after_setup_or_per_client(settings) -> None:
    assert_split_rounds_share_nothing(Config(**{"threshold": 4, **settings}), b"\0" * 32)


def test_case_22_different_models_to_different_clients() -> None:
    fleet = build()
    other = Config(threshold=4).for_round(run=1, round_number=1, clients=6, count=5, model_hash=b"m" * 32)
    with pytest.raises(er.PeerError, match="another model"):
        fleet.clients[0].receive(m.encode(m.Setup(other), None))
    assert_split_rounds_share_nothing(Config(threshold=4), b"m" * 32)


def assert_split_rounds_share_nothing(config: Config, model_hash: bytes) -> None:
    """Half of the clients are told other settings. Nothing they signed serves for the others' round."""
    fleet = build()
    other = config.for_round(run=1, round_number=1, clients=6, count=5, model_hash=model_hash)
    told = {client: fleet.agreed if client < 3 else other for client in range(6)}
    for client in (3, 4, 5):
        update = fleet.clients[client]._phase.own.update
        fleet.clients[client] = Client(fleet.devices[client], update, other.model_hash)
    adverts = {}
    for client, agreed in told.items():
        (answer,) = fleet.clients[client].receive(m.encode(m.Setup(agreed), None))
        adverts[client] = m.decode(answer, agreed).joined
        with pytest.raises(er.PeerError, match="no place"):  # nor are they changed once they are agreed on
            fleet.clients[client].receive(m.encode(m.Setup(told[(client + 3) % 6]), None))
        assert fleet.clients[client].phase == "Advertised"
    for client, agreed in told.items():
        with pytest.raises(er.PeerError, match="these keys, settings and model"):
            fleet.clients[client].receive(m.encode(m.Roster(adverts), agreed))
        assert fleet.clients[client].phase == "Ended"


def test_case_23_messages_out_of_place_change_nothing() -> None:
    """Before each message every other kind of message is tried on both sides; the round still ends exact."""
    fleet = build()
    recorded: dict[int, bytes] = {}
    build(6, 4).run(lambda _, __, data: recorded.setdefault(data[1], data) and data)  # the same settings, other keys
    assert len(recorded) == 10
    place_client = {"Invited": SETUP, "Advertised": ROSTER, "Shared": ROUTED, "Masked": SURVIVORS, "Confirmed": QUORUM}
    place_server = {"Advertising": ADVERTISE, "Sharing": SHARES, "Masking": MASKED, "Confirming": CONFIRM}
    place_server["Unmasking"] = UNMASK
    tried = 0

    def link(from_server: bool, client: int, data: bytes) -> bytes:
        nonlocal tried
        role = fleet.clients[client] if from_server else fleet.server
        place = place_client if from_server else place_server
        for kind, other in recorded.items():
            if place.get(role.phase) == kind:
                continue
            before = role.phase
            with pytest.raises(er.PeerError):
                role.receive(other if from_server else Received(client, other))
            assert role.phase == before
            tried += 1
        for junk in (b"", data[:10], data[:1] + b"\x63" + data[2:], b"\x02" + data[1:], data + b"\0"):
            with pytest.raises(er.PeerError):
                role.receive(junk if from_server else Received(client, junk))
        if not from_server:
            with pytest.raises(er.PeerError):
                fleet.server.receive(Received(99, data))
        return data

    fleet.run(link)
    assert_exact(fleet, range(6))
    assert tried == 2 * 5 * 6 * 9


@pytest.mark.parametrize("kind", [ADVERTISE, SHARES, MASKED, CONFIRM])
def test_case_23_a_message_sent_twice_counts_once(kind: int) -> None:
    fleet = build()

    def link(from_server: bool, client: int, data: bytes) -> bytes | None:
        if not from_server and client == 2 and data[1] == kind:
            fleet.server.receive(Received(client, data))
            with pytest.raises(er.PeerError, match="twice"):
                fleet.server.receive(Received(client, data))
        return data

    fleet.run(link)
    assert_exact(fleet, range(6))


@pytest.mark.parametrize("how", ["short", "long", "uint32", "empty"])
def test_case_24_a_masked_vector_of_another_form(how: str) -> None:
    fleet = build()

    def reshape(message: m.MaskedInput, _: int) -> m.MaskedInput | bytes:
        wrong = {
            "short": message.words[:-1],
            "long": np.append(message.words, message.words),
            "empty": message.words[:0],
        }
        if how == "uint32":
            data = m.encode(message, fleet.agreed)
            half = message.words.astype("<u4").tobytes()
            return data[:16] + half + data[16 + message.words.nbytes :]
        return m.MaskedInput(wrong[how], message.unopened)

    fleet.run(changing(fleet, MASKED, reshape, only={2}))
    assert_exact(fleet, [0, 1, 3, 4, 5])
    assert fleet.server.outcome.dropped["masked_input"] == (2,)


def test_case_24_words_have_one_byte_order_on_the_wire() -> None:
    fleet = build()
    words = np.array([1, 2**56], np.uint64)
    agreed = Config(threshold=4).for_round(run=1, round_number=1, clients=6, count=8)
    both = [m.encode(m.MaskedInput(array, ()), agreed) for array in (words, words.astype(">u8"))]
    assert both[0] == both[1]
    np.testing.assert_array_equal(m.decode(both[0], agreed).words, words)
    fleet.run(changing(fleet, MASKED, lambda message, _: m.MaskedInput(message.words, (77,)), only={2}))
    assert_exact(fleet, [0, 1, 3, 4, 5])  # and it names no share that it was not sent


@pytest.mark.parametrize("seed", range(40))
def test_case_23_changed_bytes_cost_at_most_the_round(seed: int) -> None:
    """Any message but a masked input may be changed anywhere: the exact sum or a clean abort, and only PeerErrors."""
    draw = random.Random(seed)
    fleet = build(7, 3)
    chance = draw.choice([0.03, 0.1, 0.3])

    def link(from_server: bool, client: int, data: bytes) -> bytes:
        if data[1] == MASKED or draw.random() > chance:
            return data
        at, changed = draw.randrange(len(data)), bytearray(data)
        match draw.randrange(4):
            case 0:
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                changed[at:at] = draw.randbytes(draw.randint(1, 40))
            case 3:
                changed[at : at + 4] = draw.choice([b"\0", b"\xff"]) * 4
        return bytes(changed)

    outcome = fleet.run(link)
    if outcome.aborted:
        assert_aborted(fleet)
    else:
        assert_exact(fleet, outcome.survivors)


def test_case_38_fewer_survivors_than_the_noise_needs_end_the_round_before_unmask() -> None:
    fleet, sent = build(7, 3, min_survivors=6, noise="skellam"), []
    note = changing(fleet, 0, lambda message, _: message, sent=sent)
    fleet.run(lambda s, c, d: None if not s and c in (1, 2) and d[1] == MASKED else note(s, c, d))
    assert_aborted(fleet)
    assert "6 are needed" in fleet.server.outcome.aborted
    assert set(sent) == {ADVERTISE, SHARES, MASKED}

    fleet, sent = build(7, 3, min_survivors=6, noise="skellam"), []  # nor does a client answer a server that goes on
    fewer = m.Survivors((0, 3, 4, 5, 6), (1, 2))
    fleet.run(changing(fleet, SURVIVORS, lambda _, __: fewer, sent=sent))
    assert_aborted(fleet)
    assert set(sent) == {ADVERTISE, SHARES, MASKED}


# 41, 42: what is shown, and how large it may be


def test_case_41_no_secret_in_what_is_shown() -> None:
    drawn: list[bytes] = []

    def source(nbytes: int) -> bytes:
        drawn.append(os.urandom(nbytes))
        return drawn[-1]

    shown: list[str] = []

    def look(fleet: Fleet) -> None:
        for client in fleet.clients.values():
            phase = client._phase
            shown.append(repr(Contribution(inputs[0])))
            shown.extend(map(repr, (client, phase, fleet.devices, fleet.server, fleet.server._phase)))
            shown.extend(map(repr, (getattr(phase, name) for name in phase.__slots__ if name != "graph")))

    agreed = Config(threshold=4).for_round(run=1, round_number=1, clients=6, count=5)
    inputs = {client: np.full(5, 101 + client) for client in range(6)}
    devices = enrol(list(inputs), random=source)
    fleet = make_fleet({c: Contribution(v) for c, v in inputs.items()}, agreed, devices, source)

    def link(from_server: bool, client: int, data: bytes) -> bytes | None:
        look(fleet)
        message = m.decode(data, agreed)
        shown.append(repr(message))
        if data[1] == UNMASK:
            drawn.extend([*message.seeds.values(), *message.mask_keys.values()])
        if data[1] == QUORUM and client == 0:
            return m.encode(m.Quorum({}), agreed)  # one client fails with all its shares in hand
        if data[1] == UNMASK and client in (1, 2):
            return m.encode(m.Unmask({o: flip(s) for o, s in message.seeds.items()}, {}), agreed)
        return None if not from_server and client == 5 and data[1] == MASKED else data

    outcome = fleet.run(link)
    assert outcome.aborted  # too few right shares were left
    shown += [outcome.aborted, repr(outcome), *(repr(error) + str(error) for _, error in fleet.refused)]
    text = "\n".join(shown)
    pieces = [secret[at : at + 8] for secret in drawn for at in range(0, len(secret) - 7, 8)]
    assert len(pieces) > 300
    assert not [piece for piece in pieces if piece.hex() in text or repr(piece)[2:-1] in text]
    assert not [client for client in inputs if f"{101 + client}, {101 + client}" in text]


def test_case_41_secrets_are_gone_after_an_abort() -> None:
    for kind in (ROSTER, ROUTED, SURVIVORS, QUORUM):
        fleet = build()
        up_to(fleet, kind)
        phases = {client: fleet.clients[client]._phase for client in fleet.clients}
        farewell = m.encode(m.Abort("the server stops"), fleet.agreed)
        for client in fleet.clients.values():
            assert client.receive(farewell) == []
            assert client.phase == "Ended"
        for phase in phases.values():
            held = [getattr(phase, name, None) for name in ("seed", "own_share", "mask", "channel")]
            held += [*getattr(phase, "held", {}).values(), *getattr(phase, "pair_keys", {}).values()]
            for secret in filter(None, held):
                with pytest.raises(ValueError, match="wiped"):
                    secret.reveal() if isinstance(secret, keys.Secret) else secret.secret()
            assert not getattr(phase, "channels", None)


def test_case_41_an_aborted_round_ends_for_clients_that_were_late_too() -> None:
    fleet = build()
    held = up_to(fleet, SURVIVORS)
    for client in (0, 1, 2):
        (answer,) = fleet.clients[client].receive(held[client])
        fleet.server.receive(Received(client, answer))
    farewells = fleet.server.receive(DeadlinePassed())  # 3 of 4 signatures
    assert fleet.server.outcome.aborted
    assert {send.client for send in farewells} == set(range(6))
    for send in farewells:
        fleet.clients[send.client].receive(send.data)
    assert_aborted(fleet)


@pytest.mark.parametrize("kind", [SHARES, UNMASK, ROSTER, ROUTED, SURVIVORS, QUORUM, MASKED, ADVERTISE, CONFIRM])
@pytest.mark.parametrize("how", ["huge", "huge count", "many shares"])
def test_case_42_oversize_messages_are_refused_in_little_memory(kind: int, how: str) -> None:
    agreed = build().agreed
    header = m.encode(m.Abort(""), agreed)[:16]
    start = header[:1] + bytes([kind]) + header[2:]
    data = {
        "huge": start + bytes(30_000_000),
        "huge count": start + b"\xff" * 40,
        "many shares": start + bytes(32) + (10**5).to_bytes(4, "little") + bytes(10**5 * 92),
    }[how]
    tracemalloc.start()
    with pytest.raises(er.PeerError):
        m.decode(data, agreed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("nbytes", [0, 3, 100, 5000, 10**7])
def test_case_42_setups_are_bounded_and_canonical(nbytes: int) -> None:
    with pytest.raises(er.PeerError):
        m.decode(bytes([m.VERSION, SETUP]) + bytes(14 + nbytes), None)
    right = build().agreed.canonical
    assert RoundConfig.parse(right).canonical == right
    for at in range(len(right)):
        changed = flip(right, at)
        with contextlib.suppress(er.PeerError):  # refused, or another round
            assert RoundConfig.parse(changed).digest != RoundConfig.parse(right).digest
    with pytest.raises(er.PeerError):
        RoundConfig.parse(right + b"\0")
