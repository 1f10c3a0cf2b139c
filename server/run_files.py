"""What of a run directory may be downloaded: the files that the run itself lists, and those alone."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

from server.run_store import MODELS
from server.run_view import RunView, mapping, number, text, whole

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_ALWAYS = ("model.safetensors", "run.json")
_MOST_VERSIONS = 200
_ARTEFACT = ("accuracy", "agreement", "latency_us")


def downloads(view: RunView) -> frozenset[str]:
    """Names, relative to the run directory, of what may be there to download."""
    released = mapping(_exported(view).get("files"))
    artefacts = {name for name in released if _FILE.fullmatch(name)}
    if artefacts:
        artefacts.add("manifest.json")
    models = {f"{MODELS}/{sha}.safetensors" for _, _, sha in view.models if _SHA256.fullmatch(sha)}
    return frozenset({*_ALWAYS, *artefacts, *models})


def there(directory: Path, view: RunView) -> list[str]:
    """Those of `downloads` that are there."""
    return sorted(name for name in downloads(view) if (directory / name).is_file())


def open_file(directory: Path, name: str) -> int | None:
    """A descriptor of that file; None if there is none. A link, wherever on the way, is not followed."""
    parent = -1
    try:
        parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        *folders, last = name.split("/")
        for folder in folders:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            os.close(parent)
            parent = inner
        # O_NONBLOCK: to open a pipe that someone put there must not wait for its writer.
        found = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    except OSError:
        return None
    finally:
        if parent >= 0:
            os.close(parent)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        return None
    return found


def models(directory: Path, view: RunView) -> dict[str, Any]:
    """The kept versions of the model, the newest first; what was exported of the last; how far its roll-out is."""
    return {
        "versions": _versions(directory, view),
        "artefacts": [_artefact(mapping(one)) for one in mapping(_exported(view).get("formats")).values()],
        "rollout": rollout(view),
    }


def rollout(view: RunView) -> dict[str, Any] | None:
    """The roll-out as it stands, as in run.json, with a `state`: running, halted, finished or failed; None without."""
    ended = mapping(mapping(view.final).get("rollout"))
    if ended:
        state = "failed" if ended.get("error") else "halted" if ended.get("halted") else "finished"
        return {**ended, "state": state}
    if not view.rollout:
        return None
    found: dict[str, Any] = {"state": "running", "stages": [], "halted": None}
    for event in view.rollout:
        match event.kind:
            case "rollout_started":
                fields = event.data
                found |= {"version": whole(fields.get("version")), "format": text(fields.get("format"), 64)}
                found |= {"bytes": whole(fields.get("nbytes"))}
            case "rollout_stage":
                found["stages"].append(dict(event.data))
            case "rollout_halted":
                found |= {"halted": text(event.data.get("reason")), "state": "halted"}
            case "rollout_failed":
                found |= {"error": text(event.data.get("error")), "state": "failed"}
            case "rollout_finished":
                found |= {**event.data, "state": "halted" if event.data.get("halted") else "finished"}
            case "rollout_waiting":
                found["state"] = "waiting"
            case _:
                found["state"] = "running" if found["state"] == "waiting" else found["state"]
    return found


def _versions(directory: Path, view: RunView) -> list[dict[str, Any]]:
    figures = {whole(one.row.get("round")) or 0: one.row for one in view.rounds}
    last = text(mapping(view.final).get("model_sha256"), 64)
    kept: dict[str, tuple[int, Path]] = {}
    for _, number_, sha in view.models[-_MOST_VERSIONS:]:
        if _SHA256.fullmatch(sha):
            kept[sha] = (number_, directory / MODELS / f"{sha}.safetensors")
    current = last or next(reversed(kept), "")
    if last and last not in kept:
        kept[last] = (max(figures, default=0), directory / "model.safetensors")
    rows = []
    for sha, (number_, path) in reversed(kept.items()):
        try:
            status = path.lstat()
        except OSError:
            continue  # forgotten since
        row = figures.get(number_, {})
        about = {"sha256": sha, "round": number_, "bytes": status.st_size, "current": sha == current}
        rows.append(about | {name: number(row.get(name)) for name in ("accuracy", "loss")})
    return rows


def _artefact(row: Any) -> dict[str, Any]:
    told = {name: text(row.get(name), 200) for name in ("file", "format", "precision")}
    figures = {name: number(row.get(name)) for name in _ARTEFACT}
    sizes = {"bytes": whole(row.get("nbytes")), "peak_rss_bytes": whole(row.get("peak_rss_bytes"))}
    return told | figures | sizes | {"refused": text(row.get("refused")) or None}


def _exported(view: RunView) -> Any:
    return view.exported or mapping(mapping(view.final).get("deploy"))
