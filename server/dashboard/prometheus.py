"""Runs as metrics in Prometheus' text format 0.0.4. No series per device, and a bounded number of runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

MOST_RUNS = 100
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("running", "paused", "finished", "failed", "interrupted", "unreadable")

# Gauges all: a resumed run takes back what it lost, and a counter must never fall.
_FIGURES: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Any]]] = {
    "round": ("Number of the last closed round.", lambda run: run["round"]),
    "rounds": ("Rounds that the run is to have.", lambda run: run["rounds"]),
    "accuracy": ("Accuracy of the global model when it was last evaluated.", lambda run: run["accuracy"]),
    "loss": ("Loss of the global model when it was last evaluated.", lambda run: run["loss"]),
    "epsilon": ("Privacy spent so far.", lambda run: run["epsilon"]),
    "epsilon_limit": ("Privacy budget.", lambda run: run["epsilon_limit"]),
    "uplink_bytes": ("Payload bytes from clients in all closed rounds.", lambda run: run["uplink_bytes"]),
    "downlink_bytes": ("Payload bytes to clients in all closed rounds.", lambda run: run["downlink_bytes"]),
    "seconds": ("Time since the run began, or that it took.", lambda run: run["seconds"]),
    "updated_timestamp_seconds": ("Unix time of the last event.", lambda run: run["updated_s"]),
}
_NOW = ("asked", "goal", "received", "late", "dropped", "declined")


def write(runs: Sequence[Mapping[str, Any]]) -> str:
    """Metrics of the runs' details, each with "devices": counts, or without where there is no device table."""
    runs = runs[:MOST_RUNS]
    parts = [
        _family("hedgerow_runs", "Runs in the folder.", [({}, len(runs))]),
        _family("hedgerow_run_info", "What the run is; always 1.", [(_about(run), 1) for run in runs]),
        _family(
            "hedgerow_run_state",
            "1 for the state that the run is in.",
            [({"run": run["id"], "state": state}, int(run["state"] == state)) for run in runs for state in STATES],
        ),
    ]
    for name, (words, value) in _FIGURES.items():
        parts.append(_family(f"hedgerow_run_{name}", words, [({"run": run["id"]}, value(run)) for run in runs]))
    going = [run for run in runs if run["now"]]
    for name in _NOW:
        rows = [({"run": run["id"]}, run["now"][name]) for run in going]
        parts.append(_family(f"hedgerow_round_{name}", f"Clients of the round in progress: {name}.", rows))
    counts = [(run["id"], run["devices"]) for run in runs if run.get("devices")]
    for name, words in (("online", "heard of lately"), ("eligible", "online and fit to train")):
        rows = [({"run": run}, count[name]) for run, count in counts]
        parts.append(_family(f"hedgerow_devices_{name}", f"Devices that are {words}.", rows))
    return "".join(parts)


def _about(run: Mapping[str, Any]) -> dict[str, str]:
    return {"run": run["id"], **{name: run[name] for name in ("model", "data", "strategy", "mode", "protection")}}


def _family(name: str, words: str, rows: Iterable[tuple[Mapping[str, str], Any]]) -> str:
    """One metric; nothing where no row has a value."""
    lines = [f"{name}{_labels(labels)} {_value(value)}\n" for labels, value in rows if value is not None]
    return "".join([f"# HELP {name} {words}\n# TYPE {name} gauge\n", *lines]) if lines else ""


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    # Other line breaks than \n are none to Prometheus, but to many a reader of text.
    plain = "".join(char if char.isprintable() or char == "\n" else "?" for char in value[:256])
    return plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _value(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return repr(value)
