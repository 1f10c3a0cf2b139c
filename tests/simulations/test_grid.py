"""The in-process grid with real client processes: every message is settled, whatever a client does, in push order."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import psutil
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from edge_runtime.config import flatten, from_flat
from edge_runtime.train.config import RoundTask
from edge_runtime.train.factory import example_of, make_program, make_trainer, pack_program
from edge_runtime.updates import STYPE, TensorLayout, make_codec
from simulations.faults import FaultConfig
from simulations.grid import InProcessGrid
from simulations.runner import simulate
from simulations.scenario import load_scenario
from simulations.traces import Errand, FleetConfig, Traces

CLIENTS, SEED = 6, 1
FAULTS = FaultConfig(error=0.25, hang=0.25, crash=0.25)


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def grid(request: pytest.FixtureRequest) -> Iterator[InProcessGrid]:
    with InProcessGrid(CLIENTS, request.param, faults=FAULTS) as grid:
        yield grid


def round_with(fault: str, client: int) -> int:
    """The first round in which that fault is drawn for that client."""
    return next(number for number in itertools.count(1) if FAULTS.draw(SEED, number, client) == fault)


@cache
def model(round_number: int) -> bytes:
    task = task_of(round_number)
    state = make_trainer(task.model, task.train).state_dict()
    layout = TensorLayout.of(state)
    return make_codec("float32").encode_vector(layout.flatten(state), layout, round_number=round_number)


@cache
def program() -> bytes:
    task = task_of(1)
    return pack_program(make_program(task.model, task.train, example_of(task.model)))


def task_of(round_number: int, epochs: int = 1) -> RoundTask:
    data = {"data.name": "digits", "data.clients": CLIENTS, "data.partition": "iid"}
    model = {"model.name": "digits_cnn", "model.input": "1x8x8"}
    return from_flat(RoundTask, {**data, **model, "round": round_number, "seed": SEED, "train.epochs": epochs})


def message(client: int, kind: str, round_number: int = 1, *, ttl: float = 60.0, epochs: int = 1) -> Message:
    payload = model(round_number)
    record = ArrayRecord({"weights": Array("uint8", (len(payload),), STYPE, payload)})
    task = ConfigRecord({**flatten(task_of(round_number, epochs)), "program": program()})
    return Message(RecordDict({"model": record, "task": task}), client, kind, ttl=ttl, group_id=str(round_number))


def faulty(client: int, fault: str, **options: float) -> Message:
    return message(client, "train", round_with(fault, client), ttl=options.get("ttl", 60.0))


def ask(grid: InProcessGrid, messages: Sequence[Message]) -> list[Message]:
    """Replies in the order in which the grid hands them out."""
    ids = list(grid.push_messages(messages))
    outstanding, replies = set(ids), []
    while outstanding:
        for reply in grid.pull_messages(outstanding):
            outstanding.discard(reply.metadata.reply_to_message_id)
            replies.append(reply)
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    return replies


def senders(replies: Sequence[Message]) -> list[int]:
    return [reply.metadata.src_node_id for reply in replies]


def assert_all_clients_answer(grid: InProcessGrid) -> None:
    replies = ask(grid, [message(client, "evaluate") for client in range(CLIENTS)])
    assert senders(replies) == list(range(CLIENTS))
    assert all(reply.content.metric_records["metrics"]["num-examples"] > 200 for reply in replies)


def test_node_ids_are_the_clients_numbers(grid: InProcessGrid) -> None:
    assert list(grid.get_node_ids()) == list(range(CLIENTS))
    assert [node.node_id for node in grid.get_nodes()] == list(range(CLIENTS))


def test_replies_come_in_push_order(grid: InProcessGrid) -> None:
    slow = message(3, "train", round_with("", 3), epochs=40)
    order = [3, 5, 0, 4, 1, 2]
    replies = ask(grid, [slow, *(message(client, "evaluate") for client in order[1:])])
    assert senders(replies) == order
    assert not any(reply.has_error() for reply in replies)
    assert "update" in replies[0].content


def test_several_messages_to_one_client_are_all_answered(grid: InProcessGrid) -> None:
    replies = ask(grid, [message(2, "evaluate"), message(2, "evaluate"), message(2, "evaluate")])
    assert senders(replies) == [2, 2, 2]
    assert not any(reply.has_error() for reply in replies)


def test_what_a_client_raises_is_its_error_reply(grid: InProcessGrid) -> None:
    empty = Message(RecordDict(), 1, "evaluate", ttl=60.0)
    broken, injured, good = ask(grid, [empty, faulty(2, "error"), message(3, "evaluate")])
    assert broken.error.reason == "PeerError: message has no task and model records"
    assert injured.error.reason == "SimulatedFaultError: simulated error in training"
    assert not good.has_error()


def test_a_bad_program_costs_its_own_message_only(grid: InProcessGrid) -> None:
    asked = [message(client, "evaluate") for client in range(4)]
    for one, bad in zip(asked, (program()[:-1], zlib.compress(bytes(1 << 20)), b""), strict=False):
        one.content.config_records["task"]["program"] = bad
    replies = ask(grid, asked)
    assert [reply.error.reason for reply in replies[:3]] == [
        "PeerError: the message's Program is cut off, or too large",
        "PeerError: the message's Program: not a Hedgerow Program",
        "PeerError: the task's trainer is engine, and it does not bring what that one needs",
    ]
    assert not replies[3].has_error()
    assert_all_clients_answer(grid)


def test_a_client_that_dies_costs_its_own_message_only(grid: InProcessGrid) -> None:
    replies = ask(grid, [faulty(0, "crash"), message(1, "evaluate"), faulty(2, "crash"), message(3, "evaluate")])
    assert [reply.has_error() for reply in replies] == [True, False, True, False]
    assert "process died, exit code 1" in (replies[0].error.reason or "")
    assert_all_clients_answer(grid)


def test_a_client_that_hangs_is_given_up_at_its_messages_time_to_live(grid: InProcessGrid) -> None:
    replies = ask(grid, [faulty(4, "hang", ttl=1.5), message(1, "evaluate"), message(2, "evaluate")])
    assert [reply.has_error() for reply in replies] == [True, False, False]
    assert replies[0].error.reason == "no reply within 1.5 s"
    assert_all_clients_answer(grid)


def test_send_and_receive_waits_for_all_replies(grid: InProcessGrid) -> None:
    replies = list(grid.send_and_receive([message(client, "evaluate") for client in range(CLIENTS)]))
    assert sorted(senders(replies)) == list(range(CLIENTS))


def test_replies_can_be_pulled_for_the_last_message_first() -> None:
    with InProcessGrid(CLIENTS, 1) as grid:
        ids = list(grid.push_messages([message(client, "evaluate") for client in range(CLIENTS)]))
        assert senders(list(grid.pull_messages(ids[-1:]))) == [CLIENTS - 1]


@pytest.fixture
def before() -> set[int]:
    return children()


def children() -> set[int]:
    """Processes started by this one; those that have ended but were not waited for count too."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_close_leaves_no_process_even_while_a_client_hangs(before: set[int]) -> None:
    with InProcessGrid(CLIENTS, 2, faults=FaultConfig(hang=1.0)) as grid:
        assert len(children() - before) == 2
        ask(grid, [message(0, "evaluate")])
        grid.push_messages([message(1, "train"), message(2, "train")])
    assert children() <= before


def test_a_process_killed_between_messages_costs_one_message_at_most(before: set[int]) -> None:
    with InProcessGrid(CLIENTS, 1) as grid:
        ask(grid, [message(0, "evaluate")])
        (worker,) = children() - before
        psutil.Process(worker).kill()
        first, second = ask(grid, [message(1, "evaluate"), message(2, "evaluate")])
        assert "process" in (first.error.reason or "")
        assert not second.has_error()
    assert children() <= before


def test_the_model_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    tiny = "data.name=digits model.name=digits_cnn data.clients=6 server.cohort=5 server.rounds=2 deploy.formats="
    hashes = set()
    for workers in (1, 2):
        overrides = [*tiny.split(), f"server.workers={workers}", f"run.out={tmp_path / str(workers)}"]
        hashes.add(simulate(load_scenario("mnist", overrides)).final["model_sha256"])
    assert len(hashes) == 1


RECORDER = """
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict

def app(message, context):
    count = int(context.state["count"]["n"]) if "count" in context.state else 0
    context.state["count"] = ConfigRecord({"n": count + 1})
    with Path(FOLDER, str(context.node_id)).open("a") as log:
        log.write(message.metadata.group_id + " ")
    return Message(RecordDict({"said": ConfigRecord({"n": count, "bytes": bytes(1000)})}), reply_to=message)
"""


class Recorded:
    """A grid whose clients write down what they were given, and say how many messages they had had before."""

    def __init__(self, folder: Path, workers: int, **fleet: float | str) -> None:
        self.folder = folder
        traces = Traces(FleetConfig(**fleet), SEED, CLIENTS, lambda node: 10)  # type: ignore[arg-type]
        self.grid = InProcessGrid(CLIENTS, workers, traces=traces, client_app="recording_client:app")

    def push(self, number: int, nodes: Sequence[int], ttl: float = 1000.0) -> list[str]:
        task = ConfigRecord({"train.epochs": 1})
        messages = [Message(RecordDict({"task": task}), node, "train", ttl=ttl, group_id=str(number)) for node in nodes]
        return list(self.grid.push_messages(messages))

    def given(self) -> dict[int, list[str]]:
        return {int(path.name): path.read_text().split() for path in self.folder.iterdir()}


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recording_client.py").write_text(f"FOLDER = {str(tmp_path / 'log')!r}\n{RECORDER}")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "log").mkdir()
    return tmp_path / "log"


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_cancelled_before_it_is_needed_is_never_run(recorder: Path, workers: int) -> None:
    recorded = Recorded(recorder, workers)
    with recorded.grid as grid:
        ids = recorded.push(1, [4, 1, 5, 0, 2, 3])
        came = [grid.next_reply(ids, float("inf"), wanted=wanted) for wanted in (3, 2, 1)]
        grid.cancel(ids)
        assert [reply.metadata.src_node_id for reply in came if reply] == [4, 1, 5]
        again = ask(grid, [grid.create_message(RecordDict(), "train", node, "2") for node in (4, 0)])
        assert [reply.content.config_records["said"]["n"] for reply in again] == [1, 0]
    assert recorded.given() == {4: ["1", "2"], 1: ["1"], 5: ["1"], 0: ["2"]}


@pytest.mark.parametrize("workers", [1, 2])
def test_replies_come_in_the_order_of_virtual_time_and_time_goes_on_with_them(recorder: Path, workers: int) -> None:
    recorded = Recorded(recorder, workers, speed="lognormal", seconds_per_example=1.0, uplink_kbps=1.0)
    with recorded.grid as grid:
        ids, times, nodes = recorded.push(1, range(CLIENTS)), [], []
        assert grid.next_reply(ids, 0.5, 9) is None
        assert grid.clock() == 0.5
        while (reply := grid.next_reply(ids, float("inf"), 9)) is not None:
            times.append(grid.clock())
            nodes.append(reply.metadata.src_node_id)
            ids.remove(reply.metadata.reply_to_message_id)
        assert times == sorted(times)
        assert sorted(nodes) == list(range(CLIENTS)) != nodes
        slow = Traces(FleetConfig(speed="lognormal", seconds_per_example=1.0), SEED, CLIENTS, lambda node: 10)
        for node, at in zip(nodes, times, strict=True):
            assert at == pytest.approx(slow.work_s(Errand(node, 1, 1.0, 0)) + 8 * 1000 / 1000)


def test_a_message_that_expires_before_its_answer_is_due_is_never_run(recorder: Path) -> None:
    recorded = Recorded(recorder, 1, seconds_per_example=1.0)
    with recorded.grid as grid:
        (only,) = recorded.push(1, [0], ttl=4.0)
        reply = grid.next_reply([only], float("inf"), 1)
        assert reply is not None
        assert reply.error.reason == "no reply within 4 s"
        assert grid.clock() == 4.0
    assert recorded.given() == {}
