"""How a Linux board is: memory, heat, throttling, power and network, read from the files under a root.

What is not there, cannot be read or makes no sense is not known: nothing here raises. The files are the kernel's own
(proc(5), cgroups(7), Documentation/ABI/testing/sysfs-class-{thermal,power,hwmon}) and the Raspberry Pi firmware's word
`get_throttled`, of which bit 0 says under-voltage, 1 that the frequency is capped, 2 throttled, 3 the soft temperature
limit.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

MAX_FILE = 64 << 10
_PLAUSIBLE_C = (-60.0, 150.0)
_UNDER_VOLTAGE, _THROTTLED = 0b0001, 0b1110
_MODEMS = ("wwan", "ppp", "rmnet")  # what mobile networks' interfaces are called
_DEFAULT_ROUTE = "00000000"


@dataclass(frozen=True, slots=True)
class Readings:
    """A device at one moment, in bytes and degrees Celsius; None, or empty: not known."""

    memory_available: int | None = None
    rss: int | None = None
    rss_peak: int | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    under_voltage: bool | None = None
    power: str = ""
    metered: bool | None = None


def probe(root: Path = Path("/")) -> Readings:
    """Read all of it; some tens of small files."""
    status = _kilobytes(root / "proc/self/status")
    firmware = _firmware(root)
    return Readings(
        memory_available=_memory_available(root),
        rss=status.get("VmRSS"),
        rss_peak=status.get("VmHWM"),
        temperature_c=_temperature(root / "sys/class/thermal"),
        throttled=_cooled(root / "sys/class/thermal") if firmware is None else bool(firmware & _THROTTLED),
        under_voltage=_low_voltage(root / "sys/class/hwmon") if firmware is None else bool(firmware & _UNDER_VOLTAGE),
        power=_power(root / "sys/class/power_supply"),
        metered=_metered(root / "proc/net/route"),
    )


def _memory_available(root: Path) -> int | None:
    """What the system has left, or less: what its control group leaves this process."""
    left = _kilobytes(root / "proc/meminfo").get("MemAvailable")
    group = next((line[3:] for line in _lines(root / "proc/self/cgroup") if line.startswith("0::/")), None)
    if group is None:
        return left
    folder = root / "sys/fs/cgroup" / group.lstrip("/")
    most, used = _whole(folder / "memory.max"), _whole(folder / "memory.current")  # `max` is no number: no limit
    if most is None or used is None:
        return left
    return max(0, most - used) if left is None else min(left, max(0, most - used))


def _temperature(zones: Path) -> float | None:
    """Of the hottest zone."""
    found = [value / 1000 for zone in _folders(zones, "thermal_zone") if (value := _whole(zone / "temp")) is not None]
    return max((value for value in found if _PLAUSIBLE_C[0] <= value <= _PLAUSIBLE_C[1]), default=None)


def _cooled(devices: Path) -> bool | None:
    """Whether the kernel slows a processor down to cool it."""
    states = [
        state
        for device in _folders(devices, "cooling_device")
        if "cpu" in (kind := _text(device / "type").lower()) or kind.startswith("processor")
        if (state := _whole(device / "cur_state")) is not None
    ]
    return any(states) if states else None


def _firmware(root: Path) -> int | None:
    """The Raspberry Pi firmware's word; its place differs from board to board."""
    for bus in _folders(root / "sys/devices/platform", "soc"):
        for place in (bus, *_folders(bus, "soc")):
            try:
                return int(_text(place / "get_throttled"), 16)
            except ValueError:
                continue
    return None


def _low_voltage(monitors: Path) -> bool | None:
    """The alarm of the Raspberry Pi's own monitor, which has no need of the firmware's word."""
    for monitor in _folders(monitors, "hwmon"):
        if _text(monitor / "name") == "rpi_volt":
            alarm = _whole(monitor / "in0_lcrit_alarm")
            return None if alarm is None else alarm != 0
    return None


def _power(supplies: Path) -> str:
    """A board without any supply that the kernel knows hangs on its cable. A mouse's battery is not the board's."""
    if not supplies.is_dir():
        return ""
    own = [supply for supply in _folders(supplies, "") if _text(supply / "scope") != "Device"]
    batteries = [supply for supply in own if _text(supply / "type") in ("Battery", "UPS")]
    others = [_whole(supply / "online") for supply in own if supply not in batteries]
    if any(others):
        return "mains"
    states = [_text(battery / "status") for battery in batteries]
    if "Discharging" in states or (batteries and 0 in others):
        return "battery"
    return "" if batteries and set(states) <= {"", "Unknown"} else "mains"


def _metered(routes: Path) -> bool | None:
    """Whether all that leaves this device goes through a modem; None where that can't be told from the interface."""
    ways = [words[0] for line in _lines(routes)[1:] if (words := line.split())[1:2] == [_DEFAULT_ROUTE]]
    return True if ways and all(way.startswith(_MODEMS) for way in ways) else None


def _folders(parent: Path, prefix: str) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(parent) if entry.name.startswith(prefix))
    except OSError:
        return []


def _kilobytes(path: Path) -> dict[str, int]:
    """Of lines such as `MemAvailable:  1234 kB`: names and bytes."""
    found = {}
    for line in _lines(path):
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdecimal() and len(words[0]) < 16:
            found[name] = int(words[0]) * 1024
    return found


def _whole(path: Path) -> int | None:
    try:
        value = float(_text(path)[:32])
    except ValueError:
        return None
    return int(value) if math.isfinite(value) else None


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()


def _text(path: Path) -> str:
    """What stands in a file, at most its first 64 KiB; nothing if it can't be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE).decode("ascii", errors="replace").strip()
    except (OSError, ValueError):
        return ""
