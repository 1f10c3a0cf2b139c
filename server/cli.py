"""`hedgerow certs`, `devices` and `serve`, and what `hedgerow run` does once it has read a scenario."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_runtime.cli import EXIT_FAILED
from edge_runtime.errors import ConfigError
from server import certs, devices
from server.options import add_state
from server.serve.progress import RunLog, lines
from server.serve.state import ENDED, Device, Job, JobState, State, Stop, is_served, state_folder

_POLL_S = 0.3
_SETTLE_S = 10.0


def certs_command(parser: argparse.ArgumentParser) -> None:
    """Make the certificates that TLS needs: an authority of your own, and a server certificate by it."""
    parser.add_argument("action", choices=("new", "renew"), help="renew: another server certificate, same authority")
    parser.add_argument("folder", type=Path, help="where they are kept; `hedgerow serve` looks in its state's certs")
    parser.add_argument(
        "--host", nargs="+", default=[], help="names or addresses by which devices reach the server (renew: as before)"
    )
    parser.add_argument("--days", type=int, default=certs.SERVER_DAYS, help="of the server certificate (default: 365)")
    parser.set_defaults(run=_certs)


def devices_command(parser: argparse.ArgumentParser) -> None:
    """Say which devices may take part: make or enrol their keys, list and revoke them."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    new = actions.add_parser("new", help="make a key pair for a device, and enrol it")
    new.add_argument("name")
    new.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="for NAME.key and NAME.key.pub")
    new.set_defaults(run=_new_device)
    enrol = actions.add_parser("enrol", help="enrol a device that made its key itself")
    enrol.add_argument("name")
    enrol.add_argument("key", type=Path, metavar="KEY.pub")
    enrol.set_defaults(run=_enrol)
    listing = actions.add_parser("list", help="all devices, and when they were last heard of")
    listing.add_argument("--format", choices=("text", "json"), default="text")
    listing.set_defaults(run=_list_devices)
    revoke = actions.add_parser("revoke", help="shut a device out, at once and for good")
    revoke.add_argument("name")
    revoke.set_defaults(run=_revoke)
    for action in (new, enrol, listing, revoke):
        action.add_argument("--debug", action="store_true", help="show a traceback when something fails")
        add_state(action)


def serve_command(parser: argparse.ArgumentParser) -> None:
    """Run the server: a SuperLink for devices, the runs that you start, and the dashboard."""
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="server.toml", help="settings (default: DIR/server.toml, if there)"
    )
    add_state(parser)
    parser.set_defaults(run=_serve)


def submit(options: argparse.Namespace, name: str, config: Mapping[str, Any]) -> int:
    """Put a run into the queue, and follow it if asked to."""
    state = State(state_folder(options.state))
    state.submit(name, config)
    return _queued(options, state, name)


def resume_run(options: argparse.Namespace) -> int:
    """Let a run that failed, or was stopped at once, go on after its last closed round."""
    state = State(state_folder(options.state))
    state.again(options.resume)
    return _queued(options, state, options.resume)


def _queued(options: argparse.Namespace, state: State, name: str) -> int:
    waits = "" if is_served(state.folder) else "; no server is at work here: it begins when `hedgerow serve` does"
    _say(f"run {name} is queued{waits}")
    return follow(state, name) if options.follow else 0


def follow(state: State, name: str) -> int:
    """Print what happens to a run until it ends; 0 if it came to its end, 3 if not."""
    log, seen, rounds = RunLog(state.run_directory(name)), 0, 0
    try:
        while True:
            job = state.job(name)  # before its log: what is in there when it has ended is all there will be
            for entry in log.entries(seen):
                seen, rounds = entry.id, int(entry.data.get("server.rounds", rounds))
                for line in lines(entry, rounds):
                    _say(line)
            if job.state in ENDED:
                _say(f"run {name}: {job.state}{f' ({job.reason})' if job.reason else ''}; {state.run_directory(name)}")
                return 0 if job.state is JobState.DONE else EXIT_FAILED
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        _say(f"run {name} goes on; `hedgerow run --stop {name}` ends it")
        raise


def list_runs(options: argparse.Namespace) -> int:
    state = State(state_folder(options.state))
    jobs = state.jobs()
    if options.format == "json":
        _say(json.dumps({"runs": [_job_json(state, job) for job in jobs]}, indent=1))
        return 0
    rows = [
        (job.name, job.state.value, f"{_closed(state, job)}/{job.config.get('server.rounds', '?')}", job.reason)
        for job in jobs
    ]
    _table(("run", "state", "rounds", ""), rows)
    return 0


def stop_run(options: argparse.Namespace) -> int:
    state = State(state_folder(options.state))
    job = state.ask_to_stop(options.stop, Stop.NOW if options.now else Stop.AFTER_ROUND)
    when = "at once" if options.now or job.state is JobState.QUEUED else "when its round is closed"
    _say(f"run {job.name} ends {when}")
    return 0


def _closed(state: State, job: Job) -> int:
    return RunLog(state.run_directory(job.name)).closed_rounds()


def _job_json(state: State, job: Job) -> dict[str, Any]:
    return {
        "name": job.name,
        "state": job.state.value,
        "stop": job.stop.value,
        "submitted_s": job.submitted_s,
        "ended_s": job.ended_s,
        "starts": job.starts,
        "closed_rounds": _closed(state, job),
        "rounds": job.config.get("server.rounds"),
        "reason": job.reason,
        "directory": str(state.run_directory(job.name)),
    }


def _certs(options: argparse.Namespace) -> int:
    folder: Path = options.folder
    make = certs.new if options.action == "new" else certs.renew
    made = make(folder, options.host, days=options.days, now=certs.now_utc())
    _say(f"{made.path}: for {', '.join(made.hosts)}; until {made.until:%Y-%m-%d}")
    if options.action == "new":
        _say(f"copy {folder / certs.CA} to every device: it is all that a device needs to know this server")
        _say(f"keep {folder / certs.CA_KEY} where only you can read it; `hedgerow certs renew {folder}` needs it")
    else:
        _say("devices need nothing new; restart `hedgerow serve` for it to take effect")
    return 0


def _new_device(options: argparse.Namespace) -> int:
    state = State(state_folder(options.state), create=True)
    name = devices.check_name(options.name)
    if any(device.name == name and device.revoked_s is None for device in state.devices()):
        raise ConfigError(f"device {name}: is enrolled already; revoke it first, or choose another name")
    path: Path = options.out / f"{name}.key"
    key = devices.make_key(path, name)
    state.enrol(name, key)
    _settled(state, key.fingerprint)
    _say(f"{path}: the key of {name}; move it to the device, and keep no copy")
    return 0


def _enrol(options: argparse.Namespace) -> int:
    state = State(state_folder(options.state), create=True)
    key = devices.read_key(options.key)
    state.enrol(options.name, key)
    _settled(state, key.fingerprint)
    return 0


def _revoke(options: argparse.Namespace) -> int:
    state = State(state_folder(options.state))
    fingerprints = [d.fingerprint for d in state.devices() if d.name == options.name and d.revoked_s is None]
    state.revoke(options.name)
    _settled(state, fingerprints[0])
    return 0


def _settled(state: State, fingerprint: str) -> None:
    """Wait until the SuperLink has been told, if there is one, and say how it stands."""
    until_s = time.monotonic() + _SETTLE_S
    while True:
        device = next(device for device in state.devices() if device.fingerprint == fingerprint)
        if device.settled or not is_served(state.folder) or time.monotonic() > until_s:
            break
        time.sleep(0.1)
    if device.problem:
        raise ConfigError(f"device {device.name}: the SuperLink refuses it: {device.problem}")
    node = f", node {device.node}" if device.node and device.revoked_s is None else ""
    _say(f"device {device.name}: {device.shown_status}{node} ({device.fingerprint})")


def _list_devices(options: argparse.Namespace) -> int:
    state = State(state_folder(options.state))
    found, served = state.devices(), is_served(state.folder)
    if options.format == "json":
        _say(json.dumps({"served": served, "devices": [_device_json(device) for device in found]}, indent=1))
        return 0
    rows = [
        (device.name, device.shown_status, device.node or "", _ago(device.seen_s), device.fingerprint)
        for device in found
    ]
    _table(("device", "status", "node", "last seen", "fingerprint"), rows)
    if not served:
        _say("no server is at work here: statuses are as it last knew them")
    return 0


def _device_json(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "fingerprint": device.fingerprint,
        "node": device.node,
        "status": device.shown_status,
        "seen_s": device.seen_s,
        "enrolled_s": device.enrolled_s,
        "revoked_s": device.revoked_s,
    }


def _serve(options: argparse.Namespace) -> int:
    from server.serve.config import load
    from server.serve.supervisor import serve

    folder = state_folder(options.state)
    return serve(load(options.config, folder), folder, _tell)


def _ago(unix_s: float | None) -> str:
    if unix_s is None:
        return "never"
    seconds = max(0, round(time.time() - unix_s))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        _say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _tell(line: str) -> None:
    _say(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
