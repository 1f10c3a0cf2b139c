"""How many cores this process may use: what its affinity and its control group leave it of the machine's."""

from __future__ import annotations

import os
from pathlib import Path

from edge_runtime.kernels.native import MAX_THREADS


def allowed_cores(root: str | Path = "/") -> int:
    """At least 1, and at most the CPUs of this process's affinity mask and the CPU quota of every group above it.

    A quota of two and a half cores counts as two: a third thread would only be made to wait.

    Args:
        root: where `proc` and `sys` are.

    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(affinity, MAX_THREADS, _quota(Path(root)))))


def _quota(root: Path) -> float:
    """Cores' worth of time in each period; infinite where nothing limits it (Linux admin guide, cgroups)."""
    quota = float("inf")
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if line.startswith("0::"):
            mount, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            mount, read = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        # Inside a container the path may be the host's, and not be there; the group's own files are then at the mount.
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount):
                quota = min(quota, read(folder))
    return quota


def _quota_v2(group: Path) -> float:
    """From `cpu.max`: "max 100000" or "150000 100000"."""
    return _ratio(*(*_text(group / "cpu.max").split(), "", "")[:2])


def _quota_v1(group: Path) -> float:
    return _ratio(_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float:
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return float("inf")
    return cores if cores > 0 else float("inf")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
