"""Roll-outs to simulated devices in processes of their own: real signatures, trials in a sandbox, slots on the disk."""

from __future__ import annotations

import itertools
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.config import from_flat
from edge_runtime.deploy.artefact import write_manifest
from edge_runtime.deploy.trust.publish import make_release_key, make_root_key
from edge_runtime.deploy.trust.slots import Slots
from edge_runtime.errors import ConfigError
from server import commands
from server.config import ServerConfig
from server.link import Link
from server.release import Release, check_key, make_release
from server.rollout import bucket
from server.rollout_driver import play, roll_out
from server.run_store import RunStore
from simulations.artefact_faults import RELAPSE, UNFIT, drawn
from simulations.faults import FaultConfig
from simulations.grid import InProcessGrid
from simulations.runner import simulate
from simulations.scenario import load_scenario

CLIENTS = 4
STAGES = (60, 100)


def linear(scale: float) -> bytes:
    """A model that answers scale times the sum of its input, three times."""
    weight = numpy_helper.from_array(np.full((4, 3), scale, np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 4), ("y", 3))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@dataclass(frozen=True)
class Fleet:
    """Simulated devices that stay from one roll-out to the next, and the server's key."""

    folder: Path

    @property
    def devices(self) -> Path:
        return self.folder / "devices"

    @property
    def root_key(self) -> Path:
        return self.folder / "keys" / "root.key.pub"

    def config(self, version: int, **settings: Any) -> ServerConfig:
        given = {
            "enabled": True,
            "format": "onnx",
            "version": version,
            "key": str(self.folder / "keys" / "release.key"),
            **settings,
        }
        stages = {"rollout.stages": ",".join(map(str, STAGES)), "rollout.max_failures": 0.2, "rollout.deadline_s": 60.0}
        return from_flat(ServerConfig, stages | {f"rollout.{name}": value for name, value in given.items()})

    def release(self, version: int) -> Release:
        """A model that multiplies by its version, signed."""
        folder = self.folder / f"export-{version}"
        folder.mkdir(parents=True)
        (folder / "model_fp32.onnx").write_bytes(linear(float(version)))
        write_manifest(folder, {"onnx_fp32": folder / "model_fp32.onnx"}, {})
        return make_release(self.config(version).rollout, "linear", folder)

    def roll_out(self, version: int, **faults: float) -> dict[str, Any]:
        """A roll-out of that version to devices with these faults."""
        with self.grid(**faults) as grid:
            return self.play(grid, version)

    def play(self, grid: InProcessGrid, version: int, release: Release | None = None) -> dict[str, Any]:
        """The record of a roll-out; its lines are kept under "told", its events under "events"."""
        told: list[str] = []
        release = release or self.release(version)
        store = RunStore(self.folder / f"run-{version}")
        try:
            link = Link(grid, grid.clock, grid.pause)
            record = play(link, self.config(version), release, store, told.append)
        finally:
            store.close()
        events = sqlite3.connect(store.directory / "events.sqlite").execute("SELECT kind, data FROM events").fetchall()
        return record | {"told": told, "events": [(kind, json.loads(data)) for kind, data in events]}

    @contextmanager
    def grid(self, **faults: float) -> Iterator[InProcessGrid]:
        with InProcessGrid(
            CLIENTS,
            1,
            node_config={"artefact-root-key": str(self.root_key)},
            own_folders={"artefact-path": self.devices},
            faults=FaultConfig(**faults),
        ) as grid:
            yield grid

    def answers(self) -> list[float]:
        """What each device's model multiplies by: the version that it really runs, 0 for none."""
        runners = [Slots(self.devices / str(node), self.root_key).open() for node in range(CLIENTS)]
        ones = np.ones((1, 4), np.float32)
        return [float(runner.predict(ones)[0, 0]) / 4 if runner else 0.0 for runner in runners]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    make_root_key(tmp_path / "keys")
    make_release_key(tmp_path / "keys", days=1, now_s=time.time())
    return Fleet(tmp_path)


def version_with(share: float, purpose: int, *, above: int = 0) -> int:
    """The first version whose first stage has both a device with the fault and one without."""
    for version in itertools.count(above + 1):
        faulty = drawn(share, purpose, version, CLIENTS)
        canaries = {node for node in range(CLIENTS) if bucket(node, version) < STAGES[0]}
        if canaries & faulty and canaries - faulty and len(canaries) < CLIENTS:
            return version
    raise AssertionError("there is one")


def counts(stage: Mapping[str, Any]) -> tuple[int, int, int]:
    return stage["installed"], stage["refused"], stage["rolled_back"]


def test_devices_that_cannot_run_it_halt_the_roll_out_and_the_others_go_back(fleet: Fleet) -> None:
    assert fleet.roll_out(1)["versions"] == {"1": CLIENTS}
    assert fleet.answers() == [1.0] * CLIENTS

    bad = version_with(0.4, UNFIT, above=1)
    record = fleet.roll_out(bad, unfit=0.4)
    (stage,) = record["stages"]
    installed, refused, _ = counts(stage)
    assert installed >= 1
    assert refused >= 1
    assert stage["offered"] == sum(bucket(node, bad) < STAGES[0] for node in range(CLIENTS)) < CLIENTS
    assert "fails its trial" in record["halted"]
    assert record["devices"] == {"able": CLIENTS - stage["offered"], "recalled": installed, "refused": refused}
    assert record["versions"] == {"1": CLIENTS}
    assert fleet.answers() == [1.0] * CLIENTS
    assert [kind for kind, _ in record["events"] if kind in ("rollout_halted", "rollout_stage")] == [
        "rollout_stage",
        "rollout_halted",
    ]
    assert record["told"][-1] == f"roll-out halted: {record['halted']}"

    # What was ordered back does not come again, under the same version; a higher one does.
    good = fleet.roll_out(bad + 1)
    assert good["versions"] == {str(bad + 1): CLIENTS}
    assert fleet.answers() == [float(bad + 1)] * CLIENTS


def test_devices_on_which_it_proves_unhealthy_halt_it_even_those_that_had_no_model_before(fleet: Fleet) -> None:
    version = version_with(0.4, RELAPSE)
    record = fleet.roll_out(version, relapse=0.4)
    (stage,) = record["stages"]
    installed, _, rolled_back = counts(stage)
    assert rolled_back >= 1
    assert installed >= 1
    assert record["devices"]["rolled back"] == rolled_back
    assert record["devices"]["recalled"] == installed
    assert record["versions"] == {"0": CLIENTS}
    assert fleet.answers() == [0.0] * CLIENTS


def test_an_older_or_altered_artefact_is_refused_by_all_and_the_old_one_runs(fleet: Fleet) -> None:
    old, altered = fleet.release(2), fleet.release(4)
    files = dict(altered.files) | {altered.model: linear(5.0)}
    with fleet.grid() as grid:
        fleet.play(grid, 3)
        record = fleet.play(grid, 2, old)
        assert all(stage["offered"] == 0 for stage in record["stages"])
        assert "it has had this version, or a later one" in record["halted"]
        record = fleet.play(grid, 4, Release(4, altered.model, files))
        assert "changed or cut short" in record["halted"]
    assert fleet.answers() == [3.0] * CLIENTS


class KilledError(BaseException):
    """What ends a server in the middle here."""


def test_a_server_that_is_killed_goes_on_with_the_same_release_and_offers_it_to_nobody_twice(fleet: Fleet) -> None:
    config, run = fleet.config(7, health_s=0.0), fleet.folder / "run"
    exported = {"files": {"model_fp32.onnx": {}}}

    def attempt(grid: InProcessGrid, dies_at: str) -> dict[str, Any]:
        def tell(line: str) -> None:
            if dies_at and line.startswith(dies_at):
                raise KilledError

        store = RunStore(run, resume=run.exists())
        try:
            if not (run / "manifest.json").exists():
                (run / "model_fp32.onnx").write_bytes(linear(7.0))
                write_manifest(run, {"onnx_fp32": run / "model_fp32.onnx"}, {})
            return roll_out(Link(grid, grid.clock, grid.pause), config, exported, store, tell)
        finally:
            store.close()

    with fleet.grid() as grid:
        with pytest.raises(KilledError):
            attempt(grid, "roll-out of")
        offered = (run / "release" / "manifest.json").read_bytes()
        with pytest.raises(KilledError):
            attempt(grid, "roll-out stage 60")
        record = attempt(grid, "")
        assert attempt(grid, "") == record  # finished: nothing is asked any more
    assert (run / "release" / "manifest.json").read_bytes() == offered
    assert record["versions"] == {"7": CLIENTS}
    assert [stage["percent"] for stage in record["stages"]] == list(STAGES)
    events = sqlite3.connect(run / "events.sqlite").execute("SELECT data FROM events WHERE kind = 'rollout_order'")
    orders = [json.loads(data) for (data,) in events]
    installs = [node for order in orders if order["ask"] == "install" for node in order["devices"]]
    assert sorted(installs) == [str(node) for node in range(CLIENTS)]
    assert fleet.answers() == [7.0] * CLIENTS


@pytest.mark.parametrize(
    ("number", "order", "halted"),
    [(8, commands.Name.ROLLOUT_HALT, "halted by Ada"), (9, commands.Name.STOP, "stopped by Ada")],
)
def test_every_stage_waits_for_its_own_approval_and_an_order_halts_it(
    fleet: Fleet, number: int, order: commands.Name, halted: str
) -> None:
    release, told = fleet.release(number), list[str]()
    store = RunStore(fleet.folder / "run")
    for name in commands.Name:  # said before there was a roll-out: not about this one
        commands.send(store.directory, name, "somebody")

    def tell(line: str) -> None:
        told.append(line)
        if "waits" in line:
            first = sum("waits" in line for line in told) == 1
            commands.send(store.directory, commands.Name.ROLLOUT_APPROVE if first else order, "Ada")

    with fleet.grid() as grid:
        record = play(Link(grid, grid.clock, grid.pause), fleet.config(number, approve=True), release, store, tell)
    store.close()
    assert record["halted"] == halted
    first, second = record["stages"]
    assert first["installed"] == first["offered"] > 0
    assert second["offered"] == 0
    assert record["devices"] == {"able": CLIENTS - first["offered"], "recalled": first["offered"]}
    assert fleet.answers() == [0.0] * CLIENTS
    assert [line.split(":")[0] for line in told if "waits" in line] == ["roll-out stage 60 %", "roll-out stage 100 %"]


def test_a_whole_run_ends_on_its_devices(tmp_path: Path) -> None:
    settings = [
        "data.name=digits", "data.clients=3", "data.partition=iid", "model.name=digits_cnn", "server.rounds=1",
        "server.cohort=3", "server.min_updates=2", "server.workers=1", "deploy.formats=onnx", "rollout.enabled=true",
        "rollout.format=onnx",
    ]  # fmt: skip
    finished = simulate(load_scenario("mnist", settings, str(tmp_path / "run")))
    rollout = finished.final["rollout"]
    assert rollout["halted"] is None
    assert rollout["versions"] == {str(rollout["version"]): 3}
    assert finished.final["artefact_versions"] == {"0": 3}
    fleet = tmp_path / "run" / "fleet"
    slots = [Slots(path, fleet / "keys" / "root.key.pub") for path in sorted((fleet / "devices").iterdir())]
    assert [slot.version for one in slots if (slot := one.current())] == [rollout["version"]] * 3
    model = (tmp_path / "run" / "model_int8.onnx").read_bytes()
    assert all(slot.model.read_bytes() == model for one in slots if (slot := one.current()))


def test_a_run_without_a_key_that_can_sign_does_not_start(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="key is missing"):
        check_key(fleet.config(1, key="").rollout)
    with pytest.raises(ConfigError, match="cannot be read"):
        check_key(fleet.config(1, key=str(tmp_path / "none")).rollout)
    with pytest.raises(ConfigError, match="is of another key, or has expired"):
        check_key(fleet.config(1, key=str(tmp_path / "keys" / "root.key")).rollout)
    check_key(fleet.config(1).rollout)


def test_what_was_not_checked_is_not_rolled_out(fleet: Fleet) -> None:
    store = RunStore(fleet.folder / "run")
    try:
        with fleet.grid() as grid:
            link = Link(grid, grid.clock, grid.pause)
            for exported, reason in (
                ({"error": "a runtime"}, "a runtime"),
                ({"skipped": "no data"}, "no data"),
                ({"files": {}, "formats": {}}, "no file passed the gate"),
            ):
                record = roll_out(link, fleet.config(1), exported, store, print)
                assert record == {"error": f"there is no checked artefact: {reason}"}
            record = roll_out(link, fleet.config(1), {"files": {"model_int8.onnx": {}}}, store, print)
            assert "manifest.json" in record["error"]
    finally:
        store.close()
    assert not fleet.devices.exists()


def test_what_is_rolled_out_must_be_exported() -> None:
    with pytest.raises(ConfigError, match="must be one of deploy"):
        load_scenario("mnist", ["rollout.enabled=true", "rollout.format=tflite", "deploy.formats=onnx"])
