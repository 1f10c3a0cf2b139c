"""A device declines what its owner's conditions forbid, before any work, and says how it is with all else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from clients.eligibility import device_mod, look
from edge_runtime.device.report import DeviceReport, parse_report
from edge_runtime.errors import ConfigError
from edge_runtime.secagg.transitions import FIRST, HELLO
from edge_runtime.secagg.transitions import RECORD as SECURE
from simulations.grid import assume_identity

BARE = {"device-root": os.devnull}
TASK = {"task": ConfigRecord({"round": 3, "local.clip": 0.0})}


@pytest.fixture(autouse=True)
def identity() -> None:
    """Building a message needs to know which node this process is."""
    assume_identity(7)


class Device:
    """The mod around an app that counts how often it is asked."""

    def __init__(self, node_config: Mapping[str, Any], state: RecordDict | None = None) -> None:
        self.worked = 0
        self.context = Context(1, 7, {**BARE, **node_config}, state or RecordDict(), {})

    def ask(self, kind: str = "train", content: Mapping[str, Any] = TASK) -> RecordDict:
        def app(message: Message, context: Context) -> Message:
            self.worked += 1
            return Message(RecordDict({"metrics": MetricRecord({"num-examples": 5})}), reply_to=message)

        message = Message(RecordDict(dict(content)), 7, kind, group_id="3")
        message.metadata.__dict__["_message_id"] = "asked"
        return device_mod(message, self.context, app).content


def report_of(content: RecordDict) -> DeviceReport:
    return parse_report(content.config_records["device"])


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_closed_gate_really_stops_work(kind: str) -> None:
    device = Device({"only-on-mains": True, "device.power": "battery"})
    content = device.ask(kind)
    assert device.worked == 0
    assert set(content) == {"device"}
    report = report_of(content)
    assert (report.eligible, report.why_not, report.retry_s) == (False, "on battery", 300.0)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_an_open_gate_lets_work_through_and_the_answer_says_how_the_device_is(kind: str) -> None:
    device = Device({"only-on-mains": True, "device.power": "mains", "memory-budget": "8 MiB", "device-name": "pi-7"})
    content = device.ask(kind)
    assert device.worked == 1
    assert content.metric_records["metrics"]["num-examples"] == 5
    report = report_of(content)
    assert (report.eligible, report.power, report.memory_budget, report.name) == (True, "mains", 8 << 20, "pi-7")


def test_a_query_is_no_work_and_is_answered_all_the_same() -> None:
    device = Device({"device.eligible": False, "device.why_not": "asleep"})
    assert report_of(device.ask("query", {})).why_not == "asleep"
    assert device.worked == 1


@pytest.mark.parametrize("phase", [HELLO, "unmask"])
def test_a_secure_rounds_other_phases_are_answered_without_a_word_more(phase: str) -> None:
    """A phase of secure aggregation that a device leaves out costs the others their round."""
    device = Device({"device.eligible": False})
    answer = device.ask("train", {SECURE: ConfigRecord({"phase": phase})})
    assert device.worked == 1
    assert "device" not in answer


def test_a_secure_round_is_declined_at_its_start_and_an_earlier_ones_secrets_are_wiped() -> None:
    left = RecordDict({"hedgerow.secagg": ConfigRecord({"client": b"secret"})})
    device = Device({"device.eligible": False}, left)
    device.ask("train", {**TASK, SECURE: ConfigRecord({"phase": FIRST})})
    assert device.worked == 0
    assert not device.context.state


def test_what_training_took_is_not_told_where_one_client_is_to_stay_unknown() -> None:
    device = Device({"device.rss": 5 << 20, "device.temperature_c": 50})
    assert report_of(device.ask()).rss == 5 << 20
    secure = {**TASK, SECURE: ConfigRecord({"phase": FIRST})}
    local = {"task": ConfigRecord({"round": 3, "local.clip": 1.0})}
    for content in (secure, local):
        report = report_of(device.ask("train", content))
        assert (report.rss, report.temperature_c) == (None, 50.0)


def test_a_device_that_training_has_made_too_hot_says_so_with_its_update(tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/thermal/thermal_zone0/temp"
    zone.parent.mkdir(parents=True)
    zone.write_text("60000")
    context = Context(1, 7, {"device-root": str(tmp_path), "max-temperature": 70}, RecordDict(), {})

    def train(message: Message, context: Context) -> Message:
        zone.write_text("71500")
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 5})}), reply_to=message)

    def message() -> Message:
        made = Message(RecordDict(dict(TASK)), 7, "train", group_id="3")
        made.metadata.__dict__["_message_id"] = "asked"
        return made

    done = device_mod(message(), context, train).content
    assert "metrics" in done
    assert report_of(done).why_not.startswith("too hot")
    assert set(device_mod(message(), context, train).content) == {"device"}


@pytest.mark.parametrize(("minute", "eligible"), [(23 * 60, True), (12 * 60, False)])
def test_hours_by_the_devices_own_clock(minute: int, eligible: bool) -> None:
    report = look({**BARE, "hours": "22-6", "device.minute": minute})
    assert report.eligible == eligible
    assert report.retry_s == (None if eligible else 10 * 3600)


def test_a_node_without_conditions_tells_of_this_machine_and_is_eligible() -> None:
    report = look({})
    assert report.eligible
    assert report.arch == os.uname().machine
    assert report.isa
    assert (report.rss or 0) > 1 << 20
    assert parse_report(report.record())


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"device.colour": "red"}, "device.colour: no such key"),
        ({"device.power": "solar"}, "power = str: must be mains or battery"),
        ({"device.rss": "5 MiB"}, "rss = str: must be a whole number"),
        ({"device.minute": 1440}, "device.minute = 1440"),
        ({"only-on-mains": 1}, "only-on-mains = 1"),
    ],
)
def test_a_wrong_key_is_the_owners_error(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        look({**BARE, **wrong})
