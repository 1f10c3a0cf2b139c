"""A device's word of itself: what the probe reads of a board's files, its owner's conditions, the report's bounds."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.device.policy import DAY_MIN, Policy, parse_hours
from edge_runtime.device.probe import Readings, probe
from edge_runtime.device.report import DeviceReport, parse_report
from edge_runtime.errors import ConfigError, PeerError

PI = {
    "proc/meminfo": "MemTotal:        3885396 kB\nMemFree:          120000 kB\nMemAvailable:    2048000 kB\n",
    "proc/self/status": "Name:\tpython\nVmHWM:\t   91000 kB\nVmRSS:\t   72000 kB\n",
    "proc/self/cgroup": "0::/system.slice/hedgerow.service\n",
    "proc/net/route": "Iface\tDestination\tGateway\neth0\t00000000\t0101A8C0\t0003\neth0\t0001A8C0\t00000000\t0001\n",
    "sys/class/thermal/thermal_zone0/temp": "54768\n",
    "sys/class/thermal/cooling_device0/type": "gpio-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "1\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50000",
    "sys/class/power_supply/": "",
}


def board(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_a_raspberry_pi(tmp_path: Path) -> None:
    """What has happened since the start (the word's upper half) is not of this moment."""
    assert probe(board(tmp_path, PI)) == Readings(
        memory_available=2_048_000 * 1024,
        rss=72_000 * 1024,
        rss_peak=91_000 * 1024,
        temperature_c=54.768,
        throttled=False,
        under_voltage=False,
        power="mains",
        metered=None,
    )


@pytest.mark.parametrize(
    ("word", "throttled", "under_voltage"),
    [("0", False, False), ("50005", True, True), ("0x1", False, True), ("80008", True, False), ("2", True, False)],
)
@pytest.mark.parametrize("place", ["soc/soc:firmware", "soc:firmware", "soc@107c000000/soc@107c000000:firmware"])
def test_the_firmwares_word(tmp_path: Path, place: str, word: str, throttled: bool, under_voltage: bool) -> None:
    read = probe(board(tmp_path, {f"sys/devices/platform/{place}/get_throttled": word}))
    assert (read.throttled, read.under_voltage) == (throttled, under_voltage)


def test_a_board_without_that_word_tells_by_its_cooling_and_its_voltage_monitor(tmp_path: Path) -> None:
    files = {
        "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0\n",
        "sys/class/thermal/cooling_device0/cur_state": "2\n",
        "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
        "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
        "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1\n",
    }
    read = probe(board(tmp_path, files))
    assert (read.throttled, read.under_voltage) == (True, True)
    board(tmp_path, {"sys/class/thermal/cooling_device0/cur_state": "0", "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0"})
    read = probe(tmp_path)
    assert (read.throttled, read.under_voltage) == (False, False)


def supply(name: str, **files: str) -> dict[str, str]:
    return {f"sys/class/power_supply/{name}/{file}": content for file, content in files.items()}


@pytest.mark.parametrize(
    ("files", "power"),
    [
        ({}, ""),
        ({"sys/class/power_supply/": ""}, "mains"),
        (supply("BAT0", type="Battery", status="Discharging"), "battery"),
        (supply("BAT0", type="Battery", status="Charging"), "mains"),
        (supply("BAT0", type="Battery", status="Unknown"), ""),
        (supply("BAT0", type="Battery", status="Not charging") | supply("AC", type="Mains", online="1"), "mains"),
        (supply("BAT0", type="Battery", status="Full") | supply("AC", type="Mains", online="0"), "battery"),
        (supply("mouse", type="Battery", status="Discharging", scope="Device"), "mains"),
    ],
)
def test_power(tmp_path: Path, files: dict[str, str], power: str) -> None:
    assert probe(board(tmp_path, files)).power == power


@pytest.mark.parametrize(("limit", "left"), [("max", 2_048_000 * 1024), ("300000000", 200_000_000), ("50000000", 0)])
def test_a_control_groups_limit_counts(tmp_path: Path, limit: str, left: int) -> None:
    folder = "sys/fs/cgroup/system.slice/hedgerow.service"
    root = board(tmp_path, PI | {f"{folder}/memory.max": limit, f"{folder}/memory.current": "100000000"})
    assert probe(root).memory_available == left


@pytest.mark.parametrize(
    ("ways", "metered"), [(["wwan0"], True), (["wwan0", "eth0"], None), (["wlan0"], None), ([], None)]
)
def test_a_modem_as_the_only_way_out_is_metered(tmp_path: Path, ways: list[str], metered: bool | None) -> None:
    lines = ["Iface\tDestination\tGateway", *(f"{way}\t00000000\t0101A8C0" for way in ways), "lo\t0000007F\t0"]
    assert probe(board(tmp_path, {"proc/net/route": "\n".join(lines)})).metered is metered


def test_a_sensor_that_says_nonsense_says_nothing(tmp_path: Path) -> None:
    zones = {"thermal_zone0/temp": "-274000", "thermal_zone1/temp": "41000", "thermal_zone2/temp": "what?"}
    assert probe(board(tmp_path, {f"sys/class/thermal/{k}": v for k, v in zones.items()})).temperature_c == 41.0


@pytest.mark.parametrize("root", ["empty", os.devnull])
def test_where_nothing_is_nothing_is_known(tmp_path: Path, root: str) -> None:
    assert probe(tmp_path / root) == Readings()


@given(content=st.binary(max_size=200), name=st.sampled_from(sorted(name for name in PI if not name.endswith("/"))))
def test_whatever_stands_in_a_file_nothing_is_raised(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    root = board(tmp_path_factory.mktemp("board"), PI)
    (root / name).write_bytes(content)
    found = probe(root)
    assert parse_report(DeviceReport(**{k: getattr(found, k) for k in Readings.__slots__}).record())


def test_this_machine_tells_its_own_memory() -> None:
    """As psutil reads it, in its own way."""
    read, memory = probe(), psutil.Process().memory_info()
    assert read.rss is not None
    assert read.rss_peak is not None
    assert abs(read.rss - memory.rss) < 32 << 20
    assert read.rss_peak >= read.rss
    assert 0 < (read.memory_available or 0) <= psutil.virtual_memory().total


COOL = Readings(memory_available=512 << 20, temperature_c=50.0, power="mains")


@pytest.mark.parametrize(
    ("wish", "now", "why"),
    [
        ({"only-on-mains": True}, replace(COOL, power="battery"), "on battery"),
        ({"only-on-mains": True}, replace(COOL, power=""), "cannot tell its power supply"),
        ({"not-metered": True}, replace(COOL, metered=True), "on a metered network"),
        ({"max-temperature": 70}, replace(COOL, temperature_c=70.4), "too hot: 70 C, at most 70"),
        ({"max-temperature": 70.0}, replace(COOL, temperature_c=None), "cannot tell its temperature"),
        ({"min-memory": "600 MiB"}, COOL, "too little memory: 512.0 MiB free, at least 600.0 MiB"),
        ({"min-memory": "1 MiB"}, replace(COOL, memory_available=None), "cannot tell its free memory"),
        ({"hours": "22-6"}, COOL, "out of its hours"),
    ],
)
def test_each_condition_stops_training_and_says_why(wish: dict[str, Any], now: Readings, why: str) -> None:
    policy = Policy.from_mapping({**wish, "partition-id": 3})
    verdict = policy.judge(now, 12 * 60)
    assert (verdict.eligible, verdict.why_not) == (False, why)
    assert verdict.retry_s is not None
    assert verdict.retry_s > 0
    kind = {"min-memory": "400 MiB", "hours": "22-6, 11-13", "max-temperature": 71}
    easier = Policy.from_mapping({name: kind.get(name, value) for name, value in wish.items()})
    assert easier.judge(COOL, 12 * 60).eligible
    assert Policy().judge(now, 12 * 60).eligible


def test_of_several_reasons_the_one_that_lasts_longest_is_told() -> None:
    policy = Policy.from_mapping({"hours": "13-14", "min-memory": "1 GiB", "only-on-mains": True})
    verdict = policy.judge(replace(COOL, power="battery"), 12 * 60 + 30)
    assert (verdict.why_not, verdict.retry_s) == ("out of its hours", 1800)
    assert policy.judge(replace(COOL, power="battery"), 12 * 60 + 58).why_not == "on battery"


@given(begin=st.integers(0, DAY_MIN - 1), end=st.integers(0, DAY_MIN - 1), minute=st.integers(0, DAY_MIN - 1))
def test_a_device_that_comes_back_when_told_to_is_within_its_hours(begin: int, end: int, minute: int) -> None:
    text = f"{begin // 60}:{begin % 60:02}-{end // 60}:{end % 60:02}"
    policy = Policy(hours=parse_hours(text))
    within = {at % DAY_MIN for at in range(begin, end if end > begin else end + DAY_MIN)}
    verdict = policy.judge(Readings(), minute)
    assert verdict.eligible == (minute in within)
    if verdict.retry_s is not None:
        assert policy.judge(Readings(), (minute + verdict.retry_s / 60) % DAY_MIN).eligible
        assert not policy.judge(Readings(), (minute + verdict.retry_s / 60 - 1) % DAY_MIN).eligible


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"only-on-mains": "yes"}, "node config: only-on-mains = 'yes': must be true or false"),
        ({"max-temperature": "70"}, "max-temperature = '70': must be degrees"),
        ({"max-temperature": float("nan")}, "max-temperature = nan: must be degrees"),
        ({"min-memory": "a lot"}, "node config: min-memory = 'a lot': must be bytes"),
        ({"hours": "25-3"}, "node config: hours = '25-3': must be parts of the day"),
        ({"hours": "at night"}, "must be parts of the day"),
    ],
)
def test_a_wrong_condition_is_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text.replace("(", r"\(")):
        Policy.from_mapping(wrong)


FULL = DeviceReport(
    name="pi-7", version="0.1.0", arch="aarch64", isa="arm_neon", memory_budget=8 << 20, memory_available=1 << 29,
    rss=72 << 20, rss_peak=91 << 20, temperature_c=54.8, throttled=False, under_voltage=True, power="battery",
    metered=False, eligible=False, why_not="on battery", retry_s=300.0,
)  # fmt: skip


@pytest.mark.parametrize("report", [DeviceReport(), FULL, replace(FULL, eligible=True, temperature_c=-3.5)])
def test_a_report_comes_back_as_it_was(report: DeviceReport) -> None:
    assert parse_report(report.record()) == report


@given(
    name=st.text(max_size=300),
    why_not=st.text(max_size=900),
    temperature_c=st.floats() | st.integers(),
    rss=st.integers(),
    retry_s=st.floats(),
    power=st.sampled_from(["mains", "battery", "", "solar"]),
)
def test_whatever_a_device_finds_of_itself_it_says_what_the_other_side_takes(**found: Any) -> None:
    report = parse_report(DeviceReport(**found).record())
    assert report.name.isprintable()
    assert report.why_not.isprintable()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"name": "x" * 65}, "device report: name = str: must be printable text of at most 64 letters"),
        ({"why_not": "a\nb"}, "why_not = str: must be printable"),
        ({"name": 3}, "name = 3"),
        ({"rss": -1}, "rss = -1: must be a whole number from 0"),
        ({"rss": 1 << 60}, "rss = "),
        ({"rss": 1.0}, "rss = 1.0"),
        ({"rss": True}, "rss = True"),
        ({"temperature_c": float("nan")}, "temperature_c = nan"),
        ({"temperature_c": 20}, "temperature_c = 20"),
        ({"retry_s": 1e9}, "retry_s = "),
        ({"power": "solar"}, "power = str: must be mains or battery"),
        ({"power": []}, "power = list"),
        ({"eligible": 1}, "eligible = 1: must be true or false"),
    ],
)
def test_a_wrong_report_is_refused_in_one_line(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(PeerError) as caught:
        parse_report(FULL.record() | wrong)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_fields_of_a_later_release_are_left_alone() -> None:
    assert parse_report(FULL.record() | {"cores": 4}) == FULL


def test_what_training_took_can_be_left_out() -> None:
    told = FULL.without_use()
    assert (told.rss, told.rss_peak, told.memory_available) == (None, None, None)
    assert told.temperature_c == FULL.temperature_c
