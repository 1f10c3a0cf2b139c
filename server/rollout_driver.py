"""Plays a roll-out over Flower: asks, waits, writes every step into the run's events, and goes on from there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from edge_runtime.deploy.offer import Ask, Report, pack_files
from edge_runtime.errors import PeerError, RunError
from server.commands import Name
from server.config import ServerConfig
from server.gather import content_of
from server.link import POLL_S, Link, artefact_content, peer_text, read_report
from server.orders import Orders
from server.release import Release, make_release, open_release
from server.rollout import Order, Plan, Rollout, parse_stages
from server.rollout_log import FINISHED, Begun, RolloutLog, Tell
from server.run_store import RunStore, is_disk_trouble

LOOKS = 1000  # for an order to halt, while a stage is on trial: so many at most, and none sooner than POLL_S


def roll_out(
    link: Link, config: ServerConfig, exported: Mapping[str, Any], store: RunStore, tell: Tell
) -> dict[str, Any]:
    """Sign what was exported and offer it to the fleet; returns `run.json`'s `final.rollout`.

    What an earlier attempt of the run has begun goes on, with the same release. `exported` is the run's `final.deploy`:
    what could not be exported and checked is not rolled out. A failure here must not cost the trained model: it is told
    in the field `error`.

    Raises:
        RunError: the run directory cannot be written; what was begun can be resumed.

    """
    if (ended := store.last_event(FINISHED, "rollout_failed")) is not None:
        return ended.data
    reason = exported.get("skipped") or exported.get("error") or "no file passed the gate"
    if not exported.get("files"):
        return {"error": f"there is no checked artefact: {reason}"}
    try:
        begun = RolloutLog(store, tell).begun()
        release = (
            make_release(config.rollout, config.model.name or "model", store.directory)
            if begun is None
            else open_release(begun.plan.version, begun.model, begun.plan.digest, store.directory)
        )
        return play(link, config, release, store, tell)
    except RunError:
        raise
    except Exception as error:  # runtimes and keys raise many types
        text = " ".join(f"{type(error).__name__}: {error}".split())
        if is_disk_trouble(error):
            raise RunError(f"{store.directory}: the roll-out cannot be written down ({text})") from error
        store.append("rollout_failed", {"error": text})
        return {"error": text}


def play(link: Link, config: ServerConfig, release: Release, store: RunStore, tell: Tell) -> dict[str, Any]:
    """The roll-out of that release, from the first question, or from where it was left, to the last order."""
    settings, started_s = config.rollout, time.monotonic()
    blob = pack_files(release.files)
    log, orders = RolloutLog(store, tell), Orders(store)
    begun = log.begun()
    if begun is None:
        orders.last(Name.ROLLOUT_HALT)  # what was asked before there was a roll-out is not about it
        stages = parse_stages(settings.stages)
        plan = Plan(release.version, release.digest, settings.format, len(blob), stages, settings.max_failures)
        begun = Begun(plan, release.model, orders.newest)
        log.start(begun)
        rollout = Rollout(begun.plan)
    else:
        rollout = Rollout(begun.plan)
        log.read_into(rollout)
        rollout.go_on()
    operator = _Operator(orders, begun.after, rollout)

    def before_stage(percent: int) -> None:
        operator.look()
        if settings.approve:
            operator.wait(log.waiting(percent, orders.newest))

    rollout.meet(link.nodes())
    for order in rollout.orders(before_stage):
        log.stages(rollout)
        log.order(order)
        if order.ask is Ask.CHECK:
            _try_out(link, settings.health_s, operator)
        _play_order(link, rollout, order, blob, settings.deadline_s, log)
        rollout.meet(link.nodes())
        operator.look()
    log.stages(rollout)
    seconds = round(time.monotonic() - started_s, 3)
    ended = rollout.record() | {"sent_bytes": log.sent_bytes(len(blob)), "seconds": seconds}
    log.finish(ended)
    return ended


# What ends a roll-out, and how that is called. There is no round left for `stop` to end.
_ENDS = {Name.ROLLOUT_HALT: "halted", Name.STOP: "stopped"}


class _Operator:
    """Whoever may halt the roll-out and approve of its stages, by commands after that of id `since`."""

    def __init__(self, orders: Orders, since: int, rollout: Rollout) -> None:
        self._orders, self._since, self._rollout = orders, since, rollout

    def look(self) -> bool:
        """Halt the roll-out if that was asked; returns whether it was."""
        for name, word in _ENDS.items():
            order = self._orders.last(name)
            if order is not None and order.id > self._since:
                self._rollout.halt(f"{word} by {order.by}")
                return True
        return False

    def wait(self, after: int) -> None:
        """Until there is an approval newer than the command of that id, or the order to halt."""
        while not self.look():
            approval = self._orders.last(Name.ROLLOUT_APPROVE)
            if approval is not None and approval.id > after:
                return
            time.sleep(POLL_S)  # by the clock on the wall, also in a simulation: it is a person who is waited for


def _try_out(link: Link, health_s: float, operator: _Operator) -> None:
    """Let devices run it for a while; less, if it is to be halted."""
    step_s = max(POLL_S, health_s / LOOKS)
    while health_s > 0 and not operator.look():
        link.pause(min(step_s, health_s))
        health_s -= step_s


def _play_order(link: Link, rollout: Rollout, order: Order, blob: bytes, deadline_s: float, log: RolloutLog) -> None:
    """Ask the order's nodes and hear every one of them, be it that nothing is heard."""
    version, asks_install = rollout.plan.version, order.ask is Ask.INSTALL
    content = artefact_content(order.ask, {"version": version}, blob if asks_install else b"")
    silent = set(order.nodes)

    def hear(node: int, report: Report | None, reason: str = "") -> None:
        log.device(order.ask, node, rollout.hear(node, report, reason), report)

    for answer in link.query(dict.fromkeys(order.nodes, content), version, deadline_s):
        silent.discard(answer.node)
        try:
            hear(answer.node, read_report(content_of(answer)))
        except (PeerError, ValueError) as error:
            hear(answer.node, None, peer_text(str(error)))
    for node in sorted(silent):
        hear(node, None, f"no reply within {deadline_s:g} s")
