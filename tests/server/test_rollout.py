"""A roll-out, whatever devices answer: who fails never costs those who were not yet offered it, and none keeps it.

Devices are drawn: each has a format, room, a floor, and what it does with an offer, a check and an order to go back.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.deploy.offer import Ask, Report
from edge_runtime.errors import ConfigError
from server.rollout import MOVES, SENT, Heard, Order, Place, Plan, Rollout, bucket, parse_stages
from server.rollout_log import Begun, RolloutLog
from server.run_store import RunStore

NEW, OLD, BLOB, DIGEST = 70, 60, 1000, "d1"


@dataclass
class Device:
    """A device as it is; `acts` says what it does with each message that comes: "well", "fails" or "silent"."""

    acts: list[str]
    report: Report = Report(version=OLD, floor=OLD, formats=("onnx",), max_bytes=BLOB)
    takes: bool = True

    def answer(self, ask: Ask) -> Report | None:
        act = self.acts.pop(0) if self.acts else "well"
        runs, fell = (
            replace(self.report, version=NEW, floor=NEW, digest=DIGEST),
            replace(self.report, version=OLD, floor=NEW),
        )
        match ask, act:
            case Ask.INSTALL, "well" | "silent":
                self.report = runs
            case Ask.INSTALL, "falls back":
                self.report = fell
            case Ask.CHECK, "fails" | "falls back":
                self.report = fell
            case Ask.ROLL_BACK, "well" if self.report.version == NEW:
                self.report = fell
        return None if act == "silent" else self.report


ACTS = st.sampled_from(["well", "well", "well", "fails", "falls back", "silent"])
REPORTS = st.builds(
    Report,
    version=st.sampled_from([0, OLD]),
    floor=st.sampled_from([OLD, OLD, OLD, NEW, NEW + 1]),
    formats=st.sampled_from([("onnx",), ("onnx", "tflite"), ("tflite",), ()]),
    max_bytes=st.sampled_from([BLOB, BLOB, BLOB - 1]),
)
FLEETS = st.dictionaries(
    st.integers(0, 2**64 - 1), st.builds(Device, acts=st.lists(ACTS, max_size=5), report=REPORTS), max_size=30
)
HEALTHY = st.dictionaries(st.integers(0, 2**64 - 1), st.builds(Device, acts=st.just([])), min_size=1, max_size=30)
STAGES = st.lists(st.integers(1, 99), max_size=4, unique=True).map(lambda some: (*sorted(some), 100))
LIMITS = st.floats(0, 1)


@dataclass
class Played:
    """A roll-out that was played to its end against a fleet."""

    rollout: Rollout
    orders: list[Order]

    def asked(self, ask: Ask) -> list[int]:
        return [node for order in self.orders if order.ask is ask for node in order.nodes]


def play(fleet: dict[int, Device], stages: tuple[int, ...] = (10, 50, 100), limit: float = 0.2) -> Played:
    rollout = Rollout(Plan(NEW, DIGEST, "onnx", BLOB, stages, limit))
    rollout.meet(fleet)
    orders = []
    for order in rollout.orders():
        orders.append(order)
        for node in order.nodes:
            report = fleet[node].answer(order.ask)
            if report is not None:
                rollout.hear(node, report)
    return Played(rollout, orders)


@given(FLEETS, STAGES, LIMITS)
def test_a_device_is_offered_it_once_and_only_if_it_can_take_it(
    fleet: dict[int, Device], stages: tuple[int, ...], limit: float
) -> None:
    fits = {
        node
        for node, device in fleet.items()
        if "onnx" in device.report.formats and device.report.max_bytes >= BLOB and device.report.floor < NEW
    }
    offered = play(fleet, stages, limit).asked(Ask.INSTALL)
    assert len(offered) == len(set(offered))
    assert set(offered) <= fits


@given(FLEETS, STAGES, LIMITS)
def test_after_a_halt_nothing_is_offered_and_all_that_may_have_it_are_ordered_back(
    fleet: dict[int, Device], stages: tuple[int, ...], limit: float
) -> None:
    played = play(fleet, stages, limit)
    if not played.rollout.halted:
        return
    offered, back = played.asked(Ask.INSTALL), played.asked(Ask.ROLL_BACK)
    assert Ask.ROLL_BACK not in {order.ask for order in played.orders[:-1]}
    assert {device.place for device in played.rollout.devices.values()}.isdisjoint({Place.INSTALLED, Place.SILENT})
    # Of those that were offered it, who was not ordered back had said that it does not run it.
    for node in set(offered) - set(back):
        assert fleet[node].report.version != NEW
    for node in back:
        stuck = played.rollout.devices[node].place is Place.STUCK
        assert stuck or fleet[node].report.version != NEW


@given(FLEETS, STAGES, LIMITS)
def test_it_goes_on_only_while_failures_stay_below_the_limit(
    fleet: dict[int, Device], stages: tuple[int, ...], limit: float
) -> None:
    rollout = play(fleet, stages, limit).rollout
    for stage in rollout.stages[:-1] if rollout.halted and rollout.stages else rollout.stages:
        if stage.offered and stage.good:
            assert stage.installed >= 1
            assert stage.refused + stage.silent + stage.rolled_back <= limit * stage.offered
    assert all(stage.good for stage in rollout.stages[:-1])
    if rollout.stages and not rollout.stages[-1].good:
        assert rollout.halted


@given(HEALTHY, STAGES)
def test_a_healthy_fleet_ends_on_the_new_version_in_stages_that_nest(
    fleet: dict[int, Device], stages: tuple[int, ...]
) -> None:
    played = play(fleet, stages)
    assert not played.rollout.halted
    assert played.rollout.versions == {str(NEW): len(fleet)}
    assert sum(stage.offered for stage in played.rollout.stages) == len(fleet)
    reached: set[int] = set()
    for stage, order in zip(
        [stage for stage in played.rollout.stages if stage.offered],
        [order for order in played.orders if order.ask is Ask.INSTALL],
        strict=True,
    ):
        reached |= set(order.nodes)
        inside = {node for node in fleet if bucket(node, NEW) < stage.percent}
        assert reached == inside or (not inside and len(reached) == 1) or reached > inside


def test_the_table_knows_every_answer_and_leaves_nobody_waiting() -> None:
    for row in MOVES.values():
        assert row.keys() == set(Heard)
        assert set(row.values()).isdisjoint({Place.ASKED, Place.OFFERED, Place.ORDERED_BACK, Place.UNSURE})


def test_every_place_that_an_order_leads_to_can_be_heard_in() -> None:
    for moves in SENT.values():
        assert set(moves.values()) <= MOVES.keys()


class KilledError(Exception):
    """What ends a server in the middle here."""


class Deadly(RunStore):
    """A store whose process ends right before, or right after, its n-th event."""

    def __init__(self, directory: Path, number: int, after: bool) -> None:
        super().__init__(directory, resume=(directory / "events.sqlite").exists())
        self._left, self._after = number, after

    def append(self, *args: Any, **kwargs: Any) -> None:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise KilledError
        super().append(*args, **kwargs)
        if self._left == 0:
            raise KilledError


def play_on(store: RunStore, fleet: dict[int, Device], plan: Plan) -> Rollout:
    """Begin the roll-out, or go on with the one in the store."""
    log, rollout = RolloutLog(store, lambda line: None), Rollout(plan)
    if log.begun() is None:
        log.start(Begun(plan, "model", 0))
    else:
        log.read_into(rollout)
        rollout.go_on()
    rollout.meet(fleet)
    for order in rollout.orders():
        log.stages(rollout)
        log.order(order)
        # All are asked at once; their answers come one after another.
        for node, report in [(node, fleet[node].answer(order.ask)) for node in order.nodes]:
            log.device(order.ask, node, rollout.hear(node, report), report)
    log.stages(rollout)
    return rollout


@settings(max_examples=60, deadline=None)
@given(FLEETS, STAGES, st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=3))
def test_a_roll_out_whose_server_is_killed_goes_on_and_asks_nobody_twice(
    fleet: dict[int, Device], stages: tuple[int, ...], kills: list[tuple[int, bool]]
) -> None:
    plan = Plan(NEW, DIGEST, "onnx", BLOB, stages, 0.5)
    with tempfile.TemporaryDirectory() as folder:
        ran: set[int] = set()  # that run it, as their own answers have said
        for kill in [*kills, (0, False)]:
            store = Deadly(Path(folder), *kill)
            known = {
                int(event.data["client"]) for event in store.log("rollout_device") if event.data["place"] == "installed"
            }
            ran |= known
            asked_before = len(store.log("rollout_order"))
            try:
                rollout = play_on(store, fleet, plan)
            except KilledError:
                pass
            finally:
                later = store.log("rollout_order")[asked_before:]
                store.close()
            installs = [
                int(node) for order in later if order.data["ask"] == "install" for node in order.data["devices"]
            ]
            assert not ran & set(installs)
        assert rollout.halted or [stage.percent for stage in rollout.stages] == list(stages)
        store = Deadly(Path(folder), 0, False)
        assert [event.data["percent"] for event in store.log("rollout_stage")] == [s.percent for s in rollout.stages]
        store.close()
        assert not any(device.place in (Place.OFFERED, Place.UNSURE) for device in rollout.devices.values())
        if rollout.halted:
            places = {device.place for device in rollout.devices.values()}
            assert places.isdisjoint({Place.INSTALLED, Place.SILENT})


def test_a_healthy_fleet_ends_the_same_whenever_the_server_is_killed(tmp_path: Path) -> None:
    plan, nodes = Plan(NEW, DIGEST, "onnx", BLOB, (30, 100), 0.2), range(6)
    whole = play_on(RunStore(tmp_path / "whole"), {node: Device([]) for node in nodes}, plan)
    for number in range(2, 30):
        for after in (False, True):
            folder, fleet = tmp_path / f"{number}-{after}", {node: Device([]) for node in nodes}
            store = Deadly(folder, number, after)
            with contextlib.suppress(KilledError):
                play_on(store, fleet, plan)
            store.close()
            store = RunStore(folder, resume=True)
            rollout = play_on(store, fleet, plan)
            store.close()
            same = [(stage.percent, stage.offered, stage.installed) for stage in whole.stages]
            assert [(stage.percent, stage.offered, stage.installed) for stage in rollout.stages] == same
            assert rollout.versions == {str(NEW): len(nodes)}


def test_a_canary_that_fails_halts_it_before_the_others_see_it() -> None:
    fleet = {node: Device(["well", "fails"]) for node in range(40)}
    played = play(fleet)
    canaries = {node for node in fleet if bucket(node, NEW) < 10}
    assert set(played.asked(Ask.INSTALL)) == canaries
    assert len(canaries) in range(1, 12)
    assert "none of" in played.rollout.halted
    assert played.rollout.versions == {str(OLD): 40}


def test_devices_that_roll_back_later_halt_it_and_the_rest_goes_back() -> None:
    """Canaries are well in their own stage, and fall back in the next."""
    canary = Device(["well", "well", "well", "falls back"])
    fleet = {
        node: replace(canary, acts=list(canary.acts)) if bucket(node, NEW) < 10 else Device([]) for node in range(40)
    }
    played = play(fleet, limit=0.1)
    first, second = played.rollout.stages
    assert first.good
    assert not second.good
    assert "rolled it back" in played.rollout.halted
    assert {device.report.version for device in fleet.values()} == {OLD}


def test_who_falls_silent_may_run_it_and_is_ordered_back() -> None:
    fleet = {node: Device(["well", "silent"]) for node in range(8)}
    played = play(fleet)
    assert set(played.asked(Ask.ROLL_BACK)) == set(played.asked(Ask.INSTALL))
    assert {device.report.version for device in fleet.values()} == {OLD}


def test_who_does_not_go_back_is_named_stuck() -> None:
    fleet = {1: Device(["well", "well", "fails"]), 2: Device(["well", "fails"])}
    played = play(fleet, stages=(100,), limit=0.0)
    assert played.rollout.record()["devices"] == {"refused": 1, "stuck": 1}
    assert played.rollout.versions == {str(OLD): 1, str(NEW): 1}


def test_a_late_device_takes_part_from_the_next_stage_on() -> None:
    rollout = Rollout(Plan(NEW, DIGEST, "onnx", BLOB, (10, 100), 0.0))
    rollout.meet(range(20))
    seen = []
    for order in rollout.orders():
        seen.append(order)
        rollout.meet([99])
        for node in order.nodes:
            version = NEW if order.ask is not Ask.STATE else OLD
            rollout.hear(node, Report(version, DIGEST, version, ("onnx",), BLOB))
    assert 99 not in seen[0].nodes
    assert rollout.devices[99].place is Place.INSTALLED


def test_an_answer_that_nobody_asked_for_changes_nothing() -> None:
    rollout = Rollout(Plan(NEW, DIGEST, "onnx", BLOB, (100,), 0.0))
    rollout.meet([1, 2])
    orders = rollout.orders()
    next(orders)
    rollout.hear(1, Report(OLD, "", OLD, ("onnx",), BLOB))
    rollout.hear(1, Report(NEW, DIGEST, NEW, ("onnx",), BLOB))
    rollout.hear(2, Report(0, "", 0, ("onnx",), BLOB - 1))
    assert next(orders) == Order(Ask.INSTALL, (1,))
    rollout.hear(2, Report(NEW, DIGEST, NEW, ("onnx",), BLOB))
    assert rollout.devices[2].place is Place.UNABLE


def test_another_release_under_the_same_version_is_not_taken_for_this_one() -> None:
    rollout = Rollout(Plan(NEW, DIGEST, "onnx", BLOB, (100,), 0.0))
    rollout.meet([1])
    for order in rollout.orders():
        assert order.ask is Ask.STATE
        rollout.hear(1, Report(NEW, "d2", NEW, ("onnx",), BLOB))
    assert "had this version" in rollout.halted


def test_a_fleet_that_takes_no_roll_outs_says_why() -> None:
    rollout = Rollout(Plan(NEW, DIGEST, "onnx", BLOB, (10, 100), 0.0))
    rollout.meet(range(3))
    for order in rollout.orders():
        for node in order.nodes:
            rollout.hear(node, Report(reason="no roll-outs are taken here"))
    assert rollout.halted == "no device can take it; most say: no roll-outs are taken here"
    assert rollout.record()["devices"] == {"unable": 3}


def test_canaries_differ_between_versions_and_are_spread_evenly() -> None:
    canaries = [{node for node in range(2000) if bucket(node, version) < 10} for version in (1, 2)]
    assert canaries[0] != canaries[1]
    for some in canaries:
        assert 130 < len(some) < 270  # 200 wanted; a binomial's standard deviation is 13


@pytest.mark.parametrize("words", [(), ("10",), ("50", "10", "100"), ("10", "10", "100"), ("0", "100"), ("ten", "100")])
def test_stages_that_make_no_sense_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="percentages that rise to 100"):
        parse_stages(words)
