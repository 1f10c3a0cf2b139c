"""What the server knows of every device: who may be asked, what became of whom, and what of it the table shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from edge_runtime.deploy.offer import RUNNING
from edge_runtime.device.report import DeviceReport
from server.checkpoint import pack, unpack
from server.fleet import Fleet
from server.link import Answer, read_device, why_declined
from server.rounds import DECLINED, DROPPED, LATE, TAKEN, Failure, Outcome, RoundResult
from server.run_store import RunStore

HOT = DeviceReport(eligible=False, why_not="too hot: 81 C, at most 70", retry_s=120.0, temperature_c=81.0)


class Clocks:
    """The run's time and the world's, each moved by hand."""

    run = 1000.0
    unix = 1.8e9

    def fleet(self, **more: Any) -> Fleet:
        return Fleet(lambda: self.run, unix=lambda: self.unix, **more)

    def pass_by(self, seconds: float) -> None:
        self.run += seconds
        self.unix += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def answer(node: int, report: DeviceReport | None = None, **figures: Any) -> Answer:
    content = RecordDict()
    if report is not None:
        content["device"] = ConfigRecord({**report.record()})
    if figures:
        content["metrics"] = MetricRecord({name.replace("_", "-"): value for name, value in figures.items()})
    return Answer(node, content)


def result(**ends: Any) -> RoundResult:
    taken = tuple(map(str, ends.get("taken", ())))
    failures = tuple(Failure(str(node), reason) for node, reason in ends.get("dropped", {}).items())
    declined = tuple(Failure(str(node), reason) for node, reason in ends.get("declined", {}).items())
    late = tuple(map(str, ends.get("late", ())))
    return RoundResult(3, None, taken, failures, None, 0, None, late=late, declined=declined)


def table(store: RunStore) -> dict[int, dict[str, Any]]:
    return {int(node): json.loads(data) for node, data in store.read("SELECT node, data FROM devices")}


def test_who_declines_is_left_alone_until_the_time_it_named(clocks: Clocks) -> None:
    fleet = clocks.fleet()
    assert fleet.eligible([1, 2, 3]) == [1, 2, 3]
    fleet.hear(answer(2, HOT))
    fleet.hear(answer(3, DeviceReport(eligible=False)))
    assert fleet.eligible([1, 2, 3]) == [1]
    assert fleet.why_not([1, 2, 3]) == {"too hot": 1, "not eligible": 1}
    assert fleet.next_s([1, 2, 3]) == 60.0  # the third did not say when
    clocks.pass_by(60.0)
    assert fleet.eligible([1, 2, 3]) == [1, 3]
    clocks.pass_by(59.9)
    assert fleet.eligible([1, 2, 3]) == [1, 3]
    clocks.pass_by(0.1)
    assert fleet.eligible([1, 2, 3]) == [1, 2, 3]
    assert fleet.next_s([1, 2, 3]) is None


def test_a_device_that_is_well_again_before_its_time_may_be_asked(clocks: Clocks) -> None:
    fleet = clocks.fleet()
    fleet.hear(answer(2, HOT))
    fleet.hear(answer(2, DeviceReport(temperature_c=40.0)))
    assert fleet.eligible([2]) == [2]


def test_a_memory_budget_that_is_too_small_is_not_asked_for_what_it_can_not_hold(clocks: Clocks) -> None:
    fleet = clocks.fleet()
    for node, budget in ((1, None), (2, 4 << 20), (3, 8 << 20)):
        fleet.hear(answer(node, DeviceReport(memory_budget=budget)))
    assert fleet.eligible([1, 2, 3], needs=5 << 20) == [1, 3]
    assert fleet.why_not([1, 2, 3]) == {"memory budget too small": 1}
    assert fleet.eligible([1, 2, 3], needs=4 << 20) == [1, 2, 3]


def test_outcomes_say_what_became_of_whom_and_how_long_it_took(clocks: Clocks) -> None:
    fleet = clocks.fleet()
    fleet.eligible(range(1, 6), needs=10 << 20)
    fleet.ask([1, 2, 3, 4, 5])
    clocks.pass_by(7.0)
    fleet.hear(answer(1, DeviceReport(memory_available=25 << 20), num_examples=40, loss=1.5))
    fleet.hear(Answer(2, None, "TimeoutError: away"))
    fleet.hear(answer(3, HOT))
    clocks.pass_by(5.0)
    outcomes = fleet.settle(
        result(taken=[1], dropped={2: "TimeoutError: away", 4: "no reply"}, declined={3: "hot"}, late=[5])
    )
    assert outcomes == (
        Outcome(1, TAKEN, 40, 1.5, 7.0, 2.5),
        Outcome(2, DROPPED, seconds=7.0),
        Outcome(3, DECLINED),
        Outcome(4, DROPPED, seconds=12.0),
        Outcome(5, LATE, seconds=12.0),
    )
    assert fleet.settle(result()) == ()


def test_where_privacy_is_promised_nothing_is_noted_that_depends_on_a_clients_data(
    clocks: Clocks, tmp_path: Path
) -> None:
    store, fleet = RunStore(tmp_path), clocks.fleet(private=True)
    fleet.open(store)
    fleet.ask([1, 2])
    clocks.pass_by(7.0)
    fleet.hear(answer(1, DeviceReport(temperature_c=50.0), num_examples=40, loss=1.5))
    assert fleet.settle(result(taken=[1], late=[2])) == (Outcome(1, TAKEN), Outcome(2, LATE))
    fleet.tell()
    rows = table(store)
    assert rows[1]["seconds"] is rows[2]["seconds"] is None
    assert rows[1]["report"]["temperature_c"] == 50.0
    assert rows[1]["rounds"] == 1
    assert b"1.5" not in pack(fleet.state())
    store.close()


def test_under_secure_aggregation_a_client_lost_late_is_in_the_sum_and_drops_are_counted_by_phase(
    clocks: Clocks, tmp_path: Path
) -> None:
    store, fleet = RunStore(tmp_path), clocks.fleet(private=True)
    fleet.open(store)
    fleet.ask([1, 2])
    lost = {1: "unmask: no reply", 2: "share_keys: no reply", 3: "TypeError: no phase"}
    assert fleet.settle(result(taken=[1], dropped=lost)) == (
        Outcome(1, TAKEN),
        Outcome(2, DROPPED),
        Outcome(3, DROPPED),
    )
    fleet.tell()
    assert {node: row["dropped_in"] for node, row in table(store).items()} == {1: {}, 2: {"share_keys": 1}, 3: {}}
    store.close()


def test_the_table_has_all_that_is_known(clocks: Clocks, tmp_path: Path) -> None:
    store, fleet = RunStore(tmp_path), clocks.fleet()
    fleet.open(store)
    fleet.online([1, 2, 2**64 - 1])
    fleet.ask([1, 2])
    clocks.pass_by(3.0)
    fleet.hear(answer(1, DeviceReport(name="pi-1"), num_examples=4, loss=1.0, **{RUNNING: 7}))
    fleet.hear(answer(2, HOT))
    fleet.settle(result(taken=[1], declined={2: HOT.why_not}))
    fleet.tell()
    rows = table(store)
    assert rows[1] == {
        "report": DeviceReport(name="pi-1").as_json(), "eligible": True, "why_not": "", "retry_s": None, "rounds": 1,
        "dropped": 0, "late": 0, "declined": 0, "last_reason": "", "dropped_in": {}, "running": 7,
        "seconds": 3.0,
    }  # fmt: skip
    assert (rows[2]["eligible"], rows[2]["why_not"]) == (False, HOT.why_not)
    assert rows[2]["retry_s"] == clocks.unix + 120
    assert (rows[2]["declined"], rows[2]["last_reason"]) == (1, HOT.why_not)
    assert rows[2**64 - 1]["report"] == {}
    store.close()


def test_idle_devices_are_seen_every_ten_seconds_and_no_more(clocks: Clocks, tmp_path: Path) -> None:
    store, fleet = RunStore(tmp_path), clocks.fleet()
    fleet.open(store)
    seen = set()
    for _ in range(31):
        fleet.online([5])
        seen.update(store.read("SELECT seen_s FROM devices WHERE node = '5'"))
        clocks.pass_by(1.0)
    assert [when - 1.8e9 for (when,) in sorted(seen)] == [0.0, 10.0, 20.0, 30.0]
    store.close()


def test_a_sighting_of_an_idle_device_leaves_its_row_as_it_is(clocks: Clocks, tmp_path: Path) -> None:
    store, fleet = RunStore(tmp_path), clocks.fleet()
    fleet.open(store)
    fleet.hear(answer(1, DeviceReport(name="pi-1")))
    fleet.tell()
    before = table(store)
    clocks.pass_by(60.0)
    fleet.online([1])
    assert table(store) == before
    store.close()


@pytest.mark.parametrize("stood_still", [True, False])
def test_a_restored_fleet_goes_on_exactly_as_the_original(clocks: Clocks, stood_still: bool) -> None:
    """Also where the run's time begins anew, and is set only after the fleet was restored."""
    fleet = clocks.fleet()
    fleet.eligible(range(5), needs=100)
    fleet.ask(range(5))
    clocks.pass_by(3.0)
    fleet.hear(answer(0, DeviceReport(memory_budget=50), num_examples=4, loss=1.0))
    fleet.hear(answer(1, HOT))
    fleet.settle(result(taken=[0], declined={1: "hot"}))
    fleet.hear(answer(2, DeviceReport(), num_examples=9, loss=0.1))
    content = pack(fleet.state())
    other = Clocks()
    restored = other.fleet()
    other.run = 0.0
    restored.restore(unpack(content))
    other.run = clocks.run if stood_still else 77.0
    for one, its in ((fleet, clocks), (restored, other)):
        assert one.eligible(range(5), needs=100) == [2, 3, 4]
        its.pass_by(119.0)
        assert one.eligible(range(5), needs=10) == [0, 2, 3, 4]
        its.pass_by(1.0)
        assert one.eligible(range(5), needs=10) == [0, 1, 2, 3, 4]
        outcomes = one.settle(result(taken=[2], late=[3]))
        assert outcomes == (Outcome(2, TAKEN, 9, 0.1, 3.0), Outcome(3, LATE, seconds=123.0))
    if stood_still:
        assert pack(restored.state()) == pack(fleet.state())


def test_what_devices_said_before_a_restart_still_stands_in_the_table_after_the_next_round(
    clocks: Clocks, tmp_path: Path
) -> None:
    store, fleet = RunStore(tmp_path), clocks.fleet()
    fleet.open(store)
    fleet.hear(answer(1, DeviceReport(name="pi-1", temperature_c=40.0)))
    fleet.tell()
    state = unpack(pack(fleet.state()))
    restored = clocks.fleet()
    restored.restore(state)
    restored.open(store)
    restored.ask([1])
    restored.settle(result(dropped={1: "no reply"}))
    restored.tell()
    row = table(store)[1]
    assert (row["report"]["name"], row["dropped"]) == ("pi-1", 1)
    store.close()


def test_a_malformed_report_costs_nothing_but_itself(clocks: Clocks) -> None:
    fleet = clocks.fleet()
    fleet.ask([1])
    bad = answer(1, None, num_examples=4, loss=1.0)
    assert bad.content is not None
    bad.content["device"] = ConfigRecord({"eligible": "never", "temperature_c": 1e9})
    assert why_declined(bad.content) is None
    fleet.hear(bad)
    assert fleet.eligible([1]) == [1]
    assert fleet.settle(result(taken=[1])) == (Outcome(1, TAKEN, 4, 1.0, 0.0),)


def test_to_decline_is_to_bring_nothing_else() -> None:
    said = answer(1, HOT).content
    assert said is not None
    assert why_declined(said) == HOT.why_not
    assert read_device(said) == HOT
    done = answer(1, HOT, num_examples=4).content
    assert done is not None
    assert why_declined(done) is None
    well = answer(1, DeviceReport()).content
    assert well is not None
    assert why_declined(well) is None


def test_state_of_many_devices_is_small(clocks: Clocks) -> None:
    fleet = clocks.fleet()
    for node in range(10_000):
        fleet.hear(answer(node, DeviceReport(name="x" * 60, memory_budget=node)))
    assert len(pack(fleet.state())) < 1_200_000
