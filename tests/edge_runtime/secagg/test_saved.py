"""A client that lives on as bytes between messages is the same client; bytes that are not its own are refused."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_runtime as er
from edge_runtime.secagg.client import Client
from edge_runtime.secagg.config import Config, RoundConfig
from edge_runtime.secagg.device import Contribution, Device, Packed
from edge_runtime.secagg.saved import CHECKSUM_BYTES
from edge_runtime.secagg.server import Outcome, Received, Server
from edge_runtime.secagg.simulate import ANY_POLICY, Fleet, drop_link, enrol
from edge_runtime.secagg.transitions import CLIENT, PHASES

INPUTS = {client: np.arange(5) * client - 7 for client in range(6)}


class Restarted:
    """A client that exists only while it handles a message. `note` sees every saved form of it."""

    def __init__(self, device: Device, note: Callable[[Client, bytes], None] = lambda *_: None) -> None:
        self._device, self._note = device, note
        self.saved = Client(device, self._update).save()

    def _update(self, agreed: RoundConfig) -> Packed:
        return Packed(Contribution(INPUTS[self._device.id]).words(agreed))

    def restore(self, data: bytes | None = None) -> Client:
        return Client.restore(self.saved if data is None else data, self._device, self._update)

    def receive(self, data: bytes) -> list[bytes]:
        client = self.restore()
        try:
            return client.receive(data)
        finally:
            self.saved = client.save()
            self._note(client, self.saved)

    def end(self, reason: str = "left") -> None:
        client = self.restore()
        client.end(reason)
        self.saved = client.save()

    @property
    def phase(self) -> str:
        return self.restore().phase


def build(note: Callable[[Client, bytes], None] = lambda *_: None, **changes: object) -> Fleet:
    config = Config(**{"threshold": 3, **changes})
    agreed = config.for_round(run=3, round_number=4, clients=len(INPUTS), count=5)
    devices = enrol(list(INPUTS), ANY_POLICY)
    clients = {client: Restarted(device, note) for client, device in devices.items()}
    return Fleet(agreed, devices, clients, Server(agreed, {c: d.key.public for c, d in devices.items()}))


def assert_exact(outcome: Outcome | None, survivors: set[int]) -> None:
    assert outcome is not None
    assert outcome.aborted is None
    assert outcome.survivors == survivors
    np.testing.assert_array_equal(outcome.sum, sum(INPUTS[client] for client in survivors))


@pytest.mark.parametrize("consistency", [True, False])
@pytest.mark.parametrize("neighbours", [0, 4])
@pytest.mark.parametrize("drop", [None, *PHASES])
def test_a_round_of_clients_restored_for_every_message_gives_the_same_sum(
    consistency: bool, neighbours: int, drop: str | None
) -> None:
    seen: set[str] = set()
    fleet = build(lambda client, _: seen.add(client.phase), consistency=consistency, neighbours=neighbours)
    outcome = fleet.run(drop_link({2: drop} if drop else {}))
    in_sum = drop in (None, "consistency", "unmask") or (drop == "unmask" and not consistency)
    assert_exact(outcome, set(INPUTS) if in_sum else set(INPUTS) - {2})
    assert not fleet.refused
    expected = {phase for _, after in CLIENT.items() for phase in after}
    assert seen == expected - (set() if consistency else {"Confirmed"})


def saved_forms() -> dict[str, tuple[Restarted, bytes, bytes | None]]:
    """Of client 0: for each phase its owner, its bytes, and the message that comes next."""
    fleet, forms, last = build(), {}, {}
    owner = fleet.clients[0]

    def link(from_server: bool, client: int, data: bytes) -> bytes:
        if from_server and client == 0:
            forms[owner.phase] = (owner, owner.saved, data)
        return data

    fleet.run(link)
    last["Ended"] = (owner, owner.saved, forms["Confirmed"][2])
    return forms | last


FORMS = saved_forms()


def with_checksum(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()[:CHECKSUM_BYTES]


def test_every_phase_has_a_saved_form_and_comes_back_as_it_was() -> None:
    assert set(FORMS) == {"Invited", "Advertised", "Shared", "Masked", "Confirmed", "Ended"}
    for phase, (owner, data, _) in FORMS.items():
        client = owner.restore(data)
        assert client.phase == phase
        assert client.save() == data


@pytest.mark.parametrize("phase", FORMS)
def test_any_damage_is_an_error(phase: str) -> None:
    owner, data, _ = FORMS[phase]
    draw = random.Random(phase)
    for _ in range(200):
        at, bit = draw.randrange(len(data)), 1 << draw.randrange(8)
        damaged = bytearray(data)
        damaged[at] ^= bit
        for wrong in (bytes(damaged), data[:at], data + bytes(1)):
            with pytest.raises(er.PeerError, match="saved round"):
                owner.restore(wrong)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(FORMS)), st.data())
def test_bytes_that_were_written_by_somebody_else_are_an_error_or_a_client_that_refuses(
    phase: str, data: st.DataObject
) -> None:
    """A checksum that holds, over a content that was changed: whatever happens, it is not a crash."""
    owner, saved, message = FORMS[phase]
    content = bytearray(saved[:-CHECKSUM_BYTES])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    try:
        client = owner.restore(with_checksum(bytes(content[:cut])))
        if message is not None:
            client.receive(message)
    except er.PeerError:
        pass


def test_a_client_that_left_before_any_round_stays_away() -> None:
    owner, data, setup = FORMS["Invited"]
    client = owner.restore(data)
    client.end()
    again = owner.restore(client.save())
    assert again.phase == "Ended"
    assert setup is not None
    with pytest.raises(er.PeerError, match="no place while the client is Ended"):
        again.receive(setup)


def test_a_saved_round_serves_no_other_device() -> None:
    stranger = next(iter(enrol([77]).values()))
    for phase in ("Shared", "Masked", "Confirmed"):
        with pytest.raises(er.PeerError, match="neighbours"):
            Client.restore(FORMS[phase][1], stranger, lambda _: Packed(np.zeros(2, np.uint64)))


def test_a_restored_channel_seals_nothing_more() -> None:
    owner, data, _ = FORMS["Shared"]
    phase = owner.restore(data)._phase
    for channel in phase.channels.values():
        with pytest.raises(ValueError, match="already sealed"):
            channel.seal(b"again")


def test_an_unmask_answer_leaves_nothing_that_could_answer_again() -> None:
    fleet, answered = build(), []
    sends = fleet.server.start()
    while fleet.server.outcome is None:
        answers = [(s.client, s.data, a) for s in sends for a in fleet.clients[s.client].receive(s.data)]
        answered = answers
        sends = [s for client, _, a in answers for s in fleet.server.receive(Received(client, a))]
    assert_exact(fleet.server.outcome, set(INPUTS))
    for client, quorum, _ in answered:
        assert len(fleet.clients[client].saved) < 300, "no share is left in it"
        with pytest.raises(er.PeerError, match="no place while the client is Ended"):
            fleet.clients[client].receive(quorum)


def test_no_repr_shows_what_was_saved() -> None:
    for owner, data, _ in FORMS.values():
        client = owner.restore(data)
        shown = repr(client) + repr(client._phase) + str(client)
        assert "\\x" not in shown
        assert "bytearray" not in shown


def test_packed_lanes_of_another_round_are_refused() -> None:
    agreed = Config().for_round(run=1, round_number=1, clients=3, count=5)
    for lanes in (np.zeros(9, np.uint64), np.zeros(2, np.int64)):
        with pytest.raises(er.secagg.client.ConfigError, match="packed lanes"):
            Packed(lanes).words(agreed)
