"""Federations over a real SuperLink and two real SuperNodes on loopback: the model, and the bytes on the wire.

The SuperNodes reach the SuperLink through a proxy that counts what passes; the ServerApp does not.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from federations import IDLE_BYTES_PER_S, Federation, started, words
from safetensors.numpy import load_file

from edge_runtime.deploy.trust.publish import make_release_key, make_root_key
from edge_runtime.deploy.trust.slots import Slots
from edge_runtime.privacy import Ledger, epsilon
from simulations.runner import simulate
from simulations.scenario import load_scenario

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SETTINGS: dict[str, Any] = {
    "data.name": "digits", "data.clients": 2, "data.partition": "iid", "model.name": "digits_cnn", "train.epochs": 1,
    "server.rounds": 2, "server.cohort": 2, "server.min_updates": 2, "server.deadline_s": 90.0,
}  # fmt: skip
# 61,706 parameters: payloads are most of what passes.
LARGER = {**SETTINGS, "data.name": "mnist", "model.name": "lenet", "server.rounds": 3, "deploy.formats": ""}
SMALL = {
    "uplink.codec": "topk,float16", "uplink.fraction": 0.05, "uplink.error_feedback": True,
    "downlink.codec": "float16", "downlink.delta": "uniform", "downlink.bits": 4.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with started(tmp_path_factory.mktemp("federation"), 2) as running:
        yield running


def test_two_supernodes_train_the_same_model_as_the_simulation(federation: Federation, tmp_path: Path) -> None:
    deployed, simulated = tmp_path / "deployed", tmp_path / "simulated"
    run = federation.run_whole(deployed, SETTINGS)
    assert run.record["final"]["int8_accuracy"]["onnx"] > 0.5
    assert "round 2/2" in run.log

    simulate(load_scenario("mnist", words({**SETTINGS, "deploy.formats": "", "run.out": str(simulated)})))
    assert_same_run(simulated, deployed)


def test_the_bytes_of_a_run_are_the_bytes_on_the_wire(federation: Federation, tmp_path: Path) -> None:
    """More than run.json says passes by what Flower adds; a smaller payload takes as much from the one as the other."""
    plain = federation.run_whole(tmp_path / "plain", LARGER)
    small = federation.run_whole(tmp_path / "small", {**LARGER, **SMALL})
    for run in (plain, small):
        assert 0 < run.up - run.payload_up < run.flowers_share
        assert 0 < run.down - run.payload_down < run.flowers_share
    assert small.payload_up < plain.payload_up / 10
    assert small.payload_down < plain.payload_down / 2
    # The bundle and the messages are the same in both; what is left are polls, by how long each run took.
    tolerance = 0.05 * plain.payload_up + abs(plain.seconds - small.seconds) * IDLE_BYTES_PER_S
    assert plain.up - small.up == pytest.approx(plain.payload_up - small.payload_up, abs=tolerance)
    assert plain.down - small.down == pytest.approx(plain.payload_down - small.payload_down, abs=tolerance)

    # What clients keep between messages is in Flower's hands there, in the grid's here.
    simulate(load_scenario("mnist", words({**LARGER, **SMALL, "run.out": str(tmp_path / "simulated")})))
    assert_same_run(tmp_path / "simulated", tmp_path / "small")


def test_a_node_killed_in_the_middle_of_a_secure_round_costs_its_update_alone(tmp_path: Path) -> None:
    """Cases 4 and 29: it has shared its keys, perhaps, and not sent its input; the masks that it left are taken off."""
    settings = {
        **SETTINGS, "data.clients": 4, "server.rounds": 1, "server.cohort": 4, "server.min_updates": 3,
        "secure.enabled": True, "secure.dropout": 0.25, "secure.phase_deadline_s": 20.0, "deploy.formats": "",
        "privacy.noise_multiplier": 0.2, "privacy.clip": 1.0, "secure.bits": 32,
    }  # fmt: skip
    with started(tmp_path / "federation", 4, keep_state=True) as running:
        killer = threading.Thread(target=kill_when_sharing, args=(running.nodes[3], running.home / "3"), daemon=True)
        killer.start()
        run = running.run(tmp_path / "run", settings)
        killer.join(timeout=1)
    (row,) = run.record["rounds"]
    assert (row["applied"], row["clients"], row["dropped"]) == (True, 3, 1), row
    assert row["dropped_in"]["share_keys"] + row["dropped_in"]["masked_input"] == 1
    assert row["failures"][0]["reason"].endswith("no reply within 20 s")
    assert row["loss"] < 10  # under a mask that stayed, weights would be in the thousands
    # Three shares of noise are in the sum, as planned for a drop-out, and all of the budget that they cost is booked.
    ledger = Ledger.from_json((tmp_path / "run" / "privacy.ledger").read_text())
    assert [event.shares for event in ledger.events] == [3]
    assert row["epsilon"] == pytest.approx(epsilon(ledger, 1e-5), rel=1e-6)


@pytest.mark.timeout(600)  # two federations are started
def test_devices_take_a_signed_artefact_and_keep_it_over_a_restart(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    make_root_key(keys)
    key, _ = make_release_key(keys, days=1, now_s=time.time())
    root = keys / "root.key.pub"
    settings = {**SETTINGS, "server.rounds": 1}
    first = {
        "rollout.enabled": True, "rollout.key": str(key), "rollout.version": 7, "rollout.stages": "100",
        "deploy.formats": "onnx", "rollout.format": "onnx", "rollout.health_s": 0.0, "rollout.deadline_s": 90.0,
    }  # fmt: skip
    with started(tmp_path / "before", 2, root_key=root) as running:
        run = running.run_whole(tmp_path / "first", {**settings, **first})
    rollout = run.record["final"]["rollout"]
    assert rollout["halted"] is None, rollout
    assert rollout["versions"] == {"7": 2}
    assert sum(stage["installed"] for stage in rollout["stages"]) == 2
    assert "version 7 in the fleet: 2 run 7" in run.log

    # Other processes, another SuperLink, other node ids: the slots are what stays.
    with started(tmp_path / "after", 2, root_key=root) as running:
        run = running.run_whole(tmp_path / "second", {**settings, "deploy.formats": ""})
    assert run.record["final"]["artefact_versions"] == {"7": 2}
    model = (tmp_path / "first" / "model_int8.onnx").read_bytes()
    for node in ("0", "1"):
        slot = Slots(keys / "slots" / node, root).current()
        assert slot is not None
        assert slot.model.read_bytes() == model


def test_a_warm_process_and_a_stock_node_train_the_model_of_the_simulation(tmp_path: Path) -> None:
    """One `hedgerow join` among SuperNodes: the same messages, the same answers."""
    settings = {**SETTINGS, "deploy.formats": ""}
    with started(tmp_path / "federation", 2, warm=1) as running:
        first = running.run_whole(tmp_path / "first", settings)
        second = running.run_whole(tmp_path / "second", settings)
    simulate(load_scenario("mnist", words({**settings, "run.out": str(tmp_path / "simulated")})))
    # The log goes on: of two rounds, then of another two, by the one warm process.
    assert [run.log.count("train message of run") for run in (first, second)] == [2, 4]
    assert_same_run(tmp_path / "simulated", tmp_path / "first")
    assert_same_run(tmp_path / "simulated", tmp_path / "second")


def kill_when_sharing(node: psutil.Popen, state: Path) -> None:
    """End a SuperNode, and all that it started, as soon as it works on the phase in which keys are shared."""
    while not list(state.glob("secure-*/round-1.Roster")):
        time.sleep(0.02)
    for process in [*node.children(recursive=True), node]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def assert_same_run(simulated: Path, deployed: Path) -> None:
    """Equal bytes in every round, and one model, but for the order of a sum: that in which updates arrived."""
    ours, theirs = load_file(simulated / "model.safetensors"), load_file(deployed / "model.safetensors")
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=0, atol=1e-6, err_msg=name)
    rows = [json.loads((folder / "run.json").read_text())["rounds"] for folder in (simulated, deployed)]
    for column in ("uplink_bytes", "downlink_bytes"):
        assert [row[column] for row in rows[0]] == [row[column] for row in rows[1]]
