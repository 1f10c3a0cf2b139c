"""A roll-out in the run's events: what is written down of it, and a roll-out that was begun, read back from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edge_runtime.deploy.offer import Ask, Report
from server.rollout import Device, Order, Place, Plan, Rollout, Stage
from server.rollout_report import describe_stage
from server.run_store import RunStore

STARTED, FINISHED = "rollout_started", "rollout_finished"
_ORDER, _DEVICE, _STAGE, _HALTED, _WAITING = (
    "rollout_order",
    "rollout_device",
    "rollout_stage",
    "rollout_halted",
    "rollout_waiting",
)
_PLAN = tuple(Plan.__dataclass_fields__)

Tell = Callable[[str], None]  # one line for whoever watches


@dataclass(frozen=True, slots=True)
class Begun:
    """A roll-out that is on its way: its plan, its model's file, and the newest command when it began."""

    plan: Plan
    model: str
    after: int


class RolloutLog:
    """Writes a roll-out down, step by step, before the step is taken."""

    def __init__(self, store: RunStore, tell: Tell) -> None:
        self._store, self._tell = store, tell
        self._stages = 0  # that are written down

    def begun(self) -> Begun | None:
        """What an earlier attempt of this run has begun; None if none has."""
        started = self._store.last_event(STARTED)
        if started is None:
            return None
        plan = {name: started.data[name] for name in _PLAN} | {"stages": tuple(started.data["stages"])}
        return Begun(Plan(**plan), started.data["model"], started.data["after"])

    def start(self, begun: Begun) -> None:
        self._store.append(STARTED, {**asdict(begun.plan), "model": begun.model, "after": begun.after}, durable=True)
        self._tell(f"roll-out of {begun.model} as version {begun.plan.version}, {begun.plan.nbytes:,} bytes")

    def read_into(self, rollout: Rollout) -> None:
        """Bring a new roll-out to where the one that was begun stood, as far as it was heard."""
        places: dict[int, Device] = rollout.devices
        for kind, data in self._events(_ORDER, _DEVICE, _STAGE, _HALTED):
            match kind:
                case "rollout_order":
                    nodes = [int(node) for node in data["devices"]]
                    rollout.take_order(Order(Ask(data["ask"]), tuple(nodes)))
                case "rollout_device":
                    device = places.setdefault(int(data["client"]), Device())
                    device.place, device.reason = Place(data["place"]), data["reason"]
                    if "version" in data:
                        device.version, device.latency_s = data["version"], data.get("latency_s") or device.latency_s
                case "rollout_stage":
                    rollout.stages.append(Stage(**data))
                    rollout.begun = set()
                    rollout.halted = "" if data["good"] else "a stage was not good"
                case _:
                    rollout.halted = data["reason"]
        self._stages = len(rollout.stages)
        self._tell(f"roll-out of version {rollout.plan.version} goes on after {self._stages} stages")

    def order(self, order: Order) -> None:
        self._store.append(_ORDER, {"ask": order.ask.value, "devices": [str(node) for node in order.nodes]})

    def device(self, ask: Ask, node: int, device: Device, report: Report | None) -> None:
        about = {"ask": ask.value, "client": str(node), "place": device.place.value, "reason": device.reason}
        said = {name: value for name, value in report.record().items() if value} if report else {}
        self._store.append(_DEVICE, {**said, **({"version": report.version} if report else {}), **about})

    def stages(self, rollout: Rollout) -> None:
        """Write down the stages that closed since."""
        for stage in rollout.stages[self._stages :]:
            self._store.append(_STAGE, asdict(stage))
            self._tell(describe_stage(asdict(stage)))
        if rollout.halted and self._stages < len(rollout.stages):
            self._store.append(_HALTED, {"reason": rollout.halted})
            self._tell(f"roll-out halted: {rollout.halted}")
        self._stages = len(rollout.stages)

    def waiting(self, percent: int, newest: int) -> int:
        """The stage waits for an approval; returns the newest command when it began to."""
        for _, data in self._events(_WAITING):
            if data["percent"] == percent:
                return int(data["after"])
        self._store.append(_WAITING, {"percent": percent, "after": newest})
        self._tell(f"roll-out stage {percent} %: waits for an approval")
        return newest

    def finish(self, ended: Mapping[str, Any]) -> None:
        self._store.append(FINISHED, ended)

    def sent_bytes(self, nbytes: int) -> int:
        """Of all offers, of `nbytes` each."""
        orders = [data for _, data in self._events(_ORDER) if data["ask"] == Ask.INSTALL.value]
        return nbytes * sum(len(data["devices"]) for data in orders)

    def _events(self, *kinds: str) -> list[tuple[str, dict[str, Any]]]:
        return [(event.kind, event.data) for event in self._store.log(*kinds)]
