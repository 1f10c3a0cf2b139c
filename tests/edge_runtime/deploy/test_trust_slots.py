"""Slots: whatever is offered, fails, or is cut short, the device holds a model that runs, and never an older one."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_runtime import cli
from edge_runtime.deploy.artefact import write_manifest
from edge_runtime.deploy.trust.health import Expected, Health, Verdict
from edge_runtime.deploy.trust.slots import Slots
from edge_runtime.deploy.trust.state import STATE, Trust
from edge_runtime.deploy.trust.verify import directory_source
from edge_runtime.errors import ArtefactError

X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)


def linear(scale: float) -> bytes:
    """The smallest useful model: y = scale * x @ ones."""
    weight = numpy_helper.from_array(np.full((4, 3), scale, np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 4), ("y", 3))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@dataclasses.dataclass(frozen=True)
class Publisher:
    """Someone with keys, who releases models."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "keys" / "root.key.pub"

    def release(self, version: int, *options: str, key: str = "release.key") -> Path:
        folder = self.folder / f"v{version}"
        folder.mkdir(exist_ok=True)
        (folder / "model_fp32.onnx").write_bytes(linear(float(version)))
        write_manifest(folder, {"onnx_fp32": folder / "model_fp32.onnx"}, {"name": "linear"})
        self.sign(folder, "--version", str(version), *options, key=key)
        return folder

    def sign(self, folder: Path, *options: str, key: str = "release.key") -> None:
        assert cli.main(["sign", str(folder), "--key", str(self.folder / "keys" / key), *options]) == 0


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    folder = tmp_path_factory.mktemp("publisher")
    assert cli.main(["artefact-keys", "new", str(folder / "keys")]) == 0
    made = Publisher(folder)
    for version in (1, 2, 3):
        made.release(version)
    return made


@pytest.fixture
def slots(publisher: Publisher, tmp_path: Path) -> Slots:
    return Slots(tmp_path / "device", publisher.root)


@pytest.fixture(scope="module")
def installed(publisher: Publisher, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two state folders to copy: one with version 1, confirmed; one with version 2 on trial before it."""
    first, second = (tmp_path_factory.mktemp("installed") / name for name in ("first", "second"))
    slots = Slots(first, publisher.root)
    slots.install(publisher.folder / "v1")
    slots.confirm()
    shutil.copytree(first, second)
    Slots(second, publisher.root).install(publisher.folder / "v2")
    return first, second


@pytest.fixture
def first(installed: tuple[Path, Path], publisher: Publisher, tmp_path: Path) -> Slots:
    return Slots(shutil.copytree(installed[0], tmp_path / "first"), publisher.root)


@pytest.fixture
def second(installed: tuple[Path, Path], publisher: Publisher, tmp_path: Path) -> Slots:
    return Slots(shutil.copytree(installed[1], tmp_path / "second"), publisher.root)


def answers(slots: Slots) -> float:
    """What the current model multiplies by: the version that it says it is."""
    runner = slots.open()
    assert runner is not None
    return float(runner.predict(np.ones((1, 4), np.float32))[0, 0]) / 4


def test_a_device_goes_from_nothing_to_a_confirmed_model_and_on(slots: Slots, publisher: Publisher) -> None:
    assert slots.current() is None
    assert slots.open() is None
    assert slots.install(publisher.folder / "v1").version == 1
    assert slots.state.trust is Trust.ON_TRIAL
    slots.confirm()
    assert slots.install(publisher.folder / "v2").version == 2
    assert answers(slots) == 2
    assert [event["event"] for event in slots.events()] == ["tried", "switched", "confirmed", "tried", "switched"]


def test_the_same_artefact_again_changes_nothing(slots: Slots, publisher: Publisher) -> None:
    first = slots.install(publisher.folder / "v1")
    before = slots.state
    assert slots.install(publisher.folder / "v1") == first
    assert slots.state == before


def test_only_two_slots_are_kept(second: Slots, publisher: Publisher) -> None:
    second.install(publisher.folder / "v3")
    kept = {path.name.partition("-")[0] for path in (second.folder / "slots").iterdir()}
    assert kept == {"2", "3"}
    assert second.rollback("by hand").version == 2


def test_a_roll_back_is_local_and_what_was_rolled_back_stays_out(second: Slots, publisher: Publisher) -> None:
    assert second.rollback("too slow").version == 1
    assert answers(second) == 1
    with pytest.raises(ArtefactError, match="version 2 is not above 2"):
        second.install(publisher.folder / "v2")
    assert second.install(publisher.folder / "v3").version == 3


def test_there_is_one_step_back_and_no_more(second: Slots, publisher: Publisher) -> None:
    second.rollback("once")
    with pytest.raises(ArtefactError, match="no previous slot"):
        second.rollback("twice")
    assert answers(second) == 1


def test_a_damaged_slot_is_left_for_the_previous_one(second: Slots) -> None:
    (model,) = second.folder.glob("slots/2-*/model_fp32.onnx")
    content = bytearray(model.read_bytes())
    content[-3] ^= 1
    model.write_bytes(content)
    assert answers(second) == 1
    assert second.events()[-1]["event"] == "rolled back"


@pytest.mark.parametrize("damaged", ["model_fp32.onnx", "manifest.json", "golden.safetensors", "release-key.sig"])
def test_a_damaged_slot_is_repaired_by_the_same_artefact(first: Slots, publisher: Publisher, damaged: str) -> None:
    """Also where there is no slot to fall back on, and although its version is no longer above the floor."""
    slot = first.current()
    assert slot is not None
    (slot.folder / damaged).write_bytes(b"worn out")
    assert first.install(publisher.folder / "v1").version == 1
    assert answers(first) == 1
    assert first.state.previous is None


@pytest.mark.parametrize("call", [Slots.open, Slots.start])
def test_a_slot_without_a_manifest_is_left_for_the_previous_one(second: Slots, call: Callable[[Slots], object]) -> None:
    (manifest,) = second.folder.glob("slots/2-*/manifest.json")
    manifest.unlink()
    assert call(second) is not None
    assert answers(second) == 1


# The health window.


def watched(latency_s: float = 0.001, confidence: float = 0.9, errors: int = 0) -> Health:
    health = Health(Expected(window=50, max_latency_p95_s=0.01, confidence=0.9))
    for _ in range(50 - errors):
        health.answered(latency_s, confidence)
    for _ in range(errors):
        health.failed()
    return health


@pytest.mark.parametrize(
    ("health", "verdict", "version"),
    [
        (watched(), Verdict.GOOD, 2),
        (watched(errors=2), Verdict.BAD, 1),
        (watched(latency_s=0.02), Verdict.BAD, 1),
        (watched(confidence=0.4), Verdict.BAD, 1),
        (Health(Expected(window=50)), Verdict.WAIT, 2),
    ],
    ids=["good", "errors", "slow", "unsure", "too early"],
)
def test_the_health_window_decides(
    second: Slots, publisher: Publisher, health: Health, verdict: Verdict, version: int
) -> None:
    assert second.judge(health) is verdict
    assert answers(second) == version
    assert (second.state.trust is Trust.CONFIRMED) is (verdict is not Verdict.WAIT)


def test_a_confirmed_model_is_no_longer_judged(second: Slots, publisher: Publisher) -> None:
    second.confirm()
    second.judge(watched(errors=40))
    assert answers(second) == 2


@pytest.mark.parametrize("health", [watched(), watched(errors=2)], ids=["good", "bad"])
def test_the_health_of_one_model_is_no_verdict_on_another(first: Slots, publisher: Publisher, health: Health) -> None:
    """The service runs version 2 when another process installs version 3."""
    first.install(publisher.folder / "v2")
    first.open()
    Slots(first.folder, publisher.root).install(publisher.folder / "v3")
    first.judge(health)
    assert first.state.trust is Trust.ON_TRIAL
    assert answers(first) == 3


def test_a_model_that_keeps_taking_its_service_down_is_rolled_back(second: Slots, publisher: Publisher) -> None:
    versions = [slot.version for _ in range(4) if (slot := second.start())]
    assert versions == [2, 2, 2, 1]
    assert second.state.trust is Trust.CONFIRMED


# Power, disks, and others.

INSTALLER = """
import os, signal, sys
from edge_runtime.deploy.trust.slots import Slots
folder, root, artefact, wanted = sys.argv[1:]
def after_step(step):
    print(step, flush=True)
    if step == wanted:
        os.kill(os.getpid(), signal.SIGKILL)
Slots(folder, root, after_step=after_step).install(artefact)
"""


def install_in_a_process(slots: Slots, publisher: Publisher, version: int, kill_after: str) -> tuple[int, list[str]]:
    command = [sys.executable, "-c", INSTALLER, slots.folder, publisher.root, publisher.folder / f"v{version}"]
    done = subprocess.run([*map(str, command), kill_after], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.split("\n")[:-1]


STEPS = [
    "manifest", "received golden.safetensors", "received model_fp32.onnx", "tried", "placed", "switched",
    "self-tested", "swept",
]  # fmt: skip


def test_the_steps_are_all_of_them(slots: Slots, publisher: Publisher) -> None:
    assert install_in_a_process(slots, publisher, 1, "none") == (0, STEPS)


@pytest.mark.parametrize("step", STEPS)
def test_the_power_goes_after_a_step_and_a_model_that_runs_is_there(
    first: Slots, publisher: Publisher, step: str
) -> None:
    code, seen = install_in_a_process(first, publisher, 2, step)
    assert (code, seen[-1]) == (-signal.SIGKILL, step)
    switched = "switched" in seen
    slot = first.start()
    assert slot is not None
    assert slot.version == (2 if switched else 1)
    assert answers(first) == slot.version
    # Nothing stands in the way of the next one, or of this one again.
    following = 3 if switched else 2
    assert first.install(publisher.folder / f"v{following}").version == following
    assert [path.name for path in first.folder.glob("*") if path.is_dir()] == ["slots"]
    assert answers(first) == following


def test_the_power_goes_between_switch_and_self_test_of_a_model_that_fails_it(
    first: Slots, publisher: Publisher
) -> None:
    install_in_a_process(first, publisher, 2, "switched")
    slot = first.current()
    assert slot is not None
    slot.model.write_bytes(b"not what was checked")
    started = first.start()
    assert started is not None
    assert started.version == 1


def test_a_model_that_breaks_after_the_switch_is_rolled_back(publisher: Publisher, tmp_path: Path) -> None:
    folder = tmp_path / "device"
    Slots(folder, publisher.root).install(publisher.folder / "v1")

    def spoil(step: str) -> None:
        if step == "switched":
            slot = slots.current()
            assert slot is not None
            (slot.folder / "golden.safetensors").write_bytes(b"")

    slots = Slots(folder, publisher.root, after_step=spoil)
    with pytest.raises(ArtefactError, match="version 2 was rolled back: self-test"):
        slots.install(publisher.folder / "v2")
    assert answers(slots) == 1
    assert slots.state.floor == 2


FULL_DISK = """
import resource, sys
from edge_runtime.deploy.trust.slots import Slots
from edge_runtime.errors import ArtefactError
folder, root, artefact, full_after = sys.argv[1:]
def after_step(step):
    if step == full_after:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    Slots(folder, root, after_step=after_step).install(artefact)
except ArtefactError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("manifest", "cannot be written"),
        ("received golden.safetensors", "cannot be written"),
        ("placed", "state.json: cannot be written"),
        ("switched", "state.json: cannot be written"),
    ],
)
def test_a_disk_that_takes_no_more_leaves_a_model_that_runs(
    first: Slots, publisher: Publisher, step: str, said: str
) -> None:
    """The kernel refuses bytes past a limit as it does on a full disk: of the model, or of the state file."""
    command = [sys.executable, "-c", FULL_DISK, first.folder, publisher.root, publisher.folder / "v2", step]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    assert said in done.stdout
    started = first.start()
    assert started is not None
    assert answers(first) == started.version == (2 if step == "switched" else 1)
    assert first.install(publisher.folder / "v2").version == 2


def test_an_artefact_that_does_not_fit_is_refused_before_it_is_fetched(publisher: Publisher, tmp_path: Path) -> None:
    asked = []

    def source(name: str) -> Iterator[bytes]:
        asked.append(name)
        yield from directory_source(publisher.folder / "v1")(name)

    with pytest.raises(ArtefactError, match="this device takes 100 at most"):
        Slots(tmp_path, publisher.root, max_bytes=100).install(source)
    assert "model_fp32.onnx" not in asked


def test_two_installers_at_once(slots: Slots, publisher: Publisher) -> None:
    def source(name: str) -> Iterator[bytes]:
        with pytest.raises(ArtefactError, match="another installer is at work"):
            Slots(slots.folder, publisher.root).install(publisher.folder / "v2")
        yield from directory_source(publisher.folder / "v1")(name)

    assert slots.install(source).version == 1


def test_a_roll_back_does_not_wait_for_an_installer(second: Slots, publisher: Publisher) -> None:
    def source(name: str) -> Iterator[bytes]:
        if name == "model_fp32.onnx":
            second.rollback("while it downloads")
        yield from directory_source(publisher.folder / "v3")(name)

    assert second.install(source).version == 3
    assert second.rollback("and again").version == 1


@pytest.mark.parametrize("damaged", [False, True])
def test_a_slot_is_left_once_whoever_finds_it_bad(first: Slots, publisher: Publisher, damaged: bool) -> None:
    """A service goes back while the installer still tests what it switched to."""

    def meanwhile(step: str) -> None:
        if step == "switched":
            slot = first.current()
            assert slot is not None
            if damaged:
                slot.model.write_bytes(b"")
            first.fall_back(slot, "the service")
            assert first.fall_back(slot, "another service") == first.current()

    installer = Slots(first.folder, publisher.root, after_step=meanwhile)
    if damaged:
        with pytest.raises(ArtefactError, match="was rolled back"):
            installer.install(publisher.folder / "v2")
    else:
        installer.install(publisher.folder / "v2")
    assert first.state.trust is Trust.CONFIRMED
    assert answers(first) == 1


def test_a_source_that_breaks_off_is_told_apart_from_ours(first: Slots, publisher: Publisher) -> None:
    def source(name: str) -> Iterator[bytes]:
        if name == "model_fp32.onnx":
            raise ConnectionResetError("the link is gone")
        yield from directory_source(publisher.folder / "v2")(name)

    with pytest.raises(ConnectionResetError):
        first.install(source)
    assert answers(first) == 1
    assert not (first.folder / "incoming").exists()
    assert first.events()[-1]["event"] == "refused"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"current": "../../etc"}', b"\xff", b"[" * 4000])
def test_a_damaged_state_file_is_a_clear_error(slots: Slots, content: bytes) -> None:
    (slots.folder / STATE).write_bytes(content)
    with pytest.raises(ArtefactError, match="is damaged"):
        slots.current()
