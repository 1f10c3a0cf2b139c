"""Secure rounds over Flower messages: real clients behind `update_codec_mod`, the real driver, a network that we hold.

Every message passes `Fleet.meddle`, and a client's state is copied from message to message, as processes would hand it
on. The numbers in the names are those of the fault and attack cases of `tests/edge_runtime/secagg`.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.supercore.run import Run
from hypothesis import given, settings
from hypothesis import strategies as st

import clients.app
import clients.secure
import server.link
from clients.eligibility import device_mod
from clients.mods import update_codec_mod
from clients.secure_config import SecureConfig
from edge_runtime.config import flatten, from_flat
from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.secagg import Client, DeviceKey
from edge_runtime.secagg import messages as m
from edge_runtime.secagg.config import NO_MODEL
from edge_runtime.secagg.transitions import PHASES
from edge_runtime.train.config import RoundTask
from edge_runtime.updates import TensorLayout, make_codec
from edge_runtime.updates.versions import Parcel, model_hash
from server.aggregate import WeightedSum
from server.config import ServerConfig
from server.federation import federate
from server.gather import Asked
from server.link import Link, Question
from server.rounds import Failure, RoundResult
from server.secagg_driver import SecureGather
from server.sum_plan import SummedUpdates
from simulations.grid import RUN_ID, SERVER_NODE_ID, assume_identity

LIKE = {"a": (2, 3), "b": (4,)}
LAYOUT = TensorLayout.of(LIKE)
MODEL = np.linspace(-1, 1, LAYOUT.size).astype(np.float32)
KEPT = "hedgerow.secagg"
App = Callable[[Message, Context], Message]
# (node, phase, message) -> the message that arrives; None for none; raises what the client would
Meddle = Callable[[int, str, Message], Message | None]


def pass_on(node: int, phase: str, message: Message) -> Message:
    return message


class Fleet:
    """As much of a Flower grid as `Link` asks for: nodes that answer in this process."""

    def __init__(self, nodes: Iterable[int], app: App, **node_config: Any) -> None:
        self.contexts = {
            node: Context(RUN_ID, node, {"partition-id": node, "num-partitions": 20, **node_config}, RecordDict(), {})
            for node in nodes
        }
        self.app, self.meddle, self.meddle_back = app, pass_on, pass_on
        self.run = Run.create_empty(RUN_ID)
        self.seen: list[tuple[int, str, bytes]] = []  # what clients answered
        self._replies: dict[str, Message] = {}
        self._numbers = itertools.count()

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._serve(message) for message in messages]

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(one) for one in list(ids) if one in self._replies]

    def _serve(self, message: Message) -> str:
        message = copy.deepcopy(message)
        message.metadata.__dict__["_message_id"] = message_id = str(next(self._numbers))
        node = message.metadata.dst_node_id
        record = message.content.config_records.get("secagg", {})
        phase = str(record.get("phase", ""))
        assume_identity(node)
        try:
            arrived = self.meddle(node, phase, message)
            reply = None if arrived is None else self.answer(node, arrived)
            if reply is not None and not reply.has_error():
                answered = reply.content.config_records.get("secagg", {})
                self.seen.append((node, phase, bytes(answered.get("message", b""))))
                reply = self.meddle_back(node, phase, reply)
        except Exception as error:
            reply = Message(Error(1, f"{type(error).__name__}: {error}"), reply_to=message)
        assume_identity(SERVER_NODE_ID)
        if reply is not None:
            self._replies[message_id] = reply
        return message_id

    def answer(self, node: int, message: Message) -> Message:
        """By a process that lives for this message alone."""
        context = copy.deepcopy(self.contexts[node])
        reply = self.app(message, context)
        self.contexts[node].state = copy.deepcopy(context.state)
        return reply

    def secrets_left(self) -> list[int]:
        return [node for node, context in self.contexts.items() if KEPT in context.state]


def mod_app(deltas: dict[int, Any], examples: dict[int, int] | None = None) -> App:
    """A Flower client whose training adds its own delta."""

    def train(message: Message, context: Context) -> Message:
        delta = deltas[context.node_id]
        if isinstance(delta, Exception):
            raise delta
        views = LAYOUT.views(np.asarray(delta, np.float32))
        arrays = message.content.array_records["arrays"]
        trained = ArrayRecord({name: Array(arrays[name].numpy() + views[name]) for name in LIKE})
        figures = {"num-examples": (examples or {}).get(context.node_id, 1), "loss": 0.5}
        return Message(RecordDict({"arrays": trained, "metrics": MetricRecord(figures)}), reply_to=message)

    mod = update_codec_mod(LIKE)
    return lambda message, context: mod(message, context, train)


def config(**settings: Any) -> ServerConfig:
    values = {"secure.enabled": True, "secure.value_bits": 12, "privacy.clip": 4.0, "server.cohort": 6}
    return from_flat(ServerConfig, {"deploy.formats": "", **values, **settings})


class Deadlines:
    """A clock that is past any deadline after some looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 5.0
        return self.now


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.link, "POLL_S", 0.0)
    assume_identity(SERVER_NODE_ID)


class Played:
    """A driver with its fleet."""

    def __init__(self, fleet: Fleet, settings: ServerConfig, **kwargs: Any) -> None:
        self.fleet, self.settings = fleet, settings
        self.planner = SummedUpdates(settings, LAYOUT.size)
        self.heard: list[int] = []
        self.gather = SecureGather(
            Link(fleet, Deadlines()),
            settings.secure,
            self.planner,
            LAYOUT.size,
            lambda: WeightedSum(LAYOUT.size),
            seed=settings.seed,
            min_updates=settings.server.min_updates,
            deadline_s=settings.server.deadline_s,
            **kwargs,
        )

    def round(self, number: int = 1, nodes: Iterable[int] | None = None, model: Any = MODEL) -> RoundResult:
        payload = make_codec("float32").encode_vector(model, LAYOUT, round_number=number)
        cohort = list(self.fleet.contexts) if nodes is None else list(nodes)
        asked = Asked(
            number=number,
            question=Question(flatten(self.settings.task(number))),
            parcels=dict.fromkeys(cohort, Parcel(payload)),
            hear=lambda answer: self.heard.append(answer.node),
            model_hash=lambda: model_hash(model),
        )
        return self.gather.gather(asked)


def make_deltas(count: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(3)
    return {node: rng.normal(size=LAYOUT.size) / 4 for node in range(count)}


def play(count: int = 6, **settings: Any) -> Played:
    return Played(Fleet(range(count), mod_app(make_deltas(count))), config(**{"server.cohort": count, **settings}))


def assert_mean(result: RoundResult, survivors: Iterable[int], deltas: dict[int, Any] | None = None) -> None:
    deltas = deltas or make_deltas(20)
    names = [str(node) for node in sorted(survivors)]
    assert list(result.clients) == names
    assert result.delta is not None, result.unchanged
    expected = np.mean([deltas[int(name)] for name in names], axis=0)
    np.testing.assert_allclose(result.delta, expected, atol=0.02)


def messages_of(fleet: Fleet, kind: type) -> list[Any]:
    return [m.decode(data, None) for _, _, data in fleet.seen if m.kind_of(data) is kind]


def test_the_update_is_the_mean_and_nothing_is_left_behind() -> None:
    played = play()
    result = played.round()
    assert_mean(result, range(6))
    assert result.failures == ()
    assert result.train_loss is None
    assert result.dropped_in == dict.fromkeys(PHASES, 0)
    assert sorted(played.heard) == list(range(6))
    assert played.fleet.secrets_left() == []
    assert result.uplink_bytes > sum(len(data) for *_, data in played.fleet.seen)
    assert_mean(played.round(2), range(6))


def test_a_device_that_declines_costs_the_round_nothing_but_itself() -> None:
    plain = mod_app(make_deltas(6))
    fleet = Fleet(range(6), lambda message, context: device_mod(message, context, plain))
    fleet.contexts[4].node_config["device.eligible"] = False
    fleet.contexts[4].node_config["device.why_not"] = "on battery"
    played = Played(fleet, config())
    result = played.round()
    assert_mean(result, {0, 1, 2, 3, 5})
    assert result.failures == ()
    assert result.declined == (Failure("4", "on battery"),)
    assert result.dropped_in == dict.fromkeys(PHASES, 0)
    assert sorted(played.heard) == list(range(6))
    fleet.contexts[4].node_config["device.eligible"] = True
    assert_mean(played.round(2), range(6))


def test_no_reply_tells_loss_or_examples() -> None:
    played, replies = play(), []

    def note(node: int, phase: str, reply: Message) -> Message:
        replies.append((phase, set(reply.content), set(reply.content.config_records["secagg"])))
        return reply

    played.fleet.meddle_back = note
    played.round()
    assert {tuple(records) for _, records, _ in replies} == {("secagg",)}
    assert {frozenset(keys) for phase, _, keys in replies if phase != "hello"} == {frozenset({"message"})}


@pytest.mark.parametrize("phase", ["hello", *PHASES])
@pytest.mark.parametrize("how", ["silent", "error", "state lost"])
def test_cases_02_to_06_a_client_lost_in_any_phase_costs_itself_alone(phase: str, how: str) -> None:
    played = play()

    def meddle(node: int, now: str, message: Message) -> Message | None:
        if (node, now) != (4, phase):
            return message
        if how == "error":
            raise RuntimeError("no power")
        played.fleet.contexts[node].state = RecordDict()
        return message if how == "state lost" else None

    played.fleet.meddle = meddle
    result = played.round()
    fine = how == "state lost" and phase == "hello"
    in_sum = fine or phase in ("consistency", "unmask")
    assert_mean(result, range(6) if in_sum else {0, 1, 2, 3, 5})
    lost = "advertise" if phase == "hello" else phase
    assert result.dropped_in == {name: int(name == lost and not fine) for name in PHASES}
    if not fine:
        reason = {"silent": "no reply within", "error": "RuntimeError: no power", "state lost": "no secure round"}[how]
        if how == "state lost" and phase == "advertise":
            reason = "without this node's, which may be new"
        (failure,) = result.failures
        assert failure.client == "4"
        assert failure.reason.startswith(f"{lost}: ")
        assert reason in failure.reason
    assert set(played.fleet.secrets_left()) <= {4}
    played.fleet.meddle = pass_on
    assert_mean(played.round(2), range(6))
    assert played.fleet.secrets_left() == []


@pytest.mark.parametrize("phase", ["share_keys", "masked_input", "unmask"])
def test_case_06_below_the_threshold_there_is_no_update_and_all_forget(phase: str) -> None:
    played = play()
    played.fleet.meddle = lambda node, now, message: None if now == phase and node < 4 else message
    result = played.round()
    assert result.delta is None
    assert result.clients == ()
    assert "no sum is made" in (result.unchanged or "")
    assert result.dropped_in == {name: 4 * (name == phase) for name in PHASES}
    assert set(result.opened) == (set("012345") if phase == "unmask" else set()), "shares were asked for, or were not"
    assert set(played.fleet.secrets_left()) <= set(range(4)), "those who are there are told goodbye"


def test_case_07_drops_at_every_phase_at_once() -> None:
    played = play(16, **{"secure.dropout": 0.3})
    at = dict(zip(range(4), ("advertise", "share_keys", "masked_input", "unmask"), strict=True))
    gone: set[int] = set()

    def meddle(node: int, now: str, message: Message) -> Message | None:
        if at.get(node) == now:
            gone.add(node)
        return None if node in gone else message

    played.fleet.meddle = meddle
    result = played.round()
    assert_mean(result, set(range(16)) - {0, 1, 2})
    assert result.dropped_in == {name: int(name != "consistency") for name in PHASES}


@settings(max_examples=40, deadline=None)
@given(
    gone=st.dictionaries(st.integers(0, 8), st.sampled_from(["hello", *PHASES]), max_size=6),
    silent=st.booleans(),
    consistency=st.booleans(),
)
def test_case_07_any_pattern_of_drops_gives_the_survivors_mean_or_a_reason(
    gone: dict[int, str], silent: bool, consistency: bool
) -> None:
    order = ["hello", *PHASES]
    played = play(9, **{"secure.malicious_server": consistency})
    left: set[int] = set()

    def meddle(node: int, phase: str, message: Message) -> Message | None:
        if node in left or (phase in order and gone.get(node) == phase):
            left.add(node)
            if silent:
                return None
            raise RuntimeError("gone")
        return message

    played.fleet.meddle = meddle
    result = played.round()
    assert len(result.failures) == len(left)
    if result.delta is None:
        assert result.unchanged
        assert result.clients == ()
        assert len(gone) > 1, "one may always go"
    else:
        late = ("consistency", "unmask")
        assert_mean(result, {node for node in range(9) if node not in gone or gone[node] in late})
    assert set(played.fleet.secrets_left()) <= left


@pytest.mark.parametrize("bad", [np.full(10, np.nan), np.full(10, np.inf), RuntimeError("secret data 123")])
def test_case_25_a_client_without_a_good_update_abstains(bad: Any, caplog: pytest.LogCaptureFixture) -> None:
    deltas = {**make_deltas(6), 2: bad}
    played = Played(Fleet(range(6), mod_app(deltas)), config())
    result = played.round()
    assert_mean(result, {0, 1, 3, 4, 5})
    (failure,) = result.failures
    assert failure.reason.startswith("advertise: abstains: ")
    assert "123" not in failure.reason
    assert played.fleet.secrets_left() == []


def test_an_update_beyond_the_clip_is_clipped() -> None:
    deltas = {node: np.full(LAYOUT.size, 100.0) for node in range(6)}
    result = Played(Fleet(range(6), mod_app(deltas)), config()).round()
    assert result.delta is not None
    assert np.linalg.norm(result.delta) == pytest.approx(4.0, rel=0.05)


def test_case_27_examples_weigh_up_to_the_largest_weight() -> None:
    deltas, examples = make_deltas(6), {0: 1, 1: 2, 2: 3, 3: 4, 4: 1000, 5: 0}
    played = Played(Fleet(range(6), mod_app(deltas, examples)), config(**{"secure.max_weight": 8}))
    result = played.round()
    weights = np.array([1, 2, 3, 4, 8])
    assert result.delta is not None
    assert result.clients == ("0", "1", "2", "3", "4"), "without an example a client abstains"
    expected = weights @ np.array([deltas[node] for node in range(5)]) / weights.sum()
    np.testing.assert_allclose(result.delta, expected, atol=0.02)


def test_groups_are_sums_of_their_own_and_one_may_fail() -> None:
    played = play(12, **{"secure.groups": 3, "robust.aggregator": "median"})
    rosters: dict[int, frozenset[int]] = {}

    def note(node: int, phase: str, message: Message) -> Message:
        if phase == "share_keys":
            record = message.content.config_records["secagg"]["message"]
            rosters[node] = frozenset([bytes(record)])
        return message

    played.fleet.meddle = note
    assert_mean(played.round(), range(12))
    assert len(set(rosters.values())) == 3
    first = {node for node in rosters if rosters[node] == rosters[0]}
    assert len(first) == 4
    played.fleet.meddle = pass_on
    rosters.clear()
    before = played.gather._form_groups
    seen: list[list[int]] = []

    def note_groups(asked: Asked, present: Any) -> Any:
        groups = before(asked, present)
        seen.extend(sorted(group.nodes.values()) for group in groups)
        return groups

    played.gather._form_groups = note_groups  # type: ignore[method-assign]
    played.fleet.meddle = lambda node, phase, message: None if phase == "masked_input" and node in seen[0] else message
    result = played.round(2)
    assert_mean(result, set(range(12)) - set(seen[0]))
    assert result.dropped_in is not None
    assert result.dropped_in["masked_input"] == 4


def test_case_21_settings_that_one_client_sees_otherwise_cost_that_client() -> None:
    played = play()

    def meddle(node: int, phase: str, message: Message) -> Message:
        if (node, phase) == (3, "advertise"):
            record = message.content.config_records["secagg"]
            agreed = m.decode(bytes(record["message"]), None).config
            other = replace(agreed, settings=replace(agreed.settings, threshold=agreed.settings.threshold + 1))
            record["message"] = m.encode(m.Setup(other), None)
        return message

    played.fleet.meddle = meddle
    result = played.round()
    assert_mean(result, {0, 1, 2, 4, 5})
    assert "of another round" in result.failures[0].reason


@pytest.mark.parametrize("what", ["clip", "encoding", "size"])
def test_case_21_an_encoder_that_is_not_what_the_texts_say_is_refused(what: str) -> None:
    played = play()

    def meddle(node: int, phase: str, message: Message) -> Message:
        if phase == "advertise":
            record = message.content.config_records["secagg"]
            agreed = m.decode(bytes(record["message"]), None).config
            changes = {
                "clip": {"clip": "0.5"},
                "encoding": {"encoding": b"x" + agreed.settings.encoding[1:]},
                "size": {},
            }
            settings = replace(agreed.settings, **changes[what])
            count = agreed.count + (what == "size")
            record["message"] = m.encode(m.Setup(replace(agreed, settings=settings, count=count)), None)
        return message

    played.fleet.meddle = meddle
    result = played.round()
    assert result.delta is None
    expected = {"clip": "are not those of the round's encoder", "encoding": "sum encoder", "size": "its encoder makes"}
    assert all(expected[what] in failure.reason for failure in result.failures)


def test_case_21_whether_a_client_leaves_does_not_depend_on_its_update() -> None:
    """A server that allows smaller values than the encoder makes would see by who leaves whose update is large."""
    deltas = dict.fromkeys(range(6), np.zeros(LAYOUT.size)) | {2: np.full(LAYOUT.size, 1.0)}
    played = Played(Fleet(range(6), mod_app(deltas)), config())
    made = played.planner.sum_plan

    def sum_plan(number: int, clients: int) -> Any:
        plan = made(number, clients)
        return replace(plan, settings=replace(plan.settings, max_abs=3))

    played.planner.sum_plan = sum_plan  # type: ignore[method-assign]
    result = played.round()
    assert {failure.client for failure in result.failures} == set("012345")
    assert all("its encoder makes them up to" in failure.reason for failure in result.failures)


def test_case_22_another_model_for_one_client_costs_that_client() -> None:
    played = play()

    def meddle(node: int, phase: str, message: Message) -> Message:
        if (node, phase) == (3, "advertise"):
            crafted = make_codec("float32").encode_vector(MODEL + 1, LAYOUT, round_number=1)
            stype = message.content.array_records["model"]["weights"].stype
            message.content.array_records["model"]["weights"] = Array("uint8", (len(crafted),), stype, crafted)
        return message

    played.fleet.meddle = meddle
    result = played.round()
    assert_mean(result, {0, 1, 2, 4, 5})
    assert "about another model" in result.failures[0].reason


@pytest.mark.parametrize(
    ("name", "value"), [("train.optimizer.lr", 1e-12), ("train.epochs", 2), ("program", b"does nothing")]
)
def test_case_22_another_task_for_all_but_one_client_tells_nothing_of_that_one(name: str, value: Any) -> None:
    """Those whose training is made to do nothing would leave the sum to the one whose training does."""
    played = play()

    def meddle(node: int, phase: str, message: Message) -> Message:
        if phase == "advertise" and node != 3:
            message.content.config_records["task"][name] = value
        return message

    played.fleet.meddle = meddle
    result = played.round()
    assert result.delta is None
    assert result.clients == ()
    refused = {failure.client for failure in result.failures if "another model or task" in failure.reason}
    assert refused == {"0", "1", "2", "4", "5"}


def test_case_29_a_client_that_restarts_uses_no_key_again() -> None:
    played = play()
    for number in (1, 2, 3):
        played.fleet.meddle = lambda node, phase, message, at=number: (
            (  # type: ignore[misc]
                lose_state(played.fleet, node) if (node, phase) == (at, "masked_input") else None
            )
            or message
        )
        result = played.round(number)
        assert_mean(result, set(range(6)) - {number})
        assert "no secure round is in progress" in result.failures[0].reason
    adverts = [data for _, phase, data in played.fleet.seen if phase == "advertise"]
    keys = [data[16 + at : 48 + at] for data in adverts for at in (0, 32)]
    assert len(keys) == len(set(keys)) == 2 * 18


def lose_state(fleet: Fleet, node: int) -> None:
    fleet.contexts[node].state = RecordDict()


def test_case_30_a_server_that_restarts_gets_nothing_out_of_the_round_it_left() -> None:
    played = play()

    def meddle(node: int, phase: str, reply: Message) -> Message:
        if phase == "consistency" and node == 5:
            raise KeyboardInterrupt
        return reply

    played.fleet.meddle_back = meddle
    with pytest.raises(KeyboardInterrupt):
        played.round(1)
    assume_identity(SERVER_NODE_ID)
    played.fleet.meddle_back = pass_on
    again = Played(played.fleet, played.settings)
    refused = again.round(1)
    assert refused.delta is None
    assert all("took part in it before" in failure.reason for failure in refused.failures)
    assert len(refused.failures) == 6
    assert_mean(again.round(2), range(6))
    assert played.fleet.secrets_left() == []


def test_case_16_a_round_is_entered_once_also_after_a_restart_where_there_is_a_state_path(tmp_path: Path) -> None:
    for remembers in (False, True):
        played = play()
        if remembers:
            for node, context in played.fleet.contexts.items():
                context.node_config["state-path"] = str(tmp_path / str(node))
        assert_mean(played.round(5), range(6))
        for node in range(6):
            lose_state(played.fleet, node)
        for number in (5, 4):
            result = Played(played.fleet, played.settings).round(number)
            if remembers:
                assert len(result.failures) == 6
            elif number == 5:
                assert_mean(result, range(6))
        assert_mean(Played(played.fleet, played.settings).round(6), range(6))
        if remembers:
            files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
            steps = {f"round-6.{step}" for step in ("enter", "Roster", "Routed", "Survivors", "Quorum")}
            assert files == {"secure-round", *steps}


@pytest.mark.parametrize("consistency", [True, False])
def test_case_10_two_messages_at_once_get_one_answer_where_there_is_a_state_path(
    tmp_path: Path, consistency: bool
) -> None:
    """The server has two processes of one node work on its state at the same time, each with another list."""
    played = play(**{"secure.malicious_server": consistency})
    context = played.fleet.contexts[0]
    context.node_config["state-path"] = str(tmp_path)
    answers: list[bytes] = []

    def meddle(node: int, phase: str, message: Message) -> Message:
        kind = m.kind_of(bytes(message.content.config_records["secagg"].get("message", b"")))
        if node == 0 and kind is m.Survivors:
            twin = copy.deepcopy(context)
            reply = played.fleet.app(message, twin)
            answers.append(bytes(reply.content.config_records["secagg"]["message"]))
        return message

    played.fleet.meddle = meddle
    result = played.round()
    own = [data for node, _, data in played.fleet.seen if node == 0 and m.kind_of(data) is m.Abort]
    assert len(answers) == len(own) == 1
    assert m.kind_of(answers[0]) is (m.Confirm if consistency else m.Unmask)
    assert "taken before" in result.failures[0].reason


def test_case_37_cohorts_that_differ_by_one_tell_its_update_unless_it_asks_for_noise() -> None:
    """The limit that the node config states, and the one thing that is against it."""
    deltas = make_deltas(6)
    played = Played(Fleet(range(6), mod_app(deltas)), config())
    more, fewer = played.round(1), played.round(2, range(5))
    assert more.delta is not None
    assert fewer.delta is not None
    np.testing.assert_allclose(6 * more.delta - 5 * fewer.delta, deltas[5], atol=0.1)

    played.fleet.contexts[5].node_config["secure-noise"] = "skellam,discrete_gaussian"
    result = played.round(3)
    assert_mean(result, range(5))
    assert "this node asks for discrete_gaussian or skellam" in result.failures[0].reason


@pytest.mark.parametrize(
    ("node_config", "says"),
    [
        ({"secure-min-clients": 7}, "below this client's floor of 7 clients"),
        ({"secure-min-threshold": 6}, "below this client's floor of 6"),
        ({"secure-max-clip": 1.5}, "is not a number up to this client's 1.5"),
        ({"secure-corrupt": 2}, "below this client's floor of 4 clients"),
        ({"secure-max-epsilon": 5.0}, "this node asks for discrete_gaussian or skellam"),
    ],
)
def test_case_20_a_round_below_a_nodes_floor_is_refused_by_that_node(node_config: dict[str, Any], says: str) -> None:
    played = play()
    played.fleet.contexts[1].node_config.update(node_config)
    result = played.round()
    assert_mean(result, {0, 2, 3, 4, 5})
    assert says in result.failures[0].reason


def test_a_node_that_fears_its_server_takes_part_with_consistency_alone() -> None:
    for malicious in (True, False):
        played = play(**{"secure.malicious_server": malicious})
        played.fleet.contexts[1].node_config["secure-malicious-server"] = True
        assert_mean(played.round(), range(6) if malicious else {0, 2, 3, 4, 5})


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("app", [mod_app(make_deltas(2)), clients.app.app])
def test_a_secure_only_node_answers_nothing_in_the_clear(kind: str, app: App) -> None:
    task = flatten(from_flat(RoundTask, {"round": 1}))
    payload = make_codec("float32").encode_vector(MODEL, LAYOUT, round_number=1)
    content = Question(task).content(Parcel(payload))
    if kind == "evaluate":
        content["secagg"] = ConfigRecord({"phase": "advertise"})
    message = Message(content, 0, kind)
    message.metadata.__dict__["_message_id"] = "1"
    context = Context(RUN_ID, 0, {"secure-only": True, "partition-id": 0, "num-partitions": 20}, RecordDict(), {})
    with pytest.raises(PeerError, match="under secure aggregation alone"):
        app(message, context)


def test_enrolled_keys_and_the_servers_list(tmp_path: Path) -> None:
    """A client shares with enrolled devices alone; the server asks listed ones alone."""
    keys = {node: tmp_path / f"{node}.pem" for node in range(6)}
    played = play()
    for node, path in keys.items():
        played.fleet.contexts[node].node_config["device-key"] = str(path)
    assert_mean(played.round(1), range(6))
    public = {node: Path(f"{path}.pub").read_text().strip() for node, path in keys.items()}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in keys.values())

    listed = frozenset(bytes.fromhex(public[node]) for node in range(5))
    result = Played(played.fleet, played.settings, devices=listed).round(2)
    assert_mean(result, range(5))
    assert "is not in the file secure.devices" in result.failures[0].reason

    enrolled = tmp_path / "enrolled"
    enrolled.write_text("# ours\n\n" + "".join(f"{public[node]}  # {node}\n" for node in range(5)))
    played.fleet.contexts[0].node_config["enrolled"] = str(enrolled)
    result = Played(played.fleet, played.settings).round(3)
    assert_mean(result, {1, 2, 3, 4, 5})
    assert "is not enrolled here" in result.failures[0].reason


def test_a_node_cannot_give_anothers_key_as_its_own() -> None:
    played = play()
    hello: dict[str, Any] = {}

    def meddle(node: int, phase: str, reply: Message) -> Message:
        if phase == "hello" and node == 0:
            hello.update(reply.content.config_records["secagg"])
        if phase == "hello" and node == 1:
            reply.content["secagg"] = ConfigRecord(hello)
        return reply

    played.fleet.meddle_back = meddle
    result = played.round()
    assert_mean(result, {0, 2, 3, 4, 5})
    assert "hello" in result.failures[0].reason


def test_a_node_says_hello_once_and_again_when_its_part_has_failed() -> None:
    played = play()
    for number in (1, 2):
        played.fleet.meddle = lambda node, phase, message, at=number: (  # type: ignore[misc]
            None if (at, node, phase) == (1, 2, "share_keys") else message
        )
        played.round(number)
    hellos = [node for node, phase, _ in played.fleet.seen if phase == "hello"]
    assert sorted(hellos) == [0, 1, 2, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("prg", "aes", "expected"),
    [("auto", 6, "aes-256-ctr"), ("auto", 5, "chacha20"), ("chacha20", 6, "chacha20"), ("aes-ctr", 0, "aes-256-ctr")],
)
def test_the_mask_stream_is_one_that_all_do_fast(
    monkeypatch: pytest.MonkeyPatch, prg: str, aes: int, expected: str
) -> None:
    from server.link import Hello

    played = play(**{"secure.prg": prg})
    prgs = {node: ("chacha20", "aes-256-ctr") if node < aes else ("chacha20",) for node in range(6)}
    played.gather._hellos = {node: Hello(bytes(32), bytes(64), names) for node, names in prgs.items()}
    assert played.gather._choose_prg(range(6)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu aes avx", True),
        ("Features\t: fp asimd aes sha2", True),
        ("flags : aesni_like\nmodel aes", False),
    ],
)
def test_aes_instructions_are_read_off_cpuinfo(tmp_path: Path, text: str, expected: bool) -> None:
    from clients.device import has_aes

    (tmp_path / "cpuinfo").write_text(f"processor: 0\n{text}\n")
    assert has_aes(tmp_path / "cpuinfo") is expected
    assert not has_aes(tmp_path / "none")


@pytest.mark.parametrize("content", [b"", b"text", os.urandom(100), b"-" * 5000])
def test_a_device_key_that_is_none_is_the_owners_error(tmp_path: Path, content: bytes) -> None:
    from clients.device import open_key

    path = tmp_path / "key.pem"
    path.write_bytes(content)
    context = Context(RUN_ID, 0, {}, RecordDict(), {})
    for mode, says in ((0o644, "others may read it"), (0o600, "is no Ed25519 key")):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=says):
            open_key(SecureConfig(device_key=str(path)), context)


@pytest.mark.parametrize(
    "values",
    [
        {"secure-min-clients": 1},
        {"secure-min-clients": "3"},
        {"secure-min-threshold": 0},
        {"secure-max-clip": -1.0},
        {"secure-max-clip": float("nan")},
        {"secure-malicious-server": 1},
        {"secure-only": "true"},
        {"secure-noise": "gaussian"},
    ],
)
def test_a_node_config_that_says_nothing_is_refused_by_key(values: dict[str, Any]) -> None:
    (key,) = values
    with pytest.raises(ConfigError, match=f"node config: .*{key}"):
        SecureConfig.from_node_config(values)


def test_the_clip_follows_the_votes() -> None:
    """All clients' norms are 5; the first clip is 1."""
    deltas = {node: np.eye(LAYOUT.size)[node] * 5 for node in range(6)}
    played = Played(Fleet(range(6), mod_app(deltas)), config(**{"privacy.clip": 0.0}))
    clips = []
    for number in range(1, 8):
        clips.append(played.planner.sum_plan(number, 6).encoder.clip)
        result = played.round(number)
        assert result.votes == (6 if clips[-1] > 5 else -6)
        played.planner.settle(number, result)
    assert clips[0] == 1.0
    assert all(4.5 < clip < 12.5 for clip in clips[-5:])


def test_malformed_server_messages_are_an_abort() -> None:
    """Any bytes in the place of a message: the client answers that it is out, and keeps no secret."""
    played = play()
    rng = np.random.default_rng(1)

    def meddle(node: int, phase: str, message: Message) -> Message:
        if node == 2 and phase == "masked_input":
            message.content.config_records["secagg"]["message"] = rng.bytes(80)
        return message

    played.fleet.meddle = meddle
    assert_mean(played.round(), {0, 1, 3, 4, 5})
    assert played.fleet.secrets_left() == []


def test_what_a_client_says_of_its_abort_is_one_printable_line() -> None:
    played = play()

    def meddle(node: int, phase: str, reply: Message) -> Message:
        if (node, phase) == (2, "share_keys"):
            reply.content.config_records["secagg"]["message"] = m.encode(m.Abort("a\nb\x1b[31m" + "c" * 900), None)
        return reply

    played.fleet.meddle_back = meddle
    result = played.round()
    assert_mean(result, {0, 1, 3, 4, 5})
    assert result.failures[0].reason.isprintable()
    assert result.failures[0].reason.startswith("share_keys: a b [31mccc")


def test_case_41_nothing_that_is_kept_or_shown_holds_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole run, some of whose clients fail in each phase: its files, its log and every error that was told."""
    drawn: list[bytes] = []
    inputs: list[bytes] = []

    def random(count: int) -> bytes:
        drawn.append(os.urandom(count))
        return drawn[-1]

    class Watched(Client):
        def __init__(self, device: Any, update: Any, model: bytes = NO_MODEL, random: Any = random) -> None:
            super().__init__(device, update, model, random)

        @classmethod
        def restore(cls, data: bytes, device: Any, update: Any, model: bytes = NO_MODEL, random: Any = random) -> Any:
            drawn.append(device.key.secret().reveal())
            return super().restore(data, device, update, model, random)

    class WatchedKept(clients.secure._Kept):
        def write(self, client: bytes, devices: bytes, lanes: bytes) -> None:
            inputs.append(lanes)
            super().write(client, devices, lanes)

    monkeypatch.setattr(clients.secure, "Client", Watched)
    monkeypatch.setattr(clients.secure, "_Kept", WatchedKept)
    caplog.set_level(logging.DEBUG)
    fleet = Fleet(range(6), clients.app.app)
    for context in fleet.contexts.values():
        context.node_config["num-partitions"] = 6
    places = list(itertools.product((1, 2), PHASES))

    def meddle(node: int, phase: str, message: Message) -> Message:
        if node == 3 and phase == places[0][1]:
            raise RuntimeError("gone")
        if node == 4 and phase == "masked_input":
            message.content.config_records["secagg"]["message"] = bytes(40)
        return message

    fleet.meddle = meddle
    told: list[str] = []
    settings = {
        "data.name": "digits", "data.clients": 6, "data.partition": "iid", "model.name": "digits_cnn",
        "model.input": "1x8x8", "train.epochs": 1, "server.rounds": 2, "server.min_updates": 2,
        "secure.dropout": 0.34, "secure.corrupt": 0.0, "run.out": str(tmp_path / "run"),
    }  # fmt: skip
    federate(Link(fleet, Deadlines()), config(**settings), [lambda event: told.append(repr(event))])
    rounds = json.loads((tmp_path / "run" / "run.json").read_text())["rounds"]
    assert [row["applied"] for row in rounds] == [True, True]
    assert any(row["failures"] for row in rounds)
    shown = " ".join([caplog.text, *told]).encode()
    files = {path.name: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"run.json", "events.sqlite", "model.safetensors"} <= files.keys()
    assert len(drawn) > 50
    assert len(inputs) > 20
    secrets = [one[:32] for one in drawn] + [one[:64] for one in inputs if one]
    for place, content in {"shown": shown, **files}.items():
        for secret in secrets:
            for form in (secret, secret.hex().encode(), repr(secret)[2:-1].encode()):
                assert form not in content, place


def test_device_keys_are_not_shown() -> None:
    assert "<DeviceKey>" in repr(DeviceKey.generate())
