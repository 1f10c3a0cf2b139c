"""What a client keeps: read back as it was written, or not at all, whatever happened to the files."""

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.records import STATE, open_claims, open_state
from clients.state import KEPT_RUNS, Claims, ClientState, FileStore
from edge_runtime.errors import ConfigError, PeerError
from edge_runtime.train.config import RoundTask
from edge_runtime.updates import TensorLayout
from edge_runtime.updates.delta import FloatVector
from edge_runtime.updates.versions import model_id

LAYOUT = TensorLayout.of({"w": (5, 3), "b": (5,)})
VALUES = np.linspace(-1, 1, LAYOUT.size, dtype=np.float32)


def in_files(folder: Path, run_id: int = 1) -> ClientState:
    return ClientState(FileStore(folder, run_id))


def in_context(folder: Path) -> ClientState:
    return open_state(Context(1, 7, {}, RecordDict(), {}), RoundTask())


def keep(state: ClientState, values: FloatVector = VALUES) -> None:
    state.keep_anchor(LAYOUT, model_id(values), values)
    state.keep_residual(LAYOUT, 4, -values)


def unsent(state: ClientState, layout: TensorLayout = LAYOUT) -> float:
    """The largest magnitude in the residual."""
    residual = state.residual(layout, 9)
    assert residual is not None
    return float(np.abs(residual).max())


def test_a_step_is_taken_once_also_by_who_comes_after_a_later_round_was_entered(tmp_path: Path) -> None:
    """A process that is late must not find its step free because the next round's has cleared it away."""
    state = Claims(FileStore(tmp_path, 1, "secure"))
    assert state.once(5, "Survivors")
    assert not state.once(5, "Survivors")
    assert state.enter(6)
    assert not state.once(5, "Survivors")
    assert not state.once(5, "Quorum")
    assert state.once(6, "Roster")


@pytest.mark.parametrize("make", [in_files, in_context])
def test_what_was_kept_is_read_back(tmp_path: Path, make: Callable[[Path], ClientState]) -> None:
    state = make(tmp_path / "state")
    assert state.anchor(LAYOUT) is None
    assert unsent(state) == 0
    for values in (VALUES, VALUES[::-1].copy()):
        keep(state, values)
        held = state.anchor(LAYOUT)
        assert held is not None
        assert held[0] == model_id(values)
        np.testing.assert_array_equal(held[1], values)
        np.testing.assert_array_equal(state.residual(LAYOUT, 5), -values)


@pytest.mark.parametrize("round_number", [1, 3, 4])
def test_a_residual_of_this_round_or_a_later_one_is_not_given(tmp_path: Path, round_number: int) -> None:
    keep(in_files(tmp_path))
    assert in_files(tmp_path).residual(LAYOUT, round_number) is None


@pytest.mark.parametrize("make", [in_files, in_context])
def test_state_of_a_model_with_other_tensors_is_none(tmp_path: Path, make: Callable[[Path], ClientState]) -> None:
    state = make(tmp_path)
    keep(state)
    for other in ({"w": (3, 5), "b": (5,)}, {"w": (5, 3)}, {"w": (50, 3), "b": (5,)}):
        layout = TensorLayout.of(other)
        assert state.anchor(layout) is None
        assert unsent(state, layout) == 0


def test_a_node_keeps_its_state_where_its_owner_says(tmp_path: Path) -> None:
    node = {"state-path": str(tmp_path / "kept")}
    context = Context(5, 7, node, RecordDict(), {})
    keep(open_state(context, RoundTask()))
    assert STATE not in context.state
    assert open_state(Context(5, 8, node, RecordDict(), {}), RoundTask()).anchor(LAYOUT) is not None


def test_a_run_that_goes_on_as_another_flower_run_finds_what_was_kept(tmp_path: Path) -> None:
    node = {"state-path": str(tmp_path)}
    first, second, other = (Context(flower, 7, node, RecordDict(), {}) for flower in (5, 2**64 - 1, 9))
    keep(open_state(first, RoundTask(run=77)))
    assert open_claims(first).enter(4)
    assert open_state(second, RoundTask(run=77)).anchor(LAYOUT) is not None
    assert open_state(other, RoundTask(run=78)).anchor(LAYOUT) is None
    # A round is entered once in a Flower run, and again in another that plays it again.
    assert not open_claims(first).enter(4)
    assert open_claims(second).enter(4)


def test_a_flower_run_has_one_key_and_so_one_folder(tmp_path: Path) -> None:
    context = Context(5, 7, {"state-path": str(tmp_path)}, RecordDict(), {})
    keep(open_state(context, RoundTask(run=77)))
    for run in (78, 0):
        with pytest.raises(PeerError, match="another than that of this Flower run's first task"):
            open_state(context, RoundTask(run=run))
    keep(open_state(context, RoundTask(run=77)))
    assert [path.name for path in tmp_path.iterdir()] == [f"run-{77:016x}"]


def test_claims_push_out_no_state(tmp_path: Path) -> None:
    keep(in_files(tmp_path))
    for flower in range(KEPT_RUNS + 3):
        assert Claims(FileStore(tmp_path, flower, "secure")).enter(1)
    assert in_files(tmp_path).anchor(LAYOUT) is not None
    assert len(list(tmp_path.glob("secure-*"))) == KEPT_RUNS


def test_two_runs_do_not_mix_and_old_ones_go(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("the owner's own file")
    for run in range(1, KEPT_RUNS + 3):
        assert in_files(tmp_path, run).anchor(LAYOUT) is None
        keep(in_files(tmp_path, run), VALUES * run)
        os.utime(tmp_path / f"run-{run:016x}", (run, run))
    kept = [run for run in range(1, KEPT_RUNS + 3) if in_files(tmp_path, run).anchor(LAYOUT) is not None]
    assert kept == list(range(3, KEPT_RUNS + 3))
    for run in kept:
        held = in_files(tmp_path, run).anchor(LAYOUT)
        assert held is not None
        np.testing.assert_array_equal(held[1], VALUES * run)
    assert (tmp_path / "mine").exists()


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keep(in_files(tmp_path))
    finally:
        os.umask(before)
    (folder,) = tmp_path.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["anchor", "residual"]))
def test_a_damaged_file_is_no_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: st.DataObject, name: str
) -> None:
    keep(in_files(tmp_path))
    path = tmp_path / f"run-{1:016x}" / name
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    flipped = good[:at] + bytes([good[at] ^ 1 << data.draw(st.integers(0, 7))]) + good[at + 1 :]
    for bad in (flipped, good[:at], good + b"\0", b"", good * 50, data.draw(st.binary(max_size=300))):
        path.write_bytes(bad)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            state = in_files(tmp_path)
            nothing = state.anchor(LAYOUT) is None if name == "anchor" else unsent(state) == 0
        assert nothing
        assert f"this node's {name} cannot be used, it goes on without" in caplog.text
    path.write_bytes(good)
    assert in_files(tmp_path).anchor(LAYOUT) is not None


def test_a_link_to_another_file_is_not_followed(tmp_path: Path) -> None:
    keep(in_files(tmp_path))
    path = tmp_path / f"run-{1:016x}" / "anchor"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert in_files(tmp_path).anchor(LAYOUT) is None


def test_a_folder_that_cannot_be_written_is_the_owners_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"node config: state-path: .*cannot be written"):
        keep(in_files(tmp_path / "file"))


WRITER = """
import sys
from pathlib import Path
import numpy as np
from clients.state import ClientState, FileStore
from edge_runtime.updates import TensorLayout
from edge_runtime.updates.versions import model_id
layout = TensorLayout.of({"w": (400, 500)})
state = ClientState(FileStore(Path(sys.argv[1]), 1))
print("ready", flush=True)
k = 0
while True:
    k += 1
    values = np.full(layout.size, k, np.float32)
    state.keep_anchor(layout, model_id(values), values)
    state.keep_residual(layout, k, values)
"""


def test_a_process_killed_while_it_writes_leaves_the_old_state_or_the_new(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = TensorLayout.of({"w": (400, 500)})
    for delay_s in (0.05, 0.081, 0.117):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
        state = in_files(tmp_path)
        held = state.anchor(layout)
        assert held is not None
        assert model_id(held[1]) == held[0]
        residual = state.residual(layout, 10**6)
        assert residual is not None
        keep(state)
        assert len(list((tmp_path / f"run-{1:016x}").iterdir())) == 2, "nothing is left of what was not finished"
        assert residual.min() == residual.max() == held[1][0] or residual[0] == held[1][0] - 1
    assert not caplog.text
