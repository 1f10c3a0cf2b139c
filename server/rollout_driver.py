"""Plays a roll-out over Flower: asks, waits, writes every step into the run's events."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from edge_runtime.deploy.offer import Ask, Report, pack_files
from edge_runtime.errors import PeerError
from server.config import ServerConfig
from server.gather import content_of
from server.link import Link, artefact_content, peer_text, read_report
from server.release import Release, make_release
from server.rollout import Order, Plan, Rollout, parse_stages
from server.rollout_report import describe_stage
from server.run_store import RunStore

Tell = Callable[[str], None]  # one line for whoever watches


def roll_out(
    link: Link, config: ServerConfig, exported: Mapping[str, Any], store: RunStore, tell: Tell
) -> dict[str, Any]:
    """Sign what was exported and offer it to the fleet; returns `run.json`'s `final.rollout`.

    `exported` is its `final.deploy`: what could not be exported and checked is not rolled out. A failure here must not
    cost the trained model: it is told in the field `error`.
    """
    reason = exported.get("skipped") or exported.get("error") or "no file passed the gate"
    if not exported.get("files"):
        return {"error": f"there is no checked artefact: {reason}"}
    try:
        release = make_release(config.rollout, config.model.name or "model", store.directory)
        return play(link, config, release, store, tell)
    except Exception as error:  # runtimes and keys raise many types
        text = " ".join(f"{type(error).__name__}: {error}".split())
        store.append("rollout_failed", {"error": text})
        return {"error": text}


def play(link: Link, config: ServerConfig, release: Release, store: RunStore, tell: Tell) -> dict[str, Any]:
    """The roll-out of that release, from the first question to the last order."""
    settings, started_s = config.rollout, time.monotonic()
    blob = pack_files(release.files)
    stages = parse_stages(settings.stages)
    plan = Plan(release.version, release.digest, settings.format, len(blob), stages, settings.max_failures)
    store.append("rollout_started", {**asdict(plan), "model": release.model})
    tell(f"roll-out of {release.model} as version {plan.version}, {len(blob):,} bytes")
    rollout, told, sent_bytes = Rollout(plan), 0, 0
    rollout.meet(link.nodes())
    for order in rollout.orders():
        told = _tell_stages(rollout, told, store, tell)
        store.append("rollout_order", {"ask": order.ask.value, "devices": [str(node) for node in order.nodes]})
        if order.ask is Ask.CHECK:
            link.pause(settings.health_s)
        sent_bytes += len(blob) * len(order.nodes) if order.ask is Ask.INSTALL else 0
        _play_order(link, rollout, order, blob, settings.deadline_s, store)
        rollout.meet(link.nodes())
    _tell_stages(rollout, told, store, tell)
    ended = rollout.record() | {"sent_bytes": sent_bytes, "seconds": round(time.monotonic() - started_s, 3)}
    store.append("rollout_finished", ended)
    return ended


def _play_order(link: Link, rollout: Rollout, order: Order, blob: bytes, deadline_s: float, store: RunStore) -> None:
    """Ask the order's nodes and hear every one of them, be it that nothing is heard."""
    version, asks_install = rollout.plan.version, order.ask is Ask.INSTALL
    content = artefact_content(order.ask, {"version": version}, blob if asks_install else b"")
    silent = set(order.nodes)

    def hear(node: int, report: Report | None, reason: str = "") -> None:
        device = rollout.hear(node, report, reason)
        about = {"ask": order.ask.value, "client": str(node), "place": device.place.value, "reason": device.reason}
        said = {name: value for name, value in (report.record() if report else {}).items() if value}
        store.append("rollout_device", {**said, **about})

    for answer in link.query(dict.fromkeys(order.nodes, content), version, deadline_s):
        silent.discard(answer.node)
        try:
            hear(answer.node, read_report(content_of(answer)))
        except (PeerError, ValueError) as error:
            hear(answer.node, None, peer_text(str(error)))
    for node in sorted(silent):
        hear(node, None, f"no reply within {deadline_s:g} s")


def _tell_stages(rollout: Rollout, told: int, store: RunStore, tell: Tell) -> int:
    """Write down the stages that closed since; returns how many are now told."""
    for stage in rollout.stages[told:]:
        store.append("rollout_stage", asdict(stage))
        tell(describe_stage(asdict(stage)))
    if rollout.halted and told < len(rollout.stages):
        store.append("rollout_halted", {"reason": rollout.halted})
        tell(f"roll-out halted: {rollout.halted}")
    return len(rollout.stages)
