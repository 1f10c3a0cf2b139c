"""A training cut off anywhere and taken up again from its file goes on bit for bit; hostile files are refused."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from edge_runtime import losses, optimizers, schedules
from edge_runtime.errors import ConfigError, ProgramError
from edge_runtime.train import callbacks, checkpoint
from edge_runtime.train.batches import Batches, Examples
from edge_runtime.train.checkpoint import Checkpoint
from edge_runtime.train.history import History
from edge_runtime.train.loop import Callback, Loop
from edge_runtime.train.torch_trainer import TorchTrainer
from edge_runtime.train.transforms import Crop, Flip, Noise

EPOCHS, BATCH, ROWS = 3, 4, 18
STEPS_PER_EPOCH = -(-ROWS // BATCH)


class PowerCutError(Exception):
    pass


class CutAt(Callback):
    """Ends the process's training as a crash does: no further hook runs."""

    last = True

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, loop: Loop) -> None:
        if loop.step == self.step:
            raise PowerCutError


def rows(seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    return Examples(rng.normal(size=(ROWS, 1, 4, 4)).astype(np.float32), rng.integers(0, 3, ROWS))


OPTIMIZERS: list[optimizers.Optimizer] = [
    optimizers.SGD(0.05, momentum=0.9),
    optimizers.Adam(),
    optimizers.RMSprop(momentum=0.5),
    optimizers.Adagrad(),
]
SCHEDULES: list[schedules.Schedule | None] = [
    None,
    schedules.Warmup(4, 0.1, schedules.Cosine(9)),
    schedules.ReduceOnPlateau(mode="max", patience=0, gamma=0.5),  # of a falling loss: reduces after every epoch
]


def training(
    optimizer: optimizers.Optimizer = OPTIMIZERS[1],
    schedule: schedules.Schedule | None = None,
    hooks: tuple[Callback, ...] = (),
    resume: Checkpoint | None = None,
    seed: int = 7,
) -> tuple[TorchTrainer, History]:
    """Shuffling, augmentation, dropout, batch norm, momentum, a proximal term and early stopping, all at once."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3)
    )
    trainer = TorchTrainer(module, optimizer=optimizer, proximal_mu=0.1, clip_norm=1.0, seed=seed)
    batches = Batches(rows(), BATCH, np.random.default_rng(seed), (Flip(), Crop(1), Noise(0.1)))
    history = trainer.fit(
        batches,
        EPOCHS,
        [callbacks.EarlyStopping(patience=2, restore_best=True), *hooks],
        schedule=schedule,
        validation=Batches(rows(1), 7),
        resume=resume,
    )
    return trainer, history


def assert_same(one: tuple[TorchTrainer, History], two: tuple[TorchTrainer, History]) -> None:
    assert one[1] == two[1]
    ours, theirs = one[0].snapshot(), two[0].snapshot()
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.tobytes() == theirs[name].tobytes(), name


@given(
    optimizer=st.sampled_from(OPTIMIZERS),
    schedule=st.sampled_from(SCHEDULES),
    every=st.integers(1, STEPS_PER_EPOCH + 1),
    cut=st.integers(1, EPOCHS * STEPS_PER_EPOCH),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_training_cut_off_anywhere_goes_on_bit_for_bit(
    tmp_path: Path, optimizer: optimizers.Optimizer, schedule: schedules.Schedule | None, every: int, cut: int
) -> None:
    path = tmp_path / "run.ckpt"
    path.unlink(missing_ok=True)
    whole = training(optimizer, schedule)
    hooks = (callbacks.CheckpointEvery(path, every), CutAt(cut))
    if cut <= len(whole[1].losses):
        with pytest.raises(PowerCutError):
            training(optimizer, schedule, hooks)
    # Another seed than the first process had: all randomness has to come from the file.
    resume = checkpoint.load(path) if path.exists() else None
    assert_same(training(optimizer, schedule, resume=resume, seed=8 if resume else 7), whole)


def test_it_goes_on_after_the_end_of_an_epoch_too(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    whole = training(hooks=(callbacks.BestCheckpoint(path),))
    resume = checkpoint.load(path)
    assert resume.progress["batch"] == 0
    assert_same(training(hooks=(callbacks.BestCheckpoint(path),), resume=resume, seed=8), whole)


CHILD = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from test_checkpoint import *
path, cut = sys.argv[1], int(sys.argv[2])
resume = checkpoint.load(path) if not cut else None
class Kill(Callback):
    last = True
    def on_step(self, loop):
        if loop.step == cut:
            os.kill(os.getpid(), 9)
trainer, history = training(hooks=(callbacks.CheckpointEvery(path, 2), Kill()), resume=resume, seed=7 if cut else 8)
np.savez(path + ".npz", losses=history.losses, **trainer.state_dict())
"""


def test_a_killed_process_is_continued_by_another(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    killed = subprocess.run([sys.executable, "-c", CHILD, str(path), "8"], check=False)
    assert killed.returncode == -9
    subprocess.run([sys.executable, "-c", CHILD, str(path), "0"], check=True)
    trainer, history = training()
    with np.load(f"{path}.npz") as continued:
        assert continued["losses"].tolist() == history.losses
        for name, array in trainer.state_dict().items():
            assert continued[name].tobytes() == array.tobytes(), name


def test_any_repeatable_batches_can_be_taken_up_in_the_middle(tmp_path: Path) -> None:
    batches = list(Batches(rows(), BATCH))
    losses_of = []
    for cut in (None, 7):
        path = tmp_path / "run.ckpt"
        trainer = TorchTrainer(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
        start = {name: np.ones_like(array) for name, array in trainer.state_dict().items()}
        trainer.load_state_dict(start)
        if cut:
            with pytest.raises(PowerCutError):
                trainer.fit(batches, EPOCHS, [callbacks.CheckpointEvery(path, 1), CutAt(cut + 1)])
            assert checkpoint.load(path).progress["batch"] == cut % len(batches) + 1
        history = trainer.fit(batches, EPOCHS, resume=checkpoint.load(path) if cut else None)
        losses_of.append(history.losses)
    assert losses_of[0] == losses_of[1]


# Snapshots of a trainer.


def learned_trainer(**options: Any) -> TorchTrainer:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            z = nn.functional.dropout(self.body(x), 0.5, self.training)
            return z[:, :3], z[:, 3:]

    torch.manual_seed(1)
    loss = losses.MultiTask((losses.CrossEntropy(), losses.MSE()), learned=True)
    return TorchTrainer(Two(), loss=loss, **options)


def test_a_snapshot_holds_all_that_training_depends_on() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3)).astype(np.float32)
    y = (rng.integers(0, 3, 6), rng.normal(size=(6, 1)).astype(np.float32))
    trainer, other = (learned_trainer(optimizer=optimizers.Adam(), proximal_mu=0.3, seed=seed) for seed in (0, 1))
    trainer.set_correction({"body.bias": np.ones(4, np.float32)})
    for _ in range(3):
        trainer.step(x, y)
    taken = trainer.snapshot()
    expected = [trainer.step(x, y) for _ in range(4)]
    after = trainer.snapshot()
    # Other weights, and so another anchor of the proximal term.
    other.load_state_dict({name: array + 1 for name, array in other.state_dict().items()})
    other.step(x, y)
    other.restore(taken)
    assert other.steps == 3
    assert [other.step(x, y) for _ in range(4)] == expected
    assert all(array.tobytes() == after[name].tobytes() for name, array in other.snapshot().items())
    assert (after["loss.log_variances"] != 0).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda parts: parts.pop("steps"), "no step count"),
        (lambda parts: parts.update(steps=np.array(-1)), "no step count"),
        (lambda parts: parts.update(steps=np.array(1.5)), "no step count"),
        (lambda parts: parts.pop("state/body.bias"), "first state/body.bias"),
        (lambda parts: parts.update({"state/body.bias": np.zeros(3, np.float32)}), "state/body.bias is float32"),
        (lambda parts: parts.update({"state/body.bias": np.zeros(4)}), "state/body.bias is float64"),
        (lambda parts: parts.pop("moments/v"), "first moments/v"),
        (lambda parts: parts.update(random=np.zeros(10, np.uint8)), "random is uint8"),
        (lambda parts: parts.update(random=np.zeros_like(parts["random"])), "does not fit"),
    ],
)
def test_a_snapshot_that_does_not_fit_is_refused_whole(change: Callable[[dict[str, Any]], object], text: str) -> None:
    x, y = np.ones((2, 3), np.float32), (np.array([0, 1]), np.zeros((2, 1), np.float32))
    trainer = learned_trainer(optimizer=optimizers.Adam())
    trainer.step(x, y)
    parts = trainer.snapshot()
    trainer.step(x, y)
    before = trainer.snapshot()
    change(parts)
    with pytest.raises(ConfigError, match=text) as caught:
        trainer.restore(parts)
    assert "\n" not in str(caught.value)
    assert all(array.tobytes() == before[name].tobytes() for name, array in trainer.snapshot().items())


# What a checkpoint must fit.


@pytest.fixture
def taken(tmp_path: Path) -> Checkpoint:
    path = tmp_path / "run.ckpt"
    training(hooks=(callbacks.CheckpointEvery(path, 7),))
    return checkpoint.load(path)


def refit(resume: Checkpoint, batches: Batches | None = None, hooks: Any = None, **options: Any) -> None:
    trainer = TorchTrainer(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    hooks = [callbacks.EarlyStopping(patience=2, restore_best=True)] if hooks is None else hooks
    trainer.fit(batches or Batches(rows(), BATCH, np.random.default_rng()), 1, hooks, resume=resume, **options)


def test_a_checkpoint_of_another_training_is_refused_in_one_line(taken: Checkpoint) -> None:
    rng = np.random.default_rng()
    cases: list[tuple[Callable[[], None], str]] = [
        (lambda: refit(taken), "does not fit this trainer"),
        (lambda: refit(taken, Batches(rows(), 5, rng)), "batch_size = 4, these batches have 5"),
        (lambda: refit(taken, Batches(rows().rows(slice(3)), BATCH, rng)), "rows = 18, these batches have 3"),
        (lambda: refit(taken, Batches(rows(), BATCH)), "only one shuffles"),
        (lambda: refit(taken, hooks=[]), r"callbacks \['EarlyStopping'\], this training has \[\]"),
        (lambda: refit(taken, schedule=schedules.ReduceOnPlateau()), "only one is reduce_on_plateau"),
    ]
    for attempt, text in cases:
        with pytest.raises(ConfigError, match=text) as caught:
            attempt()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1},
        {"epoch": 1.5},
        {"batch": 10**9},
        {"examples": "many"},
        {"epochs": 3},
        {"epochs": [[1]]},
        {"order": None},
        {"order": {"rows": ROWS, "batch_size": BATCH, "rng": {"bit_generator": "PCG64", "state": 3}}},
        {"callbacks": 3},
        {"callbacks": [["EarlyStopping", 3]]},
        {"base_scale": None},
    ],
)
def test_malformed_progress_is_a_config_error(taken: Checkpoint, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        training(resume=Checkpoint(taken.arrays, {**taken.progress, **change}))
    for name in ("losses",):
        with pytest.raises(ConfigError, match="malformed"):
            training(resume=Checkpoint({k: v for k, v in taken.arrays.items() if k != name}, taken.progress))


# The file.


@given(
    arrays=st.dictionaries(
        st.text(max_size=8),
        st.tuples(
            st.sampled_from(sorted(checkpoint.DTYPES)),
            st.lists(st.integers(0, 4), max_size=3),
            st.integers(0, 255),
        ),
        max_size=4,
    ),
    progress=st.dictionaries(st.text(max_size=5), st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, arrays: dict[str, Any], progress: dict[str, Any]) -> None:
    made = {
        name: (np.arange(int(np.prod(shape))) * value).astype(dtype).reshape(shape)
        for name, (dtype, shape, value) in arrays.items()
    }
    checkpoint.save(tmp_path / "c", Checkpoint(made, progress))
    read = checkpoint.load(tmp_path / "c")
    assert read.progress == progress
    assert list(read.arrays) == list(made)
    for name, array in made.items():
        assert (read.arrays[name].dtype, read.arrays[name].shape) == (array.dtype, array.shape)
        assert read.arrays[name].tobytes() == array.tobytes()


def test_arrays_are_stored_in_c_order_and_aligned(tmp_path: Path) -> None:
    array = np.arange(12.0).reshape(3, 4).T[::2]
    checkpoint.save(tmp_path / "c", Checkpoint({"a": np.ones(3, np.uint8), "b": array}, {}))
    np.testing.assert_array_equal(checkpoint.load(tmp_path / "c").arrays["b"], array)
    raw = (tmp_path / "c").read_bytes()
    assert raw.index(np.ascontiguousarray(array).tobytes()) % 64 == 0


def small_file(path: Path) -> bytes:
    checkpoint.save(path, Checkpoint({"a": np.arange(5.0), "b": np.ones((2, 3), np.int8)}, {"epoch": 1}))
    return path.read_bytes()


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_or_cut_file_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    raw = small_file(tmp_path / "good")
    if data.draw(st.booleans()):
        bad = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        place = data.draw(st.integers(0, len(raw) - 1))
        bad = raw[:place] + bytes([raw[place] ^ data.draw(st.integers(1, 255))]) + raw[place + 1 :]
    (tmp_path / "bad").write_bytes(bad)
    try:
        read = checkpoint.load(tmp_path / "bad")
    except ProgramError:
        return
    # Only the padding between arrays is covered by no checksum.
    assert read.arrays["a"].tobytes() == np.arange(5.0).tobytes()
    assert read.arrays["b"].tobytes() == np.ones((2, 3), np.int8).tobytes()
    assert read.progress == {"epoch": 1}


def test_a_changed_digit_in_the_header_is_refused(tmp_path: Path) -> None:
    raw = small_file(tmp_path / "c")
    (tmp_path / "c").write_bytes(raw.replace(b'"epoch": 1', b'"epoch": 2'))
    with pytest.raises(ProgramError, match="header's checksum"):
        checkpoint.load(tmp_path / "c")


def forged(header: object) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return checkpoint.MAGIC + struct.pack("<QI", len(raw), zlib.crc32(raw)) + raw + bytes(64)


def entry(**change: Any) -> dict[str, Any]:
    return {"name": "a", "dtype": "<f4", "shape": [2], "offset": 0, "crc32": zlib.crc32(bytes(8)), **change}


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b"\xff",
        [],
        {"arrays": []},
        {"arrays": [entry(), entry()], "progress": {}},
        {"arrays": [], "progress": []},
        *(
            {"arrays": [entry(**change)], "progress": {}}
            for change in (
                {"dtype": "|O"},
                {"dtype": []},
                {"dtype": ">f4"},
                {"shape": [10**15]},
                {"shape": [0, 10**15]},
                {"shape": [2**32, 2**32]},
                {"shape": [64] * 8},
                {"shape": [-2]},
                {"shape": [2.0]},
                {"shape": [True, 2]},
                {"shape": [1] * 40},
                {"offset": 10**9},
                {"offset": -8},
                {"offset": 60},
                {"crc32": 1},
                {"name": 3},
            )
        ),
    ],
    ids=lambda header: str(header)[:70],
)
def test_a_forged_header_is_refused_before_memory_is_taken(tmp_path: Path, header: object) -> None:
    (tmp_path / "bad").write_bytes(forged(header))
    with pytest.raises(ProgramError, match="is no readable checkpoint") as caught:
        checkpoint.load(tmp_path / "bad")
    assert "\n" not in str(caught.value)


def test_a_forged_length_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(checkpoint.MAGIC + struct.pack("<QI", 2**60, 0))
    with pytest.raises(ProgramError, match="does not fit a file"):
        checkpoint.load(tmp_path / "bad")


def test_a_well_formed_forgery_would_be_read(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(forged({"arrays": [entry()], "progress": {}}))
    assert checkpoint.load(tmp_path / "good").arrays["a"].tolist() == [0, 0]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = small_file(tmp_path / "c")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            checkpoint.save(tmp_path / "c", Checkpoint({"a": np.zeros(9)}, {}))
    with pytest.raises(ConfigError, match="cannot keep an array of object"):
        checkpoint.save(tmp_path / "c", Checkpoint({"a": np.array([None])}, {}))
    with pytest.raises(ConfigError, match="limited to 8388608 bytes of JSON"):
        checkpoint.save(tmp_path / "c", Checkpoint({}, {"text": "x" * (8 << 20)}))
    assert (tmp_path / "c").read_bytes() == raw
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none")
